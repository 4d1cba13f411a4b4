// SPDX-License-Identifier: MIT
// Rearranges planes and tables between their canonical layouts (core/bitplane.hpp,
// core/codebook.hpp) and the packed ones (packed_layout.hpp). Set-up work: plain loads and stores,
// one pass over the data. Tested by tests/kernels/cuda/packed_weights_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// From canonical to packed, or back. Also what makes the kernels templates, which a header can
/// define in several translation units.
enum class repack_direction { pack, unpack };

/// A run of planes; `canonical` begins with the first of them, `packed` with plane 0.
template <repack_direction Direction>
struct repack_planes_params;
template <>
struct repack_planes_params<repack_direction::pack> {
  const std::uint32_t* canonical;
  std::uint32_t* packed;
  packed_layout layout;
  int first_plane;
  int planes;
};
template <>
struct repack_planes_params<repack_direction::unpack> {
  std::uint32_t* canonical;
  const std::uint32_t* packed;
  packed_layout layout;
  int first_plane;
  int planes;
};

/// One thread per 16 bytes of the packed planes.
template <repack_direction Direction>
BL_KERNEL repack_planes_kernel(const __grid_constant__ repack_planes_params<Direction> p) {
  const std::size_t col_tiles = static_cast<std::size_t>(p.layout.col_tiles());
  const std::size_t planes = static_cast<std::size_t>(p.planes);
  std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int lane = static_cast<int>(i % 32);
  i /= 32;
  const int col_tile = static_cast<int>(i % col_tiles);
  i /= col_tiles;
  const int plane = static_cast<int>(i % planes);  // of the run
  i /= planes;
  if (i >= static_cast<std::size_t>(p.layout.row_tiles())) return;
  const int row_tile = static_cast<int>(i);

  const bitplane_layout canonical{p.layout.rows, p.layout.cols, p.planes};
  const int stored_plane = p.first_plane + plane;
  auto* const four = p.packed + p.layout.word(row_tile, stored_plane, col_tile, lane, 0);
  std::uint32_t words[packed_layout::lane_words] = {};  // zeros where the source is padding
  if constexpr (Direction == repack_direction::unpack) {
    const uint4 v = *reinterpret_cast<const uint4*>(four);
    words[0] = v.x;
    words[1] = v.y;
    words[2] = v.z;
    words[3] = v.w;
  }
#pragma unroll
  for (int w = 0; w < packed_layout::lane_words; ++w) {
    const packed_source s = packed_layout::source(row_tile, col_tile, lane, w);
    if (s.row >= canonical.rows || s.word >= canonical.words()) continue;
    const std::size_t at = canonical.word(plane, s.row, s.word);
    if constexpr (Direction == repack_direction::pack)
      words[w] = packed_layout::rotate(p.canonical[at], stored_plane);
    else
      p.canonical[at] = packed_layout::unrotate(words[w], stored_plane);
  }
  if constexpr (Direction == repack_direction::pack)
    *reinterpret_cast<uint4*>(four) = make_uint4(words[0], words[1], words[2], words[3]);
}

/// canonical: [rows, groups, 2^bits].
template <repack_direction Direction>
struct repack_tables_params;
template <>
struct repack_tables_params<repack_direction::pack> {
  const fp16_t* canonical;
  fp16_t* packed;
  packed_table_layout layout;
};
template <>
struct repack_tables_params<repack_direction::unpack> {
  fp16_t* canonical;
  const fp16_t* packed;
  packed_table_layout layout;
};

/// One thread per entry of the packed tables.
template <repack_direction Direction>
BL_KERNEL repack_tables_kernel(const __grid_constant__ repack_tables_params<Direction> p) {
  const std::size_t groups = static_cast<std::size_t>(p.layout.groups);
  const std::size_t tile_entries = static_cast<std::size_t>(p.layout.tile_entries());
  std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  // Threads follow the packed order only for the sake of the stores: entry() says where they go.
  const int in_tile = static_cast<int>(i % tile_entries);
  i /= tile_entries;
  const int group = static_cast<int>(i % groups);
  i /= groups;
  if (i >= static_cast<std::size_t>(p.layout.row_tiles())) return;
  const int row_tile = static_cast<int>(i);
  const int field = in_tile / packed_layout::tile_rows;
  const int tile_row = in_tile % 2 * 8 + in_tile / 2 % 8;

  const int row = row_tile * packed_layout::tile_rows + tile_row;
  const std::size_t packed_at = p.layout.entry(row_tile, group, field, tile_row);
  const int code = packed_table_layout::reverse(field, p.layout.bits);
  const std::size_t canonical_at =
      ((static_cast<std::size_t>(row) * groups + static_cast<std::size_t>(group))
       << p.layout.bits) +
      static_cast<std::size_t>(code);
  if constexpr (Direction == repack_direction::pack)
    p.packed[packed_at] = row < p.layout.rows ? p.canonical[canonical_at] : fp16_t{0};
  else if (row < p.layout.rows)
    p.canonical[canonical_at] = p.packed[packed_at];
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
