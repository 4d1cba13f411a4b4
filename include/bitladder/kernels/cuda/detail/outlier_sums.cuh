// SPDX-License-Identifier: MIT
// Sums of a block's outliers in the order of outlier_runs.cuh. One token's runs come to shared
// memory with the first planes, and meet activations that are there too: whoever multiplies chooses
// when. Those of up to 16 tokens meet transposed activations in global memory, first of all. Device
// code only. Tested by tests/kernels/cuda/outliers_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/outlier_runs.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_units.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// Sums of all outliers of units begin .. end - 1 for several tokens, to p.partial. By whole
/// blocks; waits for the kernel before, and the last thing is a barrier. Not inlined: that spilled
/// in the loops of the kernels for 8 and 16 tokens.
/// @tparam Tokens 8 or 16, not below p.m: what p.partial is laid out for
/// @param staged shared memory for `window` runs of so many tokens, written and left
template <int Tokens, int Threads>
__device__ __noinline__ void sum_outliers(const small_batch_params& p, int begin, int end,
                                          float* staged, int window) {
  using step = outlier_step<Threads, 1>;
  constexpr int outputs = Tokens * packed_layout::tile_rows;
  const small_batch_units units(p);
  outlier_spans spans(p);
  spans.find(begin, end);
#pragma unroll 1
  for (int from = 0; from == 0 || from < spans.total; from += window) {
    const int to = min(spans.total, from + window);
#pragma unroll 1
    for (int first = from; first < to; first += step::runs) {
      step part;
      part.load(spans, first, to);
      if (first == 0) wait_for_dependency();
#pragma unroll 1
      for (int token = 0; token < p.m; token += 8)
        part.multiply_eight(p.x_by_col + token, Tokens, p.x_is_bf16, first, to,
                            staged + token * window, from, window);
    }
    if (spans.total == 0) wait_for_dependency();
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < (end - begin) * outputs; i += Threads) {
      const int token = i % outputs / packed_layout::tile_rows;
      if (token >= p.m) continue;
      const int2 runs = spans.runs_of(units, begin + i / outputs, i % packed_layout::tile_rows);
      float* sum = p.partial + static_cast<std::size_t>(begin) * outputs + i;
      float all = from == 0 ? 0.f : *sum;
#pragma unroll 4
      for (int k = max(runs.x, from); k < min(runs.y, to); ++k)
        all += staged[token * window + k - from];
      *sum = all;
    }
    __syncthreads();
  }
}

inline constexpr int transpose_tokens_threads = 128;

/// p.x_by_col: [columns, Tokens] of the activations as they are; a block takes 64 columns.
template <int Tokens>
BL_KERNEL __launch_bounds__(transpose_tokens_threads)
    transpose_tokens_kernel(const __grid_constant__ small_batch_params p) {
  constexpr int cols = 64;
  __shared__ std::uint16_t tile[Tokens][cols + 2];
  launch_dependents();
  wait_for_dependency();
  const int first = static_cast<int>(blockIdx.x) * cols;
  for (int i = static_cast<int>(threadIdx.x); i < Tokens * cols; i += transpose_tokens_threads) {
    const int token = i / cols, col = first + i % cols;
    tile[token][i % cols] = token < p.m && col < p.cols
                                ? static_cast<const std::uint16_t*>(p.x)[token * p.x_stride + col]
                                : 0;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < Tokens * cols; i += transpose_tokens_threads)
    if (first + i / Tokens < p.cols)
      p.x_by_col[static_cast<std::size_t>(first) * Tokens + i] = tile[i % Tokens][i / Tokens];
}

/// What a block that multiplies for one token keeps of its outliers, in shared memory.
struct outlier_block {
  int* head;        ///< runs of all units, of those before run_sums, and spans' shift
  int2* rows;       ///< [16 * units]: a row's part of its matrix's runs
  float* row_sums;  ///< [16 * units]: of the runs for which run_sums has no room
  float* run_sums;  ///< [window]
  int window;
  outlier_stage stage;  ///< of as many runs as there is room for, at most `window`

  static constexpr int head_bytes = 32;
  /// Of rows and their sums, for a unit.
  static constexpr int unit_bytes = packed_layout::tile_rows * (8 + 4);

  /// @param memory head_bytes + units * unit_bytes + staged * outlier_stage::run_bytes, 16-byte
  /// aligned
  __device__ __forceinline__ outlier_block(unsigned char* memory, int units, int staged,
                                           float* sums, int of_sums)
      : head(reinterpret_cast<int*>(memory)),
        rows(reinterpret_cast<int2*>(memory + head_bytes)),
        row_sums(reinterpret_cast<float*>(rows + units * packed_layout::tile_rows)),
        run_sums(sums),
        window(of_sums),
        stage(memory + head_bytes + units * unit_bytes, staged) {}

  /// The numbers of a row's runs.
  /// @param begin of the block's units; @param i row of these
  __device__ __forceinline__ int2 runs_of(const small_batch_units& units, int begin, int i) const {
    int row_tile;
    const int by = head[2 + units.matrix_of(begin + i / packed_layout::tile_rows, row_tile)];
    return make_int2(rows[i].x - by, rows[i].y - by);
  }
  __device__ __forceinline__ float row_sum(const small_batch_units& units, int begin, int i) const {
    const int2 runs = runs_of(units, begin, i);
    const int from = head[1];
    float sum = row_sums[i];
#pragma unroll 2
    for (int k = max(runs.x - from, 0); k < runs.y - from; ++k) sum += run_sums[k];
    return sum;
  }
};

/// Queues copies of runs of units begin .. end - 1 to the stage, with whatever group is committed
/// next: nothing of that depends on the kernel before. By whole blocks.
template <int Threads>
__device__ __forceinline__ void fetch_outliers(const outlier_spans& spans,
                                               const small_batch_units& units, int begin, int end,
                                               const outlier_block& block) {
  using step = outlier_step<Threads, 2>;
  const int to = min(spans.total, block.stage.most);
#pragma unroll 1
  for (int first = 0; first < to; first += step::runs) step::copy(block.stage, spans, first, to);
#pragma unroll 1
  for (int i = Threads - 1 - static_cast<int>(threadIdx.x); i < (end - begin) * 16; i += Threads) {
    int row_tile;
    const auto& m = units.p.matrices[units.matrix_of(begin + i / 16, row_tile)];
    block.row_sums[i] = 0.f;
    if (m.outliers.offsets == nullptr) {
      block.rows[i] = make_int2(0, 0);
      continue;
    }
    const std::int32_t* from = m.outliers.offsets + row_tile * packed_layout::tile_rows + i % 16;
    copy_async_4(shared_address(&block.rows[i].x), from);
    copy_async_4(shared_address(&block.rows[i].y), from + 1);
  }
  if (threadIdx.x == 0) {
    block.head[0] = spans.total, block.head[1] = 0;
#pragma unroll
    for (int i = 0; i < small_batch_params::max_matrices; ++i) block.head[2 + i] = spans.shift[i];
  }
}

/// Sums of the runs of units begin .. end - 1, for block.row_sum after a barrier; a barrier was
/// between fetch_outliers and this, and this thread's copies have come. Once by every warp.
/// @param x_at the stored activation of a column
template <int Threads, class XAt>
__device__ __forceinline__ void sum_outlier_runs(const small_batch_params& p, int begin, int end,
                                                 const outlier_block& block, XAt&& x_at) {
  using step = outlier_step<Threads, 2>;
  __syncwarp();
  const int total = block.head[0], staged = min(total, block.stage.most);
#pragma unroll 1
  for (int first = 0; first < staged; first += step::runs) {
    step part;
    part.load(block.stage, first, staged);
    part.multiply(x_at, p.x_is_bf16, first, staged, block.run_sums, 0);
  }
  if (staged == total) return;
  // What the stage has no room for comes from global memory.
  const small_batch_units units(p);
  outlier_spans spans(p);
  spans.find(begin, end);
  using late = outlier_step<Threads, 4>;
  int from = 0, next = staged;
#pragma unroll 1
  while (true) {
    const int to = min(total, from + block.window);
#pragma unroll 1
    for (; next < to; next += late::runs) {
      late part;
      part.load(spans, next, to);
      part.multiply(x_at, p.x_is_bf16, next, to, block.run_sums, from);
    }
    next = to;
    if (to == total) break;
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < (end - begin) * 16; i += Threads) {
      const int2 runs = block.runs_of(units, begin, i);
      float sum = block.row_sums[i];
      for (int k = max(runs.x, from); k < min(runs.y, to); ++k) sum += block.run_sums[k - from];
      block.row_sums[i] = sum;
    }
    __syncthreads();
    from = to;
  }
  if (threadIdx.x == 0) block.head[1] = from;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
