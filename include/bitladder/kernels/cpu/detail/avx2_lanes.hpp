// SPDX-License-Identifier: MIT
// The 32 lanes of order.hpp as four AVX2 registers, in one of two arrangements. Natural: register j
// holds lanes 8j .. 8j+7. Crossed: in each half h of the registers the 4 x 4 square (register j,
// element b) is transposed, so that register j, half h, element b is lane 8b + 4h + j; that is how
// codes fall out of bitplanes. One transposition leads from either to the other. Tested through
// tests/kernels/cpu/gemv_test.cpp.
#pragma once

#include <bitladder/kernels/cpu/isa.hpp>

#if BL_HAS_AVX2
#include <immintrin.h>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

/// Natural to crossed, and crossed to natural.
BL_AVX2_INLINE void cross(__m256& a, __m256& b, __m256& c, __m256& d) {
  const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  a = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
  b = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
  c = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
  d = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
}

/// The first two steps of the tree, + 16 and + 8, on naturally arranged lanes: 8 are left.
BL_AVX2_INLINE __m256 add_to_8(__m256 a, __m256 b, __m256 c, __m256 d) {
  return _mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d));
}

/// The rest of the tree: + 4, + 2, + 1.
BL_AVX2_INLINE float add_8(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/// The whole tree for eight dot products at once: row i of `sums` gives element i.
/// @param sums [8, 32], natural, 32-byte aligned
BL_AVX2_INLINE __m256 add_8_rows(const float* sums) {
  __m256 eight[8];
  for (int i = 0; i < 8; ++i) {
    const float* row = sums + 32 * i;
    eight[i] = add_to_8(_mm256_load_ps(row), _mm256_load_ps(row + 8), _mm256_load_ps(row + 16),
                        _mm256_load_ps(row + 24));
  }
  // + 4: the halves of two rows side by side, so that one addition serves both.
  __m256 four[4];
  for (int i = 0; i < 4; ++i)
    four[i] = _mm256_add_ps(_mm256_permute2f128_ps(eight[i], eight[i + 4], 0x20),
                            _mm256_permute2f128_ps(eight[i], eight[i + 4], 0x31));
  // four[i]: elements 0..3 of rows i and i + 4, one in each half. + 2 and + 1 stay in the halves.
  const __m256 two_a = _mm256_add_ps(_mm256_shuffle_ps(four[0], four[1], 0x44),
                                     _mm256_shuffle_ps(four[0], four[1], 0xee));
  const __m256 two_b = _mm256_add_ps(_mm256_shuffle_ps(four[2], four[3], 0x44),
                                     _mm256_shuffle_ps(four[2], four[3], 0xee));
  return _mm256_add_ps(_mm256_shuffle_ps(two_a, two_b, 0x88),
                       _mm256_shuffle_ps(two_a, two_b, 0xdd));
}

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
#endif
