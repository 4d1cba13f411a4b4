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

/// `chunk`, a multiple of 8, or less where threads then get equally many chunks: of 5, one of two
/// threads would get 3. Not half of it: what is worth handing over stays so.
inline int level_chunk(const thread_pool* pool, int rows, int chunk) {
  const int threads = pool == nullptr ? 1 : pool->size();
  const int least = (rows - 1) / chunk + 1;
  const int level = ((least - 1) / threads + 1) * threads;
  return level > 2 * least ? chunk : ((rows - 1) / level / 8 + 1) * 8;
}

/// Calls `body(begin, end)` over chunks of the rows.
/// @param chunk rows at most, a multiple of 8
template <class Body>
void split_rows(thread_pool* pool, int rows, int chunk, const Body& body) {
  if (rows <= 0) return;
  parallel_for(pool, rows, level_chunk(pool, rows, chunk),
               [&](std::int64_t begin, std::int64_t end) {
                 body(static_cast<int>(begin), static_cast<int>(end));
               });
}

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
