// SPDX-License-Identifier: MIT
// Attention of one new token inside the kernel of a whole step (resident_step_kernel.cuh): its
// blocks take a kv head each, or a part of its positions where there are many. Keys and values of
// earlier tokens come through the rings of the warps, ahead of time, as weights do. What is joined
// and in which order depends on the position alone. Tested by
// tests/llama/cuda/resident_layers_test.cpp.
#pragma once

#include <bitladder/kernels/cuda/resident_products.cuh>
#include <bitladder/kernels/cuda/tagged_pairs.cuh>

#include <llama/cuda/card_launch.cuh>
#include <llama/cuda/operations.cuh>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace llama {
namespace card {

/// Query heads of a kv head, at most.
constexpr int resident_heads = 4;
/// Blocks of a kv head, at most.
constexpr int resident_parts = 16;
/// Positions of a part, before they are divided further.
constexpr int resident_part_positions = 256;

/// What attention of a step reads and writes.
struct resident_attention_params {
  const bitladder::cuda::tagged_pair *q, *k, *v;  ///< not yet turned
  bitladder::cuda::tagged_pair* out;
  const int *positions, *slots;
  rope_view rope;
  cache_view cache;
  int heads;
  int log_lanes;  ///< of the lanes that share a position, 8 columns each
  float scale;
  float* scratch;      ///< resident_scratch_floats(...)
  unsigned* meetings;  ///< [kv heads], zero before and after
};

/// Floats that the parts of all heads bring to their meetings.
inline std::size_t resident_scratch_floats(int heads, int head_dim) {
  return static_cast<std::size_t>(resident_parts) * static_cast<std::size_t>(heads) *
         static_cast<std::size_t>(head_dim + 2);
}

/// Bytes of shared memory of a block.
inline int resident_attention_bytes(int heads_of_kv, int head_dim, int warps) {
  return heads_of_kv * head_dim * 4 + 2 * head_dim * 2 + warps * heads_of_kv * (head_dim + 2) * 4;
}

namespace detail {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// A block's attention; `Own` of resident_products.
/// @tparam Heads query heads of a kv head, at most
template <int Bits, int Heads>
class resident_attention {
  static constexpr int warps = bitladder::cuda::resident_policy<Bits>::warps;
  static constexpr int threads = 32 * warps;
  static constexpr int slot_vectors = Bits;         ///< 16-byte loads of a lane
  static constexpr int vectors = 2 * slot_vectors;  ///< of keys in a slice, and of values
  static constexpr float lowest = -1e30f;

 public:
  const resident_attention_params& a;
  int position, slot, parts, kv_head, part;
  const int lane = static_cast<int>(threadIdx.x) % 32;

  __device__ explicit resident_attention(const resident_attention_params& args) : a(args) {
    position = load_shared_by_all(a.positions);
    slot = load_shared_by_all(a.slots);
    parts = 1;
    const int blocks = static_cast<int>(gridDim.x);
    while (parts < resident_parts && 2 * parts * a.cache.kv_heads <= blocks &&
           parts * resident_part_positions < position)
      parts *= 2;
    kv_head = static_cast<int>(blockIdx.x) % a.cache.kv_heads;
    part = static_cast<int>(blockIdx.x) / a.cache.kv_heads;
  }

  /// Whether there is a token; else nothing is to be done.
  __device__ bool valid() const {
    return position >= 0 && position < a.cache.capacity && slot >= 0 && slot < a.cache.slots;
  }
  __device__ bool takes_part() const { return part < parts; }

  // --- copies ----------------------------------------------------------------------------------
  // A slice is `vectors` times 512 bytes of keys, in slots 0 and 1, and of values, in 2 and 3.

  __device__ int groups() const { return 32 >> a.log_lanes; }
  __device__ int group() const { return lane >> a.log_lanes; }
  __device__ int slice_positions() const { return vectors * groups(); }
  __device__ int window_begin(int window) const {
    return window > 0 ? max(0, position + 1 - window) : 0;
  }

  /// Slices of a warp, counted from position 0.
  __device__ int slices(const bitladder::cuda::resident_step& s, int warp, int& first) const {
    if (!takes_part()) return 0;
    const int n = slice_positions(), from = window_begin(s.more) / n;
    const int count = (position + n - 1) / n - from;
    if (count <= 0) return 0;
    const int begin = count * part / parts, mine = count * (part + 1) / parts - begin;
    first = from + begin + mine * warp / warps;
    return mine * (warp + 1) / warps - mine * warp / warps;
  }

  template <class Source>
  __device__ void aim(const bitladder::cuda::resident_step& s, int slice, Source& to) const {
    const int start = slice * slice_positions();
    to.from = reinterpret_cast<const std::uint32_t*>(
                  a.cache.keys(s.own, slot, kv_head) +
                  static_cast<std::size_t>(start) * static_cast<std::size_t>(a.cache.head_dim)) +
              lane * 4;
    to.count = position - start;
  }

  template <class Source>
  __device__ __forceinline__ void request(const Source& from, int i, std::uint32_t to) const {
    const std::uint32_t* const words =
        from.from + (i < 2 ? 0 : a.cache.half_layer() / 2) + i % 2 * slot_vectors * 128;
#pragma unroll
    for (int j = 0; j < slot_vectors; ++j)
      if ((i % 2 * slot_vectors + j) * groups() + group() < from.count)
        bitladder::cuda::resident_copy(to + j * 512, words + j * 128);
  }

  // --- the step ------------------------------------------------------------------------------

  /// By the threads of a block that takes part.
  /// @param mark called with 1 when queries are there, 2 when this warp has seen its positions, 3
  ///        when all have
  template <class Products, class Mark>
  __device__ void attend(Products& products, int step, Mark&& mark) {
    using bitladder::cuda::untag_pair;
    using bitladder::cuda::wait_for_pair;
    const bitladder::cuda::resident_step& s = products.step(step);
    const std::uint32_t tag = products.tag(s.own + 1);
    const int d = a.cache.head_dim, group_heads = a.heads / a.cache.kv_heads;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
    float* const query = reinterpret_cast<float*>(products.own_memory());
    __half* const key = reinterpret_cast<__half*>(query + group_heads * d);
    __half* const value = key + d;
    float* const joined = reinterpret_cast<float*>(value + d);
    const bool last_part = part == parts - 1;
    const float* cosines = a.rope.cosines + static_cast<std::size_t>(position) *
                                                static_cast<std::size_t>(a.rope.pairs);
    const float* sines =
        a.rope.sines + static_cast<std::size_t>(position) * static_cast<std::size_t>(a.rope.pairs);
    // Two columns that turn and the two that they turn with, or two that do not.
    const int turning = a.rope.pairs / 2, jobs = d / 2 - turning;
    const auto turned = [&](const bitladder::cuda::tagged_pair* x, int job, float2& low,
                            float2& high) {
      if (job < turning) {
        const float2 cosine = __ldg(reinterpret_cast<const float2*>(cosines) + job);
        const float2 sine = __ldg(reinterpret_cast<const float2*>(sines) + job);
        float2 u, w;
        untag_pair(wait_for_pair(x + job, tag), u.x, u.y);
        untag_pair(wait_for_pair(x + job + turning, tag), w.x, w.y);
        low = {fmaf(u.x, cosine.x, -(w.x * sine.x)), fmaf(u.y, cosine.y, -(w.y * sine.y))};
        high = {fmaf(w.x, cosine.x, u.x * sine.x), fmaf(w.y, cosine.y, u.y * sine.y)};
      } else {
        untag_pair(wait_for_pair(x + job + turning, tag), high.x, high.y);
      }
    };
    const float scale = a.scale * 1.44269504f;  // the powers are of two
    // Threads that have no query have the new key and value.
    const int query_jobs = group_heads * jobs,
              all_jobs = query_jobs + (last_part ? jobs + d / 2 : 0);
#pragma unroll 1
    for (int i = thread; i < all_jobs; i += threads) {
      float2 low{}, high{};
      if (i < query_jobs) {
        const int h = i / jobs, job = i % jobs;
        turned(a.q + (kv_head * group_heads + h) * d / 2, job, low, high);
        float2* const to = reinterpret_cast<float2*>(query + h * d);
        if (job < turning) to[job] = {low.x * scale, low.y * scale};
        to[job + turning] = {high.x * scale, high.y * scale};
        continue;
      }
      const std::size_t at =
          static_cast<std::size_t>(position) * static_cast<std::size_t>(a.cache.row());
      if (i < query_jobs + jobs) {
        const int job = i - query_jobs;
        turned(a.k + kv_head * d / 2, job, low, high);
        __half2* const stored = reinterpret_cast<__half2*>(a.cache.keys(s.own, slot, kv_head) + at);
        __half2* const here = reinterpret_cast<__half2*>(key);
        if (job < turning) stored[job] = here[job] = __float22half2_rn(low);
        stored[job + turning] = here[job + turning] = __float22half2_rn(high);
      } else {
        const int job = i - query_jobs - jobs;
        untag_pair(wait_for_pair(a.v + kv_head * d / 2 + job, tag), low.x, low.y);
        reinterpret_cast<__half2*>(a.cache.values(s.own, slot, kv_head) + at)[job] =
            reinterpret_cast<__half2*>(value)[job] = __float22half2_rn(low);
      }
    }
    __syncthreads();
    mark(1);

    const int lanes = 1 << a.log_lanes, column = lane % lanes * 8;
    softmax r[Heads];
#pragma unroll
    for (int h = 0; h < Heads; ++h) r[h] = softmax();
    const int window_from = window_begin(s.more), n = slice_positions();
    int slice = 0;
    const int count = products.own_slices(step, slice);
#pragma unroll 1
    for (int i = 0; i < count; ++i, ++slice) {
      products.next_slice();
      products.wait_all();
      uint4 k[vectors], v[vectors];
      bool seen[vectors];
#pragma unroll
      for (int j = 0; j < vectors; ++j) {
        const int at = slice * n + j * groups() + group();
        seen[j] = at >= window_from && at < position;
        const std::uint32_t from = products.slot(j / slot_vectors) + j % slot_vectors * 512;
        const std::uint32_t value_from =
            products.slot(2 + j / slot_vectors) + j % slot_vectors * 512;
        k[j] = bitladder::cuda::resident_load(from);
        v[j] = bitladder::cuda::resident_load(value_from);
        // What was in the slot before may be no number.
        const std::uint32_t keep = seen[j] ? ~0u : 0u;
        k[j].x &= keep, k[j].y &= keep, k[j].z &= keep, k[j].w &= keep;
        v[j].x &= keep, v[j].y &= keep, v[j].z &= keep, v[j].w &= keep;
      }
      products.refill_all();
      see<vectors>(query, d, column, lanes, group_heads, k, v, seen, r);
    }
    if (last_part && warp == warps - 1) {
      const uint4 k[1] = {*reinterpret_cast<const uint4*>(key + column)};
      const uint4 v[1] = {*reinterpret_cast<const uint4*>(value + column)};
      const bool seen[1] = {group() == 0};
      see<1>(query, d, column, lanes, group_heads, k, v, seen, r);
    }

    mark(2);
    // Groups of a warp, warps of the block, blocks of the head.
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
      if (h >= group_heads) continue;
      for (int by = lanes; by < 32; by *= 2) r[h].join_lanes(by);
      float* const to_part = joined + (warp * group_heads + h) * (d + 2);
      if (lane < lanes)
#pragma unroll
        for (int c = 0; c < 8; ++c) to_part[column + c] = r[h].sum[c];
      if (lane == 0) to_part[d] = r[h].max, to_part[d + 1] = r[h].total;
    }
    __syncthreads();
    mark(3);
    float* const mine =
        a.scratch + static_cast<std::size_t>(part * a.heads + kv_head * group_heads) *
                        static_cast<std::size_t>(d + 2);
    for (int i = thread; i < group_heads * d; i += threads) {
      const int h = i / d, c = i % d;
      const joined_column one = join_warps(joined + h * (d + 2), group_heads * (d + 2), d, c);
      if (parts == 1) {
        hand_over(i, one, tag);
      } else {
        mine[h * (d + 2) + c] = one.sum;
        if (c == 0) mine[h * (d + 2) + d] = one.max, mine[h * (d + 2) + d + 1] = one.total;
      }
    }
    if (parts > 1) meet(group_heads, d, joined, tag);
    __syncthreads();  // the next step has other uses for the memory
  }

 private:
  struct softmax {
    float max = lowest, total = 0.f, sum[8] = {};

    __device__ __forceinline__ void join_lanes(int by) {
      const float other = __shfl_xor_sync(~0u, max, by), both = fmaxf(max, other);
      const float ours = exp2f(max - both), theirs = exp2f(other - both);
      max = both;
      // Products first, so that both sides add the same two numbers.
      total = __fadd_rn(__fmul_rn(total, ours), __fmul_rn(__shfl_xor_sync(~0u, total, by), theirs));
#pragma unroll
      for (int c = 0; c < 8; ++c)
        sum[c] =
            __fadd_rn(__fmul_rn(sum[c], ours), __fmul_rn(__shfl_xor_sync(~0u, sum[c], by), theirs));
    }
  };
  struct joined_column {
    float max, total, sum;
  };

  /// One column of the softmaxes of all warps, each [d sums][max][total], in order.
  __device__ static joined_column join_warps(const float* from, int stride, int d, int c) {
    float max[warps];
    joined_column r = {lowest, 0.f, 0.f};
#pragma unroll
    for (int i = 0; i < warps; ++i) max[i] = from[i * stride + d];
#pragma unroll
    for (int i = 0; i < warps; ++i) r.max = fmaxf(r.max, max[i]);
#pragma unroll
    for (int i = 0; i < warps; ++i) {
      const float by = exp2f(max[i] - r.max);
      r.total = fmaf(from[i * stride + d + 1], by, r.total);
      r.sum = fmaf(from[i * stride + c], by, r.sum);
    }
    return r;
  }

  /// The same of the parts of a head, in device memory.
  __device__ static joined_column join_parts(const float* from, int count, int stride, int d,
                                             int c) {
    joined_column r = {lowest, 0.f, 0.f};
#pragma unroll 4
    for (int i = 0; i < count; ++i) r.max = fmaxf(r.max, __ldcg(from + i * stride + d));
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const float by = exp2f(__ldcg(from + i * stride + d) - r.max);
      r.total = fmaf(__ldcg(from + i * stride + d + 1), by, r.total);
      r.sum = fmaf(__ldcg(from + i * stride + c), by, r.sum);
    }
    return r;
  }

  template <int Count>
  __device__ __forceinline__ static void see(const float* query, int d, int column, int lanes,
                                             int group_heads, const uint4 (&k)[Count],
                                             const uint4 (&v)[Count], const bool (&seen)[Count],
                                             softmax (&r)[Heads]) {
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
      if (h >= group_heads) continue;
      const float4 low = *reinterpret_cast<const float4*>(query + h * d + column);
      const float4 high = *reinterpret_cast<const float4*>(query + h * d + column + 4);
      float score[Count], max = r[h].max;
#pragma unroll
      for (int j = 0; j < Count; ++j) {
        float x[8];
        widen(k[j], x);
        score[j] = fmaf(x[7], high.w, fmaf(x[6], high.z, fmaf(x[5], high.y, x[4] * high.x))) +
                   fmaf(x[3], low.w, fmaf(x[2], low.z, fmaf(x[1], low.y, x[0] * low.x)));
      }
      for (int by = lanes / 2; by > 0; by /= 2)
#pragma unroll
        for (int j = 0; j < Count; ++j) score[j] += __shfl_xor_sync(~0u, score[j], by);
#pragma unroll
      for (int j = 0; j < Count; ++j) {
        if (!seen[j]) score[j] = -INFINITY;
        max = fmaxf(max, score[j]);
      }
      const float shrink = exp2f(r[h].max - max);
      r[h].max = max;
      r[h].total *= shrink;
#pragma unroll
      for (int c = 0; c < 8; ++c) r[h].sum[c] *= shrink;
#pragma unroll
      for (int j = 0; j < Count; ++j) {
        const float p = exp2f(score[j] - max);
        r[h].total += p;
        float x[8];
        widen(v[j], x);
#pragma unroll
        for (int c = 0; c < 8; ++c) r[h].sum[c] = fmaf(p, x[c], r[h].sum[c]);
      }
    }
  }

  /// Column i of this kv head's queries; by all lanes of a warp, or its first ones.
  __device__ void hand_over(int i, const joined_column& of, std::uint32_t tag) const {
    const float v = __fdividef(of.sum, of.total);
    const float next = __shfl_down_sync(__activemask(), v, 1);
    const int at = kv_head * (a.heads / a.cache.kv_heads) * a.cache.head_dim + i;
    if (i % 2 == 0)
      bitladder::cuda::store_pair(a.out + at / 2, bitladder::cuda::tag_pair(v, next, tag));
  }

  /// The last block of the head to come joins what all of them brought.
  __device__ void meet(int group_heads, int d, float* flag, std::uint32_t tag) const {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      const unsigned before = atomicAdd(a.meetings + kv_head, 1u);
      *flag = before + 1 == static_cast<unsigned>(parts) ? 1.f : 0.f;
    }
    __syncthreads();
    if (*flag == 0.f) return;
    __threadfence();
    if (threadIdx.x == 0) a.meetings[kv_head] = 0;
    for (int i = static_cast<int>(threadIdx.x); i < group_heads * d; i += threads) {
      const int h = i / d, c = i % d;
      const joined_column all =
          join_parts(a.scratch + static_cast<std::size_t>(kv_head * group_heads + h) *
                                     static_cast<std::size_t>(d + 2),
                     parts, a.heads * (d + 2), d, c);
      hand_over(i, all, tag);
    }
  }
};

#endif

}  // namespace detail
}  // namespace card
}  // namespace llama
