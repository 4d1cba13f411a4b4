// SPDX-License-Identifier: MIT
#include <llama/kv_cache.hpp>

#include <doctest/doctest.h>

#include <vector>

namespace {

llama::config small() {
  llama::config c;
  c.layers = 2;
  c.kv_heads = 3;
  c.head_dim = 6;
  c.context = 100;
  return c;
}

}  // namespace

TEST_CASE("keys and values are found where they were stored, page after page") {
  const llama::config c = small();
  llama::kv_cache kv(c);
  constexpr int count = 70;
  kv.reserve(count);
  std::vector<float> k(18), v(18);
  for (int layer = 0; layer < 2; ++layer)
    for (int p = 0; p < count; ++p) {
      for (int i = 0; i < 18; ++i) {
        k[static_cast<std::size_t>(i)] = static_cast<float>(layer * 10000 + p * 100 + i);
        v[static_cast<std::size_t>(i)] = -k[static_cast<std::size_t>(i)];
      }
      kv.store(layer, p, k.data(), v.data());
    }
  kv.advance(count);
  CHECK(kv.length() == count);
  for (int layer = 0; layer < 2; ++layer)
    for (int p = 0; p < count; ++p)
      for (int h = 0; h < 3; ++h)
        for (int d = 0; d < 6; ++d) {
          const float expected = static_cast<float>(layer * 10000 + p * 100 + h * 6 + d);
          CHECK(kv.keys(layer, p / 32, h)[d * 32 + p % 32] == expected);
          CHECK(kv.values(layer, p / 32, h)[p % 32 * 6 + d] == -expected);
        }
}

TEST_CASE("pages come as they are needed and do not move") {
  llama::kv_cache kv(small());
  CHECK(kv.bytes() == 0);
  kv.reserve(1);
  const std::size_t page = kv.bytes();
  CHECK(page == 2u * 3 * 6 * 32 * 2 * sizeof(float));
  const float* first = kv.keys(1, 0, 2);
  kv.advance(32);
  kv.reserve(33);
  CHECK(kv.bytes() == 3 * page);
  CHECK(kv.keys(1, 0, 2) == first);
}

TEST_CASE("the capacity is kept to") {
  llama::kv_cache kv(small(), 40);
  CHECK(kv.capacity() == 40);
  CHECK(llama::kv_cache(small()).capacity() == 100);
  kv.reserve(40);
  kv.advance(39);
  kv.reserve(1);
  CHECK_THROWS_WITH_AS(kv.reserve(2), "kv cache: 39 + 2 positions asked for, expected at most 40",
                       bitladder::error);
}

TEST_CASE("truncation only shortens") {
  llama::kv_cache kv(small());
  kv.reserve(10);
  kv.advance(10);
  kv.truncate(4);
  CHECK(kv.length() == 4);
  CHECK_THROWS_WITH_AS(kv.truncate(5), "kv cache: expected a length of 0 to 4, found 5",
                       bitladder::error);
  CHECK_THROWS_AS(kv.truncate(-1), bitladder::error);
}
