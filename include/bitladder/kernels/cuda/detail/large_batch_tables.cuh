// SPDX-License-Identifier: MIT
// Weights as operands of products of many tokens: where the tables of a block's row tiles lie in
// shared memory, how they are filled and read, and how a warp walks its planes. Fields and pairs
// are those of decode.cuh. Tested by tests/kernels/cuda/large_batch_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/decode.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// Whether there are blocks of which a multiprocessor holds two: where two tables and what is on
/// its way fit into shared memory. One starts and ends while the other multiplies (H200, 22016 x
/// 4096, 64 tokens, 5 bits: 53 us, with two blocks 43), but alone it has too few warps to be fast.
template <int Bits, int Tokens>
constexpr bool large_batch_has_two = Tokens == 32 ? Bits <= 7 : Tokens == 64 && Bits <= 6;

/// Sizes that kernel and launcher agree on.
/// @tparam Tokens of a block: 32, 64 or 128
/// @tparam Resident blocks that a multiprocessor holds: 1, or 2 (large_batch_has_two)
template <int Bits, int Tokens, int Resident>
struct large_batch_shape {
  static_assert(Tokens == 32 || Tokens == 64 || Tokens == 128, "token counts that are compiled");
  /// Warps that multiply. The time of one warp is latency: of lookups, of the tensor core, of
  /// barriers. 16 warps of 112 registers cover it (H200, 57344 x 8192, 3 bits: 64 tokens 140 us, 8
  /// warps 189).
  /// From 6 bits on 112 registers are too few for 64 tokens: 12 warps of 160. At 8 bits planes on
  /// their way take 4 KiB a warp, and 8 warps leave room for twice the stages (H200, 64 tokens:
  /// 8192 x 8192 37.9 us, with 12 warps 38.3; 57344 x 8192 240 and 251).
  static constexpr int warps = Tokens == 128 || Resident == 2 || (Tokens == 64 && Bits == 8) ? 8
                               : Tokens == 64 && Bits >= 6                                   ? 12
                                                                                             : 16;
  static constexpr int registers = Resident == 2 ? 104
                                   : warps == 16 ? 112
                                   : warps == 12 ? 160
                                                 : 240;
  /// Operands of the products under way, and where warps are few, of those being prepared: then a
  /// stage goes back only after the next one came.
  static constexpr int buffers = Resident == 2 || warps == 16 ? 1 : 2;
  static constexpr int min_stages = buffers;
  static constexpr int threads = (warps + 4) * 32;  ///< four more copy: registers move by fours
  /// Row tiles of a block, one per warp of a group; groups of warps take column tiles in turn and
  /// add their sums at the end. Blocks of 64 rows fill the multiprocessors more evenly than blocks
  /// of 128 (H200, 64 tokens, 5 bits: 4096 x 4096 13.5 us, 15.9; 57344 x 8192 201, 208). Eight
  /// tables of 8 bits would fit only with two copies of a word, and lookups would take twice as
  /// long.
  static constexpr int slots = Tokens == 128 && Bits < 8 ? 8 : 4;
  static constexpr int groups = warps / slots;
  /// Whether a lookup gives two values. At 4 bits a row tile's pairs are 32 KiB with two copies of
  /// a word: lookups then take as long as those of single values do, but are half as many.
  static constexpr bool pairs = Bits <= 3 || (Bits == 4 && slots == 4 && Resident == 1);
  static constexpr int rows = slots * packed_layout::tile_rows;
  static constexpr int tile_sums = warps * packed_layout::tile_rows;  ///< sums of a token
  static constexpr int block_cols = 64;  ///< columns of a stage: 128 bytes of a token
  static constexpr int stage_bytes = Tokens * block_cols * 2;
  /// Of a group. A second stage is worth much (H200, 57344 x 8192, 64 tokens, 4 bits: 154 us, with
  /// one 218).
  static constexpr int max_stages = (Tokens == 128 ? 8 : 16) / groups;
  /// Planes of a warp's next column tile: in shared memory where registers are few.
  static constexpr bool ring = Tokens < 128;
  static constexpr int ring_bytes = ring ? warps * Bits * packed_layout::tile_words * 4 : 0;
  /// Where the tables start in the shared window: lookups add it as their immediate.
  static constexpr int table_base = 1024;
  static constexpr int barrier_bytes = 2 * 16 * 8;
  /// Sums on their way out. The pitch keeps both sides free of conflicts.
  static constexpr int chunk = Tokens < 64 ? Tokens : 64;
  static constexpr int pitch = tile_sums + 4;
  static constexpr int staging_bytes = chunk * pitch * 4;
  /// Column tiles of weights that are on their way to the second-level cache.
  static constexpr int prefetch = 4;

  /// Of tables and what follows them.
  BL_HOST_DEVICE static constexpr int shared_bytes(int tables, int stages) {
    const int work = tables + ring_bytes + stages * groups * stage_bytes + barrier_bytes;
    return table_base + (work > staging_bytes ? work : staging_bytes);
  }
};

/// The tables of a block's row tiles in shared memory. As in decode.cuh an index steps 256 bytes
/// and byte 0 of an address is the lane's; what a table of one row tile leaves free there and in
/// the index holds the other row tiles.
template <int Bits, int Slots, bool Pairs>
struct large_batch_tables {
  static constexpr bool pairs = Pairs;
  static constexpr int codes = 1 << Bits;
  static constexpr int last_index = pairs ? (codes - 1) * 0x11 : codes - 1;

  /// Bits of the row tile's number that byte 0 holds.
  BL_HOST_DEVICE static constexpr int low_bits(int replicas) {
    return (pairs ? 2 : 3) - replicas / 2;
  }
  /// The other bits, at the places of an index that codes leave free; bits 8 and up are another 64
  /// KiB.
  BL_HOST_DEVICE static constexpr int place(int high) {
    return Bits == 3   ? (high & 1) << 3 | (high >> 1 & 1) << 7 | high >> 2 << 8
           : Bits == 2 ? (high & 3) << 2 | high >> 2 << 6
                       : high << (pairs && Bits == 4 ? 8 : Bits);
  }
  BL_HOST_DEVICE static constexpr int bytes(int replicas) {
    const int indices = (place((Slots - 1) >> low_bits(replicas)) | last_index) + 1;
    return (indices * 256 + 1023) / 1024 * 1024;
  }
};

/// The tables of blocks of a shape.
template <int Bits, class Shape>
using large_batch_tables_of = large_batch_tables<Bits, Shape::slots, Shape::pairs>;

/// One warp's view of its table.
/// @tparam Marked the fields come with `place`, or it has no bits
template <int Bits, class Shape, bool Marked>
struct large_batch_lookup {
  using tables = large_batch_tables_of<Bits, Shape>;
  static constexpr int table_base = Shape::table_base;

  std::uint32_t lane;   ///< bytes 0, 2 and 3 of an address, less table_base
  std::uint32_t place;  ///< byte 1: set in every field, free of its bits

  /// @param window shared address of the tables, less table_base: a multiple of 64 KiB
  __device__ large_batch_lookup(std::uint32_t window, int slot, int lane_id, int replicas) {
    const int low = tables::low_bits(replicas);
    const int index = tables::place(slot >> low);
    const int copy = lane_id & 3 & (replicas - 1);
    lane = window + (static_cast<std::uint32_t>(index >> 8) << 16) +
           static_cast<std::uint32_t>((slot & ((1 << low) - 1)) * 32 * replicas +
                                      (lane_id / 4 * replicas + copy) * 4);
    place = static_cast<std::uint32_t>(index & 0xff) * 0x01010101u;
  }

  /// Writes a word of the table, all replicas. The lanes of this warp share the work.
  /// @param at shared address of the first replica
  __device__ __forceinline__ static void store(std::uint32_t at, std::uint32_t v, int replicas) {
    if (replicas == 4) {
      store_shared_v4(at, v, v, v, v);
    } else if (replicas == 2) {
      asm volatile("st.shared.v2.u32 [%0], {%1, %1};" ::"r"(at), "r"(v) : "memory");
    } else {
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory");
    }
  }

  /// Fills this warp's part of the table that `Groups` share; a barrier of the block comes after.
  template <int Groups>
  __device__ void build(const std::uint32_t* raw, std::uint32_t window, int slot, int group,
                        int lane_id, int replicas) const {
    // Lanes 8 i + g write row g of four indices at a time: 128 contiguous bytes of global memory.
    constexpr int step = 4 * Groups;
    const int g = lane_id % 8, first = group * 4 + lane_id / 8;
    const int low = tables::low_bits(replicas);
    const std::uint32_t base =
        window + table_base + static_cast<std::uint32_t>(tables::place(slot >> low)) * 256u +
        static_cast<std::uint32_t>((slot & ((1 << low) - 1)) * 32 * replicas + g * replicas * 4);
    if constexpr (tables::pairs) {
      // A lane takes its first codes, one or more, with its second codes, all or some.
      constexpr int firsts = step < tables::codes ? tables::codes / step : 1;
      constexpr int stride = step > tables::codes ? step / tables::codes : 1;
      constexpr int seconds = stride < tables::codes ? tables::codes / stride : 1;
      const int a = first % tables::codes, b = first / tables::codes;
      if (b >= tables::codes) return;
      std::uint32_t x[firsts], y[seconds];
#pragma unroll
      for (int i = 0; i < firsts; ++i) x[i] = raw[(a + i * step) * 8 + g];
#pragma unroll
      for (int j = 0; j < seconds; ++j) y[j] = raw[(b + j * stride) * 8 + g];
#pragma unroll
      for (int i = 0; i < firsts; ++i) {
#pragma unroll
        for (int j = 0; j < seconds; ++j) {
          const int index = a + i * step + (b + j * stride) * 16;
          const std::uint32_t at = base + static_cast<std::uint32_t>(index * 256);
          store(at, permute<0x5410>(x[i], y[j]), replicas);
          store(at + 128, permute<0x7632>(x[i], y[j]), replicas);
        }
      }
    } else {
      // All at once: their latency is a good part of a block's start.
      constexpr int rounds = (tables::codes + step - 1) / step, batch = rounds < 32 ? rounds : 32;
#pragma unroll 1
      for (int round = 0; round < rounds; round += batch) {
        const int index = round * step + first;
        std::uint32_t v[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i)
          if (index + i * step < tables::codes) v[i] = raw[(index + i * step) * 8 + g];
#pragma unroll
        for (int i = 0; i < batch; ++i)
          if (index + i * step < tables::codes)
            store(base + static_cast<std::uint32_t>((index + i * step) * 256), v[i], replicas);
      }
    }
  }

  /// Pairs 4 R + m, m = 0..3, of row g + 8 * Row: as two fp16 each.
  template <int R, int Row>
  __device__ __forceinline__ void four(const std::uint32_t (&field)[decoding<Bits>::words],
                                       std::uint32_t (&v)[4]) const {
    constexpr int base = table_base;
    if constexpr (tables::pairs) {
      const std::uint32_t f = Marked ? field[R] : field[R] | place;
      v[0] = load_shared_u32<base + 128 * Row>(permute<0x7604>(f, lane));
      v[1] = load_shared_u32<base + 128 * Row>(permute<0x7614>(f, lane));
      v[2] = load_shared_u32<base + 128 * Row>(permute<0x7624>(f, lane));
      v[3] = load_shared_u32<base + 128 * Row>(permute<0x7634>(f, lane));
    } else {
      std::uint32_t f0, f1;
      if constexpr (decoding<Bits>::pairs) {
        f0 = (field[R] & 0x0f0f0f0fu) | place;
        f1 = (field[R] >> 4 & 0x0f0f0f0fu) | place;
      } else if constexpr (Bits == 8 || Marked) {
        f0 = field[R];
        f1 = field[R + 4];
      } else {
        f0 = field[R] | place;
        f1 = field[R + 4] | place;
      }
      constexpr int at = base + 2 * Row;
      const std::uint32_t a0 = load_shared_u16<at>(permute<0x7604>(f0, lane));
      const std::uint32_t b0 = load_shared_u16<at>(permute<0x7604>(f1, lane));
      const std::uint32_t a1 = load_shared_u16<at>(permute<0x7614>(f0, lane));
      const std::uint32_t b1 = load_shared_u16<at>(permute<0x7614>(f1, lane));
      const std::uint32_t a2 = load_shared_u16<at>(permute<0x7624>(f0, lane));
      const std::uint32_t b2 = load_shared_u16<at>(permute<0x7624>(f1, lane));
      const std::uint32_t a3 = load_shared_u16<at>(permute<0x7634>(f0, lane));
      const std::uint32_t b3 = load_shared_u16<at>(permute<0x7634>(f1, lane));
      v[0] = b0 * 65536u + a0;
      v[1] = b1 * 65536u + a1;
      v[2] = b2 * 65536u + a2;
      v[3] = b3 * 65536u + a3;
    }
  }

  /// Operands a of four products: 64 columns, half `Block` (0 or 1) of the 128 of these fields.
  /// @param upper fields of row g; @param lower of row g + 8
  template <int Block>
  __device__ __forceinline__ void decode(const std::uint32_t (&upper)[decoding<Bits>::words],
                                         const std::uint32_t (&lower)[decoding<Bits>::words],
                                         std::uint32_t (&a)[16]) const {
    std::uint32_t v[4];
    four<2 * Block, 0>(upper, v);
    scatter<0>(v, a);
    four<2 * Block, 1>(lower, v);
    scatter<1>(v, a);
    four<2 * Block + 1, 0>(upper, v);
    scatter<8>(v, a);
    four<2 * Block + 1, 1>(lower, v);
    scatter<9>(v, a);
  }

 private:
  /// Pair m of a row is register 2 m (+ 1 for row g + 8) of two products' operands.
  template <int From>
  __device__ __forceinline__ static void scatter(const std::uint32_t (&v)[4],
                                                 std::uint32_t (&a)[16]) {
#pragma unroll
    for (int m = 0; m < 4; ++m) a[From + 2 * m] = v[m];
  }
};

/// One warp's planes.
template <int Bits>
struct large_batch_planes {
  const std::uint32_t* at;  ///< of the row tile, at this lane
  std::size_t plane_stride;

  __device__ __forceinline__ void load(int tile, int first, int last, uint4 (&v)[Bits]) const {
    const std::uint32_t* p = at + static_cast<std::size_t>(tile) * packed_layout::tile_words;
#pragma unroll
    for (int j = 0; j < Bits; ++j)
      if (j >= first && j < last) v[j] = load_once(p + j * plane_stride);
  }

  /// Where a lane's 16 bytes lie in a plane of the ring. Every other group of eight lanes is
  /// exchanged in pairs, and lanes of odd t = lane % 4 read the two halves of a tile in the other
  /// order, as the image of x has their columns: so 16 lanes that read half of their bytes touch 32
  /// different banks.
  __device__ static std::uint32_t ring_lane(int lane) {
    return static_cast<std::uint32_t>((lane ^ (lane >> 3 & 1)) * 16);
  }

  /// Queues the copy of a tile to this warp's ring.
  __device__ __forceinline__ void copy(int tile, std::uint32_t ring, int lane) const {
    const std::uint32_t* p = at + static_cast<std::size_t>(tile) * packed_layout::tile_words;
    const std::uint32_t to = ring + ring_lane(lane);
#pragma unroll
    for (int j = 0; j < Bits; ++j)
      asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(
                       to + static_cast<std::uint32_t>(j * packed_layout::tile_words * 4)),
                   "l"(p + j * plane_stride)
                   : "memory");
  }

  /// Fields of 128 columns, half `Half` of the tile in the ring. Of 5 to 7 bits the first
  /// plane that is not read gives them the only bit of `place`, which costs nothing.
  template <int Half>
  __device__ __forceinline__ static void ring_fields(
      std::uint32_t ring, int lane, std::uint32_t place,
      std::uint32_t (&upper)[decoding<Bits>::words],
      std::uint32_t (&lower)[decoding<Bits>::words]) {
    constexpr int planes = ring_marks ? Bits + 1 : Bits;
    const std::uint32_t from =
        ring + (ring_lane(lane) | static_cast<std::uint32_t>(((lane & 1) ^ Half) * 8));
    std::uint32_t u[planes], l[planes];
#pragma unroll
    for (int j = 0; j < Bits; ++j) {
      const uint2 v =
          load_shared_v2(from + static_cast<std::uint32_t>(j * packed_layout::tile_words * 4));
      u[j] = v.x, l[j] = v.y;
    }
    if constexpr (ring_marks) u[Bits] = l[Bits] = place != 0 ? ~0u : 0u;
    merge<planes>(u, upper);
    merge<planes>(l, lower);
  }
  static constexpr bool ring_marks = Bits >= 5 && Bits < 8;

  /// Sends a tile's lines, 4 of 128 bytes a plane, towards the second-level cache: one instruction.
  __device__ __forceinline__ void prefetch(int tile, int lane) const {
    if (lane >= 4 * Bits) return;
    const std::uint32_t* p = at - lane * packed_layout::lane_words +
                             static_cast<std::size_t>(tile) * packed_layout::tile_words +
                             lane / 4 * plane_stride + lane % 4 * 32;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
  }

  /// Fields of word `W` of the four that a lane holds.
  template <int W>
  __device__ __forceinline__ static void fields(const uint4 (&v)[Bits],
                                                std::uint32_t (&field)[decoding<Bits>::words]) {
    std::uint32_t plane[Bits];
#pragma unroll
    for (int j = 0; j < Bits; ++j)
      plane[j] = W == 0 ? v[j].x : W == 1 ? v[j].y : W == 2 ? v[j].z : v[j].w;
    merge<Bits>(plane, field);
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
