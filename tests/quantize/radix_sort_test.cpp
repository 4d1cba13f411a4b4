// SPDX-License-Identifier: MIT
// Random data: seed 11.
#include <bitladder/quantize/radix_sort.hpp>

#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

using namespace bitladder;

TEST_CASE("keys order as values do, for every 16-bit value and for floats") {
  const float inf = std::numeric_limits<float>::infinity();
  for (std::uint32_t a = 0; a < 0x10000u; ++a) {
    const fp16_t h{static_cast<std::uint16_t>(a)};
    const bf16_t b{static_cast<std::uint16_t>(a)};
    if ((a & 0x7fffu) <= 0x7c00u)
      CHECK(to_float(h) == kmeans::key_value(kmeans::sort_key(h), fp16_t{}));
    if ((a & 0x7fffu) <= 0x7f80u) {
      CHECK(to_float(b) == kmeans::key_value(kmeans::sort_key(b), bf16_t{}));
      CHECK(to_float(b) == kmeans::key_value(kmeans::sort_key(to_float(b)), 0.f));
    }
  }
  const std::vector<float> ascending{-inf, -3e38f, -1, -1e-40f, 0, 1e-45f, 1e-30f, 1, 65504, inf};
  for (std::size_t i = 1; i < ascending.size(); ++i) {
    CHECK(kmeans::sort_key(ascending[i - 1]) < kmeans::sort_key(ascending[i]));
    CHECK(kmeans::sort_key(to_bf16(ascending[i - 1])) <= kmeans::sort_key(to_bf16(ascending[i])));
    CHECK(kmeans::sort_key(to_fp16(ascending[i - 1])) <= kmeans::sort_key(to_fp16(ascending[i])));
  }
}

TEST_CASE("both zeros have one key") {
  CHECK(kmeans::sort_key(-0.f) == kmeans::sort_key(0.f));
  CHECK(kmeans::sort_key(fp16_t{0x8000}) == kmeans::sort_key(fp16_t{0}));
  CHECK(kmeans::sort_key(bf16_t{0x8000}) == kmeans::sort_key(bf16_t{0}));
}

TEST_CASE("words are sorted by key and equal keys keep their order, at any size") {
  support::random r(11);
  for (const int n : {0, 1, 2, 100, 127, 128, 129, 1000, 5000}) {
    for (const std::uint64_t spread : {1u, 7u, 0xffffu, 0xffffffffu}) {
      std::vector<std::uint64_t> words(static_cast<std::size_t>(n)), scratch(words.size());
      for (std::size_t i = 0; i < words.size(); ++i)
        words[i] = (r.next() & 0xffffffffu) % (spread + 1) << 32 | i;
      std::vector<std::uint64_t> expected = words;
      std::sort(expected.begin(), expected.end());
      const std::uint64_t* sorted = kmeans::radix_sort<11>(words.data(), scratch.data(), n, 32, 32);
      CHECK(std::vector<std::uint64_t>(sorted, sorted + n) == expected);
      if (spread > 0xffff) continue;
      std::vector<std::uint32_t> narrow(words.size()), narrow_scratch(words.size());
      for (std::size_t i = 0; i < narrow.size(); ++i)
        narrow[i] = static_cast<std::uint32_t>((r.next() & 0xffff) % (spread + 1) << 16 | i);
      std::vector<std::uint32_t> narrow_expected = narrow;
      std::sort(narrow_expected.begin(), narrow_expected.end());
      const std::uint32_t* narrow_sorted =
          kmeans::radix_sort<8>(narrow.data(), narrow_scratch.data(), n, 16, 16);
      CHECK(std::vector<std::uint32_t>(narrow_sorted, narrow_sorted + n) == narrow_expected);
    }
  }
}
