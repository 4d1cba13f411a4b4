// SPDX-License-Identifier: MIT
// The largest logit of each row, and the step of the sequence that follows from it. Several blocks
// share a row: each brings the largest of its part to one word in memory, where value and index are
// packed so that the larger word is the larger logit, or the lower index of equal ones; the last
// block to come advances the sequence. Tested by tests/llama/cuda/operations_test.cu.
#pragma once

#include <llama/cuda/card_launch.cuh>

#include <cstddef>
#include <cstdint>

namespace llama {
namespace card {
namespace detail {

constexpr int argmax_threads = 256;
constexpr int argmax_blocks = 16;  ///< per row

/// One row's meeting point; zero between launches.
struct argmax_state {
  unsigned long long best;
  unsigned arrived;
  unsigned unused;
};

/// Orders as the floats do; NaN is below all, and nothing is 0.
__device__ inline std::uint32_t ordered(float x) {
  if (x != x) return 1;
  const std::uint32_t bits = __float_as_uint(x);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

template <class = void>
BL_KERNEL __launch_bounds__(argmax_threads)
    argmax_kernel(const float* logits, std::int64_t stride, int vocabulary, int* tokens,
                  int* positions, int* log, int log_stride, int* counts, argmax_state* states) {
  __shared__ unsigned long long parts[argmax_threads / 32];
  launch_dependents();
  wait_for_dependency();
  const int row = static_cast<int>(blockIdx.y);
  const int position = load_shared_by_all(positions + row);
  if (position < 0) return;
  logits += static_cast<std::size_t>(row) * static_cast<std::size_t>(stride);
  unsigned long long best = 0;
  const int step = argmax_blocks * argmax_threads;
#pragma unroll 8
  for (int i = static_cast<int>(blockIdx.x) * argmax_threads + static_cast<int>(threadIdx.x);
       i < vocabulary; i += step) {
    const unsigned long long key = static_cast<unsigned long long>(ordered(logits[i])) << 32 |
                                   (~0u - static_cast<unsigned>(i));
    if (key > best) best = key;
  }
  for (int i = 16; i > 0; i /= 2) {
    const unsigned long long other = __shfl_xor_sync(~0u, best, i);
    if (other > best) best = other;
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned long long p : parts)
    if (p > best) best = p;
  argmax_state& state = states[row];
  atomicMax(&state.best, best);
  __threadfence();
  if (atomicAdd(&state.arrived, 1u) != argmax_blocks - 1) return;
  __threadfence();
  best = atomicExch(&state.best, 0ull);
  atomicExch(&state.arrived, 0u);
  const int token = static_cast<int>(~0u - static_cast<unsigned>(best));
  tokens[row] = token;
  positions[row] = position + 1;
  if (counts == nullptr) return;
  const int count = counts[row];
  if (count >= 0 && count < log_stride)
    log[static_cast<std::size_t>(row) * static_cast<std::size_t>(log_stride) +
        static_cast<std::size_t>(count)] = token;
  counts[row] = count + 1;
}

}  // namespace detail
}  // namespace card
}  // namespace llama
