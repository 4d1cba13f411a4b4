// SPDX-License-Identifier: MIT
// One vector times many rows of bitplanes with AVX-512. Tested by
// tests/kernels/cpu/avx512_emulated_test.cpp, and on machines with AVX-512 by gemv_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/kernels/cpu/detail/avx2_lanes.hpp>
#include <bitladder/kernels/cpu/detail/avx512_decoder.hpp>
#include <bitladder/kernels/cpu/isa.hpp>
#include <bitladder/kernels/cpu/order.hpp>

#if BL_HAS_AVX2
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

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

/// The decoder of a precision.
template <int Bits, isa Use>
using avx512_decoder = std::conditional_t<
    Bits <= 4, avx512_nibbles<(Bits < 4 ? Bits : 4)>,
    std::conditional_t<Use == isa::avx512_vbmi, avx512_bytes<(Bits > 5 ? Bits : 5)>,
                       avx512_shorts<(Bits > 5 ? Bits : 5)>>>;

/// Natural to paired arrangement (see avx512_nibbles).
BL_AVX512_INLINE void pair(__m512& a, __m512& b) {
  const __m512d p = _mm512_castps_pd(a), q = _mm512_castps_pd(b);
  const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14),
                odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
  a = _mm512_castpd_ps(_mm512_permutex2var_pd(p, even, q));
  b = _mm512_castpd_ps(_mm512_permutex2var_pd(p, odd, q));
}

/// The tree of order.hpp from + 8 on, for lanes l + lane[l + 16] in paired arrangement: the first
/// eight of `a` are lanes 0, 1, 4, 5 ... 12, 13, of `b` 2, 3, 6, 7 ... 14, 15.
BL_AVX512_INLINE float add_paired(__m256 a, __m256 b) {
  const __m128 p = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  // + 4: lanes 0, 1 of p's first half and 4, 5 of its second.
  const __m128 four = _mm_add_ps(_mm_movelh_ps(p, q), _mm_movehl_ps(q, p));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/// x as a decoder's weights come, in whole words, +0 beyond the last column.
/// @param out padded(count) floats, 64-byte aligned
template <class Decoder>
BL_AVX512 void arrange_vector(const float* x, int count, float* out) {
  for (int c = 0; c < count; c += 32) {
    const int left = count - c;
    const std::uint32_t here = left < 32 ? (1u << left) - 1 : ~0u;
    __m512 a = _mm512_maskz_loadu_ps(static_cast<__mmask16>(here), x + c);
    __m512 b = _mm512_maskz_loadu_ps(static_cast<__mmask16>(here >> 16), x + c + 16);
    if constexpr (Decoder::paired) pair(a, b);
    _mm512_store_ps(out + c, a);
    _mm512_store_ps(out + c + 16, b);
  }
}

/// Which elements of the two registers are among the first `count` (1..31) lanes of a word.
template <class Decoder>
constexpr std::uint32_t lanes_before(int count) {
  std::uint32_t mask = 0;
  for (int lane = 0; lane < count; ++lane) {
    const int element = Decoder::paired ? lane % 4 / 2 * 16 + lane / 4 * 2 + lane % 2 : lane;
    mask |= 1u << element;
  }
  return mask;
}

/// `Rows` rows at once. Column groups are whole words.
/// @param arranged x after arrange_vector
template <class Decoder, int Rows>
BL_AVX512 void gemv_block_avx512(const bitplane_view& w, const codebook_view& tables,
                                 const float* arranged, float* y, int row) {
  const int groups = tables.groups(), words = w.layout().words(), whole = w.cols() / 32;
  const int group_words = groups > 1 ? words / groups : words;
  __m512 sum[Rows][2];
  BL_UNROLL(4)
  for (int i = 0; i < Rows; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();

  for (int group = 0; group < groups; ++group) {
    typename Decoder::table table[Rows];
    for (int i = 0; i < Rows; ++i) Decoder::load(table[i], tables.table(row + i, group));
    const int end = (group + 1) * group_words;
    for (int word = group * group_words; word < end; word += avx512_words) {
      const int count = end - word < avx512_words ? end - word : avx512_words;
      typename Decoder::chunk chunk[Rows];
      BL_UNROLL(4)
      for (int i = 0; i < Rows; ++i) Decoder::load(chunk[i], table[i], w, row + i, word, count);
      const int full = whole - word < count ? whole - word : count;
      for (int k = 0; k < full; ++k) {
        const float* xs = arranged + 32 * static_cast<std::ptrdiff_t>(word + k);
        const __m512 x0 = _mm512_load_ps(xs), x1 = _mm512_load_ps(xs + 16);
        BL_UNROLL(4)
        for (int i = 0; i < Rows; ++i) {
          __m512 v0, v1;
          Decoder::values(chunk[i], k, table[i], v0, v1);
          sum[i][0] = _mm512_fmadd_ps(v0, x0, sum[i][0]);
          sum[i][1] = _mm512_fmadd_ps(v1, x1, sum[i][1]);
        }
      }
      if (full == count) continue;
      // The last word of a ragged row: lanes beyond the end take no step.
      const float* xs = arranged + 32 * static_cast<std::ptrdiff_t>(word + full);
      const std::uint32_t here = lanes_before<Decoder>(w.cols() % 32);
      for (int i = 0; i < Rows; ++i) {
        __m512 v0, v1;
        Decoder::values(chunk[i], full, table[i], v0, v1);
        sum[i][0] =
            _mm512_mask3_fmadd_ps(v0, _mm512_load_ps(xs), sum[i][0], static_cast<__mmask16>(here));
        sum[i][1] = _mm512_mask3_fmadd_ps(v1, _mm512_load_ps(xs + 16), sum[i][1],
                                          static_cast<__mmask16>(here >> 16));
      }
    }
  }
  BL_UNROLL(4)
  for (int i = 0; i < Rows; ++i) {
    const __m512 a = sum[i][0], b = sum[i][1];
    if constexpr (Decoder::paired) {
      y[row + i] =
          add_paired(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)),
                     _mm256_add_ps(_mm512_castps512_ps256(b), _mm512_extractf32x8_ps(b, 1)));
    } else {
      const __m512 both = _mm512_add_ps(a, b);
      y[row + i] =
          add_8(_mm256_add_ps(_mm512_castps512_ps256(both), _mm512_extractf32x8_ps(both, 1)));
    }
  }
}

/// Rows [begin, end).
template <class Decoder>
void gemv_rows_avx512(const bitplane_view& w, const codebook_view& tables, const float* arranged,
                      float* y, int begin, int end) {
  constexpr int rows = Decoder::rows_at_once;
  int r = begin;
  for (; r + rows <= end; r += rows) gemv_block_avx512<Decoder, rows>(w, tables, arranged, y, r);
  for (; r < end; ++r) gemv_block_avx512<Decoder, 1>(w, tables, arranged, y, r);
}

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif
