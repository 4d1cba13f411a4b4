// SPDX-License-Identifier: MIT
// A fall of precision at a step drawn by lot: the baseline that learned schedules are compared
// with. Tested by tests/schedule/schedule_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/schedule/observation.hpp>
#include <bitladder/schedule/progressive.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace schedule {

/// PMPD's random baseline: the number of steps at `high` is one of 0, a third, two thirds and all
/// of `max_new_tokens`, drawn anew for every text; pmpd_static says how they count.
class random_switch {
 public:
  /// @param prior weights of the four; their sum need not be 1
  /// @throws error(invalid_argument) unless high > low, tokens >= 0, and the weights are at least 0
  /// and not all 0
  random_switch(int high, int low, int max_new_tokens, std::uint64_t seed = 0,
                const std::array<double, 4>& prior = {1, 1, 1, 1})
      : candidates_{pmpd_static(high, low, 0), pmpd_static(high, low, max_new_tokens / 3),
                    pmpd_static(high, low, 2 * (max_new_tokens / 3)),
                    pmpd_static(high, low, max_new_tokens)},
        prior_(prior),
        state_(seed) {
    double sum = 0;
    for (double p : prior_) {
      if (!(p >= 0))
        throw error(status::invalid_argument,
                    "random_switch: expected weights of at least 0, found " + std::to_string(p));
      sum += p;
    }
    if (!(sum > 0 && sum - sum == 0))
      throw error(status::invalid_argument, "random_switch: expected weights with a sum above 0");
  }

  /// Step 0 draws.
  int operator()(const observation& o) {
    if (o.step == 0) chosen_ = draw();
    return candidates_[chosen_](o);
  }
  std::vector<int> precisions() const { return candidates_[0].precisions(); }
  static constexpr bool needs_probability() { return false; }

 private:
  std::size_t draw() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;  // splitmix64 (Steele, Lea, Flood 2014)
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    double sum = 0;
    for (double p : prior_) sum += p;
    double left = static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53 * sum;
    std::size_t last = 0;
    for (std::size_t i = 0; i < prior_.size(); ++i) {
      if (prior_[i] > 0) last = i;
      if (left < prior_[i]) return i;
      left -= prior_[i];
    }
    return last;  // rounding
  }

  std::array<progressive, 4> candidates_;
  std::array<double, 4> prior_;
  std::uint64_t state_;
  std::size_t chosen_ = 0;
};

}  // namespace schedule
}  // namespace v0_1
}  // namespace bitladder
