// SPDX-License-Identifier: MIT
// Building the tables that decode.cuh reads: every value is copied to the four lanes that share its
// row, which is what makes lookups free of bank conflicts. Sources are packed tables
// (packed_layout.hpp) that wait in shared memory, so that a build is loads and stores of shared
// memory alone. Tested by tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/decode.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// Fills one table with `Threads` threads. The caller puts barriers around it.
/// @param raw the row tile's packed table: words [2^Bits][8], each {row g, row g + 8}
/// @param table shared address of the table, stage included
template <int Bits, int Threads>
__device__ __forceinline__ void build_lut(const std::uint32_t* raw, std::uint32_t table,
                                          int thread) {
  constexpr int values = 1 << Bits;
  constexpr int step = Threads / 8;  // indices filled at once, one by the 8 threads of a table row
  const int g = thread % 8, first = thread / 8;
  if constexpr (decoding<Bits>::pairs) {
    static_assert(step % values == 0, "a thread keeps its low value");
    constexpr int step_high = step / values;
    constexpr int rounds = (values + step_high - 1) / step_high;
    const int low = first % values, high = first / values;
    const std::uint32_t a = raw[low * 8 + g];
    const std::uint32_t address =
        table +
        static_cast<std::uint32_t>((low | high << 4) * lut_layout<Bits>::index_bytes + g * 16);
    // All values first: the stores would otherwise keep the loads behind them.
    std::uint32_t b[rounds];
#pragma unroll
    for (int i = 0; i < rounds; ++i)
      if (values % step_high == 0 || high + i * step_high < values)
        b[i] = raw[(high + i * step_high) * 8 + g];
#pragma unroll
    for (int i = 0; i < rounds; ++i) {
      if (values % step_high == 0 || high + i * step_high < values) {
        const std::uint32_t upper = permute<0x5410>(a, b[i]), lower = permute<0x7632>(a, b[i]);
        const std::uint32_t at = address + i * (step_high << 4) * lut_layout<Bits>::index_bytes;
        store_shared_v4(at, upper, upper, upper, upper);
        store_shared_v4(at + 128, lower, lower, lower, lower);
      }
    }
  } else {
    constexpr int rounds = (values + step - 1) / step;
    const std::uint32_t address =
        table + static_cast<std::uint32_t>(first * lut_layout<Bits>::index_bytes + g * 16);
    std::uint32_t v[rounds];
#pragma unroll
    for (int i = 0; i < rounds; ++i)
      if (values % step == 0 || first + i * step < values) v[i] = raw[(first + i * step) * 8 + g];
#pragma unroll
    for (int i = 0; i < rounds; ++i)
      if (values % step == 0 || first + i * step < values)
        store_shared_v4(address + i * step * lut_layout<Bits>::index_bytes, v[i], v[i], v[i], v[i]);
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
