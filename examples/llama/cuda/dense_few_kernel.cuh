// SPDX-License-Identifier: MIT
// Products of unquantized weights with up to 16 tokens, on the tensor cores and as fast as the
// weights come. A block has 16 rows, its warps take turns at chunks of 128 columns, and every lane
// has 8 copies of 16 bytes to shared memory under way for each of three chunks, the first three
// requested before the wait for the kernel before: two blocks have 192 KiB under way on a
// multiprocessor, past the first-level cache, whose few KiB beside the shared memory of the other
// kernels hold loads to registers to 3.1 TB/s, where this reaches 4.1 (H200, 32000 x 4096). Lane
// (g, t) copies columns 8t .. 8t + 7 of rows g and g + 8 and loads those of token g: that is the
// operands of two mma steps, whose columns are only named in another order. Sums: a chain of mma
// steps per warp, then the 8 warps in order, whatever the number of tokens. Tested by
// tests/llama/cuda/operations_test.cu.
#pragma once

#include <llama/cuda/card_launch.cuh>
#include <llama/cuda/operations.cuh>
#include <llama/cuda/row_kernels.cuh>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace llama {
namespace card {
namespace detail {

constexpr int dense_threads = 256;
constexpr int dense_warps = dense_threads / 32;
constexpr int dense_rows = 16;  ///< of a block
constexpr int dense_steps = 4;  ///< of 32 columns, in a chunk
constexpr int dense_chunk = 32 * dense_steps;
constexpr int dense_stages = 3;  ///< chunks of a warp under way
/// Of a block: 16 bytes of two rows for every step and thread.
constexpr int dense_shared_bytes = dense_stages * dense_steps * 2 * dense_threads * 16;

struct dense_few_params {
  dense_product matrices[dense_few_args::max_matrices];
  int first_block[dense_few_args::max_matrices];  ///< of each matrix; those not there: the grid
  int cols, m;
  const __half* x;
  std::int64_t y_stride;  ///< 0: the matrix's rows
  bool y_float;
};

/// What one matrix adds to its sums, and where they go.
struct dense_output {
  const void* bias;
  const void* residual;
  void* y;
  bool wide;  ///< fp32

  __device__ float read(const void* p, std::size_t at) const {
    return wide ? static_cast<const float*>(p)[at]
                : __half2float(static_cast<const __half*>(p)[at]);
  }
  __device__ float added(int row, std::size_t at) const {
    return (bias != nullptr ? read(bias, static_cast<std::size_t>(row)) : 0.f) +
           (residual != nullptr ? read(residual, at) : 0.f);
  }
  __device__ void write(std::size_t at, float v) const {
    if (wide)
      static_cast<float*>(y)[at] = v;
    else
      static_cast<__half*>(y)[at] = __float2half_rn(v);
  }
};

/// Two halves as the sum of two pairs of bf16: exact, as 11 bits are 8 and 3.
__device__ __forceinline__ void split_bf16(std::uint32_t halves, std::uint32_t& high,
                                           std::uint32_t& low) {
  const float2 x = unpack_half2(halves);
  const __nv_bfloat162 top = __floats2bfloat162_rn(x.x, x.y);
  const float2 back = __bfloat1622float2(top);
  const __nv_bfloat162 rest = __floats2bfloat162_rn(x.x - back.x, x.y - back.y);
  high = *reinterpret_cast<const std::uint32_t*>(&top);
  low = *reinterpret_cast<const std::uint32_t*>(&rest);
}

/// sum += two mma steps.
template <class W>
__device__ __forceinline__ void multiply_step(float (&sum)[4], const uint4& low, const uint4& high,
                                              const uint4& x) {
  if (std::is_same<W, __half>::value) {
    mma_f16(sum, low.x, high.x, low.y, high.y, x.x, x.y);
    mma_f16(sum, low.z, high.z, low.w, high.w, x.z, x.w);
    return;
  }
  uint4 top, rest;
  split_bf16(x.x, top.x, rest.x);
  split_bf16(x.y, top.y, rest.y);
  split_bf16(x.z, top.z, rest.z);
  split_bf16(x.w, top.w, rest.w);
  mma_bf16(sum, low.x, high.x, low.y, high.y, top.x, top.y);
  mma_bf16(sum, low.z, high.z, low.w, high.w, top.z, top.w);
  mma_bf16(sum, low.x, high.x, low.y, high.y, rest.x, rest.y);
  mma_bf16(sum, low.z, high.z, low.w, high.w, rest.z, rest.w);
}

/// 16 bytes to shared memory, past the first-level cache, or zeros.
__device__ __forceinline__ void copy_weights(std::uint32_t shared, const void* global, bool here) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(here ? 16 : 0)
               : "memory");
}

/// Tokens: 8 or 16. Pair: the first two matrices are gate and up.
template <class W, int Tokens, bool Pair>
BL_KERNEL __launch_bounds__(dense_threads, 2) dense_few_kernel(const dense_few_params p) {
  constexpr int tiles = Tokens / 8, matrices = Pair ? 2 : 1;
  // The chunks under way, and in the end the warps' sums.
  extern __shared__ __align__(128) unsigned char dense_memory[];
  using warp_sums = float[dense_warps][dense_rows][Tokens + 1];
  warp_sums* const sums = reinterpret_cast<warp_sums*>(dense_memory);
  static_assert(matrices * sizeof(warp_sums) <= dense_shared_bytes, "sums fit in the chunks' room");
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, column = lane % 4 * 8;
  launch_dependents();
  int which = 0;
  if (!Pair)
    for (int i = 1; i < dense_few_args::max_matrices; ++i)
      which += static_cast<int>(blockIdx.x) >= p.first_block[i];
  const dense_product& matrix = p.matrices[which];
  const int first_row = (static_cast<int>(blockIdx.x) - p.first_block[which]) * dense_rows;
  const int last = matrix.rows - 1;
  const int cols = p.cols, chunks = (cols + dense_chunk - 1) / dense_chunk;
  const int turns = (chunks - warp + dense_warps - 1) / dense_warps;  // of this warp
  const int all_turns = matrices * turns;
  const std::size_t low_row =
      static_cast<std::size_t>(min(first_row + g, last)) * static_cast<std::size_t>(cols);
  const std::size_t high_row =
      static_cast<std::size_t>(min(first_row + g + 8, last)) * static_cast<std::size_t>(cols);

  // Turn i of the warp; those of the second matrix come after those of the first.
  const auto column_of = [&](int turn) {
    return (warp + (Pair && turn >= turns ? turn - turns : turn) * dense_warps) * dense_chunk +
           column;
  };
  // A lane reads what it copied itself, so that no barrier is needed: its 16 bytes number i of a
  // stage are thread's in row i.
  const auto slot_of = [&](int stage, int i) {
    return ((stage * 2 * dense_steps + i) * dense_threads + thread) * 16;
  };
  const std::uint32_t memory = shared_address(dense_memory);
  const auto load = [&](int turn, int stage) {
    const W* w =
        static_cast<const W*>(Pair && turn >= turns ? p.matrices[1].weights : matrix.weights);
    const int at = column_of(turn);
#pragma unroll
    for (int u = 0; u < dense_steps; ++u) {
      const bool here = turn < all_turns && at + 32 * u < cols;
      const int c = here ? at + 32 * u : 0;
      copy_weights(memory + static_cast<std::uint32_t>(slot_of(stage, 2 * u)), w + low_row + c,
                   here);
      copy_weights(memory + static_cast<std::uint32_t>(slot_of(stage, 2 * u + 1)), w + high_row + c,
                   here);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  struct x_of_turn {
    uint4 step[tiles][dense_steps];
  };
  const auto load_x = [&](int turn, x_of_turn& x) {
#pragma unroll
    for (int n = 0; n < tiles; ++n)
#pragma unroll
      for (int u = 0; u < dense_steps; ++u) {
        const int token = 8 * n + g, c = column_of(turn) + 32 * u;
        x.step[n][u] = uint4{};
        if (turn < all_turns && token < p.m && c < cols)
          x.step[n][u] = *reinterpret_cast<const uint4*>(
              p.x + static_cast<std::size_t>(token) * static_cast<std::size_t>(cols) + c);
      }
  };
#pragma unroll
  for (int stage = 0; stage < dense_stages; ++stage) load(stage, stage);
  wait_for_dependency();
  x_of_turn x;
  load_x(0, x);

  // What the block's outputs add is on its way while the sums are made.
  constexpr int outputs = (dense_rows * Tokens + dense_threads - 1) / dense_threads;
  const std::size_t stride = static_cast<std::size_t>(p.y_stride != 0 ? p.y_stride : matrix.rows);
  const dense_output out{matrix.bias, matrix.residual, matrix.y, p.y_float};
  float added[outputs] = {};
  if (!Pair)
#pragma unroll
    for (int o = 0; o < outputs; ++o) {
      const int i = thread + o * dense_threads, token = i / dense_rows;
      const int row = first_row + i % dense_rows;
      if (token < p.m && row <= last)
        added[o] = out.added(
            row, static_cast<std::size_t>(token) * stride + static_cast<std::size_t>(row));
    }

  float sum[tiles][4] = {}, gate_sum[tiles][4] = {};
  int stage = 0;
#pragma unroll 1
  for (int turn = 0; turn < all_turns; ++turn) {
    if (Pair && turn == turns)
#pragma unroll
      for (int n = 0; n < tiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          gate_sum[n][i] = sum[n][i];
          sum[n][i] = 0;
        }
    x_of_turn next;
    load_x(turn + 1, next);
    asm volatile("cp.async.wait_group %0;" ::"n"(dense_stages - 1) : "memory");
#pragma unroll
    for (int u = 0; u < dense_steps; ++u) {
      const uint4 low = *reinterpret_cast<const uint4*>(dense_memory + slot_of(stage, 2 * u));
      const uint4 high = *reinterpret_cast<const uint4*>(dense_memory + slot_of(stage, 2 * u + 1));
#pragma unroll
      for (int n = 0; n < tiles; ++n) multiply_step<W>(sum[n], low, high, x.step[n][u]);
    }
    load(turn + dense_stages, stage);
    stage = stage + 1 == dense_stages ? 0 : stage + 1;
    x = next;
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();  // all have used their chunks
#pragma unroll
  for (int n = 0; n < tiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = g + i / 2 * 8, token = 8 * n + lane % 4 * 2 + i % 2;
      sums[matrices - 1][warp][r][token] = sum[n][i];
      if (Pair) sums[0][warp][r][token] = gate_sum[n][i];
    }
  __syncthreads();
#pragma unroll
  for (int o = 0; o < outputs; ++o) {
    const int i = thread + o * dense_threads, token = i / dense_rows, r = i % dense_rows;
    const int row = first_row + r;
    if (token >= p.m || token >= Tokens || row > last) continue;
    float total[matrices];
#pragma unroll
    for (int w = 0; w < matrices; ++w) {
      total[w] = sums[w][0][r][token];
#pragma unroll
      for (int i2 = 1; i2 < dense_warps; ++i2) total[w] += sums[w][i2][r][token];
    }
    const std::size_t at = static_cast<std::size_t>(token) * stride + static_cast<std::size_t>(row);
    if (Pair) {
      const dense_product& up = p.matrices[1];
      const dense_output up_out{up.bias, nullptr, nullptr, p.y_float};
      const float gate = total[0] + out.added(row, at);
      out.write(at, activation<activation_kind::silu>(gate) *
                        (total[matrices - 1] + up_out.added(row, 0)));
    } else {
      out.write(at, total[0] + added[o]);
    }
  }
}

/// Any columns and any type, a warp per row: for shapes and types that no large model has.
template <class W, bool Pair>
BL_KERNEL __launch_bounds__(dense_threads) dense_any_kernel(const dense_few_params p) {
  constexpr int tokens = dense_few_args::max_m, matrices = Pair ? 2 : 1;
  launch_dependents();
  wait_for_dependency();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int which = 0;
  if (!Pair)
    for (int i = 1; i < dense_few_args::max_matrices; ++i)
      which += static_cast<int>(blockIdx.x) >= p.first_block[i];
  const dense_product& matrix = p.matrices[which];
  const std::size_t cols = static_cast<std::size_t>(p.cols);
  const int first_row = (static_cast<int>(blockIdx.x) - p.first_block[which]) * dense_rows;
  const std::size_t stride = static_cast<std::size_t>(p.y_stride != 0 ? p.y_stride : matrix.rows);
  const dense_output out{matrix.bias, matrix.residual, matrix.y, p.y_float};
  for (int r = static_cast<int>(threadIdx.x) / 32; r < dense_rows; r += dense_warps) {
    const int row = first_row + r;
    if (row >= matrix.rows) return;
    float sum[matrices][tokens] = {};
    for (int c = lane; c < p.cols; c += 32) {
      float w[matrices];
#pragma unroll
      for (int i = 0; i < matrices; ++i)
        w[i] = to_float(static_cast<const W*>(
            Pair ? p.matrices[i].weights : matrix.weights)[static_cast<std::size_t>(row) * cols +
                                                           static_cast<std::size_t>(c)]);
#pragma unroll
      for (int t = 0; t < tokens; ++t) {
        if (t >= p.m) continue;
        const float x =
            __half2float(p.x[static_cast<std::size_t>(t) * cols + static_cast<std::size_t>(c)]);
#pragma unroll
        for (int i = 0; i < matrices; ++i) sum[i][t] = fmaf(w[i], x, sum[i][t]);
      }
    }
#pragma unroll
    for (int t = 0; t < tokens; ++t) {
      if (t >= p.m) continue;
#pragma unroll
      for (int i = 0; i < matrices; ++i)
#pragma unroll
        for (int by = 16; by > 0; by /= 2) sum[i][t] += __shfl_xor_sync(~0u, sum[i][t], by);
      if (lane != 0) continue;
      const std::size_t at = static_cast<std::size_t>(t) * stride + static_cast<std::size_t>(row);
      if (Pair) {
        const dense_output up_out{p.matrices[1].bias, nullptr, nullptr, p.y_float};
        const float gate = sum[0][t] + out.added(row, at);
        out.write(at, activation<activation_kind::silu>(gate) *
                          (sum[matrices - 1][t] + up_out.added(row, 0)));
      } else {
        out.write(at, sum[0][t] + out.added(row, at));
      }
    }
  }
}

}  // namespace detail
}  // namespace card
}  // namespace llama
