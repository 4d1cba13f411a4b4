// SPDX-License-Identifier: MIT
// A small thread pool and a parallel loop. The caller owns the pool and passes it down; a null pool
// runs the loop in the calling thread. Which thread runs which chunk is not fixed, so bodies must
// not let results depend on it. Tested by tests/core/parallel_test.cpp.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// `threads - 1` workers beside the caller's own thread.
class thread_pool {
 public:
  /// @param threads how many run a loop, the caller included; 0 takes the machine's count
  explicit thread_pool(int threads = 0) {
    if (threads <= 0) threads = static_cast<int>(std::thread::hardware_concurrency());
    if (threads <= 0) threads = 1;
    workers_.reserve(static_cast<std::size_t>(threads - 1));
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
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
    {
      std::lock_guard<std::mutex> lock(mutex_);
      count_ = count;
      grain_ = grain;
      next_.store(0, std::memory_order_relaxed);
      failure_ = nullptr;
      context_ = const_cast<void*>(static_cast<const void*>(&body));
      call_ = [](void* f, std::int64_t b, std::int64_t e) { (*static_cast<body_type*>(f))(b, e); };
      busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    take_chunks();
    if (!spin([this] { return busy_.load(std::memory_order_acquire) == 0; })) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [this] { return busy_.load(std::memory_order_acquire) == 0; });
    }
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  // A decode step is a few hundred loops of some microseconds each, and a sleeping thread takes
  // tens of microseconds to wake: look for work for about that long before going to sleep.
  static constexpr int spins = 2000;

  template <class Condition>
  static bool spin(Condition&& reached) {
    for (int i = 0; i < spins; ++i) {
      if (reached()) return true;
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#endif
    }
    return false;
  }

  void take_chunks() {
    for (;;) {
      const std::int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= count_) return;
      try {
        call_(context_, begin, begin + grain_ < count_ ? begin + grain_ : count_);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
        next_.store(count_, std::memory_order_relaxed);
      }
    }
  }

  void work() {
    std::uint64_t seen = 0;
    for (;;) {
      if (!spin([&] { return generation_.load(std::memory_order_acquire) != seen; })) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
      }
      ++seen;  // run() waits for every worker, so no generation is ever skipped
      if (stopping_.load(std::memory_order_acquire)) return;
      take_chunks();
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard<std::mutex> lock(mutex_);
        done_.notify_one();
      }
    }
  }

  void stop() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_.store(true, std::memory_order_release);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& t : workers_) t.join();
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<std::int64_t> next_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stopping_{false};
  std::int64_t count_ = 0, grain_ = 1;
  void* context_ = nullptr;
  void (*call_)(void*, std::int64_t, std::int64_t) = nullptr;
  std::exception_ptr failure_;
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
