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

/// Sizes that kernel and launcher agree on.
struct large_batch_shape {
  static constexpr int warps = 8;                   ///< that multiply: two groups of four
  static constexpr int threads = (warps + 4) * 32;  ///< four more copy: registers move by fours
  static constexpr int multiplying_threads = warps * 32;
  static constexpr int tile_sums = warps * packed_layout::tile_rows;  ///< sums of a token
  static constexpr int block_cols = 64;  ///< columns of a stage: 128 bytes of a token
  static constexpr int max_stages = 8;
  /// Where the tables start in the shared window: lookups add it as their immediate.
  static constexpr int table_base = 1024;
  static constexpr int barrier_bytes = 2 * max_stages * 8;
  /// Sums on their way out: 64 tokens of 128. The pitch keeps both sides free of conflicts.
  static constexpr int pitch = tile_sums + 4;
  static constexpr int staging_bytes = 64 * pitch * 4;
  /// Column tiles of weights that are on their way to the second-level cache.
  static constexpr int prefetch = 4;

  BL_HOST_DEVICE static constexpr int stage_bytes(int tokens) { return tokens * block_cols * 2; }
};

/// The tables of a block's row tiles in shared memory. As in decode.cuh an index steps 256 bytes
/// and byte 0 of an address is the lane's; what a table of one row tile leaves free there and in
/// the index holds the other row tiles.
template <int Bits>
struct large_batch_tables {
  static constexpr bool pairs = Bits <= 3;  ///< pair tables of 4 bits would be 64 KiB a row tile
  static constexpr int codes = 1 << Bits;
  /// Row tiles of a block: one per warp. Eight tables of 8 bits would fit only with two copies of a
  /// word, and lookups would take twice as long; so four of them serve two groups of warps, which
  /// take column tiles in turn and add their sums at the end.
  static constexpr int slots = Bits == 8 ? 4 : 8;
  static constexpr int groups = large_batch_shape::warps / slots;
  static constexpr int rows = slots * packed_layout::tile_rows;
  /// Two groups read different stages.
  static constexpr int min_stages = 2 * groups;
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
                       : high << Bits;
  }
  BL_HOST_DEVICE static constexpr int bytes(int replicas) {
    const int indices = (place((slots - 1) >> low_bits(replicas)) | last_index) + 1;
    return (indices * 256 + 1023) / 1024 * 1024;
  }
};

/// One warp's view of its table.
template <int Bits>
struct large_batch_lookup {
  using tables = large_batch_tables<Bits>;

  std::uint32_t lane;   ///< bytes 0, 2 and 3 of an address, less table_base
  std::uint32_t place;  ///< byte 1: set in every field, free of its bits

  /// @param window shared address of the tables, less table_base: a multiple of 64 KiB
  __device__ large_batch_lookup(std::uint32_t window, int slot, int lane_id, int replicas) {
    const int low = tables::low_bits(replicas);
    const int index = tables::place(slot >> low);
    const int copy = lane_id % 4 % replicas;
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

  /// Fills the table, this warp's part of it if it is for two; a barrier of the block comes after.
  __device__ void build(const std::uint32_t* raw, std::uint32_t window, int slot, int group,
                        int lane_id, int replicas) const {
    // Lanes 8 i + g write row g of four indices at a time: 128 contiguous bytes of global memory.
    constexpr int step = 4 * tables::groups;
    const int g = lane_id % 8, first = group * 4 + lane_id / 8;
    const int low = tables::low_bits(replicas);
    const std::uint32_t base =
        window + large_batch_shape::table_base +
        static_cast<std::uint32_t>(tables::place(slot >> low)) * 256u +
        static_cast<std::uint32_t>((slot & ((1 << low) - 1)) * 32 * replicas + g * replicas * 4);
    if constexpr (tables::pairs) {
#pragma unroll 4
      for (int i = first; i < tables::codes * tables::codes; i += step) {
        const int a = i % tables::codes, b = i / tables::codes;
        const std::uint32_t x = raw[a * 8 + g], y = raw[b * 8 + g];
        const std::uint32_t at = base + static_cast<std::uint32_t>((a | b << 4) * 256);
        store(at, permute<0x5410>(x, y), replicas);
        store(at + 128, permute<0x7632>(x, y), replicas);
      }
    } else {
      constexpr int rounds = tables::codes / step, batch = rounds < 16 ? rounds : 16;
#pragma unroll 1
      for (int round = 0; round < rounds; round += batch) {
        std::uint32_t v[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) v[i] = raw[((round + i) * step + first) * 8 + g];
#pragma unroll
        for (int i = 0; i < batch; ++i)
          store(base + static_cast<std::uint32_t>(((round + i) * step + first) * 256), v[i],
                replicas);
      }
    }
  }

  /// Pairs 4 R + m, m = 0..3, of row g + 8 * Row: as two fp16 each.
  template <int R, int Row>
  __device__ __forceinline__ void four(const std::uint32_t (&field)[decoding<Bits>::words],
                                       std::uint32_t (&v)[4]) const {
    constexpr int base = large_batch_shape::table_base;
    if constexpr (tables::pairs) {
      const std::uint32_t f = field[R] | place;
      v[0] = load_shared_u32<base + 128 * Row>(permute<0x7604>(f, lane));
      v[1] = load_shared_u32<base + 128 * Row>(permute<0x7614>(f, lane));
      v[2] = load_shared_u32<base + 128 * Row>(permute<0x7624>(f, lane));
      v[3] = load_shared_u32<base + 128 * Row>(permute<0x7634>(f, lane));
    } else {
      std::uint32_t f0, f1;
      if constexpr (decoding<Bits>::pairs) {
        f0 = (field[R] & 0x0f0f0f0fu) | place;
        f1 = (field[R] >> 4 & 0x0f0f0f0fu) | place;
      } else if constexpr (Bits == 8) {
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
