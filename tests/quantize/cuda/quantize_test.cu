// SPDX-License-Identifier: MIT
// The oracle is the quantizer of the host: every byte must agree. Random data: seed 900.
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/pack.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/quantize/cuda/quantize.cuh>
#include <bitladder/quantize/quantize.hpp>

#include <support/has_device.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstring>
#include <limits>
#include <quantize/rows.hpp>
#include <string>
#include <vector>

using namespace bitladder;
namespace bc = bitladder::cuda;  // the toolkit has a namespace cuda of its own

namespace {

template <class Value>
Value to_value(float x);
template <>
float to_value<float>(float x) {
  return x;
}
template <>
fp16_t to_value<fp16_t>(float x) {
  return to_fp16(x);
}
template <>
bf16_t to_value<bf16_t>(float x) {
  return to_bf16(x);
}

/// Kinds of rows of quantize/rows.hpp with sensitivities down to nothing: a border may lie anywhere
/// among weights that do not count, and rounding decides. The host narrows the search for borders
/// first, so it rounds in other places.
bool has_light_weights(int kind) { return kind == 1 || kind == 9; }

/// Rows of all kinds in turn, with `light` sensitivities or without.
template <class Value>
struct matrix {
  int rows, cols;
  std::vector<Value> w;
  std::vector<float> s;

  matrix(int row_count, int col_count, support::random& rng, bool light = false)
      : rows(row_count), cols(col_count) {
    for (int r = 0, kind = 0; r < rows; ++kind) {
      if (has_light_weights(kind % quantize_test::row_kinds) != light) continue;
      ++r;
      const quantize_test::row_data row =
          quantize_test::make_row(rng, cols, kind % quantize_test::row_kinds);
      for (const float v : row.values) w.push_back(to_value<Value>(v));
      s.insert(s.end(), row.sensitivities.begin(), row.sensitivities.end());
    }
  }
  matrix_view<const Value> weights() const { return {w.data(), rows, cols}; }
  sensitivity sens(bool weighted) const {
    return weighted ? sensitivity::from_values({s.data(), rows, cols})
                    : sensitivity::uniform(rows, cols);
  }
};

std::string difference(const sparse_matrix& a, const sparse_matrix& b) {
  const sparse_view x = a.view(), y = b.view();
  if (x.rows() != y.rows() || x.cols() != y.cols() || x.count() != y.count())
    return "number of outliers";
  for (int r = 0; r < x.rows(); ++r)
    if (x.end(r) != y.end(r)) return "outliers of row " + std::to_string(r);
  for (int i = 0; i < x.count(); ++i)
    if (x.columns()[i] != y.columns()[i] || x.values()[i] != y.values()[i])
      return "outlier " + std::to_string(i);
  return "";
}

/// What differs first; "" if nothing does.
std::string difference(const quantized_matrix& a, const quantized_matrix& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) return "shapes";
  for (int r = 0; r < a.rows(); ++r)
    for (int c = 0; c < a.cols(); ++c)
      if (a.codes()(r, c) != b.codes()(r, c))
        return "code of row " + std::to_string(r) + ", column " + std::to_string(c);
  for (int bits = a.min_bits(); bits <= a.max_bits(); ++bits) {
    const codebook_view x = a.codebook(bits), y = b.codebook(bits);
    for (std::size_t i = 0; i < x.size(); ++i)
      if (x.data()[i] != y.data()[i])
        return "table of " + std::to_string(bits) + " bits, entry " + std::to_string(i);
  }
  const std::string apart = difference(a.outliers(), b.outliers());
  if (!apart.empty()) return apart;
  if (a.report().weighted_variance != b.report().weighted_variance) return "variance";
  if (a.report().weighted_error != b.report().weighted_error) return "errors";
  return "";
}

template <class Value>
std::string compare(const matrix<Value>& m, bool weighted, const kmeans_options& o) {
  const sensitivity s = m.sens(weighted);
  return difference(quantize(m.weights(), s, o), bc::quantize(m.weights(), s, o));
}

kmeans_options ladder(int min_bits, int seed_bits, int max_bits) {
  kmeans_options o;
  o.min_bits = min_bits;
  o.seed_bits = seed_bits;
  o.max_bits = max_bits;
  return o;
}

}  // namespace

TEST_CASE_TEMPLATE("the card finds the codes and tables of the host, bit for bit", Value, float,
                   fp16_t, bf16_t) {
  if (!support::has_device()) return;  // TEST_CASE_TEMPLATE takes no skip()
  support::random rng(900);
  for (const int cols : {1, 5, 33, 160, 1024, 1056, 4096}) {
    const matrix<Value> m(cols > 1000 ? 13 : 30, cols, rng);
    for (const bool weighted : {true, false}) {
      CAPTURE(cols);
      CAPTURE(weighted);
      CHECK(compare(m, weighted, ladder(2, 2, 8)) == "");
      CHECK(compare(m, weighted, ladder(2, 3, 8)) == "");
    }
  }
}

TEST_CASE("every ladder, lookahead and number of column groups" *
          doctest::skip(!support::has_device())) {
  support::random rng(901);
  const matrix<float> m(20, 960, rng);
  for (int max_bits = 1; max_bits <= 8; ++max_bits)
    for (int seed_bits = 1; seed_bits <= max_bits; ++seed_bits) {
      kmeans_options o = ladder(1, seed_bits, max_bits);
      o.groups = seed_bits % 2 == 0 ? 3 : 1;
      o.lookahead = max_bits % 3;
      CAPTURE(max_bits);
      CAPTURE(seed_bits);
      CHECK(compare(m, true, o) == "");
    }
}

TEST_CASE("codes packed on the card are the host's planes" *
          doctest::skip(!support::has_device())) {
  support::random rng(906);
  bc::quantizer card;
  for (const int cols : {1, 32, 33, 160, 1056}) {
    const matrix<fp16_t> m(21, cols, rng);
    const sensitivity s = m.sens(true);
    for (const int max_bits : {3, 8}) {
      const kmeans_options o = ladder(2, 2, max_bits);
      const quantized_matrix want = quantize(m.weights(), s, o);
      const bitplane_tensor planes = pack(want.codes(), max_bits);
      const bc::packed_matrix is = card.quantize_packed(m.weights(), s, o);
      CAPTURE(cols);
      CAPTURE(max_bits);
      REQUIRE(is.planes.layout() == planes.layout());
      CHECK(std::memcmp(is.planes.data(), planes.data(),
                        planes.layout().total_words() * sizeof(std::uint32_t)) == 0);
      CHECK(is.report.weighted_error == want.report().weighted_error);
      for (int bits = 2; bits <= max_bits; ++bits)
        CHECK(std::memcmp(is.codebooks[bits].data(), want.codebook(bits).data(),
                          want.codebook(bits).size() * sizeof(fp16_t)) == 0);
    }
  }
}

TEST_CASE_TEMPLATE("outliers are the host's, and so is what they leave to the tables", Value, float,
                   fp16_t, bf16_t) {
  if (!support::has_device()) return;  // TEST_CASE_TEMPLATE takes no skip()
  support::random rng(907);
  thread_pool pool(3);
  bc::quantizer card(&pool);
  for (const int cols : {6, 33, 192, 1056}) {
    const matrix<Value> m(25, cols, rng);
    for (const bool weighted : {true, false})
      for (const int groups : {1, 3}) {
        kmeans_options o = ladder(2, 2, 8);
        o.groups = groups;
        CAPTURE(cols);
        CAPTURE(weighted);
        CAPTURE(groups);
        const sensitivity s = m.sens(weighted);
        // All of a row may be outliers, and all that have a sensitivity.
        for (const outlier_options& outliers : {outlier_options{0.05, 0.4}, outlier_options{3, 10},
                                                outlier_options{40, 0}, outlier_options{0, 100}}) {
          o.outliers = outliers;
          CAPTURE(outliers.sensitive);
          const quantized_matrix host = quantize(m.weights(), s, o);
          CHECK(difference(host, card.quantize(m.weights(), s, o)) == "");
          const bc::packed_matrix is = card.quantize_packed(m.weights(), s, o);
          const bitplane_tensor planes = pack(host.codes(), 8);
          CHECK(std::memcmp(is.planes.data(), planes.data(),
                            planes.layout().total_words() * sizeof(std::uint32_t)) == 0);
          CHECK(difference(is.outliers, host.outliers()) == "");
        }
      }
  }
}

TEST_CASE("a bad outlier is refused as on the host, and the next matrix is none the worse" *
          doctest::skip(!support::has_device())) {
  support::random rng(908);
  matrix<float> m(9, 70, rng);
  kmeans_options o = ladder(2, 2, 8);
  o.outliers.large = 1;
  bc::quantizer card;
  const float was = m.w[75];
  m.w[75] = 1e6f;
  std::string text;
  try {
    card.quantize(m.weights(), m.sens(true), o);
  } catch (const error& e) {
    text = e.what();
  }
  CHECK(text.find("outliers: weight at row 1, column 5") != std::string::npos);
  m.w[75] = was;
  CHECK(difference(quantize(m.weights(), m.sens(true), o),
                   card.quantize(m.weights(), m.sens(true), o)) == "");
}

TEST_CASE("weights that count for nothing may change sides, which costs nothing" *
          doctest::skip(!support::has_device())) {
  support::random rng(905);
  for (const int cols : {160, 1056, 4096}) {
    const matrix<float> m(12, cols, rng, true);
    const sensitivity s = m.sens(true);
    const kmeans_options o = ladder(2, 3, 8);
    const quantized_matrix host = quantize(m.weights(), s, o);
    const quantized_matrix card = bc::quantize(m.weights(), s, o);
    for (int bits = 2; bits <= 8; ++bits) {
      CAPTURE(cols);
      CAPTURE(bits);
      // A weight of 2^-44 of its row moves an error by as much; a cut that rounding chose otherwise
      // is as good at its own precision, and lookahead lets later ones differ a little more.
      const double unit = host.report().relative_error(bits);
      CHECK(card.report().relative_error(bits) ==
            doctest::Approx(unit).epsilon(bits <= 3 ? 1e-9 : 1e-3));
    }
  }
}

TEST_CASE("long rows, whose sums do not fit in shared memory" *
          doctest::skip(!support::has_device())) {
  support::random rng(902);
  for (const int cols : {11008, 28672}) {
    const matrix<bf16_t> m(8, cols, rng);
    CAPTURE(cols);
    CHECK(compare(m, true, ladder(2, 3, 8)) == "");
  }
}

TEST_CASE("more rows than fit at once, and rows apart from each other" *
          doctest::skip(!support::has_device())) {
  support::random rng(903);
  const int rows = 600, cols = 96, stride = 101;
  const matrix<float> m(rows, stride, rng);
  const matrix_view<const float> w(m.w.data(), rows, cols, stride);
  const sensitivity s = sensitivity::from_values({m.s.data(), rows, cols, stride});
  const kmeans_options o = ladder(2, 2, 5);
  CHECK(difference(quantize(w, s, o), bc::quantize(w, s, o)) == "");
}

TEST_CASE("matrices of all sizes one after another, with threads or without" *
          doctest::skip(!support::has_device())) {
  support::random rng(909);
  thread_pool pool(4);
  bc::quantizer alone, helped(&pool);
  for (const int rows : {3, 4100, 17}) {
    const matrix<bf16_t> m(rows, 1056, rng);  // 4 million elements go at once
    const sensitivity s = m.sens(true);
    const kmeans_options o = ladder(3, 3, 8);
    const quantized_matrix host = quantize(m.weights(), s, o, &pool);
    CHECK(difference(host, alone.quantize(m.weights(), s, o)) == "");
    CHECK(difference(host, helped.quantize(m.weights(), s, o)) == "");
  }
}

TEST_CASE("what cannot be quantized is refused as on the host" *
          doctest::skip(!support::has_device())) {
  support::random rng(904);
  const auto message = [](const matrix<float>& m, const kmeans_options& o) -> std::string {
    try {
      bc::quantize(m.weights(), m.sens(true), o);
    } catch (const error& e) {
      return e.what();
    }
    return "no error";
  };
  matrix<float> m(4, 64, rng);
  kmeans_options published;
  published.method = quantize_method::published;
  CHECK(message(m, published).find("expected method exact, found published") != std::string::npos);
  CHECK(message(m, ladder(3, 2, 8)).find("min_bits 3") != std::string::npos);
  m.w[70] = std::numeric_limits<float>::infinity();
  CHECK(message(m, {}).find("weight at row 1, column 6") != std::string::npos);
  m.w[70] = 0;
  m.s[130] = -1;
  CHECK(message(m, {}).find("sensitivity at row 2, column 2") != std::string::npos);
}

TEST_CASE("a matrix without rows or columns has nothing to quantize" *
          doctest::skip(!support::has_device())) {
  const matrix_view<const float> none(nullptr, 0, 0);
  CHECK(bc::quantize(none, sensitivity::uniform(0, 0), {}).rows() == 0);
}
