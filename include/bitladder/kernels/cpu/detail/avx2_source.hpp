// SPDX-License-Identifier: MIT
// Stored weights, bitplanes or dense, as AVX2 code for batches reads them: rows of floats, or the
// registers of a word at the places where a product's tile wants them. Tested by
// tests/kernels/cpu/gemm_test.cpp and dequantize_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/kernels/cpu/detail/avx2_decoder.hpp>
#include <bitladder/kernels/cpu/detail/avx2_gemv.hpp>
#include <bitladder/kernels/cpu/detail/avx2_lanes.hpp>
#include <bitladder/kernels/cpu/detail/scalar.hpp>
#include <bitladder/kernels/cpu/isa.hpp>
#include <bitladder/kernels/cpu/order.hpp>

#if BL_HAS_AVX2
#include <immintrin.h>

#include <cstddef>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

/// Where the four registers of each word of a row go: register j of the word `word` from the first
/// to out + j * register_stride + word * word_stride.
struct word_places {
  float* out;
  std::size_t register_stride;
  std::size_t word_stride;

  BL_AVX2_INLINE void store(__m256 v0, __m256 v1, __m256 v2, __m256 v3) const {
    _mm256_store_ps(out, v0);
    _mm256_store_ps(out + register_stride, v1);
    _mm256_store_ps(out + 2 * register_stride, v2);
    _mm256_store_ps(out + 3 * register_stride, v3);
  }
};

/// The four registers of 32 floats.
BL_AVX2_INLINE void load_word(const float* from, __m256& v0, __m256& v1, __m256& v2, __m256& v3) {
  v0 = _mm256_loadu_ps(from), v1 = _mm256_loadu_ps(from + 8);
  v2 = _mm256_loadu_ps(from + 16), v3 = _mm256_loadu_ps(from + 24);
}

/// Bitplanes with the tables of one precision.
template <int Bits>
struct bitplane_source {
  bitplane_view w;
  codebook_view tables;

  /// Whether `place` puts words in the crossed arrangement of avx2_lanes.hpp.
  static constexpr bool crossed = true;
  int cols() const { return w.cols(); }

  /// Columns [begin, end) of a row in natural arrangement, as whole words, padded with the padding
  /// weight.
  BL_AVX2 void decode(int row, int begin, int end, float* out) const {
    if (!groups_are_whole_words(w, tables))
      decode_scalar<Bits>(w, tables, row, begin, end, out);
    else
      each_word<false>(row, begin / 32, (end + 31) / 32, {out, 8, 32});
    for (int c = end; c % 32 != 0; ++c) out[c - begin] = padding_weight;
  }

  /// Words [begin, end) of a row, crossed; the lanes beyond the last column get the padding weight.
  BL_AVX2 void place(int row, int begin, int end, word_places to) const {
    const int whole = groups_are_whole_words(w, tables) ? w.cols() / 32 : 0;
    const int stop = end < whole ? end : whole;
    if (begin < stop) {
      each_word<true>(row, begin, stop, to);
      to.out += static_cast<std::size_t>(stop - begin) * to.word_stride;
      begin = stop;
    }
    for (; begin < end; ++begin, to.out += to.word_stride) {
      alignas(32) float natural[32];
      const int last = begin * 32 + 32 < w.cols() ? begin * 32 + 32 : w.cols();
      decode(row, begin * 32, last, natural);
      __m256 v0, v1, v2, v3;
      load_word(natural, v0, v1, v2, v3);
      cross(v0, v1, v2, v3);
      to.store(v0, v1, v2, v3);
    }
  }

 private:
  template <bool Crossed>
  BL_AVX2 void each_word(int row, int begin, int end, word_places to) const {
    using decoder = avx2_decoder<Bits>;
    const int group_words = tables.groups() > 1 ? w.cols() / tables.groups() / 32 : end;
    for (int c = begin; c < end;) {
      const int group = c / group_words, group_end = (group + 1) * group_words;
      typename decoder::table table;
      decoder::load(table, tables.table(row, group));
      for (const int stop = end < group_end ? end : group_end; c < stop;) {
        const int left = stop - c;
        const int count = left < decoder::words_at_once ? left : decoder::words_at_once;
        typename decoder::chunk chunk;
        decoder::load(chunk, table, w, row, c, count);
        for (int k = 0; k < count; ++k, to.out += to.word_stride) {
          __m256 v0, v1, v2, v3;
          decoder::values(chunk, k, table, v0, v1, v2, v3);
          if constexpr (!Crossed) cross(v0, v1, v2, v3);
          // `decode` writes to memory of any alignment.
          _mm256_storeu_ps(to.out, v0);
          _mm256_storeu_ps(to.out + to.register_stride, v1);
          _mm256_storeu_ps(to.out + 2 * to.register_stride, v2);
          _mm256_storeu_ps(to.out + 3 * to.register_stride, v3);
        }
        c += count;
      }
    }
  }
};

/// Rows of float, fp16_t or bf16_t.
template <class T>
struct dense_source {
  matrix_view<const T> w;

  static constexpr bool crossed = false;
  int cols() const { return w.cols(); }

  /// Words [begin, end) of a row in natural arrangement; the lanes beyond the last column get the
  /// padding weight.
  BL_AVX2 void place(int row, int begin, int end, word_places to) const {
    const T* from = w.row(row);
    for (; begin < end; ++begin, to.out += to.word_stride) {
      const int c = begin * 32;
      if (c + 32 <= w.cols()) {
        to.store(load_8(from + c), load_8(from + c + 8), load_8(from + c + 16),
                 load_8(from + c + 24));
        continue;
      }
      alignas(32) float last[32];
      for (float& value : last) value = padding_weight;
      widen(from + c, w.cols() - c, last);
      __m256 v0, v1, v2, v3;
      load_word(last, v0, v1, v2, v3);
      to.store(v0, v1, v2, v3);
    }
  }
};

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
#endif
