// SPDX-License-Identifier: MIT
// A small thread pool and a parallel loop. The caller owns the pool and passes it down; a null pool
// runs the loop in the calling thread. Each thread has its part of a loop, the same one whenever
// the loop is the same, and helps with the others' once it is through. Which thread runs which
// chunk is still not fixed, so bodies must not let results depend on it. Tested by
// tests/core/parallel_test.cpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// `threads - 1` workers beside the caller's own thread. After a loop they look for the next one
/// for a fraction of a millisecond before they sleep.
class thread_pool {
 public:
  /// @param threads how many run a loop, the caller included; 0 takes the machine's count
  explicit thread_pool(int threads = 0) : parts_(count_of(threads)) {
    workers_.reserve(parts_.size() - 1);
    try {
      for (std::size_t i = 1; i < parts_.size(); ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (
        ...) {  // the machine has no more threads: let those that started end, then tell the caller
      stop();
      throw;
    }
  }
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;
  ~thread_pool() { stop(); }

  /// Threads that run a loop, the caller's included.
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls `body(begin, end)` over chunks of at most `grain` that cover [0, count), from all
  /// threads, and returns when all are done. One loop at a time; not to be called from inside a
  /// body.
  /// @throws the first exception that a body threw; chunks not yet begun are then skipped
  template <class Body>
  void run(std::int64_t count, std::int64_t grain, Body&& body) {
    if (count <= 0) return;
    if (grain < 1) grain = 1;
    if (workers_.empty() || count <= grain) {
      for (std::int64_t b = 0; b < count; b += grain)
        body(b, b + grain < count ? b + grain : count);
      return;
    }
    using body_type = std::remove_reference_t<Body>;
    loop_.count = count;
    loop_.grain = grain;
    loop_.context = const_cast<void*>(static_cast<const void*>(&body));
    loop_.call = [](void* f, std::int64_t b, std::int64_t e) {
      (*static_cast<body_type*>(f))(b, e);
    };
    publish((count - 1) / grain + 1);
    take_chunks(0);
    wait_for_chunks();
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  static constexpr std::size_t cache_line = 64;

  /// What to do. Written between loops, read by whoever holds a chunk.
  struct loop {
    std::int64_t count = 0, grain = 1;
    void* context = nullptr;
    void (*call)(void*, std::int64_t, std::int64_t) = nullptr;
  };

  /// The chunks that one thread begins with. Taking one is all that entitles to read `loop_` and
  /// `end`: a loop does not return before every chunk taken is done, whereas a thread that takes
  /// none may be late, or asleep, and is not waited for.
  struct alignas(cache_line) part {
    std::atomic<std::int64_t> left{0};  ///< not yet taken; below zero if asked for too often
    std::int64_t end = 0;               ///< one past the last
  };

  static std::size_t count_of(int threads) {
    if (threads <= 0) threads = static_cast<int>(std::thread::hardware_concurrency());
    return static_cast<std::size_t>(std::max(threads, 1));
  }

  /// Hands out the loop and wakes who sleeps.
  void publish(std::int64_t chunks) {
    const auto threads = static_cast<std::int64_t>(parts_.size());
    chunks_left_.store(chunks, std::memory_order_relaxed);
    std::int64_t end = 0;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const std::int64_t size =
          chunks / threads + (static_cast<std::int64_t>(i) < chunks % threads ? 1 : 0);
      parts_[i].end = end += size;
      parts_[i].left.store(size, std::memory_order_release);
    }
    // Sequentially consistent, as is `sleepers_`: either this thread sees a sleeper, or the sleeper
    // sees the new generation.
    generation_.fetch_add(1);
    if (sleepers_.load() != 0) wake_all();
  }

  void wake_all() {
    { const std::lock_guard<std::mutex> lock(mutex_); }  // whoever counts as asleep does sleep
    wake_.notify_all();
  }

  /// Runs chunks until there are none to take, those of part `own` first.
  void take_chunks(std::size_t own) {
    std::int64_t done = 0;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      part& p = parts_[own + i < parts_.size() ? own + i : own + i - parts_.size()];
      while (p.left.load(std::memory_order_relaxed) > 0) {
        const std::int64_t left = p.left.fetch_sub(1, std::memory_order_acquire);
        if (left <= 0) break;
        ++done;
        const std::int64_t begin = (p.end - left) * loop_.grain;
        try {
          loop_.call(loop_.context, begin, begin + std::min(loop_.grain, loop_.count - begin));
        } catch (...) {
          done += fail(std::current_exception());
        }
      }
    }
    if (done == 0) return;
    // As in publish(): either this thread sees the caller waiting, or the caller sees the end.
    if (chunks_left_.fetch_sub(done) == done && caller_sleeps_.load()) {
      { const std::lock_guard<std::mutex> lock(mutex_); }
      done_.notify_one();
    }
  }

  /// Keeps the first failure and takes all chunks that are left.
  /// @return how many
  std::int64_t fail(std::exception_ptr e) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_) failure_ = std::move(e);
    std::int64_t taken = 0;
    for (part& p : parts_)
      taken += std::max<std::int64_t>(p.left.exchange(0, std::memory_order_acquire), 0);
    return taken;
  }

  void wait_for_chunks() {
    if (spin([this] { return chunks_left_.load(std::memory_order_acquire) == 0; })) return;
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true);
    done_.wait(lock, [this] { return chunks_left_.load() == 0; });
    caller_sleeps_.store(false, std::memory_order_relaxed);
  }

  void work(std::size_t own) {
    std::uint64_t seen = 0;
    for (;;) {
      if (!spin([&] { return generation_.load(std::memory_order_acquire) != seen; })) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
        sleepers_.fetch_sub(1);
      }
      seen = generation_.load(std::memory_order_acquire);
      if (stopping_.load(std::memory_order_relaxed)) return;
      take_chunks(own);
    }
  }

  // A decode step is some hundred loops of tens of microseconds each with a few microseconds
  // between them, and on a virtual machine a sleeping thread takes up to a hundred to wake: look
  // for work for longer than that before going to sleep. Where there are more threads than free
  // cores, who only looks must not keep a core from who works: after a moment, yield between two
  // looks. (Loops of 40 us on two Zen 3 cores: 3 or 4 threads cost nothing over 2, 8 threads up to
  // 30%. A pool that spun a number of times and waited for every worker took 2.5 times as long with
  // 3 threads and over 6 times with 8.)
  static constexpr std::chrono::microseconds patience{300}, moment{10};

  template <class Condition>
  static bool spin(Condition&& reached) {
    if (reached()) return true;
    const auto start = std::chrono::steady_clock::now();
    for (;;) {
      for (int i = 0; i < 32; ++i) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
        if (reached()) return true;
      }
      const auto passed = std::chrono::steady_clock::now() - start;
      if (passed > patience) return false;
      if (passed > moment) std::this_thread::yield();
    }
  }

  void stop() {
    stopping_.store(true, std::memory_order_relaxed);
    generation_.fetch_add(1);
    wake_all();
    for (std::thread& t : workers_) t.join();
  }

  // What different threads write lies on different cache lines.
  std::vector<part> parts_;  // by thread, the caller's first
  std::vector<std::thread> workers_;
  std::exception_ptr failure_;
  std::atomic<bool> stopping_{false};
  alignas(cache_line) loop loop_;
  std::atomic<std::uint64_t> generation_{0};                      // loops so far
  alignas(cache_line) std::atomic<std::int64_t> chunks_left_{0};  // not yet done
  alignas(cache_line) std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::mutex mutex_;
  std::condition_variable wake_, done_;
};

/// `pool->run(count, grain, body)`, or the same loop in the calling thread if `pool` is null.
template <class Body>
void parallel_for(thread_pool* pool, std::int64_t count, std::int64_t grain, Body&& body) {
  if (pool != nullptr) return pool->run(count, grain, body);
  if (grain < 1) grain = 1;
  for (std::int64_t b = 0; b < count; b += grain) body(b, b + grain < count ? b + grain : count);
}

}  // namespace v0_1
}  // namespace bitladder
