// SPDX-License-Identifier: MIT
// The product that needs nothing but a warp: column groups of any size, any card, no shared memory.
// It reads the packed planes and tables (packed_layout.hpp) and adds in the order of
// kernels/cpu/order.hpp, so its float sums equal the CPU reference's bit for bit, whatever the
// batch. Outliers are added to them in the order of outlier_runs.cuh. Tested by
// tests/kernels/cuda/generic_test.cu and outliers_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cuda/detail/outlier_runs.cuh>
#include <bitladder/kernels/cuda/detail/output.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// One matrix of a generic product.
struct generic_matrix {
  const std::uint32_t* planes;  ///< packed
  const fp16_t* tables;         ///< packed, of the precision in use
  packed_layout layout;
  int groups;  ///< divides the columns
  outlier_source outliers;
  output_row_params to;
};

struct generic_params {
  generic_matrix matrices[2];
  int parts;  ///< 1, or 2 for SwiGLU: gate and up, of the same shape
  output_params out;
  const void* x;
  bool x_is_bf16;         ///< else fp16
  std::int64_t x_stride;  ///< elements from one token to the next
  int m;                  ///< tokens
};

inline constexpr int generic_tokens = 8;     ///< tokens that share one decoding of the codes
inline constexpr int generic_threads = 256;  ///< a row tile: one warp per pair of rows g, g + 8

/// Words of the top `Bits` planes of one column tile for rows g and g + 8: 16 consecutive words per
/// plane. Lane l holds word l % 16 of the planes l / 16, l / 16 + 2, ...
template <int Bits>
struct generic_words {
  static constexpr int count = (Bits + 1) / 2;
  std::uint32_t held[count];

  __device__ __forceinline__ void load(const generic_matrix& w, int row_tile, int g, int col_tile) {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int plane = 2 * i + lane / 16;
      held[i] = 0;
      if (plane < Bits && col_tile < w.layout.col_tiles())
        held[i] = __ldg(w.planes +
                        w.layout.word(row_tile, plane, col_tile, 4 * g + lane % 16 / 4, lane % 4));
    }
  }

  /// Field (code with its bits reversed) of column `lane` of canonical word `c` (0..7) of the tile,
  /// row g + 8 * half.
  __device__ __forceinline__ int field(int c, int half) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int at = packed_layout::lane_words * (c % 4) + 2 * (c / 4) + half;
    int field = 0;
#pragma unroll
    for (int plane = 0; plane < Bits; ++plane) {
      const std::uint32_t word = __shfl_sync(0xffffffffu, held[plane / 2], plane % 2 * 16 + at);
      field |= static_cast<int>(word >> packed_layout::bit(plane, lane) & 1u) << plane;
    }
    return field;
  }
};

/// W x of rows g and g + 8 of a row tile for `Tokens` tokens from `first` on. Lane
/// 8 * half + t gets row g + 8 * half and token first + t; what other lanes get means nothing.
template <int Bits, int Tokens>
__device__ __forceinline__ float generic_dot(const generic_params& p, const generic_matrix& w,
                                             int row_tile, int g, int first) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const packed_table_layout tables{w.layout.rows, w.groups, Bits};
  const fp16_t* const table = w.tables + tables.entry(row_tile, 0, 0, g);
  const int group_cols = w.layout.cols / w.groups;
  const int words = w.layout.cols / 32;
  const std::uint16_t* const x = static_cast<const std::uint16_t*>(p.x) + first * p.x_stride + lane;

  float sum[2][Tokens] = {};  // rules 1 and 2 of the order: a lane takes column c if c % 32 is it
  generic_words<Bits> next;
  next.load(w, row_tile, g, 0);
  for (int col_tile = 0; col_tile < w.layout.col_tiles(); ++col_tile) {
    const generic_words<Bits> now = next;
    next.load(w, row_tile, g, col_tile + 1);
    const int first_word = col_tile * (packed_layout::tile_cols / 32);
#pragma unroll 1
    for (int c = 0; c < packed_layout::tile_cols / 32 && first_word + c < words; ++c) {
      const int col = 32 * (first_word + c);  // of lane 0
      const int group = (col + lane) / group_cols;
      const fp16_t* const values =
          table + static_cast<std::size_t>(group) * static_cast<std::size_t>(tables.tile_entries());
      float value[2];
#pragma unroll
      for (int half = 0; half < 2; ++half)
        value[half] = __half2float(__ushort_as_half(
            __ldg(&values[now.field(c, half) * packed_layout::tile_rows + half].bits)));
#pragma unroll
      for (int t = 0; t < Tokens; ++t) {
        // Past the last token the last one again: its sums are not written.
        const int token = first + t < p.m ? t : p.m - 1 - first;
        const std::uint16_t bits = __ldg(x + token * p.x_stride + col);
        const float xt =
            p.x_is_bf16 ? to_float(bf16_t{bits}) : __half2float(__ushort_as_half(bits));
#pragma unroll
        for (int half = 0; half < 2; ++half) sum[half][t] = fmaf(value[half], xt, sum[half][t]);
      }
    }
  }

  float mine = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int t = 0; t < Tokens; ++t) {
      float v = sum[half][t];
#pragma unroll
      for (int step = 16; step > 0; step /= 2)  // rule 3; every lane ends with the same bits
        v += __shfl_xor_sync(0xffffffffu, v, step);
      if (lane == generic_tokens * half + t) mine = v;
    }
  }
  return mine;
}

/// The outliers' part of generic_dot, in the same lanes.
template <int Tokens>
__device__ __forceinline__ float generic_outliers(const generic_params& p, const generic_matrix& w,
                                                  int row_tile, int g, int first) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float mine = 0;
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    const std::int32_t* const runs =
        w.outliers.offsets + row_tile * packed_layout::tile_rows + g + 8 * half;
    const int end = __ldg(runs + 1);
    float sum[Tokens] = {};
#pragma unroll 1
    for (int run = __ldg(runs); run < end; run += 4) {
      outlier_share share{};
      const int at = run + lane / 8;
      if (at < end) share = load_outliers(w.outliers, at, lane % 8);
#pragma unroll
      for (int t = 0; t < Tokens; ++t) {
        const int token = first + t < p.m ? first + t : p.m - 1;
        const std::uint16_t* x = static_cast<const std::uint16_t*>(p.x) + token * p.x_stride;
        const float v = add_outlier_lanes(multiply_outliers(
            share, [x](int col) { return x[col]; }, p.x_is_bf16, lane % 8));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float next = __shfl_sync(0xffffffffu, v, 8 * i);
          if (run + i < end) sum[t] += next;
        }
      }
    }
#pragma unroll
    for (int t = 0; t < Tokens; ++t)
      if (lane == generic_tokens * half + t) mine = sum[t];
  }
  return mine;
}

/// The rows g and g + 8 of a row tile for tokens first .. first + Tokens - 1.
template <int Bits, int Tokens, bool Outliers>
__device__ __forceinline__ void generic_tile(const generic_params& p, int row_tile, int g,
                                             int first) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float gate = 0, sum = 0;
#pragma unroll 1
  for (int i = 0; i < p.parts; ++i) {
    gate = sum;
    sum = generic_dot<Bits, Tokens>(p, p.matrices[i], row_tile, g, first);
    if constexpr (Outliers)
      if (p.matrices[i].outliers.offsets != nullptr)
        sum += generic_outliers<Tokens>(p, p.matrices[i], row_tile, g, first);
  }
  const int row = row_tile * packed_layout::tile_rows + g + 8 * (lane / generic_tokens);
  const int t = lane % generic_tokens;
  const output_row_params& to = p.matrices[0].to;
  if (lane >= 2 * generic_tokens || t >= Tokens || first + t >= p.m || row >= to.rows) return;
  if (p.parts == 2)
    write_swiglu(p.out, to, p.matrices[1].to, first + t, row, gate, sum);
  else
    write_output(p.out, to, first + t, row, sum);
}

/// One block per row tile.
/// @tparam Outliers whether any matrix has some: the code for them takes registers
template <int Bits, bool Outliers>
BL_KERNEL __launch_bounds__(generic_threads, 3)
    generic_kernel(const __grid_constant__ generic_params p) {
  const int row_tile = static_cast<int>(blockIdx.x);
  const int g = static_cast<int>(threadIdx.x / 32);
  if (row_tile * packed_layout::tile_rows + g >= p.matrices[0].to.rows) return;  // whole warps
  for (int first = 0; first < p.m; first += generic_tokens) {
    if (p.m - first == 1)
      generic_tile<Bits, 1, Outliers>(p, row_tile, g, first);
    else
      generic_tile<Bits, generic_tokens, Outliers>(p, row_tile, g, first);
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
