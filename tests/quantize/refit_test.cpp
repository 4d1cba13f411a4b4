// SPDX-License-Identifier: MIT
// Random data: seeds are given in each case.
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/quantize/nested_descent.hpp>
#include <bitladder/quantize/quantize.hpp>
#include <bitladder/quantize/refit.hpp>
#include <bitladder/quantize/refit_ladder.hpp>
#include <bitladder/quantize/resplit.hpp>
#include <bitladder/quantize/sensitivity.hpp>

#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace {

using bitladder::codebook_ladder;
using bitladder::fp16_t;
using bitladder::matrix_view;
using bitladder::refit_options;
using bitladder::refit_report;

/// Second moments of `samples` inputs whose neighbours go together.
std::vector<float> make_moments(int cols, int samples, std::uint64_t seed) {
  support::random random(seed);
  const auto n = static_cast<std::size_t>(cols);
  std::vector<double> h(n * n), x(n);
  for (int s = 0; s < samples; ++s) {
    double last = 0;
    for (double& v : x) v = last = 0.8 * last + random.normal();
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) h[i * n + j] += x[i] * x[j];
  }
  return std::vector<float>(h.begin(), h.end());
}

/// Weights, a quantized form of them and moments of their inputs.
struct case_data {
  int rows, cols;
  std::vector<float> weights, h;
  std::vector<std::uint8_t> codes;
  codebook_ladder tables;

  case_data(int r, int c, int max_bits, std::uint64_t seed) : rows(r), cols(c) {
    support::random random(seed);
    weights.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols));
    for (float& w : weights) w = static_cast<float>(random.normal() * 0.05);
    h = make_moments(cols, 3 * cols, seed + 1);
    bitladder::kmeans_options o;
    o.max_bits = max_bits;
    const auto q = bitladder::quantize(view(), bitladder::sensitivity::uniform(rows, cols), o);
    codes.assign(q.codes().data(), q.codes().data() + weights.size());
    tables = q.codebooks();
  }

  matrix_view<const float> view() const { return {weights.data(), rows, cols}; }
  matrix_view<std::uint8_t> code_view() { return {codes.data(), rows, cols}; }
  std::vector<matrix_view<const float>> moments() const { return {{h.data(), cols, cols}}; }

  /// Sum over rows of e H e^T, in double, H damped.
  double error(int bits, double damping) const {
    double diagonal = 0;
    for (int c = 0; c < cols; ++c) diagonal += static_cast<double>(moments()[0](c, c));
    double sum = 0;
    for (int r = 0; r < rows; ++r) {
      std::vector<double> e(static_cast<std::size_t>(cols));
      for (int c = 0; c < cols; ++c) {
        const std::size_t i = static_cast<std::size_t>(r * cols + c);
        const int code = codes[i] >> (tables.max_bits() - bits);
        e[static_cast<std::size_t>(c)] =
            static_cast<double>(weights[i]) -
            static_cast<double>(bitladder::to_float(tables[bits].table(r)[code]));
      }
      for (int i = 0; i < cols; ++i)
        for (int j = 0; j < cols; ++j)
          sum +=
              e[static_cast<std::size_t>(i)] * e[static_cast<std::size_t>(j)] *
              (static_cast<double>(moments()[0](i, j)) + (i == j ? damping * diagonal / cols : 0));
    }
    return sum;
  }

  bool sound() const {
    for (int b = tables.min_bits(); b <= tables.max_bits(); ++b)
      for (int r = 0; r < rows; ++r)
        for (int k = 0; k < 1 << b; ++k) {
          const float v = bitladder::to_float(tables[b].table(r)[k]);
          if (!std::isfinite(v)) return false;
          if (k > 0 && v < bitladder::to_float(tables[b].table(r)[k - 1])) return false;
        }
    return true;
  }
};

std::vector<fp16_t> table_of(const std::vector<double>& values) {
  std::vector<fp16_t> t;
  for (double v : values) t.push_back(bitladder::to_fp16(static_cast<float>(v)));
  return t;
}

}  // namespace

TEST_CASE("Cholesky's method solves what it was given and refuses what is not positive definite") {
  support::random random(1);
  for (const std::size_t n : {1u, 2u, 5u, 16u, 33u}) {
    std::vector<double> root(n * n), m(n * n), x(n), b(n);
    for (double& v : root) v = random.normal();
    for (double& v : x) v = random.normal();
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) {
        m[i * n + j] = i == j ? 0.5 : 0;
        for (std::size_t k = 0; k < n; ++k) m[i * n + j] += root[i * n + k] * root[j * n + k];
      }
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) b[i] += m[i * n + j] * x[j];
    CHECK(bitladder::refit::solve_cholesky(m, b));
    for (std::size_t i = 0; i < n; ++i) CHECK(b[i] == doctest::Approx(x[i]).epsilon(1e-8));
  }
  std::vector<double> m{1, 2, 2, 1}, b{1, 1};
  CHECK_FALSE(bitladder::refit::solve_cholesky(m, b));
}

TEST_CASE("the error of a table is e H e^T, at every precision that codes are coarsened to") {
  const case_data d(1, 37, 4, 2);
  bitladder::refit::table_fit fit;
  fit.start(d.moments()[0], {d.weights.data(), nullptr, d.cols});
  fit.gather(d.moments()[0], {d.weights.data(), nullptr, d.cols}, d.codes.data(), 16);
  for (int b = 4; b >= 2; --b) {
    CHECK(fit.error(d.tables[b].data()) == doctest::Approx(d.error(b, 0)).epsilon(1e-4));
    fit.coarsen();
  }
}

TEST_CASE("a fit table is where no entry can move alone for the better") {
  case_data d(1, 64, 3, 3);
  bitladder::refit::table_fit fit;
  fit.start(d.moments()[0], {d.weights.data(), nullptr, d.cols});
  fit.gather(d.moments()[0], {d.weights.data(), nullptr, d.cols}, d.codes.data(), 8);
  std::vector<fp16_t> table(d.tables[3].data(), d.tables[3].data() + 8);
  const double before = fit.error(table.data());
  CHECK(fit.fit(1e-9, table.data()));
  const double after = fit.error(table.data());
  CHECK(after < before);
  for (std::size_t k = 0; k < 8; ++k)
    for (const float step : {-2e-3f, 2e-3f}) {  // some units in the last place of fp16
      std::vector<fp16_t> other = table;
      other[k] = bitladder::to_fp16(bitladder::to_float(other[k]) + step);
      CHECK(fit.error(other.data()) > after);
    }
}

TEST_CASE("entries that would change places become equal, which is then the best") {
  // Two columns that go together: the first wants more than it has, the second less.
  const std::vector<float> h{1, 0, 0, 1};
  const std::vector<float> w{0.5f, 0.25f};
  const std::vector<std::uint8_t> codes{0, 1};
  bitladder::refit::table_fit fit;
  fit.start({h.data(), 2, 2}, {w.data(), nullptr, 2});
  fit.gather({h.data(), 2, 2}, {w.data(), nullptr, 2}, codes.data(), 2);
  std::vector<fp16_t> table = table_of({0.1, 0.9});
  CHECK(fit.fit(1e-9, table.data()));
  CHECK(bitladder::to_float(table[0]) == 0.375f);
  CHECK(bitladder::to_float(table[1]) == 0.375f);
}

TEST_CASE("columns that are fixed add to the error and to no entry") {
  const std::vector<float> h{2, 1, 1, 2};
  const std::vector<float> w{0.5f, 0.25f};  // the second: a quarter too little, and stays so
  const std::vector<std::uint8_t> fixed{0, 1}, codes{1, 0};
  bitladder::refit::table_fit fit;
  fit.start({h.data(), 2, 2}, {w.data(), fixed.data(), 2});
  fit.gather({h.data(), 2, 2}, {w.data(), fixed.data(), 2}, codes.data(), 2);
  std::vector<fp16_t> table = table_of({0, 0.5});
  CHECK(fit.error(table.data()) == doctest::Approx(2 * 0.0625));
  CHECK(fit.fit(1e-9, table.data()));
  // e = (0.5 - t, 0.25): least at 2 (0.5 - t) + 0.25 = 0
  CHECK(bitladder::to_float(table[1]) == doctest::Approx(0.625));
  CHECK(bitladder::to_float(table[0]) == 0.f);
}

TEST_CASE("descent ends where no code can change alone for the better") {
  case_data d(1, 24, 3, 4);
  const std::vector<bitladder::refit::descent_level> levels{{d.tables[2].data(), 2, 2.0},
                                                            {d.tables[3].data(), 3, 1.0}};
  const auto cost = [&] { return 2 * d.error(2, 0) + d.error(3, 0); };
  const double before = cost();
  const bitladder::refit::row_target row{d.weights.data(), nullptr, d.cols};
  bitladder::refit::table_fit fit;
  fit.start(d.moments()[0], row);
  fit.gather(d.moments()[0], row, d.codes.data(), 8);
  bitladder::refit::nested_descent descent;
  const int moved = descent.run(d.moments()[0], row, fit, levels, 50, d.codes.data());
  CHECK(moved > 0);
  const double after = cost();
  CHECK(after < before);
  for (std::size_t c = 0; c < d.codes.size(); ++c) {
    const std::uint8_t own = d.codes[c];
    for (int code = 0; code < 8; ++code) {
      d.codes[c] = static_cast<std::uint8_t>(code);
      CHECK(cost() >= after * (1 - 1e-5));
    }
    d.codes[c] = own;
  }
}

TEST_CASE("values become the nearest that ascend") {
  std::vector<double> v{1, 3, 2, 2, 5, 0};
  bitladder::refit::make_ascending(v, {1, 1, 1, 2, 1, 1});
  const std::vector<double> expected{1, 2.25, 2.25, 2.25, 2.5, 2.5};
  for (std::size_t i = 0; i < v.size(); ++i) CHECK(v[i] == doctest::Approx(expected[i]));
}

TEST_CASE("with codes that stay, every precision that is refit gets better and no other changes") {
  for (const int cols : {5, 32, 77}) {
    case_data d(6, cols, 8, 5 + static_cast<std::uint64_t>(cols));
    const case_data before = d;
    refit_options o;
    o.move_codes = false;
    const refit_report r =
        bitladder::refit_ladder(d.view(), d.moments(), {}, d.code_view(), d.tables, o);
    CHECK(d.codes == before.codes);
    CHECK(r.moved == 0);
    CHECK(d.sound());
    for (int b = 2; b <= 5; ++b) {
      const double was = before.error(b, o.damping), is = d.error(b, o.damping);
      CHECK(is <= was);
      if (cols > 16) CHECK(is < was);
      const auto i = static_cast<std::size_t>(b);
      CHECK(r.before[i] == doctest::Approx(was).epsilon(1e-3));
      CHECK(r.after[i] == doctest::Approx(is).epsilon(1e-3).scale(was));
    }
    for (int b = 6; b <= 8; ++b)
      CHECK(std::equal(d.tables[b].data(), d.tables[b].data() + d.tables[b].size(),
                       before.tables[b].data()));
  }
}

TEST_CASE("with codes that move, the narrow precisions get much better and the wide stay fine") {
  case_data d(8, 96, 8, 6);
  const case_data before = d;
  const refit_options o;
  const refit_report r =
      bitladder::refit_ladder(d.view(), d.moments(), {}, d.code_view(), d.tables, o);
  CHECK(r.moved > 0);
  CHECK(d.sound());
  const double weights[] = {o.narrow_weight, 5, 3, 1};
  double weighted = 0, at_first = 0;
  for (int b = 2; b <= 5; ++b) {
    weighted += weights[b - 2] * d.error(b, o.damping) / before.error(b, o.damping);
    at_first += weights[b - 2];
  }
  CHECK(weighted < 0.9 * at_first);
  CHECK(d.error(2, 0) < 0.85 * before.error(2, 0));
  // Of the wide ones the first may be above the last that was fit, whose errors cancel.
  for (int b = 6; b <= 8; ++b) CHECK(d.error(b, 0) < d.error(b - 2, 0));
}

TEST_CASE("a ladder that ends early, or begins late, is refit as far as it goes") {
  case_data d(3, 40, 3, 12);
  const refit_report r =
      bitladder::refit_ladder(d.view(), d.moments(), {}, d.code_view(), d.tables, {});
  CHECK(r.top_bits == 3);
  CHECK(r.after[2] < r.before[2]);
  CHECK(d.sound());
  CHECK(bitladder::top_bits_of({}, 2, 8) == 5);
  CHECK(bitladder::top_bits_of({}, 6, 8) == 6);
  refit_options o;
  o.top_bits = 3;
  CHECK(bitladder::top_bits_of(o, 2, 8) == 3);
}

TEST_CASE("outliers keep their code and their value") {
  case_data d(4, 40, 8, 7);
  const std::vector<std::int32_t> offsets{0, 2, 2, 3, 3}, columns{3, 17, 39};
  std::vector<fp16_t> values;
  for (const std::size_t i : {0u * 40u + 3u, 0u * 40u + 17u, 2u * 40u + 39u}) {
    d.weights[i] = 3.f;
    values.push_back(bitladder::to_fp16(3.f));
    d.codes[i] = d.codes[(i / 40) * 40 + 3];
  }
  d.codes[17] = d.codes[3];
  const std::uint8_t first = d.codes[3], second = d.codes[2 * 40 + 39];
  const bitladder::sparse_view outliers(offsets.data(), columns.data(), values.data(), 4, 40);
  refit_options o;
  o.top_bits = 2;
  const refit_report r =
      bitladder::refit_ladder(d.view(), d.moments(), outliers, d.code_view(), d.tables, o);
  CHECK(r.moved > 0);
  CHECK(d.sound());
  CHECK(d.codes[3] == first);
  CHECK(d.codes[17] == first);
  CHECK(d.codes[2 * 40 + 39] == second);
  for (int row = 0; row < 4; ++row)  // no table reaches for what is kept beside
    CHECK(bitladder::to_float(d.tables[2].table(row)[3]) < 1.f);
}

TEST_CASE("the result does not depend on threads, and rows take the moments of their group") {
  case_data one(6, 33, 6, 8), many = one, parts = one;
  const std::vector<float> other = make_moments(33, 50, 99);
  const std::vector<matrix_view<const float>> moments{{one.h.data(), 33, 33},
                                                      {other.data(), 33, 33}};
  const refit_options o;
  static_cast<void>(
      bitladder::refit_ladder(one.view(), moments, {}, one.code_view(), one.tables, o));
  bitladder::thread_pool pool(3);
  static_cast<void>(
      bitladder::refit_ladder(many.view(), moments, {}, many.code_view(), many.tables, o, &pool));
  CHECK(one.codes == many.codes);
  static_cast<void>(
      bitladder::refit_ladder(parts.view(), {moments[1]}, {}, parts.code_view(), parts.tables, o));
  for (int b = 2; b <= 6; ++b) {
    const std::size_t size = one.tables[b].size();
    CHECK(std::equal(one.tables[b].data(), one.tables[b].data() + size, many.tables[b].data()));
    CHECK(std::equal(one.tables[b].data() + size / 2, one.tables[b].data() + size,
                     parts.tables[b].data() + size / 2));
  }
}

TEST_CASE("inputs that never come, a constant row and few columns do no harm") {
  case_data d(3, 20, 8, 9);
  for (int c = 0; c < 20; ++c) {
    d.weights[static_cast<std::size_t>(20 + c)] = 0.25f;
    for (int k : {4, 11})
      d.h[static_cast<std::size_t>(k * 20 + c)] = d.h[static_cast<std::size_t>(c * 20 + k)] = 0;
  }
  static_cast<void>(
      bitladder::refit_ladder(d.view(), d.moments(), {}, d.code_view(), d.tables, refit_options()));
  CHECK(d.sound());
  const case_data before = d;
  std::fill(d.h.begin(), d.h.end(), 0.f);
  const refit_report r =
      bitladder::refit_ladder(d.view(), d.moments(), {}, d.code_view(), d.tables, refit_options());
  CHECK(r.moved == 0);
  CHECK(d.codes == before.codes);
  case_data narrow(2, 1, 8, 10);
  static_cast<void>(bitladder::refit_ladder(narrow.view(), narrow.moments(), {}, narrow.code_view(),
                                            narrow.tables, refit_options()));
  CHECK(narrow.sound());
}

TEST_CASE("what does not fit is said, and nothing is changed") {
  case_data d(4, 10, 8, 11);
  const case_data before = d;
  const auto refuse = [&](const std::vector<matrix_view<const float>>& moments,
                          const refit_options& o, const char* text) {
    std::string found = "nothing";
    try {
      static_cast<void>(bitladder::refit_ladder(d.view(), moments, {}, d.code_view(), d.tables, o));
    } catch (const bitladder::error& e) {
      found = e.what();
    }
    CHECK_MESSAGE(found.find(text) != std::string::npos, found);
    CHECK(d.codes == before.codes);
  };
  refuse({}, {}, "found 0");
  refuse({{d.h.data(), 9, 9}}, {}, "expected 10 x 10, found 9 x 9");
  refuse({3, d.moments()[0]}, {}, "which divide 4, found 3");
  d.h[7] = std::numeric_limits<float>::quiet_NaN();
  refuse(d.moments(), {}, "row 0, column 7");
  d.h = before.h;
  d.h[11] = -1;
  refuse(d.moments(), {}, ">= 0 at row 1, column 1");
  d.h = before.h;
  refit_options o;
  o.top_bits = 9;
  refuse(d.moments(), o, "top_bits");
  o = {};
  o.rounds = 0;
  refuse(d.moments(), o, "rounds");
  d.weights[13] = std::numeric_limits<float>::infinity();
  refuse(d.moments(), {}, "weight at row 1, column 3");
}
