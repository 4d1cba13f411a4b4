// SPDX-License-Identifier: MIT
// Host side of the bit-serial kernel: how many units a block sums up together, and the launch.
// Arguments were checked by gemm.cuh. Tested by tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/detail/bit_serial_kernel.cuh>
#include <bitladder/kernels/cuda/detail/launch.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_launch.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// One token, group_count 1.
/// @return unsupported_device if the activations' bit-planes do not fit the card
template <int Bits>
[[nodiscard]] status launch_bit_serial(const gemm_args& a, const device_properties& device,
                                       cudaStream_t stream) noexcept {
  using policy = bit_serial_policy<Bits>;
  using body = bit_serial<Bits, policy>;
  bit_serial_params p{};
  p.call = describe(a, 0, 1);
  const int parts = 1 << p.call.paired;
  const int tiles = p.call.col_tiles;
  // No fewer slices a block than it has warps: a block's activations cost the same for one unit.
  const std::int64_t slices = static_cast<std::int64_t>(p.call.items) * parts * body::slices(tiles);
  const std::int64_t useful = std::max<std::int64_t>(1, slices / body::warps);
  // As many blocks a multiprocessor as the policy wants and the activations leave room for.
  const int fixed = body::coefficient_offset(tiles);
  int per_multiprocessor = policy::blocks;
  int room = 0;
  for (; per_multiprocessor > 0; --per_multiprocessor) {
    const int share = std::min(device.shared_bytes_per_block,
                               device.shared_bytes_per_multiprocessor / per_multiprocessor - 1024);
    room = (share - fixed) / body::unit_bytes(tiles) / parts * parts;
    if (room >= parts) break;
  }
  if (per_multiprocessor == 0) return status::unsupported_device;
  const std::int64_t resident =
      static_cast<std::int64_t>(per_multiprocessor) * device.multiprocessors;
  const std::int64_t blocks = std::min(std::min<std::int64_t>(p.call.items, useful), resident);
  const std::int64_t most = (p.call.items + blocks - 1) / blocks * parts;
  p.batch_units = static_cast<int>(std::min<std::int64_t>(room, most));
  return launch(
      bit_serial_kernel<Bits>,
      {dim3(static_cast<unsigned>(blocks)), body::threads, body::shared_bytes(tiles, p.batch_units),
       a.pdl && device.compute_capability >= 90},
      p, stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
