// SPDX-License-Identifier: MIT
// Activations for the products of many tokens: fp16, bfloat16 first scaled by a power of two per
// token, either as rows or as the image of the shared-memory tiles that the tensor cores read.
// Device code only. Tested by tests/kernels/cuda/large_batch_test.cu.
//
// The image is [blocks of 64 columns][padded tokens][128 bytes]: any run of tokens of a block is
// contiguous, so one bulk copy fills a tile. Columns stand in the order of decode.cuh: chunk i
// (0..15, 8 values each) of a 128-column half holds, for t = 0..3, the two columns of pair i of
// the lanes t, which own columns 32 t ... of the half. The eight chunks of a token in a block are
// permuted by exclusive or with the token modulo 8, which keeps reads free of bank conflicts. With
// `exchange` the lanes of odd t stand for columns of the other half of the column tile.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cuda/detail/ptx.cuh>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

struct convert_x_params {
  const void* x;        ///< [m, cols] of fp16 or bfloat16
  std::int64_t stride;  ///< elements from one token to the next
  void* out;            ///< the image, or rows [m, cols] of fp16
  float* unscale;       ///< [padded tokens]: what sums are multiplied by
  int m;
  int padded_m;   ///< tokens of the image; equal to m for rows
  int cols;       ///< a multiple of 32
  int col_tiles;  ///< of 256 columns
  bool bf16;
  bool exchange;  ///< of the image: lanes of odd t have the columns of the other half
};

/// Threads of a block, for one token or a part of it. With its 32 registers a thread it finds room
/// beside a block of large_batch_kernel, before as after it: neither waits for the other to leave.
inline constexpr int convert_x_threads = 128;
/// Blocks that make the compiler keep to 32 registers; multiprocessors of sm_86, sm_89 and sm_120
/// have no more than 1536 threads.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 870 || \
                               __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1100)
inline constexpr int convert_x_blocks = 12;
#else
inline constexpr int convert_x_blocks = 16;
#endif
/// Column tiles that a warp has under way.
inline constexpr int convert_x_depth = 2;

/// Two bfloat16 of a word as fp16, each multiplied by `scale`.
__device__ __forceinline__ std::uint32_t scale_pair(std::uint32_t pair, float scale) {
  const __half2 h = __floats2half2_rn(__uint_as_float(pair << 16) * scale,
                                      __uint_as_float(pair & 0xffff0000u) * scale);
  return *reinterpret_cast<const std::uint32_t*>(&h);
}

/// Exchanges rows and columns of the 4 x 4 words that the four lanes l, l ^ 4, l ^ 8, l ^ 12 hold:
/// word r of lane t comes to word t of lane r, t being bits 2 and 3 of the lane.
__device__ __forceinline__ void transpose_lanes(std::uint32_t (&v)[4], int lane) {
  const bool odd = (lane & 4) != 0, upper = (lane & 8) != 0;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const std::uint32_t got = __shfl_xor_sync(~0u, odd ? v[i] : v[i + 1], 4);
    if (odd)
      v[i] = got;
    else
      v[i + 1] = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t got = __shfl_xor_sync(~0u, upper ? v[i] : v[i + 2], 8);
    if (upper)
      v[i] = got;
    else
      v[i + 2] = got;
  }
}

/// Block (t, k) is part k of token t. Each finds the scale of the whole token.
/// The scale of a bfloat16 token brings its largest finite value to [2^14, 2^15): what is then lost
/// below fp16's range is 2^-39 of that value. Infinities and NaN stay what they are.
/// @tparam Image write the image, not rows
template <bool Image>
BL_KERNEL __launch_bounds__(convert_x_threads, convert_x_blocks)
    convert_x_kernel(const __grid_constant__ convert_x_params p) {
  constexpr int warps = convert_x_threads / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int token = static_cast<int>(blockIdx.x);
  launch_dependents();
  wait_for_dependency();
  const std::uint16_t* x = static_cast<const std::uint16_t*>(p.x) + token * p.stride;
  const bool here = token < p.m;

  float scale = 1.f, unscale = 1.f;
  if (p.bf16 && here) {
    __shared__ int largest[warps];
    int exponent = 0;  // biased, of the largest finite value
#pragma unroll 4
    for (int c = static_cast<int>(threadIdx.x) * 8; c < p.cols; c += convert_x_threads * 8) {
      const uint4 v = *reinterpret_cast<const uint4*>(x + c);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::uint32_t pair = i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
        const int a = static_cast<int>(pair >> 7 & 0xffu), b = static_cast<int>(pair >> 23 & 0xffu);
        if (a != 0xff) exponent = max(exponent, a);
        if (b != 0xff) exponent = max(exponent, b);
      }
    }
    exponent = __reduce_max_sync(~0u, exponent);
    if (lane == 0) largest[warp] = exponent;
    __syncthreads();
    exponent = largest[0];
#pragma unroll
    for (int i = 1; i < warps; ++i) exponent = max(exponent, largest[i]);
    // A value with biased exponent e lies in [2^(e - 127), 2^(e - 126)). Both powers of two stay
    // normal floats: tiny tokens are scaled by 2^126 at most, huge ones by 2^-113 at least.
    const int up = min(127 + 14 - exponent, 126);
    scale = __int_as_float((127 + up) << 23);
    unscale = __int_as_float((127 - up) << 23);
  }
  if (threadIdx.x == 0 && blockIdx.y == 0 && p.unscale != nullptr) p.unscale[token] = unscale;

  // A warp takes a column tile, a lane 8 columns of it: lane = 16 half + 4 t + m.
  const int stride = warps * static_cast<int>(gridDim.y);
  const int from = (p.exchange ? lane ^ (lane & 4) * 4 : lane) * 8;
#pragma unroll 1
  for (int first = warp + static_cast<int>(blockIdx.y) * warps; first < p.col_tiles;
       first += convert_x_depth * stride) {
    uint4 ahead[convert_x_depth];
#pragma unroll
    for (int i = 0; i < convert_x_depth; ++i) {
      const int column = (first + i * stride) * 256 + from;
      ahead[i] = make_uint4(0, 0, 0, 0);
      if (here && column < p.cols) ahead[i] = *reinterpret_cast<const uint4*>(x + column);
    }
#pragma unroll
    for (int i = 0; i < convert_x_depth; ++i) {
      const int tile = first + i * stride, column = tile * 256 + from;
      if (tile >= p.col_tiles) break;
      uint4 v = ahead[i];
      if (p.bf16) {
        v.x = scale_pair(v.x, scale);
        v.y = scale_pair(v.y, scale);
        v.z = scale_pair(v.z, scale);
        v.w = scale_pair(v.w, scale);
      }
      if constexpr (!Image) {
        if (column < p.cols)
          *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(p.out) +
                                    static_cast<std::size_t>(token) * p.cols + column) = v;
      } else {
        // Pair 4 r + m is columns r and r + 4 of the eight.
        std::uint32_t pair[4] = {permute<0x5410>(v.x, v.z), permute<0x7632>(v.x, v.z),
                                 permute<0x5410>(v.y, v.w), permute<0x7632>(v.y, v.w)};
        // Now the lane has pair 4 t + m of all four t: chunk 4 t + m of its half: lane % 16.
        transpose_lanes(pair, lane);
        const std::size_t block = static_cast<std::size_t>(tile) * 4 + lane / 8;
        *reinterpret_cast<uint4*>(
            static_cast<unsigned char*>(p.out) + (block * p.padded_m + token) * 128 +
            ((lane % 8) ^ (token % 8)) * 16) = make_uint4(pair[0], pair[1], pair[2], pair[3]);
      }
    }
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
