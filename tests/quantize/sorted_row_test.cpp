// SPDX-License-Identifier: MIT
// Random data: seed 12.
#include <bitladder/quantize/sorted_row.hpp>

#include "rows.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <vector>

using namespace bitladder;
using kmeans::sorted_row;
using quantize_test::make_row;
using quantize_test::row_data;

TEST_CASE("equal values become one point that knows its columns and weights") {
  support::random r(12);
  sorted_row row;
  for (const int n : {1, 2, 5, 130, 1000}) {
    for (int kind = 0; kind < quantize_test::row_kinds; ++kind) {
      const row_data d = make_row(r, n, kind);
      REQUIRE(row.assign(d.values.data(), d.sensitivities.data(), n));
      std::map<float, double> points;
      double total = 0;
      for (std::size_t i = 0; i < d.values.size(); ++i) {
        points[d.values[i] + 0.f] += static_cast<double>(d.sensitivities[i]);
        total += static_cast<double>(d.sensitivities[i]);
      }
      REQUIRE(row.size() == static_cast<int>(points.size()));
      CHECK(row.count() == n);
      int p = 0;
      double weight = 0, sum = 0;
      for (const auto& [value, w] : points) {
        CHECK(row.x()[p] == value);
        if (total > 0) CHECK(std::abs(row.w()[p] - w) <= 1e-9 * total);
        CHECK(row.w()[p] > 0);
        CHECK(row.weight_before()[p] == doctest::Approx(weight));
        CHECK(std::abs(row.sum_before()[p] - sum) <= 1e-9 * (1 + std::abs(sum)) * (1 + total));
        weight += row.w()[p];
        sum += row.w()[p] * (static_cast<double>(value) - row.center());
        for (std::uint32_t i = row.first_of()[p]; i < row.first_of()[p + 1]; ++i) {
          CHECK(d.values[row.order()[i]] == value);
          if (i > row.first_of()[p]) CHECK(row.order()[i] > row.order()[i - 1]);
        }
        ++p;
      }
      CHECK(row.first_of()[p] == static_cast<std::uint32_t>(n));
    }
  }
}

TEST_CASE_TEMPLATE("16-bit elements give the row of their values", Half, fp16_t, bf16_t) {
  support::random r(12);
  sorted_row a, b;
  for (const int n : {3, 200, 70000}) {  // columns beyond 65536 do not fit half a word
    std::vector<Half> halves;
    std::vector<float> floats, s;
    for (int i = 0; i < n; ++i) {
      const float v = static_cast<float>(r.student_t());
      if constexpr (sizeof(Half) == 2 && std::is_same_v<Half, fp16_t>)
        halves.push_back(to_fp16(v));
      else
        halves.push_back(to_bf16(v));
      floats.push_back(to_float(halves.back()));
      s.push_back(static_cast<float>(r.chi_squared()));
    }
    REQUIRE(a.assign(halves.data(), s.data(), n));
    REQUIRE(b.assign(floats.data(), s.data(), n));
    REQUIRE(a.size() == b.size());
    CHECK(std::equal(a.x(), a.x() + a.size(), b.x()));
    CHECK(std::equal(a.w(), a.w() + a.size(), b.w()));
    CHECK(std::equal(a.order(), a.order() + n, b.order()));
  }
}

TEST_CASE("points as they are keep duplicates and zero weights") {
  const std::vector<float> x{1, 0, 1, 0}, s{2, 0, 3, 1};
  sorted_row row;
  REQUIRE(row.assign(x.data(), s.data(), 4, sorted_row::points::as_they_are));
  CHECK(row.size() == 4);
  CHECK(std::vector<double>(row.w(), row.w() + 4) == std::vector<double>{0, 1, 2, 3});
}

TEST_CASE("a row without sensitivity counts as uniform and says so") {
  const std::vector<float> x{3, 1, 2}, zero(3, 0.f);
  sorted_row row;
  REQUIRE(row.assign(x.data(), zero.data(), 3));
  CHECK(row.without_sensitivity());
  CHECK(row.w()[0] == row.w()[2]);
  CHECK(row.center() == doctest::Approx(2));
  REQUIRE(row.assign(x.data(), nullptr, 3));
  CHECK_FALSE(row.without_sensitivity());
}

TEST_CASE("values and sensitivities that are not usable are refused") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  sorted_row row;
  for (int n : {1, 9, 64}) {
    for (int at = 0; at < n; at += 4) {
      const std::vector<float> good(static_cast<std::size_t>(n), 0.5f);
      CHECK(row.assign(good.data(), good.data(), n));
      for (const float bad : {nan, inf, -inf, 65505.f, -65536.f}) {
        std::vector<float> x = good;
        x[static_cast<std::size_t>(at)] = bad;
        CHECK_FALSE(row.assign(x.data(), good.data(), n));
      }
      for (const float bad : {nan, inf, -inf, -1e-30f}) {
        std::vector<float> s = good;
        s[static_cast<std::size_t>(at)] = bad;
        CHECK_FALSE(row.assign(good.data(), s.data(), n));
      }
    }
  }
}
