// SPDX-License-Identifier: MIT
// How the rows of a product are cut for threads. Tested through tests/kernels/cpu/gemm_test.cpp.
#pragma once

#include <bitladder/core/parallel.hpp>

#include <algorithm>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

/// Rows worth handing to a thread at once, a multiple of 8, for `m` rows of x.
inline int rows_per_chunk(int cols, int m) {
  // Taking a chunk costs some hundred nanoseconds when threads compete for it; 2^16 multiplications
  // take some microseconds.
  constexpr std::int64_t chunk_work = 1 << 16;
  const std::int64_t row_work = static_cast<std::int64_t>(cols) * m;
  return static_cast<int>(chunk_work / (8 * (row_work > 0 ? row_work : 1)) + 1) * 8;
}

/// Rows to hand to a thread at once, a multiple of 8, where more than `most` at once are no gain:
/// threads get equal parts, each in some pieces, so that one that was held up can be helped.
/// @param least rows worth handing over
inline int even_chunk(const thread_pool* pool, int rows, int least, int most) {
  constexpr int pieces_wanted = 4;
  const int threads = pool == nullptr ? 1 : pool->size();
  const int share = (rows - 1) / threads + 1;
  const int worthwhile = std::max(1, std::min(pieces_wanted, share / least));
  const int pieces = std::max((share - 1) / most + 1, threads > 1 ? worthwhile : 1);
  return ((share - 1) / pieces / 8 + 1) * 8;
}

/// Calls `body(begin, end)` over chunks of the rows.
template <class Body>
void split_rows(thread_pool* pool, int rows, int chunk, const Body& body) {
  parallel_for(pool, rows, chunk, [&](std::int64_t begin, std::int64_t end) {
    body(static_cast<int>(begin), static_cast<int>(end));
  });
}

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
