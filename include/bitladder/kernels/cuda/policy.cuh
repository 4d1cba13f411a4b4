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
template <int Bits, int Tokens>
struct small_batch_policy {
  static_assert(Tokens == 1 || Tokens == 8 || Tokens == 16, "token counts that are compiled");

  static constexpr int bits = Bits;
  static constexpr int tokens = Tokens;

  /// Warps of a block, 8 or 16: a warp takes column tiles w (and w + 8) of every group of 16, which
  /// are 4096 columns. 16 tokens at up to 4 bits: 128 registers are enough for one tile's
  /// activations, and twice the warps hide more (H200, 57344 x 8192: 3 bits 125 us, 8 warps 130).
  static constexpr int warps = Tokens == 16 && Bits <= 4 ? 16 : 8;

  /// One token's activations are read from shared memory, 64 bytes for 512 weights. More tokens
  /// would take as much of its bandwidth as the lookups, so theirs stay in registers: 32 for 8
  /// tokens and a column tile.
  static constexpr bool x_in_shared = Tokens == 1;

  /// Groups of 16 column tiles whose activations a block holds at once: 32 KiB of shared memory, or
  /// the registers of one group.
  static constexpr int groups_per_chunk = x_in_shared ? 4 : 1;

  /// Blocks per multiprocessor. Two of 128 registers a thread hide each other's barriers (H200,
  /// 57344 x 8192, 8 tokens: 3 bits 89 us, one block of 16 warps 110). Where activations and planes
  /// need more registers, one block has 255.
  static constexpr int blocks = Tokens == 1 || (Tokens == 8 && Bits <= 6) ? 2 : 1;

  /// Column tiles kept in flight per warp: 1, 2 or 4. About 32 KiB a multiprocessor cover the
  /// latency of memory; a tile is `Bits` times 512 bytes a warp.
  static constexpr int depth = Tokens == 1   ? (Bits <= 3   ? 4
                                                : Bits == 4 ? 2
                                                            : 1)
                               : blocks == 2 ? 1
                               : warps == 16 ? 1
                                             : 2;

  /// Lookups run ahead of the products by 4 mma steps, at the price of 8 registers or more.
  static constexpr bool look_ahead = Tokens == 1 ? Bits <= 4 : blocks == 1 && warps == 8;

  /// Tables in shared memory: two, the next row tile's being built while this one is read, or one
  /// where two blocks of 4 bits (64 KiB a table) share a multiprocessor.
  static constexpr int lut_stages = Bits == 4 && blocks == 2 ? 1 : 2;
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
  /// which has no handle.
  static constexpr int cublas_tokens() {
#if BL_HAS_TUNING
    return bitladder_tuning::cublas_min_m[Bits];
#else
    return 1024;
#endif
  }
};

/// Which kernel takes a single token whose bits need not be those of a batch.
template <int Bits>
struct gemv_policy {
  /// 2^Bits - 1 counts a tile on the binary tensor cores: below the time of a copy up to 4 bits.
  static constexpr bool bit_serial = Bits >= 2 && Bits <= 4;

  /// Row tiles a multiprocessor from which it is the faster one. At 4 bits one block of 8 warps is
  /// all that fits, which takes long to start (H200, 4 bits: 4096 x 4096 7.1 us, by lookups 5.9;
  /// 22016 x 4096 19.3 us, by lookups 22.3).
  static constexpr int bit_serial_row_tiles = Bits <= 3 ? 0 : 8;

  /// Cards whose binary tensor cores are known to be fast (measured: 0.66 instructions a clock and
  /// multiprocessor on sm_90, as many as of fp16). Elsewhere the lookup kernels are the safe
  /// choice.
  static constexpr bool has_binary_mma(const device_properties& device) {
    return device.compute_capability == 80 || device.compute_capability == 90;
  }
};

/// Shape of the bit-serial kernel (one token): 8 warps a block.
template <int Bits>
struct bit_serial_policy {
  static constexpr int bits = Bits;
  /// Blocks per multiprocessor: counts take 12 registers for each of 2^Bits - 1 products of bits,
  /// 180 at 4 bits, which leaves room for one block.
  static constexpr int blocks = Bits == 2 ? 3 : Bits == 3 ? 2 : 1;
};

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
