// SPDX-License-Identifier: MIT
// The front door of the quantizer: a matrix and its sensitivities in, codes and codebooks of every
// precision out. Rows are independent, so the result is the same for any number of threads. Tested
// by tests/quantize/quantize_test.cpp.
#pragma once

#include <bitladder/core/codebook.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/quantize/hidden_outliers.hpp>
#include <bitladder/quantize/options.hpp>
#include <bitladder/quantize/outliers.hpp>
#include <bitladder/quantize/row_ladder.hpp>
#include <bitladder/quantize/sensitivity.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// What quantization cost.
struct quantize_report {
  int min_bits = 0;
  int max_bits = 0;
  /// Sum over all weights of sensitivity * (weight - its fp16 table entry)^2, by bits; of an
  /// outlier, its own fp16 value stands for the entry.
  std::array<double, 9> weighted_error{};
  /// Sum of sensitivity * (weight - weighted mean of its row and column group)^2.
  double weighted_variance = 0;

  /// weighted_error / weighted_variance; zero if nothing varies.
  double relative_error(int bits) const {
    const double e = weighted_error.at(static_cast<std::size_t>(bits));
    return weighted_variance > 0 ? e / weighted_variance : 0;
  }
};

namespace detail {
class quantized_parts;
}  // namespace detail

/// Codes and codebooks of one matrix.
class quantized_matrix {
 public:
  quantized_matrix() = default;

  int rows() const { return codebooks_.rows(); }
  int cols() const { return cols_; }
  int groups() const { return codebooks_.groups(); }
  int min_bits() const { return codebooks_.min_bits(); }
  int max_bits() const { return codebooks_.max_bits(); }
  /// Codes of max_bits(); a code of fewer bits is its top bits. [rows, cols]
  matrix_view<const std::uint8_t> codes() const { return {codes_.get(), rows(), cols_}; }
  const codebook_ladder& codebooks() const { return codebooks_; }
  /// Tables of one precision.
  /// @throws error(not_found) naming the precisions present
  codebook_view codebook(int bits) const { return codebooks_[bits]; }
  /// Weights that replace those of codes and tables: see core/sparse_matrix.hpp. Their codes are
  /// one in every row and column group.
  const sparse_matrix& outliers() const { return outliers_; }
  const quantize_report& report() const { return report_; }

 private:
  friend class detail::quantized_parts;

  int cols_ = 0;
  // Not a vector, which would write all codes once more, in one thread.
  std::unique_ptr<std::uint8_t[]> codes_;
  codebook_ladder codebooks_;
  sparse_matrix outliers_;
  quantize_report report_;
};

namespace detail {

/// Throws for the first value, in row order, that cannot be quantized.
template <class Value>
void report_bad_input(matrix_view<const Value> w, const sensitivity& s) {
  const auto fail = [](const char* what, int r, int c, const char* expected, float found) {
    std::ostringstream text;
    text << "quantize: " << what << " at row " << r << ", column " << c << ": expected " << expected
         << ", found " << found;
    throw error(status::invalid_argument, text.str());
  };
  for (int r = 0; r < w.rows(); ++r) {
    for (int c = 0; c < w.cols(); ++c) {
      const float x = to_float(w(r, c));
      if (!(x <= fp16_max && x >= -fp16_max))
        fail("weight", r, c, "a finite number within the fp16 range, +-65504", x);
      if (s.is_uniform()) continue;
      const float v = s.row(r)[c];
      if (!(v >= 0.f && v <= std::numeric_limits<float>::max()))
        fail("sensitivity", r, c, "a finite number >= 0", v);
    }
  }
}

/// Scratch memory that threads take and give back.
template <class T>
class scratch_pool {
 public:
  std::unique_ptr<T> take() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        std::unique_ptr<T> t = std::move(free_.back());
        free_.pop_back();
        return t;
      }
    }
    return std::make_unique<T>();
  }
  void give(std::unique_ptr<T> t) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(t));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> free_;
};

/// Throws unless weights, sensitivities and options fit together.
/// @param takes_outliers whether the caller knows how to keep some
template <class Value>
void check_quantize(matrix_view<const Value> w, const sensitivity& s, const kmeans_options& options,
                    bool takes_outliers = false) {
  if (w.rows() < 0 || w.cols() < 0 || (w.data() == nullptr && w.rows() > 0 && w.cols() > 0))
    throw error(status::invalid_argument, "quantize: expected weights with sizes >= 0, found " +
                                              std::to_string(w.rows()) + " x " +
                                              std::to_string(w.cols()) +
                                              (w.data() == nullptr ? " and a null pointer" : ""));
  if (s.rows() != w.rows() || s.cols() != w.cols())
    throw error(status::shape_mismatch,
                "quantize: expected sensitivities of " + std::to_string(w.rows()) + " x " +
                    std::to_string(w.cols()) + ", found " + std::to_string(s.rows()) + " x " +
                    std::to_string(s.cols()));
  validate(options, w.cols());
  if (options.outliers.any() && !takes_outliers)
    throw error(status::invalid_argument,
                "quantize options: expected no outliers, which this quantizer cannot keep");
}

/// A quantized matrix in the making: whoever quantizes fills in one table after another, in any
/// order. Tables are counted row by row, column groups within.
class quantized_parts {
 public:
  /// @param options valid for `cols` columns
  /// @param codes false for one that is only asked for tables and errors
  quantized_parts(int rows, int cols, const kmeans_options& options, bool codes = true)
      : options_(options),
        errors_(static_cast<std::size_t>(rows) * static_cast<std::size_t>(options.groups)) {
    q_.cols_ = cols;
    q_.codebooks_ = codebook_ladder(rows, options.groups, options.min_bits, options.max_bits);
    q_.report_.min_bits = options.min_bits;
    q_.report_.max_bits = options.max_bits;
    if (codes)
      q_.codes_.reset(
          new std::uint8_t[static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols)]);
  }

  /// Codes from row `row` on. [rows, cols]
  std::uint8_t* codes(int row) {
    return q_.codes_.get() + static_cast<std::size_t>(row) * static_cast<std::size_t>(q_.cols_);
  }
  /// Entries of a precision from table `t` on. [tables, 2^bits]
  fp16_t* table(int bits, std::size_t t) { return q_.codebooks_.data(bits) + (t << bits); }
  bool has(int bits) const { return q_.codebooks_.has(bits); }
  /// Of table `t`: [0] the weighted variance, [b] the weighted error at b bits.
  std::array<double, 9>& errors(std::size_t t) { return errors_[t]; }

  /// Quantizes table `t`, that of columns from `col` on of a row.
  /// @param codes receives theirs
  /// @return false if a value or sensitivity cannot be quantized
  template <class Value>
  bool build(kmeans::row_ladder& ladder, matrix_view<const Value> w, const sensitivity& s, int row,
             int col, std::size_t t, std::uint8_t* codes) {
    const float* const weights = s.row(row);
    if (!ladder.build(w.row(row) + col, weights == nullptr ? nullptr : weights + col,
                      w.cols() / options_.groups, options_))
      return false;
    ladder.codes(codes);
    std::array<double, 9>& e = errors_[t];
    e[0] = ladder.weighted_variance();
    for (int b = options_.min_bits; b <= options_.max_bits; ++b) {
      ladder.round_table(b, table(b, t));
      e[static_cast<std::size_t>(b)] = ladder.weighted_error(b, table(b, t));
    }
    return true;
  }

  void keep(sparse_matrix outliers) { q_.outliers_ = std::move(outliers); }

  /// The matrix, with the report of all tables.
  quantized_matrix done() && {
    for (const std::array<double, 9>& e : errors_) {
      q_.report_.weighted_variance += e[0];
      for (std::size_t b = 1; b < e.size(); ++b) q_.report_.weighted_error[b] += e[b];
    }
    return std::move(q_);
  }

 private:
  kmeans_options options_;
  quantized_matrix q_;
  std::vector<std::array<double, 9>> errors_;
};

}  // namespace detail

/// Quantizes `w` to codes of `options.max_bits` bits, with codebooks from `options.min_bits`.
/// @tparam Value float, fp16_t or bf16_t
/// @param s as many rows and columns as `w`
/// @param pool threads to use, or null for the caller's alone; the result does not depend on it
/// @throws error if an option is out of range, shapes differ, a weight is not finite or beyond
/// 65504, or a sensitivity is negative or not finite, naming its row and column
template <class Value>
quantized_matrix quantize(matrix_view<const Value> w, const sensitivity& s,
                          const kmeans_options& options, thread_pool* pool = nullptr) {
  detail::check_quantize(w, s, options, true);
  detail::quantized_parts parts(w.rows(), w.cols(), options);
  if (w.cols() == 0) return std::move(parts).done();
  sparse_matrix outliers = choose_outliers(
      w, s, count_outliers(options.outliers, w.rows(), w.cols(), s.is_uniform()), pool);
  const int group_cols = w.cols() / options.groups;
  const std::int64_t tables = static_cast<std::int64_t>(w.rows()) * options.groups;
  detail::scratch_pool<kmeans::row_ladder> scratch;
  std::atomic<bool> bad{false};
  parallel_for(pool, tables, 4, [&](std::int64_t begin, std::int64_t end) {
    std::unique_ptr<kmeans::row_ladder> ladder = scratch.take();
    detail::hidden_outliers<Value> hidden;
    for (std::int64_t t = begin; t < end && !bad.load(std::memory_order_relaxed); ++t) {
      const int row = static_cast<int>(t / options.groups);
      const int col = static_cast<int>(t % options.groups) * group_cols;
      const auto at = static_cast<std::size_t>(t);
      std::uint8_t* const codes = parts.codes(row) + col;
      bool good;
      if (hidden.take(w, s, outliers.view(), row, col, group_cols)) {
        good = parts.build(*ladder, hidden.weights(), hidden.sensitivities(), 0, col, at, codes);
        hidden.share_code(codes);
        if (good) hidden.correct(parts.errors(at), options.min_bits, options.max_bits);
      } else {
        good = parts.build(*ladder, w, s, row, col, at, codes);
      }
      if (!good) bad.store(true, std::memory_order_relaxed);
    }
    scratch.give(std::move(ladder));
  });
  if (bad.load()) detail::report_bad_input(w, s);
  parts.keep(std::move(outliers));
  return std::move(parts).done();
}

/// The same for a view of elements that may be written.
template <class Value>
quantized_matrix quantize(matrix_view<Value> w, const sensitivity& s, const kmeans_options& options,
                          thread_pool* pool = nullptr) {
  return quantize(matrix_view<const Value>(w), s, options, pool);
}

}  // namespace v0_1
}  // namespace bitladder
