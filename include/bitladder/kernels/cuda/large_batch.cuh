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
#include <bitladder/kernels/cuda/detail/large_batch_plan.cuh>
#include <bitladder/kernels/cuda/detail/launch.cuh>
#include <bitladder/kernels/cuda/detail/outlier_batch_kernel.cuh>
#include <bitladder/kernels/cuda/detail/outlier_source.cuh>
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

/// Queues the conversion of x to an image of `tokens`, or if that is 0 to rows of fp16.
/// @param exchange as convert_x_params
[[nodiscard]] inline status launch_convert_x(const gemm_args& args, int tokens, void* out,
                                             float* unscale, bool pdl, cudaStream_t stream,
                                             bool exchange = false) noexcept {
  const int cols = args.matrices[0].w.layout.cols;
  convert_x_params p{};
  p.x = args.x;
  p.stride = args.x_stride != 0 ? args.x_stride : cols;
  p.out = out;
  p.unscale = unscale;
  p.m = args.m;
  p.padded_m = tokens != 0 ? tokens : args.m;
  p.cols = cols;
  p.col_tiles = large_batch_col_tiles(cols);
  p.bf16 = args.x_type == dtype::bf16;
  p.exchange = exchange;
  // One block for each multiprocessor, while there are column tiles for all warps.
  const int parts = std::max(1, std::min(p.col_tiles / (convert_x_threads / 32), 128 / p.padded_m));
  return launch(tokens != 0 ? &convert_x_kernel<true> : &convert_x_kernel<false>,
                {dim3(static_cast<unsigned>(p.padded_m), static_cast<unsigned>(parts)),
                 convert_x_threads, 0, pdl},
                p, stream);
}

/// Queues row blocks from p.first_block on, in clusters that divide the columns.
template <int Bits, int Tokens, int Resident>
[[nodiscard]] status launch_large_batch(large_batch_params& p, const large_batch_plan& plan,
                                        int row_blocks, int cluster, bool pdl,
                                        cudaStream_t stream) noexcept {
  void (*const kernel)(const large_batch_params) = &large_batch_kernel<Bits, Tokens, Resident>;
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaFuncAttributes compiled{};  // knows the threads that code of this architecture was made for
  status s = call_status(cudaFuncGetAttributes(&compiled, function));
  if (s != status::ok) return s;
  s = call_status(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       plan.shared_bytes));
  if (s != status::ok) return s;
  s = call_status(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                       cudaSharedmemCarveoutMaxShared));
  if (s != status::ok) return s;
  cudaLaunchConfig_t config{};
  // Blocks with the same rows are neighbours, so that weights come from memory once.
  config.gridDim = dim3(static_cast<unsigned>(p.padded_m / Tokens),
                        static_cast<unsigned>(row_blocks), static_cast<unsigned>(cluster));
  config.blockDim = dim3(static_cast<unsigned>(compiled.maxThreadsPerBlock));
  config.dynamicSmemBytes = static_cast<std::size_t>(plan.shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  config.attrs = attributes;
  if (pdl) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = 1;
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = static_cast<unsigned>(cluster);
  }
  p.share = p.col_tiles / cluster;
  p.extra = p.col_tiles % cluster;
  return call_status(cudaLaunchKernelEx(&config, kernel, p));
}

template <int Bits, int Tokens, int Resident>
[[nodiscard]] status launch_large_batch(large_batch_params& p, const large_batch_plan& plan,
                                        int row_blocks, bool pdl, cudaStream_t stream) noexcept {
  const int whole = row_blocks - plan.tail;
  const status s = whole == 0 ? status::ok
                              : launch_large_batch<Bits, Tokens, Resident>(
                                    p, plan, whole, plan.cluster, pdl, stream);
  if (s != status::ok || plan.tail == 0) return s;
  p.first_block = whole;
  return launch_large_batch<Bits, Tokens, Resident>(p, plan, plan.tail, plan.tail_cluster, pdl,
                                                    stream);
}

}  // namespace detail

/// Scratch of large_batch without outliers: x as the tensor cores read it, and a scale per token.
[[nodiscard]] inline std::size_t large_batch_workspace_bytes(int m, int cols) noexcept {
  if (m < 1 || cols < 1) return 0;
  return detail::large_batch_image_bytes(m, 128, cols) +
         static_cast<std::size_t>(detail::large_batch_padded(m, 128)) * sizeof(float);
}

namespace detail {

/// Where the scratch for outliers is, and how many tokens share it.
struct large_batch_outliers {
  static constexpr int most_tokens = 512;  ///< of a launch: the sums take 4 bytes a row and token

  bool any;
  int tokens;                              ///< of a launch
  int padded;                              ///< multiple of 64
  int rows = 0;                            ///< of whole row tiles of all matrices
  std::size_t x = 0, sums = 0, bytes = 0;  ///< offsets; the scratch of large_batch comes first

  explicit large_batch_outliers(const gemm_args& a) noexcept
      : any(has_outliers(a)),
        tokens(any ? std::min(a.m, most_tokens) : a.m),
        padded(large_batch_padded(tokens, outlier_batch_tokens)) {
    const auto align = [](std::size_t n) { return (n + 255) / 256 * 256; };
    const int cols = a.matrices[0].w.layout.cols;
    bytes = large_batch_workspace_bytes(tokens, cols);
    if (!any) return;
    for (int i = 0; i < a.count; ++i)
      rows += a.matrices[i].w.layout.row_tiles() * packed_layout::tile_rows;
    x = align(bytes);
    sums = align(x + static_cast<std::size_t>(padded) * static_cast<std::size_t>(cols) * 2);
    bytes =
        sums + static_cast<std::size_t>(tokens) * static_cast<std::size_t>(rows) * sizeof(float);
  }
};

}  // namespace detail

/// Scratch of large_batch for these arguments.
[[nodiscard]] inline std::size_t large_batch_workspace_bytes(const gemm_args& args) noexcept {
  if (args.count < 1 || args.count > gemm_args::max_matrices || args.m < 1) return 0;
  return detail::large_batch_outliers(args).bytes;
}

namespace detail {

/// The call for tokens first .. first + m - 1 alone.
[[nodiscard]] inline gemm_args token_range(gemm_args a, int first, int m) noexcept {
  const std::int64_t x_stride = a.x_stride != 0 ? a.x_stride : a.matrices[0].w.layout.cols;
  a.x = static_cast<const char*>(a.x) + first * x_stride * 2;
  a.m = m;
  const auto bytes = static_cast<std::int64_t>(size_of(a.y_type));
  for (int i = 0; i < a.count; ++i) {
    gemm_matrix& to = a.matrices[i];
    const std::int64_t skip = first * (a.y_stride != 0 ? a.y_stride : to.w.layout.rows) * bytes;
    if (to.y != nullptr) to.y = static_cast<char*>(to.y) + skip;
    if (to.residual != nullptr) to.residual = static_cast<const char*>(to.residual) + skip;
  }
  return a;
}

/// Queues the sums over outliers.
[[nodiscard]] inline status launch_outlier_batch(const gemm_args& a,
                                                 const large_batch_outliers& part,
                                                 unsigned char* scratch, bool pdl,
                                                 cudaStream_t stream) noexcept {
  outlier_batch_params p{};
  const int cols = a.matrices[0].w.layout.cols;
  p.count = a.count;
  p.x = static_cast<const std::uint16_t*>(a.x);
  p.x_stride = a.x_stride != 0 ? a.x_stride : cols;
  p.x_is_bf16 = a.x_type == dtype::bf16;
  p.m = a.m;
  p.cols = cols;
  p.padded_m = part.padded;
  p.x_by_col = reinterpret_cast<std::uint16_t*>(scratch + part.x);
  p.sums = reinterpret_cast<float*>(scratch + part.sums);
  p.sum_stride = part.rows;
  int tiles = 0;
  for (int i = 0; i < a.count; ++i) {
    const packed_view& w = a.matrices[i].w;
    p.matrices[i] = {source_of(w.outliers), tiles};
    tiles += w.layout.row_tiles();
  }
  const auto token_blocks = static_cast<unsigned>(part.padded / outlier_batch_tokens);
  const status s =
      launch(&transpose_x_kernel<outlier_batch_threads>,
             {dim3(static_cast<unsigned>(cols / 32), token_blocks), outlier_batch_threads, 0, pdl},
             p, stream);
  if (s != status::ok) return s;
  return launch(&outlier_batch_kernel<outlier_batch_threads>,
                {dim3(static_cast<unsigned>(tiles), token_blocks), outlier_batch_threads, 0, pdl},
                p, stream);
}

/// Whether clusters and dependent launch can be had. Code for older cards may run on this one,
/// translated: it knows neither.
template <int Bits>
[[nodiscard]] status large_batch_clusters(const device_properties& device, bool& have) noexcept {
  cudaFuncAttributes compiled{};
  const status s = call_status(cudaFuncGetAttributes(
      &compiled, reinterpret_cast<const void*>(&large_batch_kernel<Bits, 64, 1>)));
  have = s == status::ok && device.compute_capability >= 90 && compiled.ptxVersion >= 90;
  return s;
}

/// Queues both kernels with a given plan, whose shared memory must suffice. `args` is checked.
template <int Bits>
[[nodiscard]] status run_large_batch(const gemm_args& args, const large_batch_plan& plan,
                                     bool clusters, void* scratch, std::size_t scratch_bytes,
                                     cudaStream_t stream) noexcept {
  const int cols = args.matrices[0].w.layout.cols;
  const large_batch_outliers outliers(args);
  if (scratch == nullptr || scratch_bytes < outliers.bytes || outliers.tokens < args.m)
    return status::invalid_argument;
  if (!is_aligned(scratch, 16)) return status::misaligned;
  large_batch_params p{};
  const bool swiglu = args.epilogue == gemm_epilogue::swiglu;
  const std::size_t element_bytes = size_of(args.y_type);
  p.count = args.count;
  p.swiglu = swiglu;
  p.wide = true;
  int row_blocks = 0, sum_rows = 0;
  if (plan.tokens == 0) return status::invalid_argument;
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
    to.first_sum = sum_rows;
    sum_rows += l.row_tiles() * packed_layout::tile_rows;
    if (swiglu && i == 1) break;
    const int block_rows = plan.rows / (swiglu ? 2 : 1);
    row_blocks += (l.rows + block_rows - 1) / block_rows;
    p.wide = p.wide && is_aligned(from.y, 4 * element_bytes) &&
             is_aligned(from.residual, 4 * element_bytes) && to.out.stride % 4 == 0;
  }
  p.out = {args.y_type};
  p.m = args.m;
  p.padded_m = large_batch_padded(args.m, plan.tokens);
  p.col_tiles = large_batch_col_tiles(cols);
  p.x = static_cast<const unsigned char*>(scratch);
  float* unscale = reinterpret_cast<float*>(static_cast<unsigned char*>(scratch) +
                                            large_batch_image_bytes(args.m, plan.tokens, cols));
  p.unscale = unscale;
  p.stages = plan.stages;
  p.replicas = plan.replicas;
  if (row_blocks > 65535) return status::invalid_argument;
  status s = status::ok;
  if (outliers.any) {
    p.outliers =
        reinterpret_cast<const float*>(static_cast<unsigned char*>(scratch) + outliers.sums);
    p.outlier_stride = outliers.rows;
    s = launch_outlier_batch(args, outliers, static_cast<unsigned char*>(scratch),
                             args.pdl && clusters, stream);
    if (s != status::ok) return s;
  }
  s = launch_convert_x(args, p.padded_m, scratch, unscale, args.pdl && clusters, stream,
                       plan.tokens != 128);
  if (s != status::ok) return s;
  status launched = status::invalid_argument;  // sizes that no kernel has
  each_large_batch<Bits>([&](auto tokens, auto resident) {
    constexpr int t = decltype(tokens)::value, r = decltype(resident)::value;
    if (plan.tokens == t && plan.resident == r)
      launched = launch_large_batch<Bits, t, r>(p, plan, row_blocks, clusters, stream);
  });
  return launched;
}

}  // namespace detail

/// Y = X W^T for each matrix of `args`, queued on `stream` as two kernels: x is brought into the
/// order of the tensor cores once for all matrices (bfloat16 as fp16 with a power of two per
/// token), then multiplied. Sums are float, in an order that depends on the shapes, the precision
/// and the card, and not on the run. Outliers are summed by two more kernels first; with them, a
/// call of more than 512 tokens is several.
/// @param scratch large_batch_workspace_bytes(args) bytes, 16-byte aligned, any content;
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
  const detail::large_batch_outliers outliers(args);
  if (outliers.tokens < args.m) {
    for (int first = 0; first < args.m; first += outliers.tokens) {
      s = large_batch<Bits>(
          detail::token_range(args, first, std::min(outliers.tokens, args.m - first)), scratch,
          scratch_bytes, stream);
      if (s != status::ok) return s;
    }
    return status::ok;
  }
  bool clusters = false;
  s = detail::large_batch_clusters<Bits>(device, clusters);
  if (s != status::ok) return s;
  const detail::large_batch_plan plan = detail::choose_large_batch<Bits>(args, device, clusters);
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
