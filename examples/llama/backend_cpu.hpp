// SPDX-License-Identifier: MIT
// The operations of a forward pass on the CPU, in fp32. A backend is what forward.hpp is written
// over: its types `buffer` and `cache`, `weights()`, and the operations below. Every row of a
// result is the same bits whatever the number of rows or threads, unless a BLAS is asked for.
// Tested by tests/llama/forward_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cpu/isa.hpp>

#include <llama/attention.hpp>
#include <llama/family.hpp>
#include <llama/kv_cache.hpp>
#include <llama/layer_math.hpp>
#include <llama/model.hpp>
#include <llama/multiply.hpp>
#include <llama/rope.hpp>
#include <llama/vector_math.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace llama {

/// A matrix of fp32 that keeps its memory when it shrinks.
class cpu_buffer {
 public:
  /// Contents are lost.
  void resize(int rows, int cols) {
    rows_ = rows;
    cols_ = cols;
    const std::size_t size = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols);
    if (data_.size() < size) data_.resize(size);
  }
  int rows() const { return rows_; }
  int cols() const { return cols_; }
  bitladder::matrix_view<float> view() { return {data_.data(), rows_, cols_}; }
  bitladder::matrix_view<const float> view() const { return {data_.data(), rows_, cols_}; }

 private:
  std::vector<float> data_;
  int rows_ = 0;
  int cols_ = 0;
};

/// Runs a model from host memory. One call at a time.
class cpu_backend {
 public:
  using buffer = cpu_buffer;
  using cache = kv_cache;
  using kv_view = kv_layer;  ///< what schedules see of it

  /// @param pool shared with the caller, or null to use the calling thread alone
  /// @param order of the sums in linear layers
  /// @throws bitladder::error if it is a BLAS's and there is none
  explicit cpu_backend(const llama::model& m, bitladder::thread_pool* pool = nullptr,
                       summation order = summation::fixed)
      : model_(&m), pool_(pool), order_(order), rope_(m.config()) {
    if (order == summation::blas && !has_blas())
      throw bitladder::error(bitladder::status::invalid_argument,
                             "cpu_backend: sums by a BLAS asked for, but this program was built "
                             "without one (BL_WITH_BLAS)");
  }

  const llama::model& model() const { return *model_; }
  const host_weights& weights() const { return model_->weights(); }
  cache make_cache(int capacity) const { return cache(model_->config(), capacity); }

  /// out = the rows of `table` that `tokens` name.
  void embed(const dense_matrix& table, bitladder::vector_view<const int> tokens, buffer& out) {
    out.resize(static_cast<int>(tokens.size()), table.cols);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      widen(table, tokens[i], out.view().row(static_cast<int>(i)));
  }

  /// x += the rows of `table` from `first` on.
  void add_positions(const dense_matrix& table, int first, buffer& x) {
    position_.resize(1, table.cols);
    for (int r = 0; r < x.rows(); ++r) {
      widen(table, first + r, position_.view().row(0));
      run<add_row>(isa_, position_.view().row(0), x.view().row(r),
                   static_cast<std::size_t>(x.cols()));
    }
  }

  /// y = W x + bias at `bits`; weights without planes are used as they are.
  void linear(const linear_weight& w, int bits, const buffer& x, buffer& y) {
    y.resize(x.rows(), w.rows);
    multiply(w, bits, x.view(), y.view(), pool_, order_);
    if (!w.bias.empty())
      for_rows(y,
               [&](int r) { run<add_row>(isa_, w.bias.data(), y.view().row(r), w.bias.size()); });
  }

  /// y = the norm of the model's family, row by row.
  void norm(const buffer& x, const norm_weights<std::vector<float>>& w, buffer& y) {
    y.resize(x.rows(), x.cols());
    const float epsilon = model_->config().norm_epsilon;
    const std::size_t count = w.weight.size();
    if (model_->config().family->norms == norm_kind::rms)
      for_rows(x, [&](int r) {
        run<rms_norm_row>(isa_, x.view().row(r), w.weight.data(), y.view().row(r), count, epsilon);
      });
    else
      for_rows(x, [&](int r) {
        run<layer_norm_row>(isa_, x.view().row(r), w.weight.data(), w.bias.data(), y.view().row(r),
                            count, epsilon);
      });
  }

  /// Turns every head of every row; row r is at `position` + r.
  void rope(buffer& x, int position) {
    rope_.reserve(position + x.rows());
    const int head_dim = model_->config().head_dim;
    for_rows(x, [&](int r) {
      for (int column = 0; column < x.cols(); column += head_dim)
        run<rope_head>(isa_, x.view().row(r) + column, rope_.cosines(position + r),
                       rope_.sines(position + r), static_cast<std::size_t>(rope_.pairs()));
    });
  }

  /// Keys and values of new positions, the first at `position`.
  void store(cache& kv, int layer, int position, const buffer& keys, const buffer& values) {
    for_rows(keys, [&](int r) {
      kv.store(layer, position + r, keys.view().row(r), values.view().row(r));
    });
  }

  /// @param window positions that a query sees, its own among them; 0: all
  void attention(const cache& kv, int layer, const buffer& queries, int window, buffer& out) {
    out.resize(queries.rows(), queries.cols());
    causal_attention(kv, layer, queries.view(), out.view(), pool_, isa_, window);
  }

  /// gate = silu(gate) * up
  void silu_multiply(buffer& gate, const buffer& up) {
    for_rows(gate, [&](int r) {
      run<silu_product>(isa_, gate.view().row(r), up.view().row(r),
                        static_cast<std::size_t>(gate.cols()));
    });
  }

  /// x = f(x)
  void activate(activation_kind f, buffer& x) {
    const auto count = static_cast<std::size_t>(x.cols());
    for_rows(x, [&](int r) {
      switch (f) {
        case activation_kind::silu: run<silu_row>(isa_, x.view().row(r), count); break;
        case activation_kind::relu: run<relu_row>(isa_, x.view().row(r), count); break;
        case activation_kind::gelu_tanh: run<gelu_tanh_row>(isa_, x.view().row(r), count); break;
      }
    });
  }

  /// y += x
  void add(const buffer& x, buffer& y) {
    for_rows(y, [&](int r) {
      run<add_row>(isa_, x.view().row(r), y.view().row(r), static_cast<std::size_t>(y.cols()));
    });
  }

  /// Copies rows [first, first + count) of `from` to rows `at` and on of `to`.
  void copy_rows(const buffer& from, int first, int count, buffer& to, int at) {
    for (int r = 0; r < count; ++r)
      std::copy_n(from.view().row(first + r), from.cols(), to.view().row(at + r));
  }

  /// to = columns [first, first + count) of `from`
  void copy_columns(const buffer& from, int first, int count, buffer& to) {
    to.resize(from.rows(), count);
    for (int r = 0; r < from.rows(); ++r)
      std::copy_n(from.view().row(r) + first, count, to.view().row(r));
  }

  /// The contents, in host memory, until `x` is next written.
  bitladder::matrix_view<const float> read(const buffer& x) const { return x.view(); }

 private:
  template <class T>
  static void widen_as(const dense_matrix& table, int row, float* to) {
    const T* from = table.view<T>().row(row);
    for (int c = 0; c < table.cols; ++c) to[c] = bitladder::to_float(from[c]);
  }
  static void widen(const dense_matrix& table, int row, float* to) {
    switch (table.type) {
      case bitladder::dtype::f16: return widen_as<bitladder::fp16_t>(table, row, to);
      case bitladder::dtype::bf16: return widen_as<bitladder::bf16_t>(table, row, to);
      default: return widen_as<float>(table, row, to);
    }
  }

  /// Rows in chunks large enough to be worth a thread's waking.
  template <class F>
  void for_rows(const buffer& x, F&& f) {
    constexpr int elements_per_chunk = 1 << 14;
    const int grain = std::max(1, elements_per_chunk / std::max(1, x.cols()));
    bitladder::parallel_for(pool_, x.rows(), grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) f(static_cast<int>(r));
    });
  }

  const llama::model* model_;
  bitladder::thread_pool* pool_;
  summation order_;
  rope_table rope_;
  buffer position_;
  bitladder::cpu::isa isa_ = bitladder::cpu::best_isa();
};

}  // namespace llama
