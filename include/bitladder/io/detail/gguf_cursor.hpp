// SPDX-License-Identifier: MIT
// A place in the bytes of a GGUF header that never leaves them: numbers are little-endian and at
// any address, a text is a 64-bit length and its bytes. Tested by tests/io/gguf_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

namespace bitladder {
inline namespace v0_1 {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "numbers and tensors are read in place and files are little-endian");

namespace detail {

class gguf_cursor {
 public:
  /// @param where begins every error; may be changed as reading goes on
  gguf_cursor(const std::byte* data, std::size_t size, std::string where)
      : data_(data), size_(size), where_(std::move(where)) {}

  void set_where(std::string where) { where_ = std::move(where); }
  std::size_t position() const { return at_; }
  std::size_t left() const { return size_ - at_; }
  const std::byte* here() const { return data_ + at_; }

  [[noreturn]] void fail(const std::string& what) const {
    throw error(status::bad_file, where_ + ": " + what);
  }

  /// Steps over `count` items of at least `bytes` bytes each, or fails.
  void skip(std::uint64_t count, std::size_t bytes, const char* what) {
    require(count, bytes, what);
    at_ += static_cast<std::size_t>(count) * bytes;
  }

  /// Fails unless that many bytes are left: before a count is believed.
  void require(std::uint64_t count, std::size_t bytes, const char* what) const {
    if (count > left() / bytes)
      fail(std::string(what) + " at byte " + std::to_string(at_) + ": expected " +
           std::to_string(count) + " times " + std::to_string(bytes) +
           (bytes == 1 ? " byte" : " bytes") + ", found " + std::to_string(left()) +
           " to the end of the data");
  }

  template <class T>
  T number(const char* what) {
    require(1, sizeof(T), what);
    T x;
    std::memcpy(&x, here(), sizeof x);
    at_ += sizeof x;
    return x;
  }

  std::string_view text(const char* what) {
    const auto length = number<std::uint64_t>(what);
    require(length, 1, what);
    const std::string_view s(reinterpret_cast<const char*>(here()),
                             static_cast<std::size_t>(length));
    at_ += s.size();
    return s;
  }

 private:
  const std::byte* data_;
  std::size_t size_;
  std::size_t at_ = 0;
  std::string where_;
};

}  // namespace detail
}  // namespace v0_1
}  // namespace bitladder
