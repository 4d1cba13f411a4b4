// SPDX-License-Identifier: MIT
// Random data: seeds 25 to 29.
#include <bitladder/core/pack.hpp>
#include <bitladder/quantize/outliers.hpp>
#include <bitladder/quantize/quantize.hpp>

#include <support/files.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

using namespace bitladder;
using support::error_of;

namespace {

struct matrix {
  int rows, cols;
  std::vector<float> w, s;
  matrix_view<const float> weights() const { return {w.data(), rows, cols}; }
  sensitivity sens() const { return sensitivity::from_values({s.data(), rows, cols}); }
  std::size_t at(int r, int c) const { return static_cast<std::size_t>(r * cols + c); }
};

/// @param steps values and sensitivities come from so many different ones, so that many are equal
matrix make(int rows, int cols, std::uint64_t seed, int steps = 1 << 20) {
  support::random r(seed);
  matrix m{rows, cols, {}, {}};
  const double per = steps / 8.0;
  for (int i = 0; i < rows * cols; ++i) {
    m.w.push_back(static_cast<float>(std::round(0.2 * r.student_t() * per) / per));
    m.s.push_back(static_cast<float>(std::round(r.chi_squared() * per) / per));
  }
  return m;
}

/// The same by sorting all weights.
std::set<int> sorted_choice(const matrix& m, bool uniform, std::int64_t sensitive,
                            std::int64_t large, outlier_rule rule = outlier_rule::saliency) {
  std::vector<float> matter = m.s;
  if (rule == outlier_rule::saliency)
    for (std::size_t i = 0; i < matter.size(); ++i) matter[i] = matter[i] * m.w[i] * m.w[i];
  std::vector<int> all(m.w.size());
  std::iota(all.begin(), all.end(), 0);
  std::set<int> chosen;
  const auto take = [&](const std::vector<float>& by, std::int64_t count) {
    std::stable_sort(all.begin(), all.end(), [&](int a, int b) {
      return std::fabs(by[static_cast<std::size_t>(a)]) >
             std::fabs(by[static_cast<std::size_t>(b)]);
    });
    chosen.insert(all.begin(), all.begin() + count);
    all.erase(all.begin(), all.begin() + count);
    std::sort(all.begin(), all.end());
  };
  if (!uniform) take(matter, sensitive);
  take(m.w, large + (uniform ? sensitive : 0));
  return chosen;
}

/// Row-major places of all entries, whose values must be those of the weights.
std::set<int> places(const sparse_matrix& o, const matrix& m) {
  const sparse_view v = o.view();
  REQUIRE(v.rows() == m.rows);
  REQUIRE(v.cols() == m.cols);
  REQUIRE(find_fault(v, o.count()).code == status::ok);
  std::set<int> found;
  int wrong = 0;
  for (int r = 0; r < v.rows(); ++r)
    for (int i = v.begin(r); i < v.end(r); ++i) {
      found.insert(r * m.cols + v.columns()[i]);
      wrong += v.values()[i] != to_fp16(m.weights()(r, v.columns()[i]));
    }
  CHECK(wrong == 0);
  return found;
}

bool same(const sparse_matrix& a, const sparse_matrix& b) {
  const sparse_view x = a.view(), y = b.view();
  return a.rows() == b.rows() && a.count() == b.count() &&
         std::equal(x.offsets(), x.offsets() + a.rows() + 1, y.offsets()) &&
         std::equal(x.columns(), x.columns() + a.count(), y.columns()) &&
         std::equal(x.values(), x.values() + a.count(), y.values());
}

}  // namespace

TEST_CASE("percentages become numbers of weights, rounded, and never more than there are") {
  const auto count = [](double sensitive, double large, int rows, int cols, bool uniform = false) {
    const outlier_counts n = count_outliers({sensitive, large}, rows, cols, uniform);
    return std::pair<std::int64_t, std::int64_t>(n.sensitive, n.large);
  };
  using pair = std::pair<std::int64_t, std::int64_t>;
  CHECK(count(0.05, 0.4, 4096, 4096) == pair(8389, 67109));
  CHECK(count(0.05, 0.4, 4096, 4096, true) == pair(0, 8389 + 67109));
  CHECK(count(0, 0, 100, 100) == pair(0, 0));
  CHECK(count(100, 0, 10, 10) == pair(100, 0));
  CHECK(count(0, 100, 10, 10) == pair(0, 100));
  CHECK(count(100, 100, 10, 10) == pair(100, 0));
  CHECK(count(60, 60, 10, 10) == pair(60, 40));
  CHECK(count(0.4, 0, 10, 10) == pair(0, 0));
  CHECK(count(0.5, 0, 10, 10) == pair(1, 0));
  CHECK(count(50, 50, 0, 10) == pair(0, 0));
  CHECK(count(50, 50, 10, 0) == pair(0, 0));
  outlier_options o{50, 1};
  o.large_count = 7;
  CHECK(count_outliers(o, 10, 10, false).large == 7);
  o.large_count = 1000;
  CHECK(count_outliers(o, 10, 10, false).all() == 100);
  CHECK(o.any());
  o.rule = static_cast<outlier_rule>(7);
  CHECK(error_of([&] { validate(o); }).names("rule saliency or sensitivity, found value 7"));
  CHECK_FALSE(outlier_options().any());
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double bad : {-0.1, 100.1, nan}) {
    CHECK(error_of([&] {
            count_outliers({bad, 0}, 1, 1, false);
          }).code == status::invalid_argument);
    CHECK(error_of([&] {
            count_outliers({0, bad}, 1, 1, false);
          }).names("0 to 100 percent of large weights"));
  }
  CHECK(error_of([&] { count_outliers({0, 100}, 1 << 16, 1 << 16, false); }).names("at most 2^31"));
}

TEST_CASE("outliers are what sorting all weights gives, equal ones by their place") {
  for (const int steps : {1 << 20, 16}) {
    for (const auto& [rows, cols] : {std::pair<int, int>{1, 1}, {1, 50}, {37, 1}, {23, 61}}) {
      const matrix m = make(rows, cols, 25, steps);
      const std::int64_t all = static_cast<std::int64_t>(rows) * cols;
      for (const auto& [sensitive, large] : {std::pair<std::int64_t, std::int64_t>{0, 0},
                                             {1, 0},
                                             {0, 1},
                                             {all / 10, all / 5},
                                             {all / 2, all - all / 2},
                                             {all, 0},
                                             {0, all},
                                             {0, all - 1}}) {
        if (sensitive + large > all) continue;
        CAPTURE(steps);
        CAPTURE(rows);
        CAPTURE(cols);
        CAPTURE(sensitive);
        CAPTURE(large);
        for (const outlier_rule rule : {outlier_rule::saliency, outlier_rule::sensitivity}) {
          const sparse_matrix o = choose_outliers(m.weights(), m.sens(), {sensitive, large, rule});
          CHECK(o.count() == sensitive + large);
          CHECK(places(o, m) == sorted_choice(m, false, sensitive, large, rule));
        }
        const auto uniform = sensitivity::uniform(rows, cols);
        CHECK(places(choose_outliers(m.weights(), uniform, {0, sensitive + large}), m) ==
              sorted_choice(m, true, sensitive, large));
      }
    }
  }
}

TEST_CASE("the choice is the same for any number of threads and for 16-bit weights") {
  const matrix m = make(3000, 700, 26, 4000);  // some millions: several pieces of work
  const outlier_counts n = count_outliers({0.05, 0.4}, m.rows, m.cols, false);
  const sparse_matrix alone = choose_outliers(m.weights(), m.sens(), n);
  CHECK(alone.count() == 1050 + 8400);
  for (const int threads : {2, 3, 5}) {
    thread_pool pool(threads);
    CHECK(same(alone, choose_outliers(m.weights(), m.sens(), n, &pool)));
  }
  std::vector<bf16_t> brain;
  matrix rounded = m;
  for (std::size_t i = 0; i < m.w.size(); ++i) {
    brain.push_back(to_bf16(m.w[i]));
    rounded.w[i] = to_float(brain[i]);
  }
  CHECK(same(choose_outliers(matrix_view<const bf16_t>(brain.data(), m.rows, m.cols), m.sens(), n),
             choose_outliers(rounded.weights(), rounded.sens(), n)));
}

TEST_CASE("what cannot be an outlier is refused by its place") {
  matrix m = make(5, 8, 27);
  const auto thrown = [&](const outlier_counts& n) {
    return error_of([&] { choose_outliers(m.weights(), m.sens(), n); });
  };
  m.w[19] = std::numeric_limits<float>::infinity();
  CHECK(thrown({0, 1}).names("weight at row 2, column 3: expected a finite number"));
  m.w[19] = std::numeric_limits<float>::quiet_NaN();
  CHECK(thrown({0, 1}).names("weight at row 2, column 3"));
  m.w[19] = -70000;
  CHECK(thrown({0, 1}).names("found -70000"));
  m.w[19] = 0;
  m.s[9] = -1e30f;
  m.w[9] = 1;
  CHECK(thrown({1, 0}).names("sensitivity at row 1, column 1: expected a finite number >= 0"));
  CHECK(thrown({20, 21}).code == status::invalid_argument);
  CHECK(thrown({-1, 0}).code == status::invalid_argument);
  CHECK(error_of([&] {
          choose_outliers(m.weights(), sensitivity::uniform(5, 9), {0, 0});
        }).code == status::shape_mismatch);
}

TEST_CASE("tables and codes are those of the other weights, as if outliers were not there") {
  for (const int groups : {1, 3})
    for (const bool uniform : {false, true}) {
      const matrix m = make(7, 96, 28);
      kmeans_options o;
      o.groups = groups;
      o.outliers = {3, 5};
      const sensitivity s = uniform ? sensitivity::uniform(m.rows, m.cols) : m.sens();
      const quantized_matrix q = quantize(m.weights(), s, o);
      const sparse_view v = q.outliers().view();
      CHECK(v.count() == 20 + 34);
      // By hand: outliers zero and without weight. The column of zeros that every group gets here
      // is the place where they are in the clustering.
      matrix hidden = m;
      if (uniform) std::fill(hidden.s.begin(), hidden.s.end(), 1.f);
      for (int r = 0; r < m.rows; ++r)
        for (int i = v.begin(r); i < v.end(r); ++i)
          hidden.w[m.at(r, v.columns()[i])] = hidden.s[m.at(r, v.columns()[i])] = 0;
      o.outliers = {};
      const quantized_matrix plain = quantize(hidden.weights(), hidden.sens(), o);
      for (int r = 0; r < m.rows; ++r) {
        CHECK(std::memcmp(q.codes().row(r), plain.codes().row(r),
                          static_cast<std::size_t>(m.cols)) == 0);
        for (int b = 2; b <= 8; ++b)
          for (int g = 0; g < groups; ++g)
            CHECK(std::memcmp(q.codebook(b).table(r, g), plain.codebook(b).table(r, g),
                              sizeof(fp16_t) << b) == 0);
      }
      CHECK(find_code_fault(v, pack(q.codes(), 8).view(), groups).code == status::ok);
    }
}

TEST_CASE("the report counts outliers at their fp16 value, and the variance of all weights") {
  const matrix m = make(6, 120, 29);
  for (const quantize_method method : {quantize_method::exact, quantize_method::published})
    for (const int groups : {1, 4}) {
      kmeans_options o;
      o.method = method;
      o.groups = groups;
      const double variance = quantize(m.weights(), m.sens(), o).report().weighted_variance;
      o.outliers = {2, 4};
      const quantized_matrix q = quantize(m.weights(), m.sens(), o);
      std::vector<float> exact(m.w.size(), std::numeric_limits<float>::quiet_NaN());
      const sparse_view v = q.outliers().view();
      for (int r = 0; r < m.rows; ++r)
        for (int i = v.begin(r); i < v.end(r); ++i)
          exact[m.at(r, v.columns()[i])] = to_float(v.values()[i]);
      CHECK(find_code_fault(v, pack(q.codes(), 8).view(), groups).code == status::ok);
      CHECK(q.report().weighted_variance == doctest::Approx(variance).epsilon(1e-9));
      for (int b = 2; b <= 8; ++b) {
        double e = 0;
        for (int r = 0; r < m.rows; ++r)
          for (int c = 0; c < m.cols; ++c) {
            const std::size_t i = m.at(r, c);
            const float dense =
                to_float(q.codebook(b).table(r, c / (m.cols / groups))[q.codes()(r, c) >> (8 - b)]);
            const float value = std::isnan(exact[i]) ? dense : exact[i];
            e += static_cast<double>(m.s[i]) * std::pow(static_cast<double>(m.w[i] - value), 2);
          }
        CHECK(q.report().weighted_error[static_cast<std::size_t>(b)] ==
              doctest::Approx(e).epsilon(1e-5));
      }
    }
}

TEST_CASE("every share of outliers can be asked for, none and all included") {
  const matrix m = make(9, 64, 25);
  kmeans_options o;
  const quantized_matrix plain = quantize(m.weights(), m.sens(), o);
  CHECK(plain.outliers().count() == 0);
  CHECK(plain.outliers().rows() == 9);
  double previous = plain.report().relative_error(2);
  for (const double percent : {1.0, 10.0, 50.0, 99.0, 100.0}) {
    o.outliers = {percent / 2, percent / 2};
    thread_pool pool(3);
    const quantized_matrix q = quantize(m.weights(), m.sens(), o, &pool);
    CHECK(q.outliers().count() == std::llround(percent / 200 * 576) * 2);
    CHECK(q.report().relative_error(2) <= previous);
    previous = q.report().relative_error(2);
  }
  CHECK(previous < 1e-6);  // only fp16's rounding is left
}

TEST_CASE("rows whose sensitivity is all in their outliers keep tables of the other weights") {
  matrix m = make(3, 40, 26);
  for (std::size_t i = 40; i < 80; ++i) m.s[i] = i == 50 ? 1.f : 0.f;
  std::fill(m.s.begin() + 80, m.s.end(), 0.f);
  m.w[50] = 900;
  m.w[90] = 1000;
  kmeans_options o;
  o.outliers.large = 2.0 / 1.2;  // two of 120
  const quantized_matrix q = quantize(m.weights(), m.sens(), o);
  REQUIRE(q.outliers().count() == 2);
  for (int r : {1, 2}) {
    const float last = to_float(q.codebook(8).table(r)[255]);
    float greatest = -1;
    for (std::size_t k = 40 * static_cast<std::size_t>(r), n = 0; n < 40; ++n, ++k)
      if (m.w[k] < 100) greatest = std::max(greatest, m.w[k]);
    CHECK(last == to_float(to_fp16(greatest)));
  }
  for (int b = 2; b <= 8; ++b) CHECK(std::isfinite(q.report().relative_error(b)));
}

TEST_CASE("bad weights are found among outliers and beside them") {
  matrix m = make(5, 40, 27);
  kmeans_options o;
  o.outliers = {1, 1};
  const auto text = [&] { return error_of([&] { quantize(m.weights(), m.sens(), o); }).text; };
  m.s[100] = std::numeric_limits<float>::quiet_NaN();
  CHECK(text().find("sensitivity at row 2, column 20") != std::string::npos);
  m.s[100] = 0;
  m.w[100] = std::numeric_limits<float>::quiet_NaN();
  CHECK(text().find("weight at row 2, column 20") != std::string::npos);
  m.w[100] = 0;
  m.s[7] = -1e-30f;  // not among the chosen
  CHECK(text().find("sensitivity at row 0, column 7") != std::string::npos);
  m.s[7] = 0;
  o.outliers.large = 101;
  CHECK(text().find("percent of large weights, found 101") != std::string::npos);
}
