// SPDX-License-Identifier: MIT
// Element types of stored tensors, and 16-bit floats as plain storage with exact conversions:
// widening is exact, narrowing rounds to nearest even, NaN stays NaN, overflow becomes infinity. No
// hardware type is needed, so host code and kernels agree on the bits. Tested by
// tests/core/dtype_test.cpp.
#pragma once

#include <bitladder/config.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace bitladder {
inline namespace v0_1 {

/// Element type of a stored tensor.
enum class dtype : std::uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u8, boolean };

/// Bytes of one element.
constexpr std::size_t size_of(dtype t) noexcept {
  switch (t) {
    case dtype::f64:
    case dtype::i64: return 8;
    case dtype::f32:
    case dtype::i32: return 4;
    case dtype::f16:
    case dtype::bf16:
    case dtype::i16: return 2;
    case dtype::i8:
    case dtype::u8:
    case dtype::boolean: return 1;
  }
  return 0;
}

/// The name that safetensors uses.
constexpr const char* to_string(dtype t) noexcept {
  switch (t) {
    case dtype::f64: return "F64";
    case dtype::f32: return "F32";
    case dtype::f16: return "F16";
    case dtype::bf16: return "BF16";
    case dtype::i64: return "I64";
    case dtype::i32: return "I32";
    case dtype::i16: return "I16";
    case dtype::i8: return "I8";
    case dtype::u8: return "U8";
    case dtype::boolean: return "BOOL";
  }
  return "?";
}

namespace detail {

BL_HOST_DEVICE inline std::uint32_t bits_of(float x) noexcept {
  std::uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}

BL_HOST_DEVICE inline float float_of(std::uint32_t u) noexcept {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

}  // namespace detail

/// IEEE binary16 as storage: convert before doing arithmetic.
struct fp16_t {
  std::uint16_t bits;
};

/// bfloat16 (the upper half of a float) as storage.
struct bf16_t {
  std::uint16_t bits;
};

BL_HOST_DEVICE constexpr bool operator==(fp16_t a, fp16_t b) noexcept { return a.bits == b.bits; }
BL_HOST_DEVICE constexpr bool operator!=(fp16_t a, fp16_t b) noexcept { return a.bits != b.bits; }
BL_HOST_DEVICE constexpr bool operator==(bf16_t a, bf16_t b) noexcept { return a.bits == b.bits; }
BL_HOST_DEVICE constexpr bool operator!=(bf16_t a, bf16_t b) noexcept { return a.bits != b.bits; }

/// Largest finite fp16 value.
inline constexpr float fp16_max = 65504.f;

BL_HOST_DEVICE inline float to_float(float x) noexcept { return x; }

/// Exact.
BL_HOST_DEVICE inline float to_float(bf16_t x) noexcept {
  return detail::float_of(static_cast<std::uint32_t>(x.bits) << 16);
}

/// Exact, subnormals included.
BL_HOST_DEVICE inline float to_float(fp16_t x) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u)
    return detail::float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Exponent and mantissa in float position are 2^112 too small; the product restores them, and
  // turns fp16 subnormals into normal floats.
  const float scaled = detail::float_of(magnitude << 13) * detail::float_of(0x77800000u);
  return detail::float_of(sign | detail::bits_of(scaled));
}

/// Nearest even.
BL_HOST_DEVICE inline bf16_t to_bf16(float x) noexcept {
  const std::uint32_t u = detail::bits_of(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(u >> 16 | 0x40u)};
  return {static_cast<std::uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}

/// Nearest even; beyond 65504 by half a step or more becomes infinity.
BL_HOST_DEVICE inline fp16_t to_fp16(float x) noexcept {
  const std::uint32_t u = detail::bits_of(x);
  const std::uint32_t sign = u >> 16 & 0x8000u;
  const std::uint32_t magnitude = u & 0x7fffffffu;
  std::uint32_t out;
  if (magnitude > 0x7f800000u) {
    out = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520, the midpoint above 65504, and all beyond
    out = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: the result is subnormal
    // Adding 0.5 puts the last bit of an fp16 subnormal at the last bit of the float, so that the
    // addition itself rounds to nearest even.
    out = detail::bits_of(detail::float_of(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    out = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | out)};
}

/// The dtype tag of a C++ element type.
template <class T>
struct dtype_of;
template <>
struct dtype_of<double> {
  static constexpr dtype value = dtype::f64;
};
template <>
struct dtype_of<float> {
  static constexpr dtype value = dtype::f32;
};
template <>
struct dtype_of<fp16_t> {
  static constexpr dtype value = dtype::f16;
};
template <>
struct dtype_of<bf16_t> {
  static constexpr dtype value = dtype::bf16;
};
template <>
struct dtype_of<std::int64_t> {
  static constexpr dtype value = dtype::i64;
};
template <>
struct dtype_of<std::int32_t> {
  static constexpr dtype value = dtype::i32;
};
template <>
struct dtype_of<std::uint8_t> {
  static constexpr dtype value = dtype::u8;
};

}  // namespace v0_1
}  // namespace bitladder
