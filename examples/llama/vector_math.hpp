// SPDX-License-Identifier: MIT
// The row arithmetic of a forward pass on a CPU: softmax, silu, RMS norm, rope, sums. Every
// function is one loop body that `run` compiles twice, for AVX2 and for any processor. Products and
// sums meet only in explicit fma, and long sums run in 8 fixed lanes, so both give the same bits.
// Tested by tests/llama/vector_math_test.cpp.
#pragma once

#include <bitladder/kernels/cpu/isa.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace llama {

using bitladder::cpu::isa;

#if BL_HAS_AVX2
namespace detail {
template <class Body, class... Args>
BL_AVX2 auto run_avx2(Args... args) {
  return Body::run(args...);
}
}  // namespace detail
#endif

/// `Body::run(args...)`, which must be always_inline, compiled for `which`.
template <class Body, class... Args>
auto run(isa which, Args... args) {
#if BL_HAS_AVX2
  if (bitladder::cpu::includes(which, isa::avx2)) return detail::run_avx2<Body>(args...);
#endif
  static_cast<void>(which);
  return Body::run(args...);
}

namespace detail {

/// e^x within 2 ulp for -87 <= x <= 88, clamped outside, NaN for NaN: x = n ln 2 + r, then the
/// Taylor series of e^r to r^7 (|r| <= 0.35, so the next term is under 6e-9), times 2^n.
[[gnu::always_inline]] inline float exp(float x) {
  constexpr float lowest = -87.3f, highest = 88.3f;
  x = lowest > x ? lowest : x;  // this way round NaN stays
  x = highest < x ? highest : x;
  constexpr float round = 12582912.f;  // 1.5 * 2^23: adding it leaves the integer in the low bits
  const float shifted = __builtin_fmaf(x, 1.44269504f, round);
  const float n = shifted - round;
  float r = __builtin_fmaf(n, -0.693359375f, x);  // ln 2 in two parts, the first exact times n
  r = __builtin_fmaf(n, 2.12194440e-4f, r);
  float e = 1.f / 5040;
  e = __builtin_fmaf(e, r, 1.f / 720);
  e = __builtin_fmaf(e, r, 1.f / 120);
  e = __builtin_fmaf(e, r, 1.f / 24);
  e = __builtin_fmaf(e, r, 1.f / 6);
  e = __builtin_fmaf(e, r, 0.5f);
  e = __builtin_fmaf(e, r, 1.f);
  e = __builtin_fmaf(e, r, 1.f);
  std::int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = static_cast<std::int32_t>((static_cast<std::uint32_t>(bits) + 127u) << 23);
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return e * power;
}

/// The one order in which 8 lanes become a sum.
[[gnu::always_inline]] inline float sum_lanes(const float* lane) {
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

}  // namespace detail

/// The largest of `count` numbers, at least one.
struct row_max {
  [[gnu::always_inline]] static inline float run(const float* x, std::size_t count) {
    float lane[8];
    for (float& l : lane) l = x[0];
    std::size_t i = 0;
    for (; i + 8 <= count; i += 8)
      for (std::size_t j = 0; j < 8; ++j) lane[j] = lane[j] > x[i + j] ? lane[j] : x[i + j];
    float max = lane[0];
    for (float l : lane) max = max > l ? max : l;
    for (; i < count; ++i) max = max > x[i] ? max : x[i];
    return max;
  }
};

/// x[i] = e^(scale (x[i] - shift)); returns their sum.
struct exp_terms {
  [[gnu::always_inline]] static inline float run(float* x, std::size_t count, float shift,
                                                 float scale) {
    for (std::size_t i = 0; i < count; ++i) x[i] = detail::exp((x[i] - shift) * scale);
    float lane[8] = {};
    std::size_t i = 0;
    for (; i + 8 <= count; i += 8)
      for (std::size_t j = 0; j < 8; ++j) lane[j] += x[i + j];
    for (std::size_t j = 0; i + j < count; ++j) lane[j] += x[i + j];
    return detail::sum_lanes(lane);
  }
};

/// gate[i] = silu(gate[i]) * up[i], silu(x) = x / (1 + e^-x).
struct silu_product {
  [[gnu::always_inline]] static inline void run(float* __restrict gate, const float* __restrict up,
                                                std::size_t count) {
    for (std::size_t i = 0; i < count; ++i)
      gate[i] = gate[i] / (1.f + detail::exp(-gate[i])) * up[i];
  }
};

/// out = x / rms(x) * weight, rms over `count` numbers.
struct rms_norm_row {
  [[gnu::always_inline]] static inline void run(const float* __restrict x,
                                                const float* __restrict weight,
                                                float* __restrict out, std::size_t count,
                                                float epsilon) {
    float lane[8] = {};
    std::size_t i = 0;
    for (; i + 8 <= count; i += 8)
      for (std::size_t j = 0; j < 8; ++j) lane[j] = __builtin_fmaf(x[i + j], x[i + j], lane[j]);
    for (std::size_t j = 0; i + j < count; ++j)
      lane[j] = __builtin_fmaf(x[i + j], x[i + j], lane[j]);
    const float mean = detail::sum_lanes(lane) / static_cast<float>(count);
    const float scale = 1.f / std::sqrt(mean + epsilon);
    for (i = 0; i < count; ++i) out[i] = x[i] * scale * weight[i];
  }
};

/// Turns the pairs (x[i], x[i + pairs]) of one head by the angles of one position.
struct rope_head {
  [[gnu::always_inline]] static inline void run(float* x, const float* __restrict cosines,
                                                const float* __restrict sines, std::size_t pairs) {
    float* __restrict low = x;
    float* __restrict high = x + pairs;
    for (std::size_t i = 0; i < pairs; ++i) {
      const float a = low[i], b = high[i];
      low[i] = __builtin_fmaf(a, cosines[i], -(b * sines[i]));
      high[i] = __builtin_fmaf(b, cosines[i], a * sines[i]);
    }
  }
};

/// y += x
struct add_row {
  [[gnu::always_inline]] static inline void run(const float* __restrict x, float* __restrict y,
                                                std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) y[i] += x[i];
  }
};

}  // namespace llama
