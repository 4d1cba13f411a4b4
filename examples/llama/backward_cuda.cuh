// SPDX-License-Identifier: MIT
// The operations of a forward and backward pass on a card, in fp32. This is what backward.hpp and
// layerwise_gradients.hpp are written over, as backward_cpu.hpp is. The model stays in host memory:
// a layer's weights are copied when they are first used and given up with the next layer. Tested by
// tests/llama/cuda/backward_test.cu.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/cuda/runtime.cuh>

#include <llama/backend_cpu.hpp>
#include <llama/backward_kernels.cuh>
#include <llama/config.hpp>
#include <llama/cuda_matrix.cuh>
#include <llama/family.hpp>
#include <llama/linear_weight.hpp>
#include <llama/model.hpp>
#include <llama/products_cuda.cuh>
#include <llama/rope.hpp>
#include <llama/weights.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cublas_v2.h>
#include <deque>
#include <numeric>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llama {
namespace detail {

/// Widens `count` stored numbers.
template <class T>
BL_KERNEL widen_kernel(const T* from, float* to, std::size_t count) {
  for_each_element(count, [=](std::size_t i) { to[i] = bitladder::to_float(from[i]); });
}

}  // namespace detail

/// Runs an unquantized model on the current device. One call at a time.
class cuda_backward_backend {
 public:
  using buffer = cuda_matrix;
  /// Keys and values of one sequence and layer.
  struct cache {
    buffer key, value;
  };

  /// @param pool reads rows of the embedding
  explicit cuda_backward_backend(const llama::model& m, bitladder::thread_pool* pool = nullptr,
                                 cudaStream_t stream = nullptr)
      : host_(m, pool), stream_(stream), products_(stream), rope_(m.config()) {}

  const llama::model& model() const { return host_.model(); }
  const host_weights& weights() const { return host_.weights(); }
  cache make_layer_cache(int) const { return {}; }

  // Told by layerwise_gradients: what was used before is not needed any more.
  void begin_layer(int index) {
    if (index == layer_) return;
    layer_ = index;
    drop_weights();
  }
  void begin_head() {
    layer_ = -1;
    drop_weights();
  }

  /// x = 0
  void clear(buffer& x) { check(cudaMemsetAsync(x.data(), 0, x.size() * sizeof(float), stream_)); }

  /// The contents, in host memory, until the next call.
  bitladder::matrix_view<const float> read(const buffer& x) {
    read_.resize(x.size());
    check(cudaMemcpyAsync(read_.data(), x.data(), x.size() * sizeof(float), cudaMemcpyDeviceToHost,
                          stream_));
    check(cudaStreamSynchronize(stream_));
    return {read_.data(), x.rows(), x.cols()};
  }

  // ------------------------------------------------------------------------------------- forward

  void embed(const dense_matrix& table, bitladder::vector_view<const int> tokens, buffer& out) {
    host_.embed(table, tokens, host_rows_);
    const auto rows = host_rows_.view();
    out.resize(rows.rows(), rows.cols());
    check(cudaMemcpyAsync(out.data(), rows.data(), out.size() * sizeof(float),
                          cudaMemcpyHostToDevice, stream_));
    check(cudaStreamSynchronize(stream_));  // host_rows_ is used again
  }

  void add_positions(const dense_matrix& table, int first, buffer& x) {
    std::vector<int> positions(static_cast<std::size_t>(x.rows()));
    std::iota(positions.begin(), positions.end(), first);
    embed(table, positions, positions_);
    add(positions_, x);
  }

  /// y = W x + bias; there is one precision.
  void linear(const linear_weight& w, int, const buffer& x, buffer& y) {
    products_.forward(on_card(w), x, y);
    if (w.bias.empty()) return;
    detail::add_rows_kernel<true>
        <<<blocks(y), detail::row_threads, 0, stream_>>>(on_card(w.bias), y.data(), y.cols());
    launched();
  }

  void norm(const buffer& x, const norm_weights<std::vector<float>>& w, buffer& y) {
    y.resize(x.rows(), x.cols());
    const float* weight = on_card(w.weight);
    const float* bias = w.bias.empty() ? nullptr : on_card(w.bias);
    const float epsilon = shape().norm_epsilon;
    if (shape().family->norms == norm_kind::rms)
      detail::norm_kernel<norm_kind::rms><<<blocks(x), detail::row_threads, 0, stream_>>>(
          x.data(), weight, bias, y.data(), x.cols(), epsilon);
    else
      detail::norm_kernel<norm_kind::layer><<<blocks(x), detail::row_threads, 0, stream_>>>(
          x.data(), weight, bias, y.data(), x.cols(), epsilon);
    launched();
  }

  /// Row r is at position r.
  void rope(buffer& x, int) { turn<false>(x); }

  void store(cache& kv, int, int, const buffer& keys, const buffer& values) {
    kv.key.resize(keys.rows(), keys.cols());
    kv.value.resize(values.rows(), values.cols());
    copy_rows(keys, 0, keys.rows(), kv.key, 0);
    copy_rows(values, 0, values.rows(), kv.value, 0);
  }

  void attention(const cache& kv, int, const buffer& query, int window, buffer& out) {
    out.resize(query.rows(), query.cols());
    for_each_part(query, kv.key, [&](const heads& h) {
      softmax(h, query, kv.key, window);
      for (int i = 0; i < h.group; ++i)
        multiply(h, CUBLAS_OP_N, CUBLAS_OP_N, h.dim, h.tokens, h.tokens, h.kv(kv.value),
                 h.scores(scores_, i), 0, out, h.query(out, i));
    });
  }

  void silu_multiply(buffer& gate, const buffer& up) {
    detail::silu_multiply_kernel<>
        <<<blocks_for(gate.size()), 256, 0, stream_>>>(gate.data(), up.data(), gate.size());
    launched();
  }

  void activate(activation_kind f, buffer& x) {
    const unsigned grid = blocks_for(x.size());
    switch (f) {
      case activation_kind::silu:
        detail::activate_kernel<activation_kind::silu>
            <<<grid, 256, 0, stream_>>>(x.data(), x.size());
        break;
      case activation_kind::relu:
        detail::activate_kernel<activation_kind::relu>
            <<<grid, 256, 0, stream_>>>(x.data(), x.size());
        break;
      case activation_kind::gelu_tanh:
        detail::activate_kernel<activation_kind::gelu_tanh>
            <<<grid, 256, 0, stream_>>>(x.data(), x.size());
        break;
    }
    launched();
  }

  void add(const buffer& x, buffer& y) {
    detail::add_rows_kernel<false>
        <<<blocks(y), detail::row_threads, 0, stream_>>>(x.data(), y.data(), y.cols());
    launched();
  }

  void copy_rows(const buffer& from, int first, int count, buffer& to, int at) {
    check(cudaMemcpyAsync(
        to.row(at), from.row(first),
        static_cast<std::size_t>(count) * static_cast<std::size_t>(from.cols()) * sizeof(float),
        cudaMemcpyDeviceToDevice, stream_));
  }

  void copy_columns(const buffer& from, int first, int count, buffer& to) {
    to.resize(from.rows(), count);
    const std::size_t width = static_cast<std::size_t>(count) * sizeof(float);
    check(cudaMemcpy2DAsync(to.data(), width, from.data() + first,
                            static_cast<std::size_t>(from.cols()) * sizeof(float), width,
                            static_cast<std::size_t>(from.rows()), cudaMemcpyDeviceToDevice,
                            stream_));
  }

  // ------------------------------------------------------------------------------------ backward

  double loss_gradient(buffer& logits, bitladder::vector_view<const int> targets, double scale) {
    reserve(targets_, targets.size());
    reserve(losses_, targets.size());
    bitladder::check(targets_.upload(targets.data(), targets.size(), stream_));
    detail::loss_kernel<><<<blocks(logits), detail::row_threads, 0, stream_>>>(
        logits.data(), targets_.data(), losses_.data(), logits.cols(), scale);
    launched();
    std::vector<double> losses(targets.size());
    bitladder::check(losses_.download(losses.data(), losses.size(), stream_));
    check(cudaStreamSynchronize(stream_));
    return std::accumulate(losses.begin(), losses.end(), 0.0) * scale;
  }

  void input_gradient(const linear_weight& w, int first, const buffer& d, buffer& x, bool add_to) {
    products_.input_gradient(on_card(w), first, d, x, add_to);
  }

  void add_squares(const buffer& d, const buffer& x, buffer& sums, int first) {
    constexpr int most = 1 << 26;  // elements of a gradient that are held
    const int rows = std::max(1, most / x.cols());
    for (int begin = 0; begin < d.cols(); begin += rows) {
      const int count = std::min(rows, d.cols() - begin);
      const float* gradient = products_.weight_gradient(d, x, begin, count, begin == 0);
      const std::size_t size = static_cast<std::size_t>(count) * static_cast<std::size_t>(x.cols());
      detail::add_squares_kernel<>
          <<<blocks_for(size), 256, 0, stream_>>>(gradient, sums.row(first + begin), size);
      launched();
    }
  }

  void norm_gradient(const buffer& x, const norm_weights<std::vector<float>>& w, buffer& d) {
    const float* weight = on_card(w.weight);
    const float epsilon = shape().norm_epsilon;
    if (shape().family->norms == norm_kind::rms)
      detail::norm_gradient_kernel<norm_kind::rms><<<blocks(x), detail::row_threads, 0, stream_>>>(
          x.data(), weight, d.data(), x.cols(), epsilon);
    else
      detail::norm_gradient_kernel<norm_kind::layer>
          <<<blocks(x), detail::row_threads, 0, stream_>>>(x.data(), weight, d.data(), x.cols(),
                                                           epsilon);
    launched();
  }

  void rope_gradient(buffer& d) { turn<true>(d); }

  void attention_gradient(const buffer& query, const buffer& key, const buffer& value,
                          const buffer& out, int window, const buffer& d, buffer& d_query,
                          buffer& d_key, buffer& d_value) {
    d_query.resize(query.rows(), query.cols());
    d_key.resize(key.rows(), key.cols());
    d_value.resize(value.rows(), value.cols());
    for_each_part(query, key, [&](const heads& h) {
      softmax(h, query, key, window);
      d_scores_.resize(h.count() * h.tokens, h.tokens);
      for (int i = 0; i < h.group; ++i) {
        // Heads that share keys and values add to their gradients in order.
        const float beta = i > 0 ? 1.f : 0.f;
        multiply(h, CUBLAS_OP_N, CUBLAS_OP_T, h.dim, h.tokens, h.tokens, h.query(d, i),
                 h.scores(scores_, i), beta, d_value, h.kv(d_value));
        multiply(h, CUBLAS_OP_T, CUBLAS_OP_N, h.tokens, h.tokens, h.dim, h.kv(value), h.query(d, i),
                 0, d_scores_, h.scores(d_scores_, i));
      }
      detail::softmax_gradient_kernel<><<<h.grid(), detail::row_threads, 0, stream_>>>(
          scores_.data(), d_scores_.data(), h.first_of(out), h.first_of(d), query.cols(), h.dim,
          h.tokens, window, scale());
      launched();
      for (int i = 0; i < h.group; ++i) {
        const float beta = i > 0 ? 1.f : 0.f;
        multiply(h, CUBLAS_OP_N, CUBLAS_OP_N, h.dim, h.tokens, h.tokens, h.kv(key),
                 h.scores(d_scores_, i), 0, d_query, h.query(d_query, i));
        multiply(h, CUBLAS_OP_N, CUBLAS_OP_T, h.dim, h.tokens, h.tokens, h.query(query, i),
                 h.scores(d_scores_, i), beta, d_key, h.kv(d_key));
      }
    });
  }

  void silu_multiply_gradient(const buffer& d, buffer& gate, buffer& up) {
    detail::silu_multiply_gradient_kernel<>
        <<<blocks_for(d.size()), 256, 0, stream_>>>(d.data(), gate.data(), up.data(), d.size());
    launched();
  }

  void activate_gradient(activation_kind f, const buffer& x, buffer& d) {
    const unsigned grid = blocks_for(x.size());
    switch (f) {
      case activation_kind::silu:
        detail::activate_gradient_kernel<activation_kind::silu>
            <<<grid, 256, 0, stream_>>>(x.data(), d.data(), x.size());
        break;
      case activation_kind::relu:
        detail::activate_gradient_kernel<activation_kind::relu>
            <<<grid, 256, 0, stream_>>>(x.data(), d.data(), x.size());
        break;
      case activation_kind::gelu_tanh:
        detail::activate_gradient_kernel<activation_kind::gelu_tanh>
            <<<grid, 256, 0, stream_>>>(x.data(), d.data(), x.size());
        break;
    }
    launched();
  }

 private:
  /// Matrices at equal distances in memory, one for each of some heads, with rows `ld` apart.
  struct matrices {
    const float* data;
    int ld;
    long long stride;
  };

  /// Query heads of kv heads [first, first + kv_heads), `group` for each. A product is done for the
  /// i-th of every group together.
  struct heads {
    int first, kv_heads, group, dim, tokens;

    int count() const { return kv_heads * group; }
    dim3 grid() const { return {static_cast<unsigned>(tokens), static_cast<unsigned>(count())}; }
    /// Where the first of them is in [tokens, heads * dim].
    const float* first_of(const buffer& x) const { return x.data() + first * group * dim; }
    matrices query(const buffer& x, int i) const {
      return {first_of(x) + i * dim, x.cols(), static_cast<long long>(group) * dim};
    }
    /// Of [tokens, kv heads * dim].
    matrices kv(const buffer& x) const { return {x.data() + first * dim, x.cols(), dim}; }
    /// Of [count(), tokens, tokens].
    matrices scores(const buffer& x, int i) const {
      const long long size = static_cast<long long>(tokens) * tokens;
      return {x.data() + i * size, tokens, group * size};
    }
  };

  template <class F>
  void for_each_part(const buffer& query, const buffer& key, F&& f) {
    constexpr std::int64_t most = 1 << 26;  // scores that are held
    const int dim = shape().head_dim, kv_heads = key.cols() / dim;
    const int group = query.cols() / key.cols(), tokens = query.rows();
    const std::int64_t each = static_cast<std::int64_t>(tokens) * tokens * group;
    const int at_once = static_cast<int>(std::clamp<std::int64_t>(most / each, 1, kv_heads));
    for (int first = 0; first < kv_heads; first += at_once)
      f(heads{first, std::min(at_once, kv_heads - first), group, dim, tokens});
  }

  float scale() const {
    return static_cast<float>(1 / std::sqrt(static_cast<double>(shape().head_dim)));
  }

  /// scores_ = the softmax of these heads.
  void softmax(const heads& h, const buffer& query, const buffer& key, int window) {
    scores_.resize(h.count() * h.tokens, h.tokens);
    for (int i = 0; i < h.group; ++i)
      multiply(h, CUBLAS_OP_T, CUBLAS_OP_N, h.tokens, h.tokens, h.dim, h.kv(key), h.query(query, i),
               0, scores_, h.scores(scores_, i));
    detail::softmax_kernel<>
        <<<h.grid(), detail::row_threads, 0, stream_>>>(scores_.data(), h.tokens, window, scale());
    launched();
  }

  /// Of floats in columns, for each kv head: c = a b + beta c, c [m, n], a part of `to`.
  void multiply(const heads& h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                const matrices& a, const matrices& b, float beta, buffer& to, const matrices& c) {
    const float one = 1;
    check_cublas(cublasGemmStridedBatchedEx(
        products_.handle(), op_a, op_b, m, n, k, &one, a.data, CUDA_R_32F, a.ld, a.stride, b.data,
        CUDA_R_32F, b.ld, b.stride, &beta, to.data() + (c.data - to.data()), CUDA_R_32F, c.ld,
        c.stride, h.kv_heads, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  }

  template <bool Back>
  void turn(buffer& x) {
    if (rope_.positions() < x.rows()) {
      rope_.reserve(x.rows());
      const std::size_t count =
          static_cast<std::size_t>(x.rows()) * static_cast<std::size_t>(rope_.pairs());
      reserve(cosines_, count);
      reserve(sines_, count);
      bitladder::check(cosines_.upload(rope_.cosines(0), count, stream_));
      bitladder::check(sines_.upload(rope_.sines(0), count, stream_));
    }
    detail::rope_kernel<Back><<<blocks(x), detail::row_threads, 0, stream_>>>(
        x.data(), x.cols(), shape().head_dim, rope_.pairs(), cosines_.data(), sines_.data());
    launched();
  }

  // ------------------------------------------------------------------------------------- weights

  const cuda_weight& on_card(const linear_weight& w) {
    const auto there = weights_.find(&w);
    if (there != weights_.end()) return *there->second;
    const std::size_t count = static_cast<std::size_t>(w.rows) * static_cast<std::size_t>(w.cols);
    cuda_weight& to = place_for(count);
    const std::size_t bytes = w.dense.bytes();
    reserve(raw_, bytes);
    bitladder::check(raw_.upload(static_cast<const unsigned char*>(w.dense.data), bytes, stream_));
    const unsigned grid = blocks_for(count);
    const float* wide = wide_.data();
    switch (w.dense.type) {
      case bitladder::dtype::f16:
        reserve(wide_, count);
        detail::widen_kernel<<<grid, 256, 0, stream_>>>(
            reinterpret_cast<const bitladder::fp16_t*>(raw_.data()), wide_.data(), count);
        wide = wide_.data();
        break;
      case bitladder::dtype::bf16:
        reserve(wide_, count);
        detail::widen_kernel<<<grid, 256, 0, stream_>>>(
            reinterpret_cast<const bitladder::bf16_t*>(raw_.data()), wide_.data(), count);
        wide = wide_.data();
        break;
      default: wide = reinterpret_cast<const float*>(raw_.data()); break;
    }
    launched();
    products_.split_weight(wide, w.dense.type != bitladder::dtype::f32, w.rows, w.cols, to);
    weights_.emplace(&w, &to);
    return to;
  }

  /// The smallest free one that has room, or a new one.
  cuda_weight& place_for(std::size_t count) {
    auto best = free_.end();
    for (auto i = free_.begin(); i != free_.end(); ++i)
      if ((*i)->high.size() >= count &&
          (best == free_.end() || (*i)->high.size() < (*best)->high.size()))
        best = i;
    if (best == free_.end()) {
      store_.emplace_back();
      return store_.back();
    }
    cuda_weight& found = **best;
    free_.erase(best);
    return found;
  }

  /// Norms and biases, which stay.
  const float* on_card(const std::vector<float>& v) {
    bitladder::cuda::buffer<float>& b = vectors_[&v];
    if (b.empty()) {
      reserve(b, v.size());
      bitladder::check(b.upload(v.data(), v.size(), stream_));
    }
    return b.data();
  }

  /// Their memory serves for those that come.
  void drop_weights() {
    for (const auto& w : weights_) free_.push_back(w.second);
    weights_.clear();
  }

  const config& shape() const { return model().config(); }
  static unsigned blocks(const buffer& x) { return static_cast<unsigned>(x.rows()); }
  static void check(cudaError_t e) { bitladder::check(bitladder::cuda::call_status(e)); }
  static void launched() { bitladder::check(bitladder::cuda::launch_status()); }

  cpu_backend host_;
  cudaStream_t stream_;
  cuda_products products_;
  rope_table rope_;
  int layer_ = -1;
  std::deque<cuda_weight> store_;
  std::vector<cuda_weight*> free_;
  std::unordered_map<const linear_weight*, cuda_weight*> weights_;
  std::unordered_map<const std::vector<float>*, bitladder::cuda::buffer<float>> vectors_;
  bitladder::cuda::buffer<unsigned char> raw_;
  bitladder::cuda::buffer<float> wide_, cosines_, sines_;
  bitladder::cuda::buffer<int> targets_;
  bitladder::cuda::buffer<double> losses_;
  buffer positions_, scores_, d_scores_;
  cpu_buffer host_rows_;
  std::vector<float> read_;
};

}  // namespace llama
