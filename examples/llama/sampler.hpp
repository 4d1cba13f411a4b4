// SPDX-License-Identifier: MIT
// From logits to the next token: greedy, or a draw after temperature, top-k and top-p, in that
// order. Own generator and double arithmetic, so a seed gives the same text with every standard
// library. Tested by tests/llama/sampler_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace llama {

/// How to choose a token.
struct sampler_options {
  double temperature = 0;  ///< 0: the most likely token
  int top_k = 0;           ///< keep this many of the most likely; 0: all
  double top_p = 1;        ///< then keep the fewest whose probabilities reach this sum; 1: all
  std::uint64_t seed = 0;
};

/// Draws tokens; repeatable for a seed.
class sampler {
 public:
  /// @throws bitladder::error if an option is out of its range
  explicit sampler(sampler_options options = {}) : options_(options), state_(options.seed) {
    // Negated comparisons: NaN must not pass.
    if (!(options.temperature >= 0) || !std::isfinite(options.temperature))
      refuse("temperature", "0 or more", options.temperature);
    if (options.top_k < 0) refuse("top_k", "0 or more", options.top_k);
    if (!(options.top_p > 0 && options.top_p <= 1))
      refuse("top_p", "above 0 and at most 1", options.top_p);
  }

  /// Equal logits are taken in the order of their ids. A logit of -infinity is never chosen.
  /// @throws bitladder::error if a logit is NaN or +infinity, or none is finite
  int operator()(bitladder::vector_view<const float> logits) {
    const int best = largest(logits);
    if (options_.temperature == 0 || options_.top_k == 1) return best;
    order_.clear();
    for (std::size_t i = 0; i < logits.size(); ++i)
      if (logits[i] > -std::numeric_limits<float>::infinity())
        order_.push_back(static_cast<int>(i));
    const auto likelier = [&](int a, int b) {
      const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
      return x != y ? x > y : a < b;
    };
    if (options_.top_k > 0 && static_cast<std::size_t>(options_.top_k) < order_.size()) {
      std::nth_element(order_.begin(), order_.begin() + options_.top_k, order_.end(), likelier);
      order_.resize(static_cast<std::size_t>(options_.top_k));
      // nth_element leaves them in an order that is its own, and that the least change may change.
      std::sort(order_.begin(), order_.end());
    }
    if (options_.top_p < 1) std::sort(order_.begin(), order_.end(), likelier);
    const double highest = static_cast<double>(logits[static_cast<std::size_t>(best)]);
    weight_.resize(order_.size());
    double total = 0;
    for (std::size_t i = 0; i < order_.size(); ++i) {
      const double l = static_cast<double>(logits[static_cast<std::size_t>(order_[i])]);
      weight_[i] = std::exp((l - highest) / options_.temperature);
      total += weight_[i];
    }
    if (options_.top_p < 1) {
      const double enough = options_.top_p * total;
      double sum = 0;
      std::size_t kept = 0;
      while (kept < weight_.size() && sum < enough) sum += weight_[kept++];
      weight_.resize(kept);
      total = sum;
    }
    double left = uniform() * total;
    for (std::size_t i = 0; i < weight_.size(); ++i) {
      left -= weight_[i];
      if (left < 0) return order_[i];
    }
    return best;  // rounding used up the last weight
  }

 private:
  static void refuse(const char* option, const char* expected, double found) {
    throw bitladder::error(bitladder::status::invalid_argument,
                           std::string("sampler: ") + option + ": expected " + expected +
                               ", found " + std::to_string(found));
  }

  static int largest(bitladder::vector_view<const float> logits) {
    std::size_t best = logits.size();
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (!(logits[i] < std::numeric_limits<float>::infinity()))
        throw bitladder::error(bitladder::status::invalid_argument,
                               "sampler: expected logits below infinity, found " +
                                   std::to_string(logits[i]) + " for token " + std::to_string(i));
      if (logits[i] >
          (best == logits.size() ? -std::numeric_limits<float>::infinity() : logits[best]))
        best = i;
    }
    if (best == logits.size())
      throw bitladder::error(
          bitladder::status::invalid_argument,
          "sampler: expected a finite logit, found none among " + std::to_string(logits.size()));
    return static_cast<int>(best);
  }

  /// [0, 1), by splitmix64 (Steele, Lea and Flood, 2014).
  double uniform() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53;
  }

  sampler_options options_;
  std::uint64_t state_;
  std::vector<int> order_;
  std::vector<double> weight_;
};

}  // namespace llama
