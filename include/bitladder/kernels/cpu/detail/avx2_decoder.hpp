// SPDX-License-Identifier: MIT
// Bitplane words to weights with AVX2, 32 columns (one word of each plane) at a time, in the
// crossed arrangement of avx2_lanes.hpp. Eight words of a row are transposed to codes together,
// because a transposition costs the same for one word as for eight. Short loops over registers are
// unrolled by pragmas: GCC does that by itself at -O3, and at -O2 8 bits took 2.7 times as long
// (Zen 3). Tested by tests/kernels/cpu/dequantize_test.cpp.
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
#include <type_traits>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

/// How codes become values.
enum class avx2_lookup {
  permute,  ///< the table is one register of floats, looked up word by word
  shuffle,  ///< the two bytes of fp16 entries from 16-entry tables, eight words together
};

/// On a Zen 3 core whose other thread was busy, 10^9 weights per second by permute and by shuffle:
/// 3 bits 8.2 and 8.7 (its permutations across the halves of a register take two steps). The three
/// bytes of floats instead of the two of fp16, with a tree of blends over the tables, gave 6.2 at 4
/// bits (now 8.2), 4.7 (6.3) at 5, 3.1 (4.6) at 6 and 1.9 (3.2) at 7; reading the table entry by
/// entry 1.7 (2.1) at 8.
constexpr avx2_lookup avx2_lookup_for(int bits) {
  return bits <= 2 ? avx2_lookup::permute : avx2_lookup::shuffle;
}

/// One step of a transposition: the bits of `a` at `mask` << `Shift` change places with those of
/// `b` at `mask`.
template <int Shift>
BL_AVX2_INLINE void swap_bits(__m256i& a, __m256i& b, __m256i mask) {
  const __m256i t = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi32(a, Shift), b), mask);
  b = _mm256_xor_si256(b, t);
  // Additions have twice the throughput of shifts.
  a = _mm256_xor_si256(a, Shift == 1 ? _mm256_add_epi32(t, t) : _mm256_slli_epi32(t, Shift));
}

/// `Planes` planes (1..4), least significant first, to nibbles: nibble i of `r_j` gets the bits of
/// column 4 * i + j. The bits of a nibble above the planes are zero, for fewer than four planes.
template <int Planes>
BL_AVX2_INLINE void nibbles(const __m256i* plane, __m256i (&r)[4]) {
  const __m256i even = _mm256_set1_epi32(0x55555555), low = _mm256_set1_epi32(0x33333333);
  if constexpr (Planes == 1) {
    const __m256i ones = _mm256_set1_epi32(0x11111111);
    r[0] = _mm256_and_si256(plane[0], ones);
    r[1] = _mm256_and_si256(_mm256_srli_epi32(plane[0], 1), ones);
    r[2] = _mm256_and_si256(_mm256_srli_epi32(plane[0], 2), ones);
    r[3] = _mm256_and_si256(_mm256_srli_epi32(plane[0], 3), ones);
  } else if constexpr (Planes == 2) {
    __m256i a = plane[0], b = plane[1];
    swap_bits<1>(a, b, even);
    r[0] = _mm256_and_si256(a, low);
    r[1] = _mm256_and_si256(b, low);
    r[2] = _mm256_and_si256(_mm256_srli_epi32(a, 2), low);
    r[3] = _mm256_and_si256(_mm256_srli_epi32(b, 2), low);
  } else {
    r[0] = plane[0], r[1] = plane[1], r[2] = plane[2];
    swap_bits<1>(r[0], r[1], even);
    if constexpr (Planes == 3) {
      r[3] = _mm256_and_si256(_mm256_srli_epi32(r[2], 1), even);
      r[2] = _mm256_and_si256(r[2], even);
    } else {
      r[3] = plane[3];
      swap_bits<1>(r[2], r[3], even);
    }
    swap_bits<2>(r[0], r[2], low);
    swap_bits<2>(r[1], r[3], low);
  }
}

/// Makes a value opaque to the compiler, for chains that it would otherwise turn into more terms
/// than there are registers.
BL_AVX2_INLINE void as_written(__m256i& v) { asm("" : "+x"(v)); }

/// Words of one row on their way to weights.
/// @tparam Bits precision to read, 1..8
template <int Bits, avx2_lookup How = avx2_lookup_for(Bits)>
struct avx2_decoder {
  static_assert(Bits >= 1 && Bits <= 8, "codes have 1 to 8 bits");
  static_assert(How != avx2_lookup::permute || Bits <= 2, "an in-lane permutation takes 4 floats");
  static_assert(How != avx2_lookup::shuffle || Bits >= 3, "shorter codes have faster ways");

  static constexpr int tables = Bits > 4 ? 1 << (Bits - 4) : 1;  ///< of 16 entries each
  static constexpr int words_at_once = 8;
  /// Whether code for eight words at a time, without a loop over them, is faster.
  static constexpr bool whole_chunks = How == avx2_lookup::shuffle;

  /// The table of one row and column group, ready for lookups.
  struct permute_table {
    __m256 values;
  };
  /// Entry e of table i: the low and the high byte of its fp16 value, each combined by xor with
  /// that of table i - 1 (but see `first_of_chain`).
  struct shuffle_table {
    alignas(16) std::uint8_t low[tables][16];
    alignas(16) std::uint8_t high[tables][16];
  };
  using table = std::conditional_t<How == avx2_lookup::permute, permute_table, shuffle_table>;

  /// Eight words, transposed. 1 bit: as they are. 2 bits: pair i of word w is column 2i in
  /// words[w], 2i + 1 in words[w + 8].
  struct code_chunk {
    alignas(32) std::uint32_t words[2 * words_at_once];
  };
  /// Eight words as fp16 values. Register j of the crossed word w is at half_at(w, j).
  struct half_chunk {
    alignas(32) std::uint16_t values[32 * words_at_once];
  };
  using chunk = std::conditional_t<How == avx2_lookup::permute, code_chunk, half_chunk>;

  /// @param entries 2^Bits values
  BL_AVX2_INLINE static void load(table& t, const fp16_t* entries) {
    if constexpr (How == avx2_lookup::permute) {
      fp16_t eight[8];  // repeated, so that bits above the code select an equal value
      for (int i = 0; i < 8; i += 1 << Bits)
        std::memcpy(eight + i, entries, sizeof(fp16_t) << Bits);
      t.values = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(eight)));
    } else {
      __m128i low_before = _mm_setzero_si128(), high_before = low_before;
      for (int i = 0; i < tables; ++i) {
        const __m128i* from = reinterpret_cast<const __m128i*>(entries + 16 * i);
        const __m128i a = _mm_loadu_si128(from);
        const __m128i b = Bits > 3 ? _mm_loadu_si128(from + 1) : a;
        const __m128i ff = _mm_set1_epi16(0xff);
        const __m128i low = _mm_packus_epi16(_mm_and_si128(a, ff), _mm_and_si128(b, ff));
        const __m128i high = _mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8));
        const bool first = first_of_chain(i);
        _mm_store_si128(reinterpret_cast<__m128i*>(t.low[i]),
                        first ? low : _mm_xor_si128(low, low_before));
        _mm_store_si128(reinterpret_cast<__m128i*>(t.high[i]),
                        first ? high : _mm_xor_si128(high, high_before));
        low_before = low, high_before = high;
      }
    }
  }

  /// Takes in `count` (1..8) words of a row, from `word` on.
  BL_AVX2_INLINE static void load(chunk& c, const table& t, const bitplane_view& w, int row,
                                  int word, int count) {
    __m256i plane[Bits];  // least significant first
    if (count == words_at_once) {
      BL_UNROLL(8)
      for (int p = 0; p < Bits; ++p)
        plane[Bits - 1 - p] =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.row(p, row) + word));
    } else {
      const __m256i wanted =
          _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
      BL_UNROLL(8)
      for (int p = 0; p < Bits; ++p)
        plane[Bits - 1 - p] =
            _mm256_maskload_epi32(reinterpret_cast<const int*>(w.row(p, row) + word), wanted);
    }
    if constexpr (How == avx2_lookup::permute) {
      static_cast<void>(t);
      __m256i* out = reinterpret_cast<__m256i*>(c.words);
      if constexpr (Bits == 1) {
        _mm256_store_si256(out, plane[0]);
      } else {
        swap_bits<1>(plane[0], plane[1], _mm256_set1_epi32(0x55555555));
        _mm256_store_si256(out, plane[0]);
        _mm256_store_si256(out + 1, plane[1]);
      }
    } else {
      const __m256i nibble = _mm256_set1_epi8(15);
      __m256i low[4], high[4];
      nibbles<(Bits < 4 ? Bits : 4)>(plane, low);
      if constexpr (Bits > 4) nibbles<Bits - 4>(plane + 4, high);
      // Bytes of columns 8b + j and 8b + 4 + j for words 0, 1, 4, 5, then for 2, 3, 6, 7.
      alignas(32) __m256i codes[10];
      BL_UNROLL(4)
      for (int j = 0; j < 4; ++j) {
        __m256i even = low[j], odd;
        if constexpr (Bits == 3) {  // bit 7 is zero already, bits 4 to 6 do not matter
          odd = _mm256_srli_epi16(even, 4);
        } else if constexpr (Bits == 4) {
          odd = _mm256_and_si256(_mm256_srli_epi16(even, 4), nibble);
          even = _mm256_and_si256(even, nibble);
        } else {
          odd = high[j];
          swap_bits<4>(even, odd, nibble);
        }
        codes[2 * j] = _mm256_unpacklo_epi32(even, odd);
        codes[2 * j + 1] = _mm256_unpackhi_epi32(even, odd);
      }
      // The lookups are many dependent steps: each pair is fetched before those of the pair before
      // it, and from memory, so that a step never waits for the transposition.
      codes[8] = codes[9] = codes[0];
      asm("" : "+m"(codes));
      __m256i first = codes[0], second = codes[1];
      BL_UNROLL(4)
      for (int j = 0; j < 4; ++j) {
        __m256i next_first = codes[2 * j + 2], next_second = codes[2 * j + 3];
        as_written(next_first), as_written(next_second);
        __m256i first_high, second_high;
        look_up(t, first, first_high, second, second_high);
        std::uint16_t* out = c.values + half_at(0, j);
        store(out, _mm256_unpacklo_epi8(first, first_high));                    // words 0 and 4
        store(out + half_at(1, 0), _mm256_unpackhi_epi8(first, first_high));    // 1 and 5
        store(out + half_at(2, 0), _mm256_unpacklo_epi8(second, second_high));  // 2 and 6
        store(out + half_at(3, 0), _mm256_unpackhi_epi8(second, second_high));  // 3 and 7
        first = next_first, second = next_second;
      }
    }
  }

  /// Register `j` (0..3) of the 32 weights of word `w` of the chunk, crossed.
  template <int J>
  BL_AVX2_INLINE static __m256 value(const chunk& c, int w, const table& t) {
    if constexpr (How == avx2_lookup::permute) {
      const std::uint32_t* q = c.words + w;
      if constexpr (Bits == 1) return pick<J>(q, t);  // the bit above selects an equal value
      return pick<J / 2 * 2>(q + J % 2 * 8, t);
    } else {
      static_cast<void>(t);
      return _mm256_cvtph_ps(
          _mm_load_si128(reinterpret_cast<const __m128i*>(c.values + half_at(w, J))));
    }
  }

  /// All four.
  BL_AVX2_INLINE static void values(const chunk& c, int w, const table& t, __m256& v0, __m256& v1,
                                    __m256& v2, __m256& v3) {
    v0 = value<0>(c, w, t), v1 = value<1>(c, w, t);
    v2 = value<2>(c, w, t), v3 = value<3>(c, w, t);
  }

 private:
  static constexpr int half_at(int w, int j) { return (w % 4 * 4 + j) * 16 + w / 4 * 8; }
  static constexpr bool first_of_chain(int table) { return table % 8 == 0; }

  BL_AVX2_INLINE static void store(std::uint16_t* to, __m256i v) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), v);
  }
  BL_AVX2_INLINE static __m256i entries(const std::uint8_t (&bytes)[16]) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
  }

  // Codes to the low and the high bytes of their values, two registers together so that they share
  // the loads of the tables. A shuffle gives zero where bit 7 of the index is set, so that with an
  // index of code - 16 * i table i answers for codes from 16 * i on (up to 127): as a table holds
  // the difference to the one before, the xor of all answers is the value. Two chains of eight
  // tables are 8 bits.
  BL_AVX2_INLINE static void look_up(const shuffle_table& t, __m256i& a, __m256i& a_high,
                                     __m256i& b, __m256i& b_high) {
    const __m256i a_code = a, b_code = b, sixteen = _mm256_set1_epi8(16);
    __m256i a_index = a, b_index = b;
    if constexpr (Bits == 8) {
      a_index = _mm256_and_si256(a, _mm256_set1_epi8(0x7f));
      b_index = _mm256_and_si256(b, _mm256_set1_epi8(0x7f));
    }
    constexpr int chains = Bits == 8 ? 2 : 1, length = tables / chains;
    __m256i al[chains], ah[chains], bl[chains], bh[chains];
    BL_UNROLL(16)
    for (int i = 0; i < length; ++i) {
      BL_UNROLL(2)
      for (int k = 0; k < chains; ++k) {
        const __m256i low = entries(t.low[k * length + i]), high = entries(t.high[k * length + i]);
        const __m256i a0 = _mm256_shuffle_epi8(low, a_index),
                      a1 = _mm256_shuffle_epi8(high, a_index),
                      b0 = _mm256_shuffle_epi8(low, b_index),
                      b1 = _mm256_shuffle_epi8(high, b_index);
        al[k] = i == 0 ? a0 : _mm256_xor_si256(al[k], a0);
        ah[k] = i == 0 ? a1 : _mm256_xor_si256(ah[k], a1);
        bl[k] = i == 0 ? b0 : _mm256_xor_si256(bl[k], b0);
        bh[k] = i == 0 ? b1 : _mm256_xor_si256(bh[k], b1);
        as_written(al[k]), as_written(ah[k]), as_written(bl[k]), as_written(bh[k]);
      }
      a_index = _mm256_sub_epi8(a_index, sixteen);
      b_index = _mm256_sub_epi8(b_index, sixteen);
      as_written(a_index), as_written(b_index);
    }
    a = al[0], a_high = ah[0], b = bl[0], b_high = bh[0];
    if constexpr (Bits == 8) {
      a = _mm256_blendv_epi8(al[0], al[1], a_code),
      a_high = _mm256_blendv_epi8(ah[0], ah[1], a_code);
      b = _mm256_blendv_epi8(bl[0], bl[1], b_code),
      b_high = _mm256_blendv_epi8(bh[0], bh[1], b_code);
    }
  }

  // The shifts that bring columns 4i + j to the bottom of element (h, b), where i = 2 * b + h.
  template <int Extra>
  BL_AVX2_INLINE static __m256 pick(const std::uint32_t* word, const permute_table& t) {
    const __m256i shift = _mm256_setr_epi32(Extra, 8 + Extra, 16 + Extra, 24 + Extra, 4 + Extra,
                                            12 + Extra, 20 + Extra, 28 + Extra);
    const __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(*word)), shift);
    return _mm256_permutevar_ps(t.values, index);  // looks at two bits of each index
  }
};

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
#endif
