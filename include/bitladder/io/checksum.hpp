// SPDX-License-Identifier: MIT
// A 64-bit sum that tells accidental damage from intact bytes at memory speed; no protection
// against someone who means harm. Four lanes take 8 bytes each, so that multiplications overlap.
// The sum of given bytes never changes: journals on disk hold it.
// Tested by tests/io/checksum_test.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace bitladder {
inline namespace v0_1 {

namespace detail {

/// One-to-one on 64 bits, and every input bit reaches every output bit.
constexpr std::uint64_t scramble(std::uint64_t x) {
  x = (x ^ x >> 32) * 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 29) * 0xd6e8feb86659fd93u;
  return x ^ x >> 32;
}

}  // namespace detail

/// @param seed the sum of what came before, to chain several ranges
inline std::uint64_t checksum(const void* data, std::size_t size, std::uint64_t seed = 0) {
  constexpr std::uint64_t odd = 0x9e3779b97f4a7c15u;
  const unsigned char* p = static_cast<const unsigned char*>(data);
  std::uint64_t lane[4] = {seed + 1, seed + 2, seed + 3, seed + 4};
  std::size_t left = size;
  for (; left >= 32; left -= 32, p += 32) {
    for (int i = 0; i < 4; ++i) {
      std::uint64_t word;
      std::memcpy(&word, p + 8 * i, 8);
      lane[i] = (lane[i] ^ word) * odd;
      lane[i] ^= lane[i] >> 32;  // else high bits of a word would never reach low bits of the sum
    }
  }
  for (int i = 0; left > 0; ++i) {
    const std::size_t n = left < 8 ? left : 8;
    std::uint64_t word = 0;
    std::memcpy(&word, p, n);
    lane[i] = (lane[i] ^ word) * odd;
    lane[i] ^= lane[i] >> 32;
    left -= n;
    p += n;
  }
  std::uint64_t sum = detail::scramble(size);  // zeros at the end count
  for (std::uint64_t l : lane) sum = detail::scramble(sum ^ l);
  return sum;
}

}  // namespace v0_1
}  // namespace bitladder
