// SPDX-License-Identifier: MIT
// Rows of many shapes, and slow answers to compare with.
#pragma once

#include <bitladder/quantize/sorted_row.hpp>

#include <support/random.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace quantize_test {

struct row_data {
  std::vector<float> values, sensitivities;
  int count() const { return static_cast<int>(values.size()); }
};

constexpr int row_kinds = 10;

/// A row of one of `row_kinds` shapes: uniform, normal, heavy tails, a huge spread, outliers, two
/// scales, far apart lumps, ties, zeros, sensitivities partly zero.
inline row_data make_row(support::random& r, int count, int kind) {
  row_data d;
  for (int i = 0; i < count; ++i) {
    double v = kind == 0 ? r.uniform() : kind == 1 ? r.normal() : r.student_t();
    double s = r.chi_squared();
    if (kind == 1) s = std::pow(s, 4.0);
    if (kind == 3) v = std::exp(2 * r.normal());
    if (kind == 4 && r.below(300) == 0) v *= 50;
    if (kind == 5 && r.below(2) == 0) v *= 0.01;
    if (kind == 6) v += 100 * r.below(5);
    if (kind == 7) v = r.below(7) - 3;
    if (kind == 8 && r.below(2) == 0) v = r.below(2) == 0 ? 0.0 : -0.0;
    if (kind == 9 && r.below(3) != 0) s = 0;
    d.values.push_back(static_cast<float>(v));
    d.sensitivities.push_back(static_cast<float>(s));
  }
  return d;
}

/// More than rounding changes an error by: sums are taken of weights times values in double.
inline double rounding(const bitladder::kmeans::sorted_row& row) {
  const double range =
      static_cast<double>(row.x()[row.size() - 1]) - static_cast<double>(row.x()[0]);
  const double largest = range + std::abs(static_cast<double>(row.x()[0]));
  return 1e-11 * row.total_square() + 1e-14 * row.weight_before()[row.size()] * largest * largest;
}

/// Weighted squared error of points [begin, end) about their weighted mean, by plain loops.
inline double run_error(const bitladder::kmeans::sorted_row& row, int begin, int end) {
  double w = 0, s = 0, error = 0;
  for (int i = begin; i < end; ++i) {
    w += row.w()[i];
    s += row.w()[i] * static_cast<double>(row.x()[i]);
  }
  for (int i = begin; i < end; ++i) {
    const double d = static_cast<double>(row.x()[i]) - s / w;
    error += row.w()[i] * d * d;
  }
  return error;
}

/// The same, summed over clusters that begin at `borders`, the last being the end.
inline double clusters_error(const bitladder::kmeans::sorted_row& row,
                             const std::vector<int>& borders) {
  double error = 0;
  for (std::size_t c = 0; c + 1 < borders.size(); ++c)
    if (borders[c] < borders[c + 1]) error += run_error(row, borders[c], borders[c + 1]);
  return error;
}

/// The least error of k clusters, by trying all borders.
inline double least_error(const bitladder::kmeans::sorted_row& row, int k) {
  const int n = row.size();
  std::vector<std::vector<double>> best(
      static_cast<std::size_t>(k) + 1,
      std::vector<double>(static_cast<std::size_t>(n) + 1,
                          std::numeric_limits<double>::infinity()));
  best[0][0] = 0;
  for (std::size_t c = 1; c <= static_cast<std::size_t>(k); ++c)
    for (int j = 0; j <= n; ++j)
      for (int i = 0; i <= j; ++i) {
        const double e =
            best[c - 1][static_cast<std::size_t>(i)] + (i < j ? run_error(row, i, j) : 0);
        if (e < best[c][static_cast<std::size_t>(j)]) best[c][static_cast<std::size_t>(j)] = e;
      }
  return best[static_cast<std::size_t>(k)][static_cast<std::size_t>(n)];
}

}  // namespace quantize_test
