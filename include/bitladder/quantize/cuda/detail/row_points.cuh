// SPDX-License-Identifier: MIT
// One row as k-means sees it, made by a block of threads: sorted_row.hpp on the card, with every
// sum in the order in which the host adds, so that both find the same clusters. Device code only.
// Tested by tests/quantize/cuda/quantize_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/quantize/radix_sort.hpp>

#include <cstdint>
#include <cub/block/block_scan.cuh>
#include <limits>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// Threads of a block, which takes one row after another.
inline constexpr int ladder_threads = 512;
inline constexpr int ladder_warps = ladder_threads / 32;

/// A row's arrays, in shared or global memory, for up to `count` points.
struct row_arrays {
  double* weight;   ///< of the points before each [count + 1]
  double* sum;      ///< weight times (value - centre) of the points before each [count + 1]
  double* gain[2];  ///< layers of the dynamic program, and scratch [count + 1]
  double* w;        ///< point weights [count]
  float* x;         ///< point values, strictly ascending [count]
  int* first_of;    ///< where each point's columns begin in sorted order [count + 1]
  int* start;       ///< where the last cluster begins, layer after layer [layers][count + 1]
};

/// What a block keeps in shared memory while it makes a row's points.
struct row_points_shared {
  cub::BlockScan<int, ladder_threads>::TempStorage scan;
  double part[8];
  int size;
  int bad;
};

/// The points of a row.
struct row_points {
  int size;                  ///< 0: a sensitivity is not finite or negative
  bool without_sensitivity;  ///< every sensitivity is zero, weights are therefore all one
};

/// v[0] + v[step] + ..., `count` terms, one after the other.
template <class T>
__device__ double add_in_order(const T* v, int step, int count, double sum) {
#pragma unroll 8
  for (int i = 0; i < count; ++i) sum = __dadd_rn(sum, static_cast<double>(v[i * step]));
  return sum;
}

/// out[i] = v[0] + ... + v[i - 1] for i in [0, count], one after the other. May be in place.
__device__ inline void scan_in_order(const double* v, double* out, int count) {
  double sum = 0;
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    const double next = v[i];
    out[i] = sum;
    sum = __dadd_rn(sum, next);
  }
  out[count] = sum;
}

/// Four sums side by side, of every fourth element, then of what is left to the first: as the host
/// adds. Thread k < 4 of a warp makes part k.
template <class T>
__device__ double add_part(const T* v, int count, int k) {
  const int fours = count / 4;
  double sum = add_in_order(v + k, 4, fours, 0.0);
  if (k == 0) sum = add_in_order(v + 4 * fours, 1, count - 4 * fours, sum);
  return sum;
}

/// Makes the points of a row from its sorted keys. All threads of the block call it.
/// @param sensitivities of the row's columns, or null
/// @tparam Value of the row's elements
template <class Value, class Key>
__device__ row_points make_points(const Key* keys, const std::uint32_t* columns,
                                  const float* sensitivities, int count, const row_arrays& a,
                                  row_points_shared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) shared.bad = 0;
  __syncthreads();
  // The row's total, in the order of its columns.
  if (sensitivities != nullptr) {
    bool bad = false;
    for (int i = thread; i < count; i += ladder_threads) {
      const float s = sensitivities[i];
      bad = bad || !(s >= 0.f && s <= FLT_MAX);
    }
    if (bad) shared.bad = 1;
    if (thread < 4) shared.part[thread] = add_part(sensitivities, count, thread);
  }
  // Equal values become one point.
  int points = 0;
  for (int begin = 0; begin < count; begin += ladder_threads) {
    const int i = begin + thread;
    const int is_first = i < count && (i == 0 || keys[i] != keys[i - 1]) ? 1 : 0;
    int before = 0, here = 0;
    cub::BlockScan<int, ladder_threads>(shared.scan).ExclusiveSum(is_first, before, here);
    if (is_first != 0) {
      a.first_of[points + before] = i;
      a.x[points + before] = kmeans::key_value(static_cast<std::uint32_t>(keys[i]), Value{});
    }
    points += here;
    __syncthreads();
  }
  if (thread == 0) a.first_of[points] = count;
  if (shared.bad != 0) return {0, false};
  double lowest = 0;
  bool without = false;
  if (sensitivities != nullptr) {
    const double total = shared.part[0] + shared.part[1] + shared.part[2] + shared.part[3];
    without = total == 0;
    lowest = total * 0x1p-44;  // sorted_row.hpp says why
  }
  __syncthreads();
  const bool weighted = sensitivities != nullptr && !without;
  for (int p = thread; p < points; p += ladder_threads) {
    double sum = 0;
    const int end = a.first_of[p + 1];
    for (int i = a.first_of[p]; i < end; ++i) {
      double weight = weighted ? static_cast<double>(sensitivities[columns[i]]) : 1.0;
      weight = weight < lowest ? lowest : weight;
      sum = i == a.first_of[p] ? weight : __dadd_rn(sum, weight);
    }
    a.w[p] = sum;
    a.gain[0][p] = __dmul_rn(sum, static_cast<double>(a.x[p]));
  }
  __syncthreads();
  if (thread < 4) shared.part[thread] = add_part(a.w, points, thread);
  if (thread >= 32 && thread < 36)
    shared.part[thread - 28] = add_part(a.gain[0], points, thread - 32);
  __syncthreads();
  const double* const p = shared.part;
  const double total = p[0] + p[1] + p[2] + p[3];
  const double centre = total > 0 ? __ddiv_rn(p[4] + p[5] + p[6] + p[7], total) : 0;
  for (int i = thread; i < points; i += ladder_threads)
    a.gain[0][i] = __dmul_rn(a.w[i], static_cast<double>(a.x[i]) - centre);
  __syncthreads();
  if (thread == 0) scan_in_order(a.w, a.weight, points);
  if (thread == 32) scan_in_order(a.gain[0], a.sum, points);
  __syncthreads();
  return {points, without};
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
