// SPDX-License-Identifier: MIT
// Floats out of the tensors of a GGUF file. Quantized types are blocks of 32 elements of one row:
// a scale (fp16), for the _1 types an offset (fp16), for the Q5 types 32 high bits, then 32 codes;
// element j < 16 has the low half of code byte j, element j + 16 the high half. Every result is
// exact or rounded once, hence the same on every machine. Tested by
// tests/io/gguf_dequantize_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/gguf.hpp>
#include <bitladder/io/gguf_tensor.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace detail {

inline float load_fp16(const std::byte* p) {
  fp16_t x;
  std::memcpy(&x, p, sizeof x);
  return to_float(x);
}

/// Q4_0, Q4_1, Q5_0, Q5_1: `code * scale + offset` or `(code - middle) * scale`.
template <bool HasOffset, bool HasHighBits>
void dequantize_gguf_nibbles(const std::byte* block, std::uint64_t blocks, float* out) {
  constexpr std::size_t high_at = HasOffset ? 4 : 2;
  constexpr std::size_t codes_at = high_at + (HasHighBits ? 4 : 0);
  constexpr int middle = HasOffset ? 0 : HasHighBits ? 16 : 8;
  for (std::uint64_t b = 0; b < blocks; ++b, block += codes_at + 16, out += 32) {
    const float scale = load_fp16(block);
    [[maybe_unused]] const float offset = HasOffset ? load_fp16(block + 2) : 0;
    [[maybe_unused]] std::uint32_t high = 0;
    if constexpr (HasHighBits) std::memcpy(&high, block + high_at, sizeof high);
    for (int j = 0; j < 16; ++j) {
      const int byte = static_cast<int>(block[codes_at + static_cast<std::size_t>(j)]);
      int low_code = byte & 15, high_code = byte >> 4;
      if constexpr (HasHighBits) {
        low_code |= static_cast<int>(high >> j & 1u) << 4;
        high_code |= static_cast<int>(high >> (j + 16) & 1u) << 4;
      }
      // 11 bits times 5 fit a float, so only the addition can round.
      if constexpr (HasOffset) {
        out[j] = static_cast<float>(low_code) * scale + offset;
        out[j + 16] = static_cast<float>(high_code) * scale + offset;
      } else {
        out[j] = static_cast<float>(low_code - middle) * scale;
        out[j + 16] = static_cast<float>(high_code - middle) * scale;
      }
    }
  }
}

inline void dequantize_gguf_q8_0(const std::byte* block, std::uint64_t blocks, float* out) {
  for (std::uint64_t b = 0; b < blocks; ++b, block += 34, out += 32) {
    const float scale = load_fp16(block);
    std::int8_t codes[32];
    std::memcpy(codes, block + 2, sizeof codes);
    for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(codes[j]) * scale;
  }
}

template <class Half>
void widen_gguf(const std::byte* source, std::uint64_t count, float* out) {
  for (std::uint64_t i = 0; i < count; ++i) {
    Half x;
    std::memcpy(&x, source + i * sizeof x, sizeof x);
    out[i] = to_float(x);
  }
}

}  // namespace detail

/// Whether `dequantize` knows the type.
constexpr bool can_dequantize(gguf_type type) noexcept {
  switch (type) {
    case gguf_type::f32:
    case gguf_type::f16:
    case gguf_type::bf16:
    case gguf_type::q8_0:
    case gguf_type::q4_0:
    case gguf_type::q4_1:
    case gguf_type::q5_0:
    case gguf_type::q5_1: return true;
    default: return false;
  }
}

/// Rows [first, first + count) of a tensor as floats, row after row.
/// @param t one of file.tensors()
/// @param out count * t.cols() floats
/// @throws error(bad_file) naming file, tensor and type if the type is not supported,
/// error(invalid_argument) if the range leaves the tensor
inline void dequantize_rows(const gguf_file& file, const gguf_tensor& t, std::uint64_t first,
                            std::uint64_t count, float* out) {
  const auto fail = [&](status code, const std::string& what) {
    throw error(code, file.path() + ": tensor " + detail::quoted(t.name) + ": " + what);
  };
  if (!can_dequantize(t.type))
    fail(status::bad_file, std::string("type ") + to_string(t.type) +
                               " is not supported (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 and "
                               "Q5_1 are)");
  if (first > t.rows() || count > t.rows() - first)
    fail(status::invalid_argument, std::to_string(count) + " rows from " + std::to_string(first) +
                                       " on asked for, " + std::to_string(t.rows()) + " present");
  const std::uint64_t elements = count * t.cols();
  if (elements == 0) return;
  const gguf_type_info type = *find_gguf_type(static_cast<std::uint32_t>(t.type));
  const std::byte* source = file.bytes(t).data() + first * (t.cols() / type.block) * type.bytes;
  const std::uint64_t blocks = elements / type.block;
  switch (t.type) {
    case gguf_type::f32: std::memcpy(out, source, elements * sizeof(float)); return;
    case gguf_type::f16: detail::widen_gguf<fp16_t>(source, elements, out); return;
    case gguf_type::bf16: detail::widen_gguf<bf16_t>(source, elements, out); return;
    case gguf_type::q8_0: detail::dequantize_gguf_q8_0(source, blocks, out); return;
    case gguf_type::q4_0:
      detail::dequantize_gguf_nibbles<false, false>(source, blocks, out);
      return;
    case gguf_type::q4_1: detail::dequantize_gguf_nibbles<true, false>(source, blocks, out); return;
    case gguf_type::q5_0: detail::dequantize_gguf_nibbles<false, true>(source, blocks, out); return;
    case gguf_type::q5_1: detail::dequantize_gguf_nibbles<true, true>(source, blocks, out); return;
    default: return;  // refused above
  }
}

/// All of a tensor.
inline std::vector<float> dequantize(const gguf_file& file, const gguf_tensor& t) {
  // Before memory is taken for it: sub-byte types may grow by a factor of 60.
  if (!can_dequantize(t.type)) dequantize_rows(file, t, 0, 0, nullptr);
  std::vector<float> values(static_cast<std::size_t>(t.elements()));
  dequantize_rows(file, t, 0, t.rows(), values.data());
  return values;
}
inline std::vector<float> dequantize(const gguf_file& file, const std::string& name) {
  return dequantize(file, file.at(name));
}

}  // namespace v0_1
}  // namespace bitladder
