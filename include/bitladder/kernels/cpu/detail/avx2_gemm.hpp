// SPDX-License-Identifier: MIT
// Many rows of x times many rows of weights with AVX2. A block of weight rows is decoded once, into
// a panel of floats that stays in the L2 cache, and multiplied with all of x in tiles of 4 x 3 dot
// products. Panel and x lie as a tile reads them, front to back: eight of the 32 lanes at a time,
// so that a dot product needs one register of sums. Tested by tests/kernels/cpu/gemm_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/kernels/cpu/detail/avx2_lanes.hpp>
#include <bitladder/kernels/cpu/detail/avx2_source.hpp>
#include <bitladder/kernels/cpu/detail/scratch.hpp>
#include <bitladder/kernels/cpu/isa.hpp>
#include <bitladder/kernels/cpu/order.hpp>

#if BL_HAS_AVX2
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

/// Tuning numbers of the AVX2 gemm.
struct avx2_gemm_policy {
  static constexpr int rows = 8;      ///< weight rows of a panel: one register of results
  static constexpr int x_tile = 3;    ///< rows of x in a tile: 4 x 3 sums fill the registers
  static constexpr int x_group = 24;  ///< rows of x at a time, which bounds the sums kept in memory
  /// Words (of 32 columns) between two stops at which the sums go to memory: eight lanes of a panel
  /// are then 16 KB, half of an L1 cache.
  static constexpr int stretch = 64;
  /// Weight rows that stay decoded while x goes by: 256 KB of them, half of an L2 cache.
  static constexpr int block_rows(int cols) {
    const int fit = (1 << 16) / (cols < 1 ? 1 : cols) / rows * rows;
    return fit < rows ? rows : fit;
  }
};

/// A row of words, cut into stretches of nearly equal length.
struct word_cut {
  int words;   ///< of a row
  int length;  ///< of a stretch; the last one may be shorter

  explicit word_cut(int cols) : words(static_cast<int>(padded(cols) / 32)) {
    const int count = (words - 1) / avx2_gemm_policy::stretch + 1;
    length = (words - 1) / count + 1;
  }
  int end(int begin) const { return words - begin < length ? words : begin + length; }
};

/// The rows of x, cut into groups of nearly equal length, and those into tiles.
struct row_cut {
  int rows;
  int length;  ///< of a group, a multiple of a tile's; the last one may be shorter

  explicit row_cut(int m) : rows(m) {
    using policy = avx2_gemm_policy;
    const int count = (m - 1) / policy::x_group + 1;
    length = ((m - 1) / count / policy::x_tile + 1) * policy::x_tile;
  }
  int end(int begin) const { return rows - begin < length ? rows : begin + length; }
  /// Rows of the next tile, when `left` are left of the group: 2 + 2 is faster than 3 + 1.
  static int tile(int left) { return left == 4 ? 2 : left < 3 ? left : 3; }
};

/// Rows [begin, end) of x, one group, as tiles read them: for each stretch, for each eight lanes,
/// for each tile, for each word: eight floats of each row.
/// @param out (end - begin) * padded(x.cols()) floats on a 32-byte boundary
template <bool Crossed>
BL_AVX2 void pack_group_avx2(const matrix_view<const float>& x, int begin, int end, float* out) {
  const word_cut cut(x.cols());
  for (int s = 0; s < cut.words; s = cut.end(s)) {
    const std::size_t words = static_cast<std::size_t>(cut.end(s) - s);
    const std::size_t eight = words * 8 * static_cast<std::size_t>(end - begin);
    for (int i = begin; i < end;) {
      const int count = row_cut::tile(end - i);
      for (int r = 0; r < count; ++r) {
        word_places to{out + static_cast<std::size_t>(i - begin) * 8 * words + 8 * r, eight,
                       static_cast<std::size_t>(count) * 8};
        for (int c = s * 32; c < cut.end(s) * 32; c += 32, to.out += to.word_stride) {
          alignas(32) float last[32] = {};
          const float* from = x.row(i + r) + c;
          if (x.cols() - c < 32) {
            std::memcpy(last, from, sizeof(float) * static_cast<std::size_t>(x.cols() - c));
            from = last;
          }
          __m256 v0, v1, v2, v3;
          load_word(from, v0, v1, v2, v3);
          if constexpr (Crossed) cross(v0, v1, v2, v3);
          to.store(v0, v1, v2, v3);
        }
      }
      i += count;
    }
    out += 4 * eight;
  }
}

/// Four weight rows times `Count` rows of x over one stretch, eight of the lanes.
/// @param w [words, 8, 8], of which rows 0 .. 3 are used
/// @param x [words, Count, 8]
/// @param sums [Count, 8, 8], likewise
template <int Count>
BL_AVX2_INLINE void multiply_tile_avx2(const float* w, const float* x, int words, float* sums,
                                       bool first) {
  // Compilers that do not unroll these loops keep the sums in memory, at a third of the speed.
  __m256 sum[4][Count];
  BL_UNROLL(4)
  for (int r = 0; r < 4; ++r) BL_UNROLL(4)
  for (int i = 0; i < Count; ++i)
    sum[r][i] = first ? _mm256_setzero_ps() : _mm256_load_ps(sums + (i * 8 + r) * 8);
  for (int k = 0; k < words; ++k) {
    __m256 v[Count];
    BL_UNROLL(4)
    for (int i = 0; i < Count; ++i) v[i] = _mm256_load_ps(x + 8 * i);
    BL_UNROLL(4)
    for (int r = 0; r < 4; ++r) {
      const __m256 weight = _mm256_load_ps(w + 8 * r);
      BL_UNROLL(4)
      for (int i = 0; i < Count; ++i) sum[r][i] = _mm256_fmadd_ps(weight, v[i], sum[r][i]);
    }
    w += 64;
    x += 8 * Count;
  }
  BL_UNROLL(4)
  for (int r = 0; r < 4; ++r) BL_UNROLL(4)
  for (int i = 0; i < Count; ++i) _mm256_store_ps(sums + (i * 8 + r) * 8, sum[r][i]);
}

template <int Count>
BL_AVX2 void multiply_panel_avx2(const float* w, const float* x, int words, float* sums,
                                 bool first) {
  multiply_tile_avx2<Count>(w, x, words, sums, first);
  multiply_tile_avx2<Count>(w + 32, x, words, sums + 32, first);
}

/// The results of eight dot products.
/// @param sums [8, 8] for each eight lanes, `stride` apart
template <bool Crossed>
BL_AVX2_INLINE __m256 finish_8_avx2(const float* sums, std::size_t stride) {
  alignas(32) float rows[8][32];
  for (int r = 0; r < 8; ++r) {
    const float* at = sums + 8 * r;
    __m256 v0 = _mm256_load_ps(at), v1 = _mm256_load_ps(at + stride),
           v2 = _mm256_load_ps(at + 2 * stride), v3 = _mm256_load_ps(at + 3 * stride);
    if constexpr (Crossed) cross(v0, v1, v2, v3);
    word_places{rows[r], 8, 32}.store(v0, v1, v2, v3);
  }
  return add_8_rows(rows[0]);
}

/// Rows [begin, end) of the weights times all of x.
/// @param x what pack_group_avx2 made of every group, one after the other
template <class Source>
BL_AVX2 void gemm_rows_avx2(const Source& source, const float* x, const matrix_view<float>& y,
                            int begin, int end) {
  using policy = avx2_gemm_policy;
  const word_cut cut(source.cols());
  const row_cut x_cut(y.rows());
  const int most = std::min(policy::block_rows(source.cols()), (end - begin + 7) / 8 * 8);
  const std::size_t width = static_cast<std::size_t>(cut.words) * 32;
  const std::size_t eight = static_cast<std::size_t>(x_cut.length) * 64;  // sums of eight lanes
  const scratch memory(static_cast<std::size_t>(most) * width +
                       static_cast<std::size_t>(most / 8) * 4 * eight);
  float* const panels = memory.data();
  float* const all_sums = panels + static_cast<std::size_t>(most) * width;

  for (int block = begin; block < end; block += most) {
    const int block_end = end - block < most ? end : block + most;
    for (int group = 0; group < y.rows(); group = x_cut.end(group)) {
      const int group_end = x_cut.end(group);
      for (int s = 0; s < cut.words; s = cut.end(s)) {
        const int words = cut.end(s) - s;
        for (int row = block; row < block_end; row += policy::rows) {
          float* const panel = panels + static_cast<std::size_t>(row - block) * width +
                               static_cast<std::size_t>(s) * (32 * policy::rows);
          float* const sums = all_sums + static_cast<std::size_t>((row - block) / 8) * 4 * eight;
          const std::size_t panel_eight = static_cast<std::size_t>(words) * 64;
          if (group == 0)
            for (int r = 0; r < policy::rows; ++r)  // the last row again where there are fewer
              source.place(std::min(row + r, block_end - 1), s, s + words,
                           {panel + 8 * r, panel_eight, 64});
          const float* xs =
              x + static_cast<std::size_t>(group) * width +
              static_cast<std::size_t>(s) * 32 * static_cast<std::size_t>(group_end - group);
          for (std::size_t e = 0; e < 4; ++e)
            for (int i = group; i < group_end;) {
              const int count = row_cut::tile(group_end - i);
              const auto multiply = count == 3   ? multiply_panel_avx2<3>
                                    : count == 2 ? multiply_panel_avx2<2>
                                                 : multiply_panel_avx2<1>;
              multiply(panel + e * panel_eight, xs, words,
                       sums + e * eight + static_cast<std::size_t>(i - group) * 64, s == 0);
              xs += static_cast<std::size_t>(words) * 8 * static_cast<std::size_t>(count);
              i += count;
            }
        }
      }
      for (int row = block; row < block_end; row += policy::rows) {
        const float* const sums =
            all_sums + static_cast<std::size_t>((row - block) / 8) * 4 * eight;
        for (int i = group; i < group_end; ++i) {
          const __m256 results = finish_8_avx2<Source::crossed>(
              sums + static_cast<std::size_t>(i - group) * 64, eight);
          if (block_end - row >= policy::rows) {
            _mm256_storeu_ps(y.row(i) + row, results);
          } else {
            alignas(32) float some[policy::rows];
            _mm256_store_ps(some, results);
            std::copy_n(some, block_end - row, y.row(i) + row);
          }
        }
      }
    }
  }
}

/// The same for x as it is.
template <class Source>
BL_AVX2 void gemm_rows_avx2(const Source& source, const matrix_view<const float>& x,
                            const matrix_view<float>& y, int begin, int end) {
  const std::size_t width = padded(x.cols());
  const scratch packed(static_cast<std::size_t>(x.rows()) * width);
  const row_cut cut(x.rows());
  for (int i = 0; i < x.rows(); i = cut.end(i))
    pack_group_avx2<Source::crossed>(x, i, cut.end(i),
                                     packed.data() + static_cast<std::size_t>(i) * width);
  gemm_rows_avx2(source, packed.data(), y, begin, end);
}

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
#endif
