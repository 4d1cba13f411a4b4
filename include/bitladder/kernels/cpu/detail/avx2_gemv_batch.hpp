// SPDX-License-Identifier: MIT
// Two or three vectors times many rows of bitplanes with AVX2: as gemv, each weight is multiplied
// where it was decoded, and nothing is written between the planes and the sums. Tested by
// tests/kernels/cpu/gemm_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/kernels/cpu/detail/avx2_decoder.hpp>
#include <bitladder/kernels/cpu/detail/avx2_gemv.hpp>
#include <bitladder/kernels/cpu/detail/avx2_lanes.hpp>
#include <bitladder/kernels/cpu/isa.hpp>
#include <bitladder/kernels/cpu/order.hpp>

#if BL_HAS_AVX2
#include <immintrin.h>

#include <cstddef>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

/// Adds the products of `Words` words of a chunk, from word `First` on, to the lanes of `Count`
/// vectors. The 4 * Count sums leave registers for one weight vector at a time.
/// @param x [words, Count, 32], crossed, from word 0 of the chunk on
template <int First, int Words, class Decoder, int Count>
BL_AVX2_INLINE void add_words_batch(const typename Decoder::chunk& c,
                                    const typename Decoder::table& t, const float* x,
                                    __m256 (&sum)[Count][4]) {
  if constexpr (Words > 0) {
    const float* at = x + 32 * Count * First;
    __m256 v = Decoder::template value<0>(c, First, t);
    BL_UNROLL(4)
    for (int i = 0; i < Count; ++i)
      sum[i][0] = _mm256_fmadd_ps(v, _mm256_load_ps(at + 32 * i), sum[i][0]);
    v = Decoder::template value<1>(c, First, t);
    BL_UNROLL(4)
    for (int i = 0; i < Count; ++i)
      sum[i][1] = _mm256_fmadd_ps(v, _mm256_load_ps(at + 32 * i + 8), sum[i][1]);
    v = Decoder::template value<2>(c, First, t);
    BL_UNROLL(4)
    for (int i = 0; i < Count; ++i)
      sum[i][2] = _mm256_fmadd_ps(v, _mm256_load_ps(at + 32 * i + 16), sum[i][2]);
    v = Decoder::template value<3>(c, First, t);
    BL_UNROLL(4)
    for (int i = 0; i < Count; ++i)
      sum[i][3] = _mm256_fmadd_ps(v, _mm256_load_ps(at + 32 * i + 24), sum[i][3]);
    add_words_batch<First + 1, Words - 1, Decoder>(c, t, x, sum);
  }
}

/// One row times `Count` vectors. Column groups are whole words.
/// @param x [words, Count, 32], crossed, +0 beyond the last column
template <int Bits, int Count>
BL_AVX2_INLINE void gemv_batch_row_avx2(const bitplane_view& w, const codebook_view& tables,
                                        const float* x, const matrix_view<float>& y, int row) {
  using decoder = avx2_decoder<Bits>;
  constexpr int at_once = decoder::words_at_once;
  const int words = w.layout().words(), whole_words = w.cols() / 32;
  const int group_words = words / tables.groups();
  __m256 sum[Count][4];
  BL_UNROLL(4)
  for (int i = 0; i < Count; ++i) BL_UNROLL(4)
  for (int j = 0; j < 4; ++j) sum[i][j] = _mm256_setzero_ps();

  for (int word = 0, group = 0; group < tables.groups(); ++group) {
    typename decoder::table table;
    decoder::load(table, tables.table(row, group));
    const int end = word + group_words, last = end < whole_words ? end : whole_words;
    for (; word + at_once <= last; word += at_once) {
      typename decoder::chunk chunk;
      decoder::load(chunk, table, w, row, word, at_once);
      add_words_batch<0, at_once, decoder>(chunk, table,
                                           x + static_cast<std::size_t>(word) * (32 * Count), sum);
    }
    if (word == end) continue;
    typename decoder::chunk chunk;
    decoder::load(chunk, table, w, row, word, end - word);
    for (int k = 0; word < end; ++k, ++word) {
      const float* xs = x + static_cast<std::size_t>(word) * (32 * Count);
      __m256 v[4];
      decoder::values(chunk, k, table, v[0], v[1], v[2], v[3]);
      if (word >= whole_words) {  // lanes beyond the end get the padding weight
        alignas(32) float keep[32];
        for (int l = 0; l < 32; ++l) keep[l] = l < w.cols() % 32 ? -0.0f : 0.0f;
        cross_vector(keep, 32, keep);
        for (int j = 0; j < 4; ++j)
          v[j] =
              _mm256_blendv_ps(_mm256_set1_ps(padding_weight), v[j], _mm256_load_ps(keep + 8 * j));
      }
      BL_UNROLL(4)
      for (int i = 0; i < Count; ++i) BL_UNROLL(4)
      for (int j = 0; j < 4; ++j)
        sum[i][j] = _mm256_fmadd_ps(v[j], _mm256_load_ps(xs + 32 * i + 8 * j), sum[i][j]);
    }
  }
  BL_UNROLL(4)
  for (int i = 0; i < Count; ++i) {
    cross(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    y(i, row) = add_8(add_to_8(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
  }
}

/// Rows [begin, end). x as above; y [Count, rows]
template <int Bits, int Count>
BL_AVX2 void gemv_batch_rows_avx2(const bitplane_view& w, const codebook_view& tables,
                                  const float* x, const matrix_view<float>& y, int begin, int end) {
  for (int r = begin; r < end; ++r) gemv_batch_row_avx2<Bits, Count>(w, tables, x, y, r);
}

/// The `Count` rows of x as gemv_batch_rows_avx2 reads them.
/// @param out Count * padded(x.cols()) floats, 32-byte aligned
template <int Count>
void cross_batch(const matrix_view<const float>& x, float* out) {
  for (int c = 0; c < x.cols(); c += 32)
    for (int i = 0; i < Count; ++i, out += 32)
      cross_vector(x.row(i) + c, x.cols() - c < 32 ? x.cols() - c : 32, out);
}

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
#endif
