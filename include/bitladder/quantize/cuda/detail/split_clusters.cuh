// SPDX-License-Identifier: MIT
// One precision up, a warp for each cluster: upscale.hpp on the card, with the same operations in
// the same order. Device code only. Tested by tests/quantize/cuda/quantize_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/quantize/cuda/detail/border_search.cuh>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// Where points [begin, end), two or more, are best cut. All lanes of a warp call it.
__device__ inline int best_cut(const row_arrays& a, int begin, int end, int lane) {
  const double s0 = a.sum[begin], w0 = a.weight[begin], w1 = a.weight[end];
  const double mean = __ddiv_rn(a.sum[end] - s0, w1 - w0);
  best_candidate best{-1, begin + 1};
  for (int i = begin + 1 + lane; i < end; i += 32) {
    const double left = a.weight[i] - w0;
    const double shift = __dsub_rn(a.sum[i] - s0, __dmul_rn(mean, left));
    const double value = __ddiv_rn(__dmul_rn(shift, shift), __dmul_rn(left, w1 - a.weight[i]));
    if (value > best.value) best = {value, i};
  }
  return best_of_lanes<32>(best).index;
}

/// a^2 / wa + lookahead * b^2 / wb, on one divisor.
__device__ inline double two_gains(double a, double wa, double b, double wb, double lookahead) {
  const double top = __dadd_rn(__dmul_rn(__dmul_rn(a, a), wb),
                               __dmul_rn(__dmul_rn(lookahead, __dmul_rn(b, b)), wa));
  return __ddiv_rn(top, __dmul_rn(wa, wb));
}

/// cut_with_lookahead() of upscale.hpp.
__device__ inline int cut_ahead(const row_arrays& a, int begin, int end, int cut, double lookahead,
                                int lane) {
  constexpr int most_turns = 4;
  for (int turn = 0; turn < most_turns; ++turn) {
    const int left = cut - begin < 2 ? begin : best_cut(a, begin, cut, lane);
    const int right = end - cut < 2 ? end : best_cut(a, cut, end, lane);
    const auto value_of = [&](int i) {
      const double s = a.sum[i], w = a.weight[i];
      return __dadd_rn(two_gains(s - a.sum[begin], w - a.weight[begin], s - a.sum[left],
                                 w - a.weight[left], lookahead),
                       two_gains(a.sum[end] - s, a.weight[end] - w, a.sum[right] - s,
                                 a.weight[right] - w, lookahead));
    };
    best_candidate best{no_value, end};
    for (int i = left + 1 + lane; i < right; i += 32) {
      const double value = value_of(i);
      if (value > best.value) best = {value, i};
    }
    best = best_of_lanes<32>(best);
    // Only what is better moves it.
    if (!(best.value > value_of(cut)) || best.index == cut) break;
    cut = best.index;
  }
  return cut;
}

/// Cuts all `clusters`. All threads of the block call it.
/// @param borders [clusters + 1]; @param finer receives [2 * clusters + 1]; both shared
__device__ inline void split_all(const row_arrays& a, const int* borders, int clusters,
                                 double lookahead, int* finer) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int c = warp; c < clusters; c += ladder_warps) {
    const int begin = borders[c], end = borders[c + 1];
    int cut = end;
    if (end - begin >= 2) {
      cut = best_cut(a, begin, end, lane);
      if (lookahead > 0 && end - begin > 3) cut = cut_ahead(a, begin, end, cut, lookahead, lane);
    }
    if (lane == 0) {
      finer[2 * c] = begin;
      finer[2 * c + 1] = cut;
    }
  }
  if (threadIdx.x == 0) finer[2 * clusters] = borders[clusters];
  __syncthreads();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
