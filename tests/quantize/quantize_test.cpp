// SPDX-License-Identifier: MIT
// Random data: seed 20.
#include <bitladder/core/pack.hpp>
#include <bitladder/quantize/quantize.hpp>

#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

using namespace bitladder;

namespace {

struct matrix {
  int rows, cols;
  std::vector<float> w, s;
  matrix_view<const float> weights() const { return {w.data(), rows, cols}; }
  sensitivity sens() const { return sensitivity::from_values({s.data(), rows, cols}); }
};

matrix make(int rows, int cols) {
  support::random r(20);
  matrix m{rows, cols, {}, {}};
  for (int i = 0; i < rows * cols; ++i) {
    m.w.push_back(static_cast<float>(0.02 * r.student_t()));
    m.s.push_back(static_cast<float>(r.chi_squared()));
  }
  return m;
}

bool same(const quantized_matrix& a, const quantized_matrix& b) {
  bool equal = a.rows() == b.rows() && a.cols() == b.cols() && a.min_bits() == b.min_bits() &&
               a.max_bits() == b.max_bits();
  for (int r = 0; equal && r < a.rows(); ++r)
    equal =
        std::memcmp(a.codes().row(r), b.codes().row(r), static_cast<std::size_t>(a.cols())) == 0;
  for (int bits = a.min_bits(); equal && bits <= a.max_bits(); ++bits)
    equal = std::memcmp(a.codebook(bits).data(), b.codebook(bits).data(),
                        a.codebook(bits).size() * sizeof(fp16_t)) == 0;
  return equal && a.report().weighted_error == b.report().weighted_error &&
         a.report().weighted_variance == b.report().weighted_variance;
}

std::string message_of(const matrix& m, const kmeans_options& o = {}) {
  try {
    thread_pool pool(3);
    quantize(m.weights(), m.sens(), o, &pool);
  } catch (const error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("the result is the same bytes for any number of threads") {
  const matrix m = make(37, 161);
  for (const quantize_method method : {quantize_method::exact, quantize_method::published}) {
    kmeans_options o;
    o.method = method;
    const quantized_matrix alone = quantize(m.weights(), m.sens(), o);
    for (const int threads : {1, 2, 5}) {
      thread_pool pool(threads);
      CHECK(same(alone, quantize(m.weights(), m.sens(), o, &pool)));
    }
  }
}

TEST_CASE("the report is what a plain loop over decoded weights finds") {
  const matrix m = make(9, 132);
  for (const int groups : {1, 3, 4}) {
    kmeans_options o;
    o.groups = groups;
    const quantized_matrix q = quantize(m.weights(), m.sens(), o);
    CHECK(q.groups() == groups);
    double variance = 0;
    const int width = m.cols / groups;
    for (int r = 0; r < m.rows; ++r) {
      for (int g = 0; g < groups; ++g) {
        double w = 0, s = 0;
        for (int c = g * width; c < (g + 1) * width; ++c) {
          const std::size_t i = static_cast<std::size_t>(r * m.cols + c);
          w += static_cast<double>(m.s[i]);
          s += static_cast<double>(m.s[i]) * static_cast<double>(m.w[i]);
        }
        for (int c = g * width; c < (g + 1) * width; ++c) {
          const std::size_t i = static_cast<std::size_t>(r * m.cols + c);
          variance +=
              static_cast<double>(m.s[i]) * std::pow(static_cast<double>(m.w[i]) - s / w, 2);
        }
      }
    }
    CHECK(q.report().weighted_variance == doctest::Approx(variance));
    double previous = variance;
    for (int b = 2; b <= 8; ++b) {
      double e = 0;
      for (int r = 0; r < m.rows; ++r)
        for (int c = 0; c < m.cols; ++c) {
          const std::size_t i = static_cast<std::size_t>(r * m.cols + c);
          const fp16_t t = q.codebook(b).table(r, c / width)[q.codes()(r, c) >> (8 - b)];
          e += static_cast<double>(m.s[i]) *
               std::pow(static_cast<double>(m.w[i]) - static_cast<double>(to_float(t)), 2);
        }
      CHECK(q.report().weighted_error[static_cast<std::size_t>(b)] ==
            doctest::Approx(e).epsilon(1e-6));
      CHECK(q.report().relative_error(b) == doctest::Approx(e / variance).epsilon(1e-6));
      CHECK(e < previous);
      previous = e;
    }
  }
}

TEST_CASE("a column group is quantized as a matrix of its own") {
  const matrix m = make(5, 96);
  kmeans_options o;
  o.groups = 3;
  const quantized_matrix q = quantize(m.weights(), m.sens(), o);
  o.groups = 1;
  for (int g = 0; g < 3; ++g) {
    const quantized_matrix part =
        quantize(matrix_view<const float>(m.w.data() + g * 32, 5, 32, 96),
                 sensitivity::from_values({m.s.data() + g * 32, 5, 32, 96}), o);
    for (int r = 0; r < 5; ++r) {
      CHECK(std::equal(part.codes().row(r), part.codes().row(r) + 32, q.codes().row(r) + g * 32));
      CHECK(std::equal(part.codebook(4).table(r), part.codebook(4).table(r) + 16,
                       q.codebook(4).table(r, g)));
    }
  }
}

TEST_CASE("16-bit weights give what their values as floats give") {
  const matrix m = make(6, 200);
  std::vector<fp16_t> half;
  std::vector<bf16_t> brain;
  matrix from_half = m, from_brain = m;
  for (std::size_t i = 0; i < m.w.size(); ++i) {
    half.push_back(to_fp16(m.w[i]));
    brain.push_back(to_bf16(m.w[i]));
    from_half.w[i] = to_float(half[i]);
    from_brain.w[i] = to_float(brain[i]);
  }
  const kmeans_options o;
  CHECK(same(quantize(matrix_view<const fp16_t>(half.data(), 6, 200), m.sens(), o),
             quantize(from_half.weights(), m.sens(), o)));
  CHECK(same(quantize(matrix_view<bf16_t>(brain.data(), 6, 200), m.sens(), o),
             quantize(from_brain.weights(), m.sens(), o)));
}

TEST_CASE("codes pack into planes whose top bits are the narrower codes") {
  const matrix m = make(4, 70);
  const quantized_matrix q = quantize(m.weights(), m.sens(), {});
  const bitplane_tensor planes = pack(q.codes(), q.max_bits());
  for (int b = 2; b <= 8; ++b)
    for (int r = 0; r < 4; ++r)
      for (int c = 0; c < 70; ++c) CHECK(planes.view().code(r, c, b) == q.codes()(r, c) >> (8 - b));
}

TEST_CASE("empty and thin matrices") {
  const kmeans_options o;
  const quantized_matrix no_rows =
      quantize(matrix_view<const float>(nullptr, 0, 8), sensitivity::uniform(0, 8), o);
  CHECK(no_rows.rows() == 0);
  CHECK(no_rows.cols() == 8);
  const quantized_matrix no_cols =
      quantize(matrix_view<const float>(nullptr, 3, 0), sensitivity::uniform(3, 0), o);
  CHECK(no_cols.rows() == 3);
  CHECK(no_cols.cols() == 0);
  CHECK(no_cols.report().relative_error(4) == 0);
  const std::vector<float> one{0.5f, -2.f};
  const quantized_matrix thin =
      quantize(matrix_view<const float>(one.data(), 2, 1), sensitivity::uniform(2, 1), o);
  for (int b = 2; b <= 8; ++b)
    for (int r = 0; r < 2; ++r)
      CHECK(to_float(thin.codebook(b).table(r)[thin.codes()(r, 0) >> (8 - b)]) ==
            one[static_cast<std::size_t>(r)]);
  CHECK(thin.report().relative_error(8) == 0);
}

TEST_CASE("the largest weights that fp16 holds are kept") {
  const std::vector<float> w{65504.f, -65504.f, 0.f, 1e-7f};
  const quantized_matrix q =
      quantize(matrix_view<const float>(w.data(), 1, 4), sensitivity::uniform(1, 4), {});
  CHECK(to_float(q.codebook(8).table(0)[q.codes()(0, 0)]) == 65504.f);
  CHECK(to_float(q.codebook(8).table(0)[q.codes()(0, 1)]) == -65504.f);
}

TEST_CASE("bad weights and sensitivities are named with row and column") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  matrix m = make(40, 33);
  CHECK(message_of(m) == "no error");
  m.w[7 * 33 + 5] = nan;
  m.w[30 * 33] = inf;
  CHECK(message_of(m) ==
        "quantize: weight at row 7, column 5: expected a finite number within the fp16 range, "
        "+-65504, found nan");
  m.w[7 * 33 + 5] = 1e5f;
  CHECK(message_of(m).find("row 7, column 5") != std::string::npos);
  m = make(40, 33);
  m.s[2 * 33 + 32] = -1;
  m.s[39 * 33 + 32] = inf;
  CHECK(message_of(m) ==
        "quantize: sensitivity at row 2, column 32: expected a finite number >= 0, found -1");
}

TEST_CASE("shapes and options out of range are refused with a sentence") {
  const matrix m = make(2, 32);
  CHECK_THROWS_WITH_AS(quantize(m.weights(), sensitivity::uniform(2, 31), {}),
                       "quantize: expected sensitivities of 2 x 32, found 2 x 31", error);
  CHECK_THROWS_AS(
      quantize(matrix_view<const float>(nullptr, 2, 32), sensitivity::uniform(2, 32), {}), error);
  const auto refused = [&](auto change) {
    kmeans_options o;
    change(o);
    return message_of(m, o);
  };
  CHECK(refused([](kmeans_options& o) { o.min_bits = 0; }) ==
        "quantize options: expected 1 <= min_bits <= seed_bits <= max_bits <= 8, found min_bits 0, "
        "seed_bits 2, max_bits 8");
  CHECK(refused([](kmeans_options& o) { o.seed_bits = 1; }).find("seed_bits 1") !=
        std::string::npos);
  CHECK(refused([](kmeans_options& o) { o.max_bits = 9; }).find("max_bits 9") != std::string::npos);
  CHECK(refused([](kmeans_options& o) { o.groups = 5; }) ==
        "quantize options: expected groups >= 1 that divide the 32 columns, found 5");
  CHECK(refused([](kmeans_options& o) { o.groups = 0; }).find("found 0") != std::string::npos);
  CHECK(refused([](kmeans_options& o) {
          o.method = static_cast<quantize_method>(7);
        }).find("value 7") != std::string::npos);
}

TEST_CASE("every ladder from 1 to 8 bits can be built") {
  const matrix m = make(2, 300);
  for (int seed = 1; seed <= 8; ++seed) {
    kmeans_options o;
    o.min_bits = 1;
    o.seed_bits = seed;
    const quantized_matrix q = quantize(m.weights(), m.sens(), o);
    double previous = q.report().weighted_variance;
    for (int b = 1; b <= 8; ++b) {
      CHECK(q.report().weighted_error[static_cast<std::size_t>(b)] < previous);
      previous = q.report().weighted_error[static_cast<std::size_t>(b)];
    }
  }
}
