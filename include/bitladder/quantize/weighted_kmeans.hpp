// SPDX-License-Identifier: MIT
// Weighted k-means of one row, solved to the optimum. In one dimension optimal clusters are runs of
// sorted points, so a dynamic program over their borders finds them: best(c, j) = the best c
// clusters of the first j points. The best beginning of the last cluster moves right with j, so
// divide and conquer fills a layer in O(n log n). Errors are counted as gains, sum^2 / weight of
// each cluster, which is the error taken away from that of a single centre. Tested by
// tests/quantize/weighted_kmeans_test.cpp.
#pragma once

#include <bitladder/quantize/interval_search.hpp>
#include <bitladder/quantize/sorted_row.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace kmeans {

/// Places where borders may lie: all points of a row, or every so many of them. Place g has
/// weight[g] and sum[g] before it.
struct border_grid {
  const double* weight;  ///< [last + 1], ascending
  const double* sum;     ///< [last + 1]
  int last;              ///< the row's end
};

/// Places lo..hi, both included.
struct border_window {
  int lo, hi;
};

/// The gain of one cluster from place i to place j > i.
inline double cluster_gain(const border_grid& g, int i, int j) {
  const double s = g.sum[j] - g.sum[i];
  return s * s / (g.weight[j] - g.weight[i]);
}

/// The dynamic program, border c = 1..k-1 confined to a window. Memory is kept from row to row.
class border_program {
 public:
  explicit border_program(interval_search search = interval_search::fastest()) : search_(search) {}

  /// Fills best(c, j) for all c < k and j in window c. Windows ascend in c at both ends; unless
  /// `may_be_empty`, which lets clusters be, they do so strictly.
  /// @param windows k - 1 of them, k >= 2
  void forward(const border_grid& grid, const std::vector<border_window>& windows,
               bool may_be_empty) {
    place(windows);
    const border_window& first = windows[0];
    for (int j = first.lo; j <= first.hi; ++j)
      gain_[at(0, j)] = j > 0 ? cluster_gain(grid, 0, j) : 0;
    for (int c = 1; c < static_cast<int>(windows.size()); ++c) {
      const border_window& rows = windows_[static_cast<std::size_t>(c)];
      const border_window& from = windows_[static_cast<std::size_t>(c - 1)];
      int j = rows.lo;
      for (; j <= from.lo && j <= rows.hi; ++j) gain_[at(c, j)] = impossible;
      layer(grid, c, j, rows.hi, from.lo, from.hi);
      if (!may_be_empty) continue;
      for (j = rows.lo; j <= rows.hi && j <= from.hi; ++j) {
        if (gain_[at(c - 1, j)] <= gain_[at(c, j)]) continue;
        gain_[at(c, j)] = gain_[at(c - 1, j)];
        start_[at(c, j)] = j;
      }
    }
  }

  /// The best k clusters of the whole row, after forward().
  /// @param borders receives the k - 1 places between clusters
  /// @return their gain
  double finish(const border_grid& grid, std::vector<int>& borders) const {
    const int last = static_cast<int>(windows_.size()) - 1;
    const border_window& w = windows_[static_cast<std::size_t>(last)];
    const int hi = w.hi < grid.last ? w.hi : grid.last - 1;
    candidate best{0, gain_[at(last, w.lo)]};  // the last cluster is empty, if w.lo is the end
    if (w.lo <= hi)
      best = search_.best_interval(&gain_[at(last, w.lo)], grid.sum + w.lo, grid.weight + w.lo,
                                   hi - w.lo + 1, grid.sum[grid.last], grid.weight[grid.last]);
    borders.resize(windows_.size());
    int j = w.lo + best.index;
    for (int c = last; c >= 0; --c) {
      borders[static_cast<std::size_t>(c)] = j;
      if (c > 0) j = start_[at(c, j)];
    }
    return best.value;
  }

  /// Drops from both ends of each window, after forward(), the places through which no division
  /// into k clusters, empty ones allowed, gains as much as `threshold`.
  void narrow(const border_grid& grid, double threshold, std::vector<border_window>& windows) {
    const int last = static_cast<int>(windows.size()) - 1;
    for (int c = last; c >= 0; --c) {
      border_window& w = windows[static_cast<std::size_t>(c)];
      backward(grid, c, last, w, windows);
      int lo = w.lo, hi = w.hi;
      const auto dead = [&](int j) {
        return gain_[at(c, j)] + after_[static_cast<std::size_t>(j)] < threshold;
      };
      while (lo < hi && dead(lo)) ++lo;
      while (lo < hi && dead(hi)) --hi;
      w = {lo, hi};
      std::swap(after_, after_next_);
    }
  }

 private:
  static constexpr double impossible = -std::numeric_limits<double>::infinity();

  void place(const std::vector<border_window>& windows) {
    windows_ = windows;
    offset_.resize(windows.size());
    std::size_t size = 0;
    for (std::size_t c = 0; c < windows.size(); ++c) {
      offset_[c] = static_cast<std::ptrdiff_t>(size) - windows[c].lo;
      size += static_cast<std::size_t>(windows[c].hi - windows[c].lo + 1);
    }
    if (gain_.size() < size) {
      gain_.resize(size);
      start_.resize(size);
    }
  }

  std::size_t at(int c, int j) const {
    return static_cast<std::size_t>(offset_[static_cast<std::size_t>(c)] + j);
  }

  /// best(c, j) for j in [jl, jr], the last cluster beginning in [il, ir]; il < jl. Every 2^s-th
  /// row, then the rows between, and so on: rows of one step do not wait for each other.
  void layer(const border_grid& grid, int c, int jl, int jr, int il, int ir) {
    if (jl > jr) return;
    for (int step = first_step(jr - jl + 1); step > 0; step /= 2) {
      for (int j = jl + step - 1; j <= jr; j += 2 * step) {
        const int lo = j - step >= jl ? start_[at(c, j - step)] : il;
        int hi = j + step <= jr ? start_[at(c, j + step)] : ir;
        hi = hi < j ? hi : j - 1;
        const candidate best =
            search_.best_interval(&gain_[at(c - 1, lo)], grid.sum + lo, grid.weight + lo,
                                  hi - lo + 1, grid.sum[j], grid.weight[j]);
        gain_[at(c, j)] = best.value;
        start_[at(c, j)] = lo + best.index;
      }
    }
  }

  /// The largest power of two not above `rows`.
  static int first_step(int rows) {
    int step = 1;
    while (step <= rows / 2) step *= 2;
    return step;
  }

  /// after_[i] = the best gain of the clusters that follow border c at place i, borders c + 1 and
  /// on within `windows`, which are narrow already.
  void backward(const border_grid& grid, int c, int last, const border_window& w,
                const std::vector<border_window>& windows) {
    if (after_.size() <= static_cast<std::size_t>(grid.last)) {
      after_.resize(static_cast<std::size_t>(grid.last) + 1);
      after_next_.resize(static_cast<std::size_t>(grid.last) + 1);
      start_of_next_.resize(static_cast<std::size_t>(grid.last) + 1);
    }
    if (c == last) {
      for (int i = w.lo; i <= w.hi; ++i)
        after_[static_cast<std::size_t>(i)] = i < grid.last ? cluster_gain(grid, i, grid.last) : 0;
      return;
    }
    const border_window& to = windows[static_cast<std::size_t>(c) + 1];
    int i = w.hi;
    for (; i >= to.hi && i >= w.lo; --i) after_[static_cast<std::size_t>(i)] = impossible;
    backward_layer(grid, w.lo, i, to.lo, to.hi);
    for (i = w.lo > to.lo ? w.lo : to.lo; i <= w.hi && i <= to.hi; ++i)
      if (after_next_[static_cast<std::size_t>(i)] > after_[static_cast<std::size_t>(i)])
        after_[static_cast<std::size_t>(i)] = after_next_[static_cast<std::size_t>(i)];
  }

  /// The mirror of layer(): after_[i] for i in [il, ir], the next border in [jl, jr]; ir < jr.
  void backward_layer(const border_grid& grid, int il, int ir, int jl, int jr) {
    if (il > ir) return;
    int* const next = start_of_next_.data();
    for (int step = first_step(ir - il + 1); step > 0; step /= 2) {
      for (int i = il + step - 1; i <= ir; i += 2 * step) {
        int lo = i - step >= il ? next[i - step] : jl;
        lo = lo > i ? lo : i + 1;
        const int hi = i + step <= ir ? next[i + step] : jr;
        const candidate best =
            search_.best_interval(&after_next_[static_cast<std::size_t>(lo)], grid.sum + lo,
                                  grid.weight + lo, hi - lo + 1, grid.sum[i], grid.weight[i]);
        after_[static_cast<std::size_t>(i)] = best.value;
        next[i] = lo + best.index;
      }
    }
  }

  interval_search search_;
  std::vector<border_window> windows_;
  std::vector<std::ptrdiff_t> offset_;  // of place 0 of layer c in gain_ and start_
  std::vector<double> gain_;            // best(c, j), layer after layer
  std::vector<int> start_;              // where its last cluster begins
  std::vector<double> after_, after_next_;
  std::vector<int> start_of_next_;
};

}  // namespace kmeans
}  // namespace v0_1
}  // namespace bitladder
