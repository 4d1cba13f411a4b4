// SPDX-License-Identifier: MIT
// Y = X W^T for 17 and more tokens: weights are decoded in the kernel that multiplies, so they are
// read from memory once, at the size of the planes in use. One table per row (no column groups).
// gemm.cuh calls it from 17 tokens on. Tested by tests/kernels/cuda/large_batch_test.cu.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/detail/check_gemm.cuh>
#include <bitladder/kernels/cuda/detail/convert_x_kernel.cuh>
#include <bitladder/kernels/cuda/detail/large_batch_kernel.cuh>
#include <bitladder/kernels/cuda/detail/launch.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/repack.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

namespace detail {

/// Tokens of the image of x: whole tiles of whichever size is chosen.
[[nodiscard]] inline int large_batch_padded(int m) noexcept {
  return m <= 64 ? 64 : (m + 127) / 128 * 128;
}
[[nodiscard]] inline int large_batch_col_tiles(int cols) noexcept {
  return cols / packed_layout::tile_cols + (cols % packed_layout::tile_cols != 0);
}
[[nodiscard]] inline std::size_t large_batch_image_bytes(int m, int cols) noexcept {
  return static_cast<std::size_t>(large_batch_padded(m)) *
         static_cast<std::size_t>(large_batch_col_tiles(cols)) * packed_layout::tile_cols * 2;
}

/// What a call of many tokens can get wrong.
[[nodiscard]] inline status check_large_batch(int bits, const gemm_args& a) noexcept {
  const status s = check_gemm(bits, a);
  if (s != status::ok) return s;
  for (int i = 0; i < a.count; ++i)
    if (a.matrices[i].w.groups != 1) return status::invalid_argument;
  // Blocks and columns are counted in 32 bits.
  const bool countable = a.m <= 1 << 22 && a.matrices[0].w.layout.cols <= 1 << 22;
  return countable ? status::ok : status::invalid_argument;
}

/// How a call is spread over the card.
struct large_batch_plan {
  int tokens = 0;  ///< of a block: 64 or 128
  int cluster = 1;
  bool split = false;  ///< the cluster divides columns
  int stages = 0;
  int replicas = 0;
  int shared_bytes = 0;
  double clocks = 0;  ///< estimated
};

/// Shared memory for blocks of `tokens`: as many copies of the tables, then as many stages as fit.
/// @return false if not even two stages do
template <int Bits>
[[nodiscard]] bool fit_large_batch(const device_properties& device,
                                   large_batch_plan& plan) noexcept {
  using shape = large_batch_shape;
  const int room = device.shared_bytes_per_block - shape::table_base - shape::barrier_bytes;
  const int stage = shape::stage_bytes(plan.tokens);
  // Four stages cover the latency of the second-level cache; a table copy saves lookups more than
  // a fifth would.
  for (const int least : {4, large_batch_tables<Bits>::min_stages}) {
    for (const int replicas : {4, 2, 1}) {
      const int tables = large_batch_tables<Bits>::bytes(replicas);
      if (tables + least * stage > room) continue;
      plan.replicas = replicas;
      plan.stages = std::min((room - tables) / stage, shape::max_stages);
      plan.shared_bytes =
          shape::table_base +
          std::max(tables + plan.stages * stage + shape::barrier_bytes, shape::staging_bytes);
      return plan.shared_bytes <= device.shared_bytes_per_block;
    }
  }
  return false;
}

/// Picks the tile and the cluster that a count of clocks expects to be fastest.
/// @param row_blocks as large_batch_row_blocks counts them
/// @param clusters whether the kernel and the card have them
template <int Bits>
[[nodiscard]] large_batch_plan choose_large_batch(int row_blocks, int m, int col_tiles,
                                                  const device_properties& device,
                                                  bool clusters) noexcept {
  using tables = large_batch_tables<Bits>;
  large_batch_plan best;
  for (const int tokens : {64, 128}) {
    if (tokens == 128 && m <= 64) continue;
    large_batch_plan plan;
    plan.tokens = tokens;
    if (!fit_large_batch<Bits>(device, plan)) continue;
    const int token_tiles = (m + tokens - 1) / tokens;
    for (int ways = 1; ways <= (clusters ? 8 : 1) && ways <= col_tiles; ++ways) {
      plan.split = ways > 1;
      plan.cluster = ways;
      // Blocks that share tokens: fewer rows of a block ask for more of them.
      if (ways == 1 && clusters)
        plan.cluster = std::min(2 * tables::groups, row_blocks > 3 ? 4 : row_blocks > 1 ? 2 : 1);
      // Clocks of one column tile of a block's rows, on an H200. The tensor cores take 2048
      // products a clock, and for them half of the shared-memory bandwidth of 128 bytes; a lookup
      // takes a lane's slot of the 32 per clock, and one more for each lane that shares its bank;
      // tokens are written there once. Memory gives a multiprocessor 18 bytes a clock, the
      // second-level cache about 40 if all ask, and no more than 64 arrive.
      const double weights = 256.0 * tables::rows;
      const double tensor = weights * tokens / 2048;
      const double slots = tables::pairs ? 0.5 : 1.0;
      const double tile_x = tokens * 512.0, tile_w = weights * Bits / 8;
      const double shared = weights / 32 * slots * 4 / plan.replicas + tensor / 2 + tile_x / 128;
      const double traffic =
          std::max(std::max(tile_w / 18, (tile_x / (plan.split ? 1 : plan.cluster) + tile_w) / 40),
                   (tile_x + tile_w) / 64);
      const double tile =
          1.1 * std::max(std::max(tensor, shared), traffic) + 150.0 / tables::groups;
      // Launch, tables (at the same 18 bytes), the first loads, and results on their way out.
      const double fixed = 4000 + tables::codes * tables::rows * 2 / 18.0 + tokens * 25.0 +
                           (plan.split ? 1500 + tokens * 10.0 : 0.0);
      const double blocks =
          static_cast<double>(plan.split ? row_blocks * ways : row_blocks) * token_tiles;
      // Larger clusters leave some multiprocessors of a group without a partner.
      const double usable = device.multiprocessors * (ways > 4 ? 0.88 : ways > 2 ? 0.94 : 1.0);
      const double waves =
          static_cast<double>(static_cast<std::int64_t>(blocks / usable)) +
          (blocks > static_cast<double>(static_cast<std::int64_t>(blocks / usable)) * usable ? 1.0
                                                                                             : 0.0);
      plan.clocks = waves * ((col_tiles + ways - 1) / ways * tile + fixed);
      if (best.tokens == 0 || plan.clocks < best.clocks) best = plan;
    }
  }
  return best;
}

/// Queues the conversion of x to the image, or to rows of fp16.
[[nodiscard]] inline status launch_convert_x(const gemm_args& args, bool image, void* out,
                                             float* unscale, bool pdl,
                                             cudaStream_t stream) noexcept {
  const int cols = args.matrices[0].w.layout.cols;
  convert_x_params p{};
  p.x = args.x;
  p.stride = args.x_stride != 0 ? args.x_stride : cols;
  p.out = out;
  p.unscale = unscale;
  p.m = args.m;
  p.padded_m = image ? large_batch_padded(args.m) : args.m;
  p.cols = cols;
  p.col_tiles = large_batch_col_tiles(cols);
  p.bf16 = args.x_type == dtype::bf16;
  return launch(image ? &convert_x_kernel<true> : &convert_x_kernel<false>,
                {dim3(static_cast<unsigned>(p.padded_m)), convert_x_threads, 0, pdl}, p, stream);
}

template <int Bits, int Tokens>
[[nodiscard]] status launch_large_batch(const large_batch_params& p, const large_batch_plan& plan,
                                        unsigned grid, bool pdl, cudaStream_t stream) noexcept {
  void (*const kernel)(const large_batch_params) = &large_batch_kernel<Bits, Tokens>;
  const void* function = reinterpret_cast<const void*>(kernel);
  status s = call_status(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              plan.shared_bytes));
  if (s != status::ok) return s;
  s = call_status(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                       cudaSharedmemCarveoutMaxShared));
  if (s != status::ok) return s;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(large_batch_shape::threads);
  config.dynamicSmemBytes = static_cast<std::size_t>(plan.shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  config.attrs = attributes;
  if (pdl) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (plan.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = static_cast<unsigned>(plan.cluster);
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  return call_status(cudaLaunchKernelEx(&config, kernel, p));
}

}  // namespace detail

/// Scratch of large_batch: x as the tensor cores read it, and a scale per token.
[[nodiscard]] inline std::size_t large_batch_workspace_bytes(int m, int cols) noexcept {
  if (m < 1 || cols < 1) return 0;
  return detail::large_batch_image_bytes(m, cols) +
         static_cast<std::size_t>(detail::large_batch_padded(m)) * sizeof(float);
}

namespace detail {

/// Row blocks of a launch.
template <int Bits>
[[nodiscard]] int large_batch_row_blocks(const gemm_args& args) noexcept {
  const bool swiglu = args.epilogue == gemm_epilogue::swiglu;
  const int block_rows = large_batch_tables<Bits>::rows / (swiglu ? 2 : 1);
  int blocks = 0;
  for (int i = 0; i < (swiglu ? 1 : args.count); ++i)
    blocks += (args.matrices[i].w.layout.rows + block_rows - 1) / block_rows;
  return blocks;
}

/// Whether clusters and dependent launch can be had. Code for older cards may run on this one,
/// translated: it knows neither.
template <int Bits>
[[nodiscard]] status large_batch_clusters(const device_properties& device, bool& have) noexcept {
  cudaFuncAttributes compiled{};
  const status s = call_status(cudaFuncGetAttributes(
      &compiled, reinterpret_cast<const void*>(&large_batch_kernel<Bits, 64>)));
  have = s == status::ok && device.compute_capability >= 90 && compiled.ptxVersion >= 90;
  return s;
}

/// Queues both kernels with a given plan, whose shared memory must suffice. `args` is checked.
template <int Bits>
[[nodiscard]] status run_large_batch(const gemm_args& args, const large_batch_plan& plan,
                                     bool clusters, void* scratch, std::size_t scratch_bytes,
                                     cudaStream_t stream) noexcept {
  const int cols = args.matrices[0].w.layout.cols;
  if (scratch == nullptr || scratch_bytes < large_batch_workspace_bytes(args.m, cols))
    return status::invalid_argument;
  if (!is_aligned(scratch, 16)) return status::misaligned;
  large_batch_params p{};
  const bool swiglu = args.epilogue == gemm_epilogue::swiglu;
  const std::size_t element_bytes = size_of(args.y_type);
  p.count = args.count;
  p.swiglu = swiglu;
  p.wide = true;
  int row_blocks = 0;
  for (int i = 0; i < args.count; ++i) {
    const gemm_matrix& from = args.matrices[i];
    large_batch_matrix& to = p.matrices[i];
    const packed_layout& l = from.w.layout;
    to.planes = from.w.planes;
    to.tables = reinterpret_cast<const std::uint32_t*>(from.w.tables);
    to.out = {from.y, from.bias, from.residual, args.y_stride != 0 ? args.y_stride : l.rows,
              l.rows};
    to.row_tile_stride = l.row_tile_stride();
    to.row_tiles = l.row_tiles();
    to.first_block = row_blocks;
    if (swiglu && i == 1) break;
    const int block_rows = large_batch_tables<Bits>::rows / (swiglu ? 2 : 1);
    row_blocks += (l.rows + block_rows - 1) / block_rows;
    p.wide = p.wide && is_aligned(from.y, 4 * element_bytes) &&
             is_aligned(from.residual, 4 * element_bytes) && to.out.stride % 4 == 0;
  }
  p.out = {args.y_type};
  p.m = args.m;
  p.padded_m = large_batch_padded(args.m);
  p.col_tiles = large_batch_col_tiles(cols);
  p.x = static_cast<const unsigned char*>(scratch);
  float* unscale = reinterpret_cast<float*>(static_cast<unsigned char*>(scratch) +
                                            large_batch_image_bytes(args.m, cols));
  p.unscale = unscale;
  p.token_tiles = (args.m + plan.tokens - 1) / plan.tokens;
  p.stages = plan.stages;
  p.replicas = plan.replicas;
  p.split = plan.split;
  const std::int64_t units =
      plan.split ? row_blocks : (row_blocks + plan.cluster - 1) / plan.cluster;
  const std::int64_t grid = units * p.token_tiles * plan.cluster;
  if (grid > INT32_MAX) return status::invalid_argument;

  const status s = launch_convert_x(args, true, scratch, unscale, args.pdl && clusters, stream);
  if (s != status::ok) return s;
  return plan.tokens == 64
             ? launch_large_batch<Bits, 64>(p, plan, static_cast<unsigned>(grid), clusters, stream)
             : launch_large_batch<Bits, 128>(p, plan, static_cast<unsigned>(grid), clusters,
                                             stream);
}

}  // namespace detail

/// Y = X W^T for each matrix of `args`, queued on `stream` as two kernels: x is brought into the
/// order of the tensor cores once for all matrices (bfloat16 as fp16 with a power of two per
/// token), then multiplied. Sums are float, in an order that depends on the shapes, the precision
/// and the card, and not on the run.
/// @param scratch large_batch_workspace_bytes(args.m, cols) bytes, 16-byte aligned, any content;
///        args.workspace is not used
/// @return invalid_argument (a null pointer, no token, an element type, columns not a multiple of
///         32, column groups, too little scratch), shape_mismatch, unsupported_bits (a view of
///         another precision), too_few_planes, misaligned, unsupported_device, launch_failed
template <int Bits>
[[nodiscard]] status large_batch(const gemm_args& args, void* scratch, std::size_t scratch_bytes,
                                 cudaStream_t stream) noexcept {
  static_assert(Bits >= 1 && Bits <= 8, "bitplanes are read at 1 to 8 bits");
  status s = detail::check_large_batch(Bits, args);
  if (s != status::ok) return s;
  device_properties device;
  s = properties(device);
  if (s != status::ok) return s;
  if (device.compute_capability < 80) return status::unsupported_device;
  bool clusters = false;
  s = detail::large_batch_clusters<Bits>(device, clusters);
  if (s != status::ok) return s;
  const detail::large_batch_plan plan = detail::choose_large_batch<Bits>(
      detail::large_batch_row_blocks<Bits>(args), args.m,
      detail::large_batch_col_tiles(args.matrices[0].w.layout.cols), device, clusters);
  if (plan.tokens == 0) return status::unsupported_device;
  return detail::run_large_batch<Bits>(args, plan, clusters, scratch, scratch_bytes, stream);
}

/// The same for a precision known at run time. A template, so that who does not call it compiles
/// none of its kernels.
template <class = void>
[[nodiscard]] status large_batch(int bits, const gemm_args& args, void* scratch,
                                 std::size_t scratch_bytes, cudaStream_t stream) noexcept {
  return dispatch_bits(bits, all_bits{}, [&](auto b) {
    return large_batch<decltype(b)::value>(args, scratch, scratch_bytes, stream);
  });
}

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
