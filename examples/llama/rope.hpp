// SPDX-License-Identifier: MIT
// Rotary position embedding: the frequencies of a config, and the cosines and sines of positions.
// Rounds where Hugging Face transformers rounds (frequencies and angles are floats), because at
// large positions those roundings move logits. Tested by tests/llama/rope_test.cpp.
#pragma once

#include <llama/config.hpp>

#include <cmath>
#include <cstddef>
#include <vector>

namespace llama {

/// Radians per position of each pair of a head, half of the columns that turn, falling.
inline std::vector<float> rope_frequencies(const config& c) {
  constexpr double two_pi = 6.283185307179586;
  const rope_parameters& r = c.rope;
  const int columns = c.rotary_width();
  std::vector<float> frequencies(static_cast<std::size_t>(columns / 2));
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double base =
        1.0 / std::pow(r.theta, 2.0 * static_cast<double>(i) / static_cast<double>(columns));
    double f = base;
    if (r.type == rope_type::linear) f = base / r.factor;
    if (r.type == rope_type::llama3) {
      const double wavelength = two_pi / base;
      if (wavelength > r.original_context / r.low_freq_factor) {
        f = base / r.factor;
      } else if (wavelength >= r.original_context / r.high_freq_factor) {
        const double smooth = (r.original_context / wavelength - r.low_freq_factor) /
                              (r.high_freq_factor - r.low_freq_factor);
        f = (1 - smooth) * base / r.factor + smooth * base;
      }
    }
    frequencies[i] = static_cast<float>(f);
  }
  return frequencies;
}

/// Cosines and sines of positions 0 .. positions() - 1, [positions, pairs] each; grows on demand.
class rope_table {
 public:
  rope_table() = default;
  explicit rope_table(const config& c) : frequencies_(rope_frequencies(c)) {}

  int pairs() const { return static_cast<int>(frequencies_.size()); }
  int positions() const { return positions_; }
  /// Makes positions 0 .. count - 1 readable.
  void reserve(int count) {
    for (; positions_ < count; ++positions_) {
      for (float f : frequencies_) {
        const float angle = static_cast<float>(positions_) * f;
        cosines_.push_back(static_cast<float>(std::cos(static_cast<double>(angle))));
        sines_.push_back(static_cast<float>(std::sin(static_cast<double>(angle))));
      }
    }
  }
  const float* cosines(int position) const {
    return cosines_.data() + static_cast<std::size_t>(position) * frequencies_.size();
  }
  const float* sines(int position) const {
    return sines_.data() + static_cast<std::size_t>(position) * frequencies_.size();
  }

 private:
  std::vector<float> frequencies_, cosines_, sines_;
  int positions_ = 0;
};

}  // namespace llama
