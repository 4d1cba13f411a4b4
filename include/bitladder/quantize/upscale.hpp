// SPDX-License-Identifier: MIT
// One precision up: every cluster becomes two, cut where that lowers its weighted squared error
// most. Children of cluster c are 2c and 2c + 1, the lower values left, so that a code of p bits
// is the top p bits of any longer one. Tested by tests/quantize/upscale_test.cpp.
#pragma once

#include <bitladder/quantize/interval_search.hpp>
#include <bitladder/quantize/sorted_row.hpp>

#include <cstddef>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace kmeans {

/// A cut of points [begin, end) chosen with the next precision in mind: it lowers the error after
/// it plus `lookahead` times the error after the best cuts of both halves. Those cuts and this one
/// are bettered in turn from `cut` on, until nothing moves.
/// @param values scratch
inline int cut_with_lookahead(const sorted_row& row, const interval_search& search, int begin,
                              int end, int cut, double lookahead, std::vector<double>& values) {
  constexpr int most_turns = 4;
  const double* const s = row.sum_before();
  const double* const w = row.weight_before();
  const auto best_cut = [&](int from, int to) {
    return to - from < 2 ? from : from + search.best_cut(s + from, w + from, to - from).index;
  };
  for (int turn = 0; turn < most_turns; ++turn) {
    const int left = best_cut(begin, cut);
    const int right = end - cut < 2 ? end : best_cut(cut, end);
    const int count = right - left - 1;  // the cuts between
    values.resize(static_cast<std::size_t>(count));
    double* const value = values.data();
    for (int i = 0; i < count;
         ++i) {  // apart from the search below, so that compilers vectorize it
      const double at_s = s[left + 1 + i], at_w = w[left + 1 + i];
      // Gains of the runs that end at the cut, then of those that begin there, on one divisor each.
      const double a = at_s - s[begin], b = at_s - s[left], c = s[end] - at_s, d = s[right] - at_s;
      const double wa = at_w - w[begin], wb = at_w - w[left];
      const double wc = w[end] - at_w, wd = w[right] - at_w;
      value[i] = (a * a * wb + lookahead * (b * b) * wa) / (wa * wb) +
                 (c * c * wd + lookahead * (d * d) * wc) / (wc * wd);
    }
    int best = cut - left - 1;
    for (int i = 0; i < count; ++i)
      if (value[i] > value[best]) best = i;
    if (left + 1 + best == cut) break;
    cut = left + 1 + best;
  }
  return cut;
}

/// Cuts all clusters. Of a cluster with one point the right child is empty.
/// @param row merged points
/// @param lookahead 0 for the cut that is best now; more weighs the next precision's error too
/// @param borders where each cluster begins, then the row's size; [clusters + 1] in, [2 * clusters
/// + 1] out
inline void split_clusters(const sorted_row& row, const interval_search& search, double lookahead,
                           std::vector<int>& borders, std::vector<double>& scratch) {
  const std::size_t clusters = borders.size() - 1;
  borders.resize(2 * clusters + 1);
  for (std::size_t c = clusters + 1; c-- > 0;) borders[2 * c] = borders[c];
  for (std::size_t c = 0; c < clusters; ++c) {
    const int begin = borders[2 * c], end = borders[2 * c + 2];
    int& cut = borders[2 * c + 1];
    cut = end;
    if (end - begin < 2) continue;
    cut = begin +
          search.best_cut(row.sum_before() + begin, row.weight_before() + begin, end - begin).index;
    if (lookahead > 0 && end - begin > 3)
      cut = cut_with_lookahead(row, search, begin, end, cut, lookahead, scratch);
  }
}

}  // namespace kmeans
}  // namespace v0_1
}  // namespace bitladder
