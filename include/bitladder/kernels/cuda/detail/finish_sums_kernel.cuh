// SPDX-License-Identifier: MIT
// From float sums in memory to results: scales, bias, residual or SwiGLU, one rounding. For
// products that a library computes. Device code only. Tested by
// tests/kernels/cuda/gemm_cublas_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/output.cuh>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

struct finish_sums_params {
  const float* sums;     ///< [tokens, rows]
  const float* up;       ///< the same for SwiGLU's second matrix
  const float* unscale;  ///< per token, or null
  output_row_params to, up_to;
  output_params out;
  int first_token;  ///< of the sums
  int first_row;    ///< of the results
  int rows;
};

inline constexpr int finish_sums_threads = 256;

/// Block x is a token, y a run of 256 rows.
template <bool Swiglu>
BL_KERNEL __launch_bounds__(finish_sums_threads)
    finish_sums_kernel(const __grid_constant__ finish_sums_params p) {
  const int row =
      static_cast<int>(blockIdx.y) * finish_sums_threads + static_cast<int>(threadIdx.x);
  if (row >= p.rows) return;
  const std::size_t i = static_cast<std::size_t>(blockIdx.x) * p.rows + row;
  const int token = p.first_token + static_cast<int>(blockIdx.x);
  const float scale = p.unscale == nullptr ? 1.f : p.unscale[token];
  const float sum = p.sums[i] * scale;
  if constexpr (Swiglu)
    write_swiglu(p.out, p.to, p.up_to, token, p.first_row + row, sum, p.up[i] * scale);
  else
    write_output(p.out, p.to, token, p.first_row + row, sum);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
