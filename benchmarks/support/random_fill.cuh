// SPDX-License-Identifier: MIT
// Device memory filled with random values by the card itself: words, normal numbers, and tables of
// ascending normal numbers in the packed layout. Never zeros: they can run faster than real data.
#pragma once

#include <bitladder/core/dtype.hpp>

#include "cuda_check.cuh"

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace bench {
namespace detail {

/// A hash of the position (the finalizer of MurmurHash3 in 64 bits).
__device__ __forceinline__ std::uint64_t hash(std::uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return x ^ x >> 33;
}

/// Inside (0, 1).
__device__ __forceinline__ float uniform(std::uint64_t x) {
  return (static_cast<float>(hash(x) >> 41) + 0.5f) * 0x1p-23f;
}

static __global__ void fill_words_kernel(uint2* out, std::size_t count, std::uint64_t seed) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const std::uint64_t h = hash(i + seed);
    out[i] = make_uint2(static_cast<std::uint32_t>(h), static_cast<std::uint32_t>(h >> 32));
  }
}

static __global__ void fill_normal_kernel(__half* out, std::size_t count, float scale,
                                          std::uint64_t seed) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step)
    out[i] = __float2half_rn(scale * normcdfinvf(uniform(i + seed)));
}

/// Entry [..][field][16 rows]: code c of 2^bits lies between the quantiles c and c + 1 of 2^bits.
static __global__ void fill_tables_kernel(__half* out, std::size_t count, int bits, float scale,
                                          std::uint64_t seed) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const auto field = static_cast<std::uint32_t>(i / 16) & ((1u << bits) - 1u);
    const std::uint32_t code = __brev(field) >> (32 - bits);
    const float quantile =
        (static_cast<float>(code) + uniform(i + seed)) / static_cast<float>(1 << bits);
    out[i] = __float2half_rn(scale * normcdfinvf(fminf(fmaxf(quantile, 1e-6f), 1.0f - 1e-6f)));
  }
}

constexpr int fill_blocks = 1024, fill_threads = 256;

}  // namespace detail

/// @param count words; the last odd one stays as it is
inline void fill_words(std::uint32_t* out, std::size_t count, std::uint64_t seed,
                       cudaStream_t stream) {
  detail::fill_words_kernel<<<detail::fill_blocks, detail::fill_threads, 0, stream>>>(
      reinterpret_cast<uint2*>(out), count / 2, seed << 40);
  check(cudaGetLastError(), "fill_words");
}

inline void fill_normal(bitladder::fp16_t* out, std::size_t count, float scale, std::uint64_t seed,
                        cudaStream_t stream) {
  detail::fill_normal_kernel<<<detail::fill_blocks, detail::fill_threads, 0, stream>>>(
      reinterpret_cast<__half*>(out), count, scale, seed << 40);
  check(cudaGetLastError(), "fill_normal");
}

/// @param count entries of whole tables of `bits` bits in the order of packed_table_layout
inline void fill_tables(bitladder::fp16_t* out, std::size_t count, int bits, float scale,
                        std::uint64_t seed, cudaStream_t stream) {
  detail::fill_tables_kernel<<<detail::fill_blocks, detail::fill_threads, 0, stream>>>(
      reinterpret_cast<__half*>(out), count, bits, scale, seed << 40);
  check(cudaGetLastError(), "fill_tables");
}

}  // namespace bench
