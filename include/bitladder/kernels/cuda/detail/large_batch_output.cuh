// SPDX-License-Identifier: MIT
// The sums of products of many tokens on their way out: through shared memory, so that a token's
// rows are written together, over the blocks of a cluster if they divide the columns. Tested by
// tests/kernels/cuda/large_batch_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/bulk_copy.cuh>
#include <bitladder/kernels/cuda/detail/large_batch_tables.cuh>
#include <bitladder/kernels/cuda/detail/output.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

struct large_batch_matrix {
  const std::uint32_t* planes;
  const std::uint32_t* tables;  ///< [row tiles][2^bits][8] words {row g, row g + 8}
  output_row_params out;
  std::size_t row_tile_stride;  ///< words of the planes
  int row_tiles;
  int first_block;  ///< of the launch's row blocks
  int first_sum;    ///< of its rows among the outliers' sums
};

struct large_batch_params {
  large_batch_matrix matrices[4];
  const unsigned char* x;  ///< the image that convert_x_kernel writes
  const float* unscale;    ///< per token
  const float* outliers;   ///< [m, outlier_stride] sums of whole row tiles, to be added; or null
  std::int64_t outlier_stride;
  output_params out;
  int count;
  int first_block;  ///< of this launch
  int m, padded_m;
  int col_tiles;
  int share, extra;  ///< column tiles of a block of a cluster; one more in the first `extra`
  int stages;        ///< token tiles of 64 columns in shared memory for each group of warps
  int replicas;      ///< copies of a table word, 1, 2 or 4: lanes that share a row read their own
  bool swiglu;       ///< the block has half its rows of the gate and the same rows of up
  bool wide;         ///< y and residual take four rows per access
};

/// Where a warp's row tile is.
struct large_batch_row_tile {
  int matrix;
  int tile;
};

/// @tparam Slots row tiles of a block
template <int Slots>
__device__ __forceinline__ large_batch_row_tile find_row_tile(const large_batch_params& p,
                                                              int block, int slot) {
  if (p.swiglu) return {slot / (Slots / 2), block * (Slots / 2) + slot % (Slots / 2)};
  int matrix = 0;
  while (matrix + 1 < p.count && block >= p.matrices[matrix + 1].first_block) ++matrix;
  return {matrix, (block - p.matrices[matrix].first_block) * Slots + slot};
}

/// Four rows of a token, y = v + bias + residual, or silu(v) * up with their biases.
__device__ __forceinline__ void write_rows(const large_batch_params& p, int matrix, int token,
                                           int row, float (&v)[4], const float (&up)[4]) {
  const output_row_params& o = p.matrices[matrix].out;
  const int count = min(4, o.rows - row);
  const std::int64_t at = token * o.stride + row;
  if (o.bias != nullptr || p.swiglu) {  // one jump over what most calls have not
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= count) break;
      v[i] = add_bias(p.out, o, row + i, v[i]);
      if (p.swiglu)
        v[i] = v[i] / (1.f + expf(-v[i])) * add_bias(p.out, p.matrices[1].out, row + i, up[i]);
    }
  }
  if (!p.wide || count < 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= count) break;
      if (o.residual != nullptr) v[i] += read_element(p.out.type, o.residual, at + i);
      write_element(p.out.type, o.y, at + i, v[i]);
    }
    return;
  }
  if (p.out.type == dtype::f32) {
    if (o.residual != nullptr) {
      const float4 r = *reinterpret_cast<const float4*>(static_cast<const float*>(o.residual) + at);
      v[0] += r.x;
      v[1] += r.y;
      v[2] += r.z;
      v[3] += r.w;
    }
    *reinterpret_cast<float4*>(static_cast<float*>(o.y) + at) = make_float4(v[0], v[1], v[2], v[3]);
    return;
  }
  const bool half = p.out.type == dtype::f16;
  if (o.residual != nullptr) {
    const uint2 r =
        *reinterpret_cast<const uint2*>(static_cast<const std::uint16_t*>(o.residual) + at);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t word = i < 2 ? r.x : r.y;
      const std::uint32_t bits = i % 2 == 0 ? word & 0xffffu : word >> 16;
      v[i] += half ? __half2float(__ushort_as_half(static_cast<unsigned short>(bits)))
                   : __uint_as_float(bits << 16);
    }
  }
  std::uint32_t out[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (half) {
      const __half2 h = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
      out[i] = *reinterpret_cast<const std::uint32_t*>(&h);
    } else {
      const __nv_bfloat162 h = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
      out[i] = *reinterpret_cast<const std::uint32_t*>(&h);
    }
  }
  *reinterpret_cast<uint2*>(static_cast<std::uint16_t*>(o.y) + at) = make_uint2(out[0], out[1]);
}

/// Among the warps that multiply; barrier 0 is everybody's.
template <int Warps>
__device__ __forceinline__ void multiplying_warps_barrier() {
  asm volatile("bar.sync 1, %0;" ::"n"(Warps * 32) : "memory");
}

/// The other warps' part of write_tile and of the end: barriers of a cluster want all threads.
template <int Tokens>
__device__ __forceinline__ void meet_cluster(int ranks) {
  if (ranks == 1) return;
#pragma unroll 1
  for (int i = 0; i < (Tokens == 128 ? 3 : 1); ++i) cluster_barrier();
  cluster_leave();
}

/// Sums to results: through shared memory, so that a token's rows are written together.
/// @param sum as the tensor core leaves them
/// @param block row block; @param first_token of the block's tokens
/// @param rank of this block among the `ranks` of the cluster
template <class Shape, int Sums>
__device__ __forceinline__ void write_tile(const large_batch_params& p, unsigned char* memory,
                                           const float (&sum)[Sums], int block, int first_token,
                                           int rank, int ranks, int warp, int lane) {
  constexpr int warps = Shape::warps, chunk_tokens = Shape::chunk;
  float* staging = reinterpret_cast<float*>(memory);
  const large_batch_row_tile first = find_row_tile<Shape::slots>(p, block, 0);
  const int row0 = first.tile * packed_layout::tile_rows;
  constexpr int lanes = Shape::rows / 4;  // that write a token
  constexpr int side = 32 / lanes;        // tokens side by side
#pragma unroll 1
  for (int chunk = 0; chunk < 2 * Sums / chunk_tokens; ++chunk) {
    // Token i of this warp in lane i.
    const int chunk_token = first_token + chunk * chunk_tokens;
    const int base = (rank * warps + warp) * side, stride = ranks * warps * side;
    const int scaled = base + lane / side * stride + lane % side;
    const float unscales = scaled < chunk_tokens ? p.unscale[chunk_token + scaled] : 0.f;
    if (chunk > 0 && ranks > 1)
      cluster_barrier();
    else
      multiplying_warps_barrier<warps>();
    const int row = warp * 16 + lane / 4;
#pragma unroll
    for (int c = 0; c < 2 * Sums / chunk_tokens; ++c) {
      if (c != chunk) continue;  // registers have no index: one copy of the stores per chunk
#pragma unroll
      for (int j = 0; j < chunk_tokens / 8; ++j) {
        const int token = 8 * j + lane % 4 * 2;
#pragma unroll
        for (int e = 0; e < 4; ++e)
          staging[(token + e % 2) * Shape::pitch + row + e / 2 * 8] =
              sum[(c * (chunk_tokens / 8) + j) * 4 + e];
      }
    }
    multiplying_warps_barrier<warps>();
    const std::uint32_t mine =
        shared_address(staging + lane / lanes * Shape::pitch + lane % lanes * 4);
    const auto add_groups = [&](int t) {
      const std::uint32_t from = mine + static_cast<std::uint32_t>(t * Shape::pitch * 4);
      float4 s = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int g = 0; g < Shape::groups; ++g) {
        const uint4 part = load_shared_v4(from + static_cast<std::uint32_t>(g * Shape::rows * 4));
        s.x += __uint_as_float(part.x);
        s.y += __uint_as_float(part.y);
        s.z += __uint_as_float(part.z);
        s.w += __uint_as_float(part.w);
      }
      return s;
    };
    const auto add_outliers = [&](int lane_of_token, int token, float(&v)[4]) {
      const int gate_lanes = p.swiglu ? lanes / 2 : lanes;
      const large_batch_matrix& m = p.matrices[first.matrix + lane_of_token / gate_lanes];
      const int row = row0 + lane_of_token % gate_lanes * 4;
      if (row >= m.row_tiles * packed_layout::tile_rows) return;
      const float4 more = *reinterpret_cast<const float4*>(p.outliers + token * p.outlier_stride +
                                                           m.first_sum + row);
      v[0] += more.x;
      v[1] += more.y;
      v[2] += more.z;
      v[3] += more.w;
    };
    if (ranks > 1) {
      // The groups of a block first: the others' memory is far.
      if (Shape::groups > 1) {
#pragma unroll
        for (int t = warp * side; t < chunk_tokens; t += warps * side) {
          const float4 s = add_groups(t);
          store_shared_v4(mine + static_cast<std::uint32_t>(t * Shape::pitch * 4),
                          __float_as_uint(s.x), __float_as_uint(s.y), __float_as_uint(s.z),
                          __float_as_uint(s.w));
        }
      }
      cluster_barrier();
    }
#pragma unroll 1
    for (int i = 0; base + i * stride < chunk_tokens; ++i) {
      const int t = base + i * stride, token = chunk_token + t + lane / lanes;
      if (chunk_token + t >= p.m) break;
      const float unscale = __shfl_sync(~0u, unscales, i * side + lane / lanes);
      float4 s = make_float4(0, 0, 0, 0);
      if (ranks == 1) {
        s = add_groups(t);
      } else {
#pragma unroll 4
        for (int r = 0; r < ranks; ++r) {
          const float4 part =
              load_cluster_f4(mine + static_cast<std::uint32_t>(t * Shape::pitch * 4), r);
          s.x += part.x;
          s.y += part.y;
          s.z += part.z;
          s.w += part.w;
        }
      }
      float v[4] = {s.x * unscale, s.y * unscale, s.z * unscale, s.w * unscale};
      if (p.outliers != nullptr && token < p.m) add_outliers(lane % lanes, token, v);
      float up[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) up[i] = __shfl_down_sync(~0u, v[i], lanes / 2);
      if (token < p.m && lane % lanes < (p.swiglu ? lanes / 2 : lanes))
        write_rows(p, first.matrix, token, row0 + lane % lanes * 4, v, up);
    }
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
