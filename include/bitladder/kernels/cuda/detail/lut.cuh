// SPDX-License-Identifier: MIT
// Building the tables that decode.cuh reads: every value is copied to the four lanes that share its
// row, which is what makes lookups free of bank conflicts. Sources are packed tables
// (packed_layout.hpp), which threads hold in registers from one row tile to the next. Tested by
// tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/decode.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// One thread's share, of `Threads`, of a row tile's table. Work is spread evenly over the warps,
/// whatever the precision: four warps that fill it all by themselves, with a quarter of the
/// instructions, keep the others waiting (H200, 57344 x 8192, 8 tokens, 3 bits: 100 us, this 72
/// us).
template <int Bits, int Threads>
struct lut_share {
  static constexpr int values = 1 << Bits;
  static constexpr bool pairs = decoding<Bits>::pairs;
  static constexpr int step = Threads / 8;  ///< indices filled at once, by 8 threads each
  /// Of the values themselves, or of the high values of pairs: a thread keeps its low one.
  static constexpr int by = pairs ? step / values : step;
  static constexpr int rounds = (values + by - 1) / by;
  static_assert(!pairs || step % values == 0, "a thread keeps its low value");

  std::uint32_t low;  ///< pairs only
  std::uint32_t word[rounds];

  __device__ static int first(int thread) { return pairs ? thread / 8 / values : thread / 8; }
  __device__ static bool has(int thread, int round) {
    return values % by == 0 || first(thread) + round * by < values;
  }

  /// @param table words [2^Bits][8], each {row g, row g + 8}
  __device__ __forceinline__ void load(const std::uint32_t* table, int thread) {
    if constexpr (pairs) low = __ldg(table + thread % (8 * values));
    const std::uint32_t* from = table + first(thread) * 8 + thread % 8;
#pragma unroll
    for (int i = 0; i < rounds; ++i)
      if (has(thread, i)) word[i] = __ldg(from + i * by * 8);
  }

  /// The caller puts barriers around it.
  /// @param table shared address, stage included
  __device__ __forceinline__ void store(std::uint32_t table, int thread) const {
    constexpr int index_bytes = lut_layout<Bits>::index_bytes;
    const int g = thread % 8;
    const int index = pairs ? thread / 8 % values | first(thread) << 4 : first(thread);
    const std::uint32_t at = table + static_cast<std::uint32_t>(index * index_bytes + g * 16);
#pragma unroll
    for (int i = 0; i < rounds; ++i) {
      if (!has(thread, i)) continue;
      const std::uint32_t to = at + i * (pairs ? by << 4 : by) * index_bytes;
      if constexpr (pairs) {
        const std::uint32_t upper = permute<0x5410>(low, word[i]);
        const std::uint32_t lower = permute<0x7632>(low, word[i]);
        store_shared_v4(to, upper, upper, upper, upper);
        store_shared_v4(to + 128, lower, lower, lower, lower);
      } else {
        store_shared_v4(to, word[i], word[i], word[i], word[i]);
      }
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
