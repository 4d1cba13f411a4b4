// SPDX-License-Identifier: MIT
// The two inner loops of exact k-means: where the last cluster best begins, and where a cluster is
// best cut in two. Both maximize a quotient over a run of candidates, the lowest index winning
// ties. The plain and the AVX2 version give the same result to the last bit: every candidate's
// value comes from the same operations, and none can be fused. Tested by
// tests/quantize/interval_search_test.cpp.
#pragma once

#include <cstdint>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__)
#define BL_KMEANS_AVX2 1
#include <immintrin.h>
#endif

namespace bitladder {
inline namespace v0_1 {
namespace kmeans {

/// A candidate and its value.
struct candidate {
  int index;
  double value;
};

/// Keeps a product from being fused with the addition after it, which would round differently in
/// builds and versions that fuse.
inline double rounded(double x) {
#ifdef BL_KMEANS_AVX2
  asm("" : "+x"(x));
#endif
  return x;
}

/// The i in [0, count) that maximizes gain[i] + (sum[i] - s)^2 / |weight[i] - w|: clusters up to
/// point i, then one of weight |weight[i] - w|. Weights all differ from w. Count >= 1.
inline candidate best_interval_scalar(const double* gain, const double* sum, const double* weight,
                                      int count, double s, double w) {
  candidate best{0, -std::numeric_limits<double>::infinity()};
  for (int i = 0; i < count; ++i) {
    const double ds = sum[i] - s;
    double dw = weight[i] - w;
    if (dw < 0) dw = -dw;
    const double value = gain[i] + ds * ds / dw;
    if (value > best.value) best = {i, value};
  }
  return best;
}

/// The cut i in [1, count) that maximizes the fall of the weighted squared error when the `count`
/// points that follow sum[0] and weight[0] become [0, i) and [i, count). Reads sum[0..count] and
/// weight[0..count], whose weights strictly ascend. Count >= 2.
/// @return the value is the fall divided by the cluster's weight
inline candidate best_cut_scalar(const double* sum, const double* weight, int count) {
  const double s0 = sum[0], w0 = weight[0], w1 = weight[count];
  const double mean = (sum[count] - s0) / (w1 - w0);
  candidate best{1, -1};
  for (int i = 1; i < count; ++i) {
    const double left = weight[i] - w0;
    const double shift =
        (sum[i] - s0) - rounded(mean * left);  // of the left mean, times its weight
    const double value = shift * shift / (left * (w1 - weight[i]));
    if (value > best.value) best = {i, value};
  }
  return best;
}

#ifdef BL_KMEANS_AVX2

/// The best of four lanes; among equals the lowest index. Without branches: they would be guessed
/// wrongly half of the time, and runs are short.
__attribute__((target("avx2"))) inline candidate best_lane(__m256d value, __m256d index) {
  __m256d most = _mm256_max_pd(value, _mm256_permute2f128_pd(value, value, 1));
  most = _mm256_max_pd(most, _mm256_permute_pd(most, 5));
  const __m256d is_best = _mm256_cmp_pd(value, most, _CMP_EQ_OQ);
  const __m256d at = _mm256_blendv_pd(_mm256_set1_pd(0x1p52), index, is_best);
  __m128d first = _mm_min_pd(_mm256_castpd256_pd128(at), _mm256_extractf128_pd(at, 1));
  first = _mm_min_pd(first, _mm_permute_pd(first, 1));
  return {_mm_cvtsd_si32(first), _mm256_cvtsd_f64(most)};
}

/// All ones in the first `count` lanes.
__attribute__((target("avx2"))) inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}

/// The values of best_interval_scalar for four candidates.
__attribute__((target("avx2"))) inline __m256d interval_value(__m256d gain, __m256d sum,
                                                              __m256d weight, __m256d s,
                                                              __m256d w) {
  const __m256d ds = _mm256_sub_pd(sum, s);
  const __m256d dw = _mm256_andnot_pd(_mm256_set1_pd(-0.0), _mm256_sub_pd(weight, w));
  return _mm256_add_pd(gain, _mm256_div_pd(_mm256_mul_pd(ds, ds), dw));
}

__attribute__((target("avx2"))) inline candidate best_interval_avx2(const double* gain,
                                                                    const double* sum,
                                                                    const double* weight, int count,
                                                                    double s, double w) {
  const __m256d vs = _mm256_set1_pd(s), vw = _mm256_set1_pd(w);
  const __m256d lanes = _mm256_setr_pd(0, 1, 2, 3);
  const __m256d none = _mm256_set1_pd(-std::numeric_limits<double>::infinity());
  if (count < 4) {
    const __m256i mask = first_lanes(count);
    const __m256d value =
        interval_value(_mm256_maskload_pd(gain, mask), _mm256_maskload_pd(sum, mask),
                       _mm256_maskload_pd(weight, mask), vs, vw);
    return best_lane(_mm256_blendv_pd(none, value, _mm256_castsi256_pd(mask)), lanes);
  }
  __m256d best = none, best_at = lanes;
  for (int i = 0;;) {
    const __m256d value = interval_value(_mm256_loadu_pd(gain + i), _mm256_loadu_pd(sum + i),
                                         _mm256_loadu_pd(weight + i), vs, vw);
    const __m256d better = _mm256_cmp_pd(value, best, _CMP_GT_OQ);
    best = _mm256_blendv_pd(best, value, better);
    best_at = _mm256_blendv_pd(best_at, _mm256_add_pd(lanes, _mm256_set1_pd(i)), better);
    if (i == count - 4) break;
    i = i + 4 < count - 4 ? i + 4 : count - 4;  // the last step may look at some twice
  }
  return best_lane(best, best_at);
}

/// What best_cut_scalar derives from a cluster before it looks at cuts.
struct cluster_lanes {
  __m256d sum, weight, weight_end, mean;
};

/// The values of best_cut_scalar for four cuts.
__attribute__((target("avx2"))) inline __m256d cut_value(__m256d sum, __m256d weight,
                                                         const cluster_lanes& c) {
  const __m256d left = _mm256_sub_pd(weight, c.weight);
  __m256d moved = _mm256_mul_pd(c.mean, left);
  asm("" : "+x"(moved));  // as rounded() does
  const __m256d shift = _mm256_sub_pd(_mm256_sub_pd(sum, c.sum), moved);
  return _mm256_div_pd(_mm256_mul_pd(shift, shift),
                       _mm256_mul_pd(left, _mm256_sub_pd(c.weight_end, weight)));
}

__attribute__((target("avx2"))) inline candidate best_cut_avx2(const double* sum,
                                                               const double* weight, int count) {
  const cluster_lanes c{_mm256_set1_pd(sum[0]), _mm256_set1_pd(weight[0]),
                        _mm256_set1_pd(weight[count]),
                        _mm256_set1_pd((sum[count] - sum[0]) / (weight[count] - weight[0]))};
  const __m256d lanes = _mm256_setr_pd(1, 2, 3, 4);
  const __m256d none = _mm256_set1_pd(-1);
  if (count < 5) {
    const __m256i mask = first_lanes(count - 1);
    const __m256d value =
        cut_value(_mm256_maskload_pd(sum + 1, mask), _mm256_maskload_pd(weight + 1, mask), c);
    return best_lane(_mm256_blendv_pd(none, value, _mm256_castsi256_pd(mask)), lanes);
  }
  __m256d best = none, best_at = lanes;
  for (int i = 0;;) {
    const __m256d value =
        cut_value(_mm256_loadu_pd(sum + 1 + i), _mm256_loadu_pd(weight + 1 + i), c);
    const __m256d better = _mm256_cmp_pd(value, best, _CMP_GT_OQ);
    best = _mm256_blendv_pd(best, value, better);
    best_at = _mm256_blendv_pd(best_at, _mm256_add_pd(lanes, _mm256_set1_pd(i)), better);
    if (i == count - 5) break;
    i = i + 4 < count - 5 ? i + 4 : count - 5;
  }
  return best_lane(best, best_at);
}

#endif

/// The versions of both loops that this machine runs.
struct interval_search {
  candidate (*best_interval)(const double*, const double*, const double*, int, double,
                             double) = best_interval_scalar;
  candidate (*best_cut)(const double*, const double*, int) = best_cut_scalar;

  static interval_search scalar() { return {}; }
  /// The fastest that the processor has.
  static interval_search fastest() {
    interval_search s;
#ifdef BL_KMEANS_AVX2
    if (__builtin_cpu_supports("avx2")) {
      s.best_interval = best_interval_avx2;
      s.best_cut = best_cut_avx2;
    }
#endif
    return s;
  }
};

}  // namespace kmeans
}  // namespace v0_1
}  // namespace bitladder

#undef BL_KMEANS_AVX2
