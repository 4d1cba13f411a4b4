// SPDX-License-Identifier: MIT
// Where a weight's bits lie in device memory. The planes of core/bitplane.hpp are rearranged once
// so that every CUDA kernel, at every precision, reads them with 16-byte loads in the order in
// which the tensor cores take their operands. Address arithmetic is constexpr and tested without a
// GPU: tests/kernels/cuda/packed_layout_test.cpp.
//
// Layout: [row tiles][planes][column tiles][32 lanes][4 words], a row tile being 16 rows and a
// column tile 256 columns, both padded with zeros. The planes of a row tile stand most significant
// first, so its top b planes are one contiguous run: a reader of b bits reads nothing else.
//
// Lane l = 4 g + t holds, in word w = 2 h + s, row g + 8 s of the row tile and the 32 columns
// 128 h + 32 t ... of the column tile. That is the operand A of mma.m16n8k16 (and a quarter of
// wgmma's): lane l owns rows g and g + 8.
//
// The word of plane j is rotated left by j bits: column i of its 32 sits at bit (i + j) % 32. So
// the bits of one code lie next to each other when words of several planes are merged by masks
// alone, with no shift per plane; the first plane is then the lowest bit of the merged field.
#pragma once

#include <bitladder/config.hpp>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// One 32-column run of one row, as the canonical planes address it.
struct packed_source {
  int row;   ///< may lie past the last row: padding
  int word;  ///< canonical word of the row; may lie past the last word: padding
};

/// Address arithmetic of packed planes.
struct packed_layout {
  static constexpr int tile_rows = 16;    ///< rows of a row tile
  static constexpr int tile_cols = 256;   ///< columns of a column tile
  static constexpr int tile_words = 128;  ///< words of one plane of one tile: 32 lanes x 4
  static constexpr int lane_words = 4;    ///< one 16-byte load

  int rows = 0;    ///< out features
  int cols = 0;    ///< in features
  int planes = 0;  ///< 1..8, most significant first

  BL_HOST_DEVICE constexpr int row_tiles() const {
    return rows / tile_rows + (rows % tile_rows != 0);
  }
  BL_HOST_DEVICE constexpr int col_tiles() const {
    return cols / tile_cols + (cols % tile_cols != 0);
  }
  /// Words from one plane of a row tile to the next.
  BL_HOST_DEVICE constexpr std::size_t plane_stride() const {
    return static_cast<std::size_t>(col_tiles()) * tile_words;
  }
  /// Words from one row tile to the next.
  BL_HOST_DEVICE constexpr std::size_t row_tile_stride() const {
    return plane_stride() * static_cast<std::size_t>(planes);
  }
  BL_HOST_DEVICE constexpr std::size_t total_words() const {
    return row_tile_stride() * static_cast<std::size_t>(row_tiles());
  }
  /// Words that a reader of `bits` bits touches.
  BL_HOST_DEVICE constexpr std::size_t touched_words(int bits) const {
    return plane_stride() * static_cast<std::size_t>(bits) * static_cast<std::size_t>(row_tiles());
  }
  /// Index of word `w` of `lane`; words 0..3 of a lane are contiguous and 16-byte aligned.
  BL_HOST_DEVICE constexpr std::size_t word(int row_tile, int plane, int col_tile, int lane,
                                            int w) const {
    return static_cast<std::size_t>(row_tile) * row_tile_stride() +
           static_cast<std::size_t>(plane) * plane_stride() +
           static_cast<std::size_t>(col_tile) * tile_words +
           static_cast<std::size_t>(lane * lane_words + w);
  }
  /// The canonical row and word that word `w` of `lane` holds.
  BL_HOST_DEVICE static constexpr packed_source source(int row_tile, int col_tile, int lane,
                                                       int w) {
    return {row_tile * tile_rows + lane / 4 + 8 * (w % 2),
            col_tile * (tile_cols / 32) + 4 * (w / 2) + lane % 4};
  }
  /// Bit of column `i` (0..31) of a word of `plane`.
  BL_HOST_DEVICE static constexpr int bit(int plane, int i) { return (i + plane) % 32; }
  /// A canonical word as it is stored for `plane`.
  BL_HOST_DEVICE static constexpr std::uint32_t rotate(std::uint32_t word, int plane) {
    return plane == 0 ? word : word << plane | word >> (32 - plane);
  }
  /// The inverse of rotate.
  BL_HOST_DEVICE static constexpr std::uint32_t unrotate(std::uint32_t word, int plane) {
    return plane == 0 ? word : word >> plane | word << (32 - plane);
  }
};

BL_HOST_DEVICE constexpr bool operator==(const packed_layout& a, const packed_layout& b) {
  return a.rows == b.rows && a.cols == b.cols && a.planes == b.planes;
}

/// Where the value of a code lies: tables stand in the order in which kernels copy them,
/// [row tiles][groups][2^bits fields][8][2] of fp16. A field is the code with its bits reversed
/// (the first plane lowest, as merged words give it); the last two axes are rows g and g + 8 of the
/// tile.
struct packed_table_layout {
  int rows = 0;
  int groups = 1;  ///< equal contiguous column groups with a table each
  int bits = 0;    ///< 1..8

  BL_HOST_DEVICE constexpr int row_tiles() const {
    return rows / packed_layout::tile_rows + (rows % packed_layout::tile_rows != 0);
  }
  /// Entries of one table of one row tile: 2^bits fields of 16 rows.
  BL_HOST_DEVICE constexpr int tile_entries() const { return packed_layout::tile_rows << bits; }
  BL_HOST_DEVICE constexpr std::size_t total_entries() const {
    return static_cast<std::size_t>(row_tiles()) * static_cast<std::size_t>(groups) *
           static_cast<std::size_t>(tile_entries());
  }
  /// Index of the value of `field` for `row` (0..15) of a row tile.
  BL_HOST_DEVICE constexpr std::size_t entry(int row_tile, int group, int field, int row) const {
    return (static_cast<std::size_t>(row_tile) * static_cast<std::size_t>(groups) +
            static_cast<std::size_t>(group)) *
               static_cast<std::size_t>(tile_entries()) +
           static_cast<std::size_t>(field * packed_layout::tile_rows + row % 8 * 2 + row / 8);
  }
  /// The code that a field stands for, and back: its `bits` bits in reverse order.
  BL_HOST_DEVICE static constexpr int reverse(int code, int bits) {
    int field = 0;
    for (int b = 0; b < bits; ++b) field |= (code >> b & 1) << (bits - 1 - b);
    return field;
  }
};

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
