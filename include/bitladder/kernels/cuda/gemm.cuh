// SPDX-License-Identifier: MIT
// Y = X W^T on the card, the weights read at any precision from one set of planes. The kernel is
// chosen by the number of tokens (policy.cuh); a row of Y has the same bits for every batch of up
// to 16 tokens (gemm_args::batch_invariant), every launch and every fusion. Tested by
// tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/detail/bit_serial_launch.cuh>
#include <bitladder/kernels/cuda/detail/check_gemm.cuh>
#include <bitladder/kernels/cuda/detail/generic_launch.cuh>
#include <bitladder/kernels/cuda/detail/lookup_stream_launch.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_launch.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/large_batch.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// Scratch that a call needs at most, on any card; 0 for a few tokens and up to 4096 columns if
/// there are no outliers, or one token and up to 16384. See gemm_args::workspace.
[[nodiscard]] inline std::size_t gemm_workspace_bytes(const gemm_args& args) noexcept {
  const int tokens = args.m == 1 ? 1 : args.m <= 8 ? 8 : 16;
  // A remainder of fewer tokens takes a narrower kernel, whose scratch is smaller.
  const std::size_t narrow = detail::small_batch_workspace_bytes(args, tokens);
  if (args.m <= 8 || (args.m <= 16 && args.batch_invariant)) return narrow;  // no policy has fewer
  return std::max(narrow, large_batch_workspace_bytes(args));
}

namespace detail {

/// Arguments, then the card.
[[nodiscard]] inline status check_call(int bits, const gemm_args& args,
                                       device_properties& device) noexcept {
  status s = check_gemm(bits, args);
  if (s == status::ok) s = properties(device);
  if (s != status::ok) return s;
  return device.compute_capability >= 80 ? status::ok : status::unsupported_device;
}

inline bool has_column_groups(const gemm_args& args) noexcept {
  for (int i = 0; i < args.count; ++i)
    if (args.matrices[i].w.groups > 1) return true;
  return false;
}

/// Token `first` alone, no column groups. Apart from gemm, so that who calls only gemv compiles
/// none of the kernels for more tokens.
template <int Bits>
[[nodiscard]] status launch_token(const gemm_args& args, int first, const device_properties& device,
                                  cudaStream_t stream) noexcept {
  if constexpr (gemv_policy<Bits>::bit_serial) {
    using policy = gemv_policy<Bits>;
    if (args.m == 1 && !args.batch_invariant && policy::has_binary_mma(device) &&
        row_units(args) >= policy::bit_serial_row_tiles(args.matrices[0].w.layout.col_tiles()) *
                               device.multiprocessors) {
      const status s = launch_bit_serial<Bits>(args, device, stream);
      if (s != status::unsupported_device) return s;
    }
  }
  if constexpr (Bits >= 5) {
    const int row_tiles =
        gemv_policy<Bits>::lookup_stream_row_tiles(args.matrices[0].w.layout.col_tiles());
    if (args.m == 1 && !args.batch_invariant && !has_outliers(args) && row_tiles > 0 &&
        row_units(args) >= row_tiles * device.multiprocessors) {
      const status s = launch_lookup_stream<Bits>(args, device, stream);
      if (s != status::unsupported_device) return s;
    }
  }
  return launch_small_batch<Bits, 1>(args, first, 1, device, stream);
}

/// Whether up to 16 tokens that need not have the bits of a lone one go with the kernel for many.
/// That one divides columns among blocks, where the other takes 4096 after 4096, each time with a
/// start (H200, 16 tokens, 5 bits: 4096 x 14336 34.0 us, by the kernel for many 25.6; but 22016 x
/// 4096 30.6, and 35.9).
template <int Bits>
[[nodiscard]] status prefers_large_batch(const gemm_args& args, const device_properties& device,
                                         bool& prefers) noexcept {
  prefers = false;
  const int cols = args.matrices[0].w.layout.cols;
  if (args.m <= 8 || args.batch_invariant || args.workspace == nullptr ||
      !is_aligned(args.workspace, 16) || args.workspace_bytes < large_batch_workspace_bytes(args))
    return status::ok;
  bool clusters = false;
  const status s = large_batch_clusters<Bits>(device, clusters);
  if (s != status::ok) return s;
  const large_batch_plan plan = choose_large_batch<Bits>(args, device, clusters);
  // Clocks of a start, of a row tile, and of the conversion of x, as large_batch_clocks has them.
  const int starts = (cols + 4095) / 4096;
  const int turns = (row_units(args) + device.multiprocessors - 1) / device.multiprocessors;
  const double few = starts * (7700.0 + turns * (2300.0 + 380.0 * Bits));
  prefers = plan.tokens != 0 && plan.clocks + 4000 < few;
  return status::ok;
}

/// Up to 16 tokens from `first` on; `taken` says how many. No column groups.
template <int Bits>
[[nodiscard]] status launch_tokens(const gemm_args& args, int first,
                                   const device_properties& device, cudaStream_t stream,
                                   int& taken) noexcept {
  taken = std::min(args.m - first, 16);
  if (taken == 1) return launch_token<Bits>(args, first, device, stream);
  if (taken > 8) {
    const status s = launch_small_batch<Bits, 16>(args, first, taken, device, stream);
    if (s != status::unsupported_device) return s;
    taken = 8;  // two tables of 4 bits are too much for some cards
  }
  return launch_small_batch<Bits, 8>(args, first, taken, device, stream);
}

}  // namespace detail

/// Y = X W^T for each matrix of `args`, queued on `stream`.
/// @tparam Bits precision to read, 1..8; the views must carry its tables
/// @return invalid_argument (a null pointer, no token, an element type, columns not a multiple of
///         32, too little workspace), shape_mismatch, unsupported_bits (a view of another
///         precision), too_few_planes, misaligned, unsupported_device, launch_failed. Unless ok,
///         nothing was launched.
template <int Bits>
[[nodiscard]] status gemm(const gemm_args& args, cudaStream_t stream) noexcept {
  static_assert(Bits >= 1 && Bits <= 8, "bitplanes are read at 1 to 8 bits");
  device_properties device;
  status s = detail::check_call(Bits, args, device);
  if (s != status::ok) return s;
  if (detail::has_column_groups(args)) return detail::launch_generic<Bits>(args, stream);
  bool many = args.m > gemm_policy<Bits>::small_batch_tokens();
  if (!many) {
    s = detail::prefers_large_batch<Bits>(args, device, many);
    if (s != status::ok) return s;
  }
  if (many) {
    s = large_batch<Bits>(args, args.workspace, args.workspace_bytes, stream);
    if (s != status::unsupported_device) return s;
  }
  // Also on cards without the shared memory for many tokens at once.
  for (int first = 0, taken = 0; first < args.m; first += taken) {
    s = detail::launch_tokens<Bits>(args, first, device, stream, taken);
    if (s == status::unsupported_device && first == 0)
      return detail::launch_generic<Bits>(args, stream);
    if (s != status::ok) return s;
  }
  return status::ok;
}

/// The same for a precision known at run time.
/// @tparam Precisions those to compile, e.g. bits_list<2, 4, 8>
/// @return unsupported_bits for any other
template <class Precisions = all_bits>
[[nodiscard]] status gemm(int bits, const gemm_args& args, cudaStream_t stream) noexcept {
  return dispatch_bits(bits, Precisions{},
                       [&](auto b) { return gemm<decltype(b)::value>(args, stream); });
}

/// Y = X W^T for one matrix: x [m, cols], y [m, rows], both contiguous.
template <int Bits, class X, class Y>
[[nodiscard]] status gemm(const packed_view& w, const X* x, int m, Y* y, void* workspace,
                          std::size_t workspace_bytes, cudaStream_t stream) noexcept {
  gemm_args args;
  args.matrices[0] = {w, y};
  args.x = x;
  args.x_type = element<X>::type;
  args.m = m;
  args.y_type = element<Y>::type;
  args.workspace = workspace;
  args.workspace_bytes = workspace_bytes;
  return gemm<Bits>(args, stream);
}

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
