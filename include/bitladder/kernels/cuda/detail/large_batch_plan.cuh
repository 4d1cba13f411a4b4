// SPDX-License-Identifier: MIT
// How a product of many tokens is spread over the card: which of the compiled kernels, how many
// copies of the tables and stages fit, and which blocks divide the columns, by an estimate of
// clocks. Host code. Tested by tests/kernels/cuda/large_batch_test.cu.
#pragma once

#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/detail/large_batch_tables.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// Tokens of the image of x, for blocks of `tokens`.
[[nodiscard]] inline int large_batch_padded(int m, int tokens) noexcept {
  return (m + tokens - 1) / tokens * tokens;
}
[[nodiscard]] inline int large_batch_col_tiles(int cols) noexcept {
  return cols / packed_layout::tile_cols + (cols % packed_layout::tile_cols != 0);
}
[[nodiscard]] inline std::size_t large_batch_image_bytes(int m, int tokens, int cols) noexcept {
  return static_cast<std::size_t>(large_batch_padded(m, tokens)) *
         static_cast<std::size_t>(large_batch_col_tiles(cols)) * packed_layout::tile_cols * 2;
}

/// Row blocks of a launch, of `rows` each; with SwiGLU half of them are the gate's.
[[nodiscard]] inline int large_batch_row_blocks(const gemm_args& args, int rows) noexcept {
  const bool swiglu = args.epilogue == gemm_epilogue::swiglu;
  if (swiglu) rows /= 2;
  int blocks = 0;
  for (int i = 0; i < (swiglu ? 1 : args.count); ++i)
    blocks += (args.matrices[i].w.layout.rows + rows - 1) / rows;
  return blocks;
}

/// How a call is spread over the card.
struct large_batch_plan {
  int tokens = 0;    ///< of a block: 32, 64 or 128
  int resident = 1;  ///< blocks that a multiprocessor holds
  int rows = 0;      ///< of a block
  int cluster = 1;   ///< blocks that divide the columns
  int tail = 0;      ///< row blocks that are launched by themselves, as what is left of whole waves
  int tail_cluster = 1;
  int stages = 0;  ///< of each group of warps
  int replicas = 0;
  int shared_bytes = 0;
  double clocks = 0;  ///< estimated
};

/// Shared memory for blocks of `Tokens`: as many copies of the tables, then as many stages as fit.
/// @return false if not even the fewest stages do
template <int Bits, int Tokens, int Resident>
[[nodiscard]] bool fit_large_batch(const device_properties& device,
                                   large_batch_plan& plan) noexcept {
  using shape = large_batch_shape<Bits, Tokens, Resident>;
  constexpr int reserved = 1024;  // of every block, by the system
  const int room = Resident == 1
                       ? device.shared_bytes_per_block
                       : std::min(device.shared_bytes_per_block,
                                  device.shared_bytes_per_multiprocessor / Resident - reserved);
  plan.tokens = Tokens;
  plan.resident = Resident;
  plan.rows = shape::rows;
  // Only code for sm_90a gives stages back late.
  const int fewest = device.compute_capability == 90 ? shape::min_stages : 1;
  // What covers the latency of the second-level cache comes first, then copies of the tables, then
  // more stages.
  for (const int least : {shape::groups == 1 ? 4 : 2, fewest}) {
    for (const int replicas : {4, 2, 1}) {
      const int tables = large_batch_tables_of<Bits, shape>::bytes(replicas);
      if (shape::shared_bytes(tables, least) > room) continue;
      plan.replicas = replicas;
      plan.stages = least;
      while (plan.stages < shape::max_stages &&
             shape::shared_bytes(tables, plan.stages + 1) <= room)
        ++plan.stages;
      plan.shared_bytes = shape::shared_bytes(tables, plan.stages);
      // Two blocks that wait for each other's banks or for every stage gain nothing.
      return Resident == 1 || (plan.replicas == 4 && plan.stages >= 2);
    }
  }
  return false;
}

/// Clocks of row blocks whose columns clusters of `ways` blocks divide, on an H200: whole waves of
/// blocks over the multiprocessors, a start and an end each, and column tiles in turns of the
/// groups.
template <int Bits, int Tokens, int Resident>
[[nodiscard]] double large_batch_clocks(int row_blocks, int token_tiles, int col_tiles, int ways,
                                        const large_batch_plan& plan,
                                        const device_properties& device) noexcept {
  using shape = large_batch_shape<Bits, Tokens, Resident>;
  // A column tile of 16 rows and the start and end of a wave of blocks, by measurement; of many
  // tokens the two were not told apart.
  double tile = Bits <= 2 ? 420.0 : 450.0 + 18 * Bits, fixed = 3500, first = 0;
  if constexpr (Tokens < 128) {
    tile =
        (shape::pairs ? 50.0 : 120.0) + 13 * Bits + (Bits > 6 ? 45 * (Bits - 6) : 0) + Tokens * 2.2;
    fixed = shape::pairs && Bits == 4 ? 12000 : 9000;
    first = 3700;  // the end of the kernel before hides a part of the first start
  }
  if (plan.stages == 1) tile *= 1.5;  // nothing arrives while a stage is read
  // Clusters lie within a part of the card whose multiprocessors are not a multiple of them: the
  // share of all that were seen to start at once.
  constexpr double usable[] = {1, 1, 0.73, 0.85, 0.61, 0.73};
  const double room = device.multiprocessors * usable[ways - 1];
  const double blocks = static_cast<double>(row_blocks) * token_tiles * ways;
  const double joining = ways > 1 ? 2000 + 700.0 * ways : 0.0;
  const int share = (col_tiles + ways - 1) / ways;
  const double whole = static_cast<double>(static_cast<std::int64_t>(blocks / (room * Resident)));
  const double left = blocks / room - whole * Resident;  // blocks of a multiprocessor in the end
  if constexpr (Resident == 2) {
    // Each of a pair of blocks hides the start and the end of the other; a block without another
    // takes two thirds of a pair's time, and of the last ones not all find another at once.
    const double pair = 1.1 * 2 * shape::slots * tile * share;
    const double last = left <= 0 ? 0 : left <= 1 ? 0.68 * pair : 1.15 * pair;
    return whole * (pair + 1.5 * joining) + last + (fixed - first) + joining;
  }
  const int turns = (share + shape::groups - 1) / shape::groups * shape::groups;
  return (whole + (left > 0 ? 1 : 0)) *
             ((share + turns) * 0.5 * shape::slots * tile + fixed + joining) -
         first;
}

/// The better of `best` and what blocks of `Tokens` can do.
template <int Bits, int Tokens, int Resident>
void consider_large_batch(const gemm_args& args, const device_properties& device, bool clusters,
                          large_batch_plan& best) noexcept {
  large_batch_plan plan;
  if (!fit_large_batch<Bits, Tokens, Resident>(device, plan)) return;
  const int token_tiles = (args.m + Tokens - 1) / Tokens;
  const int col_tiles = large_batch_col_tiles(args.matrices[0].w.layout.cols);
  const int row_blocks = large_batch_row_blocks(args, plan.rows);
  const auto clocks = [&](int blocks, int ways) {
    return large_batch_clocks<Bits, Tokens, Resident>(blocks, token_tiles, col_tiles, ways, plan,
                                                      device);
  };
  const int most = std::min(clusters ? 6 : 1, col_tiles);
  for (int ways = 1; ways <= most; ++ways) {
    plan.cluster = ways;
    plan.clocks = clocks(row_blocks, ways);
    if (best.tokens == 0 || plan.clocks < best.clocks) best = plan;
  }
  // Whole waves first, then what is left with its columns divided.
  plan.cluster = 1;
  plan.tail = token_tiles == 1 && Resident == 1 ? row_blocks % device.multiprocessors : 0;
  if (plan.tail == 0 || plan.tail == row_blocks) return;
  for (int ways = 2; ways <= most; ++ways) {
    plan.tail_cluster = ways;
    plan.clocks = clocks(row_blocks - plan.tail, 1) + clocks(plan.tail, ways);
    if (plan.clocks < best.clocks) best = plan;
  }
}

/// Calls `with` with the sizes of every kernel of this precision, as integral constants.
template <int Bits, class With>
void each_large_batch(With&& with) {
  using one = std::integral_constant<int, 1>;
  using two = std::integral_constant<int, 2>;
  with(std::integral_constant<int, 32>{}, one{});
  with(std::integral_constant<int, 64>{}, one{});
  with(std::integral_constant<int, 128>{}, one{});
  if constexpr (large_batch_has_two<Bits, 32>) with(std::integral_constant<int, 32>{}, two{});
  if constexpr (large_batch_has_two<Bits, 64>) with(std::integral_constant<int, 64>{}, two{});
}

/// Picks what an estimate of clocks expects to be fastest.
/// @param clusters whether the kernel and the card have them
template <int Bits>
[[nodiscard]] large_batch_plan choose_large_batch(const gemm_args& args,
                                                  const device_properties& device,
                                                  bool clusters) noexcept {
  large_batch_plan best;
  each_large_batch<Bits>([&](auto tokens, auto resident) {
    constexpr int t = decltype(tokens)::value;
    // The smallest that holds all tokens, or of more than 64 either of the larger; two blocks share
    // no tokens, so they are for one tile of them.
    const bool suits = args.m <= 32   ? t == 32
                       : args.m <= 64 ? t == 64
                                      : t >= 64 && decltype(resident)::value == 1;
    if (suits)
      consider_large_batch<Bits, t, decltype(resident)::value>(args, device, clusters, best);
  });
  if (best.tokens == 0) consider_large_batch<Bits, 128, 1>(args, device, clusters, best);
  return best;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
