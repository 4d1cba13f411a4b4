// SPDX-License-Identifier: MIT
// The whole ladder of one row: its codes at the widest precision, of which narrower codes are the
// top bits, and a table for every precision. Tested by tests/quantize/row_ladder_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/quantize/kmeans_solver.hpp>
#include <bitladder/quantize/merge.hpp>
#include <bitladder/quantize/options.hpp>
#include <bitladder/quantize/published.hpp>
#include <bitladder/quantize/upscale.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace kmeans {

/// Weight, mean and weighted squared error about the mean of some points.
struct moments {
  double weight = 0, mean = 0, error = 0;

  /// Those of both together.
  friend moments operator+(const moments& a, const moments& b) {
    if (b.weight == 0) return a;
    if (a.weight == 0) return b;
    const double weight = a.weight + b.weight;
    const double shift = b.mean - a.mean;
    return {weight, a.mean + shift * (b.weight / weight),
            a.error + b.error + shift * shift * (a.weight * (b.weight / weight))};
  }
};

/// Builds the ladders of one row after another, keeping its memory.
class row_ladder {
 public:
  explicit row_ladder(interval_search search = interval_search::fastest())
      : search_(search), solver_(search) {}

  /// @param values one row or column group, `count` >= 1 values
  /// @param sensitivities as many, or null for uniform
  /// @param options valid; `groups` is not looked at
  /// @return false if a value or sensitivity cannot be quantized: see sorted_row::assign
  template <class Value>
  bool build(const Value* values, const float* sensitivities, int count,
             const kmeans_options& options) {
    options_ = options;
    const bool exact = options.method == quantize_method::exact;
    if (!row_.assign(values, sensitivities, count,
                     exact ? sorted_row::points::merged : sorted_row::points::as_they_are))
      return false;
    if (exact)
      find_exact();
    else
      find_published();
    sum_moments();
    if (exact) fill_exact_tables();
    return true;
  }

  /// The points that borders() counts.
  const sorted_row& points() const { return row_; }
  /// Where each code of max_bits begins among the points, then their number. [2^max_bits + 1]
  const std::vector<int>& borders() const { return borders_; }
  /// The table of one precision, unrounded, ascending. [2^bits]
  const std::vector<double>& table(int bits) const {
    return tables_[static_cast<std::size_t>(bits - 1)];
  }
  /// The same in fp16. [2^bits]
  void round_table(int bits, fp16_t* out) const {
    for (const double t : table(bits)) *out++ = to_fp16(static_cast<float>(t));
  }
  /// The code of every column. [count]
  void codes(std::uint8_t* out) const {
    const std::uint32_t* const order = row_.order();
    for (std::size_t c = 0; c + 1 < borders_.size(); ++c) {
      const std::uint32_t end = row_.first_of()[borders_[c + 1]];
      for (std::uint32_t i = row_.first_of()[borders_[c]]; i < end; ++i)
        out[order[i]] = static_cast<std::uint8_t>(c);
    }
  }
  /// Sum of sensitivity * (value - its entry in `table`)^2; zero for a row without sensitivity.
  /// @param table [2^bits]
  double weighted_error(int bits, const fp16_t* table) const {
    if (row_.without_sensitivity()) return 0;
    double sum = 0;
    for (const moments& m : moments_[static_cast<std::size_t>(bits)]) {
      const double shift = m.mean - static_cast<double>(to_float(*table++));
      sum += m.error + m.weight * shift * shift;
    }
    return sum;
  }
  /// Sum of sensitivity * (value - weighted mean)^2; zero for a row without sensitivity.
  double weighted_variance() const { return row_.without_sensitivity() ? 0 : moments_[0][0].error; }

 private:
  void find_exact() {
    const border_grid all{row_.weight_before(), row_.sum_before(), row_.size()};
    solver_.solve(row_, 1 << options_.seed_bits, starts_);
    starts_.insert(starts_.begin(), 0);
    while (starts_.back() == row_.size()) starts_.pop_back();  // clusters without points
    nest_clusters(all, starts_, options_.seed_bits, options_.min_bits, borders_);
    for (int b = options_.seed_bits; b < options_.max_bits; ++b)
      split_clusters(row_, search_, b + 1 < options_.max_bits ? options_.lookahead : 0, borders_,
                     cut_values_);
  }

  void find_published() {
    published_.assign(row_);
    std::vector<double> centres;
    published_.seed(1 << options_.seed_bits, options_.random_state, borders_, centres);
    table_of(options_.seed_bits) = centres;
    const std::vector<int> seed = borders_;
    for (int b = options_.seed_bits; b < options_.max_bits; ++b) {
      published_.split(borders_, centres);
      table_of(b + 1) = centres;
    }
    for (int b = options_.seed_bits - 1; b >= options_.min_bits; --b) {
      // Not in the original: pairs of clusters, with their mean.
      const std::vector<double>& finer = table_of(b + 1);
      std::vector<double>& t = table_of(b);
      t.resize(finer.size() / 2);
      const int points = options_.seed_bits - b;
      for (std::size_t c = 0; c < t.size(); ++c) {
        double weight = 0, sum = 0;
        for (int i = seed[c << points]; i < seed[(c + 1) << points]; ++i) {
          weight += row_.w()[i];
          sum += row_.w()[i] * static_cast<double>(row_.x()[i]);
        }
        t[c] = weight > 0 ? sum / weight : (finer[2 * c] + finer[2 * c + 1]) / 2;
      }
    }
    // Codes without weights keep centres of earlier steps, which others may have passed since.
    for (int b = options_.min_bits; b <= options_.max_bits; ++b)
      for (std::size_t c = 1; c < table_of(b).size(); ++c)
        table_of(b)[c] = std::max(table_of(b)[c], table_of(b)[c - 1]);
  }

  std::vector<double>& table_of(int bits) { return tables_[static_cast<std::size_t>(bits - 1)]; }

  /// Moments of every code of every precision, from the points up: prefix sums would cancel.
  void sum_moments() {
    std::vector<moments>& leaves = moments_[static_cast<std::size_t>(options_.max_bits)];
    leaves.resize(borders_.size() - 1);
    for (std::size_t c = 0; c < leaves.size(); ++c) {
      const int begin = borders_[c], end = borders_[c + 1];
      leaves[c] = {};
      if (begin == end) continue;
      const double first = static_cast<double>(row_.x()[begin]);
      double weight = 0, sum = 0, square = 0;
      for (int i = begin; i < end; ++i) {
        const double w = row_.w()[i], d = static_cast<double>(row_.x()[i]) - first;
        weight += w;
        sum += w * d;
        square += w * d * d;
      }
      if (weight > 0)
        leaves[c] = {weight, first + sum / weight, std::max(square - sum * (sum / weight), 0.0)};
    }
    for (int b = options_.max_bits - 1; b >= 0; --b) {
      const std::vector<moments>& finer = moments_[static_cast<std::size_t>(b) + 1];
      std::vector<moments>& coarser = moments_[static_cast<std::size_t>(b)];
      coarser.resize(finer.size() / 2);
      for (std::size_t c = 0; c < coarser.size(); ++c) coarser[c] = finer[2 * c] + finer[2 * c + 1];
    }
  }

  void fill_exact_tables() {
    for (int b = options_.min_bits; b <= options_.max_bits; ++b) {
      const std::vector<moments>& all = moments_[static_cast<std::size_t>(b)];
      std::vector<double>& t = table_of(b);
      t.resize(all.size());
      const int shift = options_.max_bits - b;
      for (std::size_t c = 0; c < t.size(); ++c) {
        const int begin = borders_[c << shift], end = borders_[(c + 1) << shift];
        if (begin < end) {
          // A mean lies among its points; rounding must not put it outside, or tables would not
          // ascend.
          t[c] = std::min(std::max(all[c].mean, static_cast<double>(row_.x()[begin])),
                          static_cast<double>(row_.x()[end - 1]));
        } else {
          // A code that no weight has: its parent's value, or at the top its neighbour's.
          t[c] = b > options_.min_bits ? table_of(b - 1)[c / 2] : t[c - 1];
        }
      }
    }
  }

  kmeans_options options_;
  interval_search search_;
  sorted_row row_;
  kmeans_solver solver_;
  published_kmeans published_;
  std::vector<int> starts_, borders_;
  std::vector<double> cut_values_;
  std::array<std::vector<moments>, 9> moments_;  // of 0..8 bits
  std::array<std::vector<double>, 8> tables_;    // of 1..8 bits
};

}  // namespace kmeans
}  // namespace v0_1
}  // namespace bitladder
