// SPDX-License-Identifier: MIT
// Bitplanes to floats on the CPU: the weights themselves, exactly as the tables, or where there are
// outliers those, hold them. Tested by tests/kernels/cpu/dequantize_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/kernels/cpu/detail/avx2_gemm.hpp>
#include <bitladder/kernels/cpu/detail/check.hpp>
#include <bitladder/kernels/cpu/detail/scalar.hpp>
#include <bitladder/kernels/cpu/detail/scratch.hpp>
#include <bitladder/kernels/cpu/detail/split_rows.hpp>
#include <bitladder/kernels/cpu/isa.hpp>

#include <algorithm>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {

/// out[r][c] = the weight's value at `Bits` bits.
/// @tparam Bits precision to read, 1..8, at most w.planes()
/// @param tables the tables of that precision; their groups divide the columns
/// @param out [rows, cols]
/// @param pool null runs in the calling thread
/// @param use an instruction set this machine supports
/// @throws error if shapes or precisions disagree or a pointer is null
template <int Bits>
void dequantize(bitplane_view w, codebook_view tables, matrix_view<float> out,
                thread_pool* pool = nullptr, isa use = best_isa()) {
  static_assert(Bits >= 1 && Bits <= 8, "bitplanes are read at 1 to 8 bits");
  detail::require_supported(use, "dequantize");
  detail::require_weights("dequantize", Bits, w, tables);
  detail::require_matrix("dequantize", "out", w.rows(), w.cols(), out);
  const int cols = w.cols();
  if (cols == 0) return;
#if BL_HAS_AVX2
  if (includes(use, isa::avx2))
    return detail::split_rows(
        pool, w.rows(), detail::rows_per_chunk(cols, 1), [&](int begin, int end) {
          const detail::bitplane_source<Bits> source{w, tables};
          const int whole =
              cols / 32 * 32;  // decode() pads to whole words, `out` ends with the columns
          for (int r = begin; r < end; ++r) {
            if (whole > 0) source.decode(r, 0, whole, out.row(r));
            if (whole == cols) continue;
            float last[32];
            source.decode(r, whole, cols, last);
            std::copy_n(last, cols - whole, out.row(r) + whole);
          }
        });
#endif
  detail::split_rows(pool, w.rows(), detail::rows_per_chunk(cols, 1), [&](int begin, int end) {
    for (int r = begin; r < end; ++r)
      detail::decode_scalar<Bits>(w, tables, r, 0, cols, out.row(r));
  });
}

/// The same with outliers, which replace what codes and tables give.
/// @param outliers none, or without fault (find_fault)
template <int Bits>
void dequantize(bitplane_view w, codebook_view tables, sparse_view outliers, matrix_view<float> out,
                thread_pool* pool = nullptr, isa use = best_isa()) {
  detail::require_outliers("dequantize", w, outliers);
  dequantize<Bits>(w, tables, out, pool, use);
  if (outliers.empty()) return;
  for (int r = 0; r < w.rows(); ++r)
    for (int i = outliers.begin(r); i < outliers.end(r); ++i)
      out(r, outliers.columns()[i]) = to_float(outliers.values()[i]);
}

/// The same for a precision known at run time.
/// @throws error(unsupported_bits) if `bits` is outside 1..8
inline void dequantize(int bits, bitplane_view w, codebook_view tables, matrix_view<float> out,
                       thread_pool* pool = nullptr, isa use = best_isa()) {
  detail::require_bits("dequantize",
                       dispatch_bits(bits, all_bits{},
                                     [&](auto b) {
                                       dequantize<decltype(b)::value>(w, tables, out, pool, use);
                                       return status::ok;
                                     }),
                       bits);
}
inline void dequantize(int bits, bitplane_view w, codebook_view tables, sparse_view outliers,
                       matrix_view<float> out, thread_pool* pool = nullptr, isa use = best_isa()) {
  detail::require_bits("dequantize",
                       dispatch_bits(bits, all_bits{},
                                     [&](auto b) {
                                       dequantize<decltype(b)::value>(w, tables, outliers, out,
                                                                      pool, use);
                                       return status::ok;
                                     }),
                       bits);
}

}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
