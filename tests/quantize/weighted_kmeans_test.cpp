// SPDX-License-Identifier: MIT
// Random data: seed 14.
#include <bitladder/quantize/weighted_kmeans.hpp>

#include "rows.hpp"

#include <doctest/doctest.h>

#include <vector>

using namespace bitladder::kmeans;
using quantize_test::make_row;
using quantize_test::row_data;

namespace {

std::vector<border_window> all_places(const sorted_row& row, int k) {
  std::vector<border_window> w;
  for (int c = 1; c < k; ++c) w.push_back({c, row.size() - (k - c)});
  return w;
}

std::vector<int> whole(const sorted_row& row, std::vector<int> borders) {
  borders.insert(borders.begin(), 0);
  borders.push_back(row.size());
  return borders;
}

}  // namespace

TEST_CASE("the program's clusters are the best of all divisions of small rows") {
  support::random r(14);
  border_program program;
  sorted_row row;
  std::vector<int> borders;
  for (int trial = 0; trial < 400; ++trial) {
    const row_data d = make_row(r, 3 + r.below(10), trial % quantize_test::row_kinds);
    REQUIRE(row.assign(d.values.data(), d.sensitivities.data(), d.count()));
    const border_grid all{row.weight_before(), row.sum_before(), row.size()};
    for (int k = 2; k <= 8 && k < row.size(); ++k) {
      program.forward(all, all_places(row, k), false);
      const double gain = program.finish(all, borders);
      REQUIRE(borders.size() == static_cast<std::size_t>(k - 1));
      const double best = quantize_test::least_error(row, k);
      const double rounding = quantize_test::rounding(row);
      CHECK(quantize_test::clusters_error(row, whole(row, borders)) <= best + rounding);
      CHECK(std::abs(row.total_square() - gain - best) <= rounding);
    }
  }
}

TEST_CASE("narrowing keeps the places of every division that gains enough and no window else") {
  // By brute force: a place survives if some division through it reaches the threshold; windows are
  // the hulls of such places.
  support::random r(14);
  border_program program;
  sorted_row row;
  std::vector<int> borders;
  for (int trial = 0; trial < 200; ++trial) {
    const row_data d = make_row(r, 6 + r.below(8), 1 + trial % 3);
    REQUIRE(row.assign(d.values.data(), d.sensitivities.data(), d.count()));
    const border_grid all{row.weight_before(), row.sum_before(), row.size()};
    const int n = row.size();
    std::vector<border_window> windows(2, {0, n});
    program.forward(all, windows, true);
    const double best = program.finish(all, borders);
    const double threshold = best * (0.8 + 0.2 * r.uniform()) - 1e-12;
    program.narrow(all, threshold, windows);
    const auto gain = [&](int i, int j) { return i < j ? cluster_gain(all, i, j) : 0; };
    border_window expected[2] = {{n, 0}, {n, 0}};
    for (int i = 0; i <= n; ++i)
      for (int j = i; j <= n; ++j) {
        if (gain(0, i) + gain(i, j) + gain(j, n) < threshold) continue;
        expected[0] = {std::min(expected[0].lo, i), std::max(expected[0].hi, i)};
        expected[1] = {std::min(expected[1].lo, j), std::max(expected[1].hi, j)};
      }
    for (std::size_t c = 0; c < 2; ++c) {
      CHECK(windows[c].lo == expected[c].lo);
      CHECK(windows[c].hi == expected[c].hi);
    }
  }
}
