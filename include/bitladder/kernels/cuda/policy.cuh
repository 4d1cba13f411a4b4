// SPDX-License-Identifier: MIT
// Tuning numbers of the CUDA kernels, each with its reason; nothing else. How to add a policy and
// how to choose: CONTRIBUTING.md, "A policy".
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/cuda/runtime.cuh>

#if __has_include(<bitladder_tuning.hpp>)
#include <bitladder_tuning.hpp>
#define BL_HAS_TUNING 1
#else
#define BL_HAS_TUNING 0
#endif

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// Shape of the kernel for up to 16 tokens.
/// @tparam Bits precision, 1..8
/// @tparam Tokens 1, 8 or 16: the most tokens of a launch
/// @tparam Roomy for multiprocessors with 227 KiB of shared memory a block (sm_90, sm_100); else
///         blocks fit into 99 KiB (sm_86, sm_89, sm_120), as far as they can
template <int Bits, int Tokens, bool Roomy = true>
struct small_batch_policy {
  static_assert(Tokens == 1 || Tokens == 8 || Tokens == 16, "token counts that are compiled");

  static constexpr int bits = Bits;
  static constexpr int tokens = Tokens;

  /// Warps of a block: 4, 8 or 16. A warp takes column tiles w, w + warps ... of every group of 16,
  /// which are 4096 columns; the fewer, the more activations it holds. One block of 16 with 128
  /// registers a thread fills a multiprocessor. For one token two of 8, which do not wait for each
  /// other, are as fast on large matrices and faster on others (H200, 5 bits: 4096 x 4096 6.8 us,
  /// 7.5 with 16; 57344 x 8192 109 and 111), except at 3 and 7 bits (7 bits 116, 112), and where
  /// their tables are too large.
  static constexpr int warps = Roomy ? Tokens == 1 && (Bits <= 2 || Bits == 5 || Bits == 6) ? 8 : 16
                               : Bits == 8 && Tokens < 16 ? 4
                                                          : 8;
  static constexpr int blocks = Roomy ? 16 / warps : Tokens == 1 ? 2 : 1;

  /// One token's activations are read from shared memory, 64 bytes for 512 weights. More tokens
  /// would take as much of its bandwidth as the lookups, so theirs stay in registers: 32 for 8
  /// tokens and a column tile.
  static constexpr bool x_in_shared = Tokens == 1;

  /// Groups of 16 column tiles whose activations a block holds at once: 32 KiB of shared memory, or
  /// the registers of one tile a warp for 16 tokens, of two for 8 (H200, 57344 x 8192, 8 tokens, 3
  /// bits: 79 us, 95 with one group and so two passes).
  static constexpr int groups_per_chunk = x_in_shared ? 4 : Roomy && Tokens == 8 ? 2 : 1;

  /// Row tiles whose tables are in shared memory together, twice: warps meet once for all of them.
  /// Two save a tenth of the time over one (H200, 7 bits: 57344 x 8192 115 us, 123 with one), but
  /// not all precisions leave room for the tables, and small blocks with a few row tiles each lose.
  static constexpr int turn_units =
      Roomy && Bits != 4 && Bits != 8 && !(warps == 8 && Bits > 2) ? 2 : 1;

  /// Two stages of tables: the next turn's are filled while this one's are read. A table of 4 bits
  /// takes 64 KiB.
  static constexpr int lut_stages = !Roomy && Bits == 4 ? 1 : 2;

  /// Column tiles in flight for each warp, `Bits` times 512 bytes each: 40 KiB or so a
  /// multiprocessor cover the latency of memory.
  static constexpr int depth = Bits <= 3 && Roomy ? 2 : 1;

  /// A tile's planes come to registers in two parts, at the price of half of the bandwidth of that
  /// read: where activations leave no room for the second half.
  static constexpr bool halves_apart = Roomy && (Tokens == 16 || (Tokens == 8 && Bits >= 5));
};

/// Which kernel takes how many tokens. A header bitladder_tuning.hpp on the include path, which the
/// tuner of benchmarks/ writes for the card it runs on, overrides the choice for every precision;
/// all translation units of a program must see the same one.
template <int Bits>
struct gemm_policy {
  /// Up to here activations stay in registers while weights stream, 16 tokens at a time; beyond,
  /// the kernel for many tokens. Never below 16: tokens of one batch up to there have the bits that
  /// they have alone.
  static constexpr int small_batch_tokens() {
#if BL_HAS_TUNING
    return bitladder_tuning::small_max_m[Bits] < 16 ? 16 : bitladder_tuning::small_max_m[Bits];
#else
    return 16;
#endif
  }
  /// From here on dequantized slabs and cuBLAS (gemm_cublas.cuh) are the better choice: not gemm's,
  /// which has no handle. A 7B's prompts of 512 tokens take an H200 19.5, 18.5 and 17.5 ms at 8, 4
  /// and 2 bits by slabs, 22.7, 19.1 and 16.1 without; of 1024 tokens 31.5, 30.7 and 30.5 by slabs,
  /// 44.8, 38.1 and 31.5 without.
  static constexpr int cublas_tokens() {
#if BL_HAS_TUNING
    return bitladder_tuning::cublas_min_m[Bits];
#else
    return Bits >= 4 ? 512 : 1024;
#endif
  }
};

/// Which kernel takes a single token whose bits need not be those of a batch.
template <int Bits>
struct gemv_policy {
  /// 2^Bits - 1 counts a tile on the binary tensor cores: below the time of a copy up to 4 bits.
  static constexpr bool bit_serial = Bits >= 2 && Bits <= 4;

  /// Row tiles a multiprocessor from which it is the faster one, for matrices of `col_tiles` column
  /// tiles. At 4 bits one block of 8 warps is all that fits, which starts slowly on long rows
  /// (H200, 4 bits: 4096 x 11008 12.1 us, by lookups 11.2; but 4096 x 4096 6.2, by lookups 6.6, and
  /// 22016 x 4096 16.9, by lookups 22.2).
  static constexpr int bit_serial_row_tiles(int col_tiles) {
    return Bits <= 3 || col_tiles <= 16 ? 0 : 8;
  }

  /// Row tiles a multiprocessor from which lookups whose warps never meet are the faster ones; 0:
  /// never. Fewer leave some warps without an item (H200, 5 to 8 bits: SwiGLU of two 11008 x 4096
  /// 24.5, 25.2, 25.8 and 29.4 us, by the kernel for batches 26.8, 27.4, 29.4 and 32.6; of two
  /// 13824 x 5120 at 7 and 8 bits 41.7 and 44.4, by that one 52.6 and 52.0; but 4096 x 11008 14.6,
  /// 14.9, 15.5 and 15.9, by that one 13.9, 14.0, 15.0 and 16.0; 57344 x 8192 at 7 bits 125
  /// and 127 in two runs, by that one 113 and 129, and as SwiGLU 143 and 137).
  static constexpr int lookup_stream_row_tiles(int col_tiles) {
    return Bits < 5 || (Bits == 7 && col_tiles > 24) ? 0 : 8;
  }

  /// Cards whose binary tensor cores are known to be fast (measured: 0.66 instructions a clock and
  /// multiprocessor on sm_90, as many as of fp16). Elsewhere the lookup kernels are the safe
  /// choice.
  static constexpr bool has_binary_mma(const device_properties& device) {
    return device.compute_capability == 80 || device.compute_capability == 90;
  }
};

/// Shape of the bit-serial kernel (one token).
template <int Bits>
struct bit_serial_policy {
  static constexpr int bits = Bits;

  /// Warps of a block, even. Counts take 12 registers for each of 2^Bits - 1 products of bits: 180
  /// at 4 bits, where 8 warps are all that fit a multiprocessor.
  static constexpr int warps = Bits == 2 ? 12 : 8;

  /// Blocks per multiprocessor that the registers leave room for (H200, 2 bits, 22016 x 4096: 7.3
  /// us; three blocks of 8 warps 8.0).
  static constexpr int blocks = Bits <= 3 ? 2 : 1;

  /// Up to so many slices of 1024 columns a warp, a launch takes one block a multiprocessor and
  /// leaves the rest to the next launch.
  static constexpr int few_slices = 4;
};

/// Shape of the lookup kernel for one token whose warps never meet.
template <int Bits>
struct lookup_stream_policy {
  static_assert(Bits >= 5 && Bits <= 8, "precisions that have the kernel");
  static constexpr int bits = Bits;

  /// Warps of a block, which has the multiprocessor: two blocks of 8 are slower on large matrices
  /// (H200, 57344 x 8192: 5 bits 104 us, 101 with one; 6 bits 121 and 107).
  static constexpr int warps = 16;

  /// Column tiles of an item: the order of summation depends on it (H200, 6 bits, 57344 x 8192: 107
  /// us; of two 112, of one 126). With four at 8 bits 16 warps would read as many tables as there
  /// is room for (SwiGLU of two 11008 x 4096 44.1 us, with two 29.4).
  static constexpr int item_tiles = Bits == 8 ? 2 : 4;

  /// Tables in shared memory, and how many units ahead one is filled: 16 warps read four tables at
  /// a time where a unit has four items, and each item fills a quarter of the one that follows.
  static constexpr int slots = Bits == 8 ? 4 : 8;
  static constexpr int ahead = slots / 2;

  /// Most entries of a table that an item's warp fills, in its registers until then: a unit has
  /// four items or more, or eight.
  static constexpr int share = Bits == 8 ? 32 : (1 << Bits) / 4;
};

/// Shape of kernels that stay on the card for many products (resident_products.cuh): one block a
/// multiprocessor, which has all of its registers.
template <int Bits>
struct resident_policy {
  static_assert(Bits == 2 || Bits == 3, "precisions that have a resident kernel");
  static constexpr int warps = Bits == 2 ? 16 : 12;
  /// Slices of 1024 columns that are on their way for each warp: what fits in shared memory.
  static constexpr int slices_ahead = 2;
};

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
