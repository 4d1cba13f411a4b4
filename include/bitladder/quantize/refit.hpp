// SPDX-License-Identifier: MIT
// Better tables for the codes that a row has. What a layer gives is off by e X, e = weights - table
// entries and X its inputs, so what counts is e H e^T with H = X^T X: inputs that go together let
// errors of theirs cancel, which k-means, blind to them, does not use. With the codes fixed that is
// a least squares problem in the entries; its normal matrix of one precision is the next one's with
// pairs of rows and columns added, for codes are nested. Tables must ascend, so entries that would
// change places become equal. H weighted by squared gradients of the outputs is GuidedQuant's (Kim
// et al. 2025, arXiv 2505.07004, section 3). Tested by tests/quantize/refit_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace refit {

/// A row as it should be, and the columns that are not to be touched.
struct row_target {
  const float* weight;        ///< [cols]; where fixed, what the row is off by there
  const std::uint8_t* fixed;  ///< [cols], not 0 where no table entry is used; null for nowhere
  int cols;

  bool is_fixed(int c) const { return fixed != nullptr && fixed[c] != 0; }
};

/// Solves M x = b for a positive definite M by Cholesky's method, in place: b becomes x.
/// @param m [n, n], destroyed
/// @return false if M is not positive definite
inline bool solve_cholesky(std::vector<double>& m, std::vector<double>& b) {
  const std::size_t n = b.size();
  for (std::size_t j = 0; j < n; ++j) {
    double* const row = &m[j * n];
    for (std::size_t i = 0; i < j; ++i) {
      const double* const above = &m[i * n];
      double sum = row[i];
      for (std::size_t k = 0; k < i; ++k) sum -= above[k] * row[k];
      row[i] = sum / above[i];
    }
    double square = row[j];
    for (std::size_t k = 0; k < j; ++k) square -= row[k] * row[k];
    if (!(square > 0)) return false;
    row[j] = std::sqrt(square);
  }
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t k = 0; k < i; ++k) b[i] -= m[i * n + k] * b[k];
    b[i] /= m[i * n + i];
  }
  for (std::size_t i = n; i-- > 0;) {
    for (std::size_t k = i + 1; k < n; ++k) b[i] -= m[k * n + i] * b[k];
    b[i] /= m[i * n + i];
  }
  return true;
}

/// Fits the tables of one row after another, keeping its memory.
class table_fit {
 public:
  /// Takes up a row: w H, which no code changes. O(cols^2)
  /// @param h [cols, cols], symmetric, positive semidefinite
  void start(matrix_view<const float> h, const row_target& row) {
    weight_pull_.resize(static_cast<std::size_t>(row.cols));
    constant_ = 0;
    for (int i = 0; i < row.cols; ++i) {
      const float* const line = h.row(i);
      double pull[4] = {};  // sums side by side: one would wait for each addition
      int j = 0;
      for (; j + 4 <= row.cols; j += 4)
        for (int k = 0; k < 4; ++k)
          pull[k] += static_cast<double>(line[j + k]) * static_cast<double>(row.weight[j + k]);
      for (; j < row.cols; ++j)
        pull[0] += static_cast<double>(line[j]) * static_cast<double>(row.weight[j]);
      const double all = pull[0] + pull[1] + pull[2] + pull[3];
      weight_pull_[static_cast<std::size_t>(i)] = all;
      constant_ += static_cast<double>(row.weight[i]) * all;
    }
  }

  /// Gathers what the error of any table with these codes depends on, in O(cols^2).
  /// @param h, row as given to `start`
  /// @param codes [cols], below `entries`, a power of two
  void gather(matrix_view<const float> h, const row_target& row, const std::uint8_t* codes,
              int entries) {
    entries_ = static_cast<std::size_t>(entries);
    const auto cols = static_cast<std::size_t>(row.cols);
    add_lines(h, row, codes);
    matrix_.assign(entries_ * entries_, 0);
    pull_.assign(entries_, 0);
    for (std::size_t c = 0; c < cols; ++c)
      if (!row.is_fixed(static_cast<int>(c))) pull_[codes[c]] += weight_pull_[c];
    for (std::size_t l = 0; l < entries_; ++l) {
      const float* const lines = &lines_[l * cols];
      for (std::size_t c = 0; c < cols; ++c)
        if (!row.is_fixed(static_cast<int>(c)))
          matrix_[codes[c] * entries_ + l] += static_cast<double>(lines[c]);
    }
  }

  /// e H of a table, e = weights - its entries, with the codes last gathered.
  /// @param table of those codes without their lowest `shift` bits
  /// @param out [cols]
  void residual_pull(const fp16_t* table, int shift, float* out) const {
    const std::size_t cols = weight_pull_.size();
    room_ = weight_pull_;
    for (std::size_t k = 0; k < lines_.size() / std::max<std::size_t>(cols, 1); ++k) {
      const double entry = static_cast<double>(to_float(table[k >> shift]));
      const float* const lines = &lines_[k * cols];
      for (std::size_t c = 0; c < cols; ++c) room_[c] -= entry * static_cast<double>(lines[c]);
    }
    for (std::size_t c = 0; c < cols; ++c) out[c] = static_cast<float>(room_[c]);
  }

  /// To the precision one bit below, codes 2c and 2c + 1 becoming c.
  void coarsen() {
    const std::size_t half = entries_ / 2;
    for (std::size_t k = 0; k < half; ++k) {
      pull_[k] = pull_[2 * k] + pull_[2 * k + 1];
      for (std::size_t l = 0; l < half; ++l) {
        const double* const first = &matrix_[2 * k * entries_ + 2 * l];
        const double* const second = first + entries_;
        matrix_[k * half + l] = (first[0] + first[1]) + (second[0] + second[1]);
      }
    }
    entries_ = half;
  }

  /// e H e^T of a table. [entries]
  double error(const fp16_t* table) const {
    double sum = constant_;
    for (std::size_t k = 0; k < entries_; ++k) {
      const double t = static_cast<double>(to_float(table[k]));
      double row = -2 * pull_[k];
      for (std::size_t l = 0; l < entries_; ++l)
        row += matrix_[k * entries_ + l] * static_cast<double>(to_float(table[l]));
      sum += t * row;
    }
    return sum;
  }

  /// Replaces a table by a better one, ascending and finite; if none is found, leaves it.
  /// @param table [entries], ascending; entries of no code change only to stay in order
  /// @param ridge what moving an entry costs, as a part of the mean of the normal matrix' diagonal
  /// @return whether it was replaced
  bool fit(double ridge, fp16_t* table) {
    double diagonal = 0;
    for (std::size_t k = 0; k < entries_; ++k) diagonal += matrix_[k * entries_ + k];
    const double stay = ridge * diagonal / static_cast<double>(entries_);
    if (!(stay > 0) || !(stay < 1e300)) return false;
    block_.resize(entries_);
    for (std::size_t k = 0; k < entries_; ++k) block_[k] = k;
    std::size_t blocks = entries_;
    while (true) {
      reduced_.assign(blocks * blocks, 0);
      value_.assign(blocks, 0);
      for (std::size_t k = 0; k < entries_; ++k) {
        double* const line = &reduced_[block_[k] * blocks];
        for (std::size_t l = 0; l < entries_; ++l) line[block_[l]] += matrix_[k * entries_ + l];
        line[block_[k]] += stay;
        value_[block_[k]] += pull_[k] + stay * static_cast<double>(to_float(table[k]));
      }
      if (!solve_cholesky(reduced_, value_)) return false;
      if (!join_falling(blocks)) break;
    }
    rounded_.resize(entries_);
    constexpr double most = 65504;
    for (std::size_t k = 0; k < entries_; ++k) {
      const double v = value_[block_[k]];
      if (!(v - v == 0)) return false;
      rounded_[k] = to_fp16(static_cast<float>(std::min(std::max(v, -most), most)));
    }
    if (!(error(rounded_.data()) < error(table))) return false;
    std::copy_n(rounded_.begin(), entries_, table);
    return true;
  }

 private:
  /// lines_[k] = the sum of those rows of H whose column has code k. Whole rows are added, which
  /// compilers make vectors of, some columns at a time, so that the sums stay in the cache.
  void add_lines(matrix_view<const float> h, const row_target& row, const std::uint8_t* codes) {
    const auto cols = static_cast<std::size_t>(row.cols);
    lines_.assign(entries_ * cols, 0.f);
    constexpr std::size_t part = 512;
    for (std::size_t begin = 0; begin < cols; begin += part) {
      const std::size_t count = std::min(part, cols - begin);
      for (int j = 0; j < row.cols; ++j) {
        if (row.is_fixed(j)) continue;
        const float* const line = h.row(j) + begin;
        float* const to = &lines_[codes[j] * cols + begin];
        for (std::size_t c = 0; c < count; ++c) to[c] += line[c];
      }
    }
  }

  /// Makes one block of neighbours whose values fall.
  /// @return false if there are none
  bool join_falling(std::size_t& blocks) {
    joined_.resize(blocks);
    std::size_t last = 0;
    joined_[0] = 0;
    for (std::size_t b = 1; b < blocks; ++b) {
      if (!(value_[b] < value_[b - 1])) ++last;
      joined_[b] = last;
    }
    if (last + 1 == blocks) return false;
    for (std::size_t& b : block_) b = joined_[b];
    blocks = last + 1;
    return true;
  }

  std::size_t entries_ = 0;
  double constant_ = 0;                // w H w^T
  std::vector<double> matrix_, pull_;  // sums of H by codes; of H w by code
  std::vector<double> weight_pull_;    // w H
  std::vector<float> lines_;           // [codes, cols], sums of rows of H by code
  mutable std::vector<double> room_;
  std::vector<std::size_t> block_, joined_;  // entries that are equal; what blocks become
  std::vector<double> reduced_, value_;
  std::vector<fp16_t> rounded_;
};

}  // namespace refit
}  // namespace v0_1
}  // namespace bitladder
