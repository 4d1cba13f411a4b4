// SPDX-License-Identifier: MIT
// The outliers' part of a product (core/sparse_matrix.hpp), added to rows that the dense part has
// just filled, in the order that order.hpp gives. By the same thread right after them, since what
// the dense part has in place of the outliers is then still in its cache. Tested by
// tests/kernels/cpu/outliers_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/kernels/cpu/detail/avx2_lanes.hpp>
#include <bitladder/kernels/cpu/detail/scratch.hpp>
#include <bitladder/kernels/cpu/detail/split_rows.hpp>
#include <bitladder/kernels/cpu/isa.hpp>
#include <bitladder/kernels/cpu/order.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#if BL_HAS_AVX2
#include <immintrin.h>
#endif

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

/// w.code(row, col, Bits)
template <int Bits>
inline int code_in_planes(const bitplane_view& w, int row, int col) {
  const std::uint32_t* const first = w.row(0, row) + col / 32;
  const std::size_t plane = w.layout().plane_words();
  std::uint32_t words[Bits];
  for (int p = 0; p < Bits; ++p) words[p] = first[static_cast<std::size_t>(p) * plane];
  return code_at<Bits>(words, col % 32);
}

/// Calls `part(first, last, base)` for the outliers [first, last) of each column group of a row
/// that has any; `base` is what their common code means at `Bits` bits.
template <int Bits, class Part>
void for_outlier_groups(const bitplane_view& w, const codebook_view& tables, const sparse_view& o,
                        int row, const Part& part) {
  const std::int32_t* const columns = o.columns();
  for (int first = o.begin(row), end = o.end(row), last; first < end; first = last) {
    int group = 0;
    last = end;
    if (tables.groups() > 1) {
      const int group_cols = w.cols() / tables.groups();
      group = columns[first] / group_cols;
      last = static_cast<int>(
          std::lower_bound(columns + first, columns + end, (group + 1) * group_cols) - columns);
    }
    part(first, last,
         to_float(tables.table(row, group)[code_in_planes<Bits>(w, row, columns[first])]));
  }
}

/// value - base for each outlier of a row, then -0 up to a multiple of 8.
/// @return how many there are
template <int Bits>
int outlier_differences(const bitplane_view& w, const codebook_view& tables, const sparse_view& o,
                        int row, float* out) {
  const int begin = o.begin(row), count = o.end(row) - begin;
  for_outlier_groups<Bits>(w, tables, o, row, [&](int first, int last, float base) {
    for (int i = first; i < last; ++i) out[i - begin] = to_float(o.values()[i]) - base;
  });
  std::fill(out + count, out + (count + 7) / 8 * 8, padding_weight);
  return count;
}

/// @param differences as outlier_differences gives them
inline float outlier_sum_scalar(const float* differences, const std::int32_t* columns, int count,
                                const float* x) {
  float lane[outlier_lanes] = {};
  for (int i = 0; i < count; ++i)
    lane[i % outlier_lanes] = std::fma(differences[i], x[columns[i]], lane[i % outlier_lanes]);
  for (int half = outlier_lanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

#if BL_HAS_AVX2
/// All ones in the first `count` of 8 lanes, zeros in the others.
BL_AVX2_INLINE __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/// The next 8 of x at these columns, +0 in lanes that are masked out.
BL_AVX2_INLINE __m256 gather_x(const float* x, const std::int32_t* columns, __m256i mask) {
  return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), x, _mm256_maskload_epi32(columns, mask),
                                  _mm256_castsi256_ps(mask), 4);
}

BL_AVX2_INLINE float outlier_sum_avx2(const float* differences, const std::int32_t* columns,
                                      int count, const float* x) {
  __m256 sum = _mm256_setzero_ps();
  for (int i = 0; i < count; i += 8)
    sum = _mm256_fmadd_ps(_mm256_loadu_ps(differences + i),
                          gather_x(x, columns + i, first_lanes(count - i)), sum);
  return add_8(sum);
}

/// The same for outliers of one code, whose differences are made on the way. Light rows have about
/// ten outliers: no loops over what is left of 8, whose ends no processor foresees.
/// @param readable values that there are from `values` on, those of later rows included
BL_AVX2_INLINE float outlier_sum_avx2(const fp16_t* values, std::size_t readable, float base,
                                      const std::int32_t* columns, int count, const float* x) {
  const __m256 all = _mm256_set1_ps(base), padding = _mm256_set1_ps(padding_weight);
  __m256 sum = _mm256_setzero_ps();
  for (int i = 0; i < count; i += 8) {
    const std::size_t at = static_cast<std::size_t>(i);
    __m128i half;
    if (at + 8 <= readable) {
      half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + at));
    } else {
      fp16_t last[8] = {};
      std::copy(values + at, values + readable, last);
      half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(last));
    }
    const __m256i mask = first_lanes(count - i);
    const __m256 difference = _mm256_blendv_ps(padding, _mm256_sub_ps(_mm256_cvtph_ps(half), all),
                                               _mm256_castsi256_ps(mask));
    sum = _mm256_fmadd_ps(difference, gather_x(x, columns + i, mask), sum);
  }
  return add_8(sum);
}

template <int Bits>
BL_AVX2 void add_outlier_rows_avx2(const bitplane_view& w, const codebook_view& tables,
                                   const sparse_view& o, const matrix_view<const float>& x,
                                   const matrix_view<float>& y, int begin, int end,
                                   float* differences) {
  const std::int32_t* const columns = o.columns();
  const std::size_t all = static_cast<std::size_t>(o.count());
  for (int r = begin; r < end; ++r) {
    const int first = o.begin(r), count = o.end(r) - first;
    if (count == 0) continue;
    if (tables.groups() > 1) {
      outlier_differences<Bits>(w, tables, o, r, differences);
      for (int i = 0; i < x.rows(); ++i)
        y(i, r) += outlier_sum_avx2(differences, columns + first, count, x.row(i));
      continue;
    }
    const float base = _mm_cvtss_f32(_mm_cvtph_ps(
        _mm_cvtsi32_si128(tables.table(r)[code_in_planes<Bits>(w, r, columns[first])].bits)));
    for (int i = 0; i < x.rows(); ++i)
      y(i, r) += outlier_sum_avx2(o.values() + first, all - static_cast<std::size_t>(first), base,
                                  columns + first, count, x.row(i));
  }
}
#endif

/// y[i][r] += the outliers' part, for rows [begin, end) of w.
template <int Bits>
void add_outlier_rows(const bitplane_view& w, const codebook_view& tables, const sparse_view& o,
                      const matrix_view<const float>& x, const matrix_view<float>& y, int begin,
                      int end, isa use) {
  if (o.empty() || o.offsets()[begin] == o.offsets()[end]) return;
  int most = 0;
  if (tables.groups() > 1 || !includes(use, isa::avx2))
    for (int r = begin; r < end; ++r) most = std::max(most, o.end(r) - o.begin(r));
  const scratch differences(padded(most));
#if BL_HAS_AVX2
  if (includes(use, isa::avx2))
    return add_outlier_rows_avx2<Bits>(w, tables, o, x, y, begin, end, differences.data());
#endif
  static_cast<void>(use);
  for (int r = begin; r < end; ++r) {
    if (o.begin(r) == o.end(r)) continue;
    const int count = outlier_differences<Bits>(w, tables, o, r, differences.data());
    for (int i = 0; i < x.rows(); ++i)
      y(i, r) += outlier_sum_scalar(differences.data(), o.columns() + o.begin(r), count, x.row(i));
  }
}

/// split_rows, with as many pieces but cut so that each has as much to do: outliers crowd in few
/// rows.
template <class Body>
void split_rows(thread_pool* pool, int rows, int cols, int chunk, const sparse_view& o,
                const Body& body) {
  if (rows <= 0) return;
  if (o.empty()) return split_rows(pool, rows, chunk, body);
  // On a Zen 3 core an outlier takes as long as about 24 weights at 4 bits (4096 x 4096, 0.45%
  // outliers, half of them in every hundredth row).
  constexpr std::int64_t outlier_work = 24;
  const auto work_before = [&](int r) {
    return static_cast<std::int64_t>(r) * cols + outlier_work * o.offsets()[r];
  };
  const std::int64_t pieces = (rows - 1) / level_chunk(pool, rows, chunk) + 1;
  const auto cut = [&](std::int64_t piece) {
    if (piece == pieces) return rows;
    const double share = static_cast<double>(work_before(rows)) * static_cast<double>(piece) /
                         static_cast<double>(pieces);
    int low = 0, high = (rows - 1) / 8 + 1;  // in eights, as the kernels have them
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (static_cast<double>(work_before(std::min(middle * 8, rows))) < share)
        low = middle + 1;
      else
        high = middle;
    }
    return std::min(low * 8, rows);
  };
  parallel_for(pool, pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    const int first = cut(begin), last = cut(end);
    if (first < last) body(first, last);
  });
}

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
