// SPDX-License-Identifier: MIT
// A matrix of floats on a card that keeps its memory when it shrinks, as cpu_buffer is in host
// memory. Tested by tests/llama/cuda/backward_test.cu.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/cuda/runtime.cuh>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

namespace llama {

/// Room for `count` elements in `b`, whose contents are lost if it grows.
/// @throws bitladder::error that says how much was asked for and how much the card has left
template <class T>
void reserve(bitladder::cuda::buffer<T>& b, std::size_t count) {
  if (b.size() >= count) return;
  const bitladder::status s = b.allocate(count);
  if (s == bitladder::status::ok) return;
  std::size_t left = 0, all = 0;
  static_cast<void>(bitladder::cuda::call_status(cudaMemGetInfo(&left, &all)));
  throw bitladder::error(s, "the card: " + std::to_string(count * sizeof(T)) +
                                " bytes asked for, found " + std::to_string(left) + " of " +
                                std::to_string(all) + " free");
}

/// [rows, cols], without gaps.
class cuda_matrix {
 public:
  /// Contents are lost.
  void resize(int rows, int cols) {
    reserve(data_, static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols));
    rows_ = rows;
    cols_ = cols;
  }
  int rows() const { return rows_; }
  int cols() const { return cols_; }
  std::size_t size() const {
    return static_cast<std::size_t>(rows_) * static_cast<std::size_t>(cols_);
  }
  float* data() { return data_.data(); }
  const float* data() const { return data_.data(); }
  float* row(int r) {
    return data() + static_cast<std::size_t>(r) * static_cast<std::size_t>(cols_);
  }
  const float* row(int r) const {
    return data() + static_cast<std::size_t>(r) * static_cast<std::size_t>(cols_);
  }

 private:
  bitladder::cuda::buffer<float> data_;
  int rows_ = 0;
  int cols_ = 0;
};

}  // namespace llama
