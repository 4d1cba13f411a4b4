// SPDX-License-Identifier: MIT
// The kernels without SIMD, for machines that no other path serves: a row is decoded once and then
// used for every row of x. Also the decoder for column groups that end inside a word, on any
// machine. Tested through tests/kernels/cpu/gemm_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/kernels/cpu/detail/scratch.hpp>
#include <bitladder/kernels/cpu/order.hpp>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

/// Whether every word of a row belongs to one column group, so that SIMD code can take it whole.
inline bool groups_are_whole_words(const bitplane_view& w, const codebook_view& tables) {
  return tables.groups() == 1 || w.cols() / tables.groups() % 32 == 0;
}

/// Columns [begin, end) of a row to floats.
/// @param begin a multiple of 32
template <int Bits>
void decode_scalar(const bitplane_view& w, const codebook_view& tables, int row, int begin, int end,
                   float* out) {
  const int group_cols = w.cols() / tables.groups();
  int group = begin / group_cols, group_end = (group + 1) * group_cols;
  const fp16_t* table = tables.table(row, group);
  for (int c = begin; c < end;) {
    std::uint32_t plane[Bits];
    for (int p = 0; p < Bits; ++p) plane[p] = w.row(p, row)[c / 32];
    for (int lane = 0; lane < 32 && c < end; ++lane, ++c) {
      if (c == group_end) {
        table = tables.table(row, ++group);
        group_end += group_cols;
      }
      *out++ = to_float(table[code_at<Bits>(plane, lane)]);
    }
  }
}

template <int Bits>
void gemm_rows_scalar(const bitplane_view& w, const codebook_view& tables,
                      const matrix_view<const float>& x, const matrix_view<float>& y, int begin,
                      int end) {
  const scratch row(padded(w.cols()));
  for (int r = begin; r < end; ++r) {
    if (w.cols() > 0) decode_scalar<Bits>(w, tables, r, 0, w.cols(), row.data());
    for (int i = 0; i < x.rows(); ++i) y(i, r) = dot(row.data(), x.row(i), w.cols());
  }
}

template <class T>
void gemm_rows_scalar(const matrix_view<const T>& w, const matrix_view<const float>& x,
                      const matrix_view<float>& y, int begin, int end) {
  for (int r = begin; r < end; ++r)
    for (int i = 0; i < x.rows(); ++i) y(i, r) = dot(w.row(r), x.row(i), w.cols());
}

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
