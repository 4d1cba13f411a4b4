// SPDX-License-Identifier: MIT
// Everything that can be wrong with a product before the card is asked. Tested by
// tests/kernels/cuda/gemm_args_test.cu.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/repack.cuh>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// What is in outliers is trusted.
[[nodiscard]] inline status check_outliers(const packed_outliers_view& o) noexcept {
  if (o.empty()) return status::ok;
  if (o.runs < 0 || o.entries == nullptr || o.heads == nullptr || o.offsets == nullptr)
    return status::invalid_argument;
  return is_aligned(o.entries, 16) && is_aligned(o.heads, 4) && is_aligned(o.offsets, 4)
             ? status::ok
             : status::misaligned;
}

/// Everything about a call that can be wrong before the card is asked.
[[nodiscard]] inline status check_gemm(int bits, const gemm_args& a) noexcept {
  const bool swiglu = a.epilogue == gemm_epilogue::swiglu;
  if (a.count < 1 || a.count > gemm_args::max_matrices || (swiglu && a.count != 2))
    return status::invalid_argument;
  if (a.x == nullptr || a.m < 1) return status::invalid_argument;
  if (a.x_type != dtype::f16 && a.x_type != dtype::bf16) return status::invalid_argument;
  if (a.y_type != dtype::f16 && a.y_type != dtype::bf16 && a.y_type != dtype::f32)
    return status::invalid_argument;
  const int cols = a.matrices[0].w.layout.cols;
  std::int64_t tiles = 0;
  for (int i = 0; i < a.count; ++i) {
    const gemm_matrix& m = a.matrices[i];
    const packed_layout& l = m.w.layout;
    if (m.w.bits != bits) return status::unsupported_bits;
    if (l.planes > bitplane_layout::max_planes) return status::invalid_argument;
    if (bits > l.planes) return status::too_few_planes;
    if (m.w.planes == nullptr || m.w.tables == nullptr) return status::invalid_argument;
    if (m.y == nullptr && !(swiglu && i == 1)) return status::invalid_argument;
    if (l.rows < 1 || l.cols < 32 || l.cols % 32 != 0) return status::invalid_argument;
    if (l.cols != cols || (swiglu && l.rows != a.matrices[0].w.layout.rows))
      return status::shape_mismatch;
    if (m.w.groups < 1 || l.cols % m.w.groups != 0) return status::shape_mismatch;
    if (a.y_stride != 0 && a.y_stride < l.rows) return status::shape_mismatch;
    if (!is_aligned(m.w.planes, 16) || !is_aligned(m.w.tables, 16)) return status::misaligned;
    const status outliers = check_outliers(m.w.outliers);
    if (outliers != status::ok) return outliers;
    for (const void* p : {static_cast<const void*>(m.y), m.bias, m.residual})
      if (!is_aligned(p, size_of(a.y_type))) return status::misaligned;
    tiles += l.row_tiles();
  }
  // Kernels count units, padded columns and tokens in 32 bits.
  if (tiles > 1 << 26 || cols > 1 << 26 || a.m > 1 << 26) return status::invalid_argument;
  if (a.x_stride != 0 && a.x_stride < cols) return status::shape_mismatch;
  if (!is_aligned(a.x, 16) || a.x_stride % 8 != 0 || !is_aligned(a.workspace, 16))
    return status::misaligned;
  return status::ok;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
