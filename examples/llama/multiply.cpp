// SPDX-License-Identifier: MIT
#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cpu/gemm.hpp>

#include <llama/multiply.hpp>

#if defined(BL_HAS_CBLAS)
#include <bitladder/kernels/cpu/gemm_blas.hpp>

#include <cblas.h>
#endif

#include <cstddef>

namespace llama {
namespace {

/// Calls `with` with the weight's operands: planes, tables and outliers, or rows of its type.
template <class F>
void with_operands(const linear_weight& w, int bits, F&& with) {
  if (w.quantized())
    return with(bits, w.planes, w.table[static_cast<std::size_t>(bits)], w.outliers);
  switch (w.dense.type) {
    case bitladder::dtype::f16: return with(w.dense.view<bitladder::fp16_t>());
    case bitladder::dtype::bf16: return with(w.dense.view<bitladder::bf16_t>());
    default: return with(w.dense.view<float>());
  }
}

#if defined(BL_HAS_CBLAS)
/// C = A B^T
void sgemm(int m, int n, int k, const float* a, int lda, const float* b, int ldb, float* c,
           int ldc) {
#if defined(OPENBLAS_VERSION)
  // The pool's threads each call it; threads of its own would fight with them over the cores.
  static const bool once = (openblas_set_num_threads(1), true);
  static_cast<void>(once);
#endif
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, a, lda, b, ldb, 0, c, ldc);
}
#endif

}  // namespace

bool has_blas() {
#if defined(BL_HAS_CBLAS)
  return true;
#else
  return false;
#endif
}

void multiply(const linear_weight& w, int bits, bitladder::matrix_view<const float> x,
              bitladder::matrix_view<float> y, bitladder::thread_pool* pool, summation order) {
#if defined(BL_HAS_CBLAS)
  if (order == summation::blas && x.rows() >= bitladder::cpu::gemm_blas_policy::min_vectors)
    return with_operands(w, bits, [&](const auto&... operands) {
      bitladder::cpu::gemm_blas(operands..., x, y, sgemm, pool);
    });
#else
  static_cast<void>(order);
#endif
  with_operands(w, bits,
                [&](const auto&... operands) { bitladder::cpu::gemm(operands..., x, y, pool); });
}

}  // namespace llama
