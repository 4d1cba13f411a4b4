// SPDX-License-Identifier: MIT
// Y = X W^T for many tokens: weights are looked up straight into the registers from which the
// tensor cores take operand a, tokens come from shared memory. A block has 8 or 16 warps and 32, 64
// or 128 tokens; groups of warps take column tiles in turn, each warp of a group a row tile of 16.
// One more warp for each group copies tokens.
// Device code only. Tested by tests/kernels/cuda/large_batch_test.cu.
//
// On sm_90a the products are wgmma and tokens arrive by bulk copies; elsewhere they are mma.sync
// and cp.async. The blocks of a cluster take equal parts of the columns and add their sums in the
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

/// Threads of a block: where threads copy for themselves, none only copies.
template <int Bits, int Tokens, int Resident>
struct large_batch_threads {
  using shape = large_batch_shape<Bits, Tokens, Resident>;
  static constexpr int value = BL_HAS_WGMMA ? shape::threads : shape::warps * 32;
};

template <int Bits, int Tokens, int Resident>
BL_KERNEL __launch_bounds__((large_batch_threads<Bits, Tokens, Resident>::value), Resident)
    large_batch_kernel(const __grid_constant__ large_batch_params p) {
  using shape = large_batch_shape<Bits, Tokens, Resident>;
  constexpr int slots = shape::slots, groups = shape::groups;
  extern __shared__ __align__(1024) unsigned char large_batch_shared[];

  // Every warp of a block runs what is before the loop, so it divides nothing (H200: eight integer
  // divisions here took 1 us of every block).
  const unsigned lane_id = threadIdx.x % 32, warp_id = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int lane = static_cast<int>(lane_id), warp = static_cast<int>(warp_id);
  const int first_token = static_cast<int>(blockIdx.x) * Tokens;
  const int block = p.first_block + static_cast<int>(blockIdx.y);
  const int rank = static_cast<int>(blockIdx.z), ranks = static_cast<int>(gridDim.z);
  const int begin = rank * p.share + min(rank, p.extra);
  const int end = begin + p.share + (rank < p.extra ? 1 : 0);

  // Shared memory: tables at table_base of the window, planes of each warp, stages of each group,
  // barriers. Results reuse the front.
  const std::uint32_t start = shared_address(large_batch_shared);
  unsigned char* memory = large_batch_shared + ((shape::table_base - start) & 0xffffu);
  const std::uint32_t window = shared_address(memory) - shape::table_base;
  const std::uint32_t rings =
      shared_address(memory) +
      static_cast<std::uint32_t>(large_batch_tables_of<Bits, shape>::bytes(p.replicas));
  const int slot = static_cast<int>(warp_id % slots);
  const int group = static_cast<int>(warp_id % shape::warps / slots);
  const std::uint32_t stages =
      rings + static_cast<std::uint32_t>(shape::ring_bytes);  // of the first group
  const std::uint32_t mine_stages =
      stages + static_cast<std::uint32_t>(group * p.stages * shape::stage_bytes);

  const large_batch_row_tile mine = find_row_tile<slots>(p, block, slot);
  const large_batch_matrix& w = p.matrices[mine.matrix];
  // Tiles past the last row, and blocks that only fill a cluster, repeat it and write nothing.
  const int tile = min(mine.tile, w.row_tiles - 1);
  const large_batch_planes<Bits> planes{
      w.planes + tile * w.row_tile_stride + lane * packed_layout::lane_words,
      static_cast<std::size_t>(p.col_tiles) * packed_layout::tile_words};
  constexpr bool marked =
      shape::ring && ((Bits == 4 && shape::pairs) || large_batch_planes<Bits>::ring_marks);
  const large_batch_lookup<Bits, shape, marked> table(window, slot, lane, p.replicas);

  float sum[Tokens / 2];
#pragma unroll
  for (int i = 0; i < Tokens / 2; ++i) sum[i] = 0.f;
  uint4 words[shape::ring ? 1 : Bits];
  const std::uint32_t ring =
      rings + static_cast<std::uint32_t>(warp * (shape::ring_bytes / shape::warps));
  const auto request = [&](int t, int from, int to) {
    if constexpr (shape::ring) {
      if (from == 0) planes.copy(t, ring, lane);
    } else {
      planes.load(t, from, to, words);
    }
  };
  const bool multiplies = warp < shape::warps;
  const int mine_first = begin + group;  // then every groups-th column tile
  if (multiplies && mine_first < end) {
    request(mine_first, 0, Bits);
#pragma unroll 1
    for (int i = 1; i < shape::prefetch; ++i)
      if (mine_first + i * groups < end) planes.prefetch(mine_first + i * groups, lane);
  }
  launch_dependents();

#if BL_HAS_WGMMA
  const std::uint32_t barriers =
      stages + static_cast<std::uint32_t>(p.stages * groups * shape::stage_bytes);
  const std::uint32_t full = barriers + static_cast<std::uint32_t>(group * p.stages * 8);
  const std::uint32_t empty = full + shape::barrier_bytes / 2;
  if (threadIdx.x == shape::warps * 32) {
    for (int s = 0; s < p.stages * groups; ++s) {
      split_barrier_init(barriers + 8 * s, 1);
      split_barrier_init(barriers + shape::barrier_bytes / 2 + 8 * s, slots);
    }
    barrier_init_fence();
  }
  if (multiplies)
    table.template build<groups>(w.tables + static_cast<std::size_t>(tile) * (8 << Bits), window,
                                 slot, group, lane, p.replicas);
  __syncthreads();

  if (!multiplies) {
    give_registers<24>();
    // One of these warps for each group: its stages wait for no other group.
    const int served = warp - shape::warps;
    if (served < groups && lane == 0) {
      wait_for_dependency();
      const std::uint32_t offset = static_cast<std::uint32_t>(served * p.stages);
      const std::uint32_t to_stages = stages + offset * shape::stage_bytes;
      const std::uint32_t to_full = barriers + offset * 8;
      const std::size_t step = static_cast<std::size_t>(p.padded_m) * 128;
      const unsigned char* x = p.x + static_cast<std::size_t>(first_token) * 128;
      int stage = 0;
      std::uint32_t parity = 0;
#pragma unroll 1
      for (int t = begin + served; t < end; t += groups) {
#pragma unroll 1
        for (int i = 0; i < 4; ++i) {
          const unsigned char* from = x + (static_cast<std::size_t>(t) * 4 + i) * step;
          const std::uint32_t ready = to_full + 8 * stage;
          split_barrier_wait(ready + shape::barrier_bytes / 2,
                             parity ^ 1);  // at once in the first round
          barrier_expect(ready, shape::stage_bytes);
          bulk_copy(to_stages + static_cast<std::uint32_t>(stage * shape::stage_bytes), from,
                    shape::stage_bytes, ready);
          if (++stage == p.stages) {
            stage = 0;
            parity ^= 1;
          }
        }
      }
    }
    __syncwarp();
    meet_cluster<Tokens>(ranks);
    return;
  }
  take_registers<shape::registers>();
  if (mine_first < end) {
    float acc[Tokens / 2];
#pragma unroll
    for (int i = 0; i < Tokens / 2; ++i) acc[i] = 0.f;
    constexpr int buffers = shape::buffers;
    std::uint32_t a[2][16] = {};
    int stage = 0, last_stage = 0;
    std::uint32_t parity = 0;
    // A stage goes back when the products that read it are done: one group later.
    const auto release = [&] {
      if (lane == 0) barrier_arrive(empty + 8 * last_stage);
    };
    const auto multiply = [&](const std::uint32_t(&x)[16], auto accumulate) {
      split_barrier_wait(full + 8 * stage, parity);
      const std::uint64_t b =
          wgmma_descriptor(mine_stages + static_cast<std::uint32_t>(stage * shape::stage_bytes));
      wgmma_fence();
      wgmma<decltype(accumulate)::value>(acc, x[0], x[1], x[2], x[3], b);
      wgmma<true>(acc, x[4], x[5], x[6], x[7], b + 2);
      wgmma<true>(acc, x[8], x[9], x[10], x[11], b + 4);
      wgmma<true>(acc, x[12], x[13], x[14], x[15], b + 6);
      wgmma_commit();
    };
    const auto advance = [&] {
      last_stage = stage;
      if (++stage == p.stages) {
        stage = 0;
        parity ^= 1;
      }
    };
    // The second to fourth 64 columns of a tile.
    const auto step = [&](auto half, std::uint32_t(&x)[16], std::uint32_t(&before)[16],
                          const std::uint32_t(&upper)[decoding<Bits>::words],
                          const std::uint32_t(&lower)[decoding<Bits>::words]) {
      if constexpr (buffers == 1) {
        wgmma_wait<0>();
        hold(x);
        release();
      }
      table.template decode<decltype(half)::value>(upper, lower, x);
      multiply(x, std::true_type{});
      if constexpr (buffers == 2) {
        wgmma_wait<1>();
        hold(before);
        release();
      }
      advance();
    };
    constexpr bool late = !shape::ring && Bits >= 5;  // fields and next words would not fit
#pragma unroll 1
    for (int t = mine_first; t < end; t += groups) {
      const int next = t + groups;
      if (t + shape::prefetch * groups < end) planes.prefetch(t + shape::prefetch * groups, lane);
      std::uint32_t upper[2][decoding<Bits>::words], lower[2][decoding<Bits>::words];
      if constexpr (shape::ring) {
        copy_async_wait_all();
        planes.template ring_fields<0>(ring, lane, table.place, upper[0], lower[0]);
      } else {
        large_batch_planes<Bits>::template fields<0>(words, upper[0]);
        large_batch_planes<Bits>::template fields<1>(words, lower[0]);
        if constexpr (!late) {
          large_batch_planes<Bits>::template fields<2>(words, upper[1]);
          large_batch_planes<Bits>::template fields<3>(words, lower[1]);
          if (next < end) request(next, 0, Bits);
        }
      }
      if constexpr (buffers == 2) table.template decode<0>(upper[0], lower[0], a[0]);
      // The tile before is done and its sums moved while the other warps keep the tensor cores.
      wgmma_wait<0>();
      hold(acc);
      hold(a[buffers - 1]);
      if (t > mine_first) release();
      if constexpr (buffers == 1) table.template decode<0>(upper[0], lower[0], a[0]);
#pragma unroll
      for (int i = 0; i < Tokens / 2; ++i) sum[i] += acc[i];
      multiply(a[0], std::false_type{});
      advance();
      step(std::integral_constant<int, 1>{}, a[buffers - 1], a[0], upper[0], lower[0]);
      if constexpr (shape::ring) {
        planes.template ring_fields<1>(ring, lane, table.place, upper[1], lower[1]);
        if (next < end) request(next, 0, Bits);
      } else if constexpr (late) {
        large_batch_planes<Bits>::template fields<2>(words, upper[1]);
        large_batch_planes<Bits>::template fields<3>(words, lower[1]);
        if (next < end) request(next, 0, 4);
      }
      step(std::integral_constant<int, 0>{}, a[0], a[buffers - 1], upper[1], lower[1]);
      if constexpr (late)
        if (next < end) request(next, 4, Bits);
      step(std::integral_constant<int, 1>{}, a[buffers - 1], a[0], upper[1], lower[1]);
    }
    wgmma_wait<0>();
    hold(acc);
    release();
#pragma unroll
    for (int i = 0; i < Tokens / 2; ++i) sum[i] += acc[i];
  }
#else
  table.template build<groups>(w.tables + static_cast<std::size_t>(tile) * (8 << Bits), window,
                               slot, group, lane, p.replicas);
  wait_for_dependency();
  // Step n is block n % 4 of 64 columns of one column tile per group, in stages n % 2 if there are.
  const int stage_step = p.stages > 1 ? shape::stage_bytes : 0;
  const int rounds = (end - begin + groups - 1) / groups;
  const auto fill = [&](int n) {
#pragma unroll
    for (int k = 0; k < groups; ++k) {
      const int t = begin + n / 4 * groups + k;
      if (t >= end) break;
      const unsigned char* from =
          p.x + (static_cast<std::size_t>(t * 4 + n % 4) * p.padded_m + first_token) * 128;
      const std::uint32_t to = stages + static_cast<std::uint32_t>(
                                            k * p.stages * shape::stage_bytes + n % 2 * stage_step);
      for (int i = static_cast<int>(threadIdx.x); i < Tokens * 8;
           i += (large_batch_threads<Bits, Tokens, Resident>::value))
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
    if (stage_step != 0 && n + 1 < 4 * rounds) fill(n + 1);
    if (works) {
      std::uint32_t a[16];
      table.template decode<decltype(half)::value>(upper, lower, a);
      const int g = lane / 4;
      const std::uint32_t x =
          mine_stages + static_cast<std::uint32_t>(n % 2 * stage_step + g * 128 + lane % 4 * 4);
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
    }
    if (stage_step == 0) {
      __syncthreads();
      if (n + 1 < 4 * rounds) fill(n + 1);
    }
  };
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    const int t = mine_first + round * groups;
    works = t < end;
    std::uint32_t upper[decoding<Bits>::words] = {}, lower[decoding<Bits>::words] = {};
#pragma unroll
    for (int j = 0; j < Tokens / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[j][e] = 0.f;
    if (works) {
      if (t + shape::prefetch * groups < end) planes.prefetch(t + shape::prefetch * groups, lane);
      if constexpr (shape::ring) {
        copy_async_wait_all();
        planes.template ring_fields<0>(ring, lane, table.place, upper, lower);
      } else {
        large_batch_planes<Bits>::template fields<0>(words, upper);
        large_batch_planes<Bits>::template fields<1>(words, lower);
      }
    }
    multiply(4 * round, std::integral_constant<int, 0>{}, upper, lower);
    multiply(4 * round + 1, std::integral_constant<int, 1>{}, upper, lower);
    if (works) {
      if constexpr (shape::ring) {
        planes.template ring_fields<1>(ring, lane, table.place, upper, lower);
      } else {
        large_batch_planes<Bits>::template fields<2>(words, upper);
        large_batch_planes<Bits>::template fields<3>(words, lower);
      }
      if (t + groups < end) request(t + groups, 0, Bits);
    }
    multiply(4 * round + 2, std::integral_constant<int, 0>{}, upper, lower);
    multiply(4 * round + 3, std::integral_constant<int, 1>{}, upper, lower);
    if (!works) continue;
#pragma unroll
    for (int j = 0; j < Tokens / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[4 * j + e] += acc[j][e];
  }
#endif

  // Everything that this kernel reads from or leaves to its neighbours in the stream comes after.
  wait_for_dependency();
  write_tile<shape>(p, memory, sum, block, first_token, rank, ranks, warp, lane);
  if (ranks > 1) cluster_leave();  // a block must outlive the others' reads of its sums
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
