// SPDX-License-Identifier: MIT
// The type in which a checkpoint keeps the matrices that are not quantized: embedding, head, and
// linears that nobody asked for. Vectors (norms, biases) always stay as they are: they are small.
// Tested by tests/llama/rest_type_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>

#include <llama/float_tensors.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace llama {

enum class rest_type {
  /// As they are stored; a GGUF file's blocks become fp16. Rounding moves a value by 2^-11 of
  /// itself
  /// at most, which is at most an eighth of the error that Q8_0, the usual type of these matrices,
  /// made itself; fp32 would double the bytes of the head, all of which every token reads.
  keep,
  f32,
  f16,
  bf16,
};

/// The type in which `t` of `source` is to be kept.
inline bitladder::dtype rest_dtype(const float_tensors& source, const bitladder::tensor_info& t,
                                   rest_type rest) {
  const bool is_float = t.type == bitladder::dtype::f32 || t.type == bitladder::dtype::f16 ||
                        t.type == bitladder::dtype::bf16;
  if (!is_float || t.shape.size() < 2) return t.type;
  switch (rest) {
    case rest_type::keep: return source.is_unpacked(t) ? bitladder::dtype::f16 : t.type;
    case rest_type::f32: return bitladder::dtype::f32;
    case rest_type::f16: return bitladder::dtype::f16;
    case rest_type::bf16: return bitladder::dtype::bf16;
  }
  return t.type;
}

namespace detail {

/// Floats to 16 bits each, in place: what is written lies before what is still to be read.
/// @return the first element that was finite and no longer is; `count` if there is none
template <class Narrow>
std::size_t narrow_in_place(std::byte* data, std::size_t count, Narrow narrow) {
  std::size_t lost = count;
  for (std::size_t i = 0; i < count; ++i) {
    float x;
    std::memcpy(&x, data + 4 * i, 4);
    const auto y = narrow(x);
    if (lost == count && std::isfinite(x) && !std::isfinite(bitladder::to_float(y))) lost = i;
    std::memcpy(data + 2 * i, &y, 2);
  }
  return lost;
}

}  // namespace detail

/// The elements of `t` as `type`, rounded to nearest even: in place, or else in `copy`.
/// @param type what rest_dtype gave
/// @throws bitladder::error(invalid_argument) naming file, tensor and element if a value is past
/// the range of the type
inline const std::byte* rest_bytes(const float_tensors& source, const bitladder::tensor_info& t,
                                   bitladder::dtype type, std::vector<std::byte>& copy) {
  if (type == t.type) return source.bytes(t, copy);
  const auto count = static_cast<std::size_t>(t.elements());
  copy.resize(4 * count);
  source.read_as_float(t, reinterpret_cast<float*>(copy.data()));
  if (type == bitladder::dtype::f32) return copy.data();
  const std::size_t lost =
      type == bitladder::dtype::f16
          ? detail::narrow_in_place(copy.data(), count,
                                    [](float x) { return bitladder::to_fp16(x); })
          : detail::narrow_in_place(copy.data(), count,
                                    [](float x) { return bitladder::to_bf16(x); });
  copy.resize(2 * count);
  if (lost != count)
    throw bitladder::error(bitladder::status::invalid_argument,
                           source.path() + ": tensor \"" + t.name + "\": element " +
                               std::to_string(lost) + " is past the range of " +
                               bitladder::to_string(type) + "; keep such matrices as F32");
  return copy.data();
}

}  // namespace llama
