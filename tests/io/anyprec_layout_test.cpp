// SPDX-License-Identifier: MIT
// Seed 44. The golden row and the places are from the format's own packing functions.
#include <bitladder/core/pack.hpp>
#include <bitladder/io/anyprec_layout.hpp>

#include "support/random.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

namespace bl = bitladder;
using support::error_of;

namespace {

constexpr bool is_at(int cols, int col, int word, int bit) {
  const bl::anyprec_layout layout{cols};
  return layout.at(col).word == word && layout.at(col).bit == bit && layout.col({word, bit}) == col;
}
static_assert(is_at(4096, 0, 0, 31) && is_at(4096, 7, 0, 24) && is_at(4096, 8, 1, 31) &&
              is_at(4096, 256, 0, 23) && is_at(4096, 300, 5, 19) && is_at(4096, 1023, 31, 0) &&
              is_at(4096, 1024, 32, 31) && is_at(11008, 10240, 320, 31) &&
              is_at(11008, 10432, 320, 23) && is_at(11008, 11007, 343, 0) && is_at(64, 33, 0, 14) &&
              is_at(32, 31, 0, 0));

constexpr int widths[] = {32,   64,   96,   128,  256,  512,  768,  992,   1024,  1056, 1536,
                          2048, 2560, 3072, 4096, 4128, 5120, 8192, 11008, 13824, 14336};

std::vector<std::uint8_t> random_codes(support::random& r, int rows, int cols, int planes) {
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols));
  for (std::uint8_t& c : codes) c = static_cast<std::uint8_t>(r.below(1 << planes));
  return codes;
}

/// The published words, one bit at a time by the address formula.
std::vector<std::uint32_t> published(const std::vector<std::uint8_t>& codes, int rows, int cols,
                                     int planes) {
  const bl::bitplane_layout layout{rows, cols, planes};
  const bl::anyprec_layout order{cols};
  std::vector<std::uint32_t> words(layout.total_words());
  for (int p = 0; p < planes; ++p)
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < cols; ++c) {
        const bl::anyprec_layout::place at = order.at(c);
        const int code = codes[static_cast<std::size_t>(r) * static_cast<std::size_t>(cols) +
                               static_cast<std::size_t>(c)];
        words[layout.word(p, r, at.word)] |=
            static_cast<std::uint32_t>(code >> (planes - 1 - p) & 1) << at.bit;
      }
  return words;
}

}  // namespace

TEST_CASE("every column of every width has a place of its own, and places lead back") {
  for (int cols : widths) {
    CAPTURE(cols);
    const bl::anyprec_layout layout{cols};
    std::vector<bool> taken(static_cast<std::size_t>(cols));
    bool sound = true;
    for (int c = 0; c < cols; ++c) {
      const bl::anyprec_layout::place p = layout.at(c);
      sound = sound && p.word >= 0 && p.word < layout.words() && p.bit >= 0 && p.bit < 32 &&
              layout.col(p) == c;
      const std::size_t i = static_cast<std::size_t>(32 * p.word + p.bit);
      REQUIRE(i < taken.size());
      sound = sound && !taken[i];
      taken[i] = true;
    }
    CHECK(sound);
  }
}

TEST_CASE("the golden row comes out word for word") {
  std::vector<std::uint8_t> codes;
  for (int k = 0; k < 1056; ++k) codes.push_back(static_cast<std::uint8_t>((k * k + 3 * k) % 251));
  const bl::bitplane_tensor planes =
      bl::pack(bl::matrix_view<const std::uint8_t>(codes.data(), 1, 1056), 8);
  const std::uint32_t golden[8][4] = {{0x0007f80c, 0x3ec36363, 0x60001fe1, 0x8c64db6b},
                                      {0x01381934, 0xc6cda5a5, 0x6007e366, 0x94a94931},
                                      {0x06c92a59, 0x4a56cc8f, 0x601925ab, 0x31fc64ad},
                                      {0x1a5377f5, 0x9dbdaa4c, 0x636a4ede, 0xa99ca9f9},
                                      {0x2c9a4930, 0xd24c800b, 0x65b36926, 0x016505da},
                                      {0x4b692a58, 0x4a56c123, 0x092da5ab, 0x0468bfaf},
                                      {0x3366cc9a, 0x3366d366, 0x06cc9933, 0x4cd30c34},
                                      {0x000007fc, 0x013fe01f, 0x6000001f, 0x83e3c718}};
  for (int p = 0; p < 8; ++p) {
    std::uint32_t words[33];
    bl::planes_to_anyprec(planes.view(), p, 0, 1, reinterpret_cast<std::byte*>(words));
    CAPTURE(p);
    CHECK(words[0] == golden[p][0]);
    CHECK(words[1] == golden[p][1]);
    CHECK(words[31] == golden[p][2]);
    CHECK(words[32] == golden[p][3]);
  }
}

TEST_CASE("whole rows move both ways as the address formula says, from any address") {
  support::random random(44);
  for (int cols : widths) {
    for (int planes : {1, 3, 4, 8}) {
      const int rows = 1 + random.below(4);
      CAPTURE(cols);
      CAPTURE(planes);
      const std::vector<std::uint8_t> codes = random_codes(random, rows, cols, planes);
      const std::vector<std::uint32_t> words = published(codes, rows, cols, planes);
      const bl::bitplane_tensor ours =
          bl::pack(bl::matrix_view<const std::uint8_t>(codes.data(), rows, cols), planes);
      const std::size_t size = words.size() * 4, shift = static_cast<std::size_t>(random.below(4));
      std::vector<std::byte> bytes(size + shift);
      std::memcpy(bytes.data() + shift, words.data(), size);
      const bl::bitplane_tensor read =
          bl::planes_from_anyprec(bytes.data() + shift, {rows, cols, planes});
      CHECK(std::memcmp(read.data(), ours.data(), size) == 0);
      std::vector<std::byte> back(size + shift);
      std::byte* to = back.data() + shift;
      for (int p = 0; p < planes; ++p) {
        const int cut = random.below(rows + 1);
        for (const auto& [first, last] : {std::pair<int, int>{0, cut}, {cut, rows}}) {
          bl::planes_to_anyprec(ours.view(), p, first, last, to);
          to += static_cast<std::size_t>(last - first) * static_cast<std::size_t>(cols) / 8;
        }
      }
      CHECK(std::memcmp(back.data() + shift, words.data(), size) == 0);
    }
  }
}

TEST_CASE("columns that fill no words are refused") {
  const std::byte none{};
  for (int cols : {1, 31, 33, 1025})
    CHECK(error_of([&] {
            bl::planes_from_anyprec(&none, {0, cols, 3});
          }).names("multiples of 32, found " + std::to_string(cols)));
  const bl::bitplane_tensor odd(bl::bitplane_layout{0, 33, 3});
  std::byte out{};
  CHECK(error_of([&] { bl::planes_to_anyprec(odd.view(), 0, 0, 0, &out); }).names("found 33"));
  CHECK(bl::planes_from_anyprec(&none, {5, 0, 3}).layout().rows == 5);
}
