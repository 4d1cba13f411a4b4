// SPDX-License-Identifier: MIT
// Random data: seed 18.
#include <bitladder/quantize/published.hpp>

#include "rows.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

using namespace bitladder::kmeans;
using quantize_test::make_row;
using quantize_test::row_data;

namespace {

struct clusters {
  std::vector<int> borders;
  std::vector<double> centres;
};

bool load(sorted_row& row, const std::vector<float>& x, const std::vector<float>& s) {
  return row.assign(x.data(), s.data(), static_cast<int>(x.size()),
                    sorted_row::points::as_they_are);
}

}  // namespace

TEST_CASE("the seed is a fixed point of Lloyd's step with ascending centres") {
  support::random r(18);
  sorted_row row;
  published_kmeans p;
  for (int trial = 0; trial < 20; ++trial) {
    const row_data d = make_row(r, 500, trial % 3);
    REQUIRE(load(row, d.values, d.sensitivities));
    p.assign(row);
    clusters c;
    p.seed(8, 7, c.borders, c.centres);
    REQUIRE(c.borders.size() == 9);
    CHECK(std::is_sorted(c.borders.begin(), c.borders.end()));
    CHECK(std::is_sorted(c.centres.begin(), c.centres.end()));
    double previous = quantize_test::clusters_error(row, c.borders);
    CHECK(previous < 0.2 * quantize_test::run_error(row, 0, row.size()));
    clusters again;
    p.seed(8, 7, again.borders, again.centres);
    CHECK(again.borders == c.borders);
  }
}

TEST_CASE("clusters of no, one and two points are cut as published") {
  sorted_row row;
  published_kmeans p;
  REQUIRE(load(row, {1, 2, 4}, {1, 5, 1}));
  p.assign(row);
  clusters c{{0, 1, 1, 3}, {1, 1.5, 3}};
  p.split(c.borders, c.centres);
  CHECK(c.borders == std::vector<int>{0, 1, 1, 1, 1, 2, 3});
  CHECK(c.centres == std::vector<double>{1, 1, 1.5, 1.5, 2, 4});
}

TEST_CASE("one weighted point in a cluster keeps all of it on the left") {
  sorted_row row;
  published_kmeans p;
  REQUIRE(load(row, {1, 2, 3, 9}, {0, 2, 0, 0}));
  p.assign(row);
  clusters c{{0, 4}, {2}};
  p.split(c.borders, c.centres);
  CHECK(c.borders == std::vector<int>{0, 4, 4});
  CHECK(c.centres == std::vector<double>{2, 2});
}

TEST_CASE("a search that ends without a fixed point keeps the centres of the cut before") {
  // Five points: the first cut, before index 2, gives means 0.5 and 8.33, whose middle is past
  // x[2] = 1.5; the second, before index 3, is a fixed point.
  sorted_row row;
  published_kmeans p;
  const std::vector<float> ones(5, 1.f);
  REQUIRE(load(row, {1, 2, 3, 20, 21}, ones));
  p.assign(row);
  clusters c{{0, 5}, {0}};
  p.split(c.borders, c.centres);
  CHECK(c.borders == std::vector<int>{0, 3, 5});
  // Cut before 2 looked at (floor 1, ceiling 4), then floor = 3, ceiling = 4: before 3.
  CHECK(c.centres[0] == doctest::Approx(2));
  CHECK(c.centres[1] == doctest::Approx(20.5));

  // Four points: the cut before 2 is looked at, its middle is past x[2], and the search ends at 3
  // with the means of the cut before 2.
  REQUIRE(load(row, {1, 2, 3, 20}, {1, 1, 1, 1}));
  p.assign(row);
  c = {{0, 4}, {0}};
  p.split(c.borders, c.centres);
  CHECK(c.borders == std::vector<int>{0, 3, 4});
  CHECK(c.centres[0] == doctest::Approx(1.5));
  CHECK(c.centres[1] == doctest::Approx(11.5));
}

TEST_CASE("zeros weigh nothing, and a row of zeros is all alike") {
  sorted_row row;
  published_kmeans p;
  REQUIRE(load(row, {0, 0, 0, 5, 6}, {100, 100, 100, 1, 1}));
  p.assign(row);
  clusters c;
  p.seed(2, 1, c.borders, c.centres);
  CHECK(c.centres == std::vector<double>{5, 6});
  REQUIRE(load(row, {0, 0, 0}, {1, 1, 1}));
  p.assign(row);
  p.seed(2, 1, c.borders, c.centres);
  CHECK(c.centres == std::vector<double>{0, 0});
}
