// SPDX-License-Identifier: MIT
// Seed 11.
#include <bitladder/core/dtype.hpp>

#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using bitladder::bf16_t;
using bitladder::fp16_t;

namespace {

// The value of a binary16 pattern, from the definition.
double fp16_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// The nearest finite binary16 by search over all of them, ties to the even pattern.
std::uint16_t nearest_fp16(double x) {
  static const std::vector<double> values = [] {
    std::vector<double> v;
    for (std::uint16_t b = 0; b < 0x7c00; ++b) v.push_back(fp16_value(b));
    return v;
  }();
  const double a = std::fabs(x);
  std::size_t above = 0;
  for (std::size_t step = 1u << 14; step > 0; step /= 2)
    if (above + step < values.size() && values[above + step] <= a) above += step;
  // values[above] <= a < values[above + 1]
  std::uint16_t best = static_cast<std::uint16_t>(above);
  if (above + 1 < values.size()) {
    const double down = a - values[above], up = values[above + 1] - a;
    if (up < down || (up == down && best % 2 == 1)) ++best;
  } else if (a >= 65520) {
    best = 0x7c00;
  }
  return static_cast<std::uint16_t>(best | (std::signbit(x) ? 0x8000 : 0));
}

}  // namespace

TEST_CASE("every fp16 pattern widens to its exact value and comes back") {
  for (std::uint32_t b = 0; b < 0x10000; ++b) {
    const fp16_t h{static_cast<std::uint16_t>(b)};
    const float f = bitladder::to_float(h);
    if ((b & 0x7fff) > 0x7c00) {
      CHECK(std::isnan(f));
      CHECK(std::isnan(bitladder::to_float(bitladder::to_fp16(f))));
    } else if ((b & 0x7fff) == 0x7c00) {
      CHECK(std::isinf(f));
      CHECK(bitladder::to_fp16(f) == h);
    } else {
      CHECK(static_cast<double>(f) == fp16_value(h.bits));
      CHECK(std::signbit(f) == ((b & 0x8000) != 0));
      CHECK(bitladder::to_fp16(f) == h);
    }
  }
}

TEST_CASE("narrowing to fp16 rounds to nearest even, at midpoints and around them") {
  for (std::uint32_t b = 0; b < 0x7bff; ++b) {
    const double low = fp16_value(static_cast<std::uint16_t>(b));
    const double high = fp16_value(static_cast<std::uint16_t>(b + 1));
    const float middle = static_cast<float>((low + high) / 2);  // exact in a float
    for (float x : {middle, std::nextafterf(middle, 0), std::nextafterf(middle, 1e9f)}) {
      CHECK(bitladder::to_fp16(x).bits == nearest_fp16(x));
      CHECK(bitladder::to_fp16(-x).bits == nearest_fp16(-x));
    }
  }
  CHECK(bitladder::to_fp16(65519.996f).bits == 0x7bff);
  CHECK(bitladder::to_fp16(65520.f).bits == 0x7c00);
  CHECK(bitladder::to_fp16(std::numeric_limits<float>::max()).bits == 0x7c00);
  CHECK(bitladder::to_fp16(std::numeric_limits<float>::denorm_min()).bits == 0);
  CHECK(bitladder::to_fp16(-0.f).bits == 0x8000);
}

TEST_CASE("random floats of every exponent narrow to the nearest fp16") {
  support::random random(11);
  for (int i = 0; i < 20000; ++i) {
    const float x = static_cast<float>(std::ldexp(random.uniform() * 2 - 1, random.below(60) - 40));
    CHECK(bitladder::to_fp16(x).bits == nearest_fp16(x));
  }
}

TEST_CASE("bf16 is the upper half of a float, rounded to nearest even") {
  for (std::uint32_t b = 0; b < 0x10000; ++b) {
    const bf16_t h{static_cast<std::uint16_t>(b)};
    const float f = bitladder::to_float(h);
    if (std::isnan(f)) {
      CHECK(std::isnan(bitladder::to_float(bitladder::to_bf16(f))));
      continue;
    }
    CHECK(bitladder::to_bf16(f) == h);
    if (std::isinf(f)) continue;
    const std::uint32_t word = b << 16;
    const std::uint16_t up = static_cast<std::uint16_t>(b + 1);
    CHECK(bitladder::to_bf16(bitladder::detail::float_of(word | 0x7fff)).bits == b);
    CHECK(bitladder::to_bf16(bitladder::detail::float_of(word | 0x8000)).bits == (b % 2 ? up : b));
    CHECK(bitladder::to_bf16(bitladder::detail::float_of(word | 0x8001)).bits == up);
  }
}

TEST_CASE("sizes and names agree with safetensors") {
  using bitladder::dtype;
  CHECK(bitladder::size_of(dtype::f16) == 2);
  CHECK(bitladder::size_of(dtype::i64) == 8);
  CHECK(bitladder::to_string(dtype::bf16) == std::string("BF16"));
  CHECK(bitladder::dtype_of<float>::value == dtype::f32);
}
