// SPDX-License-Identifier: MIT
// The row arithmetic of a forward and backward pass on a card, in fp32 with sums along rows in
// double: norms, rope, activations, softmax, the loss. The formulas are those of vector_math.hpp,
// layer_math.hpp and backward_math.hpp. Every sum has one order. Tested by
// tests/llama/cuda/backward_test.cu.
#pragma once

#include <bitladder/config.hpp>

#include <llama/family.hpp>

#include <cstddef>

namespace llama {
namespace detail {

constexpr int row_threads = 256;  ///< of a block, which has a row

/// Of `x` of all threads of the block, in all threads.
__device__ inline double block_sum(double x) {
  __shared__ double parts[row_threads / 32];
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  __syncthreads();  // parts of the sum before are read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  for (double p : parts) sum += p;
  return sum;
}

__device__ inline float block_max(float x) {
  __shared__ float parts[row_threads / 32];
  for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  float max = parts[0];
  for (float p : parts) max = fmaxf(max, p);
  return max;
}

/// The sum of f(i) for i < count.
template <class F>
__device__ double row_sum(int count, F&& f) {
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += row_threads) sum += f(i);
  return block_sum(sum);
}

__device__ inline float* row_of(float* x, int cols) {
  return x + static_cast<std::size_t>(blockIdx.x) * static_cast<std::size_t>(cols);
}
__device__ inline const float* row_of(const float* x, int cols) {
  return x + static_cast<std::size_t>(blockIdx.x) * static_cast<std::size_t>(cols);
}

/// What a norm subtracts from its x and multiplies it with.
struct norm_scale {
  double mean, scale;
};

template <norm_kind Kind>
__device__ norm_scale scale_of_row(const float* x, int cols, float epsilon) {
  double mean = 0;
  if (Kind == norm_kind::layer)
    mean = row_sum(cols, [=](int i) { return static_cast<double>(x[i]); }) / cols;
  const double squares = row_sum(cols, [=](int i) {
    const double e = static_cast<double>(x[i]) - mean;
    return e * e;
  });
  return {mean, 1 / sqrt(squares / cols + static_cast<double>(epsilon))};
}

/// y = the norm of x; a block per row. `bias` may be null.
template <norm_kind Kind>
BL_KERNEL norm_kernel(const float* x, const float* weight, const float* bias, float* y, int cols,
                      float epsilon) {
  x = row_of(x, cols);
  y = row_of(y, cols);
  const norm_scale s = scale_of_row<Kind>(x, cols, epsilon);
  for (int i = static_cast<int>(threadIdx.x); i < cols; i += row_threads) {
    const double normed = (static_cast<double>(x[i]) - s.mean) * s.scale;
    y[i] = static_cast<float>(normed * static_cast<double>(weight[i]) +
                              (bias != nullptr ? static_cast<double>(bias[i]) : 0));
  }
}

/// d, the gradient of a norm's result, becomes that of its x; a block per row.
template <norm_kind Kind>
BL_KERNEL norm_gradient_kernel(const float* x, const float* weight, float* d, int cols,
                               float epsilon) {
  x = row_of(x, cols);
  d = row_of(d, cols);
  const norm_scale s = scale_of_row<Kind>(x, cols, epsilon);
  const auto passed = [=](int i) {
    return static_cast<double>(d[i]) * static_cast<double>(weight[i]);
  };
  const double level = Kind == norm_kind::layer ? row_sum(cols, passed) / cols : 0;
  const double along =
      row_sum(cols, [=](int i) { return passed(i) * (static_cast<double>(x[i]) - s.mean); }) / cols;
  const double back = along * s.scale * s.scale;
  for (int i = static_cast<int>(threadIdx.x); i < cols; i += row_threads)
    d[i] = static_cast<float>(s.scale *
                              (passed(i) - level - (static_cast<double>(x[i]) - s.mean) * back));
}

/// Turns every head of every row by its position's angles, or back; a block per row.
template <bool Back>
BL_KERNEL rope_kernel(float* x, int cols, int head_dim, int pairs, const float* cosines,
                      const float* sines) {
  x = row_of(x, cols);
  cosines = row_of(cosines, pairs);
  sines = row_of(sines, pairs);
  const int all = cols / head_dim * pairs;
  for (int i = static_cast<int>(threadIdx.x); i < all; i += row_threads) {
    const int pair = i % pairs;
    float* low = x + i / pairs * head_dim + pair;
    float* high = low + pairs;
    const float a = *low, b = *high, c = cosines[pair], s = Back ? -sines[pair] : sines[pair];
    *low = fmaf(a, c, -(b * s));
    *high = fmaf(b, c, a * s);
  }
}

/// x's row += bias, or each row += its own; a block per row.
template <bool SameForAll>
BL_KERNEL add_rows_kernel(const float* from, float* x, int cols) {
  if (!SameForAll) from = row_of(from, cols);
  x = row_of(x, cols);
  for (int i = static_cast<int>(threadIdx.x); i < cols; i += row_threads) x[i] += from[i];
}

/// Calls f(i) for every i below count, each once.
template <class F>
__device__ void for_each_element(std::size_t count, F&& f) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step)
    f(i);
}

__device__ inline float gelu_slope(float x) {
  constexpr float a = 1.5957691216f;  // 2 sqrt(2 / pi)
  return fmaf(3.f * a * 0.044715f, x * x, a);
}
/// e^-z, z = 2 sqrt(2 / pi) (x + 0.044715 x^3)
__device__ inline float gelu_exp(float x) {
  constexpr float a = 1.5957691216f;
  return expf(-x * fmaf(a * 0.044715f, x * x, a));
}

/// x = f(x)
template <activation_kind F>
BL_KERNEL activate_kernel(float* x, std::size_t count) {
  for_each_element(count, [=](std::size_t i) {
    const float v = x[i];
    if (F == activation_kind::relu) x[i] = v <= 0.f ? 0.f : v;
    if (F == activation_kind::silu) x[i] = v / (1.f + expf(-v));
    if (F == activation_kind::gelu_tanh) x[i] = v / (1.f + gelu_exp(v));
  });
}

/// d *= f'(x). With s the logistic function, 1 - s is e s: where s is nearly 1 it keeps its digits,
/// and e is kept finite, where s is 0.
template <activation_kind F>
BL_KERNEL activate_gradient_kernel(const float* x, float* d, std::size_t count) {
  for_each_element(count, [=](std::size_t i) {
    const float v = x[i];
    if (F == activation_kind::relu) d[i] = v <= 0.f ? 0.f : d[i];
    if (F == activation_kind::silu) {
      const float e = fminf(expf(-v), 1e37f), s = 1.f / (1.f + e);
      d[i] *= s * fmaf(v, e * s, 1.f);
    }
    if (F == activation_kind::gelu_tanh) {
      const float e = fminf(gelu_exp(v), 1e37f), s = 1.f / (1.f + e);
      d[i] *= s * fmaf(v * gelu_slope(v), e * s, 1.f);
    }
  });
}

/// gate = silu(gate) * up
template <class = void>
BL_KERNEL silu_multiply_kernel(float* gate, const float* up, std::size_t count) {
  for_each_element(count, [=](std::size_t i) {
    const float x = gate[i];
    gate[i] = x / (1.f + expf(-x)) * up[i];
  });
}

/// gate and up become their gradients; d is that of silu(gate) * up.
template <class = void>
BL_KERNEL silu_multiply_gradient_kernel(const float* d, float* gate, float* up, std::size_t count) {
  for_each_element(count, [=](std::size_t i) {
    const float x = gate[i], e = fminf(expf(-x), 1e37f), s = 1.f / (1.f + e);
    gate[i] = d[i] * up[i] * (s * fmaf(x, e * s, 1.f));
    up[i] = d[i] * (x * s);
  });
}

/// to += x^2
template <class = void>
BL_KERNEL add_squares_kernel(const float* x, float* to, std::size_t count) {
  for_each_element(count, [=](std::size_t i) { to[i] += x[i] * x[i]; });
}

/// First key that a query sees.
__device__ inline int first_key(int query, int window) {
  return window > 0 && query + 1 > window ? query + 1 - window : 0;
}

/// Rows of products of queries and keys become their softmax, zeros where a query does not see a
/// key. Block (x, y) has query x of head y; scores [heads, tokens, tokens].
template <class = void>
BL_KERNEL softmax_kernel(float* scores, int tokens, int window, float scale) {
  const int query = static_cast<int>(blockIdx.x), begin = first_key(query, window), end = query + 1;
  float* row = scores + (static_cast<std::size_t>(blockIdx.y) * static_cast<std::size_t>(tokens) +
                         blockIdx.x) *
                            static_cast<std::size_t>(tokens);
  const int thread = static_cast<int>(threadIdx.x);
  float max = row[begin];
  for (int i = begin + thread; i < end; i += row_threads) max = fmaxf(max, row[i]);
  max = block_max(max);
  double sum = 0;
  for (int i = begin + thread; i < end; i += row_threads) {
    const float e = expf((row[i] - max) * scale);
    row[i] = e;
    sum += static_cast<double>(e);
  }
  const auto inverse = static_cast<float>(1 / block_sum(sum));
  for (int i = thread; i < tokens; i += row_threads)
    row[i] = i >= begin && i < end ? row[i] * inverse : 0.f;
}

/// `d`, the gradient of a softmax `p`, becomes that of what it was made from. Blocks as above;
/// `out` and `d_out` are attention's result and its gradient, [tokens, stride], at the first head.
template <class = void>
BL_KERNEL softmax_gradient_kernel(const float* p, float* d, const float* out, const float* d_out,
                                  int stride, int head_dim, int tokens, int window, float scale) {
  const int query = static_cast<int>(blockIdx.x), begin = first_key(query, window), end = query + 1;
  const std::size_t row =
      (static_cast<std::size_t>(blockIdx.y) * static_cast<std::size_t>(tokens) + blockIdx.x) *
      static_cast<std::size_t>(tokens);
  const std::size_t at = static_cast<std::size_t>(query) * static_cast<std::size_t>(stride) +
                         static_cast<std::size_t>(blockIdx.y) * static_cast<std::size_t>(head_dim);
  p += row;
  d += row;
  out += at;
  d_out += at;
  // sum over keys of softmax * its gradient = attention's result * its gradient
  const auto level = static_cast<float>(row_sum(head_dim, [=](int i) {
    return static_cast<double>(out[i]) * static_cast<double>(d_out[i]);
  }));
  for (int i = static_cast<int>(threadIdx.x); i < tokens; i += row_threads)
    d[i] = i >= begin && i < end ? p[i] * (d[i] - level) * scale : 0.f;
}

/// losses[row] = -log softmax(row)[target]; the row becomes the gradient of `scale` times that. A
/// block per row.
template <class = void>
BL_KERNEL loss_kernel(float* logits, const int* targets, double* losses, int cols, double scale) {
  logits = row_of(logits, cols);
  const int target = targets[blockIdx.x], thread = static_cast<int>(threadIdx.x);
  float max = logits[0];
  for (int i = thread; i < cols; i += row_threads) max = fmaxf(max, logits[i]);
  max = block_max(max);
  const double reached = static_cast<double>(logits[target]) - static_cast<double>(max);
  __syncthreads();  // the target's logit is read
  double others = 0;
  bool bad = false;  // fmaxf drops a NaN
  for (int i = thread; i < cols; i += row_threads) {
    bad = bad || !(logits[i] <= max);
    const float e = expf(logits[i] - max);
    logits[i] = e;
    if (i != target) others += static_cast<double>(e);
  }
  others = block_sum(bad ? nan("") : others);
  // Without the target, exact where p - 1 would not be.
  const double sum = others + ::exp(reached);
  const auto each = static_cast<float>(scale / sum);
  for (int i = thread; i < cols; i += row_threads)
    logits[i] = i == target ? static_cast<float>(-others * scale / sum) : logits[i] * each;
  if (thread == 0) losses[blockIdx.x] = ::log(sum) - reached;
}

}  // namespace detail
}  // namespace llama
