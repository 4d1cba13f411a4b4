// SPDX-License-Identifier: MIT
// What a safetensors file says about one tensor, and the checked arithmetic on it that reader and
// writer share. Tested by tests/io/tensor_info_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// One tensor of a file. Elements are row-major and little-endian.
struct tensor_info {
  std::string name;
  dtype type = dtype::f32;
  std::vector<std::int64_t> shape;  ///< empty for a scalar
  std::uint64_t begin = 0;          ///< first byte, counted from the end of the header
  std::uint64_t end = 0;            ///< one past the last byte

  std::uint64_t bytes() const { return end - begin; }
  std::uint64_t elements() const { return bytes() / size_of(type); }
};

/// The dtype with that safetensors name, or nothing.
inline std::optional<dtype> parse_dtype(std::string_view name) {
  for (dtype t : {dtype::f64, dtype::f32, dtype::f16, dtype::bf16, dtype::i64, dtype::i32,
                  dtype::i16, dtype::i8, dtype::u8, dtype::boolean})
    if (name == to_string(t)) return t;
  return std::nullopt;
}

/// "[2, 3]".
inline std::string to_string(const std::vector<std::int64_t>& shape) {
  std::string s = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    s += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return s + "]";
}

/// Bytes of a tensor, or nothing if a dimension is negative or the product leaves 63 bits.
inline std::optional<std::uint64_t> byte_size(dtype type, const std::vector<std::int64_t>& shape) {
  std::uint64_t n = size_of(type);
  bool empty = false;
  for (std::int64_t d : shape) {
    if (d < 0) return std::nullopt;
    empty = empty || d == 0;
  }
  if (empty) return 0;
  for (std::int64_t d : shape) {
    if (n > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) /
                static_cast<std::uint64_t>(d))
      return std::nullopt;
    n *= static_cast<std::uint64_t>(d);
  }
  return n;
}

namespace detail {

/// Steps of one inserted, removed or changed letter between two names.
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t change = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({change, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

/// For a name that is not there: "it holds 291 tensors; closest: a, b, c".
inline std::string closest_names(std::string_view name, const std::vector<tensor_info>& tensors) {
  if (tensors.empty()) return "it holds no tensors";
  std::vector<std::pair<std::size_t, const std::string*>> ranked;
  for (const tensor_info& t : tensors)
    ranked.emplace_back(edit_distance(name.substr(0, 256), std::string_view(t.name).substr(0, 256)),
                        &t.name);
  const std::size_t shown = std::min<std::size_t>(3, ranked.size());
  std::partial_sort(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(shown),
                    ranked.end(), [](const auto& a, const auto& b) {
                      return a.first != b.first ? a.first < b.first : *a.second < *b.second;
                    });
  std::string s = "it holds " + std::to_string(tensors.size()) +
                  (tensors.size() == 1 ? " tensor; closest:" : " tensors; closest:");
  for (std::size_t i = 0; i < shown; ++i) s += (i == 0 ? " " : ", ") + *ranked[i].second;
  return s;
}

}  // namespace detail
}  // namespace v0_1
}  // namespace bitladder
