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
  entry,    ///< the table in memory, read entry by entry
};

/// On a Zen 3 core eight weights take 5 cycles entry by entry (and 1.5 more for their bits), 11
/// with the gather instruction, and at 8 bits 10 by shuffles of 16 tables. A permutation across the
/// halves of a register is two steps there: 3 bits are 0.94 times as fast as by shuffles. The three
/// bytes of floats instead of the two of fp16, with a tree of blends over the tables, gave 0.75 of
/// the speed at 4 bits and 0.6 at 7.
constexpr avx2_lookup avx2_lookup_for(int bits) {
  return bits <= 2 ? avx2_lookup::permute : bits <= 7 ? avx2_lookup::shuffle : avx2_lookup::entry;
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

/// The same for what is to go by way of memory; and a point that no access to memory is moved
/// across.
template <class T>
BL_AVX2_INLINE void in_memory(T& object) {
  asm volatile("" : : "r"(&object) : "memory");
}

/// Words of one row on their way to weights.
/// @tparam Bits precision to read, 1..8
template <int Bits, avx2_lookup How = avx2_lookup_for(Bits)>
struct avx2_decoder {
  static_assert(Bits >= 1 && Bits <= 8, "codes have 1 to 8 bits");
  static_assert(How != avx2_lookup::permute || Bits <= 2, "an in-lane permutation takes 4 floats");
  static_assert(How != avx2_lookup::shuffle || (Bits >= 3 && Bits <= 7),
                "shorter codes have faster ways, longer ones no bit that says another table");
  static_assert(How != avx2_lookup::entry || Bits > 4, "bytes are made of two nibbles");

  static constexpr int tables = Bits > 4 ? 1 << (Bits - 4) : 1;  ///< of 16 entries each
  static constexpr int words_at_once = 8;
  /// Whether code for eight words at a time, without a loop over them, is faster.
  static constexpr bool whole_chunks = How != avx2_lookup::permute;
  /// Whether the lookups of a chunk, in steps, are best put between the products of the one before.
  static constexpr bool in_steps = How == avx2_lookup::shuffle && Bits <= 4;

  /// The table of one row and column group, ready for lookups.
  struct permute_table {
    __m256 values;
  };
  /// Entry e of table i: the low and the high byte of its fp16 value, each combined by xor with
  /// that of table i - 1.
  struct shuffle_table {
    alignas(16) std::uint8_t low[tables][16];
    alignas(16) std::uint8_t high[tables][16];
  };
  /// The only such table in registers, once in each half.
  struct held_table {
    __m256i low, high;
  };
  /// The bits of the values as floats.
  struct entry_table {
    alignas(32) std::uint32_t values[1 << Bits];
  };
  using table = std::conditional_t<
      How == avx2_lookup::permute, permute_table,
      std::conditional_t<How == avx2_lookup::shuffle, shuffle_table, entry_table>>;

  /// Eight words, transposed. 1 bit: as they are. 2 bits: pair i of word w is column 2i in
  /// words[w], 2i + 1 in words[w + 8].
  struct code_chunk {
    alignas(32) std::uint32_t words[2 * words_at_once];
  };
  /// Eight words as fp16 values. Register j of the crossed word w is at half_at(w, j).
  struct half_chunk {
    alignas(32) std::uint16_t values[32 * words_at_once];
  };
  /// Eight words as codes, a byte each. Those of register j of the crossed word w are at
  /// codes_at(w, j).
  struct byte_chunk {
    alignas(32) std::uint64_t codes[4 * words_at_once];
  };
  using chunk =
      std::conditional_t<How == avx2_lookup::permute, code_chunk,
                         std::conditional_t<How == avx2_lookup::shuffle, half_chunk, byte_chunk>>;

  /// Where the words of a row are.
  struct row_planes {
    const std::uint32_t* plane[Bits];  ///< least significant first
  };
  BL_AVX2_INLINE static row_planes at(const bitplane_view& w, int row) {
    row_planes r;
    BL_UNROLL(8)
    for (int p = 0; p < Bits; ++p) r.plane[p] = w.row(Bits - 1 - p, row);
    return r;
  }

  /// Eight words of which only the bits have been moved: nibbles up to 4 bits, else bytes.
  struct block {
    alignas(32) __m256i parts[Bits > 4 ? 8 : 4];
  };

  /// @param entries 2^Bits values
  BL_AVX2_INLINE static void load(table& t, const fp16_t* entries) {
    if constexpr (How == avx2_lookup::permute) {
      fp16_t eight[8];  // repeated, so that bits above the code select an equal value
      for (int i = 0; i < 8; i += 1 << Bits)
        std::memcpy(eight + i, entries, sizeof(fp16_t) << Bits);
      t.values = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(eight)));
    } else if constexpr (How == avx2_lookup::entry) {
      for (int i = 0; i < 1 << Bits; i += 8)
        _mm256_store_si256(reinterpret_cast<__m256i*>(t.values + i),
                           _mm256_castps_si256(_mm256_cvtph_ps(
                               _mm_loadu_si128(reinterpret_cast<const __m128i*>(entries + i)))));
    } else {
      __m128i low_before = _mm_setzero_si128(), high_before = low_before;
      for (int i = 0; i < tables; ++i) {
        const __m128i* from = reinterpret_cast<const __m128i*>(entries + 16 * i);
        const __m128i a = _mm_loadu_si128(from);
        const __m128i b = Bits > 3 ? _mm_loadu_si128(from + 1) : a;
        const __m128i ff = _mm_set1_epi16(0xff);
        const __m128i low = _mm_packus_epi16(_mm_and_si128(a, ff), _mm_and_si128(b, ff));
        const __m128i high = _mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8));
        _mm_store_si128(reinterpret_cast<__m128i*>(t.low[i]), _mm_xor_si128(low, low_before));
        _mm_store_si128(reinterpret_cast<__m128i*>(t.high[i]), _mm_xor_si128(high, high_before));
        low_before = low, high_before = high;
      }
    }
  }

  /// Takes in `count` (1..8) words of a row, from `word` on.
  BL_AVX2_INLINE static void load(chunk& c, const table& t, const bitplane_view& w, int row,
                                  int word, int count) {
    if constexpr (How == avx2_lookup::permute) {
      static_cast<void>(t);
      __m256i plane[Bits];
      load_planes(plane, at(w, row), word, count);
      __m256i* out = reinterpret_cast<__m256i*>(c.words);
      if constexpr (Bits == 1) {
        _mm256_store_si256(out, plane[0]);
      } else {
        swap_bits<1>(plane[0], plane[1], _mm256_set1_epi32(0x55555555));
        _mm256_store_si256(out, plane[0]);
        _mm256_store_si256(out + 1, plane[1]);
      }
    } else if constexpr (How == avx2_lookup::entry) {
      static_cast<void>(t);
      block b;
      transpose(b, at(w, row), word, count);
      BL_UNROLL(8)
      for (int i = 0; i < 8; ++i)
        _mm256_store_si256(reinterpret_cast<__m256i*>(c.codes) + i, b.parts[i]);
      in_memory(c);  // the way from vectors to registers of integers is by memory
    } else {
      block b;
      transpose(b, at(w, row), word, count);
      // The lookups are many dependent steps, and so is the transposition: from memory a step never
      // waits for it.
      in_memory(b);
      if constexpr (tables == 1)
        look_up_all(c, b, hold(t));
      else
        look_up_all(c, b, t);
      // A conversion from memory is one step, from a register two.
      in_memory(c);
    }
  }

  /// The first half of `load`: the bits of each code, side by side.
  BL_AVX2_INLINE static void transpose(block& b, const row_planes& from, int word, int count) {
    static_assert(How != avx2_lookup::permute, "one or two planes are read as they are");
    __m256i plane[Bits];  // least significant first
    load_planes(plane, from, word, count);
    __m256i low[4], high[4];
    nibbles<(Bits < 4 ? Bits : 4)>(plane, low);
    if constexpr (Bits > 4) nibbles<Bits - 4>(plane + 4, high);
    BL_UNROLL(4)
    for (int j = 0; j < 4; ++j) {
      if constexpr (Bits <= 4) {
        b.parts[j] = low[j];
      } else {
        swap_bits<4>(low[j], high[j], _mm256_set1_epi8(15));
        by_word(low[j], high[j]);
        b.parts[2 * j] = low[j], b.parts[2 * j + 1] = high[j];
      }
    }
  }

  BL_AVX2_INLINE static held_table hold(const shuffle_table& t) {
    static_assert(tables == 1, "two tables and the sums of two rows are more than the registers");
    held_table h = {entries(t.low[0]), entries(t.high[0])};
    as_written(h.low), as_written(h.high);
    return h;
  }

  /// A quarter of the second half: the values of register `J` of each word.
  /// @tparam Table held_table or shuffle_table
  template <int J, class Table>
  BL_AVX2_INLINE static void look_up(half_chunk& c, const block& b, const Table& t) {
    __m256i first, second;
    if constexpr (Bits <= 4) {
      const __m256i nibble = _mm256_set1_epi8(15);
      first = b.parts[J];
      second = _mm256_srli_epi16(first, 4);
      if constexpr (Bits == 4) {  // of 3 bits bit 7 is zero already, bits 4 to 6 do not matter
        first = _mm256_and_si256(first, nibble);
        second = _mm256_and_si256(second, nibble);
      }
      by_word(first, second);
    } else {
      first = b.parts[2 * J], second = b.parts[2 * J + 1];
    }
    __m256i first_high, second_high;
    look_up(t, first, first_high, second, second_high);
    std::uint16_t* out = c.values + half_at(0, J);
    store(out, _mm256_unpacklo_epi8(first, first_high));                    // words 0 and 4
    store(out + half_at(1, 0), _mm256_unpackhi_epi8(first, first_high));    // 1 and 5
    store(out + half_at(2, 0), _mm256_unpacklo_epi8(second, second_high));  // 2 and 6
    store(out + half_at(3, 0), _mm256_unpackhi_epi8(second, second_high));  // 3 and 7
  }

  /// Register `j` (0..3) of the 32 weights of word `w` of the chunk, crossed.
  template <int J>
  BL_AVX2_INLINE static __m256 value(const chunk& c, int w, const table& t) {
    if constexpr (How == avx2_lookup::permute) {
      const std::uint32_t* q = c.words + w;
      if constexpr (Bits == 1) return pick<J>(q, t);  // the bit above selects an equal value
      return pick<J / 2 * 2>(q + J % 2 * 8, t);
    } else if constexpr (How == avx2_lookup::entry) {
      return pick(c.codes[codes_at(w, J)], t);
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
  static constexpr int codes_at(int w, int j) { return 8 * j + w % 4 / 2 * 4 + w / 4 * 2 + w % 2; }

  /// `count` words of each plane.
  BL_AVX2_INLINE static void load_planes(__m256i (&plane)[Bits], const row_planes& from, int word,
                                         int count) {
    if (count == words_at_once) {
      BL_UNROLL(8)
      for (int p = 0; p < Bits; ++p)
        plane[p] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from.plane[p] + word));
    } else {
      const __m256i wanted =
          _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
      BL_UNROLL(8)
      for (int p = 0; p < Bits; ++p)
        plane[p] =
            _mm256_maskload_epi32(reinterpret_cast<const int*>(from.plane[p] + word), wanted);
    }
  }

  /// Bytes of columns 8b + j and of columns 8b + 4 + j of eight words to those of both for words 0,
  /// 1, 4, 5 and for words 2, 3, 6, 7.
  BL_AVX2_INLINE static void by_word(__m256i& first, __m256i& second) {
    const __m256i low = _mm256_unpacklo_epi32(first, second);
    second = _mm256_unpackhi_epi32(first, second);
    first = low;
  }

  template <class Table>
  BL_AVX2_INLINE static void look_up_all(half_chunk& c, const block& b, const Table& t) {
    look_up<0>(c, b, t), look_up<1>(c, b, t), look_up<2>(c, b, t), look_up<3>(c, b, t);
  }
  BL_AVX2_INLINE static void look_up(const held_table& t, __m256i& a, __m256i& a_high, __m256i& b,
                                     __m256i& b_high) {
    a_high = _mm256_shuffle_epi8(t.high, a), b_high = _mm256_shuffle_epi8(t.high, b);
    a = _mm256_shuffle_epi8(t.low, a), b = _mm256_shuffle_epi8(t.low, b);
  }

  BL_AVX2_INLINE static void store(std::uint16_t* to, __m256i v) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), v);
  }
  BL_AVX2_INLINE static __m256i entries(const std::uint8_t (&bytes)[16]) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
  }

  // Codes to the low and the high bytes of their values, two registers together so that they share
  // the loads of the tables. A shuffle gives zero where bit 7 of the index is set, so that with an
  // index of code - 16 * i table i answers for codes from 16 * i on (up to 127): as a table holds
  // the difference to the one before, the xor of all answers is the value.
  BL_AVX2_INLINE static void look_up(const shuffle_table& t, __m256i& a, __m256i& a_high,
                                     __m256i& b, __m256i& b_high) {
    const __m256i sixteen = _mm256_set1_epi8(16);
    __m256i a_index = a, b_index = b;
    BL_UNROLL(8)
    for (int i = 0; i < tables; ++i) {
      const __m256i low = entries(t.low[i]), high = entries(t.high[i]);
      const __m256i a0 = _mm256_shuffle_epi8(low, a_index), a1 = _mm256_shuffle_epi8(high, a_index),
                    b0 = _mm256_shuffle_epi8(low, b_index), b1 = _mm256_shuffle_epi8(high, b_index);
      a = i == 0 ? a0 : _mm256_xor_si256(a, a0);
      a_high = i == 0 ? a1 : _mm256_xor_si256(a_high, a1);
      b = i == 0 ? b0 : _mm256_xor_si256(b, b0);
      b_high = i == 0 ? b1 : _mm256_xor_si256(b_high, b1);
      as_written(a), as_written(a_high), as_written(b), as_written(b_high);
      a_index = _mm256_sub_epi8(a_index, sixteen);
      b_index = _mm256_sub_epi8(b_index, sixteen);
      as_written(a_index), as_written(b_index);
    }
  }

  // Eight codes to floats. The barriers keep the two bytes of an extraction in parts of one
  // register, which costs one step each; left alone, GCC shifts all eight out of copies.
  BL_AVX2_INLINE static __m256 pick(std::uint64_t codes, const entry_table& t) {
    __m128i four[2];
    BL_UNROLL(2)
    for (int h = 0; h < 2; ++h) {
      std::uint64_t i, k;
      next_two(codes, i, k);
      four[h] = _mm_cvtsi32_si128(static_cast<int>(t.values[i]));
      four[h] = _mm_insert_epi32(four[h], static_cast<int>(t.values[k]), 1);
      next_two(codes, i, k);
      four[h] = _mm_insert_epi32(four[h], static_cast<int>(t.values[i]), 2);
      four[h] = _mm_insert_epi32(four[h], static_cast<int>(t.values[k]), 3);
    }
    return _mm256_castsi256_ps(
        _mm256_inserti128_si256(_mm256_castsi128_si256(four[0]), four[1], 1));
  }
  BL_AVX2_INLINE static void next_two(std::uint64_t& codes, std::uint64_t& i, std::uint64_t& k) {
    i = codes & 0xff, k = codes >> 8 & 0xff;
    asm volatile("" : "+r"(i), "+r"(k));
    codes >>= 16;
    asm volatile("" : "+Q"(codes));
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
