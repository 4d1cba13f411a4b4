// SPDX-License-Identifier: MIT
// Random data: seed 15.
#include <bitladder/quantize/kmeans_solver.hpp>

#include "rows.hpp"

#include <doctest/doctest.h>

#include <vector>

using namespace bitladder::kmeans;
using quantize_test::make_row;
using quantize_test::row_data;

namespace {

double gain_of(const sorted_row& row, const std::vector<int>& borders) {
  const border_grid all{row.weight_before(), row.sum_before(), row.size()};
  double gain = 0;
  int begin = 0;
  for (std::size_t c = 0; c <= borders.size(); ++c) {
    const int end = c < borders.size() ? borders[c] : row.size();
    REQUIRE(begin < end);
    gain += cluster_gain(all, begin, end);
    begin = end;
  }
  return gain;
}

}  // namespace

TEST_CASE(
    "looking only where optimal borders can lie finds as good clusters as looking everywhere") {
  support::random r(15);
  kmeans_solver solver;
  border_program program;
  sorted_row row;
  std::vector<int> found, everywhere;
  for (const int n : {200, 777, 1500, 4096}) {
    for (int trial = 0; trial < (n < 1000 ? 60 : 20); ++trial) {
      const row_data d = make_row(r, n, trial % quantize_test::row_kinds);
      REQUIRE(row.assign(d.values.data(), d.sensitivities.data(), n));
      const border_grid all{row.weight_before(), row.sum_before(), row.size()};
      for (const int k : {2, 3, 4, 8, 16}) {
        if (row.size() <= k) continue;
        std::vector<border_window> windows;
        for (int c = 1; c < k; ++c) windows.push_back({c, row.size() - (k - c)});
        program.forward(all, windows, false);
        program.finish(all, everywhere);
        solver.solve(row, k, found);
        const double best = gain_of(row, everywhere);
        CHECK(gain_of(row, found) >= best - 1e-12 * row.total_square());
      }
    }
  }
}

TEST_CASE("borders do not depend on the processor's instructions") {
  support::random r(15);
  kmeans_solver fast, plain(interval_search::scalar());
  sorted_row row;
  std::vector<int> a, b;
  for (int trial = 0; trial < 40; ++trial) {
    const row_data d = make_row(r, 1000 + r.below(1000), trial % quantize_test::row_kinds);
    REQUIRE(row.assign(d.values.data(), d.sensitivities.data(), d.count()));
    for (const int k : {2, 8, 16}) {
      fast.solve(row, k, a);
      plain.solve(row, k, b);
      CHECK(a == b);
    }
  }
}

TEST_CASE("a row with few different values gives each its own cluster") {
  kmeans_solver solver;
  sorted_row row;
  std::vector<int> borders;
  const std::vector<float> x{2, 1, 2, 1, 3};
  REQUIRE(row.assign(x.data(), nullptr, 5));
  solver.solve(row, 8, borders);
  CHECK(borders == std::vector<int>{1, 2, 3, 3, 3, 3, 3});
  solver.solve(row, 3, borders);
  CHECK(borders == std::vector<int>{1, 2});
  solver.solve(row, 1, borders);
  CHECK(borders.empty());
}
