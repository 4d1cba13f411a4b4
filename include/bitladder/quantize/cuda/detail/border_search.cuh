// SPDX-License-Identifier: MIT
// Exact k-means of one row by a block of threads: the dynamic program of weighted_kmeans.hpp, whose
// rows of one step do not wait for each other. Every candidate's value comes from the same
// operations as on the host, and the lowest index wins ties. Device code only. Tested by
// tests/quantize/cuda/quantize_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/quantize/cuda/detail/row_points.cuh>

#include <cmath>
#include <cstddef>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// Below every value.
inline constexpr double no_value = -HUGE_VAL;

/// A candidate and its value.
struct best_candidate {
  double value;
  int index;
};

__device__ inline best_candidate better(const best_candidate& a, const best_candidate& b) {
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

/// The best of `Lanes` neighbouring lanes, for all of them. All lanes of the warp call it.
template <int Lanes>
__device__ best_candidate best_of_lanes(best_candidate b) {
#pragma unroll
  for (int i = Lanes / 2; i > 0; i /= 2)
    b = better(b, {__shfl_xor_sync(~0u, b.value, i), __shfl_xor_sync(~0u, b.index, i)});
  return b;
}

/// gain + s^2 / w of a cluster of sum s and weight w.
__device__ inline double with_cluster(double gain, double s, double w) {
  return __dadd_rn(gain, __ddiv_rn(__dmul_rn(s, s), w));
}

/// The best of candidates lo + lane, + step, ... to hi as the beginning of a cluster that ends at
/// place `end`; `lo` if there is none.
__device__ inline best_candidate best_interval(const row_arrays& a, const double* gain, int lo,
                                               int hi, int end, int lane, int step) {
  const double s = a.sum[end], w = a.weight[end];
  best_candidate best{no_value, lo};
  for (int i = lo + lane; i <= hi; i += step) {
    const double value = with_cluster(gain[i], a.sum[i] - s, fabs(a.weight[i] - w));
    if (value > best.value) best = {value, i};
  }
  return best;
}

/// One layer of the program: rows [jl, jr], the last cluster beginning in [il, ir]; il < jl.
class border_layer {
 public:
  __device__ border_layer(const row_arrays& arrays, const double* of_before, double* of_this,
                          int* begins, best_candidate (&of_warps)[ladder_warps])
      : a(arrays), before(of_before), gain(of_this), start(begins), shared(of_warps) {}

  __device__ void fill(int jl, int jr, int il, int ir) const {
    int step = 1;
    while (step <= (jr - jl + 1) / 2) step *= 2;
    for (; step > 0; step /= 2) {
      const int rows = (jr - (jl + step - 1)) / (2 * step) + 1;
      const run r{jl, jr, il, ir, step, rows};
      // Few rows have many candidates each.
      if (rows <= ladder_warps)
        by_warps(r);
      else if (rows <= 8 * ladder_warps)
        by_lanes<32>(r);
      else if (rows <= 64 * ladder_warps)
        by_lanes<8>(r);
      else
        by_lanes<4>(r);
      __syncthreads();
    }
  }

 private:
  struct run {
    int jl, jr, il, ir, step, rows;
  };

  __device__ int range(const run& r, int m, int& lo, int& hi) const {
    const int j = r.jl + r.step - 1 + 2 * r.step * m;
    lo = j - r.step >= r.jl ? start[j - r.step] : r.il;
    hi = j + r.step <= r.jr ? start[j + r.step] : r.ir;
    hi = hi < j ? hi : j - 1;
    return j;
  }

  __device__ void by_warps(const run& r) const {
    int warps = 1;  // of a row
    while (2 * warps * r.rows <= ladder_warps) warps *= 2;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int m = warp / warps, part = warp % warps;
    int lo = 0, hi = -1, j = 0;
    if (m < r.rows) {
      j = range(r, m, lo, hi);
      const best_candidate b =
          best_of_lanes<32>(best_interval(a, before, lo, hi, j, part * 32 + lane, warps * 32));
      if (lane == 0) shared[warp] = b;
    }
    __syncthreads();
    if (m < r.rows && part == 0 && lane == 0) {
      best_candidate b = shared[warp];
      for (int i = 1; i < warps; ++i) b = better(b, shared[warp + i]);
      gain[j] = b.value;
      start[j] = b.index;
    }
  }

  template <int Lanes>
  __device__ void by_lanes(const run& r) const {
    constexpr int rows = 32 / Lanes;  // of a warp
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    for (int first = warp * rows; first < r.rows; first += ladder_warps * rows) {
      const int m = first + lane / Lanes;
      int lo = 0, hi = -1, j = 0;
      if (m < r.rows) j = range(r, m, lo, hi);
      const best_candidate b =
          best_of_lanes<Lanes>(best_interval(a, before, lo, hi, j, lane % Lanes, Lanes));
      if (m < r.rows && lane % Lanes == 0) {
        gain[j] = b.value;
        start[j] = b.index;
      }
    }
  }

  const row_arrays& a;
  const double* before;
  double* gain;
  int* start;
  best_candidate (&shared)[ladder_warps];
};

/// The k clusters of least weighted squared error of `size` > k points, k >= 2. All threads of the
/// block call it.
/// @param stride places of a layer of a.start
/// @param borders receives 0, where the other clusters begin, and `size`; [k + 1], shared
__device__ inline void solve_borders(const row_arrays& a, int size, int k, std::size_t stride,
                                     int* borders, best_candidate (&shared)[ladder_warps]) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int j = 1 + thread; j <= size - (k - 1); j += ladder_threads)
    a.gain[0][j] = with_cluster(0, a.sum[j] - a.sum[0], a.weight[j] - a.weight[0]);
  __syncthreads();
  for (int c = 1; c < k - 1; ++c)
    border_layer(a, a.gain[(c - 1) & 1], a.gain[c & 1],
                 a.start + static_cast<std::size_t>(c) * stride, shared)
        .fill(c + 1, size - (k - 1 - c), c, size - (k - c));
  const int last = k - 2;
  const best_candidate mine = best_of_lanes<32>(
      best_interval(a, a.gain[last & 1], last + 1, size - 1, size, thread, ladder_threads));
  if (thread % 32 == 0) shared[thread / 32] = mine;
  __syncthreads();
  if (thread == 0) {
    best_candidate b = shared[0];
    for (int i = 1; i < ladder_warps; ++i) b = better(b, shared[i]);
    int j = b.index;
    for (int c = last; c >= 0; --c) {
      borders[c + 1] = j;
      if (c > 0) j = a.start[static_cast<std::size_t>(c) * stride + static_cast<std::size_t>(j)];
    }
    borders[0] = 0;
    borders[k] = size;
  }
  __syncthreads();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
