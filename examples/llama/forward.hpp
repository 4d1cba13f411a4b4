// SPDX-License-Identifier: MIT
// The forward pass, written once over a backend (backend_cpu.hpp names what one offers) and over
// the description of a family (family.hpp). Precision is an argument of every call, so one sequence
// may change it at any token. A prompt in chunks gives the same bits as token by token. Tested by
// tests/llama/forward_test.cpp and tests/llama/family_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>

#include <llama/family.hpp>
#include <llama/model.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <type_traits>
#include <utility>

namespace llama {

/// One sequence: what it has seen (the kv cache) and room to work in. Refers to the backend.
template <class Backend>
class session {
 public:
  using buffer = typename Backend::buffer;

  /// @param capacity most tokens; 0 takes the model's context
  /// @throws bitladder::error if the model's table of positions is shorter
  explicit session(Backend& backend, int capacity = 0)
      : backend_(&backend), cache_(backend.make_cache(capacity)) {
    const config& c = model().config();
    if (!c.family->rotary() && cache_.capacity() > c.context)
      throw bitladder::error(bitladder::status::invalid_argument,
                             model().folder().string() + ": has a table of " +
                                 std::to_string(c.context) + " positions, " +
                                 std::to_string(cache_.capacity()) + " tokens asked for");
  }

  Backend& backend() { return *backend_; }
  const llama::model& model() const { return backend_->model(); }
  /// Tokens seen.
  int length() const { return cache_.length(); }
  int capacity() const { return cache_.capacity(); }
  /// Keys and values of the last layer, of all tokens seen by the time that it is read.
  typename Backend::kv_view last_layer() const { return {cache_, model().config().layers - 1}; }
  /// Forgets the tokens from `length` on.
  void truncate(int length) { cache_.truncate(length); }

  /// Runs `tokens` after those seen, all weights at `bits`. `logits` then answers for them.
  /// @param bits one of model().precisions()
  /// @throws bitladder::error for a token outside the vocabulary, a precision that is not there, or
  /// more tokens than the capacity; the tokens seen are then as before
  void forward(bitladder::vector_view<const int> tokens, int bits) {
    const int precision = model().checked_precision(bits);
    const int count = static_cast<int>(tokens.size());
    check_tokens(tokens);
    cache_.reserve(count);
    precision_ = precision;
    hidden_.resize(count, model().config().embedding_width());
    const int start = cache_.length();
    try {
      for (int begin = 0; begin < count; begin += chunk) {
        const int rows = std::min(chunk, count - begin);
        run_layers({tokens.data() + begin, static_cast<std::size_t>(rows)});
        backend_->copy_rows(normed_, 0, rows, hidden_, begin);
      }
    } catch (...) {
      cache_.truncate(start);
      hidden_.resize(0, hidden_.cols());
      throw;
    }
  }

  /// Logits of tokens [first, first + count) of the last forward, [count, vocabulary], valid until
  /// the next call.
  bitladder::matrix_view<const float> logits(int first, int count) {
    if (first < 0 || count < 0 || first > hidden_.rows() - count)
      throw bitladder::error(bitladder::status::invalid_argument,
                             "logits: expected tokens of the last forward, which had " +
                                 std::to_string(hidden_.rows()) + ", found " +
                                 std::to_string(first) + " to " + std::to_string(first + count));
    part_.resize(count, hidden_.cols());
    backend_->copy_rows(hidden_, first, count, part_, 0);
    backend_->linear(backend_->weights().head, precision_, part_, logits_);
    return backend_->read(logits_);
  }

  /// Logits of the last token of the last forward.
  bitladder::vector_view<const float> last_logits() {
    const auto l = logits(hidden_.rows() - 1, 1);
    return {l.data(), static_cast<std::size_t>(l.cols())};
  }

 private:
  // Bounds the scratch of a long prompt; results do not depend on it.
  static constexpr int chunk = 512;

  void check_tokens(bitladder::vector_view<const int> tokens) const {
    if (tokens.size() == 0)
      throw bitladder::error(bitladder::status::invalid_argument,
                             "forward: expected at least one token, found none");
    if (tokens.size() > static_cast<std::size_t>(cache_.capacity()))
      throw bitladder::error(bitladder::status::invalid_argument,
                             "forward: expected at most " + std::to_string(cache_.capacity()) +
                                 " tokens, found " + std::to_string(tokens.size()));
    for (int t : tokens)
      if (t < 0 || t >= model().config().vocabulary)
        throw bitladder::error(bitladder::status::invalid_argument,
                               "forward: expected tokens of 0 to " +
                                   std::to_string(model().config().vocabulary - 1) + ", found " +
                                   std::to_string(t));
  }

  using weights = std::decay_t<decltype(std::declval<Backend&>().weights())>;
  using layer_type = std::decay_t<decltype(std::declval<weights>().layers[0])>;

  /// One chunk; its hidden states, ready for the head, are left in `normed_`.
  void run_layers(bitladder::vector_view<const int> tokens) {
    Backend& b = *backend_;
    const weights& w = b.weights();
    const int position = cache_.length();
    embed(tokens, position);
    for (std::size_t i = 0; i < w.layers.size(); ++i) {
      const layer_type& layer = w.layers[i];
      const int index = static_cast<int>(i);
      switch (model().config().residual) {
        case residual_form::pre_norm:
          b.norm(x_, layer.attention_norm, normed_);
          attend(layer, index, position, normed_);
          b.add(update_, x_);
          b.norm(x_, layer.mlp_norm, normed_);
          feed_forward(layer, normed_);
          b.add(update_, x_);
          break;
        case residual_form::post_norm:
          attend(layer, index, position, x_);
          b.add(update_, x_);
          b.norm(x_, layer.attention_norm, normed_);
          feed_forward(layer, normed_);
          b.add(update_, normed_);
          b.norm(normed_, layer.mlp_norm, x_);
          break;
        case residual_form::parallel:
          b.norm(x_, layer.attention_norm, normed_);
          attend(layer, index, position, normed_);
          b.add(update_, x_);
          feed_forward(layer, normed_);
          b.add(update_, x_);
          break;
      }
    }
    if (model().config().residual == residual_form::post_norm)
      std::swap(x_, normed_);
    else
      b.norm(x_, w.norm, normed_);
    if (projected()) {
      b.linear(w.project_out, precision_, normed_, update_);
      std::swap(update_, normed_);
    }
    cache_.advance(static_cast<int>(tokens.size()));
  }

  /// Whether the embedding is not as wide as the layers.
  bool projected() const { return model().config().embedding_width() != model().config().hidden; }

  /// x = what the first layer is given.
  void embed(bitladder::vector_view<const int> tokens, int position) {
    Backend& b = *backend_;
    const weights& w = b.weights();
    const family& f = *model().config().family;
    b.embed(w.embedding, tokens, x_);
    if (projected()) {
      b.linear(w.project_in, precision_, x_, update_);
      std::swap(update_, x_);
    }
    if (!f.rotary()) b.add_positions(w.positions, position + f.position_offset, x_);
  }

  /// update = attention(x); keys and values go to the cache.
  void attend(const layer_type& layer, int index, int position, const buffer& x) {
    Backend& b = *backend_;
    const config& c = model().config();
    if (c.family->layer.query_key_value.empty()) {
      b.linear(layer.query, precision_, x, query_);
      b.linear(layer.key, precision_, x, key_);
      b.linear(layer.value, precision_, x, value_);
    } else {
      b.linear(layer.query_key_value, precision_, x, fused_);
      b.copy_columns(fused_, 0, c.query_width(), query_);
      b.copy_columns(fused_, c.query_width(), c.kv_width(), key_);
      b.copy_columns(fused_, c.query_width() + c.kv_width(), c.kv_width(), value_);
    }
    if (c.family->rotary()) {
      b.rope(query_, position);
      b.rope(key_, position);
    }
    b.store(cache_, index, position, key_, value_);
    b.attention(cache_, index, query_, c.window_of(index), attended_);
    b.linear(layer.output, precision_, attended_, update_);
  }

  /// update = mlp(x)
  void feed_forward(const layer_type& layer, const buffer& x) {
    Backend& b = *backend_;
    const config& c = model().config();
    if (!c.family->gated()) {
      b.linear(layer.up, precision_, x, up_);
      b.activate(c.activation, up_);
      b.linear(layer.down, precision_, up_, update_);
      return;
    }
    if (c.family->layer.gate_up.empty()) {
      b.linear(layer.gate, precision_, x, gate_);
      b.linear(layer.up, precision_, x, up_);
    } else {
      b.linear(layer.gate_up, precision_, x, fused_);
      b.copy_columns(fused_, 0, c.intermediate, gate_);
      b.copy_columns(fused_, c.intermediate, c.intermediate, up_);
    }
    b.silu_multiply(gate_, up_);
    b.linear(layer.down, precision_, gate_, update_);
  }

  Backend* backend_;
  typename Backend::cache cache_;
  int precision_ = unquantized;
  buffer x_, normed_, query_, key_, value_, fused_, attended_, update_, gate_, up_;
  buffer hidden_, part_, logits_;
};

}  // namespace llama
