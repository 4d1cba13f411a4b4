// SPDX-License-Identifier: MIT
// Random data: seed 16.
#include <bitladder/quantize/upscale.hpp>

#include "rows.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

using namespace bitladder::kmeans;
using quantize_test::make_row;
using quantize_test::row_data;

TEST_CASE("every cluster is cut at its best point, down to single points") {
  support::random r(16);
  sorted_row row;
  for (int trial = 0; trial < 60; ++trial) {
    const row_data d = make_row(r, 1 + r.below(200), trial % quantize_test::row_kinds);
    REQUIRE(row.assign(d.values.data(), d.sensitivities.data(), d.count()));
    std::vector<int> borders{0, row.size()};
    std::vector<double> scratch;
    for (int bits = 1; bits <= 8; ++bits) {
      const std::vector<int> before = borders;
      split_clusters(row, interval_search::fastest(), 0, borders, scratch);
      REQUIRE(borders.size() == 2 * before.size() - 1);
      for (std::size_t c = 0; c + 1 < before.size(); ++c) {
        const int begin = before[c], end = before[c + 1], cut = borders[2 * c + 1];
        CHECK(borders[2 * c] == begin);
        if (end - begin < 2) {
          CHECK(cut == end);  // one value goes left, as nothing does
          continue;
        }
        REQUIRE(cut > begin);
        REQUIRE(cut < end);
        double best = quantize_test::run_error(row, begin, end);
        for (int i = begin + 1; i < end; ++i)
          best = std::min(best, quantize_test::run_error(row, begin, i) +
                                    quantize_test::run_error(row, i, end));
        CHECK(quantize_test::run_error(row, begin, cut) + quantize_test::run_error(row, cut, end) <=
              best + quantize_test::rounding(row));
      }
      CHECK(borders.back() == row.size());
    }
  }
}

TEST_CASE("a cut with lookahead is no worse by its own measure and near the best") {
  support::random r(16);
  sorted_row row;
  std::vector<double> scratch;
  double found = 0, best = 0, greedy = 0;
  for (int trial = 0; trial < 100; ++trial) {
    const row_data d = make_row(r, 4 + r.below(60), trial % quantize_test::row_kinds);
    REQUIRE(row.assign(d.values.data(), d.sensitivities.data(), d.count()));
    if (row.size() < 4) continue;
    const interval_search search = interval_search::fastest();
    const int n = row.size();
    const auto halves = [&](int begin, int end) {
      double e = quantize_test::run_error(row, begin, end);
      for (int i = begin + 1; i < end; ++i)
        e = std::min(
            e, quantize_test::run_error(row, begin, i) + quantize_test::run_error(row, i, end));
      return e;
    };
    const auto measure = [&](int cut) {
      return (quantize_test::run_error(row, 0, cut) + quantize_test::run_error(row, cut, n) +
              2 * (halves(0, cut) + halves(cut, n))) /
             row.total_square();
    };
    const int first = search.best_cut(row.sum_before(), row.weight_before(), n).index;
    const int cut = cut_with_lookahead(row, search, 0, n, first, 2, scratch);
    REQUIRE(cut > 0);
    REQUIRE(cut < n);
    double least = measure(first);
    for (int i = 1; i < n; ++i) least = std::min(least, measure(i));
    CHECK(measure(cut) <= measure(first) + quantize_test::rounding(row) / row.total_square());
    found += measure(cut);
    best += least;
    greedy += measure(first);
  }
  MESSAGE("best ", best, ", found ", found, ", without lookahead ", greedy);
  CHECK(found - best < 0.7 * (greedy - best));
}
