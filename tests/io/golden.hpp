// SPDX-License-Identifier: MIT
// The tensors in data/*.safetensors, by the same rule as make_safetensors_golden.py.
#pragma once

#include <bitladder/core/dtype.hpp>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace support {

struct golden_tensor {
  std::string name;
  bitladder::dtype type;
  std::vector<std::int64_t> shape;

  std::string bytes() const {
    std::size_t count = bitladder::size_of(type);
    for (std::int64_t d : shape) count *= static_cast<std::size_t>(d);
    std::string out(count, '\0');
    for (std::size_t k = 0; k < count; ++k) {
      const std::size_t value = (37 * k + 11 * name.size() + 5) % 251;
      out[k] = static_cast<char>(type == bitladder::dtype::boolean ? value % 2 : value);
    }
    return out;
  }
};

inline std::vector<golden_tensor> golden_tensors() {
  using bitladder::dtype;
  return {{"scalar", dtype::f32, {}},        {"empty", dtype::f16, {0, 7}},
          {"b.f64", dtype::f64, {2, 3}},     {"matrix", dtype::f16, {5, 64}},
          {"bf16", dtype::bf16, {3, 5}},     {"long", dtype::i64, {1}},
          {"int", dtype::i32, {2, 2, 2, 2}}, {"short", dtype::i16, {7}},
          {"signed", dtype::i8, {3}},        {"bytes", dtype::u8, {64}},
          {"flags", dtype::boolean, {11}},   {"wei\xc3\x9f \"x\"\n", dtype::u8, {1, 1, 1}}};
}

inline std::map<std::string, std::string> golden_metadata() {
  return {{"format", "pt"}, {"note", "a \"quoted\" text\n"}};
}

}  // namespace support
