// SPDX-License-Identifier: MIT
// Host memory that the card reads and writes by itself while the host goes on, and the copies
// between it and ordinary memory by several threads. Tested by
// tests/quantize/cuda/quantize_test.cu.
#pragma once

#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// Bytes that stay where they are. They grow and are kept.
class page_locked {
 public:
  page_locked() = default;
  page_locked(page_locked&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  page_locked& operator=(page_locked&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~page_locked() { reset(); }

  template <class T>
  T* as() noexcept {
    return static_cast<T*>(data_);
  }
  template <class T>
  const T* as() const noexcept {
    return static_cast<const T*>(data_);
  }

  /// Room for `size` bytes, whatever is in them; no work may be using the memory.
  /// @throws error(out_of_memory)
  void fit(std::size_t size) {
    if (size_ >= size) return;
    reset();
    check(call_status(cudaHostAlloc(&data_, size, cudaHostAllocPortable)),
          "page-locked host memory");
    size_ = size;
  }

 private:
  void reset() noexcept {
    if (data_ != nullptr) static_cast<void>(call_status(cudaFreeHost(data_)));
    data_ = nullptr;
    size_ = 0;
  }

  void* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Copies to be made together by the threads of a pool.
class copy_list {
 public:
  void clear() { pieces_.clear(); }

  /// In pieces that are worth handing to a thread.
  void add(void* to, const void* from, std::size_t size) {
    constexpr std::size_t most = std::size_t{1} << 18;
    for (std::size_t at = 0; at < size; at += most)
      pieces_.push_back({static_cast<unsigned char*>(to) + at,
                         static_cast<const unsigned char*>(from) + at, std::min(most, size - at)});
  }

  void run(thread_pool* pool) const {
    parallel_for(pool, static_cast<std::int64_t>(pieces_.size()), 1,
                 [this](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t i = begin; i < end; ++i) {
                     const piece& p = pieces_[static_cast<std::size_t>(i)];
                     std::memcpy(p.to, p.from, p.size);
                   }
                 });
  }

 private:
  struct piece {
    unsigned char* to;
    const unsigned char* from;
    std::size_t size;
  };

  std::vector<piece> pieces_;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
