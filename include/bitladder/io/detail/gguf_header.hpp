// SPDX-License-Identifier: MIT
// Reads and checks everything of a GGUF file that stands before its tensors' bytes:
// ["GGUF"][u32 version][u64 tensors][u64 keys] keys, tensor infos, padding to the alignment. After
// that every offset and size can be trusted. Tested by tests/io/gguf_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/detail/gguf_cursor.hpp>
#include <bitladder/io/gguf_metadata.hpp>
#include <bitladder/io/gguf_tensor.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace detail {

struct gguf_header {
  std::uint32_t version = 0;
  std::uint64_t alignment = 32;
  std::uint64_t data_offset = 0;
  gguf_metadata metadata;
  std::vector<gguf_tensor> tensors;  ///< in the order of the list
  std::unordered_map<std::string, std::size_t> index;
};

inline std::uint32_t read_gguf_version(gguf_cursor& c) {
  if (c.left() < 24 || std::memcmp(c.here(), "GGUF", 4) != 0)
    c.fail("expected a GGUF file, found " +
           (c.left() < 24 ? std::to_string(c.left()) + " bytes, too few for its head"
                          : detail::quoted({reinterpret_cast<const char*>(c.here()), 4}) +
                                " in its first 4 bytes"));
  c.skip(4, 1, "magic");
  const auto version = c.number<std::uint32_t>("version");
  // Versions are small numbers: one whose low half is empty has its bytes the other way round.
  if (version != 0 && (version & 0xffffu) == 0)
    c.fail("expected a little-endian file, found a big-endian one");
  if (version != 2 && version != 3)
    c.fail("expected version 2 or 3, found " + std::to_string(version));
  return version;
}

inline gguf_tensor read_gguf_tensor(gguf_cursor& c, const std::string& path) {
  constexpr std::uint32_t max_dimensions = 4;  // the format's own limit
  gguf_tensor t;
  t.name = std::string(c.text("name"));
  if (t.name.empty()) c.fail("expected a name, found an empty one");
  c.set_where(path + ": tensor " + detail::quoted(t.name));
  const auto dimensions = c.number<std::uint32_t>("number of dimensions");
  if (dimensions > max_dimensions)
    c.fail("expected at most " + std::to_string(max_dimensions) + " dimensions, found " +
           std::to_string(dimensions));
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto d = c.number<std::uint64_t>("dimension");
    if (d > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      c.fail("dimension " + std::to_string(d) + " is too large");
    t.shape.insert(t.shape.begin(), static_cast<std::int64_t>(d));
  }
  const auto number = c.number<std::uint32_t>("type");
  const auto type = find_gguf_type(number);
  if (!type)
    c.fail("type " + std::to_string(number) + " is not known, so its size cannot be checked");
  t.type = type->type;
  t.begin = c.number<std::uint64_t>("offset");

  const std::string what = std::string(type->name) + " " + to_string(t.shape);
  if (t.cols() % type->block != 0)
    c.fail(what + ": expected rows of a multiple of " + std::to_string(type->block) +
           " elements, found " + std::to_string(t.cols()));
  const auto elements = byte_size(dtype::u8, t.shape);
  if (!elements ||
      *elements / type->block >
          static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) / type->bytes)
    c.fail(what + " is too large");
  const std::uint64_t bytes = *elements / type->block * type->bytes;
  if (bytes > std::numeric_limits<std::uint64_t>::max() - t.begin)
    c.fail(what + " at offset " + std::to_string(t.begin) + " is too large");
  t.end = t.begin + bytes;
  return t;
}

[[noreturn]] inline void throw_gguf_tensor(const std::string& path, const gguf_tensor& t,
                                           const std::string& what) {
  throw error(status::bad_file, path + ": tensor " + detail::quoted(t.name) + ": " + what);
}

/// Every tensor inside the file, on its alignment and apart from the others.
inline void check_gguf_places(const gguf_header& h, std::uint64_t data_size,
                              const std::string& path) {
  std::vector<const gguf_tensor*> placed;
  for (const gguf_tensor& t : h.tensors) placed.push_back(&t);
  std::sort(placed.begin(), placed.end(), [](const gguf_tensor* a, const gguf_tensor* b) {
    if (a->begin != b->begin) return a->begin < b->begin;
    if (a->end != b->end) return a->end < b->end;
    return a->name < b->name;
  });
  const gguf_tensor* before = nullptr;
  for (const gguf_tensor* t : placed) {
    const auto fail = [&](const std::string& what) { throw_gguf_tensor(path, *t, what); };
    const std::string place =
        "bytes " + std::to_string(t->begin) + " to " + std::to_string(t->end) + " of the data";
    if (t->begin % h.alignment != 0)
      fail("expected an offset on a multiple of " + std::to_string(h.alignment) + ", found " +
           std::to_string(t->begin));
    if (t->end > data_size)
      fail(std::string(to_string(t->type)) + " " + to_string(t->shape) + " at " + place +
           " passes its end at " + std::to_string(data_size));
    if (before != nullptr && t->begin < before->end)
      fail(place + " overlap tensor " + detail::quoted(before->name) + ", which ends at " +
           std::to_string(before->end));
    before = t;
  }
}

/// @param path what errors call the file
/// @throws error(bad_file) naming path, key or tensor, what was expected and what was found
inline gguf_header parse_gguf_header(const std::byte* data, std::size_t size,
                                     const std::string& path) {
  gguf_cursor c(data, size, path);
  gguf_header h;
  h.metadata = gguf_metadata(path);
  h.version = read_gguf_version(c);
  const auto tensors = c.number<std::uint64_t>("number of tensors");
  const auto keys = c.number<std::uint64_t>("number of keys");
  // The smallest key: its length, one letter, a type, one byte.
  c.require(keys, 14, "metadata");
  for (std::uint64_t i = 0; i < keys; ++i) {
    c.set_where(path + ": metadata key " + std::to_string(i));
    const std::string_view key = c.text("key");
    if (key.empty() || key.size() > 65535)
      c.fail("expected a key of 1 to 65535 bytes, found " + std::to_string(key.size()));
    c.set_where(path + ": metadata " + detail::quoted(key));
    const gguf_value_type type = read_gguf_value_type(c, "type");
    if (!h.metadata.add(key, gguf_value::read(c, type))) c.fail("is there twice");
  }
  if (const gguf_value* v = h.metadata.find("general.alignment")) {
    const auto n = v->type() == gguf_value_type::u32 ? v->integer().value_or(0) : 0;
    if (n <= 0 || (n & (n - 1)) != 0)
      h.metadata.fail("general.alignment", "an UINT32 that is a power of two");
    h.alignment = static_cast<std::uint64_t>(n);
  }

  c.set_where(path);
  // The smallest tensor info: a length, one letter, no dimensions, a type, an offset.
  c.require(tensors, 25, "tensor infos");
  for (std::uint64_t i = 0; i < tensors; ++i) {
    c.set_where(path + ": tensor " + std::to_string(i) + " of the list");
    h.tensors.push_back(read_gguf_tensor(c, path));
    if (!h.index.emplace(h.tensors.back().name, h.tensors.size() - 1).second)
      c.fail("is there twice");
  }
  h.data_offset = (c.position() + h.alignment - 1) / h.alignment * h.alignment;
  check_gguf_places(h, size > h.data_offset ? size - h.data_offset : 0, path);
  return h;
}

}  // namespace detail
}  // namespace v0_1
}  // namespace bitladder
