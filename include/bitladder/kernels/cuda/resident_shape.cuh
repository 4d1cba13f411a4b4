// SPDX-License-Identifier: MIT
// How a kernel of resident_products.cuh is shaped, and how it divides its shared memory: what host
// and device agree on. Tested by tests/llama/cuda/resident_layers_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/bit_serial_products.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/policy.cuh>
#include <bitladder/kernels/cuda/resident_step.cuh>

#include <algorithm>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// Of a block, at one precision.
template <int Bits>
struct resident_shape {
  using policy = resident_policy<Bits>;
  static constexpr int warps = policy::warps, threads = 32 * warps;
  static constexpr int plane_bytes = packed_layout::tile_words * 4;
  /// A column tile.
  static constexpr int slot_bytes = Bits * plane_bytes;
  static constexpr int slots = policy::slices_ahead * resident_slice_tiles;
  /// Groups of copies that a slice is. One saves a third of the instructions, which are a branch
  /// and addresses for each of four; where counts leave no registers for that, it costs more in
  /// spills (H200, layers of Llama-2-7B: 2 bits 1101 us, 1128 with four; 3 bits 1750, 1371 with
  /// four).
  static constexpr int groups = Bits == 2 ? 1 : resident_slice_tiles;
  /// Steps that are in shared memory: this one and those after.
  static constexpr int held_steps = 8;
  /// What the integers of a slice of activations stand for.
  struct alignas(16) slice_scale {
    unsigned largest[resident_slice_tiles];  ///< magnitude in each tile
    unsigned wide[resident_slice_tiles];     ///< whether bit-planes 0 to 7 are not all zero
    double sum[resident_slice_tiles];        ///< of the integers of each
    double back;                             ///< an integer times this is an activation
  };

  /// @param own bytes that the kernel wants at `x`
  static resident_memory plan(const resident_needs& n, int own) {
    const int slices = (n.col_tiles + resident_slice_tiles - 1) / resident_slice_tiles;
    resident_memory m{};
    int at = 0;
    const auto take = [&](int bytes) {
      const int begin = at;
      at += (bytes + 127) / 128 * 128;
      return begin;
    };
    m.ring = take(warps * slots * slot_bytes);
    m.x_bytes = std::max(own, slices * resident_slice_tiles * detail::bit_serial_tile_x_words * 4);
    m.x = take(m.x_bytes);
    m.scales = take(slices * static_cast<int>(sizeof(slice_scale)));
    // Twice: a step's tables are prepared while results of the one before are written.
    m.coefficients = take(n.units * (16 << Bits) * 4);
    m.row_scales = take(n.units * 16 * 8);
    m.sums = take(n.unit_slices * 16 * 8);
    m.sets = at - m.coefficients;
    take(m.sets);
    m.residual = take(n.units * 16 * 4);
    m.steps = take(held_steps * static_cast<int>(sizeof(resident_step)));
    m.runs = take(held_steps * (warps + 1) * static_cast<int>(sizeof(resident_cursor)));
    m.cursors = take(warps * static_cast<int>(sizeof(resident_cursor)));
    m.parts = take(warps * 4);
    m.total = at;
    return m;
  }
};

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
