// SPDX-License-Identifier: MIT
// Codes to bitplanes on the card: pack() of core/pack.hpp. Tested by
// tests/quantize/cuda/quantize_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// A warp makes a word of every plane at a time; columns past the last are zero.
/// @param codes [rows, cols]; @param out [planes, rows, words]
template <class Code>
BL_KERNEL pack_codes_kernel(const Code* codes, std::uint32_t* out, int rows, int cols, int planes) {
  const int words = (cols + 31) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t all = static_cast<std::int64_t>(rows) * words;
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32);
  for (std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
       i < all; i += warps) {
    const std::int64_t row = i / words;
    const int col = static_cast<int>(i % words) * 32 + lane;
    const unsigned code = col < cols ? codes[row * cols + col] : 0u;
    std::uint32_t mine = 0;  // lane p keeps plane p's
    for (int p = 0; p < planes; ++p) {
      const std::uint32_t word = __ballot_sync(~0u, (code >> (planes - 1 - p) & 1u) != 0);
      if (lane == p) mine = word;
    }
    if (lane < planes) out[lane * all + i] = mine;
  }
}

/// Queues it.
inline void queue_pack_codes(const std::uint8_t* codes, std::uint32_t* out, int rows, int cols,
                             int planes, cudaStream_t stream) {
  constexpr int threads = 256;
  const std::int64_t warps = static_cast<std::int64_t>(rows) * ((cols + 31) / 32);
  const int grid =
      static_cast<int>(std::min<std::int64_t>((warps + threads / 32 - 1) / (threads / 32), 8192));
  pack_codes_kernel<<<grid, threads, 0, stream>>>(codes, out, rows, cols, planes);
  check(launch_status());
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
