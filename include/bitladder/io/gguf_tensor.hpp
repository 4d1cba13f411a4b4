// SPDX-License-Identifier: MIT
// What a GGUF file says about one tensor: its name, its shape, and an element type, which is a
// number or a block of quantized numbers that share a scale. Tested by tests/io/gguf_test.cpp.
#pragma once

#include <bitladder/io/tensor_info.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// Element type of a tensor, by the number that stands in the file.
enum class gguf_type : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q8_1 = 9,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  q8_k = 15,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39,
  nvfp4 = 40,
  q1_0 = 41,
};

/// How a type stands in the file: `bytes` for every `block` consecutive elements of a row.
struct gguf_type_info {
  gguf_type type;
  const char* name;  ///< as the format spells it
  std::uint32_t block;
  std::uint32_t bytes;
};

/// The type with that number, or nothing.
inline std::optional<gguf_type_info> find_gguf_type(std::uint32_t number) noexcept {
  static constexpr gguf_type_info table[] = {
      {gguf_type::f32, "F32", 1, 4},
      {gguf_type::f16, "F16", 1, 2},
      {gguf_type::q4_0, "Q4_0", 32, 18},
      {gguf_type::q4_1, "Q4_1", 32, 20},
      {gguf_type::q5_0, "Q5_0", 32, 22},
      {gguf_type::q5_1, "Q5_1", 32, 24},
      {gguf_type::q8_0, "Q8_0", 32, 34},
      {gguf_type::q8_1, "Q8_1", 32, 36},
      {gguf_type::q2_k, "Q2_K", 256, 84},
      {gguf_type::q3_k, "Q3_K", 256, 110},
      {gguf_type::q4_k, "Q4_K", 256, 144},
      {gguf_type::q5_k, "Q5_K", 256, 176},
      {gguf_type::q6_k, "Q6_K", 256, 210},
      {gguf_type::q8_k, "Q8_K", 256, 292},
      {gguf_type::iq2_xxs, "IQ2_XXS", 256, 66},
      {gguf_type::iq2_xs, "IQ2_XS", 256, 74},
      {gguf_type::iq3_xxs, "IQ3_XXS", 256, 98},
      {gguf_type::iq1_s, "IQ1_S", 256, 50},
      {gguf_type::iq4_nl, "IQ4_NL", 32, 18},
      {gguf_type::iq3_s, "IQ3_S", 256, 110},
      {gguf_type::iq2_s, "IQ2_S", 256, 82},
      {gguf_type::iq4_xs, "IQ4_XS", 256, 136},
      {gguf_type::i8, "I8", 1, 1},
      {gguf_type::i16, "I16", 1, 2},
      {gguf_type::i32, "I32", 1, 4},
      {gguf_type::i64, "I64", 1, 8},
      {gguf_type::f64, "F64", 1, 8},
      {gguf_type::iq1_m, "IQ1_M", 256, 56},
      {gguf_type::bf16, "BF16", 1, 2},
      {gguf_type::tq1_0, "TQ1_0", 256, 54},
      {gguf_type::tq2_0, "TQ2_0", 256, 66},
      {gguf_type::mxfp4, "MXFP4", 32, 17},
      {gguf_type::nvfp4, "NVFP4", 64, 36},
      {gguf_type::q1_0, "Q1_0", 128, 18},
  };
  for (const gguf_type_info& t : table)
    if (static_cast<std::uint32_t>(t.type) == number) return t;
  return std::nullopt;
}

/// The name that the format uses; "?" for a number that is not in the list.
inline const char* to_string(gguf_type type) noexcept {
  const auto info = find_gguf_type(static_cast<std::uint32_t>(type));
  return info ? info->name : "?";
}

/// One tensor of a file. Blocks never cross rows.
struct gguf_tensor {
  std::string name;
  gguf_type type = gguf_type::f32;
  /// Outermost dimension first, as in the other readers: [rows, cols] of a matrix. The file itself
  /// counts the other way round.
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  ///< first byte, counted from gguf_file::data_offset
  std::uint64_t end = 0;    ///< one past the last byte

  std::uint64_t bytes() const { return end - begin; }
  /// Elements of the innermost dimension; 1 for a scalar.
  std::uint64_t cols() const {
    return shape.empty() ? 1 : static_cast<std::uint64_t>(shape.back());
  }
  /// Product of the other dimensions.
  std::uint64_t rows() const {
    std::uint64_t n = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) n *= static_cast<std::uint64_t>(shape[i]);
    return n;
  }
  std::uint64_t elements() const { return rows() * cols(); }
};

namespace detail {

/// A name out of a file, fit to stand in an error: not too long, and on one line.
inline std::string quoted(std::string_view name) {
  constexpr std::size_t most = 120;
  std::string s = "\"";
  for (char c : name.substr(0, most))
    s += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return s + (name.size() > most ? "...\"" : "\"");
}

}  // namespace detail
}  // namespace v0_1
}  // namespace bitladder
