// SPDX-License-Identifier: MIT
// The row arithmetic of the families that are not like Llama: layer norm, ReLU, GELU. Under the
// rules of vector_math.hpp: one loop body for every instruction set, products and sums meeting only
// in explicit fma, long sums in 8 fixed lanes. Tested by tests/llama/layer_math_test.cpp.
#pragma once

#include <llama/vector_math.hpp>

#include <cmath>
#include <cstddef>

namespace llama {

/// out = (x - mean) / sqrt(variance + epsilon) * weight + bias, over `count` numbers. The variance
/// is that of the differences: a large mean costs no digits.
struct layer_norm_row {
  [[gnu::always_inline]] static inline void run(const float* __restrict x,
                                                const float* __restrict weight,
                                                const float* __restrict bias, float* __restrict out,
                                                std::size_t count, float epsilon) {
    float lane[8] = {};
    std::size_t i = 0;
    for (; i + 8 <= count; i += 8)
      for (std::size_t j = 0; j < 8; ++j) lane[j] += x[i + j];
    for (std::size_t j = 0; i + j < count; ++j) lane[j] += x[i + j];
    const float mean = detail::sum_lanes(lane) / static_cast<float>(count);
    for (i = 0; i < count; ++i) out[i] = x[i] - mean;
    for (float& l : lane) l = 0;
    for (i = 0; i + 8 <= count; i += 8)
      for (std::size_t j = 0; j < 8; ++j) lane[j] = __builtin_fmaf(out[i + j], out[i + j], lane[j]);
    for (std::size_t j = 0; i + j < count; ++j)
      lane[j] = __builtin_fmaf(out[i + j], out[i + j], lane[j]);
    const float variance = detail::sum_lanes(lane) / static_cast<float>(count);
    const float scale = 1.f / std::sqrt(variance + epsilon);
    for (i = 0; i < count; ++i) out[i] = __builtin_fmaf(out[i] * scale, weight[i], bias[i]);
  }
};

/// x[i] = max(x[i], 0), NaN for NaN.
struct relu_row {
  [[gnu::always_inline]] static inline void run(float* __restrict x, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) x[i] = x[i] < 0.f ? 0.f : x[i];
  }
};

/// x[i] = silu(x[i]), as in silu_product.
struct silu_row {
  [[gnu::always_inline]] static inline void run(float* __restrict x, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) x[i] = x[i] / (1.f + detail::exp(-x[i]));
  }
};

/// x[i] = x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3): GELU as GPT-2 and Phi have
/// it. Computed as x / (1 + e^-2u), which is the same, without the digits that 1 + tanh u loses
/// where u is negative. To first order the absolute error is at most
///   2^-23 (3 |gelu(x)| + 2 |x| |2u| s (1 - s)),  s = 1 / (1 + e^-2u),
/// for -2u carries 4 roundings of 2^-24 (a constant, a square, fma, product), e^ 2 ulp, sum and
/// quotient one rounding each; that is below 2^-21 |x|.
struct gelu_tanh_row {
  [[gnu::always_inline]] static inline void run(float* __restrict x, std::size_t count) {
    constexpr float a = -1.5957691216f;  // -2 sqrt(2 / pi)
    constexpr float b = -1.5957691216f * 0.044715f;
    for (std::size_t i = 0; i < count; ++i) {
      const float v = x[i];
      const float slope = __builtin_fmaf(b, v * v, a);
      x[i] = v / (1.f + detail::exp(slope * v));
    }
  }
};

}  // namespace llama
