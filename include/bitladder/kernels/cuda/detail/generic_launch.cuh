// SPDX-License-Identifier: MIT
// Host side of the product that runs everywhere (generic_kernel.cuh): any number of tokens, column
// groups of any size, no scratch. Arguments were checked by gemm.cuh. Tested by
// tests/kernels/cuda/generic_test.cu.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/detail/generic_kernel.cuh>
#include <bitladder/kernels/cuda/detail/outlier_source.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>

#include <cuda_runtime_api.h>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// One matrix, or the two of a SwiGLU. They may differ in their groups.
template <int Bits>
[[nodiscard]] status launch_generic(const generic_params& p, cudaStream_t stream) noexcept {
  const unsigned blocks = static_cast<unsigned>(p.matrices[0].layout.row_tiles());
  if (p.matrices[0].outliers.offsets != nullptr || p.matrices[1].outliers.offsets != nullptr)
    generic_kernel<Bits, true><<<blocks, generic_threads, 0, stream>>>(p);
  else
    generic_kernel<Bits, false><<<blocks, generic_threads, 0, stream>>>(p);
  return launch_status();
}

/// A whole call: a launch for every matrix, or one for a SwiGLU.
template <int Bits>
[[nodiscard]] status launch_generic(const gemm_args& a, cudaStream_t stream) noexcept {
  generic_params p{};
  p.parts = a.epilogue == gemm_epilogue::swiglu ? 2 : 1;
  p.out.type = a.y_type;
  p.x = a.x;
  p.x_is_bf16 = a.x_type == dtype::bf16;
  p.x_stride = a.x_stride != 0 ? a.x_stride : a.matrices[0].w.layout.cols;
  p.m = a.m;
  for (int i = 0; i < a.count; i += p.parts) {
    for (int part = 0; part < p.parts; ++part) {
      const gemm_matrix& m = a.matrices[i + part];
      const int rows = m.w.layout.rows;
      p.matrices[part] = {m.w.planes,
                          m.w.tables,
                          m.w.layout,
                          m.w.groups,
                          source_of(m.w.outliers),
                          {m.y, m.bias, m.residual, a.y_stride != 0 ? a.y_stride : rows, rows}};
    }
    const status s = launch_generic<Bits>(p, stream);
    if (s != status::ok) return s;
  }
  return status::ok;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
