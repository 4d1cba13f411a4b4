// SPDX-License-Identifier: MIT
// y = W x for one token by lookups whose warps never meet: a warp takes items, a few column tiles
// of a unit, in turn with the others; the tables of the units that are read at a time, and of those
// after, have slots in shared memory. Who takes an item of a unit also fills its share of the table
// of a unit further on. A slot passes from fillers to readers and back by two barriers at which
// arriving and waiting are apart, so that a warp waits only for what it needs. Device code only;
// gemm.cuh launches it. Tested by tests/kernels/cuda/lookup_stream_test.cu.
//
// What bounds it is the bandwidth of shared memory: of 195 clocks a column tile at 6 bits, lookups
// are 128, planes come in (34) and out (24), activations 8.
//
// The order of summation: a column tile is two chains of mma steps, the even and the odd ones,
// which are added; the tiles of an item (policy.cuh has their number) are added in order, and so
// are items.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/decode.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_units.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_x.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/policy.cuh>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// What the launcher adds to small_batch_params.
struct lookup_stream_params {
  small_batch_params call;  ///< m = 1, one chunk, no outliers
  int block_items;          ///< results, in row tiles, of a block
  int larger_blocks;        ///< the first blocks, which have one more
  int unit_items;           ///< items of a unit
  int step_units;           ///< from a warp's item to its next: so many units
  int step_items;           ///< and so many items
  int share;                ///< entries of a table that an item's warp fills, a multiple of 4
};

/// Slots for the tables of decode.cuh (single values) in shared memory. Two share the 256 bytes of
/// an index; others stand at higher indices, as far as the byte of an index reaches, and then in
/// the next 64 KiB.
template <int Bits>
struct lookup_slots {
  static_assert(!decoding<Bits>::pairs, "tables of single values");
  static constexpr int step = Bits < 6 ? 6 : Bits;  ///< log2 of indices from one pair to the next
  static constexpr int window = 2 * (256 >> step);  ///< slots in 64 KiB
  static constexpr int pair_bytes = 256 << step;

  static constexpr int bytes(int slots) {
    return slots / window * 65536 + (slots % window + 1) / 2 * pair_bytes;
  }
  __device__ static std::uint32_t offset(int slot) {
    return static_cast<std::uint32_t>(slot / window * 65536 + slot % window / 2 * pair_bytes +
                                      slot % 2 * 128);
  }
  __device__ static lut_stage<Bits> stage(int slot) {
    lut_stage<Bits> s;
    s.lane_offset = static_cast<std::uint32_t>(slot / window * 65536 + slot % 2 * 128);
    const int mark = slot % window / 2;
    const std::uint32_t first = (mark & 1) != 0 ? ~0u : 0u, second = (mark & 2) != 0 ? ~0u : 0u;
    if constexpr (Bits == 7) {
      s.even = s.odd = first;
    } else if constexpr (Bits < 7) {
      s.even = select<0x55555555u>(first, second);
      s.odd = select<0xAAAAAAAAu>(first, second);
    }
    return s;
  }
};

/// Products of column tiles by a warp: planes and tables in, per-lane sums out.
/// @tparam Base where tables start in shared memory, modulo 64 KiB
template <int Bits, int Base>
struct lookup_products {
  using fields = std::uint32_t[decoding<Bits>::words];
  /// This lane's words of a tile: row g, row g + 8 of the first half, then of the second.
  using words = std::uint32_t[4][Bits];

  /// Activations on their way, two steps' worth at a time, in lanes 0..3; the others' stay zero.
  std::uint32_t x[2][4] = {};
  const bool has_x;

  __device__ explicit lookup_products(int lane) : has_x(lane < 4) {}

  /// @param from this lane's words of the tile's planes, in shared memory
  __device__ __forceinline__ static void load(std::uint32_t from, words& w) {
#pragma unroll
    for (int j = 0; j < Bits; ++j) {
      const uint4 v = load_shared_v4(from + j * packed_layout::tile_words * 4);
      w[0][j] = v.x, w[1][j] = v.y, w[2][j] = v.z, w[3][j] = v.w;
    }
  }

  /// Looks up and multiplies steps 2 S and 2 S + 1 of a half.
  template <int S>
  __device__ __forceinline__ void step(const fields& upper, const fields& lower,
                                       std::uint32_t lane_offset, std::uint32_t x_from,
                                       float (&even)[4], float (&odd)[4]) {
    load_shared_v4_if(x_from + S * 64, has_x, x[S % 2]);
    std::uint32_t a[8];
    a[0] = look_up<Bits, 4 * S, 0, Base>(upper, lane_offset, 0);
    a[1] = look_up<Bits, 4 * S, 1, Base>(lower, lane_offset, 0);
    a[2] = look_up<Bits, 4 * S + 1, 0, Base>(upper, lane_offset, 0);
    a[3] = look_up<Bits, 4 * S + 1, 1, Base>(lower, lane_offset, 0);
    a[4] = look_up<Bits, 4 * S + 2, 0, Base>(upper, lane_offset, 0);
    a[5] = look_up<Bits, 4 * S + 2, 1, Base>(lower, lane_offset, 0);
    a[6] = look_up<Bits, 4 * S + 3, 0, Base>(upper, lane_offset, 0);
    a[7] = look_up<Bits, 4 * S + 3, 1, Base>(lower, lane_offset, 0);
    mma_16816(even, a[0], a[1], a[2], a[3], x[S % 2][0], x[S % 2][1]);
    mma_16816(odd, a[4], a[5], a[6], a[7], x[S % 2][2], x[S % 2][3]);
  }

  /// One column tile. Lanes with t = 0 get the sums of rows g and g + 8.
  /// @param w its planes; `next` puts those of the next tile there, which is when this tile's are
  ///        no longer needed and three quarters of its lookups are under way
  /// @param lane_offset bytes 0, 2 and 3 of this lane's table addresses, less Base
  /// @param x_from shared address of the tile's activations, for this lane
  template <class Next>
  __device__ __forceinline__ void multiply(words& w, const lut_stage<Bits>& stage,
                                           std::uint32_t lane_offset, std::uint32_t x_from,
                                           float (&sum)[2], Next&& next) {
    float even[4] = {}, odd[4] = {};
    fields upper, lower;
    merge<Bits>(w[0], upper, stage);
    merge<Bits>(w[1], lower, stage);
    step<0>(upper, lower, lane_offset, x_from, even, odd);
    step<1>(upper, lower, lane_offset, x_from, even, odd);
    step<2>(upper, lower, lane_offset, x_from, even, odd);
    step<3>(upper, lower, lane_offset, x_from, even, odd);
    merge<Bits>(w[2], upper, stage);
    merge<Bits>(w[3], lower, stage);
    step<0>(upper, lower, lane_offset, x_from + 256, even, odd);
    step<1>(upper, lower, lane_offset, x_from + 256, even, odd);
    next();
    step<2>(upper, lower, lane_offset, x_from + 256, even, odd);
    step<3>(upper, lower, lane_offset, x_from + 256, even, odd);
    sum[0] = even[0] + odd[0];
    sum[1] = even[2] + odd[2];
  }
};

template <int Bits, class Policy>
struct lookup_stream {
  static constexpr int warps = Policy::warps;
  static constexpr int threads = 32 * warps;
  static constexpr int slots = Policy::slots;
  static constexpr int ahead = Policy::ahead;  ///< units from an item's to the one it fills for
  static_assert(0 < ahead && ahead < slots, "an item never waits for itself");
  static constexpr int item_tiles = Policy::item_tiles;
  static constexpr int rounds = Policy::share / 4;  ///< words of a share in a lane's registers
  static constexpr int tile_bytes = Bits * packed_layout::tile_words * 4;
  // What small_batch_x asks of a shape.
  static constexpr int tokens = 1;
  static constexpr int n_tiles = 1;
  static constexpr int x_tiles = 1;
  static constexpr int group_tiles = 1;
  struct tile_x {
    std::uint32_t word[1];
  };

  /// As small_batch has it: tables start at an address that is an immediate of every lookup.
  static constexpr int lut_base = 1024;
  using products = lookup_products<Bits, lut_base>;
  // Shared memory: [tables][planes on their way, a tile a warp][barriers][scales of column tiles]
  // [activations][sums of items].
  static constexpr int ring_offset = lookup_slots<Bits>::bytes(slots);
  static constexpr int barrier_offset = ring_offset + warps * tile_bytes;
  static constexpr int scale_offset = barrier_offset + 2 * slots * 8;
  static constexpr int most_tiles = 112;
  static constexpr int x_offset = (scale_offset + most_tiles * 4 + 127) / 128 * 128;
  BL_HOST_DEVICE static constexpr int sum_offset(int col_tiles) {
    return x_offset + col_tiles * packed_layout::tile_cols * 2;
  }
  BL_HOST_DEVICE static constexpr int shared_bytes(int col_tiles, int units, int unit_items) {
    return lut_base + sum_offset(col_tiles) +
           units * unit_items * packed_layout::tile_rows * static_cast<int>(sizeof(float));
  }

  const lookup_stream_params& params;
  const small_batch_params& p;
  const small_batch_units units;
  unsigned char* const shared;
  /// Address of `shared`. Opaque, or its computation is repeated wherever it is used.
  const std::uint32_t base;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;

  __device__ lookup_stream(const lookup_stream_params& all, unsigned char* memory)
      : params(all),
        p(all.call),
        units(all.call),
        shared(memory + ((lut_base - shared_address(memory)) & 0xffffu)),
        base(static_cast<std::uint32_t>(opaque(static_cast<int>(shared_address(shared))))) {
    BL_ASSERT((shared_address(memory) & 0xffffu) <= lut_base);
  }

  /// This block's units: a run of them all, in order.
  __device__ int first_unit() const {
    const int block = static_cast<int>(blockIdx.x);
    return (block * params.block_items + min(block, params.larger_blocks)) << p.paired;
  }
  __device__ int unit_count() const {
    const int more = static_cast<int>(blockIdx.x) < params.larger_blocks ? 1 : 0;
    return (params.block_items + more) << p.paired;
  }

  // --- items -------------------------------------------------------------------------------------

  struct item {
    int unit;  ///< of the block's
    int part;  ///< of the unit
  };

  __device__ __forceinline__ item after(item i) const {
    i.unit += params.step_units;
    i.part += params.step_items;
    if (i.part >= params.unit_items) i.part -= params.unit_items, ++i.unit;
    return i;
  }

  __device__ __forceinline__ int tiles_of(item i) const {
    return min(item_tiles, p.col_tiles - i.part * item_tiles);
  }

  /// Where the next planes to request are.
  struct cursor {
    item from;
    int left;                 ///< tiles of it; none past the last item
    const std::uint32_t* at;  ///< of this lane
  };

  __device__ __forceinline__ void aim(cursor& c) const {
    c.left = 0;
    if (c.from.unit >= unit_count()) return;
    c.left = tiles_of(c.from);
    c.at = units.unit_planes(first_unit() + c.from.unit) +
           c.from.part * (item_tiles * packed_layout::tile_words) +
           lane * packed_layout::lane_words;
  }

  __device__ __forceinline__ std::uint32_t ring() const {
    return base + ring_offset + static_cast<std::uint32_t>(warp * tile_bytes + lane * 16);
  }

  /// Queues the copy of the next tile, each lane its own words.
  __device__ __forceinline__ void request(cursor& c) const {
    if (c.left > 0) {
      const std::uint32_t stride = static_cast<std::uint32_t>(p.plane_stride);
#pragma unroll
      for (int j = 0; j < Bits; ++j)
        copy_async_16(ring() + j * packed_layout::tile_words * 4, c.at + j * stride);
      c.at += packed_layout::tile_words;
      if (--c.left == 0) {
        c.from = after(c.from);
        aim(c);
      }
    }
    copy_async_commit();
  }

  // --- tables ------------------------------------------------------------------------------------

  /// Ends a phase when a table is there. Every lane arrives: each hands over what it wrote itself.
  __device__ std::uint32_t filled(int slot) const { return base + barrier_offset + slot * 8; }
  /// Ends a phase when all items of a slot's unit are done.
  __device__ std::uint32_t read(int slot) const {
    return base + barrier_offset + (slots + slot) * 8;
  }

  /// The first units' tables, by all threads; nobody arrives for them.
  __device__ __forceinline__ void fill_first() const {
    constexpr int unit_words = 8 << Bits;
    constexpr int each = (ahead * unit_words + threads - 1) / threads;
    std::uint32_t w[each];
    const auto for_all = [&](auto&& act) {
#pragma unroll
      for (int k = 0; k < each; ++k) {
        const int i = static_cast<int>(threadIdx.x) + k * threads;
        const int unit = i / unit_words;
        if (unit < ahead && unit < unit_count()) act(w[k], unit, i % unit_words);
      }
    };
    for_all([&](std::uint32_t& v, int unit, int i) {
      v = __ldg(units.unit_table(first_unit() + unit, Bits) + i);
    });
    for_all([&](std::uint32_t v, int unit, int i) {
      store_shared_v4(base + lookup_slots<Bits>::offset(unit) +
                          static_cast<std::uint32_t>(i / 8 * 256 + i % 8 * 16),
                      v, v, v, v);
    });
  }

  /// A warp's share of the table of unit `i.unit` + ahead.
  using table_share = std::uint32_t[rounds];

  template <class Act>
  __device__ __forceinline__ void for_share(item i, Act&& act) const {
    const int first = i.part * params.share + lane / 8;
#pragma unroll
    for (int r = 0; r < rounds; ++r)
      if (4 * r < params.share && first + 4 * r < 1 << Bits) act(r, first + 4 * r);
  }

  __device__ __forceinline__ void load_share(item i, table_share& w) const {
    if (i.unit + ahead >= unit_count()) return;
    const std::uint32_t* table = units.unit_table(first_unit() + i.unit + ahead, Bits) + lane % 8;
    for_share(i, [&](int r, int entry) { w[r] = __ldg(table + entry * 8); });
  }

  __device__ __forceinline__ void store_share(item i, const table_share& w) const {
    const int unit = i.unit + ahead, slot = unit % slots;
    if (unit >= unit_count()) return;
    if (unit >= slots)
      split_barrier_wait(read(slot), static_cast<std::uint32_t>(unit / slots - 1) & 1u);
    const std::uint32_t to =
        base + lookup_slots<Bits>::offset(slot) + static_cast<std::uint32_t>(lane % 8 * 16);
    for_share(i, [&](int r, int entry) {
      store_shared_v4(to + static_cast<std::uint32_t>(entry * 256), w[r], w[r], w[r], w[r]);
    });
    split_barrier_arrive(filled(slot));
  }

  __device__ __forceinline__ void wait_for_table(int unit) const {
    if (unit < ahead) return;
    const int slot = unit % slots;
    // The first unit of a slot may be one of fill_first's.
    const int phase = unit / slots - (slot < ahead ? 1 : 0);
    split_barrier_wait(filled(slot), static_cast<std::uint32_t>(phase) & 1u);
  }

  // --- the loop ----------------------------------------------------------------------------------

  /// [units][items][16 rows]
  __device__ std::uint32_t item_sums(item i) const {
    return base + static_cast<std::uint32_t>(sum_offset(p.col_tiles) +
                                             (i.unit * params.unit_items + i.part) *
                                                 packed_layout::tile_rows * 4);
  }

  __device__ __forceinline__ void multiply(item i, products& product, typename products::words& w,
                                           cursor& next) const {
    const lut_stage<Bits> stage = lookup_slots<Bits>::stage(i.unit % slots);
    const std::uint32_t lane_offset = (shared_address(shared) & 0xffff0000u) +
                                      static_cast<std::uint32_t>(lane * 4) + stage.lane_offset;
    const int first = i.part * item_tiles;
    std::uint32_t x = base + static_cast<std::uint32_t>(
                                 x_offset + first * packed_layout::tile_cols * 2 + lane % 4 * 16);
    std::uint32_t scale = base + static_cast<std::uint32_t>(scale_offset + first * 4);
    float total[2] = {};
    const int tiles = tiles_of(i);
#pragma unroll 1
    for (int t = 0; t < tiles; ++t) {
      float sum[2];
      product.multiply(w, stage, lane_offset, x, sum, [&] {
        copy_async_wait<0>();
        products::load(ring(), w);
        request(next);
      });
      const float by = load_shared_f32(scale);  // 1 for fp16, a power of two for bf16
      total[0] = fmaf(sum[0], by, total[0]);
      total[1] = fmaf(sum[1], by, total[1]);
      x += packed_layout::tile_cols * 2;
      scale += 4;
    }
    if (lane % 4 == 0) {
      const std::uint32_t to = item_sums(i) + static_cast<std::uint32_t>(lane);
      store_shared_f32<0>(to, total[0]);
      store_shared_f32<32>(to, total[1]);
    }
    split_barrier_arrive(read(i.unit % slots));
  }

  __device__ __forceinline__ void run() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < slots; ++i) {
        split_barrier_init(filled(i), 32 * params.unit_items);
        split_barrier_init(read(i), 32 * params.unit_items);
      }
    }
    // Planes and tables come first: they do not depend on the kernel before.
    item now{warp / params.unit_items, warp % params.unit_items};
    cursor next{now, 0, nullptr};
    aim(next);
    request(next);
    fill_first();
    table_share share;
    load_share(now, share);
    wait_for_dependency();
    small_batch_x<lookup_stream>(units, shared, warp, lane).share(0, p.col_tiles, p.col_tiles);
    __syncthreads();
    products product(lane);
    typename products::words w;
    copy_async_wait<0>();
    products::load(ring(), w);
    request(next);
#pragma unroll 1
    while (now.unit < unit_count()) {
      store_share(now, share);
      const item then = after(now);
      load_share(then, share);
      wait_for_table(now.unit);
      multiply(now, product, w, next);
      now = then;
    }
    copy_async_wait_all();
    __syncthreads();
    write();
  }

  /// One thread a result: its items in order.
  __device__ __forceinline__ void write() const {
    const int outputs = unit_count() >> p.paired;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < outputs * packed_layout::tile_rows;
         i += threads) {
      const int unit = (i / packed_layout::tile_rows) << p.paired;
      const int row = i % packed_layout::tile_rows;
      float gate = 0.f, sum = 0.f;
#pragma unroll 1
      for (int half = 0; half <= p.paired; ++half) {
        gate = sum;
        const std::uint32_t from =
            item_sums({unit + half, 0}) + static_cast<std::uint32_t>(row * 4);
        sum = load_shared_f32(from);
#pragma unroll 4
        for (int k = 1; k < params.unit_items; ++k)
          sum += load_shared_f32(from + static_cast<std::uint32_t>(k * 64));
      }
      units.write(first_unit() + unit + p.paired, 0, row, gate, sum);
    }
  }
};

template <int Bits>
BL_KERNEL __launch_bounds__(32 * lookup_stream_policy<Bits>::warps, 1)
    lookup_stream_kernel(const __grid_constant__ lookup_stream_params params) {
  extern __shared__ __align__(128) unsigned char shared[];
  launch_dependents();
  const lookup_stream<Bits, lookup_stream_policy<Bits>> body(params, shared);
  body.run();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
