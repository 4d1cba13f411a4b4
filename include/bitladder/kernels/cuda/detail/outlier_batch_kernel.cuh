// SPDX-License-Identifier: MIT
// Outliers (packed_outliers.hpp) of many tokens, as sums for the kernel that multiplies: x is
// transposed once, so that a warp reads an outlier's activations of 64 tokens in one piece. A run
// is added in order, and the runs of a row in order from zero. Device code only. Tested by
// tests/kernels/cuda/outliers_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/outlier_runs.cuh>
#include <bitladder/kernels/cuda/detail/outlier_source.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

struct outlier_batch_params {
  struct matrix {
    outlier_source outliers;
    int first_tile;  ///< of all row tiles
  };
  matrix matrices[4];
  int count;
  const std::uint16_t* x;  ///< [m, cols]
  std::int64_t x_stride;
  bool x_is_bf16;
  int m;
  int cols;                 ///< a multiple of 32
  int padded_m;             ///< a multiple of 64
  std::uint16_t* x_by_col;  ///< [cols, padded m]
  float* sums;              ///< [m, sum_stride]: rows of whole row tiles of all matrices
  std::int64_t sum_stride;
};

inline constexpr int outlier_batch_tokens = 64;
inline constexpr int outlier_batch_threads = 256;

/// Block x takes 32 columns, y 64 tokens.
/// @tparam Threads outlier_batch_threads
template <int Threads>
BL_KERNEL __launch_bounds__(Threads)
    transpose_x_kernel(const __grid_constant__ outlier_batch_params p) {
  __shared__ std::uint16_t tile[32][outlier_batch_tokens + 2];
  const int thread = static_cast<int>(threadIdx.x);
  const int first = static_cast<int>(blockIdx.y) * outlier_batch_tokens;
  const int col = static_cast<int>(blockIdx.x) * 32;
  launch_dependents();
  wait_for_dependency();
  for (int i = thread; i < 32 * outlier_batch_tokens; i += Threads) {
    const int token = i / 32, c = i % 32;
    tile[c][token] = first + token < p.m ? p.x[(first + token) * p.x_stride + col + c] : 0;
  }
  __syncthreads();
  for (int i = thread; i < 32 * outlier_batch_tokens; i += Threads) {
    const int c = i / outlier_batch_tokens, token = i % outlier_batch_tokens;
    p.x_by_col[static_cast<std::size_t>(col + c) * p.padded_m + first + token] = tile[c][token];
  }
}

/// Block x takes a row tile, y 64 tokens, two a lane.
/// @tparam Threads outlier_batch_threads
template <int Threads>
BL_KERNEL __launch_bounds__(Threads)
    outlier_batch_kernel(const __grid_constant__ outlier_batch_params p) {
  constexpr int warps = Threads / 32, tokens = outlier_batch_tokens, window = 32;
  constexpr int rows = packed_layout::tile_rows;
  constexpr int outputs = rows * tokens / Threads;  // of a thread
  __shared__ float staged[window][tokens];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first = static_cast<int>(blockIdx.y) * tokens;
  int tile = static_cast<int>(blockIdx.x), i = 0;
  while (i + 1 < p.count && tile >= p.matrices[i + 1].first_tile) ++i;
  tile -= p.matrices[i].first_tile;
  const outlier_source& from = p.matrices[i].outliers;
  const std::uint32_t* const x = reinterpret_cast<const std::uint32_t*>(p.x_by_col + first) + lane;
  const std::size_t step = static_cast<std::size_t>(p.padded_m) / 2;

  // Thread 16 t + r has row r of tokens t, t + 16 ...
  const int row = static_cast<int>(threadIdx.x) % rows;
  float sum[outputs] = {};
  int begin = 0, end = 0, row_begin = 0, row_end = 0;
  if (from.offsets != nullptr) {
    const std::int32_t* const offsets = from.offsets + tile * rows;
    begin = offsets[0], end = offsets[rows];
    row_begin = offsets[row], row_end = offsets[row + 1];
  }
  launch_dependents();
  wait_for_dependency();
#pragma unroll 1
  for (int at = begin; at < end; at += window) {
#pragma unroll 1
    for (int run = at + warp; run < min(end, at + window); run += warps) {
      const std::uint32_t head = __ldg(from.heads + run);
      const std::uint32_t mine = __ldg(from.entries + static_cast<std::size_t>(run) * 32 + lane);
      const float base = outlier_value(head);
      const std::uint32_t* const span =
          x + static_cast<std::size_t>(outlier_first_col(head)) * step;
      const int count = outlier_count(head);
      float even = 0.f, odd = 0.f;
#pragma unroll 1
      for (int k = 0; k < count; k += 8) {
        std::uint32_t pair[8];
        float by[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const std::uint32_t entry = __shfl_sync(0xffffffffu, mine, k + j);
          pair[j] = k + j < count ? span[(entry & 0xffffu) * step] : 0;
          by[j] = outlier_value(entry) - base;
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          if (k + j >= count) continue;
          even = fmaf(by[j], activation(static_cast<std::uint16_t>(pair[j]), p.x_is_bf16), even);
          odd =
              fmaf(by[j], activation(static_cast<std::uint16_t>(pair[j] >> 16), p.x_is_bf16), odd);
        }
      }
      *reinterpret_cast<float2*>(&staged[run - at][2 * lane]) = make_float2(even, odd);
    }
    __syncthreads();
#pragma unroll 1
    for (int run = max(row_begin, at); run < min(row_end, at + window); ++run)
#pragma unroll
      for (int k = 0; k < outputs; ++k)
        sum[k] += staged[run - at][static_cast<int>(threadIdx.x) / rows + Threads / rows * k];
    __syncthreads();
  }
#pragma unroll
  for (int k = 0; k < outputs; ++k) {
    const int token = first + static_cast<int>(threadIdx.x) / rows + Threads / rows * k;
    if (token < p.m)
      p.sums[token * p.sum_stride + static_cast<std::int64_t>(blockIdx.x) * rows + row] = sum[k];
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
