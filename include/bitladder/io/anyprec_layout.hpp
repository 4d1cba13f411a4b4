// SPDX-License-Identifier: MIT
// Where published Any-Precision checkpoints keep their bits, and whole rows between that order and
// ours (core/bitplane.hpp). Planes and words stand alike, [planes, rows, cols/32], most significant
// plane first; columns are permuted within blocks of 32 words. Within a block of T words, word t
// holds the columns 8t..8t+7 of each of four runs of 8T columns, the first run in its top byte and
// the first column in a byte's top bit. Tested by tests/io/anyprec_layout_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/status.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace bitladder {
inline namespace v0_1 {

/// Address arithmetic of one row of one plane.
struct anyprec_layout {
  static constexpr int block_words = 32;  ///< but the last block, which holds what is left

  int cols = 0;  ///< a multiple of 32

  /// Where a column's bit is.
  struct place {
    int word = 0;  ///< of the row
    int bit = 0;   ///< 0 the least significant
  };

  constexpr int words() const { return cols / 32; }
  /// First word of the block that holds `word`; also the columns before that block, over 32.
  static constexpr int block_begin(int word) { return word / block_words * block_words; }
  /// Words of the block that holds `word`.
  constexpr int block_size(int word) const {
    const int left = words() - block_begin(word);
    return left < block_words ? left : block_words;
  }
  /// @param col 0 .. cols - 1
  constexpr place at(int col) const {
    const int begin = block_begin(col / 32);
    const int run = 8 * block_size(begin);  // columns
    const int r = col - 32 * begin;
    return {begin + r % run / 8, 31 - 8 * (r / run) - r % 8};
  }
  /// The inverse.
  constexpr int col(place p) const {
    const int begin = block_begin(p.word);
    const int from_top = 31 - p.bit;
    return 32 * begin + from_top / 8 * (8 * block_size(begin)) + 8 * (p.word - begin) +
           from_top % 8;
  }
};

namespace detail {

/// Turns the bits of each byte around.
constexpr std::uint32_t reverse_bits_of_bytes(std::uint32_t x) {
  x = (x & 0x0f0f0f0fu) << 4 | (x >> 4 & 0x0f0f0f0fu);
  x = (x & 0x33333333u) << 2 | (x >> 2 & 0x33333333u);
  return (x & 0x55555555u) << 1 | (x >> 1 & 0x55555555u);
}

/// One block to our order. Byte j of our row holds the columns 8j..8j+7, first lowest, so the move
/// is of whole bytes, whose bits turn around.
/// @param size its words; known to the compiler for full blocks, which then become vector code
inline void anyprec_block_to_planes(const std::byte* from, int size, std::byte* to) {
  // Copies in and out tell the compiler that the two do not overlap.
  std::uint32_t words[anyprec_layout::block_words];
  std::uint8_t runs[4 * anyprec_layout::block_words];
  std::memcpy(words, from, 4 * static_cast<std::size_t>(size));
  for (int t = 0; t < size; ++t) {
    const std::uint32_t x = reverse_bits_of_bytes(words[t]);
    for (int run = 0; run < 4; ++run)
      runs[run * size + t] = static_cast<std::uint8_t>(x >> (24 - 8 * run));
  }
  std::memcpy(to, runs, 4 * static_cast<std::size_t>(size));
}

/// The inverse.
inline void planes_block_to_anyprec(const std::byte* from, int size, std::byte* to) {
  std::uint32_t words[anyprec_layout::block_words];
  std::uint8_t runs[4 * anyprec_layout::block_words];
  std::memcpy(runs, from, 4 * static_cast<std::size_t>(size));
  for (int t = 0; t < size; ++t) {
    std::uint32_t x = 0;
    for (int run = 0; run < 4; ++run) x = x << 8 | runs[run * size + t];
    words[t] = reverse_bits_of_bytes(x);
  }
  std::memcpy(to, words, 4 * static_cast<std::size_t>(size));
}

/// One row of one plane; neither address need be aligned.
inline void anyprec_row_to_planes(const std::byte* from, int words, std::byte* to) {
  constexpr int full = anyprec_layout::block_words;
  int w = 0;
  for (; w + full <= words; w += full, from += 4 * full, to += 4 * full)
    anyprec_block_to_planes(from, full, to);
  if (w < words) anyprec_block_to_planes(from, words - w, to);
}
inline void planes_row_to_anyprec(const std::byte* from, int words, std::byte* to) {
  constexpr int full = anyprec_layout::block_words;
  int w = 0;
  for (; w + full <= words; w += full, from += 4 * full, to += 4 * full)
    planes_block_to_anyprec(from, full, to);
  if (w < words) planes_block_to_anyprec(from, words - w, to);
}

inline void require_anyprec_cols(int cols) {
  if (cols < 0 || cols % 32 != 0)
    throw error(
        status::invalid_argument,
        "Any-Precision layout: expected columns in multiples of 32, found " + std::to_string(cols));
}

}  // namespace detail

/// Planes in our order from planes in theirs.
/// @param words [planes, rows, cols/32] as little-endian int32, at any address
/// @throws error(invalid_argument) unless cols is a multiple of 32
inline bitplane_tensor planes_from_anyprec(const std::byte* words, bitplane_layout layout) {
  detail::require_anyprec_cols(layout.cols);
  bitplane_tensor out(layout);
  for (int p = 0; p < layout.planes; ++p)
    for (int r = 0; r < layout.rows; ++r)
      detail::anyprec_row_to_planes(
          words + 4 * layout.word(p, r, 0), layout.words(),
          reinterpret_cast<std::byte*>(out.data() + layout.word(p, r, 0)));
  return out;
}

/// The inverse, for rows [first, last) of one plane, so that files of any size can be written in
/// pieces.
/// @param words [last - first, cols/32] as little-endian int32, at any address
/// @throws error(invalid_argument) unless cols is a multiple of 32
inline void planes_to_anyprec(bitplane_view planes, int plane, int first, int last,
                              std::byte* words) {
  detail::require_anyprec_cols(planes.cols());
  const int n = planes.layout().words();
  for (int r = first; r < last; ++r)
    detail::planes_row_to_anyprec(
        reinterpret_cast<const std::byte*>(planes.row(plane, r)), n,
        words + 4 * static_cast<std::size_t>(r - first) * static_cast<std::size_t>(n));
}

}  // namespace v0_1
}  // namespace bitladder
