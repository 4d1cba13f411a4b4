// SPDX-License-Identifier: MIT
// The sums of up to 16 tokens on their way out: every warp leaves its share of a group of column
// tiles in shared memory; one thread an output adds them in the one order and writes the result.
// Device code only. Tested by tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/outlier_sums.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_units.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// @tparam Shape small_batch, for its sizes and its places in shared memory
template <class Shape>
struct small_batch_sums {
  static constexpr int warps = Shape::warps;
  static constexpr int tokens = Shape::tokens;
  static constexpr int n_tiles = Shape::n_tiles;
  static constexpr int rounds = Shape::rounds;
  static constexpr int outputs = Shape::outputs;
  static constexpr int slots = Shape::slots;
  static constexpr int turn_units = Shape::turn_units;

  const small_batch_units& units;
  const std::uint32_t base;
  const int warp;
  const int lane;

  __device__ small_batch_sums(const small_batch_units& of, std::uint32_t shared, int of_warp,
                              int of_lane)
      : units(of), base(shared), warp(of_warp), lane(of_lane) {}

  /// @param buffer of the turn: 0 or 1; @param slot of the unit in its turn
  __device__ std::uint32_t partial_sums(int buffer, int slot, int group) const {
    return base + Shape::partial_offset +
           static_cast<std::uint32_t>(
               ((buffer * turn_units + slot) * Shape::groups_per_chunk + group) *
               (warps * Shape::warp_partial * 4));
  }

  /// This warp's share of a group: the sums of its tiles, brought back from the activations' scale.
  __device__ void store(int buffer, int slot, int group, float (&sum)[rounds][n_tiles][4]) const {
    const int lane = opaque(this->lane);
    const int g = lane / 4, t = lane % 4;
    if (units.p.x_is_bf16) {  // fp16 ones have no scale
#pragma unroll
      for (int round = 0; round < rounds; ++round)
#pragma unroll
        for (int n = 0; n < n_tiles; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int tile = group * Shape::group_tiles + round * warps + warp;
            const int token = tokens == 1 ? 0 : n * 8 + 2 * t + i;
            const float scale =
                load_shared_f32(base + Shape::scale_offset +
                                static_cast<std::uint32_t>((tile * tokens + token) * 4));
            sum[round][n][i] *= scale;
            sum[round][n][i + 2] *= scale;
          }
    }
    const std::uint32_t to = partial_sums(buffer, slot, group) +
                             static_cast<std::uint32_t>((warp * Shape::warp_partial + g) * 4);
    const auto share = [&](int n, int i) {
      if constexpr (rounds == 1) return sum[0][n][i];
      if constexpr (rounds == 2) return sum[0][n][i] + sum[1][n][i];
      if constexpr (rounds == 4)
        return (sum[0][n][i] + sum[2][n][i]) + (sum[1][n][i] + sum[3][n][i]);
    };
    if constexpr (tokens == 1) {
      if (t == 0) {
        store_shared_f32<0>(to, share(0, 0));
        store_shared_f32<32>(to, share(0, 2));
      }
    } else {
#pragma unroll
      for (int n = 0; n < n_tiles; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const std::uint32_t at =
              to + static_cast<std::uint32_t>((n * 8 + 2 * t + i) * (Shape::token_stride * 4));
          store_shared_f32<0>(at, share(n, i));
          store_shared_f32<32>(at, share(n, i + 2));
        }
    }
  }

  /// The sum of a group for one output: the tree of halves over the warps' shares.
  __device__ float group_sum(std::uint32_t partials, int token, int row) const {
    const std::uint32_t at =
        partials + static_cast<std::uint32_t>((token * Shape::token_stride + row) * 4);
    float v[warps];
#pragma unroll
    for (int w = 0; w < warps; ++w)
      v[w] = load_shared_f32(at + static_cast<std::uint32_t>(w * Shape::warp_partial * 4));
#pragma unroll
    for (int level = 1; level < warps; level *= 2)
#pragma unroll
      for (int w = 0; w < warps / 2; ++w)
        if (w < warps / 2 / level) v[w] += v[w + warps / 2 / level];
    return v[0];
  }

  /// Finishes a turn whose shares all lie in `buffer`, one output a lane. `gate` carries the first
  /// part of a pair to the second, in the same thread; so do the sums of earlier passes go from
  /// thread to thread of the same block, which is why they need no fence.
  /// @param begin of the block's units
  __device__ void finish(int begin, int first_unit, int end, int turn, int buffer, int chunk,
                         int groups, float& gate) const {
    const int lane = opaque(this->lane);
    // The two units of a turn go to different warps, but a pair's to one; a single token needs one
    // warp a unit, different ones every time.
    const bool apart = turn_units == 2 && 2 * slots <= warps && units.p.paired == 0;
    const int turn_slots = apart ? 2 * slots : slots;
    const int slot =
        slots == 1
            ? (warp - (turn_units == 1 ? turn >> units.p.paired : turn) * turn_slots) & (warps - 1)
            : warp;
    const int output = slot % slots * 32 + lane;
    if (slot >= turn_slots || output >= outputs) return;
    const int token = output / packed_layout::tile_rows, row = output % packed_layout::tile_rows;
    if (token >= units.p.m) return;
    const int first = apart ? slot / slots : 0, last = apart ? first + 1 : turn_units;
#pragma unroll 1
    for (int i = first; i < last && first_unit + i < end; ++i) {
      const int unit = first_unit + i;
      float* so_far = units.p.partial + static_cast<std::size_t>(unit) * outputs + output;
      float sum = group_sum(partial_sums(buffer, i, 0), token, row);
      if (chunk > 0 || (Shape::outliers_come && tokens > 1))
        sum = *so_far + sum;
      else if constexpr (Shape::outliers_come)
        sum = load_shared_f32(base + static_cast<std::uint32_t>(
                                         units.p.outlier_offset + outlier_block::head_bytes +
                                         (2 * units.p.outlier_units + unit - begin) * outputs * 4 +
                                         output * 4)) +
              sum;
#pragma unroll 1
      for (int k = 1; k < groups; ++k) sum += group_sum(partial_sums(buffer, i, k), token, row);
      if (chunk + 1 < units.p.chunks)
        *so_far = sum;
      else if (units.p.paired != 0 && unit % 2 == 0)
        gate = sum;
      else
        units.write(unit, token, row, gate, sum);
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
