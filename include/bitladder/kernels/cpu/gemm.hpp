// SPDX-License-Identifier: MIT
// Many vectors times a matrix of weights on the CPU: prompts and batches. Row i of the result has
// exactly the bits that gemv gives for row i of x. Tested by tests/kernels/cpu/gemm_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/kernels/cpu/detail/avx2_gemm.hpp>
#include <bitladder/kernels/cpu/detail/avx2_gemv_batch.hpp>
#include <bitladder/kernels/cpu/detail/check.hpp>
#include <bitladder/kernels/cpu/detail/outlier_rows.hpp>
#include <bitladder/kernels/cpu/detail/scalar.hpp>
#include <bitladder/kernels/cpu/detail/scratch.hpp>
#include <bitladder/kernels/cpu/detail/split_rows.hpp>
#include <bitladder/kernels/cpu/gemv.hpp>
#include <bitladder/kernels/cpu/isa.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {

namespace detail {

inline void require_batch(int rows, int cols, const matrix_view<const float>& x,
                          const matrix_view<float>& y) {
  require_matrix("gemm", "x", x.rows(), cols, x);
  require_matrix("gemm", "y", x.rows(), rows, y);
}

inline void fill_zero(const matrix_view<float>& y) {
  for (int i = 0; i < y.rows(); ++i) std::fill_n(y.row(i), y.cols(), 0.0f);
}

#if BL_HAS_AVX2
/// Two or three rows of x.
/// @param split calls its second argument over chunks of the rows, of so many of its first
template <int Bits, int Count, class Split>
void gemv_batch_avx2(const bitplane_view& w, const codebook_view& tables,
                     const matrix_view<const float>& x, const matrix_view<float>& y,
                     const Split& split) {
  const scratch crossed(Count * padded(w.cols()));
  cross_batch<Count>(x, crossed.data());
  split(rows_per_chunk(w.cols(), Count), [&](int begin, int end) {
    gemv_batch_rows_avx2<Bits, Count>(w, tables, crossed.data(), y, begin, end);
  });
}

/// @param split as above
template <class Source, class Split>
void gemm_avx2(const Source& source, int rows, const matrix_view<const float>& x,
               const matrix_view<float>& y, thread_pool* pool, const Split& split) {
  const std::size_t width = padded(source.cols());
  const scratch packed(static_cast<std::size_t>(x.rows()) * width);
  const row_cut cut(x.rows());
  parallel_for(pool, (x.rows() - 1) / cut.length + 1, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t g = begin; g < end; ++g) {
      const int i = static_cast<int>(g) * cut.length;
      pack_group_avx2<Source::crossed>(x, i, cut.end(i),
                                       packed.data() + static_cast<std::size_t>(i) * width);
    }
  });
  const int chunk = even_chunk(pool, rows, rows_per_chunk(source.cols(), x.rows()),
                               avx2_gemm_policy::block_rows(source.cols()));
  split(chunk, [&](int begin, int end) { gemm_rows_avx2(source, packed.data(), y, begin, end); });
}
#endif

}  // namespace detail

/// Y = X W^T, the weights read at `Bits` bits.
/// @tparam Bits precision to read, 1..8, at most w.planes()
/// @param tables the tables of that precision; their groups divide the columns
/// @param outliers weights that replace those of codes and tables, none or without fault
/// (find_fault, find_code_fault); summed as rule 4 of order.hpp says
/// @param x [m, cols]
/// @param y [m, rows], not overlapping x
/// @param pool null runs in the calling thread
/// @param use an instruction set this machine supports
/// @throws error if shapes or precisions disagree or a pointer is null
template <int Bits>
void gemm(bitplane_view w, codebook_view tables, sparse_view outliers, matrix_view<const float> x,
          matrix_view<float> y, thread_pool* pool = nullptr, isa use = best_isa()) {
  static_assert(Bits >= 1 && Bits <= 8, "bitplanes are read at 1 to 8 bits");
  detail::require_supported(use, "gemm");
  detail::require_weights("gemm", Bits, w, tables);
  detail::require_outliers("gemm", w, outliers);
  detail::require_batch(w.rows(), w.cols(), x, y);
  if (w.cols() == 0) return detail::fill_zero(y);
  if (x.rows() == 0 || w.rows() == 0) return;
  if (x.rows() == 1)
    return gemv<Bits>(w, tables, outliers, {x.data(), static_cast<std::size_t>(x.cols())},
                      {y.data(), static_cast<std::size_t>(y.cols())}, pool, use);
  const auto split = [&](int chunk, const auto& dense) {
    detail::split_rows(pool, w.rows(), w.cols(), chunk, outliers, [&](int begin, int end) {
      dense(begin, end);
      detail::add_outlier_rows<Bits>(w, tables, outliers, x, y, begin, end, use);
    });
  };
#if BL_HAS_AVX2
  if (includes(use, isa::avx2)) {
    if (x.rows() == 2 && detail::groups_are_whole_words(w, tables))
      return detail::gemv_batch_avx2<Bits, 2>(w, tables, x, y, split);
    if (x.rows() == 3 && detail::groups_are_whole_words(w, tables))
      return detail::gemv_batch_avx2<Bits, 3>(w, tables, x, y, split);
    return detail::gemm_avx2(detail::bitplane_source<Bits>{w, tables}, w.rows(), x, y, pool, split);
  }
#endif
  split(detail::rows_per_chunk(w.cols(), x.rows()),
        [&](int begin, int end) { detail::gemm_rows_scalar<Bits>(w, tables, x, y, begin, end); });
}

/// The same without outliers.
template <int Bits>
void gemm(bitplane_view w, codebook_view tables, matrix_view<const float> x, matrix_view<float> y,
          thread_pool* pool = nullptr, isa use = best_isa()) {
  gemm<Bits>(w, tables, sparse_view(), x, y, pool, use);
}

/// The same for a precision known at run time.
/// @throws error(unsupported_bits) if `bits` is outside 1..8
inline void gemm(int bits, bitplane_view w, codebook_view tables, sparse_view outliers,
                 matrix_view<const float> x, matrix_view<float> y, thread_pool* pool = nullptr,
                 isa use = best_isa()) {
  detail::require_bits("gemm",
                       dispatch_bits(bits, all_bits{},
                                     [&](auto b) {
                                       gemm<decltype(b)::value>(w, tables, outliers, x, y, pool,
                                                                use);
                                       return status::ok;
                                     }),
                       bits);
}
inline void gemm(int bits, bitplane_view w, codebook_view tables, matrix_view<const float> x,
                 matrix_view<float> y, thread_pool* pool = nullptr, isa use = best_isa()) {
  gemm(bits, w, tables, sparse_view(), x, y, pool, use);
}

/// Y = X W^T for weights stored as float, fp16_t or bf16_t.
/// @param w [rows, cols]
template <class T>
void gemm(matrix_view<T> w, matrix_view<const float> x, matrix_view<float> y,
          thread_pool* pool = nullptr, isa use = best_isa()) {
  using value = std::remove_const_t<T>;
  const matrix_view<const value> weights = w;
  detail::require_supported(use, "gemm");
  detail::require_matrix("gemm", "weights", w.rows(), w.cols(), weights);
  detail::require_batch(w.rows(), w.cols(), x, y);
  if (w.cols() == 0) return detail::fill_zero(y);
  if (x.rows() == 0 || w.rows() == 0) return;
  if (x.rows() == 1)
    return gemv(weights, {x.data(), static_cast<std::size_t>(x.cols())},
                {y.data(), static_cast<std::size_t>(y.cols())}, pool, use);
#if BL_HAS_AVX2
  if (includes(use, isa::avx2))
    return detail::gemm_avx2(
        detail::dense_source<value>{weights}, w.rows(), x, y, pool,
        [&](int chunk, const auto& body) { detail::split_rows(pool, w.rows(), chunk, body); });
#endif
  detail::split_rows(
      pool, w.rows(), detail::rows_per_chunk(w.cols(), x.rows()),
      [&](int begin, int end) { detail::gemm_rows_scalar<value>(weights, x, y, begin, end); });
}

}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
