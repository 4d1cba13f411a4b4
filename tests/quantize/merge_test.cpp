// SPDX-License-Identifier: MIT
// Random data: seed 17.
#include <bitladder/quantize/merge.hpp>

#include "rows.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <vector>

using namespace bitladder::kmeans;
using quantize_test::make_row;
using quantize_test::row_data;

namespace {

// Least error of covering runs [r, end) with at most `left` groups of one or two, by trying all.
double best_groups(const sorted_row& row, const std::vector<int>& starts, std::size_t r, int left) {
  if (r == starts.size()) return 0;
  if (left == 0) return std::numeric_limits<double>::infinity();
  double best = std::numeric_limits<double>::infinity();
  for (std::size_t size = 1; size <= 2 && r + size <= starts.size(); ++size) {
    const int end = r + size < starts.size() ? starts[r + size] : row.size();
    best = std::min(best, quantize_test::run_error(row, starts[r], end) +
                              best_groups(row, starts, r + size, left - 1));
  }
  return best;
}

}  // namespace

TEST_CASE("runs are joined in the pairs that cost least") {
  support::random r(17);
  sorted_row row;
  for (int trial = 0; trial < 200; ++trial) {
    const row_data d = make_row(r, 30, trial % 6);
    REQUIRE(row.assign(d.values.data(), d.sensitivities.data(), d.count()));
    const border_grid points{row.weight_before(), row.sum_before(), row.size()};
    const int runs = 1 + r.below(12);
    std::vector<int> starts{0};
    while (static_cast<int>(starts.size()) < runs) {
      const int s = 1 + r.below(row.size() - 1);
      if (std::find(starts.begin(), starts.end(), s) == starts.end()) starts.push_back(s);
    }
    std::sort(starts.begin(), starts.end());
    for (int most = (runs + 1) / 2; most <= runs + 1; ++most) {
      std::vector<int> borders;
      const std::vector<int> groups = join_pairs(points, starts, most);
      CHECK(static_cast<int>(groups.size()) == std::min(most, runs));
      for (const int g : groups) borders.push_back(starts[static_cast<std::size_t>(g)]);
      borders.push_back(row.size());
      CHECK(quantize_test::clusters_error(row, borders) <=
            best_groups(row, starts, 0, most) + quantize_test::rounding(row));
    }
  }
}

TEST_CASE("full clusters keep their codes") {
  std::vector<float> x(8);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  sorted_row row;
  REQUIRE(row.assign(x.data(), nullptr, 8));
  const border_grid points{row.weight_before(), row.sum_before(), row.size()};
  std::vector<int> borders;
  nest_clusters(points, {0, 1, 2, 3, 4, 5, 6, 7}, 3, 1, borders);
  CHECK(borders == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8});
}

TEST_CASE("fewer clusters take codes whose top bits join near neighbours") {
  // Values 0 1 | 100 | 200 | 300: 2 bits must join one pair, and 0 with 1 costs least.
  const std::vector<float> x{0, 1, 100, 200, 300};
  sorted_row row;
  REQUIRE(row.assign(x.data(), nullptr, 5));
  const border_grid points{row.weight_before(), row.sum_before(), row.size()};
  std::vector<int> borders;
  nest_clusters(points, {0, 1, 2, 3, 4}, 3, 2, borders);
  CHECK(borders == std::vector<int>{0, 1, 2, 3, 3, 4, 4, 5, 5});  // codes 0 1 2 4 6
  nest_clusters(points, {0, 1, 2, 3, 4}, 3, 3, borders);
  CHECK(borders == std::vector<int>{0, 1, 2, 3, 4, 5, 5, 5, 5});  // nothing to nest
}
