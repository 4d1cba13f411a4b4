// SPDX-License-Identifier: MIT
// The CRC-32 of zip archives (polynomial 0xedb88320, reflected), eight bytes a step by table.
// Tested by tests/io/zip_archive_test.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace detail {

using crc32_tables = std::array<std::array<std::uint32_t, 256>, 8>;

/// Table k holds what a byte adds to the sum when k bytes follow it.
constexpr crc32_tables make_crc32_tables() {
  crc32_tables t{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = c >> 1 ^ (c & 1u ? 0xedb88320u : 0u);
    t[0][i] = c;
  }
  for (std::size_t k = 1; k < 8; ++k)
    for (std::size_t i = 0; i < 256; ++i) t[k][i] = t[k - 1][i] >> 8 ^ t[0][t[k - 1][i] & 0xffu];
  return t;
}

/// @param before the sum of the bytes that precede these, 0 if none do
inline std::uint32_t crc32(const void* data, std::size_t size, std::uint32_t before = 0) {
  static constexpr crc32_tables tables = make_crc32_tables();
  const unsigned char* p = static_cast<const unsigned char*>(data);
  std::uint32_t c = ~before;
  for (; size >= 8; size -= 8, p += 8) {
    std::uint32_t next = 0;
    for (std::size_t i = 0; i < 4; ++i) next ^= tables[7 - i][(c >> (8 * i) & 0xffu) ^ p[i]];
    for (std::size_t i = 4; i < 8; ++i) next ^= tables[7 - i][p[i]];
    c = next;
  }
  for (; size > 0; --size, ++p) c = c >> 8 ^ tables[0][(c & 0xffu) ^ *p];
  return ~c;
}

}  // namespace detail
}  // namespace v0_1
}  // namespace bitladder
