// SPDX-License-Identifier: MIT
// The backward pass of the mean next-token loss, written once over a backend (backward_cpu.hpp
// names what one offers) and over the description of a family, as forward.hpp is. It is cut into
// steps, a layer each, which need no more than what the layer was given: the rest of it is computed
// again when its turn comes (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost).
// run() takes them for one sample, layerwise_gradients.hpp for many at once. What comes out is the
// square of each gradient of a weight, added to what is there. Tested by
// tests/llama/backward_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>

#include <llama/config.hpp>
#include <llama/family.hpp>
#include <llama/model.hpp>
#include <llama/weights.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llama {

/// Refers to the backend.
template <class Backend>
class backward_pass {
 public:
  using buffer = typename Backend::buffer;
  using weights = std::decay_t<decltype(std::declval<Backend&>().weights())>;
  using linear = std::decay_t<decltype(std::declval<weights>().head)>;
  using layer_type = std::decay_t<decltype(std::declval<weights>().layers[0])>;
  /// Where the squares of a linear's gradients are added, [rows, cols]; linears of layers only.
  using squares = std::unordered_map<const linear*, buffer*>;

  explicit backward_pass(Backend& backend) : backend_(&backend) {}

  /// Runs `tokens`, at least two, all in the vocabulary and, of a model with a table of positions,
  /// no more than one beyond it.
  /// @return the mean loss of all tokens but the first, in nats; if it is not finite, `to` is as
  /// before
  double run(bitladder::vector_view<const int> tokens, const squares& to) {
    inputs_.resize(layers().size() + 1);
    embed(tokens, inputs_[0]);
    for (std::size_t i = 0; i < layers().size(); ++i)
      layer_forward(static_cast<int>(i), inputs_[i], inputs_[i + 1]);
    const double loss = head(tokens, inputs_.back(), d_);
    if (loss - loss != 0) return loss;
    const int lowest = lowest_wanted(to);
    for (int i = static_cast<int>(layers().size()) - 1; i >= lowest; --i)
      layer_backward(i, inputs_[static_cast<std::size_t>(i)], d_, to, i > lowest);
    return loss;
  }

  // ------------------------------------------------------------------------------ the steps of it

  /// The first layer with a linear that is asked for; the number of layers if there is none.
  int lowest_wanted(const squares& to) const {
    int i = 0;
    for (const layer_type& layer : layers()) {
      bool wanted = false;
      layer.for_each_linear([&](const linear& w) { wanted = wanted || to.count(&w) != 0; });
      if (wanted) break;
      ++i;
    }
    return i;
  }

  /// x = what the first layer is given for all tokens but the last, which is only foretold.
  void embed(bitladder::vector_view<const int> tokens, buffer& x) {
    Backend& b = *backend_;
    const weights& w = b.weights();
    b.embed(w.embedding, {tokens.data(), tokens.size() - 1}, x);
    if (projected()) {
      b.linear(w.project_in, unquantized, x, update_);
      std::swap(update_, x);
    }
    if (!shape().family->rotary()) b.add_positions(w.positions, shape().family->position_offset, x);
  }

  /// x = what layer `index` gives for what it is given.
  void layer_forward(int index, const buffer& given, buffer& x) {
    Backend& b = *backend_;
    const layer_type& layer = layers()[static_cast<std::size_t>(index)];
    typename Backend::cache& cache = cache_for(given.rows());
    copy(given, x);
    switch (shape().residual) {
      case residual_form::pre_norm:
        b.norm(x, layer.attention_norm, normed_);
        attend(layer, index, normed_, cache, true);
        b.add(update_, x);
        b.norm(x, layer.mlp_norm, normed_);
        feed_forward(layer, normed_, true);
        b.add(update_, x);
        break;
      case residual_form::post_norm:
        attend(layer, index, x, cache, true);
        b.add(update_, x);
        b.norm(x, layer.attention_norm, normed_);
        feed_forward(layer, normed_, true);
        b.add(update_, normed_);
        b.norm(normed_, layer.mlp_norm, x);
        break;
      case residual_form::parallel:
        b.norm(x, layer.attention_norm, normed_);
        attend(layer, index, normed_, cache, true);
        b.add(update_, x);
        feed_forward(layer, normed_, true);
        b.add(update_, x);
        break;
    }
  }

  /// @param last what the last layer gives; `d` becomes the gradient by it
  /// @return the mean loss
  double head(bitladder::vector_view<const int> tokens, const buffer& last, buffer& d) {
    Backend& b = *backend_;
    const weights& w = b.weights();
    const bool normed = shape().residual != residual_form::post_norm;
    if (normed)
      b.norm(last, w.norm, hidden_);
    else
      copy(last, hidden_);
    if (projected()) {
      b.linear(w.project_out, unquantized, hidden_, update_);
      std::swap(update_, hidden_);
    }
    const int rows = hidden_.rows(),
              most = std::max(least_tokens, most_logits / shape().vocabulary);
    const double scale = 1 / static_cast<double>(rows);
    double loss = 0;
    d.resize(rows, hidden_.cols());
    for (int begin = 0; begin < rows; begin += most) {
      const int count = std::min(most, rows - begin);
      part_.resize(count, hidden_.cols());
      b.copy_rows(hidden_, begin, count, part_, 0);
      b.linear(w.head, unquantized, part_, logits_);
      loss += b.loss_gradient(logits_, {tokens.data() + 1 + begin, static_cast<std::size_t>(count)},
                              scale);
      b.input_gradient(w.head, 0, logits_, part_, false);
      b.copy_rows(part_, 0, count, d, begin);
    }
    if (projected()) {
      b.input_gradient(w.project_out, 0, d, d_input_, false);
      std::swap(d, d_input_);
    }
    if (normed) b.norm_gradient(last, w.norm, d);
    return loss;
  }

  /// Adds the squares of the gradients of layer `index`.
  /// @param x what the layer is given; `d`, the gradient of what it gives, becomes that of x if
  /// `input` says so, else anything
  void layer_backward(int index, const buffer& x, buffer& d, const squares& to, bool input) {
    Backend& b = *backend_;
    const layer_type& layer = layers()[static_cast<std::size_t>(index)];
    typename Backend::cache& cache = cache_for(x.rows());
    to_ = &to;
    switch (shape().residual) {
      case residual_form::pre_norm:
        b.norm(x, layer.attention_norm, normed_);
        attend(layer, index, normed_, cache, true);
        copy(x, middle_);
        b.add(update_, middle_);
        b.norm(middle_, layer.mlp_norm, mlp_normed_);
        feed_forward(layer, mlp_normed_, false);
        feed_forward_backward(layer, mlp_normed_, d, d_input_);
        b.norm_gradient(middle_, layer.mlp_norm, d_input_);
        b.add(d_input_, d);
        attend_backward(layer, index, normed_, d, d_input_, input);
        if (!input) break;
        b.norm_gradient(x, layer.attention_norm, d_input_);
        b.add(d_input_, d);
        break;
      case residual_form::post_norm:
        attend(layer, index, x, cache, true);
        copy(x, middle_);
        b.add(update_, middle_);
        b.norm(middle_, layer.attention_norm, normed_);
        feed_forward(layer, normed_, true);
        b.add(normed_, update_);
        b.norm_gradient(update_, layer.mlp_norm, d);
        feed_forward_backward(layer, normed_, d, d_input_);
        b.add(d_input_, d);
        b.norm_gradient(middle_, layer.attention_norm, d);
        attend_backward(layer, index, x, d, d_input_, input);
        if (input) b.add(d_input_, d);
        break;
      case residual_form::parallel:
        b.norm(x, layer.attention_norm, normed_);
        attend(layer, index, normed_, cache, false);
        feed_forward(layer, normed_, false);
        feed_forward_backward(layer, normed_, d, d_other_);
        attend_backward(layer, index, normed_, d, d_input_, input);
        if (!input) break;
        b.add(d_other_, d_input_);
        b.norm_gradient(x, layer.attention_norm, d_input_);
        b.add(d_input_, d);
        break;
    }
  }

 private:
  // The tokens of a sample go through the head in parts: as many as have so few logits, at least so
  // many that the head's weight is worth being gone through.
  static constexpr int most_logits = 1 << 22, least_tokens = 128;

  const config& shape() const { return backend_->model().config(); }
  const std::vector<layer_type>& layers() const { return backend_->weights().layers; }
  bool projected() const { return shape().embedding_width() != shape().hidden; }

  /// Keys and values of one layer; whatever they were before is written over.
  typename Backend::cache& cache_for(int tokens) {
    if (!cache_ || cache_tokens_ != tokens) cache_.emplace(backend_->make_layer_cache(tokens));
    cache_tokens_ = tokens;
    return *cache_;
  }

  /// Leaves queries, keys, values and their attention, and in `update_`, if that is asked for, the
  /// output of its last linear.
  void attend(const layer_type& layer, int index, const buffer& x, typename Backend::cache& cache,
              bool output) {
    Backend& b = *backend_;
    const config& c = shape();
    if (c.family->layer.query_key_value.empty()) {
      b.linear(layer.query, unquantized, x, query_);
      b.linear(layer.key, unquantized, x, key_);
      b.linear(layer.value, unquantized, x, value_);
    } else {
      b.linear(layer.query_key_value, unquantized, x, fused_);
      b.copy_columns(fused_, 0, c.query_width(), query_);
      b.copy_columns(fused_, c.query_width(), c.kv_width(), key_);
      b.copy_columns(fused_, c.query_width() + c.kv_width(), c.kv_width(), value_);
    }
    if (c.family->rotary()) {
      b.rope(query_, 0);
      b.rope(key_, 0);
    }
    b.store(cache, 0, 0, key_, value_);
    b.attention(cache, 0, query_, c.window_of(index), attended_);
    if (output) b.linear(layer.output, unquantized, attended_, update_);
  }

  /// Leaves gate and up as they were before the activation, what the last linear is given, and, if
  /// that is asked for, its output in `update_`.
  void feed_forward(const layer_type& layer, const buffer& x, bool output) {
    Backend& b = *backend_;
    const config& c = shape();
    if (!c.family->gated()) {
      b.linear(layer.up, unquantized, x, up_);
      copy(up_, active_);
      b.activate(c.activation, active_);
    } else {
      if (c.family->layer.gate_up.empty()) {
        b.linear(layer.gate, unquantized, x, gate_);
        b.linear(layer.up, unquantized, x, up_);
      } else {
        b.linear(layer.gate_up, unquantized, x, fused_);
        b.copy_columns(fused_, 0, c.intermediate, gate_);
        b.copy_columns(fused_, c.intermediate, c.intermediate, up_);
      }
      copy(gate_, active_);
      b.silu_multiply(active_, up_);
    }
    if (output) b.linear(layer.down, unquantized, active_, update_);
  }

  void copy(const buffer& from, buffer& to) {
    to.resize(from.rows(), from.cols());
    backend_->copy_rows(from, 0, from.rows(), to, 0);
  }

  /// x was given, d is the gradient of the result; d_x = that of x, if that is asked for.
  void attend_backward(const layer_type& layer, int index, const buffer& x, const buffer& d,
                       buffer& d_x, bool input) {
    Backend& b = *backend_;
    const config& c = shape();
    linear_backward(layer.output, 0, d, attended_, d_attended_, true);
    b.attention_gradient(query_, key_, value_, attended_, c.window_of(index), d_attended_, d_query_,
                         d_key_, d_value_);
    if (c.family->rotary()) {
      b.rope_gradient(d_query_);
      b.rope_gradient(d_key_);
    }
    const bool fused = !c.family->layer.query_key_value.empty();
    const auto part = [&](const linear& own, int first, const buffer& d_part, bool add) {
      linear_backward(fused ? layer.query_key_value : own, fused ? first : 0, d_part, x, d_x, input,
                      add);
    };
    part(layer.query, 0, d_query_, false);
    part(layer.key, c.query_width(), d_key_, true);
    part(layer.value, c.query_width() + c.kv_width(), d_value_, true);
  }

  /// Likewise. Overwrites gate_, up_ and active_.
  void feed_forward_backward(const layer_type& layer, const buffer& x, const buffer& d,
                             buffer& d_x) {
    Backend& b = *backend_;
    const config& c = shape();
    linear_backward(layer.down, 0, d, active_, d_active_, true);
    if (!c.family->gated()) {
      b.activate_gradient(c.activation, up_, d_active_);
      linear_backward(layer.up, 0, d_active_, x, d_x, true);
      return;
    }
    b.silu_multiply_gradient(d_active_, gate_, up_);
    const bool fused = !c.family->layer.gate_up.empty();
    linear_backward(fused ? layer.gate_up : layer.gate, 0, gate_, x, d_x, true);
    linear_backward(fused ? layer.gate_up : layer.up, fused ? c.intermediate : 0, up_, x, d_x, true,
                    true);
  }

  /// Rows [first, first + d.cols()) of a linear that was given x: adds the squares of its gradient,
  /// and, if that is asked for, d_x = or += the gradient of x.
  void linear_backward(const linear& w, int first, const buffer& d, const buffer& x, buffer& d_x,
                       bool input, bool add = false) {
    const auto wanted = to_->find(&w);
    if (wanted != to_->end()) backend_->add_squares(d, x, *wanted->second, first);
    if (input) backend_->input_gradient(w, first, d, d_x, add);
  }

  Backend* backend_;
  const squares* to_ = nullptr;  // only while layer_backward() runs
  std::vector<buffer> inputs_;   // run()'s: what layer i is given, and what the last gives
  std::optional<typename Backend::cache> cache_;
  int cache_tokens_ = 0;
  buffer normed_, middle_, mlp_normed_, query_, key_, value_, fused_, attended_, update_;
  buffer gate_, up_, active_, hidden_, part_, logits_;
  buffer d_, d_input_, d_other_, d_attended_, d_query_, d_key_, d_value_, d_active_;
};

}  // namespace llama
