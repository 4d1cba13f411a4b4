// SPDX-License-Identifier: MIT
// Products of float matrices on a card's tensor cores with the precision of floats: a float is cut
// into a TF32 number and the TF32 number nearest to what is left (Ootomo and Yokota 2022,
// Recovering single precision accuracy from Tensor Cores), 22 bits together, and cuBLAS multiplies
// the parts. fp16 and bf16 weights are TF32 numbers already, so products with them take two terms,
// others three. Tested by tests/llama/cuda/backward_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/cuda/runtime.cuh>

#include <llama/cuda_matrix.cuh>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cublas_v2.h>
#include <string>

namespace llama {

/// @throws bitladder::error with cuBLAS's word for what went wrong
inline void check_cublas(cublasStatus_t s) {
  if (s == CUBLAS_STATUS_SUCCESS) return;
  throw bitladder::error(s == CUBLAS_STATUS_ALLOC_FAILED ? bitladder::status::out_of_memory
                                                         : bitladder::status::launch_failed,
                         std::string("cuBLAS: ") + cublasGetStatusString(s));
}

namespace detail {

/// The float nearest to x with 11 significant bits, halves away from zero.
__device__ inline float to_tf32(float x) {
  return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
}

/// high + low = x to 22 bits. `high`, `low` and `again`, where `high` goes a second time, may each
/// be null.
template <class = void>
BL_KERNEL split_kernel(const float* x, std::size_t count, float* high, float* low, float* again) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const float h = to_tf32(x[i]);
    if (high != nullptr) high[i] = h;
    if (again != nullptr) again[i] = h;
    if (low != nullptr) low[i] = to_tf32(x[i] - h);
  }
}

}  // namespace detail

/// Blocks of 256 threads for a loop over `count` elements.
inline unsigned blocks_for(std::size_t count) {
  const std::size_t blocks = (count + 255) / 256;
  return static_cast<unsigned>(blocks < 4096 ? (blocks > 0 ? blocks : 1) : 4096);
}

/// A weight on the card: numbers of TF32, and what they leave if it is stored as floats.
struct cuda_weight {
  bitladder::cuda::buffer<float> high, low;
  bool exact = true;  ///< low is not needed
  int rows = 0, cols = 0;
};

/// Owns a cuBLAS handle and memory to work in. One product at a time, on one stream.
class cuda_products {
 public:
  explicit cuda_products(cudaStream_t stream) : stream_(stream) {
    check_cublas(cublasCreate(&handle_));
    // Before anything can throw: the destructor of a half-made object does not run.
    const cublasStatus_t s = cublasSetStream(handle_, stream);
    if (s != CUBLAS_STATUS_SUCCESS) static_cast<void>(cublasDestroy(handle_));
    check_cublas(s);
  }
  cuda_products(const cuda_products&) = delete;
  cuda_products& operator=(const cuda_products&) = delete;
  ~cuda_products() { static_cast<void>(cublasDestroy(handle_)); }

  cublasHandle_t handle() const { return handle_; }

  /// y = x W^T, W [rows, cols]
  void forward(const cuda_weight& w, const cuda_matrix& x, cuda_matrix& y) {
    y.resize(x.rows(), w.rows);
    split(x);
    const auto add = [&](const float* left, const float* right, float beta) {
      multiply(CUBLAS_OP_T, CUBLAS_OP_N, w.rows, x.rows(), w.cols, right, w.cols, left, w.cols,
               beta, y.data(), w.rows);
    };
    add(low_.data(), w.high.data(), 0);  // small terms first
    if (!w.exact) add(high_.data(), w.low.data(), 1);
    add(high_.data(), w.high.data(), 1);
  }

  /// x = or += d W', W' the rows [first, first + d.cols()) of W
  void input_gradient(const cuda_weight& w, int first, const cuda_matrix& d, cuda_matrix& x,
                      bool add_to) {
    if (!add_to) x.resize(d.rows(), w.cols);
    split(d);
    const std::size_t skip = static_cast<std::size_t>(first) * static_cast<std::size_t>(w.cols);
    const auto add = [&](const float* left, const float* right, float beta) {
      multiply(CUBLAS_OP_N, CUBLAS_OP_N, w.cols, d.rows(), d.cols(), right + skip, w.cols, left,
               d.cols(), beta, x.data(), w.cols);
    };
    add(low_.data(), w.high.data(), add_to ? 1.f : 0.f);
    if (!w.exact) add(high_.data(), w.low.data(), 1);
    add(high_.data(), w.high.data(), 1);
  }

  /// Rows [first, first + rows) of d^T x, the gradient of the weight of a linear that was given x.
  /// @param begin set for the first rows of a d and x
  /// @return [rows, x.cols()], until the next call
  const float* weight_gradient(const cuda_matrix& d, const cuda_matrix& x, int first, int rows,
                               bool begin) {
    // One product of three times the depth: low high, high low, high high.
    if (begin) {
      stack(d, stacked_d_, true);
      stack(x, stacked_x_, false);
    }
    reserve(gradient_, static_cast<std::size_t>(rows) * static_cast<std::size_t>(x.cols()));
    multiply(CUBLAS_OP_N, CUBLAS_OP_T, x.cols(), rows, 3 * d.rows(), stacked_x_.data(), x.cols(),
             stacked_d_.data() + first, d.cols(), 0, gradient_.data(), x.cols());
    return gradient_.data();
  }

  /// The card's form of `count` floats of a weight of [rows, cols].
  void split_weight(const float* values, bool exact, int rows, int cols, cuda_weight& w) {
    const std::size_t count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols);
    w.rows = rows;
    w.cols = cols;
    w.exact = exact;
    reserve(w.high, count);
    if (!exact) reserve(w.low, count);
    detail::split_kernel<><<<blocks_for(count), 256, 0, stream_>>>(
        values, count, w.high.data(), exact ? nullptr : w.low.data(), nullptr);
    bitladder::check(bitladder::cuda::launch_status());
  }

 private:
  void split(const cuda_matrix& x) {
    reserve(high_, x.size());
    reserve(low_, x.size());
    detail::split_kernel<><<<blocks_for(x.size()), 256, 0, stream_>>>(
        x.data(), x.size(), high_.data(), low_.data(), nullptr);
    bitladder::check(bitladder::cuda::launch_status());
  }

  /// low, high, high of `x` one after another, or high, low, high.
  void stack(const cuda_matrix& x, bitladder::cuda::buffer<float>& to, bool low_first) {
    const std::size_t n = x.size();
    reserve(to, 3 * n);
    float* first = to.data();
    detail::split_kernel<><<<blocks_for(n), 256, 0, stream_>>>(
        x.data(), n, low_first ? first + n : first, low_first ? first : first + n, first + 2 * n);
    bitladder::check(bitladder::cuda::launch_status());
  }

  /// Of TF32 numbers in columns: c = a b + beta c, c [m, n].
  void multiply(cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const float* a,
                int lda, const float* b, int ldb, float beta, float* c, int ldc) {
    const float one = 1;
    check_cublas(cublasGemmEx(handle_, op_a, op_b, m, n, k, &one, a, CUDA_R_32F, lda, b, CUDA_R_32F,
                              ldb, &beta, c, CUDA_R_32F, ldc, CUBLAS_COMPUTE_32F_FAST_TF32,
                              CUBLAS_GEMM_DEFAULT));
  }

  cublasHandle_t handle_ = nullptr;
  cudaStream_t stream_;
  bitladder::cuda::buffer<float> high_, low_, stacked_d_, stacked_x_, gradient_;
};

}  // namespace llama
