// SPDX-License-Identifier: MIT
// Packed weights back to numbers. A block takes one row tile, whose table stands in shared memory,
// and its warps take column tiles in turn; a quarter of a row's run in every lane becomes 16-byte
// stores that are contiguous over four lanes. Outliers are written over them in the end. Device
// code only. Tested by tests/kernels/cuda/dequantize_test.cu and outliers_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cuda/detail/decode.cuh>
#include <bitladder/kernels/cuda/detail/outlier_runs.cuh>
#include <bitladder/kernels/cuda/detail/output.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/packed_outliers.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

struct dequantize_params {
  const std::uint32_t* planes;
  const std::uint32_t* tables;  ///< [row tiles][groups][2^bits][8] words {row g, row g + 8}
  void* out;                    ///< row `first_tile` * 16 of the weights comes first
  std::int64_t out_stride;      ///< elements
  packed_layout layout;
  int first_tile;
  int row_count;  ///< rows to write
  int groups;
  dtype type;
  packed_outliers_view outliers;
};

/// Threads of a block.
inline constexpr int dequantize_threads = 256;

/// Codes of the columns of a word, one byte each: byte m of code word k is column 8 m + k.
template <int Bits>
__device__ __forceinline__ void code_words(const std::uint32_t (&plane)[Bits],
                                           std::uint32_t (&code)[8]) {
  std::uint32_t field[decoding<Bits>::words];
  merge<Bits>(plane, field);
  if constexpr (decoding<Bits>::pairs) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      code[k] = field[k] & 0x0f0f0f0fu;
      code[k + 4] = field[k] >> 4 & 0x0f0f0f0fu;
    }
  } else {
#pragma unroll
    for (int k = 0; k < 8; ++k) code[k] = field[k];
  }
}

/// Exchanges between the four lanes of a row: item i of lane t comes to item t of lane i, an item
/// being 8 fp16 values.
__device__ __forceinline__ void transpose_items(uint4 (&v)[4], int lane) {
  const auto exchange = [](uint4 a, int mask) {
    a.x = __shfl_xor_sync(~0u, a.x, mask);
    a.y = __shfl_xor_sync(~0u, a.y, mask);
    a.z = __shfl_xor_sync(~0u, a.z, mask);
    a.w = __shfl_xor_sync(~0u, a.w, mask);
    return a;
  };
  const bool odd = (lane & 1) != 0, upper = (lane & 2) != 0;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint4 got = exchange(odd ? v[i] : v[i + 1], 1);
    if (odd)
      v[i] = got;
    else
      v[i + 1] = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 got = exchange(upper ? v[i] : v[i + 2], 2);
    if (upper)
      v[i] = got;
    else
      v[i + 2] = got;
  }
}

/// Eight fp16 values to columns `column` and on of a row.
__device__ __forceinline__ void store_eight(dtype type, void* row, int column, uint4 v) {
  if (type == dtype::f16) {
    *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(row) + column) = v;
    return;
  }
  float f[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t word = i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
    const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&word));
    f[2 * i] = two.x;
    f[2 * i + 1] = two.y;
  }
  if (type == dtype::f32) {
    float4* to = reinterpret_cast<float4*>(static_cast<float*>(row) + column);
    to[0] = make_float4(f[0], f[1], f[2], f[3]);
    to[1] = make_float4(f[4], f[5], f[6], f[7]);
    return;
  }
  std::uint32_t out[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(f[2 * i], f[2 * i + 1]);
    out[i] = *reinterpret_cast<const std::uint32_t*>(&two);
  }
  *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(row) + column) =
      make_uint4(out[0], out[1], out[2], out[3]);
}

/// @tparam Grouped several tables per row: they stay in global memory
template <int Bits, bool Grouped>
BL_KERNEL __launch_bounds__(dequantize_threads, 2)
    dequantize_kernel(const __grid_constant__ dequantize_params p) {
  constexpr int warps = dequantize_threads / 32;
  // One word per lane, four copies of each: lanes of a row with different codes read at once.
  __shared__ uint4 table[Grouped ? 1 : 8 << Bits];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  const int row_tile = p.first_tile + static_cast<int>(blockIdx.x);
  const int col_tiles = p.layout.col_tiles();
  const std::size_t plane_stride = p.layout.plane_stride();
  const std::uint32_t* planes = p.planes +
                                static_cast<std::size_t>(row_tile) * p.layout.row_tile_stride() +
                                lane * packed_layout::lane_words;
  const int step = warps * static_cast<int>(gridDim.y);
  int tile = static_cast<int>(blockIdx.y) * warps + warp;

  uint4 next[Bits];
  const auto load = [&](int at) {
#pragma unroll
    for (int j = 0; j < Bits; ++j)
      next[j] = load_once(planes + j * plane_stride +
                          static_cast<std::size_t>(at) * packed_layout::tile_words);
  };
  if (tile < col_tiles) load(tile);
  const std::uint32_t* tables =
      p.tables + static_cast<std::size_t>(row_tile) * p.groups * (8 << Bits);
  if constexpr (!Grouped) {
    for (int i = static_cast<int>(threadIdx.x); i < 8 << Bits; i += dequantize_threads) {
      const std::uint32_t v = tables[i];
      table[i] = make_uint4(v, v, v, v);
    }
    __syncthreads();
  }
  const std::uint32_t lane_table = Grouped ? 0 : shared_address(table) + lane * 4;
  const int group_cols = p.layout.cols / p.groups;
  const int rows_left = p.row_count - static_cast<int>(blockIdx.x) * packed_layout::tile_rows;
  const std::size_t element_bytes = p.type == dtype::f32 ? 4 : 2;

  for (; tile < col_tiles; tile += step) {
    uint4 now[Bits];
#pragma unroll
    for (int j = 0; j < Bits; ++j) now[j] = next[j];
    if (tile + step < col_tiles) load(tile + step);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int row = g + 8 * (w % 2);
      const int column = tile * packed_layout::tile_cols + w / 2 * 128;
      if (column >= p.layout.cols) break;
      std::uint32_t plane[Bits], code[8];
#pragma unroll
      for (int j = 0; j < Bits; ++j)
        plane[j] = w == 0 ? now[j].x : w == 1 ? now[j].y : w == 2 ? now[j].z : now[j].w;
      code_words<Bits>(plane, code);
      const std::uint32_t* group_table = tables;
      if constexpr (Grouped) {
        // Padding columns may lie past the last group; nothing of them is written.
        const int group = min((column + 32 * t) / group_cols, p.groups - 1);
        group_table += static_cast<std::size_t>(group) * (8 << Bits);
      }
      uint4 item[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        std::uint32_t value[8];
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          const std::uint32_t c = code[k] >> (8 * m) & 0xffu;
          if constexpr (Grouped) {
            const std::uint32_t both = __ldg(group_table + c * 8 + g);
            value[k] = w % 2 == 0 ? both & 0xffffu : both >> 16;
          } else {
            value[k] = w % 2 == 0 ? load_shared_u16<0>(lane_table + c * 128)
                                  : load_shared_u16<2>(lane_table + c * 128);
          }
        }
        item[m] = make_uint4(value[0] + value[1] * 65536u, value[2] + value[3] * 65536u,
                             value[4] + value[5] * 65536u, value[6] + value[7] * 65536u);
      }
      // Item m was columns 32 t + 8 m; now item i is columns 32 i + 8 t: four lanes make 64 bytes.
      transpose_items(item, lane);
      unsigned char* to = static_cast<unsigned char*>(p.out) +
                          (static_cast<std::int64_t>(blockIdx.x) * packed_layout::tile_rows + row) *
                              p.out_stride * static_cast<std::int64_t>(element_bytes);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = column + 32 * i + 8 * t;
        if (row < rows_left && at < p.layout.cols) store_eight(p.type, to, at, item[i]);
      }
    }
  }
  if (p.outliers.empty()) return;
  // Over what this block wrote: the column tiles that its warps take.
  __syncthreads();
  const std::int32_t* const offsets = p.outliers.offsets + row_tile * packed_layout::tile_rows;
  const int end = offsets[packed_layout::tile_rows];
  const int row_end = lane < packed_layout::tile_rows ? offsets[lane + 1] : end + 1;
  for (int run = offsets[0] + warp; run < end; run += warps) {
    const int row = __popc(__ballot_sync(~0u, row_end <= run));
    const std::uint32_t head = p.outliers.heads[run];
    const std::uint32_t entry = p.outliers.entries[static_cast<std::size_t>(run) * 32 + lane];
    const int column = outlier_first_col(head) + static_cast<int>(entry & 0xffffu);
    if (lane < outlier_count(head) && row < rows_left &&
        column / packed_layout::tile_cols / warps % static_cast<int>(gridDim.y) ==
            static_cast<int>(blockIdx.y))
      write_element(
          p.type, p.out,
          (static_cast<std::int64_t>(blockIdx.x) * packed_layout::tile_rows + row) * p.out_stride +
              column,
          outlier_value(entry));
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
