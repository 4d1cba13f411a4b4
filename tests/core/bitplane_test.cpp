// SPDX-License-Identifier: MIT
// Seed 12.
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/pack.hpp>

#include <support/random.hpp>

#include <doctest/doctest.h>

#include <set>
#include <vector>

using bitladder::bitplane_layout;

template <int B>
struct bits {
  static constexpr int value = B;
};

static_assert(bitplane_layout{3, 65, 8}.words() == 3, "a ragged row rounds up");
static_assert(bitplane_layout{3, 0, 8}.words() == 0, "no columns, no words");
static_assert(bitplane_layout{2, 64, 4}.word(0, 0, 0) == 0, "the first plane comes first");
static_assert(bitplane_layout{2, 64, 4}.word(1, 0, 0) == 4, "a plane is rows x words");

TEST_CASE("every word of every plane has its own index, planes outermost") {
  for (int rows : {1, 2, 5})
    for (int cols : {1, 31, 32, 33, 96, 1056}) {
      const bitplane_layout layout{rows, cols, 8};
      std::size_t next = 0;
      for (int p = 0; p < 8; ++p)
        for (int r = 0; r < rows; ++r)
          for (int w = 0; w < layout.words(); ++w) CHECK(layout.word(p, r, w) == next++);
      CHECK(layout.total_words() == next);
      CHECK(layout.total_words(3) == next / 8 * 3);
    }
}

TEST_CASE("indices of a tensor past 2^31 words do not wrap") {
  const bitplane_layout layout{1 << 20, 1 << 17, 8};
  CHECK(layout.word(7, (1 << 20) - 1, (1 << 12) - 1) == (1ull << 35) - 1);
}

TEST_CASE_TEMPLATE("a narrow read of a wide code is its top bits", B, bits<1>, bits<2>, bits<3>,
                   bits<4>, bits<5>, bits<6>, bits<7>, bits<8>) {
  support::random random(12);
  const int rows = 3, cols = 45;
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * cols));
  for (auto& c : codes) c = static_cast<std::uint8_t>(random.below(256));
  const auto planes = bitladder::pack({codes.data(), rows, cols}, 8);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < cols; ++c) {
      const int full = codes[static_cast<std::size_t>(r * cols + c)];
      CHECK(planes.view().code(r, c, B::value) == full >> (8 - B::value));
      std::uint32_t words[B::value];
      for (int p = 0; p < B::value; ++p) words[p] = planes.view().row(p, r)[c / 32];
      CHECK(bitladder::code_at(words, c % 32) == full >> (8 - B::value));
      CHECK(planes.view().top(B::value).code(r, c, B::value) == full >> (8 - B::value));
    }
}

TEST_CASE("impossible layouts are refused with what was found") {
  using bitladder::bitplane_tensor;
  CHECK_THROWS_AS(bitplane_tensor(bitplane_layout{1, 1, 0}), bitladder::error);
  CHECK_THROWS_AS(bitplane_tensor(bitplane_layout{-1, 1, 3}), bitladder::error);
  CHECK_THROWS_WITH(bitplane_tensor(bitplane_layout{2, 3, 9}),
                    "bitplane layout: expected rows >= 0, cols >= 0 and 1 to 8 planes, found 2 x 3 "
                    "with 9 planes");
  CHECK(bitplane_tensor(bitplane_layout{0, 5, 8}).layout().total_words() == 0);
}
