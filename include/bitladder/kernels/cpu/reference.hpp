// SPDX-License-Identifier: MIT
// What the CPU kernels compute, as plain loops: the code of each weight is read bit by bit, looked
// up in its table and added in the order of order.hpp. Every fast kernel is tested against these
// for equal bits. Arguments are not checked. Tested by tests/kernels/cpu/reference_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/kernels/cpu/order.hpp>

#include <cmath>
#include <cstddef>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace reference {

/// The value of one weight, read at the precision of the tables.
inline float weight(bitplane_view w, codebook_view tables, int row, int col) {
  const int group = col / (w.cols() / tables.groups());
  return to_float(tables.table(row, group)[w.code(row, col, tables.bits())]);
}

/// out[r][c] = weight(r, c). out: [rows, cols]
inline void dequantize(bitplane_view w, codebook_view tables, matrix_view<float> out) {
  for (int r = 0; r < w.rows(); ++r)
    for (int c = 0; c < w.cols(); ++c) out(r, c) = weight(w, tables, r, c);
}

/// y[i][r] = sum over c of w[r][c] * x[i][c]. x: [m, cols], y: [m, rows]
template <class T>
void gemm(matrix_view<T> w, matrix_view<const float> x, matrix_view<float> y) {
  for (int i = 0; i < x.rows(); ++i)
    for (int r = 0; r < w.rows(); ++r) y(i, r) = dot(w.row(r), x.row(i), w.cols());
}

/// The same for weights stored as planes.
inline void gemm(bitplane_view w, codebook_view tables, matrix_view<const float> x,
                 matrix_view<float> y) {
  std::vector<float> values(static_cast<std::size_t>(w.rows()) *
                            static_cast<std::size_t>(w.cols()));
  const matrix_view<float> dense(values.data(), w.rows(), w.cols());
  dequantize(w, tables, dense);
  gemm(dense, x, y);
}

/// y[r] = sum over c of w[r][c] * x[c]. x: [cols], y: [rows]
template <class T>
void gemv(matrix_view<T> w, vector_view<const float> x, vector_view<float> y) {
  gemm(w, matrix_view<const float>(x.data(), 1, w.cols()),
       matrix_view<float>(y.data(), 1, w.rows()));
}

/// The same for weights stored as planes.
inline void gemv(bitplane_view w, codebook_view tables, vector_view<const float> x,
                 vector_view<float> y) {
  gemm(w, tables, matrix_view<const float>(x.data(), 1, w.cols()),
       matrix_view<float>(y.data(), 1, w.rows()));
}

/// out as above, but each outlier as it is. out: [rows, cols]
inline void dequantize(bitplane_view w, codebook_view tables, sparse_view outliers,
                       matrix_view<float> out) {
  dequantize(w, tables, out);
  for (int r = 0; r < (outliers.empty() ? 0 : w.rows()); ++r)
    for (int i = outliers.begin(r); i < outliers.end(r); ++i)
      out(r, outliers.columns()[i]) = to_float(outliers.values()[i]);
}

/// The product without outliers, then rule 4 of order.hpp. x: [m, cols], y: [m, rows]
inline void gemm(bitplane_view w, codebook_view tables, sparse_view outliers,
                 matrix_view<const float> x, matrix_view<float> y) {
  gemm(w, tables, x, y);
  if (outliers.empty()) return;
  for (int i = 0; i < x.rows(); ++i)
    for (int r = 0; r < w.rows(); ++r) {
      const int first = outliers.begin(r), end = outliers.end(r);
      if (first == end) continue;
      float lane[outlier_lanes] = {};
      for (int k = first; k < end; ++k) {
        const int col = outliers.columns()[k];
        float& sum = lane[(k - first) % outlier_lanes];
        sum = std::fma(to_float(outliers.values()[k]) - weight(w, tables, r, col), x(i, col), sum);
      }
      for (int half = outlier_lanes / 2; half > 0; half /= 2)
        for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
      y(i, r) += lane[0];
    }
}

}  // namespace reference
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
