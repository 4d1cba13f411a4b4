// SPDX-License-Identifier: MIT
// Many rows of x times many rows of weights with AVX2. Eight weight rows are decoded to floats, a
// stretch of columns at a time that stays in the L1 cache, and each is multiplied with three rows
// of x at once: 3 x 4 registers of lane sums. Tested by tests/kernels/cpu/gemm_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/kernels/cpu/detail/avx2_decoder.hpp>
#include <bitladder/kernels/cpu/detail/avx2_gemv.hpp>
#include <bitladder/kernels/cpu/detail/avx2_lanes.hpp>
#include <bitladder/kernels/cpu/detail/scalar.hpp>
#include <bitladder/kernels/cpu/detail/scratch.hpp>
#include <bitladder/kernels/cpu/isa.hpp>
#include <bitladder/kernels/cpu/order.hpp>

#if BL_HAS_AVX2
#include <immintrin.h>

#include <cstddef>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

/// Tuning numbers of the AVX2 gemm.
struct avx2_gemm_policy {
  static constexpr int rows = 8;     ///< weight rows summed up together: one register of results
  static constexpr int x_group = 6;  ///< rows of x that use them before the next rows
  static constexpr int stretch =
      1024;  ///< columns at a time: a tile of them is 28 KB of a 32 KB L1
  /// Weight rows that stay decoded while x goes by: 64 KB of them, a small part of an L2, so that x
  /// is fetched from further away once in a while only.
  static constexpr int block_rows(int cols) {
    const int fit = (1 << 14) / (cols < 1 ? 1 : cols) / rows * rows;
    return fit < rows ? rows : fit;
  }
};

/// Weights as the panel reads them: `decode` writes columns [begin, end) of a row, in natural
/// arrangement and whole words, padded with the padding weight.
template <int Bits>
struct bitplane_source {
  bitplane_view w;
  codebook_view tables;

  int cols() const { return w.cols(); }

  BL_AVX2 void decode(int row, int begin, int end, float* out) const {
    using decoder = avx2_decoder<Bits>;
    const int group_cols = w.cols() / tables.groups();
    if (!groups_are_whole_words(w, tables)) {
      decode_scalar<Bits>(w, tables, row, begin, end, out);
    } else {
      float* to = out;
      for (int c = begin; c < end;) {
        const int group = c / group_cols, group_end = (group + 1) * group_cols;
        typename decoder::table table;
        decoder::load(table, tables.table(row, group));
        for (const int stop = end < group_end ? end : group_end; c < stop;) {
          const int left = (stop - c + 31) / 32;
          const int count = left < decoder::words_at_once ? left : decoder::words_at_once;
          typename decoder::chunk chunk;
          decoder::load(chunk, table, w, row, c / 32, count);
          for (int k = 0; k < count; ++k, to += 32) {
            __m256 v0, v1, v2, v3;
            decoder::values(chunk, k, table, v0, v1, v2, v3);
            cross(v0, v1, v2, v3);
            _mm256_storeu_ps(to, v0);
            _mm256_storeu_ps(to + 8, v1);
            _mm256_storeu_ps(to + 16, v2);
            _mm256_storeu_ps(to + 24, v3);
          }
          c += count * 32;
        }
      }
    }
    for (int c = end; c % 32 != 0; ++c) out[c - begin] = padding_weight;
  }
};

template <class T>
struct dense_source {
  matrix_view<const T> w;

  int cols() const { return w.cols(); }

  BL_AVX2 void decode(int row, int begin, int end, float* out) const {
    widen(w.row(row) + begin, end - begin, out);
    for (int c = end; c % 32 != 0; ++c) out[c - begin] = padding_weight;
  }
};

/// `Rows` weight rows times `Count` rows of x over one stretch of columns. The 32 lanes are taken
/// eight at a time, in four passes over the stretch: a product then needs one register of sums
/// instead of four, so that twelve products share their loads.
/// @param sums [Count, avx2_gemm_policy::rows, 32]: where the lane sums are kept between stretches
template <int Rows, int Count>
BL_AVX2 void multiply_tile_avx2(const float* w, std::size_t w_stride, const float* x,
                                std::size_t x_stride, int cols, float* sums, bool first) {
  const float *ws[Rows], *xs[Count];
  for (int r = 0; r < Rows; ++r) ws[r] = w + static_cast<std::size_t>(r) * w_stride;
  for (int i = 0; i < Count; ++i) xs[i] = x + static_cast<std::size_t>(i) * x_stride;
  for (int eight = 0; eight < 32; eight += 8) {
    __m256 sum[Rows][Count];
    for (int r = 0; r < Rows; ++r)
      for (int i = 0; i < Count; ++i)
        sum[r][i] = first ? _mm256_setzero_ps()
                          : _mm256_load_ps(sums + (i * avx2_gemm_policy::rows + r) * 32 + eight);
    for (std::ptrdiff_t c = eight; c < cols; c += 32) {
      __m256 v[Count];
      for (int i = 0; i < Count; ++i) v[i] = _mm256_loadu_ps(xs[i] + c);
      for (int r = 0; r < Rows; ++r) {
        const __m256 weight = _mm256_load_ps(ws[r] + c);
        for (int i = 0; i < Count; ++i) sum[r][i] = _mm256_fmadd_ps(weight, v[i], sum[r][i]);
      }
    }
    for (int r = 0; r < Rows; ++r)
      for (int i = 0; i < Count; ++i)
        _mm256_store_ps(sums + (i * avx2_gemm_policy::rows + r) * 32 + eight, sum[r][i]);
  }
}

/// All `rows` decoded weight rows times `Count` rows of x.
template <int Count>
BL_AVX2 void multiply_stretch_avx2(const float* w, std::size_t w_stride, int rows, const float* x,
                                   std::size_t x_stride, int cols, float* sums, bool first) {
  int r = 0;
  for (; r + 4 <= rows; r += 4)
    multiply_tile_avx2<4, Count>(w + static_cast<std::size_t>(r) * w_stride, w_stride, x, x_stride,
                                 cols, sums + r * 32, first);
  for (; r < rows; ++r)
    multiply_tile_avx2<1, Count>(w + static_cast<std::size_t>(r) * w_stride, w_stride, x, x_stride,
                                 cols, sums + r * 32, first);
}

/// The same for rows [group, group_end) of x, columns [from, from + cols).
BL_AVX2 inline void multiply_group_avx2(const float* w, std::size_t w_stride, int rows,
                                        const matrix_view<const float>& x, int group, int group_end,
                                        int from, int cols, float* sums) {
  for (int i = group; i < group_end;) {
    const int left = group_end - i;
    const int count = left == 4 ? 2 : left < 3 ? left : 3;  // 2 + 2 is faster than 3 + 1
    const auto multiply = count == 3   ? multiply_stretch_avx2<3>
                          : count == 2 ? multiply_stretch_avx2<2>
                                       : multiply_stretch_avx2<1>;
    multiply(w, w_stride, rows, x.row(i) + from, x.stride(), cols,
             sums + (i - group) * avx2_gemm_policy::rows * 32, from == 0);
    i += count;
  }
}

/// Rows [begin, end) of the weights times all of x.
/// @param x [m, at least padded(cols)], +0 beyond the last column
template <class Source>
BL_AVX2 void gemm_rows_avx2(const Source& source, const matrix_view<const float>& x,
                            const matrix_view<float>& y, int begin, int end) {
  using policy = avx2_gemm_policy;
  const int cols = source.cols(), m = x.rows();
  // Stretches of equal length, so that no short one is left over.
  const int stretches = (cols - 1) / policy::stretch + 1;
  const int stretch = static_cast<int>(padded((cols - 1) / stretches + 1));
  // Later groups of x find all weights decoded; a single group needs room for one stretch only.
  const bool keep = m > policy::x_group;
  const int block = keep ? policy::block_rows(cols) : policy::rows;
  // One more cache line, so that the rows do not start in the same cache sets.
  const std::size_t w_stride = (keep ? padded(cols) : static_cast<std::size_t>(stretch)) + 16;
  const scratch weights(static_cast<std::size_t>(block) * w_stride);
  alignas(32) float sums[policy::x_group][policy::rows][32] = {};

  for (int block_begin = begin; block_begin < end; block_begin += block) {
    const int block_end = end - block_begin < block ? end : block_begin + block;
    for (int group = 0; group < m; group += policy::x_group) {
      const int group_end = m - group < policy::x_group ? m : group + policy::x_group;
      for (int row = block_begin; row < block_end; row += policy::rows) {
        const int rows = block_end - row < policy::rows ? block_end - row : policy::rows;
        float* const first_row =
            weights.data() + static_cast<std::size_t>(row - block_begin) * w_stride;
        for (int from = 0; from < cols; from += stretch) {
          const int to = cols - from < stretch ? cols : from + stretch;
          float* const w = first_row + (keep ? from : 0);
          if (group == 0)
            for (int r = 0; r < rows; ++r)
              source.decode(row + r, from, to, w + static_cast<std::size_t>(r) * w_stride);
          multiply_group_avx2(w, w_stride, rows, x, group, group_end, from,
                              static_cast<int>(padded(to - from)), sums[0][0]);
        }
        for (int i = group; i < group_end; ++i) {
          const __m256 results = add_8_rows(sums[i - group][0]);
          if (rows == policy::rows) {
            _mm256_storeu_ps(y.row(i) + row, results);
          } else {
            alignas(32) float some[policy::rows];
            _mm256_store_ps(some, results);
            for (int r = 0; r < rows; ++r) y(i, row + r) = some[r];
          }
        }
      }
    }
  }
}

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
#endif
