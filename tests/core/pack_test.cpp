// SPDX-License-Identifier: MIT
// Seed 13.
#include <bitladder/core/pack.hpp>

#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

using bitladder::matrix_view;

namespace {

std::vector<std::uint8_t> random_codes(int count, int planes, std::uint64_t seed) {
  support::random random(seed);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(count));
  for (auto& c : codes) c = static_cast<std::uint8_t>(random.below(1 << planes));
  return codes;
}

}  // namespace

TEST_CASE("packing eight at a time equals packing one bit at a time, and unpacking inverts it") {
  for (int planes = 1; planes <= 8; ++planes)
    for (int rows : {1, 2, 7})
      for (int cols : {0, 1, 7, 31, 32, 33, 63, 64, 256, 768, 1000}) {
        const auto codes = random_codes(rows * cols, planes, 13);
        const auto fast = bitladder::pack({codes.data(), rows, cols}, planes);
        const auto slow = bitladder::pack_scalar({codes.data(), rows, cols}, planes);
        REQUIRE(fast.layout() == slow.layout());
        CHECK(std::equal(fast.data(), fast.data() + fast.layout().total_words(), slow.data()));
        for (int bits = 1; bits <= planes; ++bits) {
          std::vector<std::uint8_t> out(codes.size(), 0xee), expected(codes.size(), 0xee);
          bitladder::unpack(fast.view(), bits, {out.data(), rows, cols});
          bitladder::unpack_scalar(fast.view(), bits, {expected.data(), rows, cols});
          CHECK(out == expected);
          for (std::size_t i = 0; i < codes.size(); ++i)
            CHECK(out[i] == codes[i] >> (planes - bits));
        }
      }
}

TEST_CASE("a known row has known words") {
  // Codes 0 to 7 of three bits: plane 0 (most significant) is 11110000 read from column 7 down to
  // 0.
  const std::uint8_t codes[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  const auto planes = bitladder::pack({codes, 1, 8}, 3);
  CHECK(planes.data()[0] == 0xf0u);
  CHECK(planes.data()[1] == 0xccu);
  CHECK(planes.data()[2] == 0xaau);
}

TEST_CASE("strided codes are read and written in place, and nothing beside them is") {
  const int rows = 3, cols = 37, stride = 50;
  auto codes = random_codes(rows * stride, 8, 14);
  const auto planes =
      bitladder::pack(matrix_view<const std::uint8_t>(codes.data(), rows, cols, stride), 8);
  std::vector<std::uint8_t> out(codes.size(), 0x5a);
  bitladder::unpack(planes.view(), 8, matrix_view<std::uint8_t>(out.data(), rows, cols, stride));
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < stride; ++c) {
      const auto i = static_cast<std::size_t>(r * stride + c);
      CHECK(out[i] == (c < cols ? codes[i] : 0x5a));
    }
}

TEST_CASE("bits past the last column are zero") {
  std::vector<std::uint8_t> codes(33, 0xff);
  const auto planes = bitladder::pack({codes.data(), 1, 33}, 8);
  for (int p = 0; p < 8; ++p) CHECK(planes.view().row(p, 0)[1] == 1u);
}

TEST_CASE("bad requests are refused with what was expected and found") {
  const std::uint8_t codes[4] = {0, 1, 2, 3};
  const auto planes = bitladder::pack({codes, 2, 2}, 2);
  std::uint8_t out[6];
  CHECK_THROWS_WITH(bitladder::unpack(planes.view(), 3, {out, 2, 2}),
                    "unpack: 3 bits asked for, the tensor holds 2");
  CHECK_THROWS_WITH(bitladder::unpack(planes.view(), 2, {out, 2, 3}),
                    "unpack: expected codes of 2 x 2, found 2 x 3");
  CHECK_THROWS_AS(bitladder::pack({codes, 2, 2}, 0), bitladder::error);
  CHECK_THROWS_AS(bitladder::pack({codes, 2, 2}, 9), bitladder::error);
}
