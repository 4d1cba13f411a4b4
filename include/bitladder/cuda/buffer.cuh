// SPDX-License-Identifier: MIT
// Device memory with an owner. Allocation and release are plain cudaMalloc and cudaFree, which may
// synchronize and so belong outside hot calls; copies are queued on the caller's stream. Tested by
// tests/cuda/buffer_test.cu.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// `size()` elements on the device that was current in `allocate`. Move-only.
template <class T>
class buffer {
  static_assert(std::is_trivially_copyable<T>::value, "device memory is filled by copying bytes");

 public:
  buffer() = default;
  buffer(buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  buffer& operator=(buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~buffer() { reset(); }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }

  /// Drops what it held and takes `count` uninitialized elements. After a failure it is empty.
  [[nodiscard]] status allocate(std::size_t count) noexcept {
    reset();
    if (count == 0) return status::ok;
    if (count > SIZE_MAX / sizeof(T)) return status::out_of_memory;
    void* p = nullptr;
    const status s = call_status(cudaMalloc(&p, count * sizeof(T)));
    if (s != status::ok) return s;
    data_ = static_cast<T*>(p);
    size_ = count;
    return status::ok;
  }

  /// Gives the memory back; work that uses it must be done.
  void reset() noexcept {
    if (data_ != nullptr) static_cast<void>(call_status(cudaFree(data_)));
    data_ = nullptr;
    size_ = 0;
  }

  /// Queues a copy of `count` elements from the host into the first ones here. Pinned host memory
  /// must stay as it is until the stream has come past; pageable memory may change on return.
  /// @return invalid_argument if `host` is null or `count` is above size()
  [[nodiscard]] status upload(const T* host, std::size_t count, cudaStream_t stream) noexcept {
    if (count == 0) return status::ok;
    if (host == nullptr || count > size_) return status::invalid_argument;
    return call_status(
        cudaMemcpyAsync(data_, host, count * sizeof(T), cudaMemcpyHostToDevice, stream));
  }

  /// Queues a copy of the first `count` elements to the host, there once the stream has come past.
  /// @return invalid_argument if `host` is null or `count` is above size()
  [[nodiscard]] status download(T* host, std::size_t count, cudaStream_t stream) const noexcept {
    if (count == 0) return status::ok;
    if (host == nullptr || count > size_) return status::invalid_argument;
    return call_status(
        cudaMemcpyAsync(host, data_, count * sizeof(T), cudaMemcpyDeviceToHost, stream));
  }

  /// Queues the clearing of all bytes.
  [[nodiscard]] status clear(cudaStream_t stream) noexcept {
    if (size_ == 0) return status::ok;
    return call_status(cudaMemsetAsync(data_, 0, size_ * sizeof(T), stream));
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
