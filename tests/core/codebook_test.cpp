// SPDX-License-Identifier: MIT
#include <bitladder/core/codebook.hpp>

#include <doctest/doctest.h>

using bitladder::codebook_ladder;

TEST_CASE("each precision has its own tables, one per row and group") {
  codebook_ladder ladder(3, 2, 2, 5);
  for (int b = 2; b <= 5; ++b) {
    const auto view = ladder[b];
    CHECK(view.entries() == 1 << b);
    CHECK(view.size() == static_cast<std::size_t>(3 * 2) << b);
    CHECK(view.table(0, 0) == ladder.data(b));
    CHECK(view.table(2, 1) == ladder.data(b) + (5 << b));
    for (std::size_t i = 0; i < view.size(); ++i)
      ladder.data(b)[i].bits = static_cast<std::uint16_t>(b);
  }
  CHECK(ladder[2].table(1)[3].bits == 2);
  CHECK(ladder[5].table(1)[3].bits == 5);
}

TEST_CASE("a precision outside the ladder is refused and the ones present are named") {
  const codebook_ladder ladder(1, 1, 3, 8);
  CHECK(ladder.has(3));
  CHECK(!ladder.has(2));
  CHECK_THROWS_WITH(ladder[2], "codebook ladder: 2 bits asked for, 3 to 8 present");
  CHECK_THROWS_AS(ladder[9], bitladder::error);
}

TEST_CASE("impossible ladders are refused") {
  CHECK_THROWS_AS(codebook_ladder(1, 0, 2, 8), bitladder::error);
  CHECK_THROWS_AS(codebook_ladder(1, 1, 0, 8), bitladder::error);
  CHECK_THROWS_AS(codebook_ladder(1, 1, 4, 3), bitladder::error);
  CHECK_THROWS_AS(codebook_ladder(1, 1, 4, 9), bitladder::error);
  CHECK_THROWS_AS(codebook_ladder(-1, 1, 4, 8), bitladder::error);
}
