// SPDX-License-Identifier: MIT
// GGUF files by hand, true or lying, for the tests of their readers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace support {

/// Appends little-endian numbers and texts.
class gguf_bytes {
 public:
  template <class T>
  gguf_bytes& put(T x) {
    char raw[sizeof x];
    std::memcpy(raw, &x, sizeof x);
    bytes_.append(raw, sizeof x);
    return *this;
  }
  gguf_bytes& u32(std::uint32_t x) { return put(x); }
  gguf_bytes& u64(std::uint64_t x) { return put(x); }
  gguf_bytes& raw(const std::string& s) {
    bytes_ += s;
    return *this;
  }
  gguf_bytes& text(const std::string& s) { return u64(s.size()).raw(s); }
  const std::string& str() const { return bytes_; }

 private:
  std::string bytes_;
};

/// A key with a value of that type number and those bytes.
inline std::string gguf_key(const std::string& key, std::uint32_t type, const std::string& value) {
  return gguf_bytes().text(key).u32(type).raw(value).str();
}

/// A tensor info; dimensions innermost first, as in the file.
inline std::string gguf_info(const std::string& name, const std::vector<std::uint64_t>& dimensions,
                             std::uint32_t type, std::uint64_t offset) {
  gguf_bytes b;
  b.text(name).u32(static_cast<std::uint32_t>(dimensions.size()));
  for (std::uint64_t d : dimensions) b.u64(d);
  return b.u32(type).u64(offset).str();
}

/// A whole file: head, keys, infos, padding, data.
inline std::string gguf_bytes_of(const std::vector<std::string>& keys,
                                 const std::vector<std::string>& infos, std::size_t data,
                                 std::size_t alignment = 32) {
  gguf_bytes b;
  b.raw("GGUF").u32(3).u64(infos.size()).u64(keys.size());
  for (const std::string& key : keys) b.raw(key);
  for (const std::string& info : infos) b.raw(info);
  const std::size_t end = b.str().size();
  b.raw(std::string((alignment - end % alignment) % alignment + data, '\0'));
  return b.str();
}

}  // namespace support
