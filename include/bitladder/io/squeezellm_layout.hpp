// SPDX-License-Identifier: MIT
// Where published SqueezeLLM checkpoints keep their codes, and whole matrices from that order to
// ours (core/bitplane.hpp). Words stand as [cols/32 * bits, rows], inputs first: down a column of
// words runs one stream of bits, the codes of one row after another, lowest bits first, so that 32
// codes fill `bits` words and may cross from one to the next. Tested by
// tests/io/squeezellm_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

namespace detail {

/// Code `i` of the 32 in those words.
template <int Bits>
constexpr std::uint32_t squeezellm_code(const std::uint32_t (&words)[Bits], int i) {
  const int at = i * Bits, word = at / 32, shift = at % 32;
  std::uint32_t code = words[word] >> shift;
  if (shift + Bits > 32) code |= words[word + 1] << (32 - shift);
  return code & ((1u << Bits) - 1u);
}

/// The bits of a code, most significant first, as the top bits of the low bytes of one word: moved
/// down by one before each, eight codes become a byte for every plane.
template <int Bits>
constexpr std::uint64_t spread_over_planes(std::uint32_t code) {
  std::uint64_t spread = 0;
  for (int p = 0; p < Bits; ++p)
    spread |= static_cast<std::uint64_t>(code >> (Bits - 1 - p) & 1u) << (8 * p + 7);
  return spread;
}

/// Rows [first, last) of planes_from_squeezellm.
template <int Bits>
void squeezellm_rows_to_planes(const std::byte* words, const std::uint8_t* labels, int first,
                               int last, bitplane_tensor& out) {
  constexpr std::size_t entries = std::size_t{1} << Bits;
  const bitplane_layout& layout = out.layout();
  const std::size_t rows = static_cast<std::size_t>(layout.rows);
  std::vector<std::uint64_t> spread(static_cast<std::size_t>(last - first) * entries);
  for (std::size_t i = 0; i < spread.size(); ++i)
    spread[i] = spread_over_planes<Bits>(labels[static_cast<std::size_t>(first) * entries + i]);
  for (int w = 0; w < layout.words(); ++w) {
    const std::byte* from = words + 4 * static_cast<std::size_t>(w) * Bits * rows;
    for (int r = first; r < last; ++r) {
      std::uint32_t stream[Bits];
      for (std::size_t j = 0; j < Bits; ++j)
        std::memcpy(&stream[j], from + 4 * (j * rows + static_cast<std::size_t>(r)), 4);
      const std::uint64_t* label = spread.data() + static_cast<std::size_t>(r - first) * entries;
      std::uint32_t plane[Bits] = {};
      for (int byte = 0; byte < 4; ++byte) {
        std::uint64_t eight = 0;
        for (int i = 0; i < 8; ++i)
          eight = eight >> 1 | label[squeezellm_code(stream, 8 * byte + i)];
        for (int p = 0; p < Bits; ++p)
          plane[p] |= static_cast<std::uint32_t>(eight >> (8 * p) & 0xffu) << (8 * byte);
      }
      for (int p = 0; p < Bits; ++p) out.data()[layout.word(p, r, w)] = plane[p];
    }
  }
}

}  // namespace detail

/// Planes in our order of codes in theirs, each code replaced by its label.
/// @param words [cols/32 * planes, rows] as little-endian int32, at any address
/// @param labels [rows, 2^planes], the new code of each old one, below 2^planes
/// @param pool may be null; the result does not depend on it
/// @throws error(invalid_argument) unless cols is a multiple of 32 and planes is 1 to 8
inline bitplane_tensor planes_from_squeezellm(const std::byte* words, bitplane_layout layout,
                                              const std::uint8_t* labels,
                                              thread_pool* pool = nullptr) {
  if (layout.cols < 0 || layout.cols % 32 != 0)
    throw error(status::invalid_argument,
                "SqueezeLLM layout: expected columns in multiples of 32, found " +
                    std::to_string(layout.cols));
  bitplane_tensor out(layout);
  // Of 32 rows, words are read in runs of two cache lines, and what is written of 4 planes fits the
  // first cache until its lines are full.
  constexpr std::int64_t rows_at_once = 32;
  check(dispatch_bits(layout.planes, all_bits{}, [&](auto bits) {
    parallel_for(pool, layout.rows, rows_at_once, [&](std::int64_t first, std::int64_t last) {
      detail::squeezellm_rows_to_planes<bits()>(words, labels, static_cast<int>(first),
                                                static_cast<int>(last), out);
    });
    return status::ok;
  }));
  return out;
}

}  // namespace v0_1
}  // namespace bitladder
