// SPDX-License-Identifier: MIT
// What quantizes linears elsewhere than on the CPU, as quantize_model.hpp sees it: some workers,
// each in a thread of its own, that take one linear after another and leave them packed. No more
// linears are in memory than there are workers and two. Tested by
// tests/llama/quantize_model_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/quantize/options.hpp>
#include <bitladder/quantize/quantize.hpp>
#include <bitladder/quantize/sensitivity.hpp>

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace llama {

/// A linear's weights in memory, and how much each matters.
struct linear_data {
  bitladder::dtype type;      ///< f32, f16 or bf16
  const std::byte* elements;  ///< aligned for their type [rows, cols]
  int rows, cols;
  bitladder::sensitivity sensitivity;
};

/// A quantized linear, ready to be written. Its memory serves one linear after another.
class packed_linear {
 public:
  /// Memory for planes of this layout, whatever is in it.
  std::uint32_t* resize(bitladder::bitplane_layout layout) {
    layout_ = layout;
    if (capacity_ < layout.total_words()) {
      words_.reset();
      capacity_ = 0;
      // Not a vector, which would write it all once more, in one thread.
      words_.reset(new std::uint32_t[layout.total_words()]);
      capacity_ = layout.total_words();
    }
    return words_.get();
  }
  bitladder::bitplane_view planes() const { return {words_.get(), layout_}; }

  bitladder::codebook_ladder codebooks;
  bitladder::sparse_matrix outliers;
  bitladder::quantize_report report;

 private:
  bitladder::bitplane_layout layout_{};
  std::size_t capacity_ = 0;  // words
  std::unique_ptr<std::uint32_t[]> words_;
};

/// One worker's means. Made and used in the worker's thread.
class linear_quantizer {
 public:
  virtual ~linear_quantizer() = default;
  /// @param to receives what bitladder::quantize and pack make of the linear
  /// @throws bitladder::error as bitladder::quantize, and if the device fails
  virtual void quantize(const linear_data& from, const bitladder::kmeans_options& options,
                        packed_linear& to) = 0;
};

/// All workers: card_quantizers() of card_quantizer.hpp.
struct linear_quantizers {
  /// What they work on, where their results may differ from the CPU's: work that was begun on one
  /// is not finished on the other.
  std::string device;
  int count = 0;  ///< none: the CPU quantizes
  /// Makes the means of worker `i` of [0, count).
  std::function<std::unique_ptr<linear_quantizer>(int i)> make;
};

namespace detail {

/// Has workers make `count` linears, and the calling thread write each as soon as it is made, in
/// any order. After a failure nothing new is begun, but what is made is written.
class linear_pipeline {
 public:
  /// Makes linear `i`, in a worker's thread.
  using make_linear = std::function<void(linear_quantizer& by, std::size_t i, packed_linear& to)>;
  using write_linear = std::function<void(std::size_t i, const packed_linear& made)>;

  /// @throws what `make` or `write` threw first
  static void run(const linear_quantizers& workers, std::size_t count, const make_linear& make,
                  const write_linear& write) {
    linear_pipeline p(workers, count, make);
    p.write_all(write);
    p.stop();
    if (p.failure_) std::rethrow_exception(p.failure_);
  }

 private:
  linear_pipeline(const linear_quantizers& workers, std::size_t count, const make_linear& make)
      : workers_(workers), count_(count), make_(make) {
    try {
      const int needed =
          static_cast<int>(std::min(count, static_cast<std::size_t>(std::max(workers.count, 0))));
      for (int i = 0; i < needed + 2; ++i) spare_.push_back(std::make_unique<packed_linear>());
      for (int i = 0; i < needed; ++i) {
        threads_.emplace_back([this, i] { work(i); });
        const std::lock_guard<std::mutex> lock(mutex_);
        ++running_;
      }
    } catch (...) {
      stop();
      throw;
    }
  }
  linear_pipeline(const linear_pipeline&) = delete;
  linear_pipeline& operator=(const linear_pipeline&) = delete;
  ~linear_pipeline() { stop(); }

  struct made_linear {
    std::size_t index;
    std::unique_ptr<packed_linear> made;
  };

  void work(int worker) {
    try {
      const std::unique_ptr<linear_quantizer> by = workers_.make(worker);
      made_linear l{};
      while (take(l)) {
        make_(*by, l.index, *l.made);
        give(std::move(l));
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      stopping_ = true;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    ++ended_;
    changed_.notify_all();
  }

  /// @return false if there is nothing more to do
  bool take(made_linear& l) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return stopping_ || next_ == count_ || !spare_.empty(); });
    if (stopping_ || next_ == count_) return false;
    l = {next_++, std::move(spare_.back())};
    spare_.pop_back();
    return true;
  }

  void give(made_linear l) {
    const std::lock_guard<std::mutex> lock(mutex_);
    made_.push_back(std::move(l));
    changed_.notify_all();
  }

  void write_all(const write_linear& write) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return !made_.empty() || ended_ == running_; });
      if (made_.empty()) return;
      made_linear l = std::move(made_.front());
      made_.pop_front();
      lock.unlock();
      write(l.index, *l.made);
      lock.lock();
      spare_.push_back(std::move(l.made));
      changed_.notify_all();
    }
  }

  void stop() noexcept {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    for (std::thread& t : threads_)
      if (t.joinable()) t.join();
  }

  const linear_quantizers& workers_;
  std::size_t count_;
  const make_linear& make_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<packed_linear>> spare_;
  std::deque<made_linear> made_;
  std::exception_ptr failure_;
  std::size_t next_ = 0;
  int running_ = 0, ended_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace detail
}  // namespace llama
