// SPDX-License-Identifier: MIT
// A failed call ends the row that made it: the text of CUDA or of the library becomes an exception.
#pragma once

#include <bitladder/core/status.hpp>

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace bench {

inline void check(cudaError_t e, const char* what) {
  if (e != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(e));
}

using bitladder::check;

/// Device memory that is given back at the end of the scope, by the element.
template <class T>
class device_array {
 public:
  device_array() = default;
  explicit device_array(std::size_t count) { resize(count); }
  device_array(const device_array&) = delete;
  device_array& operator=(const device_array&) = delete;
  ~device_array() { static_cast<void>(cudaFree(data_)); }

  T* data() const { return data_; }
  std::size_t size() const { return size_; }
  /// Drops the contents; the memory is not cleared.
  void resize(std::size_t count) {
    static_cast<void>(cudaFree(data_));
    data_ = nullptr;
    size_ = 0;
    if (count == 0) return;
    check(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)), "cudaMalloc");
    size_ = count;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace bench
