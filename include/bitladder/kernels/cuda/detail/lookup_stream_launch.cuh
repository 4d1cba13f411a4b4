// SPDX-License-Identifier: MIT
// Host side of the lookup kernel for one token whose warps never meet: how the columns of a unit
// are divided into items, and the launch. Arguments were checked by gemm.cuh. Tested by
// tests/kernels/cuda/lookup_stream_test.cu.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/detail/launch.cuh>
#include <bitladder/kernels/cuda/detail/lookup_stream_kernel.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_launch.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// One token, group_count 1, no outliers.
/// @return unsupported_device if a block's sums, activations and tables do not fit the card, or a
///         table cannot be filled by the items of one unit
template <int Bits>
[[nodiscard]] status launch_lookup_stream(const gemm_args& a, const device_properties& device,
                                          cudaStream_t stream) noexcept {
  using policy = lookup_stream_policy<Bits>;
  using body = lookup_stream<Bits, policy>;
  lookup_stream_params p{};
  p.call = describe(a, 0, 1);
  const int tiles = p.call.col_tiles;
  if (tiles > body::most_tiles) return status::unsupported_device;
  p.unit_items = (tiles + body::item_tiles - 1) / body::item_tiles;
  p.step_units = body::warps / p.unit_items;
  p.step_items = body::warps % p.unit_items;
  p.share = ((1 << Bits) / 4 + p.unit_items - 1) / p.unit_items * 4;
  if (p.share > policy::share) return status::unsupported_device;
  const std::int64_t blocks = std::min<std::int64_t>(p.call.items, device.multiprocessors);
  const int most_units = static_cast<int>((p.call.items + blocks - 1) / blocks) << p.call.paired;
  const int shared = body::shared_bytes(tiles, most_units, p.unit_items);
  if (shared > device.shared_bytes_per_block) return status::unsupported_device;
  p.block_items = static_cast<int>(p.call.items / blocks);
  p.larger_blocks = static_cast<int>(p.call.items % blocks);
  return launch(lookup_stream_kernel<Bits>,
                {dim3(static_cast<unsigned>(blocks)), body::threads, shared,
                 a.pdl && device.compute_capability >= 90},
                p, stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
