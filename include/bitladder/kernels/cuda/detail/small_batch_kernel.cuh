// SPDX-License-Identifier: MIT
// Y = X W^T for up to 16 tokens: weights stream from memory into registers, their bits are merged
// and looked up (decode.cuh) straight into operands of the tensor cores, which multiply by fp16
// activations and sum in float. Device code only; gemm.cuh launches it. Tested by
// tests/kernels/cuda/gemm_test.cu.
//
// The order of summation is one for every number of tokens, of blocks and of matrices in a launch:
// a column tile (256 columns) is one chain of 16 mma steps; the 16 tiles of a group (4096 columns)
// are added as a tree of halves (tile t + tile t + 8, then + 4, + 2, + 1); the groups are added in
// order. Tiles past the last column add zero.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cuda/detail/decode.cuh>
#include <bitladder/kernels/cuda/detail/lut.cuh>
#include <bitladder/kernels/cuda/detail/output.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/policy.cuh>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

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
  float* partial;  ///< [units][tokens * 16] sums of the passes before, for chunks > 1
};

template <int Bits, class Policy>
struct small_batch {
  static constexpr int warps = Policy::warps;
  static constexpr int threads = 32 * warps;
  static constexpr int tokens = Policy::tokens;
  static constexpr int n_tiles = tokens == 16 ? 2 : 1;  ///< of 8 tokens
  static constexpr int group_tiles = 16;
  static constexpr int rounds = group_tiles / warps;  ///< tiles of a group that one warp takes
  /// Steps after which both the round and the pipeline's slot repeat.
  static constexpr int period = Policy::depth > rounds ? Policy::depth : rounds;
  static_assert(period % rounds == 0 && period % Policy::depth == 0, "powers of two");
  static constexpr int max_chunk_tiles = group_tiles * Policy::groups_per_chunk;
  static constexpr int outputs = packed_layout::tile_rows * tokens;
  /// Warps that finish a unit, one output a lane.
  static constexpr int slots = outputs <= 32 ? 1 : outputs / 32;
  /// From one token's 16 partial sums to the next: 20 floats keep the four tokens that a warp
  /// writes at once in different banks.
  static constexpr int token_stride = tokens == 1 ? 16 : 20;
  static constexpr int warp_partial = token_stride * tokens;  ///< floats

  static constexpr int raw_bytes = packed_layout::tile_rows * 2 << Bits;
  /// Where tables start in the block's shared memory, modulo 64 KiB: the address that blocks of
  /// sm_90 get, so that nothing is wasted there. Being a constant, it is an immediate of every
  /// lookup; added to 64 addresses a tile it was a quarter of all instructions.
  static constexpr int lut_base = 1024;
  static constexpr int lut_offset = 0;
  static constexpr int raw_offset = lut_offset + lut_layout<Bits>::bytes(Policy::lut_stages);
  static constexpr int partial_offset = raw_offset + 2 * raw_bytes;
  static constexpr int scale_offset =
      partial_offset + 2 * Policy::groups_per_chunk * warps * warp_partial * 4;
  static constexpr int x_offset = scale_offset + max_chunk_tiles * tokens * 4;
  /// Shared memory of a block whose chunks have `chunk_tiles` column tiles.
  BL_HOST_DEVICE static constexpr int shared_bytes(int chunk_tiles) {
    return lut_base + x_offset +
           (Policy::x_in_shared ? chunk_tiles * packed_layout::tile_cols * 2 : 0);
  }

  /// The planes of one column tile, as loaded.
  struct tile_words {
    uint4 plane[Bits];
  };
  /// The activations of one column tile in operand order: [n tile][half][8 steps][2].
  struct tile_x {
    std::uint32_t word[Policy::x_in_shared ? 1 : n_tiles * 32];
  };
  /// Activations on their way from shared memory, two steps' worth at a time. Only lanes 0..3 load
  /// (column 0 of the operand); the others' stay zero.
  struct shared_x {
    std::uint32_t word[Policy::x_in_shared ? 2 : 1][4];
  };

  const small_batch_params& p;
  unsigned char* const shared;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;

  /// Bytes 0, 2 and 3 of this lane's table addresses, less lut_base.
  const std::uint32_t lane_base;

  /// @param memory shared_bytes(...) bytes
  __device__ small_batch(const small_batch_params& params, unsigned char* memory)
      : p(params),
        shared(memory + ((lut_base - shared_address(memory)) & 0xffffu)),
        lane_base((shared_address(memory) & 0xffff0000u) + static_cast<std::uint32_t>(lane) * 4u) {
    BL_ASSERT((shared_address(memory) & 0xffffu) <= lut_base);
  }

  // --- units -------------------------------------------------------------------------------------

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

  __device__ void copy_raw_table(int unit, int buffer) const {
    constexpr int pieces = raw_bytes / 16;
    const int thread = opaque(static_cast<int>(threadIdx.x));
    if (pieces < threads && thread >= pieces) return;
    int row_tile;
    const auto& m = p.matrices[matrix_of(unit, row_tile)];
    const unsigned char* from =
        reinterpret_cast<const unsigned char*>(m.tables) +
        static_cast<std::uint64_t>(static_cast<std::uint32_t>(row_tile)) * raw_bytes + thread * 16;
    const std::uint32_t to = shared_address(shared + raw_offset + thread * 16) +
                             static_cast<std::uint32_t>(buffer * raw_bytes);
    static_assert(pieces < threads || pieces % threads == 0, "whole rounds");
#pragma unroll
    for (int i = 0; i < (pieces + threads - 1) / threads; ++i)
      copy_async_16(to + i * threads * 16, from + i * threads * 16);
  }

  __device__ void build(int buffer, int stage) const {
    build_lut<Bits, threads>(
        reinterpret_cast<const std::uint32_t*>(shared + raw_offset + buffer * raw_bytes),
        shared_address(shared + lut_offset) +
            static_cast<std::uint32_t>(stage) * lut_layout<Bits>::stage_bytes,
        opaque(static_cast<int>(threadIdx.x)));
  }

  // --- activations -------------------------------------------------------------------------------

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

  /// The largest finite magnitude among bf16 pairs, as bits.
  __device__ static std::uint32_t largest_bf16(const std::uint32_t (&x)[16],
                                               std::uint32_t largest) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const std::uint32_t lo = x[i] & 0x7fffu, hi = x[i] >> 16 & 0x7fffu;
      if (lo < 0x7f80u) largest = max(largest, lo);
      if (hi < 0x7f80u) largest = max(largest, hi);
    }
    return largest;
  }

  /// The power of two that brings `largest` just below 2^15, so that bf16 values become fp16 ones
  /// without a rounding unless they are 2^-29 of the largest. Clamped so that its inverse is
  /// finite.
  __device__ static float bf16_scale(std::uint32_t largest) {
    const int exponent = max(static_cast<int>(largest >> 7), 24);  // biased by 127
    return __uint_as_float(static_cast<std::uint32_t>(127 + 14 + 127 - exponent) << 23);
  }

  __device__ static std::uint32_t bf16_pair_to_fp16(std::uint32_t x, float scale) {
    const __half2 h = __floats2half2_rn(__uint_as_float(x << 16) * scale,
                                        __uint_as_float(x & 0xffff0000u) * scale);
    return *reinterpret_cast<const std::uint32_t*>(&h);
  }

  /// 32 activations in the order of pairs (decode.cuh's pair_column).
  __device__ static void order_pairs(const std::uint32_t (&x)[16], std::uint32_t* pair) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int from = 4 * (i % 4) + i / 8;  // word with column 8 m + r
      pair[i] = i / 4 % 2 == 0 ? permute<0x5410>(x[from], x[from + 2])
                               : permute<0x7632>(x[from], x[from + 2]);
    }
  }

  __device__ float* scales() const { return reinterpret_cast<float*>(shared + scale_offset); }

  /// Two 128-column halves of one token's tile: operand words, and the inverse of their scale.
  /// All lanes that share the tile (`tile_lanes` neighbours) call together.
  template <int TileLanes, int Halves>
  __device__ float convert(std::uint32_t (&x)[Halves][16]) const {
    if (!p.x_is_bf16) return 1.f;
    std::uint32_t largest = 0;
#pragma unroll
    for (int h = 0; h < Halves; ++h) largest = largest_bf16(x[h], largest);
#pragma unroll
    for (int by = 1; by < TileLanes; by *= 2)
      largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, by));
    const float scale = bf16_scale(largest);
#pragma unroll
    for (int h = 0; h < Halves; ++h)
#pragma unroll
      for (int i = 0; i < 16; ++i) x[h][i] = bf16_pair_to_fp16(x[h][i], scale);
    return 1.f / scale;  // exact: a power of two
  }

  /// The register form: lane 4 g + t takes token g's columns of this warp's tiles.
  __device__ void load_x(int first_tile, tile_x (&x)[rounds]) const {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
      const int tile = warp + warps * round;
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) {
        const int token = n * 8 + g;
        std::uint32_t run[2][16];
#pragma unroll
        for (int h = 0; h < 2; ++h)
          load_x_run(token, (first_tile + tile) * packed_layout::tile_cols + 128 * h + 32 * t,
                     run[h]);
        const float scale = convert<4>(run);
        if (t == 0) scales()[tile * tokens + token] = scale;
#pragma unroll
        for (int h = 0; h < 2; ++h) order_pairs(run[h], &x[round].word[n * 32 + h * 16]);
      }
    }
    __syncwarp();  // scales are read by the warp that wrote them
  }

  /// The shared form, one token: 8 lanes take a tile, 64 bytes of operand order each.
  __device__ void share_x(int first_tile, int tiles, int groups) const {
#pragma unroll 1
    for (int base = 0; base < groups * group_tiles; base += threads / 8) {
      const int tile = base + static_cast<int>(threadIdx.x) / 8;
      const int h = static_cast<int>(threadIdx.x) / 4 % 2, t = static_cast<int>(threadIdx.x) % 4;
      std::uint32_t run[1][16], pair[16];
      load_x_run(tile < tiles ? 0 : p.m,
                 (first_tile + tile) * packed_layout::tile_cols + 128 * h + 32 * t, run[0]);
      const float scale = convert<8>(run);
      order_pairs(run[0], pair);
      if (tile < tiles) {
        const std::uint32_t to = shared_address(shared + x_offset) +
                                 static_cast<std::uint32_t>((tile * 2 + h) * 256 + t * 16);
#pragma unroll
        for (int r = 0; r < 4; ++r)
          store_shared_v4(to + r * 64, pair[4 * r], pair[4 * r + 1], pair[4 * r + 2],
                          pair[4 * r + 3]);
      }
      // Also past the last tile, whose sums are zero and whose scale must be finite.
      if (threadIdx.x % 8 == 0 && tile < groups * group_tiles) scales()[tile] = scale;
    }
  }

  // --- products ----------------------------------------------------------------------------------

  template <int V>
  using constant = std::integral_constant<int, V>;

  /// Operands of two mma steps: four pairs of each row, and the activations.
  struct operands {
    std::uint32_t a[8];
    std::uint32_t b[n_tiles][4];
  };

  /// Looks up steps 2 S and 2 S + 1 of a half.
  template <int S>
  __device__ __forceinline__ void fetch(const std::uint32_t (&upper)[decoding<Bits>::words],
                                        const std::uint32_t (&lower)[decoding<Bits>::words],
                                        std::uint32_t lane_offset, const tile_x& x, int half,
                                        shared_x& arriving, std::uint32_t x_address,
                                        operands& o) const {
    if constexpr (Policy::x_in_shared)
      load_shared_v4_if(x_address + static_cast<std::uint32_t>(half * 256 + S * 64), lane < 4,
                        arriving.word[S % 2]);
    o.a[0] = look_up<Bits, 4 * S, 0, lut_base>(upper, lane_offset, 0);
    o.a[1] = look_up<Bits, 4 * S, 1, lut_base>(lower, lane_offset, 0);
    o.a[2] = look_up<Bits, 4 * S + 1, 0, lut_base>(upper, lane_offset, 0);
    o.a[3] = look_up<Bits, 4 * S + 1, 1, lut_base>(lower, lane_offset, 0);
    o.a[4] = look_up<Bits, 4 * S + 2, 0, lut_base>(upper, lane_offset, 0);
    o.a[5] = look_up<Bits, 4 * S + 2, 1, lut_base>(lower, lane_offset, 0);
    o.a[6] = look_up<Bits, 4 * S + 3, 0, lut_base>(upper, lane_offset, 0);
    o.a[7] = look_up<Bits, 4 * S + 3, 1, lut_base>(lower, lane_offset, 0);
    if constexpr (Policy::x_in_shared) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o.b[0][i] = arriving.word[S % 2][i];
    } else {
#pragma unroll
      for (int n = 0; n < n_tiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) o.b[n][i] = x.word[n * 32 + half * 16 + 4 * S + i];
    }
  }

  __device__ __forceinline__ static void consume(const operands& o, float (&sum)[n_tiles][4]) {
#pragma unroll
    for (int n = 0; n < n_tiles; ++n)
      mma_16816(sum[n], o.a[0], o.a[1], o.a[2], o.a[3], o.b[n][0], o.b[n][1]);
#pragma unroll
    for (int n = 0; n < n_tiles; ++n)
      mma_16816(sum[n], o.a[4], o.a[5], o.a[6], o.a[7], o.b[n][2], o.b[n][3]);
  }

  __device__ __forceinline__ static void merge_half(const tile_words& w, int half,
                                                    const lut_stage<Bits>& stage,
                                                    std::uint32_t (&upper)[decoding<Bits>::words],
                                                    std::uint32_t (&lower)[decoding<Bits>::words]) {
    std::uint32_t plane[Bits];
#pragma unroll
    for (int j = 0; j < Bits; ++j) plane[j] = half == 0 ? w.plane[j].x : w.plane[j].z;
    merge<Bits>(plane, upper, stage);
#pragma unroll
    for (int j = 0; j < Bits; ++j) plane[j] = half == 0 ? w.plane[j].y : w.plane[j].w;
    merge<Bits>(plane, lower, stage);
  }

  /// One column tile: 16 rows by 256 columns. If the policy says so, lookups run one double step
  /// ahead of the products that need them, so that a warp hides their latency itself.
  __device__ __forceinline__ void multiply(const tile_words& w, const lut_stage<Bits>& stage,
                                           const tile_x& x, shared_x& arriving,
                                           std::uint32_t x_address,
                                           float (&sum)[n_tiles][4]) const {
    const std::uint32_t lane_offset = lane_base + stage.lane_offset;
    std::uint32_t upper[decoding<Bits>::words], lower[decoding<Bits>::words];
    operands even, odd;
    auto step = [&](auto s, operands& o) {
      fetch<decltype(s)::value % 4>(upper, lower, lane_offset, x, decltype(s)::value / 4, arriving,
                                    x_address, o);
    };
    merge_half(w, 0, stage, upper, lower);
    if constexpr (Policy::look_ahead) {
      step(constant<0>{}, even);
      step(constant<1>{}, odd);
      consume(even, sum);
      step(constant<2>{}, even);
      consume(odd, sum);
      step(constant<3>{}, odd);
      consume(even, sum);
      merge_half(w, 1, stage, upper, lower);
      step(constant<4>{}, even);
      consume(odd, sum);
      step(constant<5>{}, odd);
      consume(even, sum);
      step(constant<6>{}, even);
      consume(odd, sum);
      step(constant<7>{}, odd);
      consume(even, sum);
      consume(odd, sum);
    } else {
      auto both = [&](auto s) {
        step(s, even);
        consume(even, sum);
      };
      both(constant<0>{}), both(constant<1>{}), both(constant<2>{}), both(constant<3>{});
      merge_half(w, 1, stage, upper, lower);
      both(constant<4>{}), both(constant<5>{}), both(constant<6>{}), both(constant<7>{});
    }
  }

  __device__ float* partial_sums(int buffer, int group, int of_warp) const {
    return reinterpret_cast<float*>(shared + partial_offset) +
           ((buffer * Policy::groups_per_chunk + group) * warps + of_warp) * warp_partial;
  }

  /// This warp's share of a group: the sums of its tiles, brought back from the activations' scale.
  __device__ void store_partial(int buffer, int group,
                                const float (&sum)[rounds][n_tiles][4]) const {
    const int lane = opaque(this->lane);
    float* to = partial_sums(buffer, group, warp);
    const float* scale = scales() + (group * group_tiles + warp) * tokens;
    const int g = lane / 4, t = lane % 4;
    auto share = [&](int n, int i, int token) {
      float v = sum[0][n][i] * scale[token];
      if constexpr (rounds == 2) v += sum[1][n][i] * scale[warps * tokens + token];
      return v;
    };
    if constexpr (tokens == 1) {
      if (t == 0) {
        to[g] = share(0, 0, 0);
        to[g + 8] = share(0, 2, 0);
      }
    } else {
#pragma unroll
      for (int n = 0; n < n_tiles; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int token = n * 8 + 2 * t + i;
          to[token * token_stride + g] = share(n, i, token);
          to[token * token_stride + g + 8] = share(n, i + 2, token);
        }
    }
  }

  /// The sum of a group for one output: the tree of halves over the warps' shares.
  __device__ float group_sum(int buffer, int group, int token, int row) const {
    float v[warps];
#pragma unroll
    for (int w = 0; w < warps; ++w)
      v[w] = partial_sums(buffer, group, w)[token * token_stride + row];
#pragma unroll
    for (int level = 1; level < warps; level *= 2)
#pragma unroll
      for (int w = 0; w < warps / 2; ++w)
        if (w < warps / 2 / level) v[w] += v[w + warps / 2 / level];
    return v[0];
  }

  // --- results -----------------------------------------------------------------------------------

  /// Finishes a unit whose shares all lie in `buffer`. `gate` carries the first part of a pair to
  /// the second, in the same thread; so do the sums of earlier passes go from thread to thread of
  /// the same block, which is why they need no fence.
  __device__ void finish(int unit, int buffer, int chunk, int groups, float& gate) const {
    const int item = unit >> p.paired;
    const int lane = opaque(this->lane);
    // One output a lane; a single token needs one warp, a different one every time.
    const int slot = slots == 1 ? (item % warps == warp ? 0 : slots) : warp;
    const int output = slot * 32 + lane;
    if (slot >= slots || output >= outputs) return;
    const int token = output / packed_layout::tile_rows, row = output % packed_layout::tile_rows;
    if (token >= p.m) return;
    float* so_far = p.partial + static_cast<std::size_t>(unit) * outputs + output;
    float sum = group_sum(buffer, 0, token, row);
    if (chunk > 0) sum = *so_far + sum;
#pragma unroll 1
    for (int k = 1; k < groups; ++k) sum += group_sum(buffer, k, token, row);
    if (chunk + 1 < p.chunks)
      *so_far = sum;
    else if (p.paired != 0 && unit % 2 == 0)
      gate = sum;
    else
      write(unit, token, row, gate, sum);
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

  // --- the loop ----------------------------------------------------------------------------------

  /// Where the next planes to request are.
  struct cursor {
    const std::uint32_t* base;  ///< of the unit, at this lane and this chunk's first tile
    int unit;
    int group;
  };

  __device__ void aim(cursor& c, int unit, int first_tile) const {
    c.unit = unit;
    c.group = 0;
    c.base = unit_planes(unit) + static_cast<std::size_t>(first_tile) * packed_layout::tile_words +
             lane * packed_layout::lane_words;
  }

  __device__ __forceinline__ void request(const cursor& c, int end, int round, int tiles,
                                          tile_words& w) const {
    const int tile = c.group * group_tiles + round * warps + warp;
    if (c.unit >= end || tile >= tiles) return;
    const std::uint32_t* from = c.base + tile * packed_layout::tile_words;
#pragma unroll
    for (int j = 0; j < Bits; ++j) {
      w.plane[j] = load_once(from);
      from += p.plane_stride;
    }
  }

  __device__ void advance(cursor& c, int end, int groups, int first_tile) const {
    if (++c.group < groups) return;
    if (c.unit + 1 < end)
      aim(c, c.unit + 1, first_tile);
    else
      c.unit = end;
  }

  /// Where a pass stands.
  struct pass_state {
    int chunk, begin, end;          ///< units begin..end - 1
    int first_tile, tiles, groups;  ///< of the chunk
    int unit, group, buffer;        ///< of the step that is next
    float gate;
    cursor next;  ///< of the request that is next
    lut_stage<Bits> stage;
    tile_words w[Policy::depth];  ///< the pipeline: step d always uses w[d % depth]
    tile_x x[rounds];
    shared_x arriving;
    float sum[rounds][n_tiles][4];
  };

  /// Step D of the pipeline, a template so that every array index is a constant: one column tile.
  /// @return false when the pass is over
  template <int D>
  __device__ __forceinline__ bool step(pass_state& s) const {
    constexpr int round = D % rounds;
    if (round == 0 && s.group == 0) {
      // This unit's table and the last one's sums are complete behind the barrier.
      copy_async_wait_all();
      __syncthreads();
      if (s.unit > s.begin) finish(s.unit - 1, s.buffer ^ 1, s.chunk, s.groups, s.gate);
      if (s.unit == s.end) return false;
      if constexpr (Policy::lut_stages == 2) {
        if (s.unit + 1 < s.end) build(s.buffer ^ 1, s.buffer ^ 1);
        if (s.unit + 2 < s.end) copy_raw_table(s.unit + 2, s.buffer);
        s.stage = lut_stage<Bits>::of(s.buffer);
      } else {
        build(s.buffer, 0);
        if (s.unit + 1 < s.end) copy_raw_table(s.unit + 1, s.buffer ^ 1);
        __syncthreads();
      }
    }
    const int tile = s.group * group_tiles + round * warps + warp;
#pragma unroll
    for (int n = 0; n < n_tiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s.sum[round][n][i] = 0.f;
    if (tile < s.tiles)
      multiply(s.w[D % Policy::depth], s.stage, s.x[round], s.arriving,
               shared_address(shared + x_offset) +
                   static_cast<std::uint32_t>(tile * packed_layout::tile_cols * 2 + lane % 4 * 16),
               s.sum[round]);
    request_step<D>(s);
    if (round == rounds - 1) {
      store_partial(s.buffer, s.group, s.sum);
      if (++s.group == s.groups) {
        s.group = 0;
        ++s.unit;
        s.buffer ^= 1;
      }
    }
    return true;
  }

  /// Asks for the tile of the next step that will use slot D % depth.
  template <int D>
  __device__ __forceinline__ void request_step(pass_state& s) const {
    constexpr int round = (D + Policy::depth) % rounds;
    request(s.next, s.end, round, s.tiles, s.w[D % Policy::depth]);
    if (round == rounds - 1) advance(s.next, s.end, s.groups, s.first_tile);
  }

  template <int... D>
  __device__ __forceinline__ void first_requests(pass_state& s,
                                                 std::integer_sequence<int, D...>) const {
    (request_step<D - Policy::depth + period>(s), ...);
  }

  template <int... D>
  __device__ __forceinline__ bool steps(pass_state& s, std::integer_sequence<int, D...>) const {
    return (step<D>(s) && ...);
  }

  /// One pass over units begin..end - 1 (begin < end).
  __device__ __forceinline__ void pass(int chunk, int begin, int end) const {
    pass_state s;
    s.chunk = chunk, s.begin = begin, s.end = end;
    s.first_tile = chunk * p.chunk_tiles;
    s.tiles = min(p.chunk_tiles, p.col_tiles - s.first_tile);
    s.groups = (s.tiles + group_tiles - 1) / group_tiles;
    s.unit = begin, s.group = 0, s.buffer = 0;
    s.gate = 0.f;
    s.arriving = {};

    // Planes and tables come first: they do not depend on the kernel before.
    copy_raw_table(begin, 0);
    if (Policy::lut_stages == 2 && begin + 1 < end) copy_raw_table(begin + 1, 1);
    aim(s.next, begin, s.first_tile);
    first_requests(s, std::make_integer_sequence<int, Policy::depth>{});
    if (chunk == 0) wait_for_dependency();
    if constexpr (Policy::x_in_shared)
      share_x(s.first_tile, s.tiles, s.groups);
    else
      load_x(s.first_tile, s.x);
    if constexpr (Policy::lut_stages == 2) {
      copy_async_wait_all();
      __syncthreads();
      build(0, 0);
    }
    while (steps(s, std::make_integer_sequence<int, period>{})) {
    }
  }
};

/// Blocks take equal runs of all items, in order.
template <int Bits, int Tokens>
BL_KERNEL __launch_bounds__(32 * small_batch_policy<Bits, Tokens>::warps,
                            small_batch_policy<Bits, Tokens>::blocks)
    small_batch_kernel(const __grid_constant__ small_batch_params p) {
  extern __shared__ __align__(128) unsigned char shared[];
  launch_dependents();
  const long long items = p.items;
  const int begin = static_cast<int>(items * blockIdx.x / gridDim.x) << p.paired;
  const int end = static_cast<int>(items * (blockIdx.x + 1) / gridDim.x) << p.paired;
  if (begin >= end) return;
  const small_batch<Bits, small_batch_policy<Bits, Tokens>> body(p, shared);
#pragma unroll 1
  for (int chunk = 0; chunk < p.chunks; ++chunk) body.pass(chunk, begin, end);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
