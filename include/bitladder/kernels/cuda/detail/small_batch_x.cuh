// SPDX-License-Identifier: MIT
// Activations of up to 16 tokens on their way into operands of the tensor cores: fp16, bfloat16
// scaled by a power of two per column tile and token. Device code only. Tested by
// tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_units.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// @tparam Shape small_batch, for its sizes and its places in shared memory
template <class Shape>
struct small_batch_x {
  const small_batch_units& units;
  unsigned char* const shared;
  const int warp;
  const int lane;

  __device__ small_batch_x(const small_batch_units& of, unsigned char* memory, int of_warp,
                           int of_lane)
      : units(of), shared(memory), warp(of_warp), lane(of_lane) {}

  /// The largest finite magnitude among bf16 pairs, as bits.
  __device__ static std::uint32_t largest_bf16(const std::uint32_t (&x)[16],
                                               std::uint32_t largest) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const std::uint32_t lo = x[i] & 0x7fffu, hi = x[i] >> 16 & 0x7fffu;
      if (lo < 0x7f80u) largest = max(largest, lo);
      if (hi < 0x7f80u) largest = max(largest, hi);
    }
    return largest;
  }

  /// The power of two that brings `largest` just below 2^15, so that bf16 values become fp16 ones
  /// without a rounding unless they are 2^-29 of the largest. Clamped so that its inverse is
  /// finite.
  __device__ static float bf16_scale(std::uint32_t largest) {
    const int exponent = max(static_cast<int>(largest >> 7), 24);  // biased by 127
    return __uint_as_float(static_cast<std::uint32_t>(127 + 14 + 127 - exponent) << 23);
  }

  __device__ static std::uint32_t bf16_pair_to_fp16(std::uint32_t x, float scale) {
    const __half2 h = __floats2half2_rn(__uint_as_float(x << 16) * scale,
                                        __uint_as_float(x & 0xffff0000u) * scale);
    return *reinterpret_cast<const std::uint32_t*>(&h);
  }

  /// 32 activations in the order of pairs (decode.cuh's pair_column).
  __device__ static void order_pairs(const std::uint32_t (&x)[16], std::uint32_t* pair) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int from = 4 * (i % 4) + i / 8;  // word with column 8 m + r
      pair[i] = i / 4 % 2 == 0 ? permute<0x5410>(x[from], x[from + 2])
                               : permute<0x7632>(x[from], x[from + 2]);
    }
  }

  /// Two 128-column halves of one token's tile: operand words, and the inverse of their scale.
  /// All lanes that share the tile (`tile_lanes` neighbours) call together.
  template <int TileLanes, int Halves>
  __device__ float convert(std::uint32_t (&x)[Halves][16]) const {
    if (!units.p.x_is_bf16) return 1.f;
    std::uint32_t largest = 0;
#pragma unroll
    for (int h = 0; h < Halves; ++h) largest = largest_bf16(x[h], largest);
#pragma unroll
    for (int by = 1; by < TileLanes; by *= 2)
      largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, by));
    const float scale = bf16_scale(largest);
#pragma unroll
    for (int h = 0; h < Halves; ++h)
#pragma unroll
      for (int i = 0; i < 16; ++i) x[h][i] = bf16_pair_to_fp16(x[h][i], scale);
    return 1.f / scale;  // exact: a power of two
  }

  __device__ float* scales() const {
    return reinterpret_cast<float*>(shared + Shape::scale_offset);
  }

  /// The register form: lane 4 g + t takes token g's columns of this warp's tiles.
  /// @param words [tile][n tile][half][8 steps][2]
  __device__ void load(int first_tile, typename Shape::tile_x (&x)[Shape::x_tiles]) const {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < Shape::x_tiles; ++i) {
      const int tile = warp + Shape::warps * i;
#pragma unroll
      for (int n = 0; n < Shape::n_tiles; ++n) {
        const int token = n * 8 + g;
        std::uint32_t run[2][16];
#pragma unroll
        for (int h = 0; h < 2; ++h)
          units.load_x_run(token, (first_tile + tile) * packed_layout::tile_cols + 128 * h + 32 * t,
                           run[h]);
        const float scale = convert<4>(run);
        if (t == 0) scales()[tile * Shape::tokens + token] = scale;
#pragma unroll
        for (int h = 0; h < 2; ++h) order_pairs(run[h], &x[i].word[n * 32 + h * 16]);
      }
    }
    __syncwarp();  // scales are read by the warp that wrote them
  }

  /// The shared form, one token: 8 lanes take a tile, 64 bytes of operand order each.
  __device__ void share(int first_tile, int tiles, int groups) const {
#pragma unroll 1
    for (int base = 0; base < groups * Shape::group_tiles; base += Shape::threads / 8) {
      const int tile = base + static_cast<int>(threadIdx.x) / 8;
      const int h = static_cast<int>(threadIdx.x) / 4 % 2, t = static_cast<int>(threadIdx.x) % 4;
      std::uint32_t run[1][16], pair[16];
      units.load_x_run(tile < tiles ? 0 : units.p.m,
                       (first_tile + tile) * packed_layout::tile_cols + 128 * h + 32 * t, run[0]);
      const float scale = convert<8>(run);
      order_pairs(run[0], pair);
      if (tile < tiles) {
        const std::uint32_t to = shared_address(shared + Shape::x_offset) +
                                 static_cast<std::uint32_t>((tile * 2 + h) * 256 + t * 16);
#pragma unroll
        for (int r = 0; r < 4; ++r)
          store_shared_v4(to + r * 64, pair[4 * r], pair[4 * r + 1], pair[4 * r + 2],
                          pair[4 * r + 3]);
      }
      // Also past the last tile, whose sums are zero and whose scale must be finite.
      if (threadIdx.x % 8 == 0 && tile < groups * Shape::group_tiles) scales()[tile] = scale;
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
