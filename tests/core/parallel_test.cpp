// SPDX-License-Identifier: MIT
#include <bitladder/core/parallel.hpp>

#include <doctest/doctest.h>

#include <algorithm>
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

TEST_CASE("loops of changing size follow each other, with more threads than cores") {
  thread_pool pool(8);
  for (std::int64_t round = 0; round < 3000; ++round) {
    const std::int64_t count = 1 + round * 37 % 101, grain = 1 + round % 5;
    std::vector<int> visits(static_cast<std::size_t>(count));  // a race is an error under tsan
    pool.run(count, grain, [&](std::int64_t b, std::int64_t e) {
      for (std::int64_t i = b; i < e; ++i) ++visits[static_cast<std::size_t>(i)];
    });
    REQUIRE(std::count(visits.begin(), visits.end(), 1) == count);
  }
}

TEST_CASE("a thread that is held up is helped with its part, whichever it is") {
  using clock = std::chrono::steady_clock;
  for (int threads : {2, 3}) {
    thread_pool pool(threads);
    for (std::int64_t slow = 0; slow < 12; ++slow) {
      std::atomic<int> done{0};
      bool helped = true;
      pool.run(12, 1, [&](std::int64_t b, std::int64_t) {
        const auto end = clock::now() + std::chrono::seconds(10);
        while (b == slow && helped && done < 11) helped = clock::now() < end;
        ++done;
      });
      REQUIRE(helped);
      REQUIRE(done == 12);
    }
  }
}

TEST_CASE("workers that went to sleep wake again") {
  using clock = std::chrono::steady_clock;
  thread_pool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> inside{0};
    std::atomic<bool> met{true};  // all threads, each in a chunk
    pool.run(3, 1, [&](std::int64_t, std::int64_t) {
      ++inside;
      const auto end = clock::now() + std::chrono::seconds(10);
      while (inside < 3 && met)
        if (clock::now() > end) met = false;
    });
    REQUIRE(met);
  }
}

TEST_CASE("a caller that went to sleep over a worker's long chunk wakes again") {
  thread_pool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::atomic<int> done{0};
    pool.run(2, 1, [&](std::int64_t, std::int64_t) {
      // Both take one, and the caller is not always the last.
      std::this_thread::sleep_for(std::chrono::milliseconds(1 + done.fetch_add(1) * 10));
    });
    CHECK(done == 2);
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

TEST_CASE("chunks that were not begun before an exception are skipped") {
  for (int threads : {1, 2, 4}) {
    thread_pool pool(threads);
    std::atomic<int> begun{0};
    CHECK_THROWS_AS(pool.run(1 << 20, 1,
                             [&](std::int64_t, std::int64_t) {
                               ++begun;
                               throw std::runtime_error("first");
                             }),
                    std::runtime_error);
    CHECK(begun <= threads);
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
