// SPDX-License-Identifier: MIT
// Host side of the kernel for up to 16 tokens: how the columns are cut, how much scratch that
// takes, and the launch. Arguments were checked by gemm.cuh. Tested by
// tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/detail/launch.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_kernel.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

inline int row_units(const gemm_args& a) {
  int units = 0;
  for (int i = 0; i < a.count; ++i) units += a.matrices[i].w.layout.row_tiles();
  return units;
}

/// Scratch of a launch of up to `tokens` tokens: sums of the passes over the columns before the
/// last. An upper bound over all cards; 0 where one pass is enough everywhere.
inline std::size_t small_batch_workspace_bytes(const gemm_args& a, int tokens) {
  if (a.matrices[0].w.layout.col_tiles() <= 16) return 0;
  return static_cast<std::size_t>(row_units(a)) * packed_layout::tile_rows *
         static_cast<std::size_t>(tokens) * sizeof(float);
}

/// What a call asks for, for tokens first .. first + m - 1; how the columns are cut is left open.
inline small_batch_params describe(const gemm_args& a, int first, int m) noexcept {
  const packed_layout& layout = a.matrices[0].w.layout;
  small_batch_params p{};
  p.count = a.count;
  p.paired = a.epilogue == gemm_epilogue::swiglu ? 1 : 0;
  p.items = row_units(a) >> p.paired;
  p.plane_stride = layout.plane_stride();
  p.cols = layout.cols;
  p.col_tiles = layout.col_tiles();
  p.chunks = 1;
  p.chunk_tiles = p.col_tiles;
  const std::int64_t element_bytes = static_cast<std::int64_t>(size_of(a.y_type));
  int unit = 0;
  for (int i = 0; i < a.count; ++i) {
    const gemm_matrix& matrix = a.matrices[i];
    const packed_layout& l = matrix.w.layout;
    const std::int64_t stride = a.y_stride != 0 ? a.y_stride : l.rows;
    const std::int64_t skip = first * stride * element_bytes;
    p.matrices[i].planes = matrix.w.planes;
    p.matrices[i].tables = matrix.w.tables;
    p.matrices[i].row_tile_stride = static_cast<std::uint32_t>(l.row_tile_stride());
    p.matrices[i].first_unit = unit;
    p.matrices[i].out.y = matrix.y == nullptr ? nullptr : static_cast<char*>(matrix.y) + skip;
    p.matrices[i].out.bias = matrix.bias;
    p.matrices[i].out.residual =
        matrix.residual == nullptr ? nullptr : static_cast<const char*>(matrix.residual) + skip;
    p.matrices[i].out.stride = stride;
    p.matrices[i].out.rows = l.rows;
    unit += l.row_tiles();
  }
  p.x_stride = a.x_stride != 0 ? a.x_stride : layout.cols;
  p.x = static_cast<const char*>(a.x) + first * p.x_stride * 2;
  p.x_is_bf16 = a.x_type == dtype::bf16;
  p.m = m;
  p.out.type = a.y_type;
  return p;
}

template <int Bits, int Tokens, bool Roomy>
[[nodiscard]] status launch_small_batch_form(const gemm_args& a, int first, int m,
                                             const device_properties& device,
                                             cudaStream_t stream) noexcept {
  using policy = small_batch_policy<Bits, Tokens, Roomy>;
  using body = small_batch<Bits, policy>;
  small_batch_params p = describe(a, first, m);

  // As many groups of columns a block as its shared memory holds.
  const int groups = (p.col_tiles + body::group_tiles - 1) / body::group_tiles;
  int chunk_groups = std::min(policy::groups_per_chunk, groups);
  while (chunk_groups > 1 &&
         body::shared_bytes(chunk_groups * body::group_tiles) > device.shared_bytes_per_block)
    --chunk_groups;
  p.chunks = (groups + chunk_groups - 1) / chunk_groups;
  chunk_groups = (groups + p.chunks - 1) / p.chunks;
  p.chunk_tiles = chunk_groups * body::group_tiles;
  const int shared = body::shared_bytes(std::min(p.chunk_tiles, (p.col_tiles + 7) / 8 * 8));
  if (shared > device.shared_bytes_per_block) return status::unsupported_device;

  if (p.chunks > 1) {
    if (a.workspace == nullptr || a.workspace_bytes < small_batch_workspace_bytes(a, Tokens))
      return status::invalid_argument;
    p.partial = static_cast<float*>(a.workspace);
  }

  // The runtime keeps 1 KiB of shared memory a block for itself.
  const int fit = std::max(1, device.shared_bytes_per_multiprocessor / (shared + 1024));
  const std::int64_t blocks = std::min<std::int64_t>(
      p.items, static_cast<std::int64_t>(std::min(policy::blocks, fit)) * device.multiprocessors);
  return launch(small_batch_kernel<Bits, Tokens, Roomy>,
                {dim3(static_cast<unsigned>(blocks)), body::threads, shared,
                 a.pdl && device.compute_capability >= 90},
                p, stream);
}

/// @param first token of the launch; `m` up to `Tokens` from there
/// @return unsupported_device if a block does not fit the card
template <int Bits, int Tokens>
[[nodiscard]] status launch_small_batch(const gemm_args& a, int first, int m,
                                        const device_properties& device,
                                        cudaStream_t stream) noexcept {
  // What the code was compiled for decides, not the card: it may be translated for a later one.
  cudaFuncAttributes compiled{};
  const status s = call_status(cudaFuncGetAttributes(
      &compiled, reinterpret_cast<const void*>(&small_batch_kernel<Bits, Tokens, true>)));
  if (s != status::ok) return s;
  return has_roomy_blocks(compiled.ptxVersion)
             ? launch_small_batch_form<Bits, Tokens, true>(a, first, m, device, stream)
             : launch_small_batch_form<Bits, Tokens, false>(a, first, m, device, stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
