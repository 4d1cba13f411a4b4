// SPDX-License-Identifier: MIT
// Random data: seed 19.
#include <bitladder/quantize/row_ladder.hpp>

#include "rows.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

using namespace bitladder;
using kmeans::row_ladder;
using quantize_test::make_row;
using quantize_test::row_data;

namespace {

/// Sum of sensitivity * (value - table entry)^2 by a plain loop over columns.
template <class Entry>
double decoded_error(const row_data& d, const std::vector<std::uint8_t>& codes, int shift,
                     const Entry& entry) {
  double e = 0;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const double diff = static_cast<double>(d.values[i]) - entry(codes[i] >> shift);
    e += static_cast<double>(d.sensitivities[i]) * diff * diff;
  }
  return e;
}

std::vector<std::uint8_t> codes_of(const row_ladder& ladder, int count) {
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(count), 0xee);
  ladder.codes(codes.data());
  return codes;
}

}  // namespace

TEST_CASE("codes, tables and reported errors agree, for all shapes of rows and ladders") {
  support::random r(19);
  row_ladder ladder;
  for (int trial = 0; trial < 300; ++trial) {
    const row_data d =
        make_row(r, 1 + r.below(trial % 3 == 0 ? 10 : 700), trial % quantize_test::row_kinds);
    kmeans_options o;
    o.min_bits = 1 + r.below(3);
    o.seed_bits = o.min_bits + r.below(4);
    o.max_bits = o.seed_bits + r.below(9 - o.seed_bits);
    o.lookahead = trial % 4 == 0 ? 0 : 2;
    o.method = trial % 2 == 0 ? quantize_method::exact : quantize_method::published;
    REQUIRE(ladder.build(d.values.data(), d.sensitivities.data(), d.count(), o));
    const std::vector<std::uint8_t> codes = codes_of(ladder, d.count());
    double total = 0;
    for (std::size_t i = 0; i < codes.size(); ++i) {
      REQUIRE(codes[i] < 1 << o.max_bits);
      total += static_cast<double>(d.sensitivities[i]) * static_cast<double>(d.values[i]) *
               static_cast<double>(d.values[i]);
      // Codes ascend with values, and exact ones never tell equal values apart.
      for (std::size_t k = 0; k < codes.size() && trial % 8 < 2; ++k) {
        if (d.values[k] < d.values[i]) CHECK(codes[k] <= codes[i]);
        if (d.values[k] == d.values[i] && o.method == quantize_method::exact)
          CHECK(codes[k] == codes[i]);
      }
    }
    for (int b = o.min_bits; b <= o.max_bits; ++b) {
      const std::vector<double>& t = ladder.table(b);
      REQUIRE(t.size() == static_cast<std::size_t>(1) << b);
      CHECK(std::is_sorted(t.begin(), t.end()));
      std::vector<fp16_t> rounded(t.size());
      ladder.round_table(b, rounded.data());
      for (std::size_t c = 0; c < t.size(); ++c) {
        CHECK(std::isfinite(t[c]));
        if (c > 0) CHECK(to_float(rounded[c - 1]) <= to_float(rounded[c]));
      }
      const double e = decoded_error(d, codes, o.max_bits - b, [&](int c) {
        return static_cast<double>(to_float(rounded[static_cast<std::size_t>(c)]));
      });
      // Points without sensitivity carry up to 2^-44 of a row's in exact rows.
      CHECK(std::abs(ladder.weighted_error(b, rounded.data()) - e) <= 1e-9 * (total + 1e-300));
    }
  }
}

TEST_CASE("every code decodes to the mean of its weights, within their range") {
  support::random r(19);
  row_ladder ladder;
  for (int kind = 0; kind < quantize_test::row_kinds; ++kind) {
    const row_data d = make_row(r, 600, kind);
    kmeans_options o;
    REQUIRE(ladder.build(d.values.data(), d.sensitivities.data(), d.count(), o));
    const std::vector<std::uint8_t> codes = codes_of(ladder, d.count());
    for (int b = o.min_bits; b <= o.max_bits; ++b) {
      for (std::size_t c = 0; c < static_cast<std::size_t>(1) << b; ++c) {
        double w = 0, s = 0, lo = 1e30, hi = -1e30;
        for (std::size_t i = 0; i < codes.size(); ++i) {
          if (static_cast<std::size_t>(codes[i] >> (8 - b)) != c) continue;
          const double x = static_cast<double>(d.values[i]);
          w += static_cast<double>(d.sensitivities[i]);
          s += static_cast<double>(d.sensitivities[i]) * x;
          lo = std::min(lo, x);
          hi = std::max(hi, x);
        }
        if (lo > hi) continue;
        CHECK(ladder.table(b)[c] >= lo);
        CHECK(ladder.table(b)[c] <= hi);
        if (w > 1e-3) CHECK(ladder.table(b)[c] == doctest::Approx(s / w).epsilon(1e-6));
      }
    }
  }
}

TEST_CASE("the seed equals the optimum over all divisions of small rows") {
  support::random r(19);
  row_ladder ladder;
  for (int trial = 0; trial < 300; ++trial) {
    const row_data d = make_row(r, 1 + r.below(12), trial % quantize_test::row_kinds);
    for (int seed = 1; seed <= 3; ++seed) {
      kmeans_options o;
      o.min_bits = 1;
      o.seed_bits = o.max_bits = seed;
      REQUIRE(ladder.build(d.values.data(), d.sensitivities.data(), d.count(), o));
      const std::vector<double>& t = ladder.table(seed);
      const double e = decoded_error(d, codes_of(ladder, d.count()), 0,
                                     [&](int c) { return t[static_cast<std::size_t>(c)]; });
      const double best = quantize_test::least_error(ladder.points(), 1 << seed);
      CHECK(e <= best + quantize_test::rounding(ladder.points()));
    }
  }
}

TEST_CASE("one value, few values and one column") {
  row_ladder ladder;
  kmeans_options o;
  o.min_bits = 1;
  o.seed_bits = 3;
  for (const quantize_method m : {quantize_method::exact, quantize_method::published}) {
    o.method = m;
    for (const int n : {1, 5, 300}) {
      const std::vector<float> same(static_cast<std::size_t>(n), -0.75f);
      REQUIRE(ladder.build(same.data(), nullptr, n, o));
      const std::vector<std::uint8_t> codes = codes_of(ladder, n);
      for (int b = 1; b <= 8; ++b)
        for (const std::uint8_t c : codes)
          CHECK(ladder.table(b)[static_cast<std::size_t>(c >> (8 - b))] == -0.75);
    }
  }
  // Five values at seed 3: exact from 3 bits up, and at 2 bits only the nearest two share.
  const std::vector<float> x{300, 0, 100, 1, 200};
  o.method = quantize_method::exact;
  REQUIRE(ladder.build(x.data(), nullptr, 5, o));
  const std::vector<std::uint8_t> codes = codes_of(ladder, 5);
  for (int b = 3; b <= 8; ++b)
    for (std::size_t i = 0; i < 5; ++i)
      CHECK(ladder.table(b)[static_cast<std::size_t>(codes[i] >> (8 - b))] ==
            static_cast<double>(x[i]));
  CHECK(ladder.table(2) == std::vector<double>{0.5, 100, 200, 300});
}

TEST_CASE("weights without sensitivity do not move centres but are coded near") {
  // 0, 1, 10, 11 matter; the others do not.
  const std::vector<float> x{0, 0.25f, 1, 4, 9, 10, 11, 40}, s{1, 0, 1, 0, 0, 1, 1, 0};
  row_ladder ladder;
  kmeans_options o;
  o.min_bits = 1;
  o.seed_bits = 1;
  o.max_bits = 4;
  REQUIRE(ladder.build(x.data(), s.data(), 8, o));
  CHECK(ladder.table(1)[0] == doctest::Approx(0.5));
  CHECK(ladder.table(1)[1] == doctest::Approx(10.5));
  const std::vector<std::uint8_t> codes = codes_of(ladder, 8);
  for (std::size_t i = 0; i < 8; ++i) CHECK((codes[i] >> 3) == (x[i] > 5 ? 1 : 0));
  for (std::size_t i = 0; i < 8; ++i)  // enough codes for all eight
    CHECK(ladder.table(4)[codes[i]] == doctest::Approx(static_cast<double>(x[i])));
}

TEST_CASE("a row without any sensitivity is quantized as a uniform one") {
  support::random r(19);
  const row_data d = make_row(r, 400, 2);
  const std::vector<float> zero(400, 0.f);
  row_ladder a, b;
  for (const quantize_method m : {quantize_method::exact, quantize_method::published}) {
    kmeans_options o;
    o.method = m;
    REQUIRE(a.build(d.values.data(), nullptr, 400, o));
    REQUIRE(b.build(d.values.data(), zero.data(), 400, o));
    CHECK(codes_of(a, 400) == codes_of(b, 400));
    CHECK(a.table(5) == b.table(5));
    CHECK(b.weighted_variance() == 0);
  }
}

TEST_CASE("exact rows are never worse than published ones at the seed and better in the mean") {
  support::random r(19);
  row_ladder exact, published;
  const int n = 4096, rows = 40;
  double ratio[9] = {};
  for (int row = 0; row < rows; ++row) {
    row_data d = make_row(r, n, 2);
    for (float& v : d.values) v = to_float(to_bf16(0.02f * v));
    kmeans_options o;
    o.seed_bits = 3;
    REQUIRE(exact.build(d.values.data(), d.sensitivities.data(), n, o));
    o.method = quantize_method::published;
    o.random_state = static_cast<std::uint64_t>(row);
    REQUIRE(published.build(d.values.data(), d.sensitivities.data(), n, o));
    const auto error_of = [&](const row_ladder& ladder, int b) {
      const std::vector<double>& t = ladder.table(b);
      return decoded_error(d, codes_of(ladder, n), 8 - b,
                           [&](int c) { return t[static_cast<std::size_t>(c)]; });
    };
    CHECK(error_of(exact, 3) <= error_of(published, 3) * (1 + 1e-12));
    for (int b = 3; b <= 8; ++b) ratio[b] += error_of(exact, b) / error_of(published, b) / rows;
  }
  for (int b = 3; b <= 8; ++b) MESSAGE(b, " bits: ", ratio[b], " of the published error");
  CHECK(ratio[3] < 0.99);
  CHECK(ratio[8] < 0.85);
}

TEST_CASE("sensitivities as unlike each other as floats can be leave tables that ascend") {
  support::random r(19);
  row_ladder ladder;
  for (int trial = 0; trial < 60; ++trial) {
    row_data d = make_row(r, 900 + r.below(600), trial % quantize_test::row_kinds);
    for (float& s : d.sensitivities) {
      if (trial % 3 == 0) s = static_cast<float>(std::exp(20 * r.normal()) * 1e-8);
      if (trial % 3 == 1) s = r.below(400) == 0 ? 1e38f : 1e-45f;
      if (trial % 3 == 2) s = 1e-40f * static_cast<float>(r.below(3));
    }
    kmeans_options o;
    o.seed_bits = 2 + trial % 2;
    o.method = trial % 5 == 0 ? quantize_method::published : quantize_method::exact;
    REQUIRE(ladder.build(d.values.data(), d.sensitivities.data(), d.count(), o));
    const std::vector<std::uint8_t> codes = codes_of(ladder, d.count());
    for (int b = o.min_bits; b <= 8; ++b) {
      const std::vector<double>& t = ladder.table(b);
      CHECK(std::is_sorted(t.begin(), t.end()));
      CHECK(std::isfinite(t.front()));
      CHECK(std::isfinite(t.back()));
    }
    if (o.method == quantize_method::published) continue;
    for (std::size_t i = 0; i < codes.size(); ++i)  // each value by a mean of its neighbours
      CHECK(std::abs(ladder.table(8)[codes[i]] - static_cast<double>(d.values[i])) <=
            static_cast<double>(ladder.points().x()[ladder.points().size() - 1]) -
                static_cast<double>(ladder.points().x()[0]));
  }
}
