// SPDX-License-Identifier: MIT
// Bitplane words to weights with AVX-512, sixteen words of a row together. Up to 4 bits a table is
// one register of floats, and codes are nibbles that are looked up word by word; longer codes
// become bytes, and those fp16 values in memory: by byte permutations where the machine has them
// (VBMI, GFNI), else by permutations of 16-bit entries. Tested by
// tests/kernels/cpu/avx512_emulated_test.cpp, and on machines with AVX-512 by gemv_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cpu/isa.hpp>

#if BL_HAS_AVX2
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

// GCC takes the registers that its own intrinsics leave undefined on purpose for a mistake.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

/// Words of a row that are taken together: one register of every plane.
inline constexpr int avx512_words = 16;

/// Sixteen words of a plane, zeros from the `count`-th on.
BL_AVX512_INLINE __m512i load_words(const std::uint32_t* from, int count) {
  return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << count) - 1), from);
}

/// One step of a transposition: the bits of `a` at `mask` << `Shift` change places with those of
/// `b` at `mask`.
template <int Shift>
BL_AVX512_INLINE void swap_bits(__m512i& a, __m512i& b, __m512i mask) {
  // 0x28: (first ^ second) & third
  const __m512i t = _mm512_ternarylogic_epi32(_mm512_srli_epi32(a, Shift), b, mask, 0x28);
  b = _mm512_xor_si512(b, t);
  a = _mm512_xor_si512(a, _mm512_slli_epi32(t, Shift));
}

/// Codes of up to 4 bits. The 32 lanes are two registers in `paired` arrangement: element 2i + j of
/// the first is lane 4i + j, of the second lane 4i + 2 + j (j = 0, 1), which is how they fall out
/// of a pair of words of nibbles.
template <int Bits>
struct avx512_nibbles {
  static_assert(Bits >= 1 && Bits <= 4, "a register holds 16 floats");
  static constexpr int rows_at_once = 4;
  static constexpr bool paired = true;

  struct table {
    __m512 values;
  };
  /// The pairs of word w, columns 4i + 0, 1 and 4i + 2, 3 in nibble i, are at pair_at(w) and 16
  /// words after it.
  struct chunk {
    alignas(64) std::uint32_t words[4 * avx512_words];
  };

  BL_AVX512_INLINE static void load(table& t, const fp16_t* entries) {
    alignas(32) fp16_t sixteen[16] = {};
    std::memcpy(sixteen, entries, sizeof(fp16_t) << Bits);
    t.values = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(sixteen)));
  }

  BL_AVX512_INLINE static void load(chunk& c, const table&, const bitplane_view& w, int row,
                                    int word, int count) {
    const __m512i even = _mm512_set1_epi32(0x55555555), low = _mm512_set1_epi32(0x33333333);
    __m512i r[4];  // plane of weight 2^j, then nibble i of r[j] is column 4i + j
    BL_UNROLL(4)
    for (int j = 0; j < 4; ++j)
      r[j] = j < Bits ? load_words(w.row(Bits - 1 - j, row) + word, count) : _mm512_setzero_si512();
    swap_bits<1>(r[0], r[1], even);
    if constexpr (Bits > 2) swap_bits<1>(r[2], r[3], even);
    swap_bits<2>(r[0], r[2], low);
    swap_bits<2>(r[1], r[3], low);
    _mm512_store_si512(c.words, _mm512_unpacklo_epi32(r[0], r[1]));
    _mm512_store_si512(c.words + 16, _mm512_unpacklo_epi32(r[2], r[3]));
    _mm512_store_si512(c.words + 32, _mm512_unpackhi_epi32(r[0], r[1]));
    _mm512_store_si512(c.words + 48, _mm512_unpackhi_epi32(r[2], r[3]));
  }

  BL_AVX512_INLINE static void values(const chunk& c, int w, const table& t, __m512& v0,
                                      __m512& v1) {
    const std::uint32_t* at = c.words + pair_at(w);
    v0 = pick(at, t), v1 = pick(at + 16, t);
  }

 private:
  // Unpacking leaves words 0, 1 of every four in the first half, 2, 3 in the second.
  static constexpr int pair_at(int w) { return w / 4 * 4 + w % 2 * 2 + w / 2 % 2 * 32; }

  BL_AVX512_INLINE static __m512 pick(const std::uint32_t* pair, const table& t) {
    std::int64_t both;
    std::memcpy(&both, pair, sizeof both);
    const __m512i shift =
        _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    // The permutation looks at the lowest four bits of an index.
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi64(both), shift), t.values);
  }
};

/// Sixteen words as fp16 values, and how they become floats: lanes 0 .. 15 and 16 .. 31.
struct avx512_halves {
  alignas(64) std::uint16_t values[32 * avx512_words];

  BL_AVX512_INLINE static __m512 load(const std::uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(from)));
  }
};

/// Codes of 5 to 8 bits without VBMI. Natural arrangement.
template <int Bits>
struct avx512_shorts {
  static_assert(Bits >= 5 && Bits <= 8, "shorter codes have a faster way");
  static constexpr int rows_at_once = 2;
  static constexpr bool paired = false;
  using chunk = avx512_halves;

  struct table {
    alignas(64) std::uint16_t values[1 << Bits];
  };

  BL_AVX512_INLINE static void load(table& t, const fp16_t* entries) {
    std::memcpy(t.values, entries, sizeof t.values);
  }

  BL_AVX512 static void load(chunk& c, const table& t, const bitplane_view& w, int row, int word,
                             int count) {
    // The words of a plane, two at a time, are the masks of 64 codes.
    alignas(64) std::uint64_t plane[Bits][avx512_words / 2];
    BL_UNROLL(8)
    for (int p = 0; p < Bits; ++p)
      _mm512_store_si512(plane[p], load_words(w.row(p, row) + word, count));
    for (int pair = 0; 2 * pair < count; ++pair) {
      __m512i code = _mm512_maskz_set1_epi8(plane[Bits - 1][pair], 1);
      BL_UNROLL(8)
      for (int p = Bits - 2; p >= 0; --p)
        code = _mm512_mask_add_epi8(code, plane[p][pair], code,
                                    _mm512_set1_epi8(static_cast<char>(1 << (Bits - 1 - p))));
      std::uint16_t* out = c.values + 64 * pair;
      _mm512_store_si512(out, look_up(t, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(code))));
      _mm512_store_si512(out + 32,
                         look_up(t, _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(code, 1))));
    }
  }

  BL_AVX512_INLINE static void values(const chunk& c, int w, const table&, __m512& v0, __m512& v1) {
    v0 = chunk::load(c.values + 32 * w), v1 = chunk::load(c.values + 32 * w + 16);
  }

 private:
  // 32 codes to values: tables of 32 or 64 entries, chosen by the bits above.
  BL_AVX512_INLINE static __m512i look_up(const table& t, __m512i code) {
    const std::uint16_t* v = t.values;
    if constexpr (Bits == 5) return _mm512_permutexvar_epi16(code, _mm512_load_si512(v));
    if constexpr (Bits == 6) return look_up_64(v, code);
    if constexpr (Bits == 7) return look_up_128(v, code);
    return _mm512_mask_blend_epi16(_mm512_test_epi16_mask(code, _mm512_set1_epi16(128)),
                                   look_up_128(v, code), look_up_128(v + 128, code));
  }
  BL_AVX512_INLINE static __m512i look_up_64(const std::uint16_t* v, __m512i code) {
    return _mm512_permutex2var_epi16(_mm512_load_si512(v), code, _mm512_load_si512(v + 32));
  }
  BL_AVX512_INLINE static __m512i look_up_128(const std::uint16_t* v, __m512i code) {
    return _mm512_mask_blend_epi16(_mm512_test_epi16_mask(code, _mm512_set1_epi16(64)),
                                   look_up_64(v, code), look_up_64(v + 64, code));
  }
};

/// Codes of 5 to 8 bits with VBMI and GFNI. Natural arrangement.
template <int Bits>
struct avx512_bytes {
  static_assert(Bits >= 5 && Bits <= 8, "shorter codes have a faster way");
  static constexpr int rows_at_once = 2;
  static constexpr bool paired = false;
  using chunk = avx512_halves;

  /// The low and the high bytes of the fp16 entries.
  struct table {
    static constexpr int bytes = Bits < 6 ? 64 : 1 << Bits;
    alignas(64) std::uint8_t low[bytes];
    alignas(64) std::uint8_t high[bytes];
  };

  BL_AVX512_INLINE static void load(table& t, const fp16_t* entries) {
    for (int i = 0; i < 1 << Bits; i += 32) {
      const __m512i v = _mm512_loadu_si512(entries + i);
      _mm256_store_si256(reinterpret_cast<__m256i*>(t.low + i), _mm512_cvtepi16_epi8(v));
      _mm256_store_si256(reinterpret_cast<__m256i*>(t.high + i),
                         _mm512_cvtepi16_epi8(_mm512_srli_epi16(v, 8)));
    }
  }

  BL_AVX512_VBMI static void load(chunk& c, const table& t, const bitplane_view& w, int row,
                                  int word, int count) {
    // Byte k of eight is the plane of weight 2^(7 - k).
    __m512i plane[8];
    BL_UNROLL(8)
    for (int k = 0; k < 8; ++k)
      plane[k] = k < 8 - Bits ? _mm512_setzero_si512()
                              : load_words(w.row(k - (8 - Bits), row) + word, count);
    // Bytes of eight planes side by side: within 16 bytes of the planes, that is four words, ...
    __m512i two[8], four[8];
    BL_UNROLL(4)
    for (int k = 0; k < 4; ++k) {
      two[k] = _mm512_unpacklo_epi8(plane[2 * k], plane[2 * k + 1]);
      two[k + 4] = _mm512_unpackhi_epi8(plane[2 * k], plane[2 * k + 1]);
    }
    BL_UNROLL(2)
    for (int half = 0; half < 8; half += 4) BL_UNROLL(2)
    for (int k = 0; k < 2; ++k) {
      four[half + k] = _mm512_unpacklo_epi16(two[half + 2 * k], two[half + 2 * k + 1]);
      four[half + k + 2] = _mm512_unpackhi_epi16(two[half + 2 * k], two[half + 2 * k + 1]);
    }
    // ... and at last across them: bytes 0 and 1 (2 and 3) of a word m, then m + 4, such that the
    // values of word m come to lie in one piece.
    const __m512i first =
        _mm512_setr_epi32(0, 16, 4, 20, 1, 17, 5, 21, 8, 24, 12, 28, 9, 25, 13, 29);
    const __m512i second =
        _mm512_setr_epi32(2, 18, 6, 22, 3, 19, 7, 23, 10, 26, 14, 30, 11, 27, 15, 31);
    BL_UNROLL(4)
    for (int m = 0; m < 4; ++m) {
      const __m512i a = four[2 * m], b = four[2 * m + 1];
      std::uint16_t* out = c.values + half_at(m, 0);
      look_up(t, _mm512_permutex2var_epi32(a, first, b), out);
      look_up(t, _mm512_permutex2var_epi32(a, second, b), out + half_at(0, 1));
    }
  }

  BL_AVX512_INLINE static void values(const chunk& c, int w, const table&, __m512& v0, __m512& v1) {
    v0 = chunk::load(c.values + half_at(w, 0)), v1 = chunk::load(c.values + half_at(w, 1));
  }

 private:
  /// Where lanes 16 * half .. of word w are.
  static constexpr int half_at(int w, int half) {
    return w % 4 * 128 + half * 64 + w / 4 % 2 * 32 + w / 8 * 16;
  }

  // Eight bytes, one of each plane, are a matrix of bits whose columns are eight codes.
  BL_AVX512_VBMI static inline __attribute__((always_inline)) void look_up(const table& t,
                                                                           __m512i planes,
                                                                           std::uint16_t* out) {
    const __m512i unit = _mm512_set1_epi64(static_cast<long long>(0x8040201008040201));
    const __m512i code = _mm512_gf2p8affine_epi64_epi8(unit, planes, 0);
    const __m512i low = bytes(t.low, code), high = bytes(t.high, code);
    _mm512_store_si512(out, _mm512_unpacklo_epi8(low, high));
    _mm512_store_si512(out + 32, _mm512_unpackhi_epi8(low, high));
  }
  BL_AVX512_VBMI static inline __attribute__((always_inline)) __m512i bytes(const std::uint8_t* v,
                                                                            __m512i code) {
    if constexpr (Bits <= 6) return _mm512_permutexvar_epi8(code, _mm512_load_si512(v));
    const __m512i lower =
        _mm512_permutex2var_epi8(_mm512_load_si512(v), code, _mm512_load_si512(v + 64));
    if constexpr (Bits == 7) return lower;
    const __m512i upper =
        _mm512_permutex2var_epi8(_mm512_load_si512(v + 128), code, _mm512_load_si512(v + 192));
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), lower, upper);
  }
};

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif
