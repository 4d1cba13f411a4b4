// SPDX-License-Identifier: MIT
// The published any-precision quantizer (Park et al., arXiv 2402.10517), for comparison: greedy
// k-means++ and Lloyd's steps at the seed, then a search for a fixed point of Lloyd's step in each
// cluster. Values equal to zero weigh nothing, and where the search ends without a fixed point the
// centres are those of the cut before, as in the original. Tested by
// tests/quantize/published_test.cpp.
#pragma once

#include <bitladder/quantize/sorted_row.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace kmeans {

/// Clusters of one row after another.
class published_kmeans {
 public:
  /// Sample weights of a row of points as they are.
  void assign(const sorted_row& row) {
    x_ = row.x();
    count_ = row.size();
    const std::size_t n = static_cast<std::size_t>(count_);
    weight_.resize(n);
    plain_.assign(n, 1.0);
    for (std::size_t i = 0; i < n; ++i) weight_[i] = x_[i] == 0.f ? 0.0 : row.w()[i];
    if (std::all_of(weight_.begin(), weight_.end(), [](double w) { return w == 0; }))
      weight_ = plain_;
    sum_up(weight_, weight_before_, sum_before_);
    sum_up(plain_, plain_before_, plain_sum_before_);
    samples_before_.resize(n + 1);
    samples_before_[0] = 0;
    for (std::size_t i = 0; i < n; ++i)
      samples_before_[i + 1] = samples_before_[i] + (weight_[i] > 0 ? 1 : 0);
  }

  /// k clusters.
  /// @param borders receives where each begins, then the row's size; [k + 1]
  /// @param centres receives their values, ascending; [k]
  void seed(int k, std::uint64_t random_state, std::vector<int>& borders,
            std::vector<double>& centres) {
    plus_plus(k, random_state, centres);
    std::sort(centres.begin(), centres.end());
    borders.assign(static_cast<std::size_t>(k) + 1, 0);
    borders.back() = count_;
    std::vector<int> before;
    for (int step = 0; step < most_steps; ++step) {
      before = borders;
      for (std::size_t c = 1; c < static_cast<std::size_t>(k); ++c)
        borders[c] = static_cast<int>(
            std::lower_bound(x_, x_ + count_, (centres[c - 1] + centres[c]) / 2,
                             [](float a, double b) { return static_cast<double>(a) < b; }) -
            x_);
      if (borders == before) break;
      for (std::size_t c = 0; c < static_cast<std::size_t>(k); ++c)
        if (borders[c] < borders[c + 1]) centres[c] = mean(borders[c], borders[c + 1]);
    }
  }

  /// Every cluster becomes two.
  /// @param borders [clusters + 1] in, [2 * clusters + 1] out
  /// @param centres [clusters] in, [2 * clusters] out
  void split(std::vector<int>& borders, std::vector<double>& centres) const {
    const std::vector<int> from = borders;
    const std::vector<double> parents = centres;
    borders.assign(2 * parents.size() + 1, from.back());
    centres.resize(2 * parents.size());
    for (std::size_t c = 0; c < parents.size(); ++c) {
      const cut two = cut_cluster(from[c], from[c + 1], parents[c]);
      borders[2 * c] = from[c];
      borders[2 * c + 1] = two.border;
      centres[2 * c] = two.left;
      centres[2 * c + 1] = two.right;
    }
  }

 private:
  static constexpr int most_steps = 50;

  struct cut {
    int border;
    double left, right;
  };

  void sum_up(const std::vector<double>& w, std::vector<double>& weights,
              std::vector<double>& sums) const {
    weights.resize(w.size() + 1);
    sums.resize(w.size() + 1);
    weights[0] = sums[0] = 0;
    for (std::size_t i = 0; i < w.size(); ++i) {
      weights[i + 1] = weights[i] + w[i];
      sums[i + 1] = sums[i] + w[i] * static_cast<double>(x_[i]);
    }
  }

  /// The mean of a run of points that weigh something, which rounding does not put outside them.
  double ratio(const std::vector<double>& sums, const std::vector<double>& weights, int begin,
               int end) const {
    const std::size_t b = static_cast<std::size_t>(begin), e = static_cast<std::size_t>(end);
    const double mean = (sums[e] - sums[b]) / (weights[e] - weights[b]);
    return std::min(std::max(mean, static_cast<double>(x_[begin])),
                    static_cast<double>(x_[end - 1]));
  }

  double mean(int begin, int end) const {
    return weighs(weight_before_, begin, end) ? ratio(sum_before_, weight_before_, begin, end)
                                              : ratio(plain_sum_before_, plain_before_, begin, end);
  }

  static bool weighs(const std::vector<double>& weights, int begin, int end) {
    return weights[static_cast<std::size_t>(end)] > weights[static_cast<std::size_t>(begin)];
  }

  int samples(int begin, int end) const {  // with weight
    return samples_before_[static_cast<std::size_t>(end)] -
           samples_before_[static_cast<std::size_t>(begin)];
  }

  void plus_plus(int k, std::uint64_t random_state, std::vector<double>& centres) {
    const int trials = 2 + static_cast<int>(std::log(static_cast<double>(k)));
    const std::size_t n = static_cast<std::size_t>(count_);
    std::uint64_t state = random_state;
    nearest_.assign(n, 1.0);
    centres.assign(1, static_cast<double>(x_[draw(state)]));
    move_nearest(centres[0], false);
    while (centres.size() < static_cast<std::size_t>(k)) {
      double best = 0, best_total = -1;
      for (int t = 0; t < trials; ++t) {
        const double candidate = static_cast<double>(x_[draw(state)]);
        double total = 0;
        for (std::size_t i = 0; i < n; ++i) {
          const double d = static_cast<double>(x_[i]) - candidate;
          total += weight_[i] * std::min(nearest_[i], d * d);
        }
        if (best_total >= 0 && total >= best_total) continue;
        best = candidate;
        best_total = total;
      }
      centres.push_back(best);
      move_nearest(best, true);
    }
  }

  void move_nearest(double centre, bool keep_nearer) {
    for (std::size_t i = 0; i < nearest_.size(); ++i) {
      const double d = static_cast<double>(x_[i]) - centre;
      nearest_[i] = keep_nearer ? std::min(nearest_[i], d * d) : d * d;
    }
  }

  /// A point, with probability proportional to its weight times nearest_.
  int draw(std::uint64_t& state) const {
    double total = 0;
    for (std::size_t i = 0; i < nearest_.size(); ++i) total += weight_[i] * nearest_[i];
    std::uint64_t z = state += 0x9e3779b97f4a7c15u;  // splitmix64
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    double at = static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53 * total;
    for (int i = 0; i < count_ - 1; ++i) {
      at -= weight_[static_cast<std::size_t>(i)] * nearest_[static_cast<std::size_t>(i)];
      if (at < 0) return i;
    }
    return count_ - 1;
  }

  cut cut_cluster(int begin, int end, double parent) const {
    if (begin == end) return {end, parent, parent};
    const double first = static_cast<double>(x_[begin]);
    if (end - begin == 1) return {end, first, first};
    if (end - begin == 2) return {begin + 1, first, static_cast<double>(x_[begin + 1])};
    if (samples(begin, end) == 1) {
      const double only = mean(begin, end);
      return {end, only, only};
    }
    const bool plain = !weighs(weight_before_, begin, end);
    const std::vector<double>& weights = plain ? plain_before_ : weight_before_;
    const std::vector<double>& sums = plain ? plain_sum_before_ : sum_before_;
    int floor = begin + 1, ceiling = end - 1;
    cut result{0, parent, parent};
    while (floor < ceiling) {
      const int d = (floor + ceiling) / 2;
      if (!weighs(weights, begin, d)) {
        floor = d + 1;
      } else if (!weighs(weights, d, end)) {
        ceiling = d - 1;
      } else {
        result.left = ratio(sums, weights, begin, d);
        result.right = ratio(sums, weights, d, end);
        const double middle = (result.left + result.right) / 2;
        if (static_cast<double>(x_[d - 1]) <= middle && middle <= static_cast<double>(x_[d])) {
          floor = ceiling = d;
        } else if (middle > static_cast<double>(x_[d])) {
          floor = d + 1;
        } else {
          ceiling = d - 1;
        }
      }
    }
    result.border = (floor + ceiling) / 2;
    return result;
  }

  const float* x_ = nullptr;
  int count_ = 0;
  std::vector<double> weight_, plain_, nearest_;
  std::vector<double> weight_before_, sum_before_, plain_before_, plain_sum_before_;
  std::vector<int> samples_before_;
};

}  // namespace kmeans
}  // namespace v0_1
}  // namespace bitladder
