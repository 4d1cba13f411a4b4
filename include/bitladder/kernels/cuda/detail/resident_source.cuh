// SPDX-License-Identifier: MIT
// Where the weights of a slice lie, and how they come to a slot, for resident_products.cuh. Device
// code only. Tested by tests/llama/cuda/resident_layers_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/resident_step.cuh>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// Where this lane's words of a slice come from.
struct resident_source {
  const std::uint32_t* from;
  std::uint32_t stride;  ///< words from plane to plane; 0: a slice of the kernel's own
  int count;             ///< column tiles; for the kernel's own use
};

/// Queues a copy of 16 bytes to a slot.
__device__ __forceinline__ void resident_copy(std::uint32_t to, const void* from) {
  detail::copy_async_16(to, from);
}
/// 16 bytes of a slot, once they have come.
__device__ __forceinline__ uint4 resident_load(std::uint32_t from) {
  return detail::load_shared_v4(from);
}

namespace detail {

/// The matrix of a unit and the row tile in it.
__device__ inline int matrix_of(const resident_step& s, int unit, int& row_tile) {
  if (s.paired != 0) {
    row_tile = unit / 2;
    return unit % 2;
  }
  int i = 0;
  while (i + 1 < s.count && unit >= s.matrices[i + 1].first_unit) ++i;
  row_tile = unit - s.matrices[i].first_unit;
  return i;
}

/// Where a slice is.
template <class Own>
__device__ __forceinline__ resident_source find_slice(const resident_step& s, int unit, int slice,
                                                      const Own& own) {
  resident_source at{nullptr, 0, 0};
  if (s.count == 0) {
    own.aim(s, slice, at);
    return at;
  }
  int row_tile;
  const auto& m = s.matrices[matrix_of(s, unit, row_tile)];
  at.from = m.planes +
            static_cast<std::uint64_t>(static_cast<std::uint32_t>(row_tile)) * m.row_tile_stride +
            slice * resident_slice_tiles * packed_layout::tile_words +
            static_cast<int>(threadIdx.x) % 32 * packed_layout::lane_words;
  at.stride = s.plane_stride;
  at.count = s.col_tiles - slice * resident_slice_tiles;
  return at;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
