// SPDX-License-Identifier: MIT
// Packed weights to a matrix of numbers on the card, at any precision: what a product by other
// means, or a look at the weights, starts from. Output layout [rows, cols] with a stride. Tested by
// tests/kernels/cuda/dequantize_test.cu.
#pragma once

#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/detail/check_gemm.cuh>
#include <bitladder/kernels/cuda/detail/dequantize_kernel.cuh>
#include <bitladder/kernels/cuda/packed_weights.cuh>
#include <bitladder/kernels/cuda/repack.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// out[r][c] = the value of weight (row_begin + r, c), queued on `stream`. fp16 and fp32 are exact,
/// bfloat16 rounds to nearest even. Outliers are in their places.
/// @tparam Bits precision to read, 1..8; the view must carry its tables
/// @param out [row_count, cols], 16-byte aligned; nothing beyond is written
/// @param out_type f16, bf16 or f32
/// @param row_begin a multiple of 16
/// @param out_stride elements from one row to the next, a multiple of 16 bytes; 0 = cols
/// @return invalid_argument (a null pointer, rows outside the matrix, an element type), misaligned,
///         shape_mismatch, unsupported_bits (a view of another precision), too_few_planes,
///         unsupported_device, launch_failed. Unless ok, nothing was launched.
template <int Bits>
[[nodiscard]] status dequantize(const packed_view& w, void* out, dtype out_type, int row_begin,
                                int row_count, std::int64_t out_stride,
                                cudaStream_t stream) noexcept {
  static_assert(Bits >= 1 && Bits <= 8, "bitplanes are read at 1 to 8 bits");
  const packed_layout& l = w.layout;
  if (w.bits != Bits) return status::unsupported_bits;
  if (l.planes > bitplane_layout::max_planes) return status::invalid_argument;
  if (Bits > l.planes) return status::too_few_planes;
  if (w.planes == nullptr || w.tables == nullptr || out == nullptr) return status::invalid_argument;
  if (out_type != dtype::f16 && out_type != dtype::bf16 && out_type != dtype::f32)
    return status::invalid_argument;
  if (l.rows < 1 || l.cols < 32 || l.cols % 32 != 0 || l.cols > 1 << 26)
    return status::invalid_argument;
  if (w.groups < 1 || l.cols % w.groups != 0 || (w.groups > 1 && l.cols / w.groups % 32 != 0))
    return status::shape_mismatch;
  if (row_begin < 0 || row_begin % packed_layout::tile_rows != 0 || row_count < 1 ||
      row_begin >= l.rows || row_count > l.rows - row_begin)
    return status::invalid_argument;
  if (out_stride == 0) out_stride = l.cols;
  if (out_stride < l.cols) return status::shape_mismatch;
  const std::int64_t unit = 16 / static_cast<std::int64_t>(size_of(out_type));
  const status outliers = detail::check_outliers(w.outliers);
  if (outliers != status::ok) return outliers;
  if (!detail::is_aligned(w.planes, 16) || !detail::is_aligned(w.tables, 16) ||
      !detail::is_aligned(out, 16) || out_stride % unit != 0)
    return status::misaligned;
  device_properties device;
  const status s = properties(device);
  if (s != status::ok) return s;
  if (device.compute_capability < 80) return status::unsupported_device;

  const int row_tiles = (row_count + packed_layout::tile_rows - 1) / packed_layout::tile_rows;
  constexpr int warps = detail::dequantize_threads / 32;
  // Columns are divided when there are too few row tiles for about four blocks on every
  // multiprocessor; a block then still has a column tile for each warp.
  const int most = std::max(1, (l.col_tiles() + warps - 1) / warps);
  const int splits = std::min(most, (4 * device.multiprocessors + row_tiles - 1) / row_tiles);
  const detail::dequantize_params p{w.planes,  reinterpret_cast<const std::uint32_t*>(w.tables),
                                    out,       out_stride,
                                    l,         row_begin / packed_layout::tile_rows,
                                    row_count, w.groups,
                                    out_type,  w.outliers};
  const dim3 grid(static_cast<unsigned>(row_tiles), static_cast<unsigned>(splits));
  if (w.groups > 1)
    detail::dequantize_kernel<Bits, true><<<grid, detail::dequantize_threads, 0, stream>>>(p);
  else
    detail::dequantize_kernel<Bits, false><<<grid, detail::dequantize_threads, 0, stream>>>(p);
  return launch_status();
}

/// The same for a precision known at run time. A template, so that who does not call it compiles
/// none of its kernels.
template <class = void>
[[nodiscard]] status dequantize(int bits, const packed_view& w, void* out, dtype out_type,
                                int row_begin, int row_count, std::int64_t out_stride,
                                cudaStream_t stream) noexcept {
  return dispatch_bits(bits, all_bits{}, [&](auto b) {
    return dequantize<decltype(b)::value>(w, out, out_type, row_begin, row_count, out_stride,
                                          stream);
  });
}

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
