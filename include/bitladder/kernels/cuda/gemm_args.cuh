// SPDX-License-Identifier: MIT
// What a product on the card is asked for: activations, one to four matrices that share them, and
// what to do with the sums. Plain values, so that a call can be captured in a graph. Tested by
// tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// What becomes of the sums before they are written.
enum class gemm_epilogue : int {
  none,    ///< y = W x + bias + residual, for every matrix
  swiglu,  ///< two matrices, gate and up, of equal rows: y = silu(gate) * up, written to the first
           ///< y
};

/// One matrix of a launch and where its results go.
struct gemm_matrix {
  packed_view w{};
  void* y = nullptr;           ///< [m, w.layout.rows] of y_type
  const void* bias = nullptr;  ///< [rows] of y_type, or null
  const void* residual =
      nullptr;  ///< [m, rows] of y_type with y's stride, or null; may be y itself
};

/// A product Y = X W^T for up to four matrices that share X, all read at the same precision.
struct gemm_args {
  static constexpr int max_matrices = 4;

  gemm_matrix matrices[max_matrices]{};
  int count = 1;

  const void* x = nullptr;    ///< [m, cols], 16-byte aligned
  dtype x_type = dtype::f16;  ///< fp16 or bf16
  int m = 1;                  ///< tokens
  std::int64_t x_stride = 0;  ///< elements from one token to the next; 0 = cols. Multiple of 8

  dtype y_type = dtype::f16;  ///< fp16, bf16 or fp32
  std::int64_t y_stride = 0;  ///< elements from one token to the next; 0 = the matrix's rows

  gemm_epilogue epilogue = gemm_epilogue::none;

  /// A token has the same bits alone and in every batch of up to 16. If false, a call may take a
  /// faster kernel that rounds in other places: for one token (policy.cuh says when), whose
  /// activations may be rounded to 16 bits (detail/bit_serial_kernel.cuh has the bound), and for 9
  /// to 16 of few and long rows.
  bool batch_invariant = true;

  void* workspace = nullptr;  ///< gemm_workspace_bytes(...) bytes, 16-byte aligned, any content
  std::size_t workspace_bytes = 0;

  /// Launch with programmatic stream serialization: the weights are requested while the kernel
  /// before still runs (sm_90 and later; ignored elsewhere).
  bool pdl = false;
};

/// The element types that kernels read and write, as `dtype`.
template <class T>
struct element;
template <>
struct element<float> {
  static constexpr dtype type = dtype::f32;
};
template <>
struct element<fp16_t> {
  static constexpr dtype type = dtype::f16;
};
template <>
struct element<bf16_t> {
  static constexpr dtype type = dtype::bf16;
};
template <>
struct element<__half> {
  static constexpr dtype type = dtype::f16;
};
template <>
struct element<__nv_bfloat16> {
  static constexpr dtype type = dtype::bf16;
};

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
