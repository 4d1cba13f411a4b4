// SPDX-License-Identifier: MIT
// Precisions below the seed: neighbouring clusters are joined so that codes stay nested. If all
// 2^bits clusters have points the pairs are given, (0, 1), (2, 3) and so on; with fewer, only as
// many pairs as needed are joined, those that cost least. Tested by tests/quantize/merge_test.cpp.
#pragma once

#include <bitladder/quantize/weighted_kmeans.hpp>

#include <cstddef>
#include <limits>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace kmeans {

/// The least costly way to join runs of neighbours in pairs until at most `most` remain; at least
/// half of the runs are to remain.
/// @param starts where each run of points begins; all are non-empty
/// @return the index of the first run of each group
inline std::vector<int> join_pairs(const border_grid& points, const std::vector<int>& starts,
                                   int most) {
  const int runs = static_cast<int>(starts.size());
  const int pairs = runs > most ? runs - most : 0;
  const auto end = [&](int r) {
    return r + 1 < runs ? starts[static_cast<std::size_t>(r) + 1] : points.last;
  };
  const auto begin = [&](int r) { return starts[static_cast<std::size_t>(r)]; };
  const auto loss = [&](int r) {  // of joining runs r and r + 1
    return cluster_gain(points, begin(r), end(r)) + cluster_gain(points, end(r), end(r + 1)) -
           cluster_gain(points, begin(r), end(r + 1));
  };
  // least[r][p]: the first r runs with p pairs among them.
  const std::size_t width = static_cast<std::size_t>(pairs) + 1;
  const auto at = [&](int r, int p) {
    return static_cast<std::size_t>(r) * width + static_cast<std::size_t>(p);
  };
  std::vector<double> least((static_cast<std::size_t>(runs) + 1) * width,
                            std::numeric_limits<double>::infinity());
  std::vector<bool> joined(least.size(), false);
  least[0] = 0;
  for (int r = 1; r <= runs; ++r) {
    for (int p = 0; p <= pairs; ++p) {
      least[at(r, p)] = least[at(r - 1, p)];
      if (r < 2 || p < 1) continue;
      const double cost = least[at(r - 2, p - 1)] + loss(r - 2);
      if (cost < least[at(r, p)]) {
        least[at(r, p)] = cost;
        joined[at(r, p)] = true;
      }
    }
  }
  std::vector<int> groups(static_cast<std::size_t>(runs - pairs));
  std::size_t g = groups.size();
  for (int r = runs, p = pairs; r > 0;) {
    const bool pair = joined[at(r, p)];
    r -= pair ? 2 : 1;
    p -= pair ? 1 : 0;
    groups[--g] = r;
  }
  return groups;
}

/// Gives clusters their codes of `bits` bits such that the top b bits, for every b from `min_bits`,
/// name a group of neighbours joined by join_pairs.
/// @param starts where each cluster begins; at most 2^bits, all non-empty
/// @param borders receives where each code begins, then the row's size; [2^bits + 1]. Codes of no
/// cluster are empty.
inline void nest_clusters(const border_grid& points, const std::vector<int>& starts, int bits,
                          int min_bits, std::vector<int>& borders) {
  const std::size_t codes = static_cast<std::size_t>(1) << bits;
  if (starts.size() == codes) {
    borders = starts;
    borders.push_back(points.last);
    return;
  }
  std::vector<std::vector<int>> group_first;  // per join: the first run of each group
  std::vector<int> level = starts;
  for (int b = bits - 1; b >= min_bits; --b) {
    group_first.push_back(join_pairs(points, level, 1 << b));
    std::vector<int> joined;
    for (const int r : group_first.back()) joined.push_back(level[static_cast<std::size_t>(r)]);
    level = joined;
  }
  std::vector<int> code(level.size());
  for (std::size_t g = 0; g < code.size(); ++g) code[g] = static_cast<int>(g);
  while (!group_first.empty()) {
    const std::vector<int>& first = group_first.back();
    const std::size_t runs =
        group_first.size() > 1 ? group_first[group_first.size() - 2].size() : starts.size();
    std::vector<int> finer(runs);
    for (std::size_t g = 0; g < first.size(); ++g) {
      const std::size_t r = static_cast<std::size_t>(first[g]);
      finer[r] = 2 * code[g];
      if (r + 1 < (g + 1 < first.size() ? static_cast<std::size_t>(first[g + 1]) : runs))
        finer[r + 1] = 2 * code[g] + 1;
    }
    code = finer;
    group_first.pop_back();
  }
  borders.assign(codes + 1, -1);
  borders[codes] = points.last;
  for (std::size_t i = 0; i < starts.size(); ++i)
    borders[static_cast<std::size_t>(code[i])] = starts[i];
  for (std::size_t c = codes; c-- > 0;)
    if (borders[c] < 0) borders[c] = borders[c + 1];
}

}  // namespace kmeans
}  // namespace v0_1
}  // namespace bitladder
