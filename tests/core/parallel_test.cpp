// SPDX-License-Identifier: MIT
#include <bitladder/core/parallel.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

using bitladder::thread_pool;

TEST_CASE("every index is visited once, whatever the count, grain and threads") {
  for (int threads : {1, 2, 3, 8}) {
    thread_pool pool(threads);
    CHECK(pool.size() == threads);
    for (std::int64_t count : {0, 1, 2, 7, 64, 1001})
      for (std::int64_t grain : {0, 1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> visits(static_cast<std::size_t>(count));
        pool.run(count, grain, [&](std::int64_t b, std::int64_t e) {
          CHECK(b < e);
          CHECK(e <= count);
          for (std::int64_t i = b; i < e; ++i) ++visits[static_cast<std::size_t>(i)];
        });
        for (auto& v : visits) CHECK(v == 1);
      }
  }
}

TEST_CASE("many short loops in a row neither hang nor mix their work") {
  thread_pool pool(4);
  for (int round = 0; round < 20000; ++round) {
    std::atomic<int> sum{0};
    pool.run(16, 1, [&](std::int64_t b, std::int64_t) { sum += static_cast<int>(b); });
    REQUIRE(sum == 120);
  }
}

TEST_CASE("workers that went to sleep wake again") {
  thread_pool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> sum{0};
    pool.run(100, 1, [&](std::int64_t, std::int64_t) { ++sum; });
    CHECK(sum == 100);
  }
}

TEST_CASE("an exception in a body reaches the caller and the pool still works") {
  thread_pool pool(3);
  for (int round = 0; round < 50; ++round) {
    CHECK_THROWS_AS(pool.run(1000, 1,
                             [&](std::int64_t b, std::int64_t) {
                               if (b == 17) throw std::runtime_error("seventeen");
                             }),
                    std::runtime_error);
    std::atomic<int> sum{0};
    pool.run(1000, 7, [&](std::int64_t b, std::int64_t e) { sum += static_cast<int>(e - b); });
    CHECK(sum == 1000);
  }
}

TEST_CASE("a loop without a pool runs in the calling thread, in order") {
  std::vector<std::int64_t> begins;
  bitladder::parallel_for(nullptr, 10, 4,
                          [&](std::int64_t b, std::int64_t) { begins.push_back(b); });
  CHECK(begins == std::vector<std::int64_t>{0, 4, 8});
}

TEST_CASE("zero threads means one per processor") {
  const thread_pool pool;
  CHECK(pool.size() >= 1);
}
