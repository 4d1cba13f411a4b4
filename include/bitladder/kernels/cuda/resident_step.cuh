// SPDX-License-Identifier: MIT
// What a kernel that stays on the card for many products (resident_products.cuh) goes through, and
// how it divides its shared memory. Tested by tests/llama/cuda/resident_layers_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/resident_run.hpp>

#include <cuda_fp16.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// One step of a program that blocks go through together, in device memory: a product of up to
/// three matrices that share x, or something that the kernel does itself.
struct alignas(16) resident_step {
  struct matrix {
    const std::uint32_t* planes;
    const fp16_t* tables;
    const __half* bias;             ///< [rows], or null; not with `residual`
    unsigned long long* y;          ///< [rows / 2] tagged pairs
    std::uint32_t row_tile_stride;  ///< words
    int first_unit;                 ///< number of its first row tile among all; not for a pair
    int rows;                       ///< even
  };
  static constexpr int max_matrices = 3;

  matrix matrices[max_matrices];
  const unsigned long long* x;  ///< [cols / 2] tagged pairs
  const float* norm;       ///< [cols]: x is divided by its root mean square and multiplied by this
  float* last;             ///< [rows of matrix 0]: where results go untagged too, or null
  float epsilon, mean_by;  ///< of the norm; mean_by is 1 / cols
  int count;               ///< of matrices; 0 if this is no product
  int residual;  ///< 1: the sums of the only matrix are added to the rows that a block holds
  int paired;    ///< 1: row tiles of matrices 0 and 1 alternate, y of 0 = silu(0) * 1
  int items;     ///< results, in row tiles; twice as many units if paired
  int cols;
  int col_tiles;
  std::uint32_t plane_stride;  ///< words
  int x_age, y_age;            ///< tags of x and of y, counted from that of the program
  int own;                     ///< for the kernel's use, if this is no product
  int more;                    ///< the same
};
static_assert(sizeof(resident_step) % 16 == 0, "copied by vectors");

/// Shared memory of a block of such a kernel, in bytes from its start.
struct resident_memory {
  int ring, cursors, steps, runs, scales, x, coefficients, row_scales, sums, residual, parts, total;
  int sets;     ///< bytes from the coefficients to row scales and sums of one step to those of the
                ///< next
  int x_bytes;  ///< at `x`: activations during a product; the kernel's own use otherwise
};

/// The slice whose copies a warp requests next, of a product or of what the kernel does itself. In
/// shared memory, one a warp.
struct alignas(16) resident_cursor {
  int step;
  int left;         ///< slices of the step, this one among them
  int unit, slice;  ///< the slice in the unit; for the kernel's own use if it is no product
};

/// What the steps of a program need at most.
struct resident_needs {
  int col_tiles = 0, units = 0, unit_slices = 0;

  /// @param blocks of the launch
  void add(const resident_step& s, int blocks) {
    const int most = resident_run::most_units(s.items, s.paired, blocks);
    col_tiles = std::max(col_tiles, s.col_tiles);
    units = std::max(units, most);
    unit_slices = std::max(unit_slices, most * resident_run::slices_of(s.col_tiles));
  }
};

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
