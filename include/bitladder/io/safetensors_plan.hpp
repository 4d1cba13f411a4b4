// SPDX-License-Identifier: MIT
// What a safetensors file will hold, decided before its first byte is written: names, types, shapes
// and metadata give every offset and the header's exact bytes. Data starts at a multiple of 64, and
// the order of tensors keeps as many as possible there, since the format has no padding between
// them. Tested by tests/io/safetensors_writer_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/json.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// Names, types and shapes; the same plan always gives the same file.
class safetensors_plan {
 public:
  /// Where data starts, and each tensor whose predecessors' sizes allow it.
  static constexpr std::uint64_t alignment = 64;

  /// @throws error(invalid_argument) for a name given twice or reserved, a negative dimension, or a
  /// size past 63 bits
  void add(const std::string& name, dtype type, std::vector<std::int64_t> shape) {
    const auto fail = [&name](const std::string& what) {
      throw error(status::invalid_argument, "tensor \"" + name + "\": " + what);
    };
    if (name == "__metadata__") fail("the name is reserved");
    const std::optional<std::uint64_t> size = byte_size(type, shape);
    if (!size || *size > limit - total_)
      fail("shape " + to_string(shape) + " is negative or too large");
    if (!names_.insert(name).second) fail("added twice");
    total_ += *size;
    tensors_.push_back({name, type, std::move(shape), 0, *size});
  }

  /// Text to go with the tensors; a second value for a key replaces the first.
  void set_metadata(const std::string& key, std::string value) {
    metadata_[key] = std::move(value);
  }

  /// The tensors in the order of the file's bytes, with their offsets.
  std::vector<tensor_info> layout() const {
    std::vector<tensor_info> placed = tensors_;
    // Sizes by falling power of two, else as added: whatever comes before a tensor is then a
    // multiple of its own power, up to 64, so each starts at least as aligned as its size allows.
    std::stable_sort(placed.begin(), placed.end(), [](const tensor_info& a, const tensor_info& b) {
      return power_of_two(a.bytes()) > power_of_two(b.bytes());
    });
    std::uint64_t position = 0;
    for (tensor_info& t : placed) {
      t.end = position + t.bytes();
      t.begin = position;
      position = t.end;
    }
    return placed;
  }

  /// The file's bytes before the data: length, JSON and spaces.
  /// @throws error(invalid_argument) if a name or a metadata text is not UTF-8, or all together
  /// pass the format's limit
  std::string header() const {
    std::string json = "{";
    if (!metadata_.empty()) json += "\"__metadata__\":" + to_json_text(nlohmann::json(metadata_));
    for (const tensor_info& t : layout()) {
      if (json.size() > 1) json += ',';
      json += to_json_text(nlohmann::json(t.name)) + ":{\"dtype\":\"" + to_string(t.type) +
              "\",\"shape\":" + nlohmann::json(t.shape).dump() + ",\"data_offsets\":[" +
              std::to_string(t.begin) + "," + std::to_string(t.end) + "]}";
    }
    json += '}';
    json.append((alignment - (8 + json.size()) % alignment) % alignment, ' ');
    if (json.size() > 100000000)
      throw error(status::invalid_argument, "a safetensors header holds at most 100000000 bytes, " +
                                                std::to_string(json.size()) + " would be needed");
    std::string out(8, '\0');
    for (std::size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(json.size() >> (8 * i) & 0xffu);
    return out + json;
  }

  /// Bytes behind the header.
  std::uint64_t data_size() const { return total_; }

 private:
  static constexpr std::uint64_t limit = std::numeric_limits<std::int64_t>::max() / 2;

  /// Largest power of two that divides the size, at most `alignment`.
  static std::uint64_t power_of_two(std::uint64_t size) {
    return size == 0 ? alignment : std::min(alignment, size & (~size + 1));
  }

  std::vector<tensor_info> tensors_;
  std::map<std::string, std::string> metadata_;
  std::unordered_set<std::string> names_;
  std::uint64_t total_ = 0;
};

}  // namespace v0_1
}  // namespace bitladder
