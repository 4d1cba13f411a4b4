// SPDX-License-Identifier: MIT
// Where packed bits lie, and how the kernels bring the bits of a code together, on the host.
// Seed 21.
#include <bitladder/core/bitplane.hpp>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace {

using bitladder::cuda::packed_layout;
using bitladder::cuda::packed_source;
using bitladder::cuda::packed_table_layout;

template <int Bits>
using bits = std::integral_constant<int, Bits>;

#define EVERY_BITS bits<1>, bits<2>, bits<3>, bits<4>, bits<5>, bits<6>, bits<7>, bits<8>

constexpr packed_layout example{33, 288, 8};  // 3 row tiles, 2 column tiles
static_assert(example.row_tiles() == 3 && example.col_tiles() == 2, "");
static_assert(example.plane_stride() == 256 && example.row_tile_stride() == 2048, "");
static_assert(example.total_words() == 3 * 2048 && example.touched_words(3) == 3 * 3 * 256, "");
static_assert(example.word(2, 5, 1, 31, 3) == 2 * 2048 + 5 * 256 + 128 + 31 * 4 + 3, "");
// Lane 4 g + t = 4 * 5 + 2, word 2 h + s = 2 * 1 + 1: row 5 + 8, columns 128 + 32 * 2 ...
static_assert(packed_layout::source(2, 1, 22, 3).row == 2 * 16 + 13, "");
static_assert(packed_layout::source(2, 1, 22, 3).word == (256 + 128 + 32 * 2) / 32, "");
static_assert(packed_layout{1 << 20, 1 << 16, 8}.total_words() == std::size_t{1} << 34,
              "products are 64 bits wide");
static_assert(packed_layout::rotate(0x80000001u, 1) == 3u, "");
static_assert(packed_layout::unrotate(3u, 1) == 0x80000001u, "");

constexpr packed_table_layout tables{17, 3, 4};
static_assert(tables.row_tiles() == 2 && tables.tile_entries() == 256, "");
static_assert(tables.total_entries() == 2 * 3 * 256, "");
static_assert(tables.entry(1, 2, 5, 11) == (1 * 3 + 2) * 256 + 5 * 16 + 3 * 2 + 1, "");
static_assert(packed_table_layout::reverse(1, 4) == 8 && packed_table_layout::reverse(6, 3) == 3,
              "");

std::size_t size(int n) { return static_cast<std::size_t>(n); }

TEST_CASE("every canonical word has one place in the packed planes, and the rest is padding") {
  for (const int rows : {1, 15, 16, 17, 100}) {
    for (const int cols : {32, 64, 224, 256, 288, 1056}) {
      for (const int planes : {1, 3, 8}) {
        CAPTURE(rows);
        CAPTURE(cols);
        CAPTURE(planes);
        const packed_layout packed{rows, cols, planes};
        const bitladder::bitplane_layout canonical{rows, cols, planes};
        std::vector<int> place(packed.total_words()), word(canonical.total_words());
        int beyond = 0;
        for (int tile = 0; tile < packed.row_tiles(); ++tile)
          for (int plane = 0; plane < planes; ++plane)
            for (int col_tile = 0; col_tile < packed.col_tiles(); ++col_tile)
              for (int lane = 0; lane < 32; ++lane)
                for (int w = 0; w < 4; ++w) {
                  const std::size_t at = packed.word(tile, plane, col_tile, lane, w);
                  REQUIRE(at < place.size());
                  ++place[at];
                  const packed_source s = packed_layout::source(tile, col_tile, lane, w);
                  if (s.row >= rows || s.word >= canonical.words())
                    ++beyond;
                  else
                    ++word[canonical.word(plane, s.row, s.word)];
                }
        CHECK(place == std::vector<int>(place.size(), 1));
        CHECK(word == std::vector<int>(word.size(), 1));
        CHECK(size(beyond) == packed.total_words() - canonical.total_words());
      }
    }
  }
}

TEST_CASE("a lane's words lie together, 16-byte aligned, and hold the rows and columns stated") {
  const packed_layout l{100, 1056, 5};
  for (int lane = 0; lane < 32; ++lane)
    for (int w = 0; w < 4; ++w) {
      const std::size_t first = l.word(3, 4, 2, lane, 0);
      CHECK(first % 4 == 0);
      CHECK(l.word(3, 4, 2, lane, w) == first + size(w));
      const packed_source s = packed_layout::source(3, 2, lane, w);
      const int g = lane / 4, t = lane % 4, h = w / 2, half = w % 2;
      CHECK(s.row == 3 * 16 + g + 8 * half);
      CHECK(s.word * 32 == 2 * 256 + 128 * h + 32 * t);
    }
}

TEST_CASE("the top planes of a row tile are one contiguous run") {
  const packed_layout l{40, 544, 8};
  for (int tile = 0; tile < l.row_tiles(); ++tile)
    for (int b = 1; b <= 8; ++b) {
      std::vector<int> seen(l.plane_stride() * size(b));
      const std::size_t begin = l.word(tile, 0, 0, 0, 0);
      for (int plane = 0; plane < b; ++plane)
        for (int col_tile = 0; col_tile < l.col_tiles(); ++col_tile)
          for (int i = 0; i < 128; ++i) {
            const std::size_t at = l.word(tile, plane, col_tile, i / 4, i % 4);
            REQUIRE(at >= begin);
            REQUIRE(at - begin < seen.size());
            ++seen[at - begin];
          }
      CHECK(seen == std::vector<int>(seen.size(), 1));
    }
}

TEST_CASE("a stored word has column i at the bit stated, and rotating back restores it") {
  support::random rng(21);
  for (int plane = 0; plane < 8; ++plane) {
    for (int i = 0; i < 32; ++i)
      CHECK(packed_layout::rotate(1u << i, plane) == 1u << packed_layout::bit(plane, i));
    const std::uint32_t word = static_cast<std::uint32_t>(rng.next());
    CHECK(packed_layout::unrotate(packed_layout::rotate(word, plane), plane) == word);
  }
}

TEST_CASE("every row, group and field has one place in the packed tables, in their order") {
  for (int b = 1; b <= 8; ++b) {
    const packed_table_layout l{33, 2, b};
    std::vector<int> seen(l.total_entries());
    std::size_t next = 0;  // [row tiles][groups][fields][8][2]
    for (int tile = 0; tile < l.row_tiles(); ++tile)
      for (int group = 0; group < l.groups; ++group)
        for (int field = 0; field < 1 << b; ++field)
          for (int g = 0; g < 8; ++g)
            for (int half = 0; half < 2; ++half) {
              const std::size_t at = l.entry(tile, group, field, g + 8 * half);
              CHECK(at == next++);
              REQUIRE(at < seen.size());
              ++seen[at];
            }
    CHECK(seen == std::vector<int>(seen.size(), 1));
  }
}

TEST_CASE("a field is the code with its bits reversed") {
  for (int b = 1; b <= 8; ++b)
    for (int code = 0; code < 1 << b; ++code) {
      int field = 0;  // plane 0, the most significant, at bit 0
      for (int plane = 0; plane < b; ++plane) field += (code >> (b - 1 - plane) & 1) << plane;
      CHECK(packed_table_layout::reverse(code, b) == field);
      CHECK(packed_table_layout::reverse(field, b) == code);
    }
}

// The steps of detail/decode.cuh's merge, in plain C++.
std::uint32_t select(std::uint32_t mask, std::uint32_t a, std::uint32_t b) {
  return (a & mask) | (b & ~mask);
}
std::uint32_t rotate_right(std::uint32_t word, int by) { return packed_layout::unrotate(word, by); }

/// 4 field words up to 4 bits, 8 above.
std::vector<std::uint32_t> merge(std::vector<std::uint32_t> plane) {
  const bool pairs = plane.size() <= 4;
  plane.resize(pairs ? 4 : 8);  // planes not read count as zero
  std::vector<std::uint32_t> even, odd;
  for (std::size_t i = 0; i < plane.size(); i += 2) {
    even.push_back(select(0x55555555u, plane[i], plane[i + 1]));
    odd.push_back(select(0xAAAAAAAAu, plane[i], plane[i + 1]));
  }
  std::vector<std::vector<std::uint32_t>> quad;
  for (std::size_t q = 0; q < even.size(); q += 2)
    quad.push_back(
        {select(0x33333333u, even[q], even[q + 1]), select(0x66666666u, odd[q], odd[q + 1]),
         select(0xCCCCCCCCu, even[q], even[q + 1]), select(0x99999999u, odd[q], odd[q + 1])});
  std::vector<std::uint32_t> field;
  for (int r = 0; r < (pairs ? 4 : 8); ++r) {
    const std::uint32_t word = pairs ? quad[0][size(r)]
                                     : select(packed_layout::rotate(0x0F0F0F0Fu, r),
                                              quad[0][size(r % 4)], quad[1][size(r % 4)]);
    field.push_back(rotate_right(word, r));
  }
  return field;
}

/// Random canonical words of the 32 columns of one row, and the stored ones.
struct random_words {
  std::vector<std::uint32_t> canonical, stored;
  random_words(int planes, support::random& rng) {
    for (int plane = 0; plane < planes; ++plane) {
      canonical.push_back(static_cast<std::uint32_t>(rng.next()));
      stored.push_back(packed_layout::rotate(canonical.back(), plane));
    }
  }
  int field(int column) const {
    int code = 0;
    for (const std::uint32_t word : canonical)
      code = 2 * code + static_cast<int>(word >> column & 1u);
    return packed_table_layout::reverse(code, static_cast<int>(canonical.size()));
  }
};

TEST_CASE_TEMPLATE("byte m of field word r holds the reversed codes of columns 8 m + r (and + 4)",
                   Bits, EVERY_BITS) {
  support::random rng(21);
  for (int round = 0; round < 100; ++round) {
    const random_words words(Bits::value, rng);
    const std::vector<std::uint32_t> field = merge(words.stored);
    for (int r = 0; r < static_cast<int>(field.size()); ++r)
      for (int m = 0; m < 4; ++m) {
        CAPTURE(r);
        CAPTURE(m);
        const int byte = static_cast<int>(field[size(r)] >> (8 * m) & 0xFFu);
        if (Bits::value <= 4)
          CHECK(byte == (words.field(8 * m + r) | words.field(8 * m + r + 4) << 4));
        else
          CHECK(byte == words.field(8 * m + r));
      }
  }
}

TEST_CASE("pairs 4 r + m, columns 8 m + r and 8 m + r + 4, cover the 32 columns once") {
  std::vector<int> seen(32);
  for (int i = 0; i < 16; ++i)
    for (int which = 0; which < 2; ++which) {
      const int column = 8 * (i % 4) + i / 4 + 4 * which;  // pair_column of detail/decode.cuh
      REQUIRE(column < 32);
      ++seen[size(column)];
    }
  CHECK(seen == std::vector<int>(32, 1));
}

}  // namespace
