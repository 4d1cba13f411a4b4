// SPDX-License-Identifier: MIT
// The matrix products of a backward pass on a CPU: C = A B in fp32, either factor as it lies in
// memory or transposed. Both are copied into panels, 6 rows of A and 16 columns of B wide; a tile
// of C is summed over them and handed to the caller, so that a gradient of a weight is squared
// before it is ever stored. An element is a sum of chains of fma over 256 terms each, added in
// order: its bits depend neither on threads nor on the instruction set. Tested by
// tests/llama/backward_math_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/kernels/cpu/isa.hpp>

#if BL_HAS_AVX2
#include <immintrin.h>
#endif
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace llama {

/// A factor of a product: element (r, c) is data[r * stride + c], or data[c * stride + r] if it is
/// transposed.
template <class T>
struct factor {
  const T* data = nullptr;
  std::size_t stride = 0;
  bool transposed = false;
};

/// Memory that products work in; it grows to what the largest needs.
struct product_room {
  std::vector<float> left, right;
};

namespace detail {

inline constexpr int panel_rows = 6, panel_cols = 16;  // 12 sums, 2 of B, 1 of A: 16 registers
inline constexpr int depth_block = 256;                // a panel's part is 6 and 16 KiB: L1
inline constexpr int tile_rows = 48, tile_cols = 256;  // 48 KiB of sums, on the stack

/// Widens `count` numbers.
template <class T>
void widen_run(const T* from, float* to, int count) {
  for (int i = 0; i < count; ++i) to[i] = bitladder::to_float(from[i]);
}

/// sums[r][c] = or += over k of a[k][r] * b[k][c], the sum over k one chain.
inline void product_panel(const float* a, const float* b, int depth, float* sums, bool first) {
  float lane[panel_rows][panel_cols] = {};
  for (int k = 0; k < depth; ++k)
    for (int r = 0; r < panel_rows; ++r)
      for (int c = 0; c < panel_cols; ++c)
        lane[r][c] = __builtin_fmaf(a[k * panel_rows + r], b[k * panel_cols + c], lane[r][c]);
  for (int r = 0; r < panel_rows; ++r)
    for (int c = 0; c < panel_cols; ++c)
      sums[r * tile_cols + c] = first ? lane[r][c] : sums[r * tile_cols + c] + lane[r][c];
}

#if BL_HAS_AVX2

BL_AVX2 inline void widen_16(const float* from, float* to) {
  _mm256_storeu_ps(to, _mm256_loadu_ps(from));
  _mm256_storeu_ps(to + 8, _mm256_loadu_ps(from + 8));
}
BL_AVX2 inline void widen_16(const bitladder::fp16_t* from, float* to) {
  for (int i = 0; i < 16; i += 8)
    _mm256_storeu_ps(to + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
}
BL_AVX2 inline void widen_16(const bitladder::bf16_t* from, float* to) {
  for (int i = 0; i < 16; i += 8) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i,
                     _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)));
  }
}

// The loops over registers are unrolled by hand: at -O2 GCC 12 else keeps the twelve sums in memory
// and takes 2.4 times as long (Zen 3 core).
BL_AVX2 inline void product_panel_avx2(const float* a, const float* b, int depth, float* sums,
                                       bool first) {
  __m256 lane[panel_rows][2];
  BL_UNROLL(6)
  for (int r = 0; r < panel_rows; ++r) lane[r][0] = lane[r][1] = _mm256_setzero_ps();
  for (int k = 0; k < depth; ++k) {
    const __m256 low = _mm256_loadu_ps(b), high = _mm256_loadu_ps(b + 8);
    BL_UNROLL(6)
    for (int r = 0; r < panel_rows; ++r) {
      const __m256 x = _mm256_broadcast_ss(a + r);
      lane[r][0] = _mm256_fmadd_ps(x, low, lane[r][0]);
      lane[r][1] = _mm256_fmadd_ps(x, high, lane[r][1]);
    }
    a += panel_rows;
    b += panel_cols;
  }
  BL_UNROLL(6)
  for (int r = 0; r < panel_rows; ++r) {
    BL_UNROLL(2)
    for (int h = 0; h < 2; ++h) {
      float* to = sums + r * tile_cols + 8 * h;
      _mm256_storeu_ps(to, first ? lane[r][h] : _mm256_add_ps(_mm256_loadu_ps(to), lane[r][h]));
    }
  }
}

#endif

/// Panels [begin, end) of A, [panel, depth, 6], zeros below its last row.
inline void pack_left(const factor<float>& a, int rows, int depth, std::int64_t begin,
                      std::int64_t end, float* out) {
  for (std::int64_t p = begin; p < end; ++p) {
    float* to = out + static_cast<std::size_t>(p) * static_cast<std::size_t>(depth) * panel_rows;
    const auto row = static_cast<std::size_t>(p) * panel_rows;
    const int count = std::min(panel_rows, rows - static_cast<int>(row));
    if (count < panel_rows) std::fill_n(to, static_cast<std::size_t>(depth) * panel_rows, 0.f);
    if (a.transposed) {
      const float* from = a.data + row;
      for (int k = 0; k < depth; ++k, from += a.stride, to += panel_rows)
        for (int r = 0; r < count; ++r) to[r] = from[r];
    } else {
      for (int r = 0; r < count; ++r) {
        const float* from = a.data + (row + static_cast<std::size_t>(r)) * a.stride;
        for (int k = 0; k < depth; ++k) to[k * panel_rows + r] = from[k];
      }
    }
  }
}

/// Panels [begin, end) of B, [panel, depth, 16], zeros right of its last column.
template <class T>
void pack_right(const factor<T>& b, int cols, int depth, std::int64_t begin, std::int64_t end,
                bitladder::cpu::isa which, float* out) {
  static_cast<void>(which);
  const std::size_t panel = static_cast<std::size_t>(depth) * panel_cols;
  for (std::int64_t p = begin; p < end; ++p) {
    const auto col = static_cast<std::size_t>(p) * panel_cols;
    const int count = std::min(panel_cols, cols - static_cast<int>(col));
    float* to = out + static_cast<std::size_t>(p) * panel;
    if (count < panel_cols) std::fill_n(to, panel, 0.f);
    if (b.transposed)
      for (int c = 0; c < count; ++c) {
        const T* from = b.data + (col + static_cast<std::size_t>(c)) * b.stride;
        for (int k = 0; k < depth; ++k) to[k * panel_cols + c] = bitladder::to_float(from[k]);
      }
#if BL_HAS_AVX2
    else if (count == panel_cols && bitladder::cpu::includes(which, bitladder::cpu::isa::avx2))
      for (int k = 0; k < depth; ++k)
        widen_16(b.data + static_cast<std::size_t>(k) * b.stride + col, to + k * panel_cols);
#endif
    else
      for (int k = 0; k < depth; ++k)
        widen_run(b.data + static_cast<std::size_t>(k) * b.stride + col, to + k * panel_cols,
                  count);
  }
}

}  // namespace detail

/// C = A B. Calls `sink(row, column, values, count)`, from all threads, with pieces of rows of C
/// that together are all of it.
/// @param rows, cols of C, @param depth columns of A and rows of B, at least 1
/// @param room not shared with another product at the same time
template <class T, class Sink>
void product(int rows, int cols, int depth, const factor<float>& a, const factor<T>& b,
             product_room& room, bitladder::thread_pool* pool, bitladder::cpu::isa which,
             Sink&& sink) {
  using namespace detail;
  const std::int64_t left_panels = (rows - 1) / panel_rows + 1;
  const std::int64_t right_panels = (cols - 1) / panel_cols + 1;
  const auto grow = [depth](std::vector<float>& v, std::int64_t panels, int width) {
    const std::size_t size = static_cast<std::size_t>(panels) * static_cast<std::size_t>(depth) *
                             static_cast<std::size_t>(width);
    if (v.size() < size) v.resize(size);
  };
  grow(room.left, left_panels, panel_rows);
  grow(room.right, right_panels, panel_cols);
  bitladder::parallel_for(pool, left_panels, 8, [&](std::int64_t begin, std::int64_t end) {
    pack_left(a, rows, depth, begin, end, room.left.data());
  });
  bitladder::parallel_for(pool, right_panels, 4, [&](std::int64_t begin, std::int64_t end) {
    pack_right(b, cols, depth, begin, end, which, room.right.data());
  });

  const std::int64_t row_tiles = (rows - 1) / tile_rows + 1;
  const std::int64_t col_tiles = (cols - 1) / tile_cols + 1;
  bitladder::parallel_for(
      pool, row_tiles * col_tiles, 1, [&](std::int64_t begin, std::int64_t end) {
        alignas(64) float sums[tile_rows * tile_cols];
        for (std::int64_t task = begin; task < end; ++task) {
          const int row = static_cast<int>(task % row_tiles) * tile_rows;
          const int col = static_cast<int>(task / row_tiles) * tile_cols;
          const int row_count = std::min(tile_rows, rows - row);
          const int col_count = std::min(tile_cols, cols - col);
          for (int k = 0; k < depth; k += depth_block) {
            const int block = std::min(depth_block, depth - k);
            for (int c = 0; c < col_count; c += panel_cols)
              for (int r = 0; r < row_count; r += panel_rows) {
                const std::size_t d = static_cast<std::size_t>(depth);
                const float* left = room.left.data() + static_cast<std::size_t>(row + r) * d +
                                    static_cast<std::size_t>(k) * panel_rows;
                const float* right = room.right.data() + static_cast<std::size_t>(col + c) * d +
                                     static_cast<std::size_t>(k) * panel_cols;
                float* to = sums + r * tile_cols + c;
#if BL_HAS_AVX2
                if (bitladder::cpu::includes(which, bitladder::cpu::isa::avx2)) {
                  product_panel_avx2(left, right, block, to, k == 0);
                  continue;
                }
#endif
                product_panel(left, right, block, to, k == 0);
              }
          }
          for (int r = 0; r < row_count; ++r) sink(row + r, col, sums + r * tile_cols, col_count);
        }
      });
}

}  // namespace llama
