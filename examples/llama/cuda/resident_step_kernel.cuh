// SPDX-License-Identifier: MIT
// All layers of a model for one token in one launch: a block for every multiprocessor, which stays
// from the first layer to the last and takes what others made as soon as it is there. Tested by
// tests/llama/cuda/resident_layers_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/resident_products.cuh>

#include <llama/cuda/card_launch.cuh>
#include <llama/cuda/resident_attention.cuh>

namespace llama {
namespace card {

/// Steps of a layer: query, key and value; attention; output; gate and up; down.
constexpr int resident_layer_steps = 5;

/// Times that a trace has of each step of a block.
constexpr int resident_marks = 5;

/// What a launch needs; `count` is a multiple of resident_layer_steps.
struct resident_params {
  const bitladder::cuda::resident_step* steps;
  int count;
  bitladder::cuda::resident_memory memory;
  resident_attention_params attention;
  const float* x;                       ///< of the token
  bitladder::cuda::tagged_pair* first;  ///< where the first step takes it from
  unsigned* state;            ///< [2]: launches so far; blocks that are done, zero before and after
  unsigned long long* trace;  ///< [blocks][count][resident_marks]: clock when a block began a step,
                              ///< had what it reads, had prepared it, had multiplied, was done; or
                              ///< null
};

namespace detail {

template <int Bits, int Heads>
BL_KERNEL __launch_bounds__(bitladder::cuda::resident_shape<Bits>::threads, 1)
    resident_step_kernel(const __grid_constant__ resident_params p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char shared[];
  launch_dependents();
  wait_for_dependency();
  resident_attention<Bits, Heads> attention(p.attention);
  if (!attention.valid()) return;  // an idle row: for all blocks alike
  // Tags grow by one a layer, and by one more from launch to launch.
  const unsigned layers = static_cast<unsigned>(p.count / resident_layer_steps);
  const unsigned tag = (__ldcg(p.state) + 1) * (layers + 1);
  bitladder::cuda::resident_products<Bits, resident_attention<Bits, Heads>> products(
      p.steps, p.count, p.memory, shared, tag, attention);
  products.begin_residual(2, p.x, p.first, 0);
#pragma unroll 1
  for (int i = 0; i < p.count; ++i) {
    const auto mark = [&](int stage) {
      if (p.trace == nullptr || threadIdx.x != 0) return;
      p.trace[(static_cast<int>(blockIdx.x) * p.count + i) * resident_marks + stage] =
          static_cast<unsigned long long>(clock64());
    };
    mark(0);
    if (i % resident_layer_steps == 1) {
      if (attention.takes_part())
        attention.attend(products, i, mark);
      else
        __syncthreads();
      products.end(i);
    } else {
      products.product(i, mark);
    }
    mark(4);
  }
  // Nobody reads the state any more when all are here.
  if (threadIdx.x == 0 && atomicAdd(p.state + 1, 1u) + 1 == gridDim.x) {
    p.state[1] = 0;
    p.state[0] += 1;
  }
#endif
}

}  // namespace detail
}  // namespace card
}  // namespace llama
