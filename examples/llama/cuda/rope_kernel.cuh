// SPDX-License-Identifier: MIT
// Queries and keys of a prompt's tokens turned by their positions, keys and values stored. Tested
// by tests/llama/cuda/operations_test.cu.
#pragma once

#include <llama/cuda/card_launch.cuh>
#include <llama/cuda/operations.cuh>

#include <cuda_fp16.h>

#include <cstddef>

namespace llama {
namespace card {
namespace detail {

constexpr int rope_threads = 256;

/// (low, high) of a pair turned by an angle, rounded to fp16 as the cache keeps it.
__device__ __forceinline__ void turn(__half& low, __half& high, float cosine, float sine) {
  const float a = __half2float(low), b = __half2float(high);
  low = __float2half_rn(fmaf(a, cosine, -(b * sine)));
  high = __float2half_rn(fmaf(b, cosine, a * sine));
}

/// One head from `x` to `to` by the threads of a block. They may be the same.
__device__ inline void turn_head(const __half* x, __half* to, int head_dim, int pairs,
                                 const float* cosines, const float* sines, int unit) {
  if (unit < pairs) {
    __half low = x[unit], high = x[unit + pairs];
    turn(low, high, cosines[unit], sines[unit]);
    to[unit] = low;
    to[unit + pairs] = high;
  } else if (unit + pairs < head_dim) {
    to[unit + pairs] = x[unit + pairs];
  }
}

/// A block per token.
template <class = void>
BL_KERNEL rope_store_kernel(const __half* q, const __half* k, const __half* v, int q_stride,
                            int kv_stride, int heads, rope_view rope, cache_view cache, int layer,
                            int slot, int start, __half* q_out) {
  launch_dependents();
  wait_for_dependency();
  const int token = static_cast<int>(blockIdx.x), position = start + token, d = cache.head_dim;
  const std::size_t row = static_cast<std::size_t>(token);
  const std::size_t at = static_cast<std::size_t>(position);
  const float* cosines = rope.cosines + at * static_cast<std::size_t>(rope.pairs);
  const float* sines = rope.sines + at * static_cast<std::size_t>(rope.pairs);
  q += row * static_cast<std::size_t>(q_stride);
  k += row * static_cast<std::size_t>(kv_stride);
  v += row * static_cast<std::size_t>(kv_stride);
  q_out += row * static_cast<std::size_t>(heads) * static_cast<std::size_t>(d);
  const int units = d - rope.pairs, first = static_cast<int>(threadIdx.x);
  for (int i = first; i < heads * units; i += rope_threads) {
    const int head = i / units;
    turn_head(q + head * d, q_out + head * d, d, rope.pairs, cosines, sines, i % units);
  }
  const std::size_t offset = at * static_cast<std::size_t>(cache.row());
  for (int i = first; i < cache.kv_heads * units; i += rope_threads) {
    const int head = i / units;
    turn_head(k + head * d, cache.keys(layer, slot, head) + offset, d, rope.pairs, cosines, sines,
              i % units);
  }
  for (int i = first; i < cache.kv_heads * d; i += rope_threads)
    cache.values(layer, slot, i / d)[offset + i % d] = v[i];
}

}  // namespace detail
}  // namespace card
}  // namespace llama
