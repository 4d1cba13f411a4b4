// SPDX-License-Identifier: MIT
#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cpu/gemm.hpp>

#include <llama/multiply.hpp>

#include <cstddef>

namespace llama {

void multiply(const linear_weight& w, int bits, bitladder::matrix_view<const float> x,
              bitladder::matrix_view<float> y, bitladder::thread_pool* pool) {
  if (w.quantized())
    return bitladder::cpu::gemm(bits, w.planes, w.table[static_cast<std::size_t>(bits)], x, y,
                                pool);
  switch (w.dense.type) {
    case bitladder::dtype::f16:
      return bitladder::cpu::gemm(w.dense.view<bitladder::fp16_t>(), x, y, pool);
    case bitladder::dtype::bf16:
      return bitladder::cpu::gemm(w.dense.view<bitladder::bf16_t>(), x, y, pool);
    default: return bitladder::cpu::gemm(w.dense.view<float>(), x, y, pool);
  }
}

}  // namespace llama
