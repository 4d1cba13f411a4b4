// SPDX-License-Identifier: MIT
// One row (or column group) as k-means sees it: its values in ascending order, equal values merged
// into one point, and prefix sums of the points' weights and weighted values, so that the weighted
// error of any run of points costs a subtraction or two. Tested by
// tests/quantize/sorted_row_test.cpp.
#pragma once

#include <bitladder/quantize/radix_sort.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace kmeans {

/// Points [0, size()) of a row. Memory is kept from row to row.
class sorted_row {
 public:
  /// Whether equal values become one point, and no point is without weight.
  enum class points { merged, as_they_are };

  /// @param values `count` >= 1 values
  /// @param sensitivities as many, or null for all equal
  /// @return false, leaving no row, if a value is not finite or beyond the fp16 range, or a
  /// sensitivity is not finite or negative
  template <class Value>
  bool assign(const Value* values, const float* sensitivities, int count,
              points mode = points::merged) {
    resize(count);
    if (!check_values(values, count) || !sum_sensitivities(sensitivities, count)) return false;
    if (sizeof(Value) == 2 && count <= 65536)
      gather(values, sensitivities, count, mode, words32_.data(), 16);
    else
      gather(values, sensitivities, count, mode, words64_.data(), 32);
    sum_points();
    return true;
  }

  int size() const { return size_; }    ///< points
  int count() const { return count_; }  ///< elements of the row
  /// Point values, strictly ascending if merged. [size()]
  const float* x() const { return x_.data(); }
  /// Point weights; all positive if merged. [size()]
  const double* w() const { return w_.data(); }
  /// Weight of the points before each. [size() + 1]
  const double* weight_before() const { return weight_before_.data(); }
  /// Weight times (value - center()) of the points before each. [size() + 1]
  const double* sum_before() const { return sum_before_.data(); }
  /// The weighted mean, nearly: subtracted before summing, so that sums do not cancel.
  double center() const { return center_; }
  /// Sum of weight times (value - center())^2.
  double total_square() const { return total_square_; }
  /// Whether every sensitivity was zero, and weights are therefore all one.
  bool without_sensitivity() const { return without_sensitivity_; }
  /// Columns in order of value. [count()]
  const std::uint32_t* order() const { return order_.data(); }
  /// Where each point's columns begin in order(). [size() + 1]
  const std::uint32_t* first_of() const { return first_of_.data(); }

 private:
  void resize(int count) {
    count_ = count;
    const std::size_t n = static_cast<std::size_t>(count);
    if (x_.size() >= n) return;
    x_.resize(n);
    w_.resize(n);
    order_.resize(n);
    first_of_.resize(n + 1);
    weight_before_.resize(n + 1);
    sum_before_.resize(n + 1);
    words32_.resize(2 * n);
    words64_.resize(2 * n);
  }

  template <class Value>
  static bool check_values(const Value* values, int count) {
    int bad = 0;
    for (int i = 0; i < count; ++i) {
      const float x = to_float(values[i]);
      bad |= !(x <= fp16_max && x >= -fp16_max);
    }
    return bad == 0;
  }

  bool sum_sensitivities(const float* s, int count) {
    lowest_weight_ = 0;
    without_sensitivity_ = false;
    if (s == nullptr) return true;
    int bad = 0;
    for (int i = 0; i < count; ++i)
      bad |= !(s[i] >= 0.f && s[i] <= std::numeric_limits<float>::max());
    if (bad != 0) return false;
    double part[4] = {};  // sums side by side: one would wait for each addition
    int i = 0;
    for (; i + 4 <= count; i += 4)
      for (int k = 0; k < 4; ++k) part[k] += static_cast<double>(s[i + k]);
    for (; i < count; ++i) part[0] += static_cast<double>(s[i]);
    const double total = part[0] + part[1] + part[2] + part[3];
    without_sensitivity_ = total == 0;
    // No run of points may weigh nothing, or its mean would be 0/0. Points without sensitivity get
    // a weight that moves no centre by more than a few parts in 10^13 of the row's spread, but that
    // breaks ties: where only such points are, centres become their plain means. It is 256 units in
    // the last place of the row's total, so prefix sums still see it.
    lowest_weight_ = total * 0x1p-44;
    return true;
  }

  template <class Value, class Word>
  void gather(const Value* values, const float* s, int count, points mode, Word* words, int shift) {
    for (int i = 0; i < count; ++i)
      words[i] =
          static_cast<Word>(static_cast<Word>(sort_key(values[i])) << shift) | static_cast<Word>(i);
    constexpr int digit_bits = sizeof(Value) == 2 ? 8 : 11;
    words = radix_sort<digit_bits>(words, words + count, count, shift, 8 * sizeof(Value));
    const bool weighted = s != nullptr && !without_sensitivity_;
    const bool merged = mode == points::merged;
    const double lowest = merged ? lowest_weight_ : 0;
    const Word column_mask = static_cast<Word>((static_cast<Word>(1) << shift) - 1);
    int p = -1;
    Word last = 0;
    for (int i = 0; i < count; ++i) {
      const Word key = words[i] >> shift;
      const std::uint32_t column = static_cast<std::uint32_t>(words[i] & column_mask);
      double weight = weighted ? static_cast<double>(s[column]) : 1.0;
      weight = weight < lowest ? lowest : weight;
      order_[static_cast<std::size_t>(i)] = column;
      if (p >= 0 && merged && key == last) {
        w_[static_cast<std::size_t>(p)] += weight;
        continue;
      }
      last = key;
      ++p;
      first_of_[static_cast<std::size_t>(p)] = static_cast<std::uint32_t>(i);
      x_[static_cast<std::size_t>(p)] = key_value(static_cast<std::uint32_t>(key), Value{});
      w_[static_cast<std::size_t>(p)] = weight;
    }
    size_ = p + 1;
    first_of_[static_cast<std::size_t>(size_)] = static_cast<std::uint32_t>(count);
  }

  void sum_points() {
    double weight[4] = {}, sum[4] = {};
    int i = 0;
    for (; i + 4 <= size_; i += 4)
      for (int k = 0; k < 4; ++k) add_point(i + k, weight[k], sum[k]);
    for (; i < size_; ++i) add_point(i, weight[0], sum[0]);
    const double total = weight[0] + weight[1] + weight[2] + weight[3];
    center_ = total > 0 ? (sum[0] + sum[1] + sum[2] + sum[3]) / total : 0;
    double w = 0, s = 0, q = 0;
    for (i = 0; i < size_; ++i) {
      const double weight_here = w_[static_cast<std::size_t>(i)];
      const double x = static_cast<double>(x_[static_cast<std::size_t>(i)]) - center_;
      weight_before_[static_cast<std::size_t>(i)] = w;
      sum_before_[static_cast<std::size_t>(i)] = s;
      w += weight_here;
      s += weight_here * x;
      q += weight_here * x * x;
    }
    weight_before_[static_cast<std::size_t>(size_)] = w;
    sum_before_[static_cast<std::size_t>(size_)] = s;
    total_square_ = q;
  }

  void add_point(int i, double& weight, double& sum) const {
    const double w = w_[static_cast<std::size_t>(i)];
    weight += w;
    sum += w * static_cast<double>(x_[static_cast<std::size_t>(i)]);
  }

  int size_ = 0, count_ = 0;
  double center_ = 0, total_square_ = 0, lowest_weight_ = 0;
  bool without_sensitivity_ = false;
  std::vector<float> x_;
  std::vector<double> w_, weight_before_, sum_before_;
  std::vector<std::uint32_t> order_, first_of_, words32_;
  std::vector<std::uint64_t> words64_;
};

}  // namespace kmeans
}  // namespace v0_1
}  // namespace bitladder
