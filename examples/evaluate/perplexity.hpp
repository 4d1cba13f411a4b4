// SPDX-License-Identifier: MIT
// Perplexity by the published recipe: the text is tokenized once and cut into windows that do not
// overlap (a shorter tail is dropped), each window is forwarded whole and alone, and the result is
// exp(mean over windows of the mean loss of a window's tokens but the first). Tested by
// tests/evaluate/perplexity_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cpu/isa.hpp>

#include <llama/forward.hpp>
#include <llama/vector_math.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <functional>
#include <string>

namespace evaluate {

/// How to measure.
struct perplexity_options {
  int bits = llama::unquantized;
  int window = 2048;    ///< tokens, at least 2
  int max_windows = 0;  ///< stop after this many; 0: the whole text
  /// Called after each window with how many are done, how many there are, and the perplexity so
  /// far.
  std::function<void(int done, int total, double perplexity)> progress;
};

/// What was measured.
struct perplexity_result {
  double perplexity = 0;
  double loss = 0;  ///< its logarithm: nats per token
  int windows = 0;
  double seconds = 0;
  double tokens_per_second = 0;  ///< windows * window / seconds
};

namespace detail {

/// -log softmax(logits)[target], in double but for the exponentials.
inline double token_loss(bitladder::vector_view<const float> logits, int target) {
  constexpr std::size_t block = 1024;
  const bitladder::cpu::isa isa = bitladder::cpu::best_isa();
  const float highest = llama::run<llama::row_max>(isa, logits.data(), logits.size());
  float terms[block];
  double sum = 0;
  for (std::size_t begin = 0; begin < logits.size(); begin += block) {
    const std::size_t count = std::min(block, logits.size() - begin);
    std::copy_n(logits.data() + begin, count, terms);
    sum += static_cast<double>(llama::run<llama::exp_terms>(isa, terms, count, highest, 1.f));
  }
  return std::log(sum) + static_cast<double>(highest) -
         static_cast<double>(logits[static_cast<std::size_t>(target)]);
}

/// Mean loss of the tokens of the last forward but the first.
template <class Backend>
double mean_loss(llama::session<Backend>& s, bitladder::vector_view<const int> tokens) {
  constexpr int block = 64;  // rows of logits at once
  const int count = static_cast<int>(tokens.size()) - 1;
  double sum = 0;
  for (int begin = 0; begin < count; begin += block) {
    const auto logits = s.logits(begin, std::min(block, count - begin));
    for (int r = 0; r < logits.rows(); ++r)
      sum += token_loss({logits.row(r), static_cast<std::size_t>(logits.cols())},
                        tokens[static_cast<std::size_t>(begin + r + 1)]);
  }
  return sum / count;
}

}  // namespace detail

/// @param s a session of at least `window` tokens; what it has seen is forgotten
/// @throws bitladder::error if the text is shorter than a window or a loss is not a number
template <class Backend>
perplexity_result perplexity(llama::session<Backend>& s, bitladder::vector_view<const int> tokens,
                             const perplexity_options& options = {}) {
  const int window = options.window;
  if (window < 2 || window > s.capacity())
    throw bitladder::error(bitladder::status::invalid_argument,
                           "perplexity: window: expected 2 to " + std::to_string(s.capacity()) +
                               " tokens, found " + std::to_string(window));
  if (options.max_windows < 0)
    throw bitladder::error(bitladder::status::invalid_argument,
                           "perplexity: max_windows: expected 0 or more, found " +
                               std::to_string(options.max_windows));
  if (tokens.size() < static_cast<std::size_t>(window))
    throw bitladder::error(bitladder::status::invalid_argument,
                           "perplexity: expected a text of at least one window, " +
                               std::to_string(window) + " tokens, found " +
                               std::to_string(tokens.size()));
  int total = static_cast<int>(tokens.size() / static_cast<std::size_t>(window));
  if (options.max_windows > 0) total = std::min(total, options.max_windows);

  const auto start = std::chrono::steady_clock::now();
  perplexity_result result;
  double sum = 0;
  for (int w = 0; w < total; ++w) {
    const auto size = static_cast<std::size_t>(window);
    const bitladder::vector_view<const int> ids{tokens.data() + static_cast<std::size_t>(w) * size,
                                                size};
    s.truncate(0);
    s.forward(ids, options.bits);
    const double loss = detail::mean_loss(s, ids);
    if (!std::isfinite(loss))
      throw bitladder::error(bitladder::status::invalid_argument,
                             "perplexity: expected a finite loss, found " + std::to_string(loss) +
                                 " in window " + std::to_string(w));
    sum += loss;
    result.windows = w + 1;
    result.loss = sum / result.windows;
    result.perplexity = std::exp(result.loss);
    if (options.progress) options.progress(w + 1, total, result.perplexity);
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result.tokens_per_second =
      static_cast<double>(result.windows) * window / std::max(result.seconds, 1e-9);
  return result;
}

}  // namespace evaluate
