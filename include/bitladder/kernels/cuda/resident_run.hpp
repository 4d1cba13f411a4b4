// SPDX-License-Identifier: MIT
// How the work of a product is dealt to blocks and warps that stay on the card
// (resident_products.cuh): fixed by its shape and their number, so that every warp knows what it
// multiplies long before. Tested without a GPU by tests/kernels/cuda/resident_run_test.cpp.
#pragma once

#include <bitladder/config.hpp>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// Column tiles of a slice, the part of a row tile that a warp takes at a time.
constexpr int resident_slice_tiles = 4;

/// A block's run of a product's units, which are row tiles, and a warp's run of their slices.
struct resident_run {
  int begin = 0, units = 0;  ///< of the block
  int slices = 0;            ///< of a unit
  int from = 0, to = 0;      ///< of the warp, of units * slices

  /// @param items results, in row tiles; with `paired` 1 each is of two units, one after the other
  /// @param col_tiles of a row tile
  BL_HOST_DEVICE constexpr resident_run(int items, int paired, int col_tiles, int block, int blocks,
                                        int warp, int warps) {
    begin = items * block / blocks;
    units = (items * (block + 1) / blocks - begin) << paired;
    begin <<= paired;
    slices = slices_of(col_tiles);
    from = units * slices * warp / warps;
    to = units * slices * (warp + 1) / warps;
  }

  BL_HOST_DEVICE static constexpr int slices_of(int col_tiles) {
    return (col_tiles + resident_slice_tiles - 1) / resident_slice_tiles;
  }
  /// Units that a block has at most.
  BL_HOST_DEVICE static constexpr int most_units(int items, int paired, int blocks) {
    return (items + blocks - 1) / blocks << paired;
  }
};

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
