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

template <int Bits, bool Outliers>
[[nodiscard]] status launch_bit_serial_form(const gemm_args& a, const device_properties& device,
                                            cudaStream_t stream) noexcept {
  using policy = bit_serial_policy<Bits>;
  using body = bit_serial<Bits, policy, Outliers>;
  using memory = typename body::outlier_memory;
  bit_serial_params p{};
  p.call = describe(a, 0, 1);
  const int parts = 1 << p.call.paired;
  const int tiles = p.call.col_tiles;
  // As many blocks a multiprocessor as the policy wants and the activations leave room for.
  const int fixed =
      body::coefficient_offset(tiles) + (Outliers ? memory::bytes(body::slices(tiles), 0, 0) : 0);
  const int unit_bytes =
      body::unit_bytes(tiles) + (Outliers ? memory::bytes(0, 1, 0) - memory::bytes(0, 0, 0) : 0);
  int per_multiprocessor = policy::blocks;
  int room = 0;
  for (; per_multiprocessor > 0; --per_multiprocessor) {
    const int share = std::min(device.shared_bytes_per_block,
                               device.shared_bytes_per_multiprocessor / per_multiprocessor - 1024);
    room = (share - fixed) / unit_bytes / parts * parts;
    if (room >= parts) break;
  }
  if (per_multiprocessor == 0) return status::unsupported_device;
  const std::int64_t slices = static_cast<std::int64_t>(p.call.items) * parts * body::slices(tiles);
  // Few slices a warp: one block a multiprocessor, so that activations are prepared there once and
  // the next launch's block fits beside it (H200, 4096 x 4096: 2 bits 2.8 us, 3 bits 3.6; as many
  // blocks as fit 4.6 and 5.3).
  if (slices <=
      policy::few_slices * static_cast<std::int64_t>(body::warps) * device.multiprocessors)
    per_multiprocessor = 1;
  const std::int64_t resident =
      static_cast<std::int64_t>(per_multiprocessor) * device.multiprocessors;
  const std::int64_t blocks = std::min<std::int64_t>(p.call.items, resident);
  p.block_items = static_cast<int>(p.call.items / blocks);
  p.larger_blocks = static_cast<int>(p.call.items % blocks);
  const int most = (p.block_items + (p.larger_blocks > 0 ? 1 : 0)) * parts;
  // Equal batches: each costs a start of its own.
  const std::int64_t batches = (most + room - 1) / room;
  p.batch_units = static_cast<int>((most / parts + batches - 1) / batches * parts);
  if (Outliers) {
    const int left = std::min(device.shared_bytes_per_block,
                              device.shared_bytes_per_multiprocessor / per_multiprocessor - 1024) -
                     body::shared_bytes(tiles, p.batch_units, 0);
    p.staged_runs =
        std::min(p.batch_units * outlier_staged_runs, left / outlier_stage::run_bytes) / 4 * 4;
  }
  return launch(bit_serial_kernel<Bits, Outliers>,
                {dim3(static_cast<unsigned>(blocks)), body::threads,
                 body::shared_bytes(tiles, p.batch_units, p.staged_runs),
                 a.pdl && device.compute_capability >= 90},
                p, stream);
}

/// One token, group_count 1.
/// @return unsupported_device if the activations' bit-planes do not fit the card
template <int Bits>
[[nodiscard]] status launch_bit_serial(const gemm_args& a, const device_properties& device,
                                       cudaStream_t stream) noexcept {
  return has_outliers(a) ? launch_bit_serial_form<Bits, true>(a, device, stream)
                         : launch_bit_serial_form<Bits, false>(a, device, stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
