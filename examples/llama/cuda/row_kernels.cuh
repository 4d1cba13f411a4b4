// SPDX-License-Identifier: MIT
// Rows on a card outside of products and attention: embedding, norms, activations, sums. Each waits
// for a few loads and then is done, so what does not depend on the kernel before is loaded ahead of
// the wait for it, and a norm keeps its row in registers. Tested by
// tests/llama/cuda/operations_test.cu.
#pragma once

#include <llama/cuda/card_launch.cuh>
#include <llama/family.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace llama {
namespace card {
namespace detail {

constexpr int element_threads = 256;
constexpr int norm_threads = 512;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

/// Row tokens[y] + offset of the table goes to row y of x, or is added to it. Block (part, row).
template <class T, bool Add>
BL_KERNEL embed_kernel(const T* table, int rows, const int* tokens, int offset, int width,
                       float* x) {
  launch_dependents();
  wait_for_dependency();
  const int token = load_shared_by_all(tokens + blockIdx.y);
  const bool here = token >= 0 && token < rows - offset;
  const T* from = table + (here ? static_cast<std::size_t>(token + offset) : 0) *
                              static_cast<std::size_t>(width);
  float* to = x + static_cast<std::size_t>(blockIdx.y) * static_cast<std::size_t>(width);
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < width;
       i += static_cast<int>(gridDim.x * blockDim.x)) {
    const float v = here ? to_float(from[i]) : 0.f;
    if (!Add)
      to[i] = v;
    else if (here)
      to[i] += v;
  }
}

/// Of `x` of all threads of the block, in all threads and with the same bits in each. `parts` is
/// used once.
__device__ inline float norm_sum(float x, float (&parts)[norm_threads / 32]) {
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = parts[threadIdx.x % (norm_threads / 32)];
  for (int i = norm_threads / 64; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
  return sum;
}

/// The elements of a row that a thread has: `Vectors` times 4 neighbours.
template <int Vectors, class F>
__device__ __forceinline__ void for_each_vector(int width, F&& f) {
#pragma unroll
  for (int i = 0; i < Vectors; ++i) {
    const int at = 4 * (static_cast<int>(threadIdx.x) + i * norm_threads);
    if (at < width) f(i, at);
  }
}

/// A block per row of at most 4 * Vectors * norm_threads elements, a multiple of 4.
template <norm_kind Kind, int Vectors>
BL_KERNEL __launch_bounds__(norm_threads)
    norm_kernel(const float* x, const float* weight, const float* bias, __half* y, float* y_float,
                int width, float epsilon) {
  __shared__ float parts[2][norm_threads / 32];
  launch_dependents();
  float4 w[Vectors], b[Vectors], v[Vectors];
  for_each_vector<Vectors>(width, [&](int i, int at) {
    w[i] = *reinterpret_cast<const float4*>(weight + at);
    b[i] = bias == nullptr ? float4{} : *reinterpret_cast<const float4*>(bias + at);
  });
  wait_for_dependency();
  const std::size_t row = static_cast<std::size_t>(blockIdx.x) * static_cast<std::size_t>(width);
  for_each_vector<Vectors>(
      width, [&](int i, int at) { v[i] = *reinterpret_cast<const float4*>(x + row + at); });
  float mean = 0;
  if (Kind == norm_kind::layer) {
    float sum = 0;
    for_each_vector<Vectors>(width,
                             [&](int i, int) { sum += (v[i].x + v[i].y) + (v[i].z + v[i].w); });
    mean = norm_sum(sum, parts[0]) / static_cast<float>(width);
  }
  float squares = 0;
  for_each_vector<Vectors>(width, [&](int i, int) {
    v[i] = {v[i].x - mean, v[i].y - mean, v[i].z - mean, v[i].w - mean};
    squares += fmaf(v[i].x, v[i].x, v[i].y * v[i].y) + fmaf(v[i].z, v[i].z, v[i].w * v[i].w);
  });
  const float scale = rsqrtf(norm_sum(squares, parts[1]) / static_cast<float>(width) + epsilon);
  for_each_vector<Vectors>(width, [&](int i, int at) {
    const float4 r = {fmaf(v[i].x * scale, w[i].x, b[i].x), fmaf(v[i].y * scale, w[i].y, b[i].y),
                      fmaf(v[i].z * scale, w[i].z, b[i].z), fmaf(v[i].w * scale, w[i].w, b[i].w)};
    if (y != nullptr)
      *reinterpret_cast<uint2*>(y + row + at) = {pack_half2(r.x, r.y), pack_half2(r.z, r.w)};
    if (y_float != nullptr) *reinterpret_cast<float4*>(y_float + row + at) = r;
  });
}

/// The same for any width: reads the row again for each pass.
template <norm_kind Kind>
BL_KERNEL __launch_bounds__(norm_threads)
    any_norm_kernel(const float* x, const float* weight, const float* bias, __half* y,
                    float* y_float, int width, float epsilon) {
  __shared__ float parts[2][norm_threads / 32];
  launch_dependents();
  wait_for_dependency();
  const std::size_t row = static_cast<std::size_t>(blockIdx.x) * static_cast<std::size_t>(width);
  const int first = static_cast<int>(threadIdx.x);
  float mean = 0, sum = 0, squares = 0;
  if (Kind == norm_kind::layer) {
    for (int i = first; i < width; i += norm_threads) sum += x[row + i];
    mean = norm_sum(sum, parts[0]) / static_cast<float>(width);
  }
  for (int i = first; i < width; i += norm_threads) {
    const float e = x[row + i] - mean;
    squares = fmaf(e, e, squares);
  }
  const float scale = rsqrtf(norm_sum(squares, parts[1]) / static_cast<float>(width) + epsilon);
  for (int i = first; i < width; i += norm_threads) {
    const float r = fmaf((x[row + i] - mean) * scale, weight[i], bias == nullptr ? 0.f : bias[i]);
    if (y != nullptr) y[row + i] = __float2half_rn(r);
    if (y_float != nullptr) y_float[row + i] = r;
  }
}

template <activation_kind F>
__device__ inline float activation(float v) {
  if (F == activation_kind::relu) return v <= 0.f ? 0.f : v;
  if (F == activation_kind::silu) return v / (1.f + __expf(-v));
  // x (1 + tanh u) / 2 as x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
  constexpr float a = 1.5957691216f;
  return v / (1.f + __expf(-v * fmaf(a * 0.044715f, v * v, a)));
}

template <activation_kind F>
BL_KERNEL activate_kernel(__half* x, std::size_t count) {
  launch_dependents();
  wait_for_dependency();
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step)
    x[i] = __float2half_rn(activation<F>(__half2float(x[i])));
}

/// Block (part, row).
template <class = void>
BL_KERNEL silu_multiply_kernel(const __half* gate, const __half* up, std::int64_t stride, int width,
                               __half* y) {
  launch_dependents();
  wait_for_dependency();
  const std::size_t from = static_cast<std::size_t>(blockIdx.y) * static_cast<std::size_t>(stride);
  const std::size_t to = static_cast<std::size_t>(blockIdx.y) * static_cast<std::size_t>(width);
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < width;
       i += static_cast<int>(gridDim.x * blockDim.x))
    y[to + i] = __float2half_rn(activation<activation_kind::silu>(__half2float(gate[from + i])) *
                                __half2float(up[from + i]));
}

template <class = void>
BL_KERNEL add_kernel(const __half* y, float* x, std::size_t count) {
  launch_dependents();
  wait_for_dependency();
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step)
    x[i] += __half2float(y[i]);
}

}  // namespace detail
}  // namespace card
}  // namespace llama
