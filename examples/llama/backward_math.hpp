// SPDX-License-Identifier: MIT
// The row arithmetic of a backward pass on a CPU: how norms, activations, rope and the loss pass a
// gradient on. Under the rules of vector_math.hpp; sums along a row are doubles in 8 fixed lanes,
// for what is passed on is often a small difference of them. Tested by
// tests/llama/backward_math_test.cpp.
#pragma once

#include <llama/vector_math.hpp>

#include <cmath>
#include <cstddef>

namespace llama {
namespace detail {

[[gnu::always_inline]] inline double sum_lanes(const double* lane) {
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/// The sum of f(i) for i < count.
template <class F>
[[gnu::always_inline]] inline double long_sum(std::size_t count, F&& f) {
  double lane[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (std::size_t j = 0; j < 8; ++j) lane[j] += f(i + j);
  for (std::size_t j = 0; i + j < count; ++j) lane[j] += f(i + j);
  return sum_lanes(lane);
}

}  // namespace detail

/// `d` is the gradient of rms_norm_row's result and becomes that of its x.
struct rms_norm_gradient_row {
  static void run(const float* x, const float* weight, float* d, std::size_t count, float epsilon) {
    const auto n = static_cast<double>(count);
    const double squares = detail::long_sum(count, [x](std::size_t i) {
      return static_cast<double>(x[i]) * static_cast<double>(x[i]);
    });
    const double scale = 1 / std::sqrt(squares / n + static_cast<double>(epsilon));
    const double along = detail::long_sum(count, [=](std::size_t i) {
      return static_cast<double>(x[i]) * static_cast<double>(d[i]) * static_cast<double>(weight[i]);
    });
    const double back = along * scale * scale / n;  // how much of x itself is taken off
    for (std::size_t i = 0; i < count; ++i)
      d[i] =
          static_cast<float>(scale * (static_cast<double>(d[i]) * static_cast<double>(weight[i]) -
                                      static_cast<double>(x[i]) * back));
  }
};

/// `d` is the gradient of layer_norm_row's result and becomes that of its x.
struct layer_norm_gradient_row {
  static void run(const float* x, const float* weight, float* d, std::size_t count, float epsilon) {
    const auto n = static_cast<double>(count);
    const double mean =
        detail::long_sum(count, [x](std::size_t i) { return static_cast<double>(x[i]); }) / n;
    const double variance = detail::long_sum(count,
                                             [=](std::size_t i) {
                                               const double e = static_cast<double>(x[i]) - mean;
                                               return e * e;
                                             }) /
                            n;
    const double scale = 1 / std::sqrt(variance + static_cast<double>(epsilon));
    const auto passed = [=](std::size_t i) {
      return static_cast<double>(d[i]) * static_cast<double>(weight[i]);
    };
    const double level = detail::long_sum(count, passed) / n;
    const double along =
        detail::long_sum(
            count, [=](std::size_t i) { return passed(i) * (static_cast<double>(x[i]) - mean); }) /
        n;
    const double back = along * scale * scale;
    for (std::size_t i = 0; i < count; ++i)
      d[i] = static_cast<float>(scale *
                                (passed(i) - level - (static_cast<double>(x[i]) - mean) * back));
  }
};

/// `d` is the gradient of rope_head's result and becomes that of what it was given: the angles turn
/// back.
struct rope_gradient_head {
  [[gnu::always_inline]] static inline void run(float* d, const float* __restrict cosines,
                                                const float* __restrict sines, std::size_t pairs) {
    float* __restrict low = d;
    float* __restrict high = d + pairs;
    for (std::size_t i = 0; i < pairs; ++i) {
      const float a = low[i], b = high[i];
      low[i] = __builtin_fmaf(a, cosines[i], b * sines[i]);
      high[i] = __builtin_fmaf(b, cosines[i], -(a * sines[i]));
    }
  }
};

/// `d` is the gradient of silu_product's result; `gate` and `up` become those of themselves.
struct silu_product_gradient {
  [[gnu::always_inline]] static inline void run(const float* __restrict d, float* __restrict gate,
                                                float* __restrict up, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      const float x = gate[i], e = detail::exp(-x), s = 1.f / (1.f + e);
      // 1 - s as e s: no digits are lost where s is nearly 1.
      gate[i] = d[i] * up[i] * (s * __builtin_fmaf(x, e * s, 1.f));
      up[i] = d[i] * (x * s);
    }
  }
};

/// d *= silu'(x)
struct silu_gradient_row {
  [[gnu::always_inline]] static inline void run(const float* __restrict x, float* __restrict d,
                                                std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      const float e = detail::exp(-x[i]), s = 1.f / (1.f + e);
      d[i] *= s * __builtin_fmaf(x[i], e * s, 1.f);
    }
  }
};

/// d *= relu'(x), 0 where x is 0.
struct relu_gradient_row {
  [[gnu::always_inline]] static inline void run(const float* __restrict x, float* __restrict d,
                                                std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) d[i] = x[i] <= 0.f ? 0.f : d[i];
  }
};

/// d *= f'(x), f as in gelu_tanh_row: x s(z), z = 2 sqrt(2 / pi) (x + 0.044715 x^3), s the logistic
/// function, so f' = s + x s (1 - s) z'.
struct gelu_tanh_gradient_row {
  [[gnu::always_inline]] static inline void run(const float* __restrict x, float* __restrict d,
                                                std::size_t count) {
    constexpr float a = 1.5957691216f;  // 2 sqrt(2 / pi)
    constexpr float b = 1.5957691216f * 0.044715f;
    for (std::size_t i = 0; i < count; ++i) {
      const float v = x[i], square = v * v;
      const float e = detail::exp(-v * __builtin_fmaf(b, square, a)), s = 1.f / (1.f + e);
      const float slope = __builtin_fmaf(3.f * b, square, a);
      d[i] *= s * __builtin_fmaf(v * slope, e * s, 1.f);
    }
  }
};

/// -log softmax(x)[target], in nats; `x` becomes the gradient of `scale` times that.
struct loss_row {
  [[gnu::always_inline]] static inline double run(float* x, std::size_t count, std::size_t target,
                                                  double scale) {
    const float max = row_max::run(x, count);
    const double reached = static_cast<double>(x[target]) - static_cast<double>(max);
    for (std::size_t i = 0; i < count; ++i) x[i] = detail::exp(x[i] - max);
    const double sum =
        detail::long_sum(count, [x](std::size_t i) { return static_cast<double>(x[i]); });
    const double others = sum - static_cast<double>(x[target]);  // exact where p - 1 would not be
    const auto each = static_cast<float>(scale / sum);
    for (std::size_t i = 0; i < count; ++i) x[i] *= each;
    x[target] = static_cast<float>(-others * scale / sum);
    return std::log(sum) - reached;
  }
};

}  // namespace llama
