// SPDX-License-Identifier: MIT
// The steps of a forward pass on a card that are not products of bitplanes: declarations, whose
// kernels are compiled once in operations.cu, attention.cu and dense_few.cu. The stream of hidden
// states is fp32, what products and attention read and write is fp16. Every sum has an order that
// the shapes fix, so a row has the same bits alone and in any batch. Tested by
// tests/llama/cuda/operations_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>

#include <llama/family.hpp>

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

// All launchers: they neither allocate nor synchronise, and can be captured in a graph. `pdl` asks
// for programmatic stream serialization (sm_90 and later): the kernel starts while the one before
// it in the stream still runs, and waits for its results where it needs them. Weights, tables of
// angles and biases are then read before that wait, so the launch before must not write them.
// Pointers are device pointers; those that are not said to be otherwise are 16-byte aligned.
// @return invalid_argument, shape_mismatch, misaligned or unsupported_device before anything is
// queued, launch_failed if the runtime refuses

namespace llama {
namespace card {

/// Keys and values of all sequences, allocated once:
/// [layer][0 keys, 1 values][slot][kv_head][position][row()] of fp16, 16-byte aligned. Columns
/// from head_dim to row() must be zero: clear the memory once.
struct cache_view {
  __half* data = nullptr;
  int layers = 0;
  int slots = 0;  ///< sequences
  int kv_heads = 0;
  int capacity = 0;  ///< positions of each sequence
  int head_dim = 0;

  /// Elements from one position to the next.
  BL_HOST_DEVICE int row() const { return (head_dim + 7) / 8 * 8; }
  /// Elements of one head of one sequence.
  BL_HOST_DEVICE std::size_t head_size() const {
    return static_cast<std::size_t>(capacity) * static_cast<std::size_t>(row());
  }
  /// Elements of all keys, or all values, of a layer.
  BL_HOST_DEVICE std::size_t half_layer() const {
    return head_size() * static_cast<std::size_t>(kv_heads) * static_cast<std::size_t>(slots);
  }
  /// Elements in all.
  BL_HOST_DEVICE std::size_t size() const {
    return half_layer() * 2 * static_cast<std::size_t>(layers);
  }
  BL_HOST_DEVICE __half* keys(int layer, int slot, int head) const {
    return data + half_layer() * 2 * static_cast<std::size_t>(layer) +
           head_size() * (static_cast<std::size_t>(slot) * static_cast<std::size_t>(kv_heads) +
                          static_cast<std::size_t>(head));
  }
  BL_HOST_DEVICE __half* values(int layer, int slot, int head) const {
    return keys(layer, slot, head) + half_layer();
  }
};

/// Cosines and sines of positions, [capacity or more, pairs] each; pairs 0: nothing turns. Column i
/// of a head turns with column i + pairs.
struct rope_view {
  const float* cosines = nullptr;
  const float* sines = nullptr;
  int pairs = 0;
};

/// x[i] = row tokens[i] of the table [vocabulary, width] of fp16, bf16 or fp32. A token outside the
/// table gives zeros.
[[nodiscard]] bitladder::status embed(const void* table, bitladder::dtype type, int vocabulary,
                                      const int* tokens, int m, int width, float* x,
                                      cudaStream_t stream, bool pdl) noexcept;

/// x[i] += row positions[i] + offset of the table [rows, width]. Positions outside it add nothing.
[[nodiscard]] bitladder::status add_positions(const void* table, bitladder::dtype type, int rows,
                                              const int* positions, int offset, int m, int width,
                                              float* x, cudaStream_t stream, bool pdl) noexcept;

/// y = norm(x) * weight (+ bias), x [m, width] fp32, y [m, width] fp16, either of them or both of y
/// and y_float. y_float may be x. `bias` may be null.
[[nodiscard]] bitladder::status norm(norm_kind kind, const float* x, const float* weight,
                                     const float* bias, __half* y, float* y_float, int m, int width,
                                     float epsilon, cudaStream_t stream, bool pdl) noexcept;

/// For prefill: rotates q [m, heads * head_dim] and k [m, kv_heads * head_dim], rows q_stride and
/// kv_stride elements apart, by positions start .. start + m - 1, writes q to q_out (contiguous,
/// may be q itself if that is contiguous) and k and v to the cache of `slot`. Requires start + m <=
/// capacity.
[[nodiscard]] bitladder::status rope_store(const __half* q, const __half* k, const __half* v,
                                           int q_stride, int kv_stride, int m, int heads,
                                           const rope_view& rope, const cache_view& cache,
                                           int layer, int slot, int start, __half* q_out,
                                           cudaStream_t stream, bool pdl) noexcept;

/// One token of each of m sequences: turns q and k by the token's position, stores k and v in the
/// cache and attends over the positions up to its own, in one launch.
/// With programmatic dependent launch, positions, slots and what the cache has of earlier tokens
/// are read while the kernel before is still running: other kernels must have written them.
struct decode_attention_args {
  const __half* q = nullptr;       ///< [m, heads * head_dim], not yet turned
  const __half* k = nullptr;       ///< [m, kv_heads * head_dim], not yet turned
  const __half* v = nullptr;       ///< [m, kv_heads * head_dim]
  int q_stride = 0;                ///< elements from one row to the next; 0: heads * head_dim
  int kv_stride = 0;               ///< elements from one row to the next; 0: kv_heads * head_dim
  const int* positions = nullptr;  ///< [m], positions before the token. Rows below 0 or not below
                                   ///< the capacity are idle: nothing is stored, out becomes zero
  const int* slots = nullptr;      ///< [m], all different; null: 0, 1, 2, ...
  int m = 0;
  int heads = 0;
  rope_view rope;
  cache_view cache;
  int layer = 0;
  int window = 0;  ///< positions that a token sees, its own among them; 0: all
  float scale = 1;
  __half* out = nullptr;     ///< [m, heads * head_dim]
  float* scratch = nullptr;  ///< decode_attention_scratch_bytes(...), cleared once, left clear;
                             ///< used on cards without clusters only
};
/// Bytes of scratch for up to m rows.
std::size_t decode_attention_scratch_bytes(int m, int heads, int head_dim) noexcept;
[[nodiscard]] bitladder::status decode_attention(const decode_attention_args& args,
                                                 cudaStream_t stream, bool pdl) noexcept;

/// Attention of m consecutive tokens of one sequence, from position `start` on, whose keys and
/// values are stored; out and q [m, heads * head_dim] contiguous, q turned. Memory does not grow
/// with the length.
[[nodiscard]] bitladder::status prefill_attention(const __half* q, int m, int heads,
                                                  const cache_view& cache, int layer, int slot,
                                                  int start, int window, float scale, __half* out,
                                                  cudaStream_t stream, bool pdl) noexcept;

/// One matrix of a product of unquantized weights, [rows, cols] without gaps.
struct dense_product {
  const void* weights = nullptr;
  int rows = 0;
  void* y = nullptr;               ///< [m, rows] of y_type
  const void* bias = nullptr;      ///< [rows] of y_type, or null
  const void* residual = nullptr;  ///< [m, rows] of y_type, or null; may be y itself
};

/// y = W x for up to four matrices that share x, for few tokens: the time is that of the weights'
/// bytes.
struct dense_few_args {
  static constexpr int max_matrices = 4;
  static constexpr int max_m = 16;

  dense_product matrices[max_matrices]{};
  int count = 1;
  bitladder::dtype type = bitladder::dtype::f16;  ///< of the weights: fp16, bf16 or fp32
  int cols = 0;
  const __half* x = nullptr;  ///< [m, cols]
  int m = 1;                  ///< up to max_m
  std::int64_t y_stride = 0;  ///< elements from one token's y to the next; 0: the matrix's rows
  bitladder::dtype y_type = bitladder::dtype::f16;  ///< fp16 or fp32
  bool swiglu = false;  ///< matrices gate and up, of equal rows: y of the first = silu(gate) * up
};
[[nodiscard]] bitladder::status dense_gemm_few(const dense_few_args& args, cudaStream_t stream,
                                               bool pdl) noexcept;

/// x[i] = f(x[i])
[[nodiscard]] bitladder::status activate(activation_kind f, __half* x, std::size_t count,
                                         cudaStream_t stream, bool pdl) noexcept;

/// y [m, width] = silu(gate) * up; rows of gate and of up are `stride` elements apart. y may be
/// gate if stride is width.
[[nodiscard]] bitladder::status silu_multiply(const __half* gate, const __half* up,
                                              std::int64_t stride, int m, int width, __half* y,
                                              cudaStream_t stream, bool pdl) noexcept;

/// x[i] += y[i]
[[nodiscard]] bitladder::status add(const __half* y, float* x, std::size_t count,
                                    cudaStream_t stream, bool pdl) noexcept;

/// The end of a greedy step, per row i whose position is not below 0: tokens[i] = the first of the
/// largest logits (NaN counts as the lowest), appended to log[i * log_stride + counts[i]] if there
/// is room; counts[i] and positions[i] grow by one. log and counts may be null together.
/// @param logits [m, vocabulary] fp32, rows `stride` elements apart (0: vocabulary); 4-byte aligned
/// @param scratch argmax_scratch_bytes(m), 8-byte aligned, cleared once, left clear
std::size_t argmax_scratch_bytes(int m) noexcept;
[[nodiscard]] bitladder::status argmax_advance(const float* logits, std::int64_t stride, int m,
                                               int vocabulary, int* tokens, int* positions,
                                               int* log, int log_stride, int* counts, void* scratch,
                                               cudaStream_t stream, bool pdl) noexcept;

}  // namespace card
}  // namespace llama
