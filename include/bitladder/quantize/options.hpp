// SPDX-License-Identifier: MIT
// What a caller decides about quantization: the ladder's precisions, column groups and the method.
// Tested by tests/quantize/quantize_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/quantize/outliers.hpp>

#include <cstdint>
#include <string>

namespace bitladder {
inline namespace v0_1 {

/// How codebooks are found.
enum class quantize_method : std::uint8_t {
  exact,      ///< the optimum at the seed, and the best split of every cluster above it
  published,  ///< Any-Precision LLM: greedy k-means++, Lloyd, local split search; for comparison
};

/// The name that command lines and reports use.
constexpr const char* to_string(quantize_method m) noexcept {
  return m == quantize_method::exact ? "exact" : "published";
}

/// Options of quantize(). The ladder is best at `seed_bits`, where k-means is solved; precisions
/// above are made by splitting each cluster in two, those below by merging neighbours.
struct kmeans_options {
  /// min_bits..max_bits. Measured by seed_sweep.py on the bundled model, 2 against 3: perplexity
  /// 18% lower at 2 bits, 1% lower to 2% higher at 3, within 2% above; so the narrowest one by
  /// default.
  int seed_bits = 2;
  int min_bits = 2;  ///< 1..seed_bits, the narrowest codebook
  int max_bits = 8;  ///< seed_bits..8, the width of codes
  int groups = 1;    ///< equal contiguous column groups of a row, each with its own tables
  /// Of the exact method, above the seed: 0 cuts each cluster where the error falls most at once;
  /// more weighs the error one bit further as well. Measured by quantize_bench at seed 3, 3 against
  /// 0: error +0.4% at 4 bits, -1.5% at 5, -3% at 6, -4% at 7, -6% at 8.
  double lookahead = 3;
  quantize_method method = quantize_method::exact;
  std::uint64_t random_state = 0;  ///< of the published method; every row starts from it
  outlier_options outliers;        ///< weights kept beside the codes; none unless asked for
};

/// @throws error naming the option, what was expected and what was found
inline void validate(const kmeans_options& o, int cols) {
  const auto fail = [](const std::string& text) {
    throw error(status::invalid_argument, "quantize options: " + text);
  };
  if (o.min_bits < 1 || o.min_bits > o.seed_bits || o.seed_bits > o.max_bits || o.max_bits > 8)
    fail("expected 1 <= min_bits <= seed_bits <= max_bits <= 8, found min_bits " +
         std::to_string(o.min_bits) + ", seed_bits " + std::to_string(o.seed_bits) + ", max_bits " +
         std::to_string(o.max_bits));
  if (o.groups < 1 || cols % o.groups != 0)
    fail("expected groups >= 1 that divide the " + std::to_string(cols) + " columns, found " +
         std::to_string(o.groups));
  if (!(o.lookahead >= 0 && o.lookahead <= 1000))
    fail("expected a lookahead of 0 to 1000, found " + std::to_string(o.lookahead));
  if (o.method != quantize_method::exact && o.method != quantize_method::published)
    fail("expected method exact or published, found value " +
         std::to_string(static_cast<int>(o.method)));
  validate(o.outliers);
}

}  // namespace v0_1
}  // namespace bitladder
