// SPDX-License-Identifier: MIT
// The AVX-512 instructions that the kernels use, as plain loops written from their description in
// the instruction set reference, so that the kernels' logic is tested on machines without them.
// To be included before any header of the library, and after nothing that includes one: it renames
// the intrinsics, the types and the library's version namespace, so that a program can hold the
// real kernels as well.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define v0_1 v0_1_emulated
#define BL_AVX512 __attribute__((target("avx2,fma,f16c")))
#define BL_AVX512_INLINE BL_AVX512 inline
#define BL_AVX512_VBMI BL_AVX512

#include <bitladder/core/dtype.hpp>

namespace emulated {

/// A register of 64 bytes, seen as elements of any type.
struct bits512 {
  alignas(64) unsigned char bytes[64];

  template <class T>
  T get(int i) const {
    T v;
    std::memcpy(&v, bytes + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
    return v;
  }
  template <class T>
  void set(int i, T v) {
    std::memcpy(bytes + static_cast<std::size_t>(i) * sizeof(T), &v, sizeof(T));
  }
};
struct ints : bits512 {};
struct floats : bits512 {};
struct doubles : bits512 {};

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

/// Element i of the result is f(i).
template <class Register, class T, class F>
Register each(F f) {
  Register r;
  for (int i = 0; i < static_cast<int>(64 / sizeof(T)); ++i) r.template set<T>(i, f(i));
  return r;
}
template <class To>
To cast(const bits512& a) {
  To r;
  std::memcpy(r.bytes, a.bytes, 64);
  return r;
}
template <class Half>
BL_AVX512 Half half(const bits512& a, int which) {
  Half h;
  std::memcpy(&h, a.bytes + 32 * which, 32);
  return h;
}

inline ints load(const void* p) {
  ints r;
  std::memcpy(r.bytes, p, 64);
  return r;
}
inline void store(void* p, const bits512& a) { std::memcpy(p, a.bytes, 64); }
template <class Register>
Register masked_load(u16 k, const void* p) {
  Register r{};
  for (int i = 0; i < 16; ++i)
    if (k >> i & 1) std::memcpy(r.bytes + 4 * i, static_cast<const char*>(p) + 4 * i, 4);
  return r;
}
template <class T, class... Values>
ints list(Values... values) {
  const T v[] = {static_cast<T>(values)...};
  static_assert(sizeof v == 64, "one value per element");
  return load(v);
}
template <class T>
ints fill(T v) {
  return each<ints, T>([&](int) { return v; });
}

/// The low or high halves of every 16 bytes of a and b, alternating.
template <class T>
ints unpack(const ints& a, const ints& b, bool high) {
  constexpr int in_lane = 16 / sizeof(T);
  return each<ints, T>([&](int i) {
    const int from = i / in_lane * in_lane + i % in_lane / 2 + (high ? in_lane / 2 : 0);
    return (i % 2 ? b : a).template get<T>(from);
  });
}
/// Elements of `a` by the low bits of the indices.
template <class T, class Register>
Register permute(const ints& index, const Register& a) {
  constexpr int count = 64 / sizeof(T);
  return each<Register, T>(
      [&](int i) { return a.template get<T>(static_cast<int>(index.get<T>(i) % count)); });
}
/// The same of `a` followed by `b`.
template <class T, class Register>
Register permute(const Register& a, const ints& index, const Register& b) {
  constexpr int count = 64 / sizeof(T);
  return each<Register, T>([&](int i) {
    const int from = static_cast<int>(index.get<T>(i) % (2 * count));
    return (from < count ? a : b).template get<T>(from % count);
  });
}
template <class T>
ints blend(u64 k, const ints& a, const ints& b) {
  return each<ints, T>([&](int i) { return (k >> i & 1 ? b : a).template get<T>(i); });
}
/// Bit i: whether f(i).
template <class F>
u64 mask(int count, F f) {
  u64 k = 0;
  for (int i = 0; i < count; ++i) k |= static_cast<u64>(f(i)) << i;
  return k;
}

template <int Table>
ints ternary(const ints& a, const ints& b, const ints& c) {
  return each<ints, u8>([&](int i) {
    u8 r = 0;
    for (int bit = 0; bit < 8; ++bit) {
      const int index =
          (a.get<u8>(i) >> bit & 1) * 4 + (b.get<u8>(i) >> bit & 1) * 2 + (c.get<u8>(i) >> bit & 1);
      r = static_cast<u8>(r | (Table >> index & 1) << bit);
    }
    return r;
  });
}
/// Bit b of result byte i of every eight: parity of matrix byte 7 - b and byte i of x.
inline ints affine(const ints& x, const ints& matrix) {
  return each<ints, u8>([&](int i) {
    u8 r = 0;
    for (int b = 0; b < 8; ++b) {
      int both = matrix.get<u8>(i / 8 * 8 + 7 - b) & x.get<u8>(i), parity = 0;
      for (; both != 0; both >>= 1) parity ^= both & 1;
      r = static_cast<u8>(r | parity << b);
    }
    return r;
  });
}
BL_AVX512 inline floats widen(const __m256i& halves) {
  u16 h[16];
  std::memcpy(h, &halves, sizeof h);
  return each<floats, float>([&](int i) { return to_float(bitladder::fp16_t{h[i]}); });
}
inline floats multiply_add(const floats& a, const floats& b, const floats& c, u64 k) {
  return each<floats, float>([&](int i) {
    return k >> i & 1 ? std::fma(a.get<float>(i), b.get<float>(i), c.get<float>(i))
                      : c.get<float>(i);
  });
}

BL_AVX512 inline ints bytes_to_shorts(const __m256i& a) {
  u8 from[32];
  std::memcpy(from, &a, sizeof from);
  return each<ints, u16>([&](int i) { return static_cast<u16>(from[i]); });
}
BL_AVX512 inline __m256i shorts_to_bytes(const ints& a) {
  u8 to[32];
  for (int i = 0; i < 32; ++i) to[i] = static_cast<u8>(a.get<u16>(i));
  __m256i r;
  std::memcpy(&r, to, sizeof to);
  return r;
}

template <class T>
ints shift_right(const ints& a, int n) {
  return each<ints, T>([&](int i) { return static_cast<T>(a.get<T>(i) >> n); });
}
template <class T>
ints shift_left(const ints& a, int n) {
  return each<ints, T>([&](int i) { return static_cast<T>(a.get<T>(i) << n); });
}
inline ints shift_right_each(const ints& a, const ints& n) {
  return each<ints, u32>(
      [&](int i) { return n.get<u32>(i) < 32 ? a.get<u32>(i) >> n.get<u32>(i) : 0; });
}
inline ints add_bytes(const ints& a, const ints& b) {
  return each<ints, u8>([&](int i) { return static_cast<u8>(a.get<u8>(i) + b.get<u8>(i)); });
}
inline u64 top_bits(const ints& a) {
  return mask(64, [&](int i) { return a.get<u8>(i) >= 128; });
}
inline u64 any_bits(const ints& a, const ints& b) {
  return mask(32, [&](int i) { return (a.get<u16>(i) & b.get<u16>(i)) != 0; });
}
inline floats add(const floats& a, const floats& b) {
  return each<floats, float>([&](int i) { return a.get<float>(i) + b.get<float>(i); });
}

}  // namespace emulated

// Macros already, with some compilers.
#undef _mm512_setr_epi32
#undef _mm512_setr_epi64
#undef _mm512_extracti64x4_epi64
#undef _mm512_extractf32x8_ps
#undef _mm512_ternarylogic_epi32
#undef _mm512_gf2p8affine_epi64_epi8
#undef _mm512_srli_epi16
#undef _mm512_srli_epi32
#undef _mm512_slli_epi32
#undef _mm512_mask_blend_epi8
#undef _mm512_mask_blend_epi16

#define __m512i emulated::ints
#define __m512 emulated::floats
#define __m512d emulated::doubles
#define _mm512_setzero_si512() \
  emulated::ints {}
#define _mm512_setzero_ps() \
  emulated::floats {}
#define _mm512_set1_epi8(v) emulated::fill(static_cast<emulated::u8>(v))
#define _mm512_set1_epi16(v) emulated::fill(static_cast<emulated::u16>(v))
#define _mm512_set1_epi32(v) emulated::fill(static_cast<emulated::u32>(v))
#define _mm512_set1_epi64(v) emulated::fill(static_cast<emulated::u64>(v))
#define _mm512_setr_epi32(...) emulated::list<emulated::u32>(__VA_ARGS__)
#define _mm512_setr_epi64(...) emulated::list<emulated::u64>(__VA_ARGS__)
#define _mm512_load_si512(p) emulated::load(p)
#define _mm512_loadu_si512(p) emulated::load(p)
#define _mm512_load_ps(p) emulated::cast<emulated::floats>(emulated::load(p))
#define _mm512_store_si512(p, a) emulated::store(p, a)
#define _mm512_store_ps(p, a) emulated::store(p, a)
#define _mm512_maskz_loadu_epi32(k, p) emulated::masked_load<emulated::ints>(k, p)
#define _mm512_maskz_loadu_ps(k, p) emulated::masked_load<emulated::floats>(k, p)
#define _mm512_castps_pd(a) emulated::cast<emulated::doubles>(a)
#define _mm512_castpd_ps(a) emulated::cast<emulated::floats>(a)
#define _mm512_castsi512_si256(a) emulated::half<__m256i>(a, 0)
#define _mm512_extracti64x4_epi64(a, which) emulated::half<__m256i>(a, which)
#define _mm512_castps512_ps256(a) emulated::half<__m256>(a, 0)
#define _mm512_extractf32x8_ps(a, which) emulated::half<__m256>(a, which)
#define _mm512_ternarylogic_epi32(a, b, c, table) emulated::ternary<table>(a, b, c)
#define _mm512_xor_si512(a, b) emulated::ternary<0x3c>(a, b, a)
#define _mm512_unpacklo_epi8(a, b) emulated::unpack<emulated::u8>(a, b, false)
#define _mm512_unpackhi_epi8(a, b) emulated::unpack<emulated::u8>(a, b, true)
#define _mm512_unpacklo_epi16(a, b) emulated::unpack<emulated::u16>(a, b, false)
#define _mm512_unpackhi_epi16(a, b) emulated::unpack<emulated::u16>(a, b, true)
#define _mm512_unpacklo_epi32(a, b) emulated::unpack<emulated::u32>(a, b, false)
#define _mm512_unpackhi_epi32(a, b) emulated::unpack<emulated::u32>(a, b, true)
#define _mm512_permutexvar_epi8(index, a) emulated::permute<emulated::u8>(index, a)
#define _mm512_permutexvar_epi16(index, a) emulated::permute<emulated::u16>(index, a)
#define _mm512_permutexvar_ps(index, a) emulated::permute<emulated::u32>(index, a)
#define _mm512_permutex2var_epi8(a, index, b) emulated::permute<emulated::u8>(a, index, b)
#define _mm512_permutex2var_epi16(a, index, b) emulated::permute<emulated::u16>(a, index, b)
#define _mm512_permutex2var_epi32(a, index, b) emulated::permute<emulated::u32>(a, index, b)
#define _mm512_permutex2var_pd(a, index, b) emulated::permute<emulated::u64>(a, index, b)
#define _mm512_mask_blend_epi8(k, a, b) emulated::blend<emulated::u8>(k, a, b)
#define _mm512_mask_blend_epi16(k, a, b) emulated::blend<emulated::u16>(k, a, b)
#define _mm512_cvtepu8_epi16(a) emulated::bytes_to_shorts(a)
#define _mm512_cvtepi16_epi8(a) emulated::shorts_to_bytes(a)
#define _mm512_cvtph_ps(a) emulated::widen(a)
#define _mm512_gf2p8affine_epi64_epi8(x, matrix, plus) emulated::affine(x, matrix)
#define _mm512_fmadd_ps(a, b, c) emulated::multiply_add(a, b, c, 0xffff)
#define _mm512_mask3_fmadd_ps(a, b, c, k) emulated::multiply_add(a, b, c, k)

#define _mm512_srli_epi16(a, n) emulated::shift_right<emulated::u16>(a, n)
#define _mm512_srli_epi32(a, n) emulated::shift_right<emulated::u32>(a, n)
#define _mm512_slli_epi32(a, n) emulated::shift_left<emulated::u32>(a, n)
#define _mm512_srlv_epi32(a, n) emulated::shift_right_each(a, n)
#define _mm512_maskz_set1_epi8(k, v) \
  emulated::blend<emulated::u8>(k, emulated::ints{}, _mm512_set1_epi8(v))
#define _mm512_mask_add_epi8(from, k, a, b) \
  emulated::blend<emulated::u8>(k, from, emulated::add_bytes(a, b))
#define _mm512_movepi8_mask(a) emulated::top_bits(a)
#define _mm512_test_epi16_mask(a, b) emulated::any_bits(a, b)
#define _mm512_add_ps(a, b) emulated::add(a, b)
