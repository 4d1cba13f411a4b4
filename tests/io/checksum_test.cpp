// SPDX-License-Identifier: MIT
// Seed 5.
#include <bitladder/io/checksum.hpp>

#include "support/random.hpp"

#include <doctest/doctest.h>

#include <set>
#include <string>

namespace bl = bitladder;

TEST_CASE("every single-bit change and every length changes the sum") {
  support::random random(5);
  std::string bytes(203, '\0');
  for (char& c : bytes) c = static_cast<char>(random.next());
  std::set<std::uint64_t> sums;
  std::size_t expected = 0;
  for (std::size_t size = 0; size <= bytes.size(); ++size, ++expected)
    sums.insert(bl::checksum(bytes.data(), size));
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit, ++expected) {
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    sums.insert(bl::checksum(bytes.data(), bytes.size()));
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
  }
  const std::string zeros(100, '\0');
  for (std::size_t size = 1; size <= zeros.size(); ++size, ++expected)
    sums.insert(bl::checksum(zeros.data(), size));
  for (std::uint64_t seed = 1; seed < 100; ++seed, ++expected)
    sums.insert(bl::checksum(bytes.data(), bytes.size(), seed));
  CHECK(sums.size() == expected);
}

TEST_CASE("a changed bit changes about half of the sum's bits, wherever it is") {
  support::random random(5);
  std::string bytes(96, '\0');
  for (char& c : bytes) c = static_cast<char>(random.next());
  const std::uint64_t before = bl::checksum(bytes.data(), bytes.size());
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string changed = bytes;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << bit % 8));
    const int flipped = __builtin_popcountll(before ^ bl::checksum(changed.data(), changed.size()));
    CHECK(flipped > 10);  // 32 expected, standard deviation 4
    CHECK(flipped < 54);
  }
}

TEST_CASE("sums on disk stay valid: known values, and any alignment gives the same") {
  std::string bytes(100, '\0');
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i);
  const std::uint64_t sum = bl::checksum(bytes.data(), bytes.size());
  CHECK(bl::checksum(nullptr, 0) == 0x3c75469dc5f67ab9u);
  CHECK(sum == 0xd5b1c27dc2f149fau);
  for (std::size_t shift = 1; shift < 9; ++shift) {
    const std::string shifted = std::string(shift, 'x') + bytes;
    CHECK(bl::checksum(shifted.data() + shift, bytes.size()) == sum);
  }
}
