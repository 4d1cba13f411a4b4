// SPDX-License-Identifier: MIT
// Attention of one new token per sequence, with the turning of its query and key and the storing of
// its key and value. The tiles of the cache that a token sees, of up to 64 KiB of keys and values,
// are dealt to 1 part (two tiles) to 8 parts, and the parts to the blocks that the launch has for a
// kv head; each group of lanes that holds one position has a softmax of its own. Groups, warps and
// parts are joined in a fixed order at the end, so the bits depend on the positions alone. The
// first tiles come while the kernel before, which makes queries, ends. Blocks
// of sm_90 and later are a cluster and meet in shared memory; others meet in `scratch`.
// The splitting of long contexts is that of flash decoding (Dao et al. 2023); joining softmaxes of
// parts: Milakov and Gimelshein 2018, section 3. Tested by tests/llama/cuda/operations_test.cu.
#pragma once

#include <llama/cuda/card_launch.cuh>
#include <llama/cuda/operations.cuh>
#include <llama/cuda/rope_kernel.cuh>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace llama {
namespace card {
namespace detail {

constexpr int attention_threads = 256;
constexpr int attention_warps = attention_threads / 32;
constexpr int attention_parts = 8;  ///< blocks of a kv head

/// Positions of a tile that a group of lanes takes. With 8 for lone heads, which registers allow,
/// attention of 32 heads took 7.6 us at 128 positions instead of 5.5, and 34.7 at 4096 instead of
/// 27.4 (H200).
constexpr int attention_rounds = 4;

/// Below every score, and finite: a group without positions has this maximum and the sum 0.
constexpr float lowest_score = -1e30f;

/// What the kernel reads, beside the arguments of decode_attention.
struct decode_attention_params {
  decode_attention_args args;
  int head_groups;  ///< of a kv head: query heads that a block takes at once
};

/// Floats that one part of one group of `heads` brings to the meeting.
BL_HOST_DEVICE inline std::size_t attention_part_floats(int heads, int width) {
  return static_cast<std::size_t>(heads) * static_cast<std::size_t>(width + 2);
}

/// Shared memory of a block: of its query heads' columns, 8 Lanes each.
template <int Lanes, int Heads>
struct decode_attention_shared {
  static constexpr int width = 8 * Lanes;
  float query[Heads][width];
  alignas(16) __half key[width], value[width];  ///< of the new token
  float warp_sum[attention_warps][Heads][width];
  float warp_max[attention_warps][Heads], warp_total[attention_warps][Heads];
  float part_sum[attention_parts][Heads][width];
  float part_max[attention_parts][Heads], part_total[attention_parts][Heads];
};

/// A softmax of some positions: largest score (in powers of two), sum, and sum of values.
template <int Heads>
struct running_softmax {
  float max[Heads], total[Heads], sum[Heads][8];
};

/// Blocks of the same part that are one cluster.
__device__ __forceinline__ void cluster_arrive_first() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
/// Writes to the same place in the shared memory of the cluster's first block.
__device__ __forceinline__ void store_in_first(const float& here, float v) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{.reg .u32 a; mapa.shared::cluster.u32 a, %0, 0;\n"
      "st.shared::cluster.f32 [a], %1;}" ::"r"(shared_address(&here)),
      "f"(v)
      : "memory");
#endif
}

/// Grid (ranks: 1, 2, 4 or 8, a cluster; kv heads * head groups; rows).
template <int Lanes, int Heads>
BL_KERNEL __launch_bounds__(attention_threads, 2)
    decode_attention_kernel(const decode_attention_params p) {
  constexpr int width = 8 * Lanes, groups = attention_threads / Lanes;
  constexpr int rounds = attention_rounds, tile = rounds * groups;
  static_assert(Heads * width <= 2 * attention_threads, "shared memory below 48 KiB");
  __shared__ decode_attention_shared<Lanes, Heads> s;
  const decode_attention_args& a = p.args;
  const cache_view& cache = a.cache;
  const int row = static_cast<int>(blockIdx.z), rank = static_cast<int>(blockIdx.x);
  const int ranks = static_cast<int>(gridDim.x);
  const int kv_head = static_cast<int>(blockIdx.y) / p.head_groups;
  const int head_group = static_cast<int>(blockIdx.y) % p.head_groups;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int group = thread / Lanes, column = thread % Lanes * 8;
  const int d = cache.head_dim, cache_row = cache.row();
  const int heads_of_kv = a.heads / cache.kv_heads;
  const int first_head = kv_head * heads_of_kv + head_group * Heads;
  const int heads = min(Heads, heads_of_kv - head_group * Heads);

  launch_dependents();
  cluster_arrive_first();
  for (int i = thread; i < Heads * width; i += attention_threads) s.query[i / width][i % width] = 0;
  for (int i = thread; i < width; i += attention_threads) s.key[i] = s.value[i] = __float2half(0.f);
  __syncthreads();

  // What steps before wrote, on its way while the kernel before this one ends: the position, then
  // the first tiles and the angles of the position.
  const int pairs = a.rope.pairs, units = d - pairs;
  const int position = load_shared_by_all(a.positions + row);
  const int slot = a.slots == nullptr ? row : load_shared_by_all(a.slots + row);
  const bool valid = position >= 0 && position < cache.capacity && slot >= 0 && slot < cache.slots;
  // Tiles from the first to the last that the token sees go to 1, 2, 4 or 8 parts in turn, so that
  // short contexts have one and nobody to meet.
  const int begin = a.window > 0 ? max(0, position + 1 - a.window) : 0;
  const int first_tile = begin / tile, tiles = position / tile + 1;
  int parts = 1;
  while (parts < attention_parts && 2 * parts <= tiles - first_tile) parts *= 2;
  const bool here = valid && rank < parts;
  const __half* keys = cache.keys(a.layer, valid ? slot : 0, kv_head) + column;
  const __half* values = cache.values(a.layer, valid ? slot : 0, kv_head) + column;
  const bool has_column = here && column < cache_row;
  uint4 k[rounds], v[rounds];
  const auto load = [&](const __half* head, uint4(&to)[rounds], int which) {
#pragma unroll
    for (int j = 0; j < rounds; ++j) {
      const int at = which * tile + j * groups + group;
      to[j] = uint4{};
      if (has_column && at >= begin && at < position)
        to[j] = load_shared_by_all(static_cast<const void*>(head + at * cache_row));
    }
  };
  int part = rank, t = first_tile + part;
  load(keys, k, t);
  load(values, v, t);
  constexpr int mine = (Heads * width + attention_threads - 1) / attention_threads;
  const std::size_t angles =
      (here ? static_cast<std::size_t>(position) : 0) * static_cast<std::size_t>(pairs);
  float cosine[mine + 1], sine[mine + 1];
#pragma unroll
  for (int j = 0; j <= mine; ++j) {
    const int c = j < mine ? (thread + j * attention_threads) % width : thread;
    cosine[j] = c < pairs ? a.rope.cosines[angles + static_cast<std::size_t>(c)] : 1.f;
    sine[j] = c < pairs ? a.rope.sines[angles + static_cast<std::size_t>(c)] : 0.f;
  }
  wait_for_dependency();

  __half* out = a.out + (static_cast<std::size_t>(row) * static_cast<std::size_t>(a.heads) +
                         static_cast<std::size_t>(first_head)) *
                            static_cast<std::size_t>(d);
  const __half zero = __float2half(0.f);
  if (!here) {
    if (!valid && rank == 0)
      for (int i = thread; i < heads * d; i += attention_threads) out[i] = zero;
    cluster_wait();
    return;
  }
  // A thread has one unit of the new key, which is a pair that turns or a column that does not, up
  // to two of the queries, and a column of the new value.
  const __half* q =
      a.q + static_cast<std::size_t>(row) * static_cast<std::size_t>(a.q_stride) + first_head * d;
  const std::size_t from = static_cast<std::size_t>(row) * static_cast<std::size_t>(a.kv_stride) +
                           static_cast<std::size_t>(kv_head * d);
  __half low[mine], high[mine], key_low = zero, key_high = zero, new_value = zero;
#pragma unroll
  for (int j = 0; j < mine; ++j) {
    const int i = thread + j * attention_threads, h = i / width, c = i % width;
    low[j] = high[j] = zero;
    if (h >= heads || c >= units) continue;
    if (c < pairs) low[j] = q[h * d + c];
    if (c + pairs < d) high[j] = q[h * d + c + pairs];
  }
  if (thread < units) {
    if (thread < pairs) key_low = a.k[from + thread];
    key_high = a.k[from + thread + pairs];
  }
  if (thread < d) new_value = a.v[from + thread];
  {
    const float scale = a.scale * 1.44269504f;  // the powers are of two
#pragma unroll
    for (int j = 0; j < mine; ++j) {
      const int i = thread + j * attention_threads, h = i / width, c = i % width;
      if (h >= heads || c >= units) continue;
      if (c < pairs) {
        turn(low[j], high[j], cosine[j], sine[j]);
        s.query[h][c] = __half2float(low[j]) * scale;
      }
      if (c + pairs < d) s.query[h][c + pairs] = __half2float(high[j]) * scale;
    }
    if (((tiles - 1 - first_tile) & (parts - 1)) % ranks == rank) {
      __half* key = cache.keys(a.layer, slot, kv_head) +
                    static_cast<std::size_t>(position) * static_cast<std::size_t>(cache_row);
      __half* value = cache.values(a.layer, slot, kv_head) +
                      static_cast<std::size_t>(position) * static_cast<std::size_t>(cache_row);
      if (thread < pairs) {
        turn(key_low, key_high, cosine[mine], sine[mine]);
        s.key[thread] = key_low;
        if (head_group == 0) key[thread] = key_low;
      }
      if (thread < units) {
        s.key[thread + pairs] = key_high;
        if (head_group == 0) key[thread + pairs] = key_high;
      }
      if (thread < d) {
        s.value[thread] = new_value;
        if (head_group == 0) value[thread] = new_value;
      }
    }
  }
  __syncthreads();

  float query[Heads][8];
#pragma unroll
  for (int h = 0; h < Heads; ++h)
#pragma unroll
    for (int i = 0; i < 8; ++i) query[h][i] = s.query[h][column + i];
  running_softmax<Heads> r;
  const auto restart = [&] {
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
      r.max[h] = lowest_score;
      r.total[h] = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) r.sum[h][i] = 0;
    }
  };
  restart();
  /// Whether the parts meet in this block, which then has them all.
  const bool alone = parts == 1 || ranks == 1;
#if __CUDA_ARCH__ >= 900
  if (!alone) cluster_wait();  // the first block has started: its shared memory may be written
#else
  const std::size_t part_floats = attention_part_floats(Heads, width);
  const std::size_t meeting = static_cast<std::size_t>(row) * gridDim.y + blockIdx.y;
  float* brought = a.scratch + meeting * (attention_parts * part_floats + 4);
  unsigned* arrived = reinterpret_cast<unsigned*>(brought);
  brought += 4;
#endif
#pragma unroll 1
  for (;;) {
    int next = t + parts, next_part = part;
    if (next >= tiles) {
      next_part = part + ranks;
      next = next_part < parts ? first_tile + next_part : tiles;
    }
    float score[Heads][rounds];
#pragma unroll
    for (int j = 0; j < rounds; ++j) {
      const int at = t * tile + j * groups + group;
      if (at == position) {
        k[j] = *reinterpret_cast<const uint4*>(s.key + column);
        v[j] = *reinterpret_cast<const uint4*>(s.value + column);
      }
      float x[8];
      widen(k[j], x);
#pragma unroll
      for (int h = 0; h < Heads; ++h) {
        float dot = x[0] * query[h][0];
#pragma unroll
        for (int i = 1; i < 8; ++i) dot = fmaf(x[i], query[h][i], dot);
        score[h][j] = dot;
      }
    }
    load(keys, k, next);
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
      float max = r.max[h];
#pragma unroll
      for (int j = 0; j < rounds; ++j) {
#pragma unroll
        for (int i = Lanes / 2; i > 0; i /= 2) score[h][j] += __shfl_xor_sync(~0u, score[h][j], i);
        const int at = t * tile + j * groups + group;
        if (at < begin || at > position) score[h][j] = -INFINITY;
        max = fmaxf(max, score[h][j]);
      }
      const float shrink = exp2f(r.max[h] - max);
      r.max[h] = max;
      r.total[h] *= shrink;
#pragma unroll
      for (int i = 0; i < 8; ++i) r.sum[h][i] *= shrink;
#pragma unroll
      for (int j = 0; j < rounds; ++j) {
        score[h][j] = exp2f(score[h][j] - max);
        r.total[h] += score[h][j];
      }
    }
#pragma unroll
    for (int j = 0; j < rounds; ++j) {
      float x[8];
      widen(v[j], x);
#pragma unroll
      for (int h = 0; h < Heads; ++h)
#pragma unroll
        for (int i = 0; i < 8; ++i) r.sum[h][i] = fmaf(score[h][j], x[i], r.sum[h][i]);
    }
    load(values, v, next);
    t = next;
    if (next_part == part) continue;

      // The end of a part: the groups of a warp are joined, then the warps.
#pragma unroll
    for (int lanes = Lanes; lanes < 32; lanes *= 2)
#pragma unroll
      for (int h = 0; h < Heads; ++h) {
        const float other = __shfl_xor_sync(~0u, r.max[h], lanes);
        const float max = fmaxf(r.max[h], other);
        const float ours = exp2f(r.max[h] - max), theirs = exp2f(other - max);
        r.max[h] = max;
        // Products first, so that both sides add the same two numbers.
        r.total[h] = __fadd_rn(__fmul_rn(r.total[h], ours),
                               __fmul_rn(__shfl_xor_sync(~0u, r.total[h], lanes), theirs));
#pragma unroll
        for (int i = 0; i < 8; ++i)
          r.sum[h][i] = __fadd_rn(__fmul_rn(r.sum[h][i], ours),
                                  __fmul_rn(__shfl_xor_sync(~0u, r.sum[h][i], lanes), theirs));
      }
    if (thread % 32 < Lanes) {
#pragma unroll
      for (int h = 0; h < Heads; ++h) {
#pragma unroll
        for (int i = 0; i < 8; ++i) s.warp_sum[warp][h][column + i] = r.sum[h][i];
        if (thread % 32 == 0) {
          s.warp_max[warp][h] = r.max[h];
          s.warp_total[warp][h] = r.total[h];
        }
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int i = thread; i < Heads * width; i += attention_threads) {
      const int h = i / width, c = i % width;
      float max = s.warp_max[0][h];
#pragma unroll
      for (int w = 1; w < attention_warps; ++w) max = fmaxf(max, s.warp_max[w][h]);
      float total = 0, sum = 0;
#pragma unroll
      for (int w = 0; w < attention_warps; ++w) {
        const float by = exp2f(s.warp_max[w][h] - max);
        total = fmaf(s.warp_total[w][h], by, total);
        sum = fmaf(s.warp_sum[w][h][c], by, sum);
      }
      if (parts == 1) {
        if (h < heads && c < d) out[h * d + c] = __float2half_rn(sum / total);
      } else if (alone) {
        s.part_sum[part][h][c] = sum;
        if (c == 0) {
          s.part_max[part][h] = max;
          s.part_total[part][h] = total;
        }
      } else {
#if __CUDA_ARCH__ >= 900
        store_in_first(s.part_sum[part][h][c], sum);
        if (c == 0) {
          store_in_first(s.part_max[part][h], max);
          store_in_first(s.part_total[part][h], total);
        }
#else
        float* to = brought + static_cast<std::size_t>(part) * part_floats;
        to[i] = sum;
        if (c == 0) {
          to[Heads * width + h] = max;
          to[Heads * width + Heads + h] = total;
        }
#endif
      }
    }
    if (next_part >= parts) break;
    part = next_part;
    restart();
    __syncthreads();  // what the warps brought is read
  }
  if (parts == 1) {
    cluster_wait();
    return;
  }

  const auto join = [&](auto&& sum_of, auto&& max_of, auto&& total_of) {
    for (int i = thread; i < heads * width; i += attention_threads) {
      const int h = i / width, c = i % width;
      if (c >= d) continue;
      float max = lowest_score, total = 0, sum = 0;
      for (int o = 0; o < parts; ++o) max = fmaxf(max, max_of(o, h));
      for (int o = 0; o < parts; ++o) {
        const float by = exp2f(max_of(o, h) - max);
        total = fmaf(total_of(o, h), by, total);
        sum = fmaf(sum_of(o, h, c), by, sum);
      }
      out[h * d + c] = __float2half_rn(sum / total);
    }
  };
  const auto join_here = [&] {
    join([&](int o, int h, int c) { return s.part_sum[o][h][c]; },
         [&](int o, int h) { return s.part_max[o][h]; },
         [&](int o, int h) { return s.part_total[o][h]; });
  };
  __syncthreads();
  if (alone) {
    join_here();
    cluster_wait();
    return;
  }
#if __CUDA_ARCH__ >= 900
  cluster_arrive();
  cluster_wait();
  if (rank == 0) join_here();
#else
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (thread == 0) last = static_cast<int>(atomicAdd(arrived, 1u)) == min(parts, ranks) - 1;
  __syncthreads();
  if (!last) return;
  if (thread == 0) atomicExch(arrived, 0u);
  __threadfence();
  const auto at = [&](int o, int i) {
    return load_shared_by_all(brought + static_cast<std::size_t>(o) * part_floats + i);
  };
  join([&](int o, int h, int c) { return at(o, h * width + c); },
       [&](int o, int h) { return at(o, Heads * width + h); },
       [&](int o, int h) { return at(o, Heads * width + Heads + h); });
#endif
}

}  // namespace detail
}  // namespace card
}  // namespace llama
