// SPDX-License-Identifier: MIT
// A row (or column group) as the clustering sees it when some of its weights are outliers: those
// are zero and weigh nothing, so that no table has to reach them. And what that changes afterwards:
// they share one code, and errors are those of the whole row. Tested by
// tests/quantize/outliers_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/quantize/sensitivity.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace detail {

/// One row after another, keeping its memory.
template <class Value>
class hidden_outliers {
 public:
  /// @return whether there are outliers in columns [col, col + count) of the row; if not, nothing
  /// else here may be asked
  bool take(matrix_view<const Value> w, const sensitivity& s, const sparse_view& outliers, int row,
            int col, int count) {
    if (outliers.empty()) return false;
    const std::int32_t* const first = outliers.columns() + outliers.begin(row);
    const std::int32_t* const last = outliers.columns() + outliers.end(row);
    const std::int32_t* const begin = std::lower_bound(first, last, col);
    const std::int32_t* const end = std::lower_bound(begin, last, col + count);
    if (begin == end) return false;
    columns_.assign(begin, end);
    col_ = col;
    count_ = count;
    row_ = w.row(row);
    given_ = s.row(row);
    stored_ = outliers.values() + (begin - outliers.columns());
    values_.resize(static_cast<std::size_t>(w.cols()));
    sensitivities_.resize(values_.size());
    std::copy_n(row_ + col, count, values_.begin() + col);
    if (given_ == nullptr)
      fill_sensitivities();
    else
      std::copy_n(given_ + col, count, sensitivities_.begin() + col);
    for (const std::int32_t c : columns_) {
      values_[static_cast<std::size_t>(c)] = Value{};
      sensitivities_[static_cast<std::size_t>(c)] = 0;
    }
    // If what is left has no sensitivity, it all counts alike, but still without the outliers.
    idle_ = std::all_of(sensitivities_.begin() + col, sensitivities_.begin() + col + count,
                        [](float v) { return v == 0; });
    if (idle_) {
      fill_sensitivities();
      for (const std::int32_t c : columns_) sensitivities_[static_cast<std::size_t>(c)] = 0;
    }
    return true;
  }

  /// One row, of which the columns that were taken are as they are to be clustered.
  matrix_view<const Value> weights() const {
    return {values_.data(), 1, static_cast<int>(values_.size())};
  }
  sensitivity sensitivities() const {
    return sensitivity::from_values(
        {sensitivities_.data(), 1, static_cast<int>(sensitivities_.size())});
  }

  /// Gives all outliers the code of the first: equal values need not have equal codes.
  /// @param codes from column `col` on
  void share_code(std::uint8_t* codes) const {
    for (const std::int32_t c : columns_) codes[c - col_] = codes[columns_[0] - col_];
  }

  /// Variance and errors of the clustering to those of the whole row.
  /// @param errors [0] the variance, [b] the error at b bits
  void correct(std::array<double, 9>& errors, int min_bits, int max_bits) const {
    const auto weight_of = [this](std::int32_t c) {
      return given_ == nullptr ? 1.0 : static_cast<double>(given_[c]);
    };
    double rounding = 0;
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const std::int32_t c = columns_[i];
      const double d =
          static_cast<double>(to_float(row_[c])) - static_cast<double>(to_float(stored_[i]));
      rounding += weight_of(c) * d * d;
    }
    for (int b = min_bits; b <= max_bits; ++b) {
      double& e = errors[static_cast<std::size_t>(b)];
      e = (idle_ ? 0 : e) + rounding;
    }
    double weight = 0, sum = 0, variance = 0;
    for (std::int32_t c = col_; c < col_ + count_; ++c) {
      weight += weight_of(c);
      sum += weight_of(c) * static_cast<double>(to_float(row_[c]));
    }
    const double mean = weight > 0 ? sum / weight : 0;
    for (std::int32_t c = col_; c < col_ + count_; ++c) {
      const double d = static_cast<double>(to_float(row_[c])) - mean;
      variance += weight_of(c) * d * d;
    }
    errors[0] = variance;
  }

 private:
  void fill_sensitivities() { std::fill_n(sensitivities_.begin() + col_, count_, 1.f); }

  const Value* row_ = nullptr;
  const float* given_ = nullptr;
  const fp16_t* stored_ = nullptr;
  bool idle_ = false;
  int col_ = 0, count_ = 0;
  std::vector<std::int32_t> columns_;  // of the outliers
  std::vector<Value> values_;
  std::vector<float> sensitivities_;
};

}  // namespace detail
}  // namespace v0_1
}  // namespace bitladder
