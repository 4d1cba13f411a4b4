// SPDX-License-Identifier: MIT
// Bitplane words to weights with AVX2, 32 columns (one word of each plane) at a time, in the
// crossed arrangement of avx2_lanes.hpp. Eight words of a row are transposed to codes together,
// because a transposition costs the same for one word as for eight; then each word is spread over
// four registers and looked up. Tested by tests/kernels/cpu/dequantize_test.cpp.
#pragma once

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
  permute,  ///< the table is one register of floats
  shuffle,  ///< 16-entry tables of bytes, three per float: an fp16 value needs no fourth
  read,     ///< the table is in memory, read one entry after the other
};

/// On a Zen 3 core that shared its caches with other work, 4096 columns, in 10^9 weights per
/// second: 7 bits by shuffle 2.3, by reads 2.1, by gather instructions 1.4; 8 bits 1.3, 2.0
/// and 1.4.
constexpr avx2_lookup avx2_lookup_for(int bits) {
  return bits <= 3 ? avx2_lookup::permute : bits <= 7 ? avx2_lookup::shuffle : avx2_lookup::read;
}

/// A transposition of the 4 x 4 bit square in every nibble: bit j of the nibbles of `r_i` goes to
/// bit i of the nibbles of `r_j`.
BL_AVX2_INLINE void transpose_nibbles(__m256i& r0, __m256i& r1, __m256i& r2, __m256i& r3) {
  const __m256i even = _mm256_set1_epi32(0x55555555), low = _mm256_set1_epi32(0x33333333);
  __m256i t = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi32(r0, 1), r1), even);
  r1 = _mm256_xor_si256(r1, t);
  r0 = _mm256_xor_si256(r0, _mm256_slli_epi32(t, 1));
  t = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi32(r2, 1), r3), even);
  r3 = _mm256_xor_si256(r3, t);
  r2 = _mm256_xor_si256(r2, _mm256_slli_epi32(t, 1));
  t = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi32(r0, 2), r2), low);
  r2 = _mm256_xor_si256(r2, t);
  r0 = _mm256_xor_si256(r0, _mm256_slli_epi32(t, 2));
  t = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi32(r1, 2), r3), low);
  r3 = _mm256_xor_si256(r3, t);
  r1 = _mm256_xor_si256(r1, _mm256_slli_epi32(t, 2));
}

/// Stores four registers so that the four elements of a word are neighbours: word w < 4 starts at
/// 8 * w, word w + 4 at 8 * w + 4.
BL_AVX2_INLINE void store_by_word(std::uint32_t* out, __m256i r0, __m256i r1, __m256i r2,
                                  __m256i r3) {
  const __m256i a = _mm256_unpacklo_epi32(r0, r1), b = _mm256_unpackhi_epi32(r0, r1);
  const __m256i c = _mm256_unpacklo_epi32(r2, r3), d = _mm256_unpackhi_epi32(r2, r3);
  __m256i* to = reinterpret_cast<__m256i*>(out);
  _mm256_store_si256(to, _mm256_unpacklo_epi64(a, c));
  _mm256_store_si256(to + 1, _mm256_unpackhi_epi64(a, c));
  _mm256_store_si256(to + 2, _mm256_unpacklo_epi64(b, d));
  _mm256_store_si256(to + 3, _mm256_unpackhi_epi64(b, d));
}

constexpr int by_word(int w) { return w % 4 * 8 + w / 4 * 4; }

/// Words of one row on their way to weights.
/// @tparam Bits precision to read, 1..8
template <int Bits, avx2_lookup How = avx2_lookup_for(Bits)>
struct avx2_decoder {
  static_assert(Bits >= 1 && Bits <= 8, "codes have 1 to 8 bits");
  static_assert(How != avx2_lookup::permute || Bits <= 3, "a register holds 8 floats");
  static_assert(How != avx2_lookup::shuffle || Bits >= 4, "a table of bytes has 16 entries");
  static_assert(How != avx2_lookup::read || Bits > 4, "shorter codes have faster ways");

  static constexpr int high_bits = Bits > 4 ? Bits - 4 : 0;  ///< above the low nibble of a code
  static constexpr int tables = 1 << high_bits;              ///< of 16 entries each
  static constexpr int words_at_once = 8;

  /// The table of one row and column group, ready for lookups.
  struct permute_table {
    __m256 values;
  };
  struct shuffle_table {
    __m256i byte[tables][3];  ///< bytes 1, 2 and 3 of the floats, the same in both halves
  };
  struct read_table {
    alignas(32) float values[1 << Bits];
  };
  using table = std::conditional_t<
      How == avx2_lookup::permute, permute_table,
      std::conditional_t<How == avx2_lookup::shuffle, shuffle_table, read_table>>;

  /// Eight words, transposed. For permute: registers of nibbles, nibble i of word w in register j
  /// being column 4 * i + j (at 1 and 2 bits, fewer registers serve all j by shifts). Else the same
  /// stored by word, for the low and the high nibbles of the codes.
  struct nibble_chunk {
    alignas(32) std::uint32_t low[32];
    alignas(32) std::uint32_t high[32];
  };
  /// For read: the weights already.
  struct value_chunk {
    alignas(32) float values[32 * words_at_once];
  };
  using chunk = std::conditional_t<How == avx2_lookup::read, value_chunk, nibble_chunk>;

  /// @param entries 2^Bits values
  BL_AVX2_INLINE static void load(table& t, const fp16_t* entries) {
    if constexpr (How == avx2_lookup::permute) {
      fp16_t eight[8];  // repeated, so that bits above the code select an equal value
      for (int i = 0; i < 8; i += 1 << Bits)
        std::memcpy(eight + i, entries, sizeof(fp16_t) << Bits);
      t.values = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(eight)));
    } else if constexpr (How == avx2_lookup::shuffle) {
      for (int i = 0; i < tables; ++i) load_bytes(t.byte[i], entries + 16 * i);
    } else {
      for (int i = 0; i < 1 << Bits; i += 8) {
        const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(entries + i));
        _mm256_store_ps(t.values + i, _mm256_cvtph_ps(h));
      }
    }
  }

  /// Takes in `count` (1..8) words of a row, from `word` on.
  BL_AVX2_INLINE static void load(chunk& c, const table& t, const bitplane_view& w, int row,
                                  int word, int count) {
    if constexpr (How == avx2_lookup::read) {
      nibble_chunk nibbles_only;
      transpose(nibbles_only, w, row, word, count);
      read_values(c, nibbles_only, t, count);
    } else {
      static_cast<void>(t);
      transpose(c, w, row, word, count);
    }
  }

  /// The 32 weights of word `w` of the chunk, crossed.
  BL_AVX2_INLINE static void values(const chunk& c, int w, const table& t, __m256& v0, __m256& v1,
                                    __m256& v2, __m256& v3) {
    if constexpr (How == avx2_lookup::permute) {
      const std::uint32_t* q = c.low + w;
      if constexpr (Bits == 1) {
        v0 = pick<0>(q, t), v1 = pick<1>(q, t), v2 = pick<2>(q, t), v3 = pick<3>(q, t);
      } else if constexpr (Bits == 2) {
        v0 = pick<0>(q, t), v1 = pick<0>(q + 8, t), v2 = pick<2>(q, t), v3 = pick<2>(q + 8, t);
      } else {
        v0 = pick<0>(q, t), v1 = pick<0>(q + 8, t);
        v2 = pick<0>(q + 16, t), v3 = pick<0>(q + 24, t);
      }
    } else if constexpr (How == avx2_lookup::shuffle) {
      const __m256i low = _mm256_and_si256(nibbles(c.low, w), _mm256_set1_epi8(15));
      __m256i high = _mm256_setzero_si256();
      if constexpr (Bits > 4) high = nibbles(c.high, w);
      const __m256i zero = _mm256_setzero_si256();
      const __m256i byte1 = pick_byte(t, 0, low, high), byte2 = pick_byte(t, 1, low, high),
                    byte3 = pick_byte(t, 2, low, high);
      const __m256i lower_a = _mm256_unpacklo_epi8(zero, byte1),
                    lower_b = _mm256_unpackhi_epi8(zero, byte1),
                    upper_a = _mm256_unpacklo_epi8(byte2, byte3),
                    upper_b = _mm256_unpackhi_epi8(byte2, byte3);
      v0 = _mm256_castsi256_ps(_mm256_unpacklo_epi16(lower_a, upper_a));
      v1 = _mm256_castsi256_ps(_mm256_unpackhi_epi16(lower_a, upper_a));
      v2 = _mm256_castsi256_ps(_mm256_unpacklo_epi16(lower_b, upper_b));
      v3 = _mm256_castsi256_ps(_mm256_unpackhi_epi16(lower_b, upper_b));
    } else {
      static_cast<void>(t);
      const float* at = c.values + 32 * w;
      v0 = _mm256_load_ps(at), v1 = _mm256_load_ps(at + 8);
      v2 = _mm256_load_ps(at + 16), v3 = _mm256_load_ps(at + 24);
    }
  }

 private:
  BL_AVX2_INLINE static void transpose(nibble_chunk& c, const bitplane_view& w, int row, int word,
                                       int count) {
    __m256i plane[Bits];
    if (count == words_at_once) {
      for (int p = 0; p < Bits; ++p)
        plane[p] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.row(p, row) + word));
    } else {
      const __m256i wanted =
          _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
      for (int p = 0; p < Bits; ++p)
        plane[p] =
            _mm256_maskload_epi32(reinterpret_cast<const int*>(w.row(p, row) + word), wanted);
    }
    __m256i* out = reinterpret_cast<__m256i*>(c.low);
    if constexpr (Bits == 1) {
      _mm256_store_si256(out, plane[0]);
    } else if constexpr (Bits == 2) {
      const __m256i even = _mm256_set1_epi32(0x55555555);
      const __m256i t =
          _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi32(plane[1], 1), plane[0]), even);
      _mm256_store_si256(out, _mm256_xor_si256(plane[1], _mm256_slli_epi32(t, 1)));
      _mm256_store_si256(out + 1, _mm256_xor_si256(plane[0], t));
    } else if constexpr (Bits == 3) {
      __m256i r0 = plane[2], r1 = plane[1], r2 = plane[0], r3 = _mm256_setzero_si256();
      transpose_nibbles(r0, r1, r2, r3);
      _mm256_store_si256(out, r0);
      _mm256_store_si256(out + 1, r1);
      _mm256_store_si256(out + 2, r2);
      _mm256_store_si256(out + 3, r3);
    } else {
      __m256i r0 = plane[Bits - 1], r1 = plane[Bits - 2], r2 = plane[Bits - 3],
              r3 = plane[Bits - 4];
      transpose_nibbles(r0, r1, r2, r3);
      store_by_word(c.low, r0, r1, r2, r3);
    }
    if constexpr (Bits > 4) {
      const __m256i none = _mm256_setzero_si256();
      __m256i r0 = plane[high_bits - 1], r1 = none, r2 = none, r3 = none;
      if constexpr (Bits > 5) r1 = plane[high_bits - 2];
      if constexpr (Bits > 6) r2 = plane[high_bits - 3];
      if constexpr (Bits > 7) r3 = plane[high_bits - 4];
      transpose_nibbles(r0, r1, r2, r3);
      store_by_word(c.high, r0, r1, r2, r3);
    }
  }

  // The shifts that bring columns 4 * i + j of a word of nibbles to the bottom of element (h, b),
  // where i = 2 * b + h.
  template <int Extra>
  BL_AVX2_INLINE static __m256 pick(const std::uint32_t* word, const table& t) {
    const __m256i shift = _mm256_setr_epi32(Extra, 8 + Extra, 16 + Extra, 24 + Extra, 4 + Extra,
                                            12 + Extra, 20 + Extra, 28 + Extra);
    const __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(*word)), shift);
    // The in-lane form reads two bits of each index and is half the work on AMD.
    if constexpr (Bits <= 2) return _mm256_permutevar_ps(t.values, index);
    return _mm256_permutevar8x32_ps(t.values, index);
  }

  // Bytes 4 * j + b of the word in both halves, the wanted nibble at the bottom (above it, junk).
  BL_AVX2_INLINE static __m256i nibbles(const std::uint32_t* words, int w) {
    const __m128i sixteen = _mm_load_si128(reinterpret_cast<const __m128i*>(words + by_word(w)));
    return _mm256_srlv_epi32(_mm256_broadcastsi128_si256(sixteen),
                             _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
  }

  BL_AVX2_INLINE static __m256i pick_byte(const shuffle_table& t, int byte, __m256i low,
                                          __m256i high) {
    __m256i v[tables];
    for (int i = 0; i < tables; ++i) v[i] = _mm256_shuffle_epi8(t.byte[i][byte], low);
    for (int b = 0; b < high_bits; ++b) {
      const __m256i mask = _mm256_slli_epi16(high, 7 - b);  // blends look at the top bit of a byte
      for (int i = 0; i < tables >> (b + 1); ++i)
        v[i] = _mm256_blendv_epi8(v[2 * i], v[2 * i + 1], mask);
    }
    return v[0];
  }

  BL_AVX2_INLINE static void read_values(value_chunk& out, const nibble_chunk& c, const table& t,
                                         int count) {
    // All words first: a byte read back at once would wait for the store of its register.
    alignas(32) std::uint8_t codes[32 * words_at_once];
    for (int w = 0; w < count; ++w) {
      const __m256i low = _mm256_and_si256(nibbles(c.low, w), _mm256_set1_epi8(15));
      const __m256i high = _mm256_and_si256(nibbles(c.high, w), _mm256_set1_epi8(15));
      const __m256i code = _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
      // Four bytes of each half make one register of weights.
      const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
      _mm256_store_si256(reinterpret_cast<__m256i*>(codes + 32 * w),
                         _mm256_permutevar8x32_epi32(code, order));
    }
    for (int i = 0; i < 32 * count; i += 8) {
      std::uint64_t eight;
      std::memcpy(&eight, codes + i, sizeof eight);
      for (int k = 0; k < 8; ++k) out.values[i + k] = t.values[eight >> (8 * k) & 0xff];
    }
  }

  // Sixteen fp16 values to bytes 1, 2 and 3 of their floats.
  BL_AVX2_INLINE static void load_bytes(__m256i (&byte)[3], const fp16_t* entries) {
    const __m128i* h = reinterpret_cast<const __m128i*>(entries);
    const __m256i a = _mm256_castps_si256(_mm256_cvtph_ps(_mm_loadu_si128(h)));
    const __m256i b = _mm256_castps_si256(_mm256_cvtph_ps(_mm_loadu_si128(h + 1)));
    const __m256i ff = _mm256_set1_epi32(0xff);
    for (int k = 0; k < 3; ++k) {
      const __m256i ak = _mm256_and_si256(_mm256_srli_epi32(a, 8 * (k + 1)), ff);
      const __m256i bk = _mm256_and_si256(_mm256_srli_epi32(b, 8 * (k + 1)), ff);
      const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(ak, bk), 0xd8);
      byte[k] = _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs, pairs), 0x88);
    }
  }
};

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
#endif
