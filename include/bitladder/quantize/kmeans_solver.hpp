// SPDX-License-Identifier: MIT
// The optimum of weighted_kmeans.hpp at a fraction of its work: the program runs on a coarse grid
// of borders first, and where it proves that no optimal border can lie, the finer grids do not
// look.
//
// The proof. Let P be an optimal division, with cost(P) <= U for any division's cost U. Each of its
// borders lies midway between two neighbouring centres. Round P to the grid: give every block of
// points whole to the centre nearest to the block's mean. A block that no border of P cuts is not
// moved. In a cut block, the least squared distance to a centre is, as a function of the point, x^2
// plus a concave function with a kink of slope 2 * (distance of the centres) at the border, so the
// block costs at most 2 * distance * spread more than in P, where spread = the sum of weight * (x -
// mean) over the block's points above its mean. Hence some division on the grid, its borders within
// one block of P's, costs at most U + slack: places that no such division uses are out.
//
// Tested by tests/quantize/kmeans_solver_test.cpp.
#pragma once

#include <bitladder/quantize/weighted_kmeans.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace kmeans {

/// Finds optimal clusters of one row after another.
class kmeans_solver {
 public:
  explicit kmeans_solver(interval_search search = interval_search::fastest()) : program_(search) {}

  /// The k clusters of least weighted squared error; the row has merged points.
  /// @param borders receives k - 1 ascending points, the first of each cluster but the first; those
  /// past the row's points are its size
  void solve(const sorted_row& row, int k, std::vector<int>& borders) {
    borders.clear();
    if (row.size() <= k) {
      for (int c = 1; c < k; ++c) borders.push_back(std::min(c, row.size()));
      return;
    }
    if (k == 1) return;
    const border_grid all{row.weight_before(), row.sum_before(), row.size()};
    if (k == 2 || row.size() < worthwhile * k || !narrow(row, all, k)) {
      windows_.clear();
      for (int c = 1; c < k; ++c) windows_.push_back({c, row.size() - (k - c)});
    }
    program_.forward(all, windows_, false);
    program_.finish(all, borders);
  }

 private:
  // Measured at 8 clusters on rows of 4096 and 11008: with 16 blocks a quarter slower, since the
  // windows left are wide; with 48 slower again, since the grid costs what it saves.
  static constexpr int blocks_per_cluster = 28;
  static constexpr int worthwhile = 4 * blocks_per_cluster;  // points per cluster: below, try all

  /// Leaves the windows of optimal borders in windows_.
  /// @return false if there is none that works: weights so unlike each other that sums lose some
  bool narrow(const sorted_row& row, const border_grid& all, int k) {
    make_blocks(row, k);
    const border_grid grid{weight_.data(), sum_.data(), static_cast<int>(point_.size()) - 1};
    tolerance_ = 1e-10 * row.total_square();
    windows_.assign(static_cast<std::size_t>(k - 1), {0, grid.last});
    program_.forward(grid, windows_, true);
    program_.finish(grid, path_);
    const double gain = improve(row, all) - tolerance_;
    program_.narrow(grid, gain - slack_by_cost(row, grid, row.total_square() - gain), windows_);
    spread_windows(grid);
    if (!windows_open()) return false;
    program_.narrow(grid, gain - slack_by_windows(row, all), windows_);
    spread_windows(grid);
    for (int c = 1; c < k; ++c) {
      border_window& w = windows_[static_cast<std::size_t>(c) - 1];
      w = {std::max(point(w.lo), c), std::min(point(w.hi), row.size() - (k - c))};
    }
    order_windows(1);
    return windows_open();
  }

  bool windows_open() const {
    return std::all_of(windows_.begin(), windows_.end(),
                       [](const border_window& w) { return w.lo <= w.hi; });
  }

  /// From places that a division on the grid may use to those that an optimal one may: within a
  /// block.
  void spread_windows(const border_grid& grid) {
    for (border_window& w : windows_) w = {std::max(w.lo - 1, 0), std::min(w.hi + 1, grid.last)};
    order_windows(0);
  }

  /// Makes windows ascend by at least `step` at both ends, as the borders in them do.
  void order_windows(int step) {
    for (std::size_t c = 1; c < windows_.size(); ++c)
      windows_[c].lo = std::max(windows_[c].lo, windows_[c - 1].lo + step);
    for (std::size_t c = windows_.size() - 1; c > 0; --c)
      windows_[c - 1].hi = std::min(windows_[c - 1].hi, windows_[c].hi - step);
  }

  /// Cuts the row into blocks of about equal weight * width, small where points are dense and in
  /// the tails, since that is what bounds their spread.
  void make_blocks(const sorted_row& row, int k) {
    const float* const x = row.x();
    const double* const w = row.weight_before();
    const int n = row.size();
    double roots = 0;  // the root of weight * width adds up over neighbouring blocks, nearly
    for (int i = 0; i < n - 1; i += 8) {
      const int j = std::min(i + 8, n - 1);
      roots += std::sqrt((w[j] - w[i]) * static_cast<double>(x[j] - x[i]));
    }
    const double step = roots / (blocks_per_cluster * k);
    point_.clear();
    weight_.clear();
    sum_.clear();
    for (int i = 0; i <= n;) {
      point_.push_back(i);
      weight_.push_back(w[i]);
      sum_.push_back(row.sum_before()[i]);
      int j = i + 1;
      while (j < n && (w[j + 1] - w[i]) * static_cast<double>(x[j] - x[i]) <= step * step) ++j;
      i = j;
    }
  }

  int point(int place) const { return point_[static_cast<std::size_t>(place)]; }

  /// The gain after Lloyd's steps on all points from the borders `path_` of the grid.
  double improve(const sorted_row& row, const border_grid& all) {
    constexpr int most_steps = 24;
    const int n = row.size(), borders = static_cast<int>(path_.size());
    path_.insert(path_.begin(), 0);
    path_.push_back(n);
    for (int c = 1; c <= borders; ++c) {
      int& p = path_[static_cast<std::size_t>(c)];
      p = std::max(point(p), path_[static_cast<std::size_t>(c) - 1] + 1);
    }
    for (int c = borders; c >= 1; --c) {
      int& p = path_[static_cast<std::size_t>(c)];
      p = std::min(p, path_[static_cast<std::size_t>(c) + 1] - 1);
    }
    const auto mean = [&](int c) {
      const int i = path_[static_cast<std::size_t>(c)], j = path_[static_cast<std::size_t>(c) + 1];
      return (all.sum[j] - all.sum[i]) / (all.weight[j] - all.weight[i]);
    };
    for (int step = 0; step < most_steps; ++step) {
      bool moved = false;
      double left = mean(0);
      for (int c = 1; c <= borders; ++c) {
        const double right = mean(c);
        const double middle = (left + right) / 2 + row.center();
        left = right;
        int& p = path_[static_cast<std::size_t>(c)];
        const int floor = path_[static_cast<std::size_t>(c) - 1] + 1;
        const int ceiling = path_[static_cast<std::size_t>(c) + 1] - 1;
        const int found = static_cast<int>(
            std::lower_bound(row.x() + floor, row.x() + ceiling, middle,
                             [](float a, double b) { return static_cast<double>(a) < b; }) -
            row.x());
        moved = moved || found != p;
        p = found;
      }
      if (!moved) break;
    }
    double gain = 0;
    for (int c = 0; c <= borders; ++c)
      gain += cluster_gain(all, path_[static_cast<std::size_t>(c)],
                           path_[static_cast<std::size_t>(c) + 1]);
    return gain;
  }

  /// The sum of weight * (x - mean) over the points of a run above its mean.
  static double spread(const sorted_row& row, int begin, int end) {
    if (end - begin < 2) return 0;
    const double* const w = row.weight_before();
    const double* const s = row.sum_before();
    const double mean = (s[end] - s[begin]) / (w[end] - w[begin]);
    const double middle = mean + row.center();
    const int above = static_cast<int>(
        std::lower_bound(row.x() + begin, row.x() + end, middle,
                         [](float a, double b) { return static_cast<double>(a) < b; }) -
        row.x());
    return (s[end] - s[above]) - mean * (w[end] - w[above]);
  }

  /// What rounding an optimal division to blocks can cost, `cost` being no less than its own.
  double slack_by_cost(const sorted_row& row, const border_grid& grid, double cost) const {
    const float* const x = row.x();
    double most = 0;  // of one border
    int left = 0, right = 0;
    for (int b = 0; b < grid.last; ++b) {
      const double s = spread(row, point(b), point(b + 1));
      if (s <= 0) continue;
      const double high = static_cast<double>(x[point(b + 1) - 1]);
      const double low = static_cast<double>(x[point(b)]);
      const double widest =
          std::min(high - static_cast<double>(x[0]), static_cast<double>(x[row.size() - 1]) - low);
      // The distance of the centres is twice the half gap. Most blocks take one test: that the
      // largest slack so far is enough.
      double half = most > 0 ? most / (4 * s) : high - low;
      while (half < widest && !too_wide(row, grid, b, half, cost, left, right)) half *= 1.125;
      most = std::max(most, 4 * std::min(half, widest) * s);
    }
    return most * static_cast<double>(windows_.size());
  }

  /// Whether the points between a border in block b and centres `half` or more away on both sides
  /// would alone cost more than `cost`. The points are whole blocks, from `left` to b and from b +
  /// 1 to `right`: looked for from where they were before, since they move little.
  bool too_wide(const sorted_row& row, const border_grid& grid, int b, double half, double cost,
                int& left, int& right) const {
    const float* const x = row.x();
    const double left_centre = static_cast<double>(x[point(b + 1) - 1]) - half;
    const double right_centre = static_cast<double>(x[point(b)]) + half;
    left = std::min(left, b);
    while (left > 0 && static_cast<double>(x[point(left - 1)]) >= left_centre) --left;
    while (left < b && static_cast<double>(x[point(left)]) < left_centre) ++left;
    right = std::max(right, b + 1);
    while (right < grid.last && static_cast<double>(x[point(right + 1) - 1]) <= right_centre)
      ++right;
    while (right > b + 1 && static_cast<double>(x[point(right) - 1]) > right_centre) --right;
    // Points cost at least what their mean does.
    const auto run_cost = [&](int i, int j, double centre) {
      const double w = grid.weight[j] - grid.weight[i];
      const double moment = (grid.sum[j] - grid.sum[i]) - (centre - row.center()) * w;
      return w > 0 ? moment * moment / w : 0;
    };
    return run_cost(left, b, left_centre) + run_cost(b + 1, right, right_centre) > cost;
  }

  /// The same, given the windows of an optimal division's borders.
  double slack_by_windows(const sorted_row& row, const border_grid& all) const {
    const int n = row.size(), k = static_cast<int>(windows_.size()) + 1;
    const auto low = [&](int c) { return c == 0 ? 0 : point(window(c).lo); };
    const auto high = [&](int c) { return c == k ? n : point(window(c).hi); };
    const auto mean = [&](int i, int j) {  // grows with both ends of the run
      return (all.sum[j] - all.sum[i]) / (all.weight[j] - all.weight[i]);
    };
    double slack = 0;
    for (int c = 1; c < k; ++c) {
      const int i0 = std::min(low(c - 1), n - 1), j0 = std::max(low(c), i0 + 1);
      const int j1 = std::max(high(c + 1), 1), i1 = std::min(high(c), j1 - 1);
      const double distance = mean(i1, j1) - mean(i0, j0);
      double most = 0;
      for (int b = window(c).lo; b < window(c).hi; ++b)
        most = std::max(most, spread(row, point(b), point(b + 1)));
      slack += 2 * distance * most;
    }
    return slack;
  }

  const border_window& window(int c) const { return windows_[static_cast<std::size_t>(c) - 1]; }

  border_program program_;
  std::vector<border_window> windows_;
  std::vector<int> point_;            // the grid: places are points[...],
  std::vector<double> weight_, sum_;  // with this weight and sum before them
  std::vector<int> path_;
  double tolerance_ = 0;  // for rounding in gains
};

}  // namespace kmeans
}  // namespace v0_1
}  // namespace bitladder
