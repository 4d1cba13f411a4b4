// SPDX-License-Identifier: MIT
// One vector times a matrix of weights on the CPU: the step that a decoding language model repeats.
// Bitplanes are read at any precision up to what they hold, and only those planes. The result has
// the bits of order.hpp's summation order whatever the instruction set and thread count. Tested by
// tests/kernels/cpu/gemv_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/kernels/cpu/detail/avx2_gemm.hpp>
#include <bitladder/kernels/cpu/detail/avx2_gemv.hpp>
#include <bitladder/kernels/cpu/detail/avx512_gemv.hpp>
#include <bitladder/kernels/cpu/detail/check.hpp>
#include <bitladder/kernels/cpu/detail/outlier_rows.hpp>
#include <bitladder/kernels/cpu/detail/scalar.hpp>
#include <bitladder/kernels/cpu/detail/scratch.hpp>
#include <bitladder/kernels/cpu/detail/split_rows.hpp>
#include <bitladder/kernels/cpu/isa.hpp>

#include <algorithm>
#include <type_traits>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

#if BL_HAS_AVX2
/// @param copy padded(w.cols()) floats
/// @param split calls its argument over chunks of the rows
template <int Bits, isa Use, class Split>
void gemv_avx512(const bitplane_view& w, const codebook_view& tables, const float* x, float* y,
                 float* copy, const Split& split) {
  using decoder = avx512_decoder<Bits, Use>;
  arrange_vector<decoder>(x, w.cols(), copy);
  split([&](int begin, int end) { gemv_rows_avx512<decoder>(w, tables, copy, y, begin, end); });
}
#endif

}  // namespace detail

/// y = W x, the weights read at `Bits` bits.
/// @tparam Bits precision to read, 1..8, at most w.planes()
/// @param tables the tables of that precision; their groups divide the columns
/// @param outliers weights that replace those of codes and tables, none or without fault
/// (find_fault, find_code_fault); summed as rule 4 of order.hpp says
/// @param x [cols]
/// @param y [rows], not overlapping x
/// @param pool null runs in the calling thread
/// @param use an instruction set this machine supports
/// @throws error if shapes or precisions disagree or a pointer is null
template <int Bits>
void gemv(bitplane_view w, codebook_view tables, sparse_view outliers, vector_view<const float> x,
          vector_view<float> y, thread_pool* pool = nullptr, isa use = best_isa()) {
  static_assert(Bits >= 1 && Bits <= 8, "bitplanes are read at 1 to 8 bits");
  detail::require_supported(use, "gemv");
  detail::require_weights("gemv", Bits, w, tables);
  detail::require_outliers("gemv", w, outliers);
  detail::require_vectors("gemv", w.rows(), w.cols(), x, y);
  if (w.cols() == 0) return std::fill(y.begin(), y.end(), 0.0f);
  const matrix_view<const float> x_row(x.data(), 1, w.cols());
  const matrix_view<float> y_row(y.data(), 1, w.rows());
  const auto split = [&](const auto& dense) {
    detail::split_rows(pool, w.rows(), w.cols(), detail::rows_per_chunk(w.cols(), 1), outliers,
                       [&](int begin, int end) {
                         dense(begin, end);
                         detail::add_outlier_rows<Bits>(w, tables, outliers, x_row, y_row, begin,
                                                        end, use);
                       });
  };
#if BL_HAS_AVX2
  if (includes(use, isa::avx2)) {
    const detail::scratch copy(detail::padded(w.cols()));
    if (detail::groups_are_whole_words(w, tables)) {
      if (use == isa::avx512_vbmi)
        return detail::gemv_avx512<Bits, isa::avx512_vbmi>(w, tables, x.data(), y.data(),
                                                           copy.data(), split);
      if (use == isa::avx512)
        return detail::gemv_avx512<Bits, isa::avx512>(w, tables, x.data(), y.data(), copy.data(),
                                                      split);
      detail::cross_vector(x.data(), w.cols(), copy.data());
      return split([&](int begin, int end) {
        detail::gemv_rows_avx2<Bits>(w, tables, copy.data(), y.data(), begin, end);
      });
    }
    const auto padded_x = detail::pad_rows(x_row, copy.data());
    return split([&](int begin, int end) {
      detail::gemm_rows_avx2(detail::bitplane_source<Bits>{w, tables}, padded_x, y_row, begin, end);
    });
  }
#endif
  split([&](int begin, int end) {
    detail::gemm_rows_scalar<Bits>(w, tables, x_row, y_row, begin, end);
  });
}

/// The same without outliers.
template <int Bits>
void gemv(bitplane_view w, codebook_view tables, vector_view<const float> x, vector_view<float> y,
          thread_pool* pool = nullptr, isa use = best_isa()) {
  gemv<Bits>(w, tables, sparse_view(), x, y, pool, use);
}

/// The same for a precision known at run time.
/// @throws error(unsupported_bits) if `bits` is outside 1..8
inline void gemv(int bits, bitplane_view w, codebook_view tables, sparse_view outliers,
                 vector_view<const float> x, vector_view<float> y, thread_pool* pool = nullptr,
                 isa use = best_isa()) {
  detail::require_bits("gemv",
                       dispatch_bits(bits, all_bits{},
                                     [&](auto b) {
                                       gemv<decltype(b)::value>(w, tables, outliers, x, y, pool,
                                                                use);
                                       return status::ok;
                                     }),
                       bits);
}
inline void gemv(int bits, bitplane_view w, codebook_view tables, vector_view<const float> x,
                 vector_view<float> y, thread_pool* pool = nullptr, isa use = best_isa()) {
  gemv(bits, w, tables, sparse_view(), x, y, pool, use);
}

/// y = W x for weights stored as float, fp16_t or bf16_t.
/// @param w [rows, cols]
template <class T>
void gemv(matrix_view<T> w, vector_view<const float> x, vector_view<float> y,
          thread_pool* pool = nullptr, isa use = best_isa()) {
  using value = std::remove_const_t<T>;
  const matrix_view<const value> weights = w;
  detail::require_supported(use, "gemv");
  detail::require_matrix("gemv", "weights", w.rows(), w.cols(), weights);
  detail::require_vectors("gemv", w.rows(), w.cols(), x, y);
  if (w.cols() == 0) return std::fill(y.begin(), y.end(), 0.0f);
#if BL_HAS_AVX2
  if (includes(use, isa::avx2))
    return detail::split_rows(
        pool, w.rows(), detail::rows_per_chunk(w.cols(), 1), [&](int begin, int end) {
          detail::gemv_rows_avx2<value>(weights, x.data(), y.data(), begin, end);
        });
#endif
  detail::split_rows(pool, w.rows(), detail::rows_per_chunk(w.cols(), 1), [&](int begin, int end) {
    detail::gemm_rows_scalar<value>(weights, matrix_view<const float>(x.data(), 1, w.cols()),
                                    matrix_view<float>(y.data(), 1, w.rows()), begin, end);
  });
}

}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
