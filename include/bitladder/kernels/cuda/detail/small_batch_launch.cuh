// SPDX-License-Identifier: MIT
// Host side of the kernel for up to 16 tokens: how the columns are cut, how much scratch that
// takes, and the launch. Arguments were checked by gemm.cuh. Tested by
// tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/detail/launch.cuh>
#include <bitladder/kernels/cuda/detail/outlier_source.cuh>
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

inline std::size_t small_batch_partial_bytes(const gemm_args& a, int tokens) {
  return static_cast<std::size_t>(row_units(a)) * packed_layout::tile_rows *
         static_cast<std::size_t>(tokens) * sizeof(float);
}

/// Scratch of a launch of up to `tokens` tokens: sums of the passes over the columns before the
/// last, and of several tokens' outliers, whose activations are transposed. An upper bound over all
/// cards; 0 where one pass is enough everywhere.
inline std::size_t small_batch_workspace_bytes(const gemm_args& a, int tokens) {
  const packed_layout& l = a.matrices[0].w.layout;
  const bool outliers = tokens > 1 && has_outliers(a);
  if (l.col_tiles() <= 16 && !outliers) return 0;
  return small_batch_partial_bytes(a, tokens) +
         (outliers ? static_cast<std::size_t>(l.cols) * static_cast<std::size_t>(tokens) * 2 : 0);
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
    p.matrices[i].outliers = source_of(matrix.w.outliers);
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

/// Runs of outliers of a unit that are fetched before the activations, where there is room: three a
/// row, more than one weight in a hundred makes of 8192 columns.
inline constexpr int outlier_staged_runs = 48;

template <int Bits, int Tokens, bool Roomy, bool Outliers>
[[nodiscard]] status launch_small_batch_form(const gemm_args& a, int first, int m,
                                             const device_properties& device,
                                             cudaStream_t stream) noexcept {
  using policy = small_batch_policy<Bits, Tokens, Roomy>;
  using body = small_batch<Bits, policy, Outliers>;
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
  int shared = body::shared_bytes(std::min(p.chunk_tiles, (p.col_tiles + 7) / 8 * 8));
  if (shared > device.shared_bytes_per_block) return status::unsupported_device;

  if (p.chunks > 1 || (Outliers && Tokens > 1)) {
    if (a.workspace == nullptr || a.workspace_bytes < small_batch_workspace_bytes(a, Tokens))
      return status::invalid_argument;
    p.partial = static_cast<float*>(a.workspace);
  }

  const auto block_count = [&](int shared_bytes) {
    // The runtime keeps 1 KiB of shared memory a block for itself.
    const int fit = std::max(1, device.shared_bytes_per_multiprocessor / (shared_bytes + 1024));
    return std::min<std::int64_t>(
        p.items, static_cast<std::int64_t>(std::min(policy::blocks, fit)) * device.multiprocessors);
  };
  std::int64_t blocks = block_count(shared);
  if (Outliers && Tokens == 1) {
    p.outlier_offset = shared - body::lut_base;
    const auto most_units = [&](std::int64_t count) {
      return static_cast<int>((p.items + count - 1) / count) << p.paired;
    };
    const auto with_rows = [&](int units) {
      return shared + outlier_block::head_bytes +
             static_cast<std::int64_t>(units) * outlier_block::unit_bytes;
    };
    std::int64_t bytes = with_rows(most_units(blocks));
    if (bytes > device.shared_bytes_per_block) return status::unsupported_device;
    // Their room may cost a multiprocessor's second block, and then the others have more units.
    blocks = block_count(static_cast<int>(bytes));
    p.outlier_units = most_units(blocks);
    bytes = with_rows(p.outlier_units);
    if (bytes > device.shared_bytes_per_block) return status::unsupported_device;
    // What is left is for runs that come before the activations.
    const int per_multiprocessor =
        static_cast<int>((blocks + device.multiprocessors - 1) / device.multiprocessors);
    const std::int64_t room =
        std::min(device.shared_bytes_per_block,
                 device.shared_bytes_per_multiprocessor / per_multiprocessor - 1024) -
        bytes;
    p.outlier_staged = static_cast<int>(
        std::min<std::int64_t>({room / outlier_stage::run_bytes,
                                static_cast<std::int64_t>(p.outlier_units) * outlier_staged_runs,
                                small_batch_outliers<body>::window}) /
        4 * 4);
    shared = static_cast<int>(bytes) + p.outlier_staged * outlier_stage::run_bytes;
  }
  if constexpr (Outliers && Tokens > 1) {
    p.x_by_col = reinterpret_cast<std::uint16_t*>(static_cast<unsigned char*>(a.workspace) +
                                                  small_batch_partial_bytes(a, Tokens));
    const status s = launch(transpose_tokens_kernel<Tokens>,
                            {dim3(static_cast<unsigned>((p.cols + 63) / 64)),
                             transpose_tokens_threads, 0, a.pdl && device.compute_capability >= 90},
                            p, stream);
    if (s != status::ok) return s;
  }
  return launch(small_batch_kernel<Bits, Tokens, Roomy, Outliers>,
                {dim3(static_cast<unsigned>(blocks)), body::threads, shared,
                 a.pdl && device.compute_capability >= 90},
                p, stream);
}

template <int Bits, int Tokens, bool Outliers>
[[nodiscard]] status launch_small_batch_for(const gemm_args& a, int first, int m,
                                            const device_properties& device,
                                            cudaStream_t stream) noexcept {
  // What the code was compiled for decides, not the card: it may be translated for a later one.
  cudaFuncAttributes compiled{};
  const status s = call_status(cudaFuncGetAttributes(
      &compiled, reinterpret_cast<const void*>(&small_batch_kernel<Bits, Tokens, true, Outliers>)));
  if (s != status::ok) return s;
  return has_roomy_blocks(compiled.ptxVersion)
             ? launch_small_batch_form<Bits, Tokens, true, Outliers>(a, first, m, device, stream)
             : launch_small_batch_form<Bits, Tokens, false, Outliers>(a, first, m, device, stream);
}

/// @param first token of the launch; `m` up to `Tokens` from there
/// @return unsupported_device if a block does not fit the card
template <int Bits, int Tokens>
[[nodiscard]] status launch_small_batch(const gemm_args& a, int first, int m,
                                        const device_properties& device,
                                        cudaStream_t stream) noexcept {
  return has_outliers(a) ? launch_small_batch_for<Bits, Tokens, true>(a, first, m, device, stream)
                         : launch_small_batch_for<Bits, Tokens, false>(a, first, m, device, stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
