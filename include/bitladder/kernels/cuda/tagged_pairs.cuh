// SPDX-License-Identifier: MIT
// How blocks of one launch hand numbers to each other without a barrier: two of them and a tag are
// one 8-byte word, which is written and read whole, so who reads the tag that it waits for has the
// numbers too. No fence, no flag, one trip to the second-level cache each way (the "LL" protocol of
// NCCL has the idea). Numbers lose 8 bits of a float's 24-bit significand: an error of at most
// 2^-16 of each. Tested by tests/llama/cuda/resident_layers_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/ptx.cuh>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// Two numbers and a tag.
using tagged_pair = unsigned long long;

namespace detail {

/// A float's upper 24 bits, rounded, in the upper bits of the word.
__device__ __forceinline__ std::uint32_t round_to_24(float v) {
  const std::uint32_t bits = __float_as_uint(v);
  // Not of infinities and NaN, which would become something else.
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : bits + 0x80u;
}

}  // namespace detail

/// @param tag 16 bits
__device__ __forceinline__ tagged_pair tag_pair(float first, float second, std::uint32_t tag) {
  const std::uint32_t a = detail::round_to_24(first), b = detail::round_to_24(second);
  const std::uint32_t low = detail::permute<0x5321>(a, b), high = detail::permute<0x5432>(b, tag);
  return static_cast<tagged_pair>(high) << 32 | low;
}

__device__ __forceinline__ void untag_pair(tagged_pair p, float& first, float& second) {
  const std::uint32_t low = static_cast<std::uint32_t>(p);
  const std::uint32_t high = static_cast<std::uint32_t>(p >> 32);
  first = __uint_as_float(low << 8);
  second = __uint_as_float(__funnelshift_l(low, high, 16) & 0xffffff00u);
}

__device__ __forceinline__ bool has_tag(tagged_pair p, std::uint32_t tag) {
  return static_cast<std::uint32_t>(p >> 48) == tag;
}

__device__ __forceinline__ void store_pair(tagged_pair* to, tagged_pair p) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(p) : "memory");
}

__device__ __forceinline__ tagged_pair load_pair(const tagged_pair* from) {
  tagged_pair p;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(p) : "l"(from) : "memory");
  return p;
}

/// Two neighbours, the first 16-byte aligned.
__device__ __forceinline__ void load_pairs(const tagged_pair* from, tagged_pair (&p)[2]) {
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(p[0]), "=l"(p[1])
               : "l"(from)
               : "memory");
}

/// Waits for the tag.
__device__ __forceinline__ tagged_pair wait_for_pair(const tagged_pair* from, std::uint32_t tag) {
  tagged_pair p = load_pair(from);
  while (!has_tag(p, tag)) p = load_pair(from);
  return p;
}

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
