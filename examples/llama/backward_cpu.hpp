// SPDX-License-Identifier: MIT
// The operations of a backward pass on the CPU, in fp32, beside those of the forward pass that they
// inherit. This is what backward.hpp is written over. Nothing depends on the number of threads.
// Tested by tests/llama/backward_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>

#include <llama/attention_backward.hpp>
#include <llama/backend_cpu.hpp>
#include <llama/backward_math.hpp>
#include <llama/backward_products.hpp>
#include <llama/config.hpp>
#include <llama/family.hpp>
#include <llama/kv_cache.hpp>
#include <llama/linear_weight.hpp>
#include <llama/model.hpp>
#include <llama/rope.hpp>
#include <llama/vector_math.hpp>
#include <llama/weights.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace llama {

/// Runs an unquantized model forward and backward from host memory. One call at a time.
class cpu_backward_backend : public cpu_backend {
 public:
  explicit cpu_backward_backend(const llama::model& m, bitladder::thread_pool* pool = nullptr)
      : cpu_backend(m, pool), pool_(pool), rope_(m.config()) {}

  /// A cache for the keys and values of one layer and a sequence of `tokens`.
  cache make_layer_cache(int tokens) const {
    config one = model().config();
    one.layers = 1;
    cache kv(one, tokens);
    kv.reserve(tokens);
    return kv;
  }

  // Told by layerwise_gradients: all weights are where they are needed.
  void begin_layer(int) {}
  void begin_head() {}

  /// x = 0
  void clear(buffer& x) {
    for_each_row(x, [&](int r) { std::fill_n(x.view().row(r), x.cols(), 0.f); });
  }

  /// The mean over all rows of -log softmax(logits)[target], each row's part times `scale` (one by
  /// the number of all rows); `logits` become the gradient of that.
  double loss_gradient(buffer& logits, bitladder::vector_view<const int> targets, double scale) {
    losses_.resize(targets.size());
    for_each_row(logits, [&](int r) {
      const auto i = static_cast<std::size_t>(r);
      losses_[i] =
          run<loss_row>(isa_, logits.view().row(r), static_cast<std::size_t>(logits.cols()),
                        static_cast<std::size_t>(targets[i]), scale);
    });
    double sum = 0;
    for (double l : losses_) sum += l;
    return sum * scale;
  }

  /// x = or += d W, W the rows [first, first + d.cols()) of the weight.
  void input_gradient(const linear_weight& w, int first, const buffer& d, buffer& x, bool add) {
    if (!add) x.resize(d.rows(), w.cols);
    switch (w.dense.type) {
      case bitladder::dtype::f16: return input_gradient_as<bitladder::fp16_t>(w, first, d, x, add);
      case bitladder::dtype::bf16: return input_gradient_as<bitladder::bf16_t>(w, first, d, x, add);
      default: return input_gradient_as<float>(w, first, d, x, add);
    }
  }

  /// Rows [first, first + d.cols()) of `sums` += the squares of d^T x, which is the gradient of the
  /// weight of a linear that was given x.
  void add_squares(const buffer& d, const buffer& x, buffer& sums, int first) {
    const auto to = sums.view();
    product(d.cols(), x.cols(), d.rows(), transposed(d), plain(x), room_, pool_, isa_,
            [=](int row, int col, const float* values, int count) {
              float* at = to.row(first + row) + col;
              for (int i = 0; i < count; ++i) at[i] += values[i] * values[i];
            });
  }

  /// `d`, the gradient of a norm's result, becomes that of its x.
  void norm_gradient(const buffer& x, const norm_weights<std::vector<float>>& w, buffer& d) {
    const config& c = model().config();
    for_each_row(x, [&](int r) {
      const auto count = w.weight.size();
      if (c.family->norms == norm_kind::rms)
        rms_norm_gradient_row::run(x.view().row(r), w.weight.data(), d.view().row(r), count,
                                   c.norm_epsilon);
      else
        layer_norm_gradient_row::run(x.view().row(r), w.weight.data(), d.view().row(r), count,
                                     c.norm_epsilon);
    });
  }

  /// `d`, the gradient of what rope turned (row r at position r), becomes that of what it was
  /// given.
  void rope_gradient(buffer& d) {
    rope_.reserve(d.rows());
    const int head_dim = model().config().head_dim;
    for_each_row(d, [&](int r) {
      for (int column = 0; column < d.cols(); column += head_dim)
        run<rope_gradient_head>(isa_, d.view().row(r) + column, rope_.cosines(r), rope_.sines(r),
                                static_cast<std::size_t>(rope_.pairs()));
    });
  }

  /// From the gradient `d` of attention's result `out` to those of its queries, keys and values.
  void attention_gradient(const buffer& query, const buffer& key, const buffer& value,
                          const buffer& out, int window, const buffer& d, buffer& d_query,
                          buffer& d_key, buffer& d_value) {
    d_query.resize(query.rows(), query.cols());
    d_key.resize(key.rows(), key.cols());
    d_value.resize(value.rows(), value.cols());
    const attention_record record{
        query.view(), key.view(), value.view(), out.view(), model().config().head_dim, window};
    attention_backward(record, d.view(), d_query.view(), d_key.view(), d_value.view(),
                       attention_room_, pool_, isa_);
  }

  /// `gate` and `up`, as silu_multiply was given them, become their gradients; `d` is that of its
  /// result.
  void silu_multiply_gradient(const buffer& d, buffer& gate, buffer& up) {
    for_each_row(d, [&](int r) {
      run<silu_product_gradient>(isa_, d.view().row(r), gate.view().row(r), up.view().row(r),
                                 static_cast<std::size_t>(d.cols()));
    });
  }

  /// d *= f'(x)
  void activate_gradient(activation_kind f, const buffer& x, buffer& d) {
    const auto count = static_cast<std::size_t>(x.cols());
    for_each_row(x, [&](int r) {
      const float* from = x.view().row(r);
      float* to = d.view().row(r);
      switch (f) {
        case activation_kind::silu: run<silu_gradient_row>(isa_, from, to, count); break;
        case activation_kind::relu: run<relu_gradient_row>(isa_, from, to, count); break;
        case activation_kind::gelu_tanh: run<gelu_tanh_gradient_row>(isa_, from, to, count); break;
      }
    });
  }

 private:
  static factor<float> plain(const buffer& x) { return {x.view().data(), x.view().stride()}; }
  static factor<float> transposed(const buffer& x) {
    return {x.view().data(), x.view().stride(), true};
  }

  template <class T>
  void input_gradient_as(const linear_weight& w, int first, const buffer& d, buffer& x, bool add) {
    // A head has as many rows as the vocabulary: some at a time, so that its copy stays short.
    constexpr int most_rows = 4096;
    const auto to = x.view();
    for (int begin = 0; begin < d.cols(); begin += most_rows, add = true) {
      const int rows = std::min(most_rows, d.cols() - begin);
      const auto weights = w.dense.view<T>();
      const factor<float> left{d.view().data() + begin, d.view().stride()};
      const factor<T> right{weights.row(first + begin), weights.stride()};
      product(d.rows(), w.cols, rows, left, right, room_, pool_, isa_,
              [=](int row, int col, const float* values, int count) {
                float* at = to.row(row) + col;
                if (!add) return static_cast<void>(std::copy_n(values, count, at));
                for (int i = 0; i < count; ++i) at[i] += values[i];
              });
    }
  }

  /// Rows in chunks large enough to be worth a thread's waking.
  template <class F>
  void for_each_row(const buffer& x, F&& f) {
    constexpr int elements_per_chunk = 1 << 12;
    const int grain = std::max(1, elements_per_chunk / std::max(1, x.cols()));
    bitladder::parallel_for(pool_, x.rows(), grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) f(static_cast<int>(r));
    });
  }

  bitladder::thread_pool* pool_;
  rope_table rope_;
  product_room room_;
  attention_backward_room attention_room_;
  std::vector<double> losses_;
  isa isa_ = bitladder::cpu::best_isa();
};

}  // namespace llama
