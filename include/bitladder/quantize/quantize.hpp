// SPDX-License-Identifier: MIT
// The front door of the quantizer: a matrix and its sensitivities in, codes and codebooks of every
// precision out. Rows are independent, so the result is the same for any number of threads. Tested
// by tests/quantize/quantize_test.cpp.
#pragma once

#include <bitladder/core/codebook.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/quantize/options.hpp>
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
  /// Sum over all weights of sensitivity * (weight - its fp16 table entry)^2, by bits.
  std::array<double, 9> weighted_error{};
  /// Sum of sensitivity * (weight - weighted mean of its row and column group)^2.
  double weighted_variance = 0;

  /// weighted_error / weighted_variance; zero if nothing varies.
  double relative_error(int bits) const {
    const double e = weighted_error.at(static_cast<std::size_t>(bits));
    return weighted_variance > 0 ? e / weighted_variance : 0;
  }
};

class quantized_matrix;

template <class Value>
quantized_matrix quantize(matrix_view<const Value> w, const sensitivity& s,
                          const kmeans_options& options, thread_pool* pool = nullptr);

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
  const quantize_report& report() const { return report_; }

 private:
  template <class Value>
  friend quantized_matrix quantize(matrix_view<const Value>, const sensitivity&,
                                   const kmeans_options&, thread_pool*);

  int cols_ = 0;
  // Not a vector, which would write all codes once more, in one thread.
  std::unique_ptr<std::uint8_t[]> codes_;
  codebook_ladder codebooks_;
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

}  // namespace detail

/// Quantizes `w` to codes of `options.max_bits` bits, with codebooks from `options.min_bits`.
/// @tparam Value float, fp16_t or bf16_t
/// @param s as many rows and columns as `w`
/// @param pool threads to use, or null for the caller's alone; the result does not depend on it
/// @throws error if an option is out of range, shapes differ, a weight is not finite or beyond
/// 65504, or a sensitivity is negative or not finite, naming its row and column
template <class Value>
quantized_matrix quantize(matrix_view<const Value> w, const sensitivity& s,
                          const kmeans_options& options, thread_pool* pool) {
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

  quantized_matrix q;
  q.cols_ = w.cols();
  q.codebooks_ = codebook_ladder(w.rows(), options.groups, options.min_bits, options.max_bits);
  q.report_.min_bits = options.min_bits;
  q.report_.max_bits = options.max_bits;
  if (w.cols() == 0) return q;
  const std::size_t cols = static_cast<std::size_t>(w.cols());
  q.codes_.reset(new std::uint8_t[static_cast<std::size_t>(w.rows()) * cols]);

  const int group_cols = w.cols() / options.groups;
  const std::int64_t tables = static_cast<std::int64_t>(w.rows()) * options.groups;
  std::vector<std::array<double, 9>> errors(static_cast<std::size_t>(tables));  // [0]: variance
  detail::scratch_pool<kmeans::row_ladder> scratch;
  std::atomic<bool> bad{false};
  parallel_for(pool, tables, 4, [&](std::int64_t begin, std::int64_t end) {
    std::unique_ptr<kmeans::row_ladder> ladder = scratch.take();
    for (std::int64_t t = begin; t < end && !bad.load(std::memory_order_relaxed); ++t) {
      const int row = static_cast<int>(t / options.groups);
      const int col = static_cast<int>(t % options.groups) * group_cols;
      const float* const weights = s.row(row);
      if (!ladder->build(w.row(row) + col, weights == nullptr ? nullptr : weights + col, group_cols,
                         options)) {
        bad.store(true, std::memory_order_relaxed);
        break;
      }
      ladder->codes(q.codes_.get() + static_cast<std::size_t>(row) * cols +
                    static_cast<std::size_t>(col));
      std::array<double, 9>& e = errors[static_cast<std::size_t>(t)];
      e[0] = ladder->weighted_variance();
      for (int b = options.min_bits; b <= options.max_bits; ++b) {
        fp16_t* const table = q.codebooks_.data(b) + (static_cast<std::size_t>(t) << b);
        ladder->round_table(b, table);
        e[static_cast<std::size_t>(b)] = ladder->weighted_error(b, table);
      }
    }
    scratch.give(std::move(ladder));
  });
  if (bad.load()) detail::report_bad_input(w, s);

  for (const std::array<double, 9>& e : errors) {
    q.report_.weighted_variance += e[0];
    for (std::size_t b = 1; b < e.size(); ++b) q.report_.weighted_error[b] += e[b];
  }
  return q;
}

/// The same for a view of elements that may be written.
template <class Value>
quantized_matrix quantize(matrix_view<Value> w, const sensitivity& s, const kmeans_options& options,
                          thread_pool* pool = nullptr) {
  return quantize(matrix_view<const Value>(w), s, options, pool);
}

}  // namespace v0_1
}  // namespace bitladder
