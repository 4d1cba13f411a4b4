// SPDX-License-Identifier: MIT
// The front door of refitting: a quantized matrix and the second moments of its inputs in, better
// tables out, and better codes if they may move. Rows are independent, so the result is the same
// for any number of threads. Tested by tests/quantize/refit_test.cpp.
#pragma once

#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/quantize/nested_descent.hpp>
#include <bitladder/quantize/refit.hpp>
#include <bitladder/quantize/resplit.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// What a caller decides about refitting.
struct refit_options {
  /// Codes may move. Then precisions above `top_bits` are split anew below the codes of top_bits.
  bool move_codes = true;
  /// The widest precision whose errors count, min_bits..8. Those above have errors so small that
  /// nothing is gained: their tables stay, or become means of their new codes. 0: 5, or the
  /// precision present that is nearest.
  int top_bits = 0;
  /// How much the narrowest precision counts beside top_bits, all relative to their errors before;
  /// those between count 2 more for each bit below top_bits. Perplexities of the bundled model at 2
  /// to 5 bits: 84.4 42.2 36.1 35.1 before, 64.5 40.1 36.0 35.0 so; with weights of 12 2 1.5
  /// 1, 65.2 40.5 36.0 34.9; with 4 2 1 and top_bits 4, 64.3 39.9 36.4 35.4.
  double narrow_weight = 20;
  int rounds = 4;         ///< of tables, then codes
  int sweeps = 4;         ///< over the codes in a round
  double ridge = 1e-6;    ///< see refit::table_fit::fit
  double damping = 1e-4;  ///< added to the second moments' diagonal, as a part of its mean
};

/// The widest precision whose errors count, of a ladder of min_bits..max_bits.
inline int top_bits_of(const refit_options& o, int min_bits, int max_bits) {
  return o.top_bits != 0 ? o.top_bits : std::min(std::max(5, min_bits), max_bits);
}

/// What refitting did.
struct refit_report {
  int min_bits = 0, top_bits = 0;
  /// Sum over rows of e H e^T, H damped, by bits.
  std::array<double, 9> before{}, after{};
  std::int64_t moved = 0;  ///< columns whose code of top_bits is another

  void add(const refit_report& o) {
    for (std::size_t b = 0; b < before.size(); ++b) {
      before[b] += o.before[b];
      after[b] += o.after[b];
    }
    moved += o.moved;
  }
};

/// @throws error naming the option, what was expected and what was found
inline void validate(const refit_options& o, int min_bits, int max_bits) {
  const auto require = [](bool good, const char* what, const char* expected, double found) {
    if (!good)
      throw error(status::invalid_argument, std::string("refit options: expected ") + what +
                                                " of " + expected + ", found " +
                                                std::to_string(found));
  };
  const auto within = [](double v, double low, double high) { return v >= low && v <= high; };
  require(
      within(top_bits_of(o, min_bits, max_bits), min_bits, max_bits), "top_bits",
      ("the precisions present, " + std::to_string(min_bits) + " to " + std::to_string(max_bits))
          .c_str(),
      o.top_bits);
  require(within(o.narrow_weight, 1e-3, 1e3), "a narrow_weight", "0.001 to 1000", o.narrow_weight);
  require(within(o.rounds, 1, 1000), "rounds", "1 to 1000", o.rounds);
  require(within(o.sweeps, 1, 1000), "sweeps", "1 to 1000", o.sweeps);
  require(within(o.ridge, 1e-12, 1), "a ridge", "1e-12 to 1", o.ridge);
  require(within(o.damping, 1e-9, 1), "a damping", "1e-9 to 1", o.damping);
}

namespace refit {

/// Refits one row after another, keeping its memory.
class row_refit {
 public:
  /// @param options valid
  row_refit(const refit_options& options, int min_bits, int max_bits)
      : options_(options), min_bits_(min_bits), max_bits_(max_bits) {
    options_.top_bits = top_bits_of(options, min_bits, max_bits);
  }

  /// @param h [cols, cols], symmetric, its diagonal > 0
  /// @param codes [cols] of max_bits, replaced
  /// @param tables by bits, of min_bits..max_bits, replaced
  refit_report run(matrix_view<const float> h, const row_target& row, std::uint8_t* codes,
                   const std::array<fp16_t*, 9>& tables) {
    const int top = options_.top_bits;
    refit_report report;
    codes_.resize(static_cast<std::size_t>(row.cols));
    for (std::size_t c = 0; c < codes_.size(); ++c)
      codes_[c] = static_cast<std::uint8_t>(codes[c] >> (max_bits_ - top));
    before_ = codes_;
    fit_.start(h, row);
    gather(h, row, [&](int b) {
      report.before[at(b)] = fit_.error(tables[at(b)]);
      static_cast<void>(fit_.fit(options_.ridge, tables[at(b)]));
      report.after[at(b)] = fit_.error(tables[at(b)]);
    });
    if (!options_.move_codes) return report;
    levels_.clear();
    for (int b = min_bits_; b <= top; ++b) {
      const double error = report.before[at(b)];
      if (error > 0) levels_.push_back({tables[at(b)], b, weight_of(b) / error});
    }
    if (levels_.empty() || levels_.back().bits != top) return report;  // nothing is off, or almost
    for (int round = 0; round < options_.rounds; ++round) {
      const int changed = descent_.run(h, row, fit_, levels_, options_.sweeps, codes_.data());
      gather(h, row, [&](int b) {
        static_cast<void>(fit_.fit(options_.ridge, tables[at(b)]));
        report.after[at(b)] = fit_.error(tables[at(b)]);
      });
      if (changed == 0) break;
    }
    if (codes_ == before_) return report;
    for (std::size_t c = 0; c < codes_.size(); ++c) report.moved += codes_[c] != before_[c];
    split(h, row, codes, tables);
    return report;
  }

 private:
  double weight_of(int bits) const {
    const int below = options_.top_bits - bits;
    return below > 0 && bits == min_bits_ ? options_.narrow_weight : 1 + 2 * below;
  }

  static std::size_t at(int bits) { return static_cast<std::size_t>(bits); }

  /// Calls f(bits) with what tables of these bits are fit to, from top_bits down.
  template <class F>
  void gather(matrix_view<const float> h, const row_target& row, F&& f) {
    fit_.gather(h, row, codes_.data(), 1 << options_.top_bits);
    for (int b = options_.top_bits;; --b) {
      f(b);
      if (b == min_bits_) break;
      fit_.coarsen();
    }
  }

  void split(matrix_view<const float> h, const row_target& row, std::uint8_t* codes,
             const std::array<fp16_t*, 9>& tables) {
    const int top = options_.top_bits;
    importance_.resize(codes_.size());
    for (int c = 0; c < row.cols; ++c)
      importance_[static_cast<std::size_t>(c)] = static_cast<double>(h(c, c));
    wider_.clear();
    for (int b = top + 1; b <= max_bits_; ++b) wider_.push_back(tables[at(b)]);
    splitter_.run(row, importance_, top, max_bits_, codes_.data(), tables[at(top)], wider_);
    for (int c = 0; c < row.cols; ++c)
      if (!row.is_fixed(c)) codes[c] = codes_[static_cast<std::size_t>(c)];
  }

  refit_options options_;
  int min_bits_, max_bits_;
  table_fit fit_;
  nested_descent descent_;
  resplitter splitter_;
  std::vector<std::uint8_t> codes_, before_;  // of top_bits
  std::vector<descent_level> levels_;
  std::vector<double> importance_;
  std::vector<fp16_t*> wider_;
};

/// Throws unless second moments fit the matrix and are finite, with a diagonal >= 0.
inline void check_moments(const std::vector<matrix_view<const float>>& moments, int rows,
                          int cols) {
  const auto fail = [](status code, const std::string& text) {
    throw error(code, "refit: second moments: " + text);
  };
  if (moments.empty() || static_cast<std::size_t>(rows) % moments.size() != 0)
    fail(status::shape_mismatch, "expected as many as groups of rows, which divide " +
                                     std::to_string(rows) + ", found " +
                                     std::to_string(moments.size()));
  for (const matrix_view<const float>& h : moments) {
    if (h.rows() != cols || h.cols() != cols)
      fail(status::shape_mismatch, "expected " + std::to_string(cols) + " x " +
                                       std::to_string(cols) + ", found " +
                                       std::to_string(h.rows()) + " x " + std::to_string(h.cols()));
    for (int r = 0; r < cols; ++r)
      for (int c = 0; c < cols; ++c)
        if (!std::isfinite(h(r, c)) || (r == c && h(r, c) < 0))
          fail(status::invalid_argument, std::string("expected finite numbers") +
                                             (r == c ? " >= 0" : "") + " at row " +
                                             std::to_string(r) + ", column " + std::to_string(c) +
                                             ", found " + std::to_string(h(r, c)));
  }
}

}  // namespace refit

/// Refits the tables of a matrix, and its codes if they may move. No precision up to top_bits gets
/// worse by its own e H e^T if codes stay; if they move, the weighted sum of them does not.
/// @tparam Value float, fp16_t or bf16_t
/// @param w the weights that were quantized
/// @param moments X^T X of the inputs, [cols, cols] and symmetric: one for each of as many equal
/// groups of neighbouring rows
/// @param outliers weights that replace what codes and tables give; their codes stay
/// @param codes [rows, cols] of tables.max_bits()
/// @param tables of one column group
/// @param pool threads to use, or null for the caller's alone; the result does not depend on it
/// @throws error if shapes differ, an option is out of range, a moment is not finite or a weight is
/// not; codes and tables are then as before
template <class Value>
refit_report refit_ladder(matrix_view<const Value> w,
                          const std::vector<matrix_view<const float>>& moments,
                          const sparse_view& outliers, matrix_view<std::uint8_t> codes,
                          codebook_ladder& tables, const refit_options& options,
                          thread_pool* pool = nullptr) {
  if (codes.rows() != w.rows() || codes.cols() != w.cols() || tables.rows() != w.rows() ||
      tables.groups() != 1 ||
      (!outliers.empty() && (outliers.rows() != w.rows() || outliers.cols() != w.cols())))
    throw error(status::shape_mismatch,
                "refit: expected codes, tables of one column group and outliers of " +
                    std::to_string(w.rows()) + " x " + std::to_string(w.cols()) + ", found codes " +
                    std::to_string(codes.rows()) + " x " + std::to_string(codes.cols()) +
                    ", tables of " + std::to_string(tables.rows()) + " rows and " +
                    std::to_string(tables.groups()) + " groups");
  const int min_bits = tables.min_bits(), max_bits = tables.max_bits();
  validate(options, min_bits, max_bits);
  refit::check_moments(moments, w.rows(), w.cols());
  const auto rows = static_cast<std::size_t>(w.rows()), cols = static_cast<std::size_t>(w.cols());
  for (int r = 0; r < w.rows(); ++r)
    for (int c = 0; c < w.cols(); ++c)
      if (!std::isfinite(to_float(w(r, c))))
        throw error(status::invalid_argument, "refit: weight at row " + std::to_string(r) +
                                                  ", column " + std::to_string(c) +
                                                  ": expected a finite number");
  refit_report total;
  total.min_bits = min_bits;
  total.top_bits = top_bits_of(options, min_bits, max_bits);
  std::vector<refit_report> reports(rows);
  std::vector<float> damped(cols * cols);
  const std::size_t group_rows = rows / moments.size();
  for (std::size_t g = 0; g < moments.size() && cols > 0; ++g) {
    double diagonal = 0;
    for (int c = 0; c < w.cols(); ++c) diagonal += static_cast<double>(moments[g](c, c));
    if (!(diagonal > 0)) continue;  // no input, or no use of the outputs: nothing counts
    // In units of the mean of the diagonal, which fp32 can then not leave.
    const double unit = static_cast<double>(cols) / diagonal;
    for (std::size_t r = 0; r < cols; ++r) {
      const float* const line = moments[g].row(static_cast<int>(r));
      for (std::size_t c = 0; c < cols; ++c)
        damped[r * cols + c] = static_cast<float>(static_cast<double>(line[c]) * unit +
                                                  (r == c ? options.damping : 0));
    }
    const matrix_view<const float> h(damped.data(), w.cols(), w.cols());
    parallel_for(
        pool, static_cast<std::int64_t>(group_rows), 8, [&](std::int64_t begin, std::int64_t end) {
          refit::row_refit one(options, min_bits, max_bits);
          std::vector<float> weights(cols);
          std::vector<std::uint8_t> fixed(outliers.empty() ? 0 : cols);
          for (std::int64_t i = begin; i < end; ++i) {
            const std::size_t r = g * group_rows + static_cast<std::size_t>(i);
            const int row = static_cast<int>(r);
            for (std::size_t c = 0; c < cols; ++c) weights[c] = to_float(w.row(row)[c]);
            std::fill(fixed.begin(), fixed.end(), std::uint8_t{0});
            if (!outliers.empty())
              for (int k = outliers.begin(row); k < outliers.end(row); ++k) {
                const auto c = static_cast<std::size_t>(outliers.columns()[k]);
                fixed[c] = 1;
                weights[c] -= to_float(outliers.values()[k]);
              }
            std::array<fp16_t*, 9> table{};
            for (int b = min_bits; b <= max_bits; ++b)
              table[static_cast<std::size_t>(b)] = tables.data(b) + (r << b);
            reports[r] =
                one.run(h, {weights.data(), fixed.empty() ? nullptr : fixed.data(), w.cols()},
                        codes.row(row), table);
          }
        });
    for (std::size_t r = g * group_rows; r < (g + 1) * group_rows; ++r) {
      for (std::size_t b = 0; b < 9; ++b) {  // back in the caller's unit
        reports[r].before[b] /= unit;
        reports[r].after[b] /= unit;
      }
      total.add(reports[r]);
    }
  }
  return total;
}

}  // namespace v0_1
}  // namespace bitladder
