// SPDX-License-Identifier: MIT
// From float sums to what a caller asked for: bias, residual or SwiGLU, then one rounding to the
// output type. Device code only. Tested by tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// Where the results of one matrix go.
struct output_row_params {
  void* y;
  const void* bias;
  const void* residual;
  std::int64_t stride;  ///< elements from one token to the next, of y and residual
  int rows;
};

/// What all matrices of a launch share.
struct output_params {
  dtype type;  ///< f16, bf16 or f32
};

__device__ inline float read_element(dtype type, const void* p, std::int64_t i) {
  switch (type) {
    case dtype::f16: return __half2float(static_cast<const __half*>(p)[i]);
    case dtype::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
    default: return static_cast<const float*>(p)[i];
  }
}

__device__ inline void write_element(dtype type, void* p, std::int64_t i, float v) {
  switch (type) {
    case dtype::f16: static_cast<__half*>(p)[i] = __float2half_rn(v); return;
    case dtype::bf16: static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16_rn(v); return;
    default: static_cast<float*>(p)[i] = v; return;
  }
}

__device__ inline float add_bias(const output_params& o, const output_row_params& m, int row,
                                 float sum) {
  return m.bias == nullptr ? sum : sum + read_element(o.type, m.bias, row);
}

/// y = sum + bias + residual.
__device__ inline void write_output(const output_params& o, const output_row_params& m, int token,
                                    int row, float sum) {
  const std::int64_t i = token * m.stride + row;
  sum = add_bias(o, m, row, sum);
  if (m.residual != nullptr) sum += read_element(o.type, m.residual, i);
  write_element(o.type, m.y, i, sum);
}

/// y = silu(gate) * up, with their biases, plus the first matrix's residual.
__device__ inline void write_swiglu(const output_params& o, const output_row_params& gate_to,
                                    const output_row_params& up_to, int token, int row, float gate,
                                    float up) {
  gate = add_bias(o, gate_to, row, gate);
  up = add_bias(o, up_to, row, up);
  const std::int64_t i = token * gate_to.stride + row;
  float v = gate / (1.f + expf(-gate)) * up;
  if (gate_to.residual != nullptr) v += read_element(o.type, gate_to.residual, i);
  write_element(o.type, gate_to.y, i, v);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
