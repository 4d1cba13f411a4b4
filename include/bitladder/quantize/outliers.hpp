// SPDX-License-Identifier: MIT
// Which weights of a matrix are kept as they are beside its codes, and no longer burden its tables
// (dense-and-sparse: Kim et al., "SqueezeLLM", arXiv 2306.07629, section 4.2): first those that
// matter most, then, of the others, the greatest in magnitude. As many as are asked for, exactly;
// of equal ones the first in row order. Tested by tests/quantize/outliers_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/quantize/sensitivity.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// Which weights matter most.
enum class outlier_rule : std::uint8_t {
  /// Those of the greatest sensitivity * weight^2: what the loss loses, to second order, without
  /// them (LeCun, Denker, Solla, "Optimal Brain Damage", 1989). Measured with 0.05 + 0.4% on the
  /// bundled model, 30 windows of the held-out book, against the other rule: perplexity 75.3 for
  /// 79.2 at 2 bits, 41.1 for 41.9 at 3, 37.2 for 37.5 at 4; without outliers 86.4, 43.9, 37.7.
  saliency,
  sensitivity,  ///< those of the greatest sensitivity: SqueezeLLM's
};

/// How many outliers, in percent of a matrix's weights. SqueezeLLM has 0.05 and 0.4.
struct outlier_options {
  double sensitive = 0;  ///< that matter most; by magnitude too where sensitivities are alike
  double large = 0;      ///< of the greatest magnitude, of what is left
  /// Where not negative, that many in place of `large` percent: for a rule that weighs one matrix
  /// against another.
  std::int64_t large_count = -1;
  outlier_rule rule = outlier_rule::saliency;

  bool any() const { return sensitive > 0 || large > 0 || large_count > 0; }
};

/// How many weights of a matrix, and by which rule the first.
struct outlier_counts {
  std::int64_t sensitive = 0, large = 0;
  outlier_rule rule = outlier_rule::saliency;
  std::int64_t all() const { return sensitive + large; }
};

/// @throws error naming the option, what was expected and what was found
inline void validate(const outlier_options& o) {
  const auto fail = [](const char* name, double found) {
    std::ostringstream text;
    text << "outlier options: expected 0 to 100 percent of " << name << " weights, found " << found;
    throw error(status::invalid_argument, text.str());
  };
  if (!(o.sensitive >= 0 && o.sensitive <= 100)) fail("sensitive", o.sensitive);
  if (!(o.large >= 0 && o.large <= 100)) fail("large", o.large);
  if (o.rule != outlier_rule::saliency && o.rule != outlier_rule::sensitivity)
    throw error(status::invalid_argument,
                "outlier options: expected rule saliency or sensitivity, found value " +
                    std::to_string(static_cast<int>(o.rule)));
}

/// Percentages as numbers of weights: rounded to nearest, never more than there are.
/// @param uniform whether there are no sensitivities to choose by
/// @throws error for options out of range, or more outliers than 31 bits count
inline outlier_counts count_outliers(const outlier_options& o, int rows, int cols, bool uniform) {
  validate(o);
  const std::int64_t weights = static_cast<std::int64_t>(rows) * cols;
  const auto share = [weights](double percent) {
    return std::min<std::int64_t>(std::llround(percent / 100 * static_cast<double>(weights)),
                                  weights);
  };
  outlier_counts n{share(o.sensitive), o.large_count < 0 ? share(o.large) : o.large_count, o.rule};
  n.large = std::min(n.large, weights - n.sensitive);
  if (n.all() > std::numeric_limits<std::int32_t>::max())
    throw error(status::invalid_argument,
                "outlier options: expected at most 2^31 - 1 outliers of "
                "a matrix, found " +
                    std::to_string(n.all()));
  if (uniform) n = {0, n.all(), o.rule};
  return n;
}

namespace detail {

/// Columns of some weights, by row and rising.
struct chosen_weights {
  std::vector<std::int32_t> offsets, columns;
  explicit chosen_weights(int rows) : offsets(static_cast<std::size_t>(rows) + 1, 0) {}

  const std::int32_t* begin(int r) const {
    return columns.data() + offsets[static_cast<std::size_t>(r)];
  }
  const std::int32_t* end(int r) const {
    return columns.data() + offsets[static_cast<std::size_t>(r) + 1];
  }
};

/// An integer that orders as the magnitude does.
inline std::uint32_t magnitude_key(float x) { return bits_of(x) & 0x7fffffffu; }

/// Chooses the `wanted` weights of the greatest keys among those not in `taken`: two passes count
/// the digits of keys, so that the smallest key that is in is known; a third counts what each row
/// gives, a fourth collects it.
class outlier_choice {
 public:
  /// @param keys `keys(r, out)` writes the keys of a row; [cols]
  template <class Keys>
  static chosen_weights choose(int rows, int cols, const Keys& keys, const chosen_weights& taken,
                               std::int64_t wanted, thread_pool* pool) {
    outlier_choice c(rows, cols, taken, pool);
    chosen_weights chosen(rows);
    if (wanted <= 0) return chosen;
    std::int64_t left = wanted;
    const std::uint32_t high = c.digit_of(
        keys, left, [](std::uint32_t key) { return static_cast<std::int32_t>(key >> 16); });
    const std::uint32_t low = c.digit_of(keys, left, [high](std::uint32_t key) {
      return key >> 16 == high ? static_cast<std::int32_t>(key & 0xffffu) : -1;
    });
    c.collect(keys, high << 16 | low, left, chosen);
    return chosen;
  }

 private:
  static constexpr std::size_t digits = 1 << 16;

  outlier_choice(int rows, int cols, const chosen_weights& taken, thread_pool* pool)
      : rows_(rows), cols_(cols), taken_(taken), pool_(pool) {}

  template <class Body>
  void for_rows(const Body& body) const {
    const std::int64_t grain = std::max<std::int64_t>(1, (std::int64_t{1} << 20) / cols_);
    parallel_for(pool_, rows_, grain, [&](std::int64_t begin, std::int64_t end) {
      body(static_cast<int>(begin), static_cast<int>(end));
    });
  }

  /// The digit of the `left`-th greatest key.
  /// @param digit of a key, or -1 if it is not among those to count
  /// @param left becomes how many of that digit are wanted
  template <class Keys, class Digit>
  std::uint32_t digit_of(const Keys& keys, std::int64_t& left, const Digit& digit) const {
    std::vector<std::int64_t> count(digits, 0);
    std::mutex mutex;
    for_rows([&](int begin, int end) {
      std::vector<std::int32_t> here(digits, 0);
      std::vector<std::uint32_t> row(static_cast<std::size_t>(cols_));
      const auto add = [&](std::uint32_t key, std::int32_t n) {
        const std::int32_t d = digit(key);
        if (d >= 0) here[static_cast<std::size_t>(d)] += n;
      };
      for (int r = begin; r < end; ++r) {
        keys(r, row.data());
        for (const std::uint32_t key : row) add(key, 1);
        for (const std::int32_t* c = taken_.begin(r); c != taken_.end(r); ++c)
          add(row[static_cast<std::size_t>(*c)], -1);
      }
      const std::lock_guard<std::mutex> lock(mutex);
      for (std::size_t d = 0; d < digits; ++d) count[d] += here[d];
    });
    std::size_t d = digits - 1;
    for (; d > 0 && count[d] < left; --d) left -= count[d];
    return static_cast<std::uint32_t>(d);
  }

  /// All keys above `lowest`, and the first `equal` of those that are equal to it.
  template <class Keys>
  void collect(const Keys& keys, std::uint32_t lowest, std::int64_t equal,
               chosen_weights& chosen) const {
    std::vector<std::int32_t> above(static_cast<std::size_t>(rows_)), same(above);
    const auto row_of = [&](int r, std::vector<std::uint32_t>& row) {
      keys(r, row.data());
      // Zero is the key of no weight that is left: all keys are one higher here.
      for (std::uint32_t& key : row) ++key;
      for (const std::int32_t* c = taken_.begin(r); c != taken_.end(r); ++c)
        row[static_cast<std::size_t>(*c)] = 0;
    };
    const std::uint32_t least = lowest + 1;
    for_rows([&](int begin, int end) {
      std::vector<std::uint32_t> row(static_cast<std::size_t>(cols_));
      for (int r = begin; r < end; ++r) {
        row_of(r, row);
        std::int32_t more = 0, alike = 0;
        for (const std::uint32_t key : row) {
          more += key > least;
          alike += key == least;
        }
        above[static_cast<std::size_t>(r)] = more;
        same[static_cast<std::size_t>(r)] = alike;
      }
    });
    for (std::size_t r = 0; r < above.size(); ++r) {
      same[r] = static_cast<std::int32_t>(std::min<std::int64_t>(same[r], equal));
      equal -= same[r];
      chosen.offsets[r + 1] = chosen.offsets[r] + above[r] + same[r];
    }
    chosen.columns.resize(static_cast<std::size_t>(chosen.offsets.back()));
    for_rows([&](int begin, int end) {
      std::vector<std::uint32_t> row(static_cast<std::size_t>(cols_));
      for (int r = begin; r < end; ++r) {
        const std::size_t at = static_cast<std::size_t>(r);
        if (above[at] + same[at] == 0) continue;
        row_of(r, row);
        std::int32_t* out = chosen.columns.data() + chosen.offsets[at];
        std::int32_t ties = same[at];
        for (int c = 0; c < cols_; ++c) {
          const std::uint32_t key = row[static_cast<std::size_t>(c)];
          if (key > least || (key == least && ties-- > 0)) *out++ = c;
        }
      }
    });
  }

  int rows_, cols_;
  const chosen_weights& taken_;
  thread_pool* pool_;
};

inline chosen_weights merged(const chosen_weights& a, const chosen_weights& b, int rows) {
  chosen_weights both(rows);
  both.columns.reserve(a.columns.size() + b.columns.size());
  for (int r = 0; r < rows; ++r) {
    std::merge(a.begin(r), a.end(r), b.begin(r), b.end(r), std::back_inserter(both.columns));
    both.offsets[static_cast<std::size_t>(r) + 1] = static_cast<std::int32_t>(both.columns.size());
  }
  return both;
}

}  // namespace detail

/// The outliers of `w` with their values in fp16. O(rows * cols), four passes for each sort.
/// @tparam Value float, fp16_t or bf16_t
/// @param s as many rows and columns as `w`
/// @param n at most as many as there are weights: see count_outliers
/// @param pool threads to use, or null for the caller's alone; the result does not depend on it
/// @throws error naming row and column of a chosen weight that fp16 cannot hold, or whose
/// sensitivity is negative or not finite
template <class Value>
sparse_matrix choose_outliers(matrix_view<const Value> w, const sensitivity& s,
                              const outlier_counts& n, thread_pool* pool = nullptr) {
  const int rows = w.rows(), cols = w.cols();
  if (s.rows() != rows || s.cols() != cols)
    throw error(status::shape_mismatch, "outliers: expected sensitivities of " +
                                            std::to_string(rows) + " x " + std::to_string(cols) +
                                            ", found " + std::to_string(s.rows()) + " x " +
                                            std::to_string(s.cols()));
  if (n.sensitive < 0 || n.large < 0 || n.all() > static_cast<std::int64_t>(rows) * cols)
    throw error(status::invalid_argument,
                "outliers: expected at most as many as there are weights "
                "in " +
                    std::to_string(rows) + " x " + std::to_string(cols) + ", found " +
                    std::to_string(n.all()));
  if (n.all() == 0) return {rows, cols};
  const bool alone = n.rule == outlier_rule::sensitivity;
  const auto by_sensitivity = [&](int r, std::uint32_t* out) {
    const float* const of = s.row(r);
    const Value* const row = w.row(r);
    for (int c = 0; c < cols; ++c) {
      const float x = alone ? 1.f : to_float(row[c]);
      out[c] = of == nullptr ? 0 : detail::magnitude_key(of[c] * x * x);
    }
  };
  const auto by_magnitude = [&](int r, std::uint32_t* out) {
    const Value* const row = w.row(r);
    for (int c = 0; c < cols; ++c) out[c] = detail::magnitude_key(to_float(row[c]));
  };
  using detail::outlier_choice;
  const detail::chosen_weights sensitive = outlier_choice::choose(
      rows, cols, by_sensitivity, detail::chosen_weights(rows), n.sensitive, pool);
  detail::chosen_weights all = detail::merged(
      sensitive, outlier_choice::choose(rows, cols, by_magnitude, sensitive, n.large, pool), rows);
  std::vector<fp16_t> values(all.columns.size());
  for (int r = 0; r < rows; ++r)
    for (const std::int32_t* c = all.begin(r); c != all.end(r); ++c) {
      const float x = to_float(w(r, *c));
      const float v = s.is_uniform() ? 1.f : s.row(r)[*c];
      const bool bad_weight = !(x <= fp16_max && x >= -fp16_max);
      if (bad_weight || !(v >= 0.f && v <= std::numeric_limits<float>::max())) {
        std::ostringstream text;
        text << "outliers: " << (bad_weight ? "weight" : "sensitivity") << " at row " << r
             << ", column " << *c << ": expected "
             << (bad_weight ? "a finite number within the fp16 range, +-65504"
                            : "a finite number >= 0")
             << ", found " << (bad_weight ? x : v);
        throw error(status::invalid_argument, text.str());
      }
      values[static_cast<std::size_t>(c - all.columns.data())] = to_fp16(x);
    }
  return {rows, cols, std::move(all.offsets), std::move(all.columns), std::move(values)};
}

}  // namespace v0_1
}  // namespace bitladder
