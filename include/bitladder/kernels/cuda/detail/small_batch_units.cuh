// SPDX-License-Identifier: MIT
// What a launch for up to 16 tokens works on: row tiles of its matrices, numbered as units, and
// where their planes, tables, activations and results lie. Device code only; small_batch_kernel.cuh
// and bit_serial_kernel.cuh multiply. Tested by tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cuda/detail/outlier_source.cuh>
#include <bitladder/kernels/cuda/detail/output.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// One launch. A unit is one row tile of one matrix. A block takes a run of units, and where the
/// columns are too many for its activations, passes over that run more than once.
struct small_batch_params {
  struct matrix {
    const std::uint32_t* planes;
    const fp16_t* tables;
    std::uint32_t row_tile_stride;  ///< words
    output_row_params out;
    int first_unit;  ///< number of its first row tile among all; not used for a pair
    outlier_source outliers;
  };
  static constexpr int max_matrices = 4;

  matrix matrices[max_matrices];
  int count;
  int paired;  ///< 1: row tiles of matrices 0 and 1 alternate and make one result; else 0
  int items;   ///< results, in row tiles; twice as many units if paired
  std::size_t plane_stride;  ///< words
  int cols;
  int col_tiles;
  int chunks;       ///< passes over the columns, each with its activations
  int chunk_tiles;  ///< column tiles of a pass, a multiple of 16
  const void* x;
  std::int64_t x_stride;
  bool x_is_bf16;
  int m;
  output_params out;
  float* partial;  ///< [units][tokens * 16] sums of the passes before, for chunks > 1; of the
                   ///< outliers before the first pass
  std::uint16_t* x_by_col;  ///< [cols, tokens] for the outliers of several tokens
  int outlier_offset;       ///< of what a block keeps of them in its shared memory, for one token
  int outlier_units;        ///< most units of a block, for one token
  int outlier_staged;       ///< runs for which there is room before the loop, a multiple of 4
};

/// A block's view of the launch.
struct small_batch_units {
  const small_batch_params& p;

  __device__ explicit small_batch_units(const small_batch_params& params) : p(params) {}

  /// The matrix of a unit and the row tile in it.
  __device__ int matrix_of(int unit, int& row_tile) const {
    row_tile = unit;
    if (p.count == 1) return 0;
    if (p.paired != 0) {
      row_tile = unit / 2;
      return unit % 2;
    }
    int i = 0;
    while (i + 1 < p.count && unit >= p.matrices[i + 1].first_unit) ++i;
    row_tile = unit - p.matrices[i].first_unit;
    return i;
  }

  __device__ const std::uint32_t* unit_planes(int unit) const {
    int row_tile;
    const auto& m = p.matrices[matrix_of(unit, row_tile)];
    return m.planes +
           static_cast<std::uint64_t>(static_cast<std::uint32_t>(row_tile)) * m.row_tile_stride;
  }

  /// Words of a unit's table, [2^bits][8], each {row g, row g + 8}.
  __device__ const std::uint32_t* unit_table(int unit, int bits) const {
    int row_tile;
    const auto& m = p.matrices[matrix_of(unit, row_tile)];
    return reinterpret_cast<const std::uint32_t*>(m.tables) +
           (static_cast<std::uint64_t>(static_cast<std::uint32_t>(row_tile)) * 8 << bits);
  }

  /// 32 consecutive activations of one token, zero past the last column or token.
  __device__ void load_x_run(int token, int col, std::uint32_t (&x)[16]) const {
    if (token < p.m && col < p.cols) {
      const uint4* from = reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(p.x) +
                                                         token * p.x_stride + col);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint4 v = from[i];
        x[4 * i] = v.x, x[4 * i + 1] = v.y, x[4 * i + 2] = v.z, x[4 * i + 3] = v.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 16; ++i) x[i] = 0;
    }
  }

  /// 16 of the first token, zero past the last column.
  __device__ void load_x_half_run(int col, std::uint32_t (&x)[8]) const {
    uint4 a = make_uint4(0, 0, 0, 0), b = a;
    if (col < p.cols) {
      const uint4* from =
          reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(p.x) + col);
      a = from[0], b = from[1];
    }
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
    x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
  }

  __device__ void write(int unit, int token, int row, float gate, float sum) const {
    int row_tile;
    const int i = matrix_of(unit, row_tile);
    row += row_tile * packed_layout::tile_rows;
    if (row >= p.matrices[i].out.rows) return;
    if (p.paired != 0)
      write_swiglu(p.out, p.matrices[0].out, p.matrices[1].out, token, row, gate, sum);
    else
      write_output(p.out, p.matrices[i].out, token, row, sum);
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
