// SPDX-License-Identifier: MIT
// Matrices of bits: products on the binary tensor cores, transposes, and what goes into them.
// Device code only. Tested by tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/ptx.cuh>

#include <cuda_fp16.h>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// c += popcount(a and b), a [16, 256] bits, b [256, 8] bits.
__device__ __forceinline__ void mma_and_popc(int (&c)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The same with c = 0 before.
__device__ __forceinline__ void mma_and_popc_first(int (&c)[4], const std::uint32_t (&a)[4],
                                                   std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
      : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
}

/// Waits for the other warps that come to barrier `id`, 1..15, `threads` in all.
__device__ __forceinline__ void wait_for_warps(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Transposes two 16 x 16 bit matrices, one in the lower and one in the upper halves of the words:
/// bit j of word i becomes bit i of word j.
__device__ __forceinline__ void transpose_bits(std::uint32_t (&w)[16]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const std::uint32_t a = w[i], b = w[i + 8];
    w[i] = permute<0x6240>(a, b), w[i + 8] = permute<0x7351>(a, b);
  }
#pragma unroll
  for (int i = 0; i < 16; ++i)
    if (i % 8 < 4) {
      const std::uint32_t a = w[i], b = w[i + 4];
      w[i] = select<0x0F0F0F0Fu>(a, b << 4), w[i + 4] = select<0xF0F0F0F0u>(b, a >> 4);
    }
#pragma unroll
  for (int i = 0; i < 16; ++i)
    if (i % 4 < 2) {
      const std::uint32_t a = w[i], b = w[i + 2];
      w[i] = select<0x33333333u>(a, b << 2), w[i + 2] = select<0xCCCCCCCCu>(b, a >> 2);
    }
#pragma unroll
  for (int i = 0; i < 16; ++i)
    if (i % 2 < 1) {
      const std::uint32_t a = w[i], b = w[i + 1];
      w[i] = select<0x55555555u>(a, b << 1), w[i + 1] = select<0xAAAAAAAAu>(b, a >> 1);
    }
}

/// Two activations of a word.
__device__ __forceinline__ void as_floats(std::uint32_t x, bool is_bf16, float& a, float& b) {
  if (is_bf16) {
    a = __uint_as_float(x << 16), b = __uint_as_float(x & 0xffff0000u);
  } else {
    const float2 f = __half22float2(*reinterpret_cast<const __half2*>(&x));
    a = f.x, b = f.y;
  }
}

/// 2^exponent, or NaN.
__device__ __forceinline__ double power_of_two(bool finite, int exponent) {
  return __hiloint2double(finite ? (1023 + exponent) << 20 : 0x7ff80000, 0);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
