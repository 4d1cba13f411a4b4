// SPDX-License-Identifier: MIT
// How much the loss minds each weight, as Any-Precision LLM measures it (arXiv 2402.10517): the
// gradient of a sample's mean next-token loss, squared element by element and summed over samples.
// Clustering takes these sums as weights. Tested by tests/llama/backward_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>

#include <llama/backward.hpp>
#include <llama/backward_cpu.hpp>
#include <llama/config.hpp>
#include <llama/family.hpp>
#include <llama/model.hpp>
#include <llama/weights.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llama {
namespace detail {

/// The linears of a model's layers by the names of their weights, in the order of linear_names.
template <class Linear, class Vector, class Table>
std::vector<std::pair<std::string, const Linear*>> named_linears(
    const family& f, const model_weights<Linear, Vector, Table>& w) {
  std::vector<std::pair<std::string, const Linear*>> named;
  for (std::size_t i = 0; i < w.layers.size(); ++i) {
    const auto& l = w.layers[i];
    const layer_names& n = f.layer;
    const std::string prefix = layer_prefix(f, static_cast<int>(i));
    const auto add = [&](std::string_view name, const Linear& linear) {
      if (!name.empty()) named.emplace_back(prefix + std::string(name) + ".weight", &linear);
    };
    add(n.query, l.query);
    add(n.key, l.key);
    add(n.value, l.value);
    add(n.query_key_value, l.query_key_value);
    add(n.output, l.output);
    add(n.gate, l.gate);
    add(n.up, l.up);
    add(n.gate_up, l.gate_up);
    add(n.down, l.down);
  }
  return named;
}

}  // namespace detail

/// The linears of layers whose weights have these names.
/// @throws bitladder::error naming the model and the weight, what was expected and what was found:
/// for a quantized model, a name of another tensor or one that comes twice
inline std::vector<const linear_weight*> linears_of(const model& m,
                                                    const std::vector<std::string>& names) {
  const std::string where = m.folder().string();
  if (m.quantized())
    throw bitladder::error(bitladder::status::invalid_argument,
                           where +
                               ": expected a model with float weights, found one that is "
                               "quantized: it has no gradients of the loss by its weights");
  const auto known = detail::named_linears(*m.config().family, m.weights());
  std::vector<const linear_weight*> linears;
  for (const std::string& name : names) {
    const linear_weight* w = nullptr;
    for (const auto& k : known)
      if (k.first == name) w = k.second;
    if (w == nullptr)
      throw bitladder::error(bitladder::status::not_found,
                             where + ": tensor \"" + name +
                                 "\": expected the weight of a linear of a layer, such as \"" +
                                 known.front().first + "\"");
    if (std::find(linears.begin(), linears.end(), w) != linears.end())
      throw bitladder::error(
          bitladder::status::invalid_argument,
          where + ": tensor \"" + name + "\": expected each weight once, found it again");
    linears.push_back(w);
  }
  return linears;
}

/// @param number of the sample, from 1 on, for the error
/// @throws bitladder::error for less than two tokens, one outside the vocabulary, and more than a
/// table of positions has room for
inline void check_gradient_sample(const model& m, bitladder::vector_view<const int> tokens,
                                  int number) {
  const config& c = m.config();
  const auto refuse = [&](const std::string& what) {
    throw bitladder::error(
        bitladder::status::invalid_argument,
        m.folder().string() + ": sample " + std::to_string(number) + ": " + what);
  };
  if (tokens.size() < 2)
    refuse("expected at least two tokens, found " + std::to_string(tokens.size()));
  constexpr std::size_t most = 1 << 24;  // counts of rows and of bytes stay far from overflow
  const std::size_t room = c.family->rotary() ? most : static_cast<std::size_t>(c.context) + 1;
  if (tokens.size() > room)
    refuse("expected at most " + std::to_string(room) + " tokens, found " +
           std::to_string(tokens.size()));
  for (int t : tokens)
    if (t < 0 || t >= c.vocabulary)
      refuse("expected tokens of 0 to " + std::to_string(c.vocabulary - 1) + ", found " +
             std::to_string(t));
}

/// Sums over samples of squared gradients of the mean next-token loss, one matrix per linear, in
/// fp32. Bytes held: four for every weight asked for, what a layer is given for every layer of a
/// sample, and the activations of one layer. The sums do not depend on the number of threads.
class squared_gradients {
 public:
  /// @param m unquantized; must outlive this, as must `pool`
  /// @param names of weights of linears of layers, as the model's file has them:
  /// "model.layers.0.self_attn.q_proj.weight"
  /// @throws bitladder::error naming the model and the weight, what was expected and what was found
  squared_gradients(const model& m, std::vector<std::string> names,
                    bitladder::thread_pool* pool = nullptr)
      : names_(std::move(names)) {
    const std::vector<const linear_weight*> linears = linears_of(m, names_);
    sums_.resize(names_.size());
    for (std::size_t i = 0; i < linears.size(); ++i) {
      to_.emplace(linears[i], &sums_[i]);
      sums_[i].resize(linears[i]->rows, linears[i]->cols);
    }
    backend_ = std::make_unique<cpu_backward_backend>(m, pool);
    pass_ = std::make_unique<pass>(*backend_);
  }

  /// Adds one sample.
  /// @param tokens at least two; all but the last are run, and all but the first are foretold
  /// @return its mean loss in nats
  /// @throws bitladder::error for fewer tokens, one outside the vocabulary, more than a table of
  /// positions has room for, and for a loss that is not finite; the sums are then as before
  double add(bitladder::vector_view<const int> tokens) {
    check_gradient_sample(backend_->model(), tokens, samples_ + 1);
    const double loss = pass_->run(tokens, to_);
    if (!std::isfinite(loss))
      fail(bitladder::status::bad_file, "expected a finite loss, found " + std::to_string(loss) +
                                            ": weights or activations are beyond what floats hold");
    ++samples_;
    return loss;
  }

  /// Goes on from sums that were kept: as if `samples` had been added and had come to them.
  /// @param sums one for each of names(), in its shape
  /// @throws bitladder::error naming the model and the weight whose shape is another
  void restore(int samples, const std::vector<bitladder::matrix_view<const float>>& sums) {
    for (std::size_t i = 0; i < sums_.size(); ++i)
      if (i >= sums.size() || sums[i].rows() != sums_[i].rows() ||
          sums[i].cols() != sums_[i].cols())
        throw bitladder::error(bitladder::status::shape_mismatch,
                               backend_->model().folder().string() + ": tensor \"" + names_[i] +
                                   "\": expected kept sums of its shape");
    for (std::size_t i = 0; i < sums_.size(); ++i)
      for (int r = 0; r < sums_[i].rows(); ++r)
        std::copy_n(sums[i].row(r), sums[i].cols(), sums_[i].view().row(r));
    samples_ = samples;
  }

  /// Those added so far.
  int samples() const { return samples_; }
  const std::vector<std::string>& names() const { return names_; }
  /// [rows, cols] of names()[i], valid as long as this lives; the next add() changes it.
  bitladder::matrix_view<const float> sums(std::size_t i) const {
    const cpu_buffer& s = sums_[i];
    return s.view();
  }

 private:
  using pass = backward_pass<cpu_backward_backend>;

  [[noreturn]] void fail(bitladder::status code, const std::string& what) const {
    throw bitladder::error(code, backend_->model().folder().string() + ": sample " +
                                     std::to_string(samples_ + 1) + ": " + what);
  }

  std::vector<std::string> names_;
  std::vector<cpu_buffer> sums_;  // never resized after the constructor: to_ points into it
  pass::squares to_;
  std::unique_ptr<cpu_backward_backend> backend_;
  std::unique_ptr<pass> pass_;
  int samples_ = 0;
};

}  // namespace llama
