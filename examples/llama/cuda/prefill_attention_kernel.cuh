// SPDX-License-Identifier: MIT
// Attention of a prompt's tokens over the cache on the fp16 tensor cores, with a running softmax: a
// warp has 16 queries of one head, a block 64, and goes through the tiles of keys and values that
// they see, two tiles in shared memory. Tiles begin at fixed positions, so a token has the same
// bits however the prompt is cut. The scheme is that of FlashAttention-2 (Dao 2023, section 3.1).
// Tested by tests/llama/cuda/operations_test.cu.
#pragma once

#include <llama/cuda/card_launch.cuh>
#include <llama/cuda/operations.cuh>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace llama {
namespace card {
namespace detail {

constexpr int prefill_threads = 128;
constexpr int prefill_queries = 64;  ///< of a block

struct prefill_attention_params {
  const __half* q;
  __half* out;
  cache_view cache;
  int m, heads, layer, slot, start, window;
  float scale;  ///< log2(e) is in it
};

/// Shared memory of a block: two stages of a tile of keys and of values, and wide heads' queries.
template <int Width, int Tile>
constexpr int prefill_shared_bytes() {
  return (2 * 2 * Tile + (Width > 128 ? prefill_queries : 0)) * Width *
         static_cast<int>(sizeof(__half));
}

/// Where chunk `chunk` (16 bytes) of a row of a tile is: spread so that the 8 rows of a matrix that
/// ldmatrix reads lie in different banks.
template <int Width>
__device__ __forceinline__ std::uint32_t tile_offset(int row, int chunk) {
  return static_cast<std::uint32_t>(row * Width * 2 + ((chunk ^ (row & 7)) << 4));
}

__device__ __forceinline__ void copy_16(std::uint32_t shared, const void* global, bool here) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(here ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void load_matrices(std::uint32_t address, std::uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_turned(std::uint32_t address, std::uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// Grid (blocks of queries, heads). Width: columns of a head, padded; Tile: positions.
template <int Width, int Tile>
BL_KERNEL __launch_bounds__(prefill_threads)
    prefill_attention_kernel(const prefill_attention_params p) {
  extern __shared__ __align__(128) unsigned char prefill_memory[];
  constexpr int tile_bytes = Tile * Width * 2, chunks = Width / 8;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, pair = lane % 4 * 2;
  const int head = static_cast<int>(blockIdx.y);
  // The last queries see most: they begin first.
  const int block = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int first_query = block * prefill_queries;
  const int d = p.cache.head_dim, cache_row = p.cache.row();
  const int kv_head = head / (p.heads / p.cache.kv_heads);
  const __half* keys = p.cache.keys(p.layer, p.slot, kv_head);
  const __half* values = p.cache.values(p.layer, p.slot, kv_head);
  const std::uint32_t shared = shared_address(prefill_memory);
  launch_dependents();
  wait_for_dependency();

  const int end = p.start + min(first_query + prefill_queries, p.m);  // positions that are seen
  const int begin = p.window > 0 ? max(0, p.start + first_query + 1 - p.window) : 0;
  const auto load_tile = [&](const __half* from, int tile, std::uint32_t to) {
#pragma unroll 4
    for (int i = thread; i < Tile * chunks; i += prefill_threads) {
      const int r = i / chunks, c = i % chunks, position = tile * Tile + r;
      const bool here = position < end && c * 8 < cache_row;
      copy_16(
          to + tile_offset<Width>(r, c),
          from + (here ? static_cast<std::size_t>(position) * static_cast<std::size_t>(cache_row) +
                             static_cast<std::size_t>(c * 8)
                       : 0),
          here);
    }
  };
  int tile = begin / Tile;
  const int tiles = (end + Tile - 1) / Tile;
  load_tile(keys, tile, shared);
  asm volatile("cp.async.commit_group;" ::: "memory");
  load_tile(values, tile, shared + 2 * tile_bytes);
  asm volatile("cp.async.commit_group;" ::: "memory");

  // Queries as operands: rows g and g + 8 of the warp's 16, columns 2t.. and 2t + 8.. of each 16.
  // Wide heads have no registers for them: they stay in shared memory.
  constexpr bool keep = Width <= 128;
  const int rows[2] = {first_query + warp * 16 + g, first_query + warp * 16 + g + 8};
  const bool even = d % 2 == 0;
  const auto load_query = [&](int kk, std::uint32_t(&to)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = rows[i % 2], c = kk * 16 + pair + i / 2 * 8;
      const __half* at = p.q +
                         (static_cast<std::size_t>(row) * static_cast<std::size_t>(p.heads) +
                          static_cast<std::size_t>(head)) *
                             static_cast<std::size_t>(d) +
                         c;
      to[i] = 0;
      if (row >= p.m || c >= d) continue;
      if (even)
        to[i] = *reinterpret_cast<const std::uint32_t*>(at);
      else
        to[i] = __half_as_ushort(at[0]) |
                (c + 1 < d ? static_cast<std::uint32_t>(__half_as_ushort(at[1])) << 16 : 0u);
    }
  };
  std::uint32_t q[keep ? Width / 16 : 1][4];
  const std::uint32_t query_tile = shared + 4 * tile_bytes;
  if (keep) {
#pragma unroll
    for (int kk = 0; kk < Width / 16; ++kk) load_query(kk, q[keep ? kk : 0]);
  } else {
#pragma unroll 1
    for (int kk = 0; kk < Width / 16; ++kk) {
      load_query(kk, q[0]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        *reinterpret_cast<std::uint32_t*>(
            prefill_memory + 4 * tile_bytes +
            tile_offset<Width>(warp * 16 + g + i % 2 * 8, kk * 2 + i / 2) + pair * 2) = q[0][i];
    }
    __syncwarp();
  }

  float sum[Width / 8][4] = {};
  float max[2] = {-1e30f, -1e30f}, total[2] = {0, 0};
  for (int stage = 0; tile < tiles; ++tile, stage ^= 1) {
    const std::uint32_t key_tile = shared + static_cast<std::uint32_t>(stage * tile_bytes);
    const std::uint32_t value_tile = key_tile + 2 * tile_bytes;
    // All warps are past the last barrier, so past the keys that the next ones replace; the values
    // have the barrier below between their last use and their replacement.
    if (tile + 1 < tiles)
      load_tile(keys, tile + 1, shared + static_cast<std::uint32_t>((stage ^ 1) * tile_bytes));
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 2;" ::: "memory");
    __syncthreads();

    float score[Tile / 8][4] = {};
#pragma unroll
    for (int kk = 0; kk < Width / 16; ++kk) {
      if (!keep)
        load_matrices(
            query_tile + tile_offset<Width>(warp * 16 + (lane & 15), kk * 2 + (lane >> 4)), q[0]);
      const std::uint32_t(&a)[4] = q[keep ? kk : 0];
#pragma unroll
      for (int nn = 0; nn < Tile / 16; ++nn) {
        std::uint32_t b[4];
        load_matrices(key_tile + tile_offset<Width>(nn * 16 + (lane & 7) + (lane >> 4) * 8,
                                                    kk * 2 + (lane >> 3 & 1)),
                      b);
        mma_f16(score[2 * nn], a[0], a[1], a[2], a[3], b[0], b[1]);
        mma_f16(score[2 * nn + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
      }
    }

    // Every query of the warp sees the whole tile, or some do not.
    const int lowest = p.start + first_query + warp * 16, from = tile * Tile;
    const bool whole =
        from + Tile - 1 <= lowest && (p.window == 0 || from > lowest + 15 - p.window);
#pragma unroll
    for (int n = 0; n < Tile / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[n][i] *= p.scale;
        if (whole) continue;
        const int position = from + n * 8 + pair + (i & 1), query = p.start + rows[i / 2];
        if (position > query || (p.window > 0 && position <= query - p.window))
          score[n][i] = -INFINITY;
      }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = max[half];
#pragma unroll
      for (int n = 0; n < Tile / 8; ++n)
        top = fmaxf(top, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      const float shrink = exp2f(max[half] - top);
      max[half] = top;
      total[half] *= shrink;
#pragma unroll
      for (int n = 0; n < Width / 8; ++n) {
        sum[n][2 * half] *= shrink;
        sum[n][2 * half + 1] *= shrink;
      }
#pragma unroll
      for (int n = 0; n < Tile / 8; ++n) {
        score[n][2 * half] = exp2f(score[n][2 * half] - top);
        score[n][2 * half + 1] = exp2f(score[n][2 * half + 1] - top);
        total[half] += score[n][2 * half] + score[n][2 * half + 1];
      }
    }

    if (tile + 1 < tiles)
      load_tile(values, tile + 1,
                shared + static_cast<std::uint32_t>((2 + (stage ^ 1)) * tile_bytes));
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 2;" ::: "memory");
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < Tile / 16; ++kk) {
      const std::uint32_t a0 = pack_half2(score[2 * kk][0], score[2 * kk][1]);
      const std::uint32_t a1 = pack_half2(score[2 * kk][2], score[2 * kk][3]);
      const std::uint32_t a2 = pack_half2(score[2 * kk + 1][0], score[2 * kk + 1][1]);
      const std::uint32_t a3 = pack_half2(score[2 * kk + 1][2], score[2 * kk + 1][3]);
#pragma unroll
      for (int dd = 0; dd < Width / 16; ++dd) {
        std::uint32_t b[4];
        load_matrices_turned(
            value_tile + tile_offset<Width>(kk * 16 + (lane & 7) + (lane >> 3 & 1) * 8,
                                            dd * 2 + (lane >> 4)),
            b);
        mma_f16(sum[2 * dd], a0, a1, a2, a3, b[0], b[1]);
        mma_f16(sum[2 * dd + 1], a0, a1, a2, a3, b[2], b[3]);
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] += __shfl_xor_sync(~0u, total[half], 1);
    total[half] += __shfl_xor_sync(~0u, total[half], 2);
    if (rows[half] >= p.m) continue;
    const float by = 1.f / total[half];
    __half* to = p.out + (static_cast<std::size_t>(rows[half]) * static_cast<std::size_t>(p.heads) +
                          static_cast<std::size_t>(head)) *
                             static_cast<std::size_t>(d);
#pragma unroll
    for (int n = 0; n < Width / 8; ++n) {
      const int c = n * 8 + pair;
      const float x = sum[n][2 * half] * by, y = sum[n][2 * half + 1] * by;
      if (even) {
        if (c < d) *reinterpret_cast<std::uint32_t*>(to + c) = pack_half2(x, y);
      } else {
        if (c < d) to[c] = __float2half_rn(x);
        if (c + 1 < d) to[c + 1] = __float2half_rn(y);
      }
    }
  }
}

}  // namespace detail
}  // namespace card
}  // namespace llama
