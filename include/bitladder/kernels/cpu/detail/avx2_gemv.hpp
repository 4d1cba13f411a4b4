// SPDX-License-Identifier: MIT
// One vector times many rows with AVX2: nothing is written between the planes and the sums. Tested
// by tests/kernels/cpu/gemv_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/kernels/cpu/detail/avx2_decoder.hpp>
#include <bitladder/kernels/cpu/detail/avx2_lanes.hpp>
#include <bitladder/kernels/cpu/isa.hpp>
#include <bitladder/kernels/cpu/order.hpp>

#if BL_HAS_AVX2
#include <immintrin.h>

#include <cstddef>
#include <cstring>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

/// x as the decoder's weights come: crossed, in whole words, +0 beyond the last column.
/// @param out padded(count) floats, 32-byte aligned
BL_AVX2 inline void cross_vector(const float* x, int count, float* out) {
  for (int c = 0; c < count; c += 32) {
    alignas(32) float last[32] = {};
    const float* from = x + c;
    if (count - c < 32) {
      std::memcpy(last, from, sizeof(float) * static_cast<std::size_t>(count - c));
      from = last;
    }
    __m256 v0 = _mm256_loadu_ps(from), v1 = _mm256_loadu_ps(from + 8),
           v2 = _mm256_loadu_ps(from + 16), v3 = _mm256_loadu_ps(from + 24);
    cross(v0, v1, v2, v3);
    _mm256_store_ps(out + c, v0);
    _mm256_store_ps(out + c + 8, v1);
    _mm256_store_ps(out + c + 16, v2);
    _mm256_store_ps(out + c + 24, v3);
  }
}

/// Adds the products of register `J` of word `Word` of a chunk.
/// @param x the crossed x of the word
template <int Word, int J, class Decoder, int Rows>
BL_AVX2_INLINE void add_registers(const typename Decoder::chunk (&c)[Rows],
                                  const typename Decoder::table (&t)[Rows], const float* x,
                                  __m256 (&sum)[Rows][4]) {
  __m256 xs = _mm256_load_ps(x + 8 * J);
  asm("" : "+x"(xs));  // loaded once: the loads are what an 8-word chunk is limited by
  BL_UNROLL(2)
  for (int i = 0; i < Rows; ++i)
    sum[i][J] = _mm256_fmadd_ps(Decoder::template value<J>(c[i], Word, t[i]), xs, sum[i][J]);
}

/// Adds the products of `Count` words of a chunk, from word `First` on, to the lanes of the rows.
/// @param xs the crossed x of word 0 of the chunk
template <int First, int Count, class Decoder, int Rows>
BL_AVX2_INLINE void add_words(const typename Decoder::chunk (&c)[Rows],
                              const typename Decoder::table (&t)[Rows], const float* xs,
                              __m256 (&sum)[Rows][4]) {
  if constexpr (Count > 0) {
    add_registers<First, 0, Decoder>(c, t, xs + 32 * First, sum);
    add_registers<First, 1, Decoder>(c, t, xs + 32 * First, sum);
    add_registers<First, 2, Decoder>(c, t, xs + 32 * First, sum);
    add_registers<First, 3, Decoder>(c, t, xs + 32 * First, sum);
    add_words<First + 1, Count - 1, Decoder>(c, t, xs, sum);
  }
}

/// The products of one chunk, `now`, and between them the lookups of the next, which starts at
/// `word`: one after the other, the processor overlaps them less. Step `Step` of the 4 * Rows is
/// the products of some words and the lookups of one register.
/// @param block, held the bits and the table of the row that is being looked up
template <int Step, class Decoder, int Rows>
BL_AVX2_INLINE void add_and_load(const typename Decoder::chunk (&now)[Rows],
                                 typename Decoder::chunk (&next)[Rows],
                                 const typename Decoder::table (&t)[Rows],
                                 const typename Decoder::row_planes (&from)[Rows], int word,
                                 const float* xs, typename Decoder::block& block,
                                 typename Decoder::held_table& held, __m256 (&sum)[Rows][4]) {
  if constexpr (Step < 4 * Rows) {
    constexpr int words = Decoder::words_at_once / (4 * Rows), r = Step / 4, j = Step % 4;
    if constexpr (j == 0) {
      Decoder::transpose(block, from[r], word, Decoder::words_at_once);
      in_memory(block);
      held = Decoder::hold(t[r]);
    }
    add_words<Step * words, words, Decoder>(now, t, xs, sum);
    in_memory(block);
    Decoder::template look_up<j>(next[r], block, held);
    in_memory(next);
    add_and_load<Step + 1, Decoder>(now, next, t, from, word, xs, block, held, sum);
  }
}

/// `Rows` rows at once. Column groups are whole words.
/// @param crossed x after cross_vector
template <int Bits, int Rows>
BL_AVX2_INLINE void gemv_block_avx2(const bitplane_view& w, const codebook_view& tables,
                                    const float* crossed, float* y, int row) {
  using decoder = avx2_decoder<Bits>;
  constexpr int at_once = decoder::words_at_once;
  const int groups = tables.groups(), group_cols = w.cols() / groups;
  const int whole_words = groups > 1 ? w.cols() / 32 : group_cols / 32, words = w.layout().words();
  const int group_words = groups > 1 ? group_cols / 32 : words;
  __m256 sum[Rows][4];
  BL_UNROLL(2)
  for (int i = 0; i < Rows; ++i) BL_UNROLL(4)
  for (int j = 0; j < 4; ++j) sum[i][j] = _mm256_setzero_ps();

  for (int group = 0; group < groups; ++group) {
    typename decoder::table table[Rows];
    for (int i = 0; i < Rows; ++i) decoder::load(table[i], tables.table(row + i, group));
    int word = group * group_words;
    const int end = word + group_words, last = end < whole_words ? end : whole_words;
    if constexpr (decoder::in_steps) {
      if (word + at_once <= last) {
        typename decoder::chunk chunk[2][Rows];
        typename decoder::block block;
        typename decoder::held_table held;
        typename decoder::row_planes from[Rows];
        BL_UNROLL(2)
        for (int i = 0; i < Rows; ++i) {
          from[i] = decoder::at(w, row + i);
          decoder::load(chunk[0][i], table[i], w, row + i, word, at_once);
        }
        const float* xs = crossed + 32 * static_cast<std::ptrdiff_t>(word);
        int now = 0;
        for (; word + 2 * at_once <= last; word += at_once, xs += 32 * at_once, now ^= 1)
          add_and_load<0, decoder>(chunk[now], chunk[now ^ 1], table, from, word + at_once, xs,
                                   block, held, sum);
        add_words<0, at_once, decoder>(chunk[now], table, xs, sum);
        word += at_once;
      }
    }
    for (; decoder::whole_chunks && !decoder::in_steps && word + at_once <= last; word += at_once) {
      const float* xs = crossed + 32 * static_cast<std::ptrdiff_t>(word);
      typename decoder::chunk chunk[Rows];
      BL_UNROLL(2)
      for (int i = 0; i < Rows; ++i) decoder::load(chunk[i], table[i], w, row + i, word, at_once);
      add_words<0, at_once, decoder>(chunk, table, xs, sum);
    }
    for (; word < end; word += at_once) {
      const int count = end - word < at_once ? end - word : at_once;
      typename decoder::chunk chunk[Rows];
      BL_UNROLL(2)
      for (int i = 0; i < Rows; ++i) decoder::load(chunk[i], table[i], w, row + i, word, count);
      int k = 0;
      for (; k < count && word + k < last; ++k) {
        const float* xs = crossed + 32 * static_cast<std::ptrdiff_t>(word + k);
        BL_UNROLL(2)
        for (int i = 0; i < Rows; ++i) {
          __m256 v[4];
          decoder::values(chunk[i], k, table[i], v[0], v[1], v[2], v[3]);
          BL_UNROLL(4)
          for (int j = 0; j < 4; ++j)
            sum[i][j] = _mm256_fmadd_ps(v[j], _mm256_load_ps(xs + 8 * j), sum[i][j]);
        }
      }
      if (k == count) continue;
      // The last word of a ragged row: lanes beyond the end get the padding weight.
      const float* xs = crossed + 32 * static_cast<std::ptrdiff_t>(word + k);
      alignas(32) float keep[32];  // sign bit set in the lanes that count, natural arrangement
      for (int l = 0; l < 32; ++l) keep[l] = l < w.cols() % 32 ? -0.0f : 0.0f;
      cross_vector(keep, 32, keep);
      BL_UNROLL(2)
      for (int i = 0; i < Rows; ++i) {
        __m256 v[4];
        decoder::values(chunk[i], k, table[i], v[0], v[1], v[2], v[3]);
        BL_UNROLL(4)
        for (int j = 0; j < 4; ++j) {
          const __m256 kept =
              _mm256_blendv_ps(_mm256_set1_ps(padding_weight), v[j], _mm256_load_ps(keep + 8 * j));
          sum[i][j] = _mm256_fmadd_ps(kept, _mm256_load_ps(xs + 8 * j), sum[i][j]);
        }
      }
    }
  }
  BL_UNROLL(2)
  for (int i = 0; i < Rows; ++i) {
    cross(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    y[row + i] = add_8(add_to_8(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
  }
}

/// Rows [begin, end).
template <int Bits>
BL_AVX2 void gemv_rows_avx2(const bitplane_view& w, const codebook_view& tables,
                            const float* crossed, float* y, int begin, int end) {
  // Two rows share the loads of x and fill the gaps between dependent sums.
  constexpr int rows = 2;
  int r = begin;
  for (; r + rows <= end; r += rows) gemv_block_avx2<Bits, rows>(w, tables, crossed, y, r);
  for (; r < end; ++r) gemv_block_avx2<Bits, 1>(w, tables, crossed, y, r);
}

BL_AVX2_INLINE __m256 load_8(const float* p) { return _mm256_loadu_ps(p); }
BL_AVX2_INLINE __m256 load_8(const fp16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
BL_AVX2_INLINE __m256 load_8(const bf16_t* p) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/// Columns [begin, end) of a dense row to floats.
template <class T>
BL_AVX2_INLINE void widen(const T* from, int count, float* out) {
  int c = 0;
  for (; c + 8 <= count; c += 8) _mm256_storeu_ps(out + c, load_8(from + c));
  for (; c < count; ++c) out[c] = to_float(from[c]);
}

/// How far ahead of its use a row of 16-bit floats is asked for: the processor's own prefetching
/// stops at the end of a 4 KB page. On a Zen 3 core a head of 49152 x 576 takes 3.8 ms instead of
/// 4.9, and 4096 x 4096 comes at 20 to 21 GB/s instead of 18 to 20. Rows of fp32 gain as much if
/// they are short and lose as much if they are long; planes are decoded too slowly to gain.
inline constexpr std::size_t half_bytes_ahead = 4096;

template <class T, int Rows>
BL_AVX2_INLINE void gemv_block_avx2(const matrix_view<const T>& w, const float* x, float* y,
                                    int row) {
  const int cols = w.cols(), whole = cols / 32 * 32;
  __m256 sum[Rows][4];
  BL_UNROLL(2)
  for (int i = 0; i < Rows; ++i) BL_UNROLL(4)
  for (int j = 0; j < 4; ++j) sum[i][j] = _mm256_setzero_ps();
  const T* from[Rows];
  for (int i = 0; i < Rows; ++i) from[i] = w.row(row + i);
  for (int c = 0; c < whole; c += 32) {
    if constexpr (sizeof(T) == 2) {  // 32 of them are a cache line
      BL_UNROLL(2)
      for (int i = 0; i < Rows; ++i)
        __builtin_prefetch(reinterpret_cast<const char*>(from[i] + c) + half_bytes_ahead);
    }
    const __m256 x0 = _mm256_loadu_ps(x + c), x1 = _mm256_loadu_ps(x + c + 8),
                 x2 = _mm256_loadu_ps(x + c + 16), x3 = _mm256_loadu_ps(x + c + 24);
    BL_UNROLL(2)
    for (int i = 0; i < Rows; ++i) {
      sum[i][0] = _mm256_fmadd_ps(load_8(from[i] + c), x0, sum[i][0]);
      sum[i][1] = _mm256_fmadd_ps(load_8(from[i] + c + 8), x1, sum[i][1]);
      sum[i][2] = _mm256_fmadd_ps(load_8(from[i] + c + 16), x2, sum[i][2]);
      sum[i][3] = _mm256_fmadd_ps(load_8(from[i] + c + 24), x3, sum[i][3]);
    }
  }
  if (whole < cols) {
    alignas(32) float last_x[32] = {};
    std::memcpy(last_x, x + whole, sizeof(float) * static_cast<std::size_t>(cols - whole));
    for (int i = 0; i < Rows; ++i) {
      alignas(32) float last[32];
      for (float& value : last) value = padding_weight;
      widen(from[i] + whole, cols - whole, last);
      for (int j = 0; j < 4; ++j)
        sum[i][j] = _mm256_fmadd_ps(_mm256_load_ps(last + 8 * j), _mm256_load_ps(last_x + 8 * j),
                                    sum[i][j]);
    }
  }
  BL_UNROLL(2)
  for (int i = 0; i < Rows; ++i)
    y[row + i] = add_8(add_to_8(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
}

/// Rows [begin, end) of a dense matrix. x: [cols], natural
template <class T>
BL_AVX2 void gemv_rows_avx2(const matrix_view<const T>& w, const float* x, float* y, int begin,
                            int end) {
  int r = begin;
  for (; r + 2 <= end; r += 2) gemv_block_avx2<T, 2>(w, x, y, r);
  for (; r < end; ++r) gemv_block_avx2<T, 1>(w, x, y, r);
}

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
#endif
