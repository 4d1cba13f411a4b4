// SPDX-License-Identifier: MIT
// Many vectors times a matrix of weights by a BLAS that the caller brings: panels of rows become
// floats, and its sgemm does the rest. From some hundred vectors on that is faster than gemm.hpp;
// but sums are then in the BLAS's order, so that a row's bits depend on its batch, on the library
// and on the machine. Therefore nothing here is used unless asked for. Tested by
// tests/kernels/cpu/gemm_blas_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cpu/detail/avx2_source.hpp>
#include <bitladder/kernels/cpu/detail/check.hpp>
#include <bitladder/kernels/cpu/detail/scalar.hpp>
#include <bitladder/kernels/cpu/detail/scratch.hpp>
#include <bitladder/kernels/cpu/isa.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {

/// Tuning numbers of gemm_blas.
struct gemm_blas_policy {
  /// Vectors from which on it is worth while. On one and two Zen 3 cores with OpenBLAS, 4096 x 4096
  /// and 11008 x 4096 at 2, 4 and 8 bits, in times as fast as gemm: 64 vectors 0.94 to 1.05, 128
  /// 1.02 to 1.09, 256 1.05 to 1.14, 512 1.09 to 1.18.
  static constexpr int min_vectors = 128;
  /// Floats of a panel: 4 MB. With 64 rows of 4096 columns a BLAS has too little to share its
  /// packing of x over (0.92 to 1.00 times as fast); 256 and 1024 rows are within 3% of each other.
  static constexpr int panel_floats = 1 << 20;
  static constexpr int min_panel_rows = 64;
};

namespace detail {

/// What a BLAS calls the leading dimension.
template <class T>
int leading_dimension(const char* operand, const matrix_view<T>& m) {
  const std::size_t stride =
      m.rows() > 1 ? m.stride() : static_cast<std::size_t>(std::max(m.cols(), 1));
  if (stride > static_cast<std::size_t>(std::numeric_limits<int>::max()))
    throw error(status::invalid_argument, std::string("gemm_blas: expected ") + operand +
                                              " with a stride of at most 2^31 - 1, found " +
                                              std::to_string(stride));
  return static_cast<int>(stride);
}

/// Rows of a panel: as many for each thread, in some pieces if they are many.
inline int panel_rows(const thread_pool* pool, int rows, int cols) {
  using policy = gemm_blas_policy;
  const int threads = pool == nullptr ? 1 : pool->size();
  const int most = std::max(policy::panel_floats / cols, policy::min_panel_rows);
  const int share = std::max((rows - 1) / threads + 1, policy::min_panel_rows);
  const int pieces = (share - 1) / most + 1;
  return (share - 1) / pieces + 1;
}

/// A row as floats, in whole words.
/// @param out padded(cols) floats on a 32-byte boundary
template <int Bits>
void widen_row(const bitplane_view& w, const codebook_view& tables, int row, float* out, isa use) {
#if BL_HAS_AVX2
  if (includes(use, isa::avx2))
    return bitplane_source<Bits>{w, tables}.decode(row, 0, w.cols(), out);
#endif
  static_cast<void>(use);
  decode_scalar<Bits>(w, tables, row, 0, w.cols(), out);
}
template <class T>
void widen_row(const matrix_view<const T>& w, int row, float* out, isa use) {
#if BL_HAS_AVX2
  if (includes(use, isa::avx2))
    return dense_source<T>{w}.place(row, 0, static_cast<int>(padded(w.cols()) / 32), {out, 8, 32});
#endif
  static_cast<void>(use);
  for (int c = 0; c < w.cols(); ++c) out[c] = to_float(w.row(row)[c]);
}

/// @param widen `widen(row, out)` writes a row of the weights
template <class Widen, class Multiply>
void multiply_panels(int rows, int cols, const matrix_view<const float>& x,
                     const matrix_view<float>& y, const Widen& widen, const Multiply& multiply,
                     thread_pool* pool) {
  const int ldx = leading_dimension("x", x), ldy = leading_dimension("y", y);
  const int width = static_cast<int>(padded(cols));
  parallel_for(pool, rows, panel_rows(pool, rows, cols), [&](std::int64_t begin, std::int64_t end) {
    const int count = static_cast<int>(end - begin);
    const scratch panel(static_cast<std::size_t>(count) * static_cast<std::size_t>(width));
    for (int r = 0; r < count; ++r)
      widen(static_cast<int>(begin) + r,
            panel.data() + static_cast<std::size_t>(r) * static_cast<std::size_t>(width));
    multiply(x.rows(), count, cols, x.data(), ldx, static_cast<const float*>(panel.data()), width,
             y.data() + begin, ldy);
  });
}

/// @return whether there is something to multiply
inline bool require_blas_batch(int rows, int cols, const matrix_view<const float>& x,
                               const matrix_view<float>& y) {
  require_matrix("gemm_blas", "x", x.rows(), cols, x);
  require_matrix("gemm_blas", "y", x.rows(), rows, y);
  constexpr int most = std::numeric_limits<int>::max() / 32 * 32;  // whole words of them are an int
  if (cols > most)
    throw error(status::invalid_argument, "gemm_blas: expected at most " + std::to_string(most) +
                                              " columns, found " + std::to_string(cols));
  if (cols == 0)
    for (int i = 0; i < y.rows(); ++i) std::fill_n(y.row(i), y.cols(), 0.0f);
  return rows > 0 && cols > 0 && x.rows() > 0;
}

}  // namespace detail

/// Y = X W^T, the weights read at `Bits` bits, up to the rounding of another order of summation:
/// the bits of a result are whatever `multiply` makes of them.
/// @tparam Bits precision to read, 1..8, at most w.planes()
/// @param tables the tables of that precision; their groups divide the columns
/// @param outliers weights that replace those of codes and tables, none or without fault
/// (find_fault)
/// @param x [m, cols]
/// @param y [m, rows], not overlapping x
/// @param multiply `multiply(m, n, k, a, lda, b, ldb, c, ldc)`, all sizes int, overwrites
/// C [m, n] with A [m, k] times the transpose of B [n, k], row-major. With a CBLAS that is
/// `cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, a, lda, b, ldb, 0, c, ldc)`.
/// Called from all threads of `pool` at once: a BLAS with threads of its own must be told to use
/// one (openblas_set_num_threads(1)).
/// @param pool null runs in the calling thread
/// @param use an instruction set this machine supports
/// @throws error if shapes or precisions disagree or a pointer is null, and what `multiply` throws
template <int Bits, class Multiply>
void gemm_blas(bitplane_view w, codebook_view tables, sparse_view outliers,
               matrix_view<const float> x, matrix_view<float> y, const Multiply& multiply,
               thread_pool* pool = nullptr, isa use = best_isa()) {
  static_assert(Bits >= 1 && Bits <= 8, "bitplanes are read at 1 to 8 bits");
  detail::require_supported(use, "gemm_blas");
  detail::require_weights("gemm_blas", Bits, w, tables);
  detail::require_outliers("gemm_blas", w, outliers);
  if (!detail::require_blas_batch(w.rows(), w.cols(), x, y)) return;
  detail::multiply_panels(
      w.rows(), w.cols(), x, y,
      [&](int row, float* out) {
        detail::widen_row<Bits>(w, tables, row, out, use);
        for (int i = outliers.empty() ? 0 : outliers.begin(row),
                 end = outliers.empty() ? 0 : outliers.end(row);
             i < end; ++i)
          out[outliers.columns()[i]] = to_float(outliers.values()[i]);
      },
      multiply, pool);
}

/// The same without outliers.
template <int Bits, class Multiply>
void gemm_blas(bitplane_view w, codebook_view tables, matrix_view<const float> x,
               matrix_view<float> y, const Multiply& multiply, thread_pool* pool = nullptr,
               isa use = best_isa()) {
  gemm_blas<Bits>(w, tables, sparse_view(), x, y, multiply, pool, use);
}

/// The same for a precision known at run time.
/// @throws error(unsupported_bits) if `bits` is outside 1..8
template <class Multiply>
void gemm_blas(int bits, bitplane_view w, codebook_view tables, sparse_view outliers,
               matrix_view<const float> x, matrix_view<float> y, const Multiply& multiply,
               thread_pool* pool = nullptr, isa use = best_isa()) {
  detail::require_bits("gemm_blas",
                       dispatch_bits(bits, all_bits{},
                                     [&](auto b) {
                                       gemm_blas<decltype(b)::value>(w, tables, outliers, x, y,
                                                                     multiply, pool, use);
                                       return status::ok;
                                     }),
                       bits);
}
template <class Multiply>
void gemm_blas(int bits, bitplane_view w, codebook_view tables, matrix_view<const float> x,
               matrix_view<float> y, const Multiply& multiply, thread_pool* pool = nullptr,
               isa use = best_isa()) {
  gemm_blas(bits, w, tables, sparse_view(), x, y, multiply, pool, use);
}

/// Y = X W^T for weights stored as float, fp16_t or bf16_t; rows of float are read where they are.
/// @param w [rows, cols]
template <class T, class Multiply>
void gemm_blas(matrix_view<T> w, matrix_view<const float> x, matrix_view<float> y,
               const Multiply& multiply, thread_pool* pool = nullptr, isa use = best_isa()) {
  using value = std::remove_const_t<T>;
  const matrix_view<const value> weights = w;
  detail::require_supported(use, "gemm_blas");
  detail::require_matrix("gemm_blas", "weights", w.rows(), w.cols(), weights);
  if (!detail::require_blas_batch(w.rows(), w.cols(), x, y)) return;
  if constexpr (std::is_same_v<value, float>) {
    const int ldw = detail::leading_dimension("weights", weights);
    const int ldx = detail::leading_dimension("x", x), ldy = detail::leading_dimension("y", y);
    parallel_for(pool, w.rows(), detail::panel_rows(pool, w.rows(), w.cols()),
                 [&](std::int64_t begin, std::int64_t end) {
                   multiply(x.rows(), static_cast<int>(end - begin), w.cols(), x.data(), ldx,
                            weights.row(static_cast<int>(begin)), ldw, y.data() + begin, ldy);
                 });
  } else {
    detail::multiply_panels(
        w.rows(), w.cols(), x, y,
        [&](int row, float* out) { detail::widen_row(weights, row, out, use); }, multiply, pool);
  }
}

}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
