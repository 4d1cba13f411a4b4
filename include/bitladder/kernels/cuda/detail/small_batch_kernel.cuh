// SPDX-License-Identifier: MIT
// Y = X W^T for up to 16 tokens: weights stream through a ring in shared memory that every warp has
// for itself, their bits are merged and looked up (decode.cuh) straight into operands of the tensor
// cores, which multiply by fp16 activations and sum in float. Device code only; gemm.cuh launches
// it. Tested by tests/kernels/cuda/gemm_test.cu.
//
// The order of summation is one for every number of tokens, of blocks and of matrices in a launch:
// a column tile (256 columns) is one chain of 16 mma steps; the 16 tiles of a group (4096 columns)
// are added as a tree of halves (tile t + tile t + 8, then + 4, + 2, + 1); the groups are added in
// order. Tiles past the last column add zero. Where there are outliers, their sum
// (outlier_sums.cuh) comes before the first group.
//
// A block's warps divide the columns and share the tables and sums of a turn (one or two units, a
// unit being a row tile). Nobody waits for the slowest warp of a turn: half way through it a warp
// finishes the turn before, and fills its share of the next one's tables, which gives the others
// half a turn either way.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/decode.cuh>
#include <bitladder/kernels/cuda/detail/lut.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_outliers.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_sums.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_units.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_x.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/policy.cuh>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// @tparam Outliers whether any matrix has some: the code for them takes registers
template <int Bits, class Policy, bool Outliers>
struct small_batch : small_batch_units {
  static constexpr bool outliers_come = Outliers;
  static constexpr int warps = Policy::warps;
  static constexpr int threads = 32 * warps;
  static constexpr int tokens = Policy::tokens;
  static constexpr int n_tiles = tokens == 16 ? 2 : 1;  ///< of 8 tokens
  static constexpr int group_tiles = 16;
  static constexpr int rounds = group_tiles / warps;  ///< tiles of a group that one warp takes
  static_assert(rounds == 1 || rounds == 2 || rounds == 4,
                "their sums are the first levels of the tree");
  static constexpr int groups_per_chunk = Policy::groups_per_chunk;
  static constexpr int max_chunk_tiles = group_tiles * groups_per_chunk;
  /// Tiles whose activations are in a warp's registers.
  static constexpr int x_tiles = Policy::x_in_shared ? 1 : rounds * Policy::groups_per_chunk;
  static constexpr int outputs = packed_layout::tile_rows * tokens;
  /// Outputs of a unit, one a lane, in warps.
  static constexpr int slots = outputs <= 32 ? 1 : outputs / 32;
  static_assert(slots <= warps, "each has a warp");
  /// From one token's 16 partial sums to the next: 20 floats keep the four tokens that a warp
  /// writes at once in different banks.
  static constexpr int token_stride = tokens == 1 ? 16 : 20;
  static constexpr int warp_partial = token_stride * tokens;  ///< floats
  static constexpr int tile_bytes = Bits * packed_layout::tile_words * 4;
  /// Units of a turn: their tables are there together.
  static constexpr int turn_units = Policy::turn_units;

  /// Where tables start in the block's shared memory, modulo 64 KiB: the address that blocks of
  /// sm_90 get, so that nothing is wasted there. Being a constant, it is an immediate of every
  /// lookup; added to 64 addresses a tile it was a quarter of all instructions.
  static constexpr int lut_base = 1024;
  static constexpr int lut_offset = 0;
  static constexpr int ring_offset =
      lut_offset + lut_layout<Bits>::bytes(turn_units, Policy::lut_stages);
  static constexpr int partial_offset = ring_offset + warps * Policy::depth * tile_bytes;
  static constexpr int scale_offset =
      partial_offset + 2 * turn_units * Policy::groups_per_chunk * warps * warp_partial * 4;
  static constexpr int barrier_offset = scale_offset + max_chunk_tiles * tokens * 4;
  static constexpr int x_offset = barrier_offset + 16;
  /// Shared memory of a block whose chunks have `chunk_tiles` column tiles.
  BL_HOST_DEVICE static constexpr int shared_bytes(int chunk_tiles) {
    return lut_base + x_offset +
           (Policy::x_in_shared ? chunk_tiles * packed_layout::tile_cols * 2 : 0);
  }

  /// The activations of one column tile in operand order: [n tile][half][8 steps][2].
  struct tile_x {
    std::uint32_t word[Policy::x_in_shared ? 1 : n_tiles * 32];
  };
  /// Activations on their way from shared memory, two steps' worth at a time. Only lanes 0..3 load
  /// (column 0 of the operand); the others' stay zero.
  struct shared_x {
    std::uint32_t word[Policy::x_in_shared ? 2 : 1][4];
  };

  unsigned char* const shared;
  /// Address of `shared`. Opaque, or its computation is repeated wherever it is used.
  const std::uint32_t base;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  /// Bytes 0, 2 and 3 of this lane's table addresses, less lut_base.
  const std::uint32_t lane_base;

  /// @param memory shared_bytes(...) bytes
  __device__ small_batch(const small_batch_params& params, unsigned char* memory)
      : small_batch_units(params),
        shared(memory + ((lut_base - shared_address(memory)) & 0xffffu)),
        base(static_cast<std::uint32_t>(opaque(static_cast<int>(shared_address(shared))))),
        lane_base((shared_address(memory) & 0xffff0000u) + static_cast<std::uint32_t>(lane) * 4u) {
    BL_ASSERT((shared_address(memory) & 0xffffu) <= lut_base);
  }

  __device__ small_batch_x<small_batch> activations() const {
    return small_batch_x<small_batch>(*this, shared, warp, lane);
  }

  __device__ small_batch_sums<small_batch> sums() const {
    return small_batch_sums<small_batch>(*this, base, warp, lane);
  }

  // --- products ----------------------------------------------------------------------------------

  template <int V>
  using constant = std::integral_constant<int, V>;
  using fields = std::uint32_t[decoding<Bits>::words];

  /// Operands of two mma steps: four pairs of each row, and the activations.
  struct operands {
    std::uint32_t a[8];
    std::uint32_t b[n_tiles][4];
  };

  /// Immediate of lookups in the table of unit `Slot` of the turn.
  template <int Slot>
  static constexpr int table_at = lut_base + Slot* lut_layout<Bits>::slot_bytes;

  /// Looks up steps 2 S and 2 S + 1 of a half.
  template <int Slot, int S>
  __device__ __forceinline__ void fetch(const fields& upper, const fields& lower,
                                        std::uint32_t lane_offset, const tile_x& x, int half,
                                        shared_x& arriving, std::uint32_t x_address,
                                        operands& o) const {
    if constexpr (Policy::x_in_shared)
      load_shared_v4_if(x_address + static_cast<std::uint32_t>(half * 256 + S * 64), lane < 4,
                        arriving.word[S % 2]);
    o.a[0] = look_up<Bits, 4 * S, 0, table_at<Slot>>(upper, lane_offset, 0);
    o.a[1] = look_up<Bits, 4 * S, 1, table_at<Slot>>(lower, lane_offset, 0);
    o.a[2] = look_up<Bits, 4 * S + 1, 0, table_at<Slot>>(upper, lane_offset, 0);
    o.a[3] = look_up<Bits, 4 * S + 1, 1, table_at<Slot>>(lower, lane_offset, 0);
    o.a[4] = look_up<Bits, 4 * S + 2, 0, table_at<Slot>>(upper, lane_offset, 0);
    o.a[5] = look_up<Bits, 4 * S + 2, 1, table_at<Slot>>(lower, lane_offset, 0);
    o.a[6] = look_up<Bits, 4 * S + 3, 0, table_at<Slot>>(upper, lane_offset, 0);
    o.a[7] = look_up<Bits, 4 * S + 3, 1, table_at<Slot>>(lower, lane_offset, 0);
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

  /// One column tile: 16 rows by 256 columns.
  /// @param words shared address of this lane's planes
  /// @param request called when they are in registers; @param middle half way
  template <int Slot, class Request, class Middle>
  __device__ __forceinline__ void multiply(std::uint32_t words, const lut_stage<Bits>& stage,
                                           const tile_x& x, shared_x& arriving,
                                           std::uint32_t x_address, float (&sum)[n_tiles][4],
                                           Request&& request, Middle&& middle) const {
    const std::uint32_t lane_offset = lane_base + stage.lane_offset;
    fields upper, lower;
    std::uint32_t word[4][Bits];  // row g, row g + 8 of the first half, then of the second
    const auto load_half = [&](int half) {
#pragma unroll
      for (int j = 0; j < Bits; ++j) {
        const uint2 v = load_shared_v2(words + j * packed_layout::tile_words * 4 + half * 8);
        word[2 * half][j] = v.x, word[2 * half + 1][j] = v.y;
      }
    };
    if constexpr (Policy::halves_apart) {
      load_half(0);
    } else {
#pragma unroll
      for (int j = 0; j < Bits; ++j) {
        const uint4 v = load_shared_v4(words + j * packed_layout::tile_words * 4);
        word[0][j] = v.x, word[1][j] = v.y, word[2][j] = v.z, word[3][j] = v.w;
      }
    }
    merge<Bits>(word[0], upper, stage);
    merge<Bits>(word[1], lower, stage);
    if constexpr (!Policy::halves_apart) request();
    operands o;
    const auto step = [&](auto number) {
      constexpr int S = decltype(number)::value;
      fetch<Slot, S % 4>(upper, lower, lane_offset, x, S / 4, arriving, x_address, o);
      consume(o, sum);
    };
    step(constant<0>{}), step(constant<1>{}), step(constant<2>{}), step(constant<3>{});
    middle();
    if constexpr (Policy::halves_apart) load_half(1);
    merge<Bits>(word[2], upper, stage);
    merge<Bits>(word[3], lower, stage);
    if constexpr (Policy::halves_apart) request();
    step(constant<4>{}), step(constant<5>{}), step(constant<6>{}), step(constant<7>{});
  }

  // --- the ring ----------------------------------------------------------------------------------

  /// Where the next planes to request are.
  struct cursor {
    const std::uint32_t* base;  ///< of the unit, at this lane and this chunk's first tile
    int unit;
    int tile;  ///< of the chunk
  };

  __device__ void aim(cursor& c, int unit, int first_tile) const {
    c.unit = unit;
    c.tile = warp;
    c.base = unit_planes(unit) + static_cast<std::size_t>(first_tile) * packed_layout::tile_words +
             lane * packed_layout::lane_words;
  }

  /// This lane's words of the slot of step `i`.
  __device__ __forceinline__ std::uint32_t ring(int i) const {
    return base + ring_offset +
           static_cast<std::uint32_t>((warp * Policy::depth + i % Policy::depth) * tile_bytes +
                                      lane * 16);
  }

  /// Where a pass stands.
  struct pass_state {
    int chunk, begin, end;          ///< units begin .. end - 1
    int first_tile, tiles, groups;  ///< of the chunk
    int unit;                       ///< first of the turn
    int turn;     ///< turns of all passes before: its last bit is the buffers and barriers' phase
    int request;  ///< steps that were asked for, modulo the ring
    cursor next;  ///< what to ask for next
    float gate;
    lut_share<Bits, threads> table[turn_units];  ///< of the next turn
    lut_stage<Bits> stage;
    shared_x arriving;
    float sum[rounds][n_tiles][4];
  };

  /// Queues the copy of the next tile, each lane its own words, as one group even if there is
  /// nothing to copy: so the number of groups says what has arrived.
  __device__ __forceinline__ void request(pass_state& s) const {
    cursor& c = s.next;
    if (c.unit < s.end) {
      if (c.tile < s.tiles) {
        const std::uint32_t* from = c.base + c.tile * packed_layout::tile_words;
        const std::uint32_t to = ring(s.request);
#pragma unroll
        for (int j = 0; j < Bits; ++j) {
          copy_async_16(to + j * packed_layout::tile_words * 4, from);
          from += p.plane_stride;
        }
      }
      c.tile += warps;
      if (c.tile >= s.groups * group_tiles) {
        if (c.unit + 1 < s.end)
          aim(c, c.unit + 1, s.first_tile);
        else
          c.unit = s.end;
      }
    }
    copy_async_commit();
    s.request = (s.request + 1) % Policy::depth;
  }

  // --- the loop ----------------------------------------------------------------------------------

  /// Phase n ends when the tables of turn n + 1 are there and nobody needs the sums of turn n - 1.
  __device__ std::uint32_t ready() const { return base + barrier_offset; }
  /// Phase n ends when all warps have done turn n.
  __device__ std::uint32_t done() const { return base + barrier_offset + 8; }

  /// By every lane: each hands over what it wrote itself. One lane for its warp is no faster (H200,
  /// 1 to 16 tokens at 3, 5 and 8 bits: within 1%), and compute-sanitizer's racecheck does not see
  /// that the others' writes come before.
  __device__ __forceinline__ void arrive(std::uint32_t barrier) const {
    split_barrier_arrive(barrier);
  }

  __device__ __forceinline__ void load_tables(pass_state& s, int unit) const {
    const int thread = opaque(static_cast<int>(threadIdx.x));
#pragma unroll
    for (int i = 0; i < turn_units; ++i)
      if (unit + i < s.end) s.table[i].load(unit_table(unit + i, Bits), thread);
  }
  __device__ __forceinline__ void store_tables(const pass_state& s, int stage) const {
    const int thread = opaque(static_cast<int>(threadIdx.x));
    const std::uint32_t at =
        base + lut_offset + static_cast<std::uint32_t>(stage * lut_layout<Bits>::stage_bytes);
#pragma unroll
    for (int i = 0; i < turn_units; ++i)
      s.table[i].store(at + i * lut_layout<Bits>::slot_bytes, thread);
  }

  /// With one stage of tables: before a turn but the first.
  __device__ __forceinline__ void meet(pass_state& s) const {
    __syncthreads();
    sums().finish(s.begin, s.unit - turn_units, s.end, s.turn - 1, ~s.turn & 1, s.chunk, s.groups,
                  s.gate);
    store_tables(s, 0);
    load_tables(s, s.unit + turn_units);
    __syncthreads();
  }

  /// With two: half way through a turn.
  __device__ __forceinline__ void between(pass_state& s) const {
    const int other = ~s.turn & 1;
    if (s.unit > s.begin) {
      split_barrier_wait(done(), static_cast<std::uint32_t>(other));
      sums().finish(s.begin, s.unit - turn_units, s.end, s.turn - 1, other, s.chunk, s.groups,
                    s.gate);
    }
    if (s.unit + turn_units < s.end) {
      store_tables(s, other);
      load_tables(s, s.unit + 2 * turn_units);
    }
    arrive(ready());
  }

  /// Tile `tile` of the chunk, the Round-th of its group for this warp.
  template <int Slot, int Round>
  __device__ __forceinline__ void tile_step(pass_state& s, int tile, const tile_x& x) const {
    copy_async_wait<Policy::depth - 1>();
#pragma unroll
    for (int n = 0; n < n_tiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s.sum[Round][n][i] = 0.f;
    const auto request_next = [&] { request(s); };
    const auto between_halves = [&] {
      if constexpr (turn_units == 1 && Policy::lut_stages == 2)
        if (tile == warp + ((s.groups * rounds - 1) / 2) * warps) between(s);
    };
    if (tile < s.tiles) {
      multiply<Slot>(
          ring(s.request), s.stage, x, s.arriving,
          base + x_offset +
              static_cast<std::uint32_t>(tile * packed_layout::tile_cols * 2 + lane % 4 * 16),
          s.sum[Round], request_next, between_halves);
    } else {
      request_next();
      between_halves();
    }
  }

  template <int Slot, int Group>
  __device__ __forceinline__ void group_step(pass_state& s, int group,
                                             const tile_x (&x)[x_tiles]) const {
    const int tile = group * group_tiles + warp;
    constexpr int first = Policy::x_in_shared ? 0 : Group * rounds;
    tile_step<Slot, 0>(s, tile, x[first]);
    if constexpr (rounds >= 2) tile_step<Slot, 1>(s, tile + warps, x[(first + 1) % x_tiles]);
    if constexpr (rounds == 4) {
      tile_step<Slot, 2>(s, tile + 2 * warps, x[(first + 2) % x_tiles]);
      tile_step<Slot, 3>(s, tile + 3 * warps, x[(first + 3) % x_tiles]);
    }
    sums().store(s.turn & 1, Slot, group, s.sum);
  }

  template <int Slot>
  __device__ __forceinline__ void unit_step(pass_state& s, const tile_x (&x)[x_tiles]) const {
    if constexpr (Policy::x_in_shared) {
#pragma unroll 1
      for (int group = 0; group < s.groups; ++group) group_step<Slot, 0>(s, group, x);
    } else {
      group_step<Slot, 0>(s, 0, x);
      if constexpr (Policy::groups_per_chunk == 2)
        if (s.groups == 2) group_step<Slot, 1>(s, 1, x);
    }
  }

  /// One pass over units begin .. end - 1 (begin < end).
  __device__ __forceinline__ void pass(int chunk, int begin, int end) const {
    pass_state s;
    s.chunk = chunk, s.begin = begin, s.end = end;
    s.first_tile = chunk * p.chunk_tiles;
    s.tiles = min(p.chunk_tiles, p.col_tiles - s.first_tile);
    s.groups = (s.tiles + group_tiles - 1) / group_tiles;
    s.turn = chunk * ((end - begin + turn_units - 1) / turn_units);
    s.request = 0;
    s.gate = 0.f;
    s.arriving = {};

    // Planes and tables come first: they do not depend on the kernel before.
    load_tables(s, begin);
    small_batch_outliers<small_batch> outliers(*this, begin, end, Outliers && chunk == 0);
    outliers.find();
    aim(s.next, begin, s.first_tile);
#pragma unroll
    for (int i = 0; i < Policy::depth; ++i) request(s);
    outliers.fetch();
    store_tables(s, Policy::lut_stages == 1 ? 0 : s.turn & 1);
    load_tables(s, begin + turn_units);
    outliers.sum_all();
    if (chunk == 0) wait_for_dependency();
    tile_x x[x_tiles];
    if constexpr (Policy::x_in_shared)
      activations().share(s.first_tile, s.tiles, s.groups);
    else
      activations().load(s.first_tile, x);
    outliers.sum_shared();
    __syncthreads();

#pragma unroll 1
    for (s.unit = begin; s.unit < end; s.unit += turn_units) {
      if constexpr (Policy::lut_stages == 1) {
        if (s.unit > begin) meet(s);
        s.stage = {};
      } else {
        if (s.unit > begin) split_barrier_wait(ready(), ~s.turn & 1u);
        s.stage = lut_stage<Bits>::of(s.turn & 1);
      }
      unit_step<0>(s, x);
      if constexpr (turn_units == 2) {
        between(s);
        if (s.unit + 1 < end) unit_step<1>(s, x);
      }
      if constexpr (Policy::lut_stages == 2) arrive(done());
      ++s.turn;
    }
    if constexpr (Policy::lut_stages == 1)
      __syncthreads();
    else
      split_barrier_wait(done(), ~s.turn & 1u);
    sums().finish(begin, s.unit - turn_units, end, s.turn - 1, ~s.turn & 1, s.chunk, s.groups,
                  s.gate);
    // The next pass writes where this one may still read.
    if (chunk + 1 < p.chunks) __syncthreads();
  }

  __device__ __forceinline__ void run(int begin, int end) const {
    if (threadIdx.x == 0) {
      split_barrier_init(ready(), 32 * warps);
      split_barrier_init(done(), 32 * warps);
    }
#pragma unroll 1
    for (int chunk = 0; chunk < p.chunks; ++chunk) pass(chunk, begin, end);
  }
};

/// Whether code for this architecture (__CUDA_ARCH__ / 10) has the kernels for 227 KiB of shared
/// memory, or those for less.
BL_HOST_DEVICE constexpr bool has_roomy_blocks(int architecture) {
  return architecture == 90 || architecture == 100 || architecture == 103;
}

/// Blocks take equal runs of all items, in order. Only one form of each kernel has a body: the
/// launcher asks which.
template <int Bits, int Tokens, bool Roomy, bool Outliers>
BL_KERNEL __launch_bounds__(32 * small_batch_policy<Bits, Tokens, Roomy>::warps,
                            small_batch_policy<Bits, Tokens, Roomy>::blocks)
    small_batch_kernel(const __grid_constant__ small_batch_params p) {
#ifdef __CUDA_ARCH__
  if constexpr (Roomy == has_roomy_blocks(__CUDA_ARCH__ / 10)) {
    extern __shared__ __align__(128) unsigned char shared[];
    launch_dependents();
    const long long items = p.items;
    const int begin = static_cast<int>(items * blockIdx.x / gridDim.x) << p.paired;
    const int end = static_cast<int>(items * (blockIdx.x + 1) / gridDim.x) << p.paired;
    if (begin >= end) return;
    const small_batch<Bits, small_batch_policy<Bits, Tokens, Roomy>, Outliers> body(p, shared);
    body.run(begin, end);
  }
#else
  static_cast<void>(p);
#endif
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
