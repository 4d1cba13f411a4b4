// SPDX-License-Identifier: MIT
// Planes and tables from the canonical layouts (core/bitplane.hpp, core/codebook.hpp) to the packed
// ones that the kernels read (packed_layout.hpp), and back. All pointers are device memory; nothing
// is allocated and the stream is not waited for. Tested by
// tests/kernels/cuda/packed_weights_test.cu.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/detail/repack_kernel.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <cuda_runtime_api.h>

#include <climits>
#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

inline constexpr unsigned repack_threads = 256;

inline bool is_aligned(const void* p, std::size_t bytes) noexcept {
  return reinterpret_cast<std::uintptr_t>(p) % bytes == 0;
}

/// Whether rows of tiles can be counted in an int.
constexpr bool is_tileable(int rows) noexcept {
  return rows >= 1 && rows <= INT_MAX - packed_layout::tile_rows;
}

inline status check_repack_planes(const void* canonical, const bitplane_layout& from,
                                  const void* packed, const packed_layout& to) noexcept {
  if (canonical == nullptr || packed == nullptr || !is_tileable(to.rows) || to.cols < 1 ||
      to.cols % 32 != 0 || to.planes < 1 || to.planes > bitplane_layout::max_planes ||
      from.planes < 1 || from.planes > bitplane_layout::max_planes)
    return status::invalid_argument;
  if (from.rows != to.rows || from.cols != to.cols) return status::shape_mismatch;
  if (!is_aligned(canonical, sizeof(std::uint32_t)) || !is_aligned(packed, 16))
    return status::misaligned;
  return status::ok;
}

inline status check_repack_tables(const void* canonical, const void* packed,
                                  const packed_table_layout& layout) noexcept {
  if (canonical == nullptr || packed == nullptr || !is_tileable(layout.rows) || layout.groups < 1)
    return status::invalid_argument;
  if (layout.bits < 1 || layout.bits > bitplane_layout::max_planes) return status::unsupported_bits;
  if (!is_aligned(canonical, sizeof(fp16_t)) || !is_aligned(packed, 16)) return status::misaligned;
  return status::ok;
}

/// Blocks for `count` times `each` threads, or 0 if a grid cannot have that many.
constexpr unsigned repack_blocks(std::size_t count, std::size_t each) noexcept {
  if (count > static_cast<std::size_t>(INT_MAX) * repack_threads / each) return 0;
  return static_cast<unsigned>((count * each + repack_threads - 1) / repack_threads);
}

/// Checked arguments; planes first_plane .. first_plane + planes - 1 of the layout.
template <repack_direction Direction>
status launch_repack_planes(const repack_planes_params<Direction>& p,
                            cudaStream_t stream) noexcept {
  const unsigned blocks = repack_blocks(
      static_cast<std::size_t>(p.layout.row_tiles()) * static_cast<std::size_t>(p.planes),
      p.layout.plane_stride() / packed_layout::lane_words);
  if (blocks == 0) return status::invalid_argument;
  repack_planes_kernel<Direction><<<blocks, repack_threads, 0, stream>>>(p);
  return launch_status();
}

/// Checked arguments.
template <repack_direction Direction>
status launch_repack_tables(const repack_tables_params<Direction>& p,
                            cudaStream_t stream) noexcept {
  const unsigned blocks = repack_blocks(
      static_cast<std::size_t>(p.layout.row_tiles()) * static_cast<std::size_t>(p.layout.groups),
      static_cast<std::size_t>(p.layout.tile_entries()));
  if (blocks == 0) return status::invalid_argument;
  repack_tables_kernel<Direction><<<blocks, repack_threads, 0, stream>>>(p);
  return launch_status();
}

}  // namespace detail

/// Packs the first `to.planes` planes of `canonical`; padding becomes zero.
/// @param canonical `from.total_words()` words, 4-byte aligned
/// @param packed `to.total_words()` words, 16-byte aligned, not overlapping `canonical`
/// @return invalid_argument (null, empty, cols not a multiple of 32, planes outside 1..8),
///         shape_mismatch, too_few_planes (`to` has more planes than `from`), misaligned
[[nodiscard]] inline status repack_planes(const std::uint32_t* canonical, bitplane_layout from,
                                          std::uint32_t* packed, packed_layout to,
                                          cudaStream_t stream) noexcept {
  const status s = detail::check_repack_planes(canonical, from, packed, to);
  if (s != status::ok) return s;
  if (to.planes > from.planes) return status::too_few_planes;
  return detail::launch_repack_planes<detail::repack_direction::pack>(
      {canonical, packed, to, 0, to.planes}, stream);
}

/// The inverse: the first `to.planes` planes of `packed`, in the canonical layout.
/// @return as repack_planes; too_few_planes if `to` has more planes than `from`
[[nodiscard]] inline status unpack_planes(const std::uint32_t* packed, packed_layout from,
                                          std::uint32_t* canonical, bitplane_layout to,
                                          cudaStream_t stream) noexcept {
  const status s = detail::check_repack_planes(canonical, to, packed, from);
  if (s != status::ok) return s;
  if (to.planes > from.planes) return status::too_few_planes;
  return detail::launch_repack_planes<detail::repack_direction::unpack>(
      {canonical, packed, from, 0, to.planes}, stream);
}

/// Packs the tables of one precision; entries of padding rows become zero.
/// @param canonical [rows, groups, 2^bits], 2-byte aligned
/// @param packed `layout.total_entries()` entries, 16-byte aligned, not overlapping `canonical`
/// @return invalid_argument (null, no rows or groups), unsupported_bits, misaligned
[[nodiscard]] inline status repack_tables(const fp16_t* canonical, fp16_t* packed,
                                          packed_table_layout layout,
                                          cudaStream_t stream) noexcept {
  const status s = detail::check_repack_tables(canonical, packed, layout);
  if (s != status::ok) return s;
  return detail::launch_repack_tables<detail::repack_direction::pack>({canonical, packed, layout},
                                                                      stream);
}

/// The inverse.
/// @return as repack_tables
[[nodiscard]] inline status unpack_tables(const fp16_t* packed, packed_table_layout layout,
                                          fp16_t* canonical, cudaStream_t stream) noexcept {
  const status s = detail::check_repack_tables(canonical, packed, layout);
  if (s != status::ok) return s;
  return detail::launch_repack_tables<detail::repack_direction::unpack>({canonical, packed, layout},
                                                                        stream);
}

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
