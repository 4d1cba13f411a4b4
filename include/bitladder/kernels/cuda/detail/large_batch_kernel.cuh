// SPDX-License-Identifier: MIT
// Y = X W^T for many tokens: weights are looked up straight into the registers from which the
// tensor cores take operand a, tokens come from shared memory. A block has 8 warps of one 16-row
// tile each (at 8 bits two warps share one) and 64 or 128 tokens; one more warp copies tokens.
// Device code only. Tested by tests/kernels/cuda/large_batch_test.cu.
//
// On sm_90a the products are wgmma and tokens arrive by bulk copies, multicast to a cluster of
// blocks that share them; elsewhere they are mma.sync and cp.async, in the same launch shape. With
// `split` the blocks of a cluster take equal parts of the columns instead and add their sums in the
// order of their ranks through each other's shared memory, so results do not vary.
//
// The tensor core rounds every sum towards zero. Over thousands of columns that would add up to
// more than rounding to nearest ever does, so a column tile's sums are moved to other registers
// and added there.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/bulk_copy.cuh>
#include <bitladder/kernels/cuda/detail/large_batch_output.cuh>
#include <bitladder/kernels/cuda/detail/large_batch_tables.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/detail/wgmma.cuh>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// @tparam Tokens 64 or 128
template <int Bits, int Tokens>
BL_KERNEL __launch_bounds__(large_batch_shape::threads, 1)
    large_batch_kernel(const __grid_constant__ large_batch_params p) {
  using shape = large_batch_shape;
  extern __shared__ __align__(1024) unsigned char large_batch_shared[];

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  const int rank = cluster_rank(), ranks = cluster_size();
  // Blocks with the same rows are neighbours, so that weights come from memory once.
  const int unit = static_cast<int>(blockIdx.x) / ranks;
  const int first_token = unit % p.token_tiles * Tokens;
  const int block = p.split ? unit / p.token_tiles : unit / p.token_tiles * ranks + rank;
  const int begin = p.split ? p.col_tiles * rank / ranks : 0;
  const int end = p.split ? p.col_tiles * (rank + 1) / ranks : p.col_tiles;

  // Shared memory: tables at table_base of the window, stages, barriers. Results reuse the front.
  const std::uint32_t start = shared_address(large_batch_shared);
  unsigned char* memory = large_batch_shared + ((shape::table_base - start) & 0xffffu);
  const std::uint32_t window = shared_address(memory) - shape::table_base;
  const int table_bytes = large_batch_tables<Bits>::bytes(p.replicas);
  const std::uint32_t stages = shared_address(memory) + static_cast<std::uint32_t>(table_bytes);

  using tables = large_batch_tables<Bits>;
  constexpr int slots = tables::slots, groups = tables::groups;
  const int slot = warp % slots, group = warp % shape::warps / slots;
  const large_batch_row_tile mine = find_row_tile<slots>(p, block, slot);
  const large_batch_matrix& w = p.matrices[mine.matrix];
  // Tiles past the last row, and blocks that only fill a cluster, repeat it and write nothing.
  const int tile = min(mine.tile, w.row_tiles - 1);
  const large_batch_planes<Bits> planes{
      w.planes + tile * w.row_tile_stride + lane * packed_layout::lane_words,
      static_cast<std::size_t>(p.col_tiles) * packed_layout::tile_words};
  const large_batch_lookup<Bits> table(window, slot, lane, p.replicas);

  float sum[Tokens / 2];
#pragma unroll
  for (int i = 0; i < Tokens / 2; ++i) sum[i] = 0.f;
  uint4 words[Bits];
  const bool multiplies = warp < shape::warps;
  const int mine_first = begin + group;  // then every groups-th column tile
  if (multiplies && mine_first < end) {
    planes.load(mine_first, 0, Bits, words);
#pragma unroll 1
    for (int i = 1; i < shape::prefetch; ++i)
      if (mine_first + i * groups < end) planes.prefetch(mine_first + i * groups, lane);
  }
  launch_dependents();

#if BL_HAS_WGMMA
  const std::uint32_t full =
      stages + static_cast<std::uint32_t>(p.stages * shape::stage_bytes(Tokens));
  const std::uint32_t empty = full + shape::max_stages * 8;
  const int sharers = p.split ? 1 : ranks;  // blocks that share every stage
  if (threadIdx.x == 0) {
    for (int s = 0; s < p.stages; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, slots * sharers);
    }
    barrier_init_fence();
  }
  if (multiplies)
    table.build(w.tables + static_cast<std::size_t>(tile) * (8 << Bits), window, slot, group, lane,
                p.replicas);
  if (ranks > 1)
    cluster_barrier();
  else
    __syncthreads();

  if (!multiplies) {
    give_registers<24>();
    if (warp == shape::warps && lane == 0) {
      wait_for_dependency();
      const int piece = shape::stage_bytes(Tokens) / sharers;
      const int part = p.split ? 0 : rank;
      const std::size_t step = static_cast<std::size_t>(p.padded_m) * 128;
      const unsigned char* x = p.x + static_cast<std::size_t>(first_token) * 128 + part * piece;
      // The groups' column tiles stand side by side: each reads every groups-th stage.
      const int steps = (end - begin + groups - 1) / groups * 4 * groups;
      int stage = 0;
      std::uint32_t parity = 0;
#pragma unroll 1
      for (int i = 0; i < steps; ++i) {
        const int t = begin + i / (4 * groups) * groups + i % groups;
        if (t >= end) continue;
        const unsigned char* from =
            x + (static_cast<std::size_t>(t) * 4 + i % (4 * groups) / groups) * step;
        barrier_wait(empty + 8 * stage, parity ^ 1);  // at once in the first round
        barrier_expect(full + 8 * stage, shape::stage_bytes(Tokens));
        const std::uint32_t to =
            stages + static_cast<std::uint32_t>(stage * shape::stage_bytes(Tokens) + part * piece);
        if (sharers > 1)
          bulk_copy_multicast(to, from, piece, full + 8 * stage,
                              static_cast<std::uint16_t>((1 << sharers) - 1));
        else
          bulk_copy(to, from, piece, full + 8 * stage);
        if (++stage == p.stages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
    __syncwarp();
    meet_cluster<Tokens>(p, ranks);
    return;
  }
  take_registers<240>();
  if (mine_first < end) {
    float acc[Tokens / 2];
#pragma unroll
    for (int i = 0; i < Tokens / 2; ++i) acc[i] = 0.f;
    std::uint32_t a[2][16] = {};
    int stage = group, last_stage = 0;
    std::uint32_t parity = 0;
    // A stage goes back when the products that read it are done: one group later.
    const auto release = [&] {
      if (lane < sharers) barrier_arrive(empty + 8 * last_stage, p.split ? rank : lane);
    };
    const auto multiply = [&](const std::uint32_t(&x)[16], auto accumulate) {
      barrier_wait(full + 8 * stage, parity);
      const std::uint64_t b =
          wgmma_descriptor(stages + static_cast<std::uint32_t>(stage * shape::stage_bytes(Tokens)));
      wgmma_fence();
      wgmma<decltype(accumulate)::value>(acc, x[0], x[1], x[2], x[3], b);
      wgmma<true>(acc, x[4], x[5], x[6], x[7], b + 2);
      wgmma<true>(acc, x[8], x[9], x[10], x[11], b + 4);
      wgmma<true>(acc, x[12], x[13], x[14], x[15], b + 6);
      wgmma_commit();
    };
    int stride = groups;
    const auto advance = [&] {
      last_stage = stage;
      stage += stride;
      if (stage >= p.stages) {
        stage -= p.stages;
        parity ^= 1;
      }
    };
    // Waits for the group before the one just queued.
    const auto retire = [&](std::uint32_t(&x)[16]) {
      wgmma_wait<1>();
      hold(x);
      release();
    };
    constexpr bool late = Tokens == 128 && Bits >= 5;  // fields and next words would not fit
    constexpr int field_words = decoding<Bits>::words;
#pragma unroll 1
    for (int t = mine_first; t < end; t += groups) {
      // The last column tile may have no neighbour in the other group.
      if (groups > 1) stride = t + groups - 1 - group < end ? groups : 1;
      if (t + shape::prefetch * groups < end) planes.prefetch(t + shape::prefetch * groups, lane);
      std::uint32_t upper[2][field_words], lower[2][field_words];
      large_batch_planes<Bits>::template fields<0>(words, upper[0]);
      large_batch_planes<Bits>::template fields<1>(words, lower[0]);
      if constexpr (!late) {
        large_batch_planes<Bits>::template fields<2>(words, upper[1]);
        large_batch_planes<Bits>::template fields<3>(words, lower[1]);
        if (t + groups < end) planes.load(t + groups, 0, Bits, words);
      }
      table.template decode<0>(upper[0], lower[0], a[0]);
      // The tile before is done and its sums moved while the other warps keep the tensor cores.
      wgmma_wait<0>();
      hold(acc);
      hold(a[1]);
      if (t > mine_first) release();
#pragma unroll
      for (int i = 0; i < Tokens / 2; ++i) sum[i] += acc[i];
      multiply(a[0], std::false_type{});
      advance();

      table.template decode<1>(upper[0], lower[0], a[1]);
      multiply(a[1], std::true_type{});
      retire(a[0]);
      advance();

      if constexpr (late) {
        large_batch_planes<Bits>::template fields<2>(words, upper[1]);
        large_batch_planes<Bits>::template fields<3>(words, lower[1]);
        if (t + groups < end) planes.load(t + groups, 0, 4, words);
      }
      table.template decode<0>(upper[1], lower[1], a[0]);
      multiply(a[0], std::true_type{});
      retire(a[1]);
      advance();

      if constexpr (late) {
        if (t + groups < end) planes.load(t + groups, 4, Bits, words);
      }
      table.template decode<1>(upper[1], lower[1], a[1]);
      multiply(a[1], std::true_type{});
      retire(a[0]);
      advance();
    }
    wgmma_wait<0>();
    hold(acc);
    release();
#pragma unroll
    for (int i = 0; i < Tokens / 2; ++i) sum[i] += acc[i];
  }
#else
  if (multiplies)
    table.build(w.tables + static_cast<std::size_t>(tile) * (8 << Bits), window, slot, group, lane,
                p.replicas);
  wait_for_dependency();
  // Step n is block n % 4 of 64 columns of one column tile per group, in stages n % 2.
  const int rounds = (end - begin + groups - 1) / groups;
  const auto fill = [&](int n) {
#pragma unroll
    for (int k = 0; k < groups; ++k) {
      const int t = begin + n / 4 * groups + k;
      if (t >= end) break;
      const unsigned char* from =
          p.x + (static_cast<std::size_t>(t * 4 + n % 4) * p.padded_m + first_token) * 128;
      const std::uint32_t to =
          stages + static_cast<std::uint32_t>((n % 2 * groups + k) * shape::stage_bytes(Tokens));
      for (int i = static_cast<int>(threadIdx.x); i < Tokens * 8; i += shape::threads)
        copy_async_16(to + static_cast<std::uint32_t>(i * 16), from + i * 16);
    }
  };
  if (rounds > 0) fill(0);
  float acc[Tokens / 8][4];
  bool works = false;
  const auto multiply = [&](int n, auto half, const std::uint32_t(&upper)[decoding<Bits>::words],
                            const std::uint32_t(&lower)[decoding<Bits>::words]) {
    copy_async_wait_all();
    __syncthreads();  // step n is there for all, and all are done with the stages of n + 1
    if (n + 1 < 4 * rounds) fill(n + 1);
    if (!works) return;
    std::uint32_t a[16];
    table.template decode<decltype(half)::value>(upper, lower, a);
    const int g = lane / 4;
    const std::uint32_t x =
        stages + static_cast<std::uint32_t>((n % 2 * groups + group) * shape::stage_bytes(Tokens) +
                                            g * 128 + lane % 4 * 4);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const std::uint32_t x0 = x + static_cast<std::uint32_t>(((2 * q) ^ g) * 16);
      const std::uint32_t x1 = x + static_cast<std::uint32_t>(((2 * q + 1) ^ g) * 16);
#pragma unroll
      for (int j = 0; j < Tokens / 8; ++j)
        mma_16816(acc[j], a[4 * q], a[4 * q + 1], a[4 * q + 2], a[4 * q + 3],
                  load_shared_u32<0>(x0 + static_cast<std::uint32_t>(j * 1024)),
                  load_shared_u32<0>(x1 + static_cast<std::uint32_t>(j * 1024)));
    }
  };
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    const int t = mine_first + round * groups;
    works = multiplies && t < end;
    std::uint32_t upper[decoding<Bits>::words] = {}, lower[decoding<Bits>::words] = {};
#pragma unroll
    for (int j = 0; j < Tokens / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[j][e] = 0.f;
    if (works) {
      if (t + shape::prefetch * groups < end) planes.prefetch(t + shape::prefetch * groups, lane);
      large_batch_planes<Bits>::template fields<0>(words, upper);
      large_batch_planes<Bits>::template fields<1>(words, lower);
    }
    multiply(4 * round, std::integral_constant<int, 0>{}, upper, lower);
    multiply(4 * round + 1, std::integral_constant<int, 1>{}, upper, lower);
    if (works) {
      large_batch_planes<Bits>::template fields<2>(words, upper);
      large_batch_planes<Bits>::template fields<3>(words, lower);
      if (t + groups < end) planes.load(t + groups, 0, Bits, words);
    }
    multiply(4 * round + 2, std::integral_constant<int, 0>{}, upper, lower);
    multiply(4 * round + 3, std::integral_constant<int, 1>{}, upper, lower);
    if (!works) continue;
#pragma unroll
    for (int j = 0; j < Tokens / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[4 * j + e] += acc[j][e];
  }
  if (!multiplies) {
    meet_cluster<Tokens>(p, ranks);
    return;
  }
#endif

  // Everything that this kernel reads from or leaves to its neighbours in the stream comes after.
  wait_for_dependency();
  write_tile<Tokens, slots>(p, memory, sum, block, first_token, warp, lane);
  // A block must outlive the others' arrivals at its barriers and reads of its sums.
  if (ranks > 1) cluster_barrier();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
