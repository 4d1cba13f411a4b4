// SPDX-License-Identifier: MIT
// Precisions that fall as soon as the model is surer of its next token than it used to be at the
// present one: PMPD's confidence baseline. Tested by tests/schedule/schedule_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/schedule/observation.hpp>

#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace schedule {

/// The first `window` top probabilities at a precision set a threshold, their mean and one standard
/// deviation of the sample; a later one that reaches it makes the next pass one precision lower,
/// where a new window begins. The prompt, and the token after it, have the highest.
class confidence {
 public:
  /// @param precisions falling
  /// @throws error(invalid_argument) if there are none, they do not fall, or the window has less
  /// than two
  explicit confidence(std::vector<int> precisions, int window = 10)
      : precisions_(std::move(precisions)), window_(window) {
    if (precisions_.empty())
      throw error(status::invalid_argument, "confidence: expected at least one precision");
    for (std::size_t i = 1; i < precisions_.size(); ++i)
      if (precisions_[i] >= precisions_[i - 1])
        throw error(status::invalid_argument, "confidence: expected precisions that fall, found " +
                                                  std::to_string(precisions_[i]) + " after " +
                                                  std::to_string(precisions_[i - 1]));
    if (window_ < 2)
      throw error(status::invalid_argument,
                  "confidence: expected a window of at least 2, found " + std::to_string(window_));
  }

  /// Steps in order; step 0 begins anew.
  int operator()(const observation& o) {
    if (o.step == 0) {
      level_ = 0;
      seen_.clear();
    }
    // What the prompt made likely is no new token's.
    if (o.step >= 2 && level_ + 1 < precisions_.size())
      watch(static_cast<double>(o.top_probability));
    return precisions_[level_];
  }
  const std::vector<int>& precisions() const { return precisions_; }
  static constexpr bool needs_probability() { return true; }

 private:
  void watch(double p) {
    if (seen_.size() < static_cast<std::size_t>(window_)) {
      seen_.push_back(p);
      if (seen_.size() < static_cast<std::size_t>(window_)) return;
      double mean = 0, squares = 0;
      for (double x : seen_) mean += x / window_;
      for (double x : seen_) squares += (x - mean) * (x - mean);
      threshold_ = mean + std::sqrt(squares / (window_ - 1));
    } else if (p >= threshold_) {
      ++level_;
      seen_.clear();
    }
  }

  std::vector<int> precisions_;
  int window_;
  std::size_t level_ = 0;
  std::vector<double> seen_;
  double threshold_ = 0;
};

}  // namespace schedule
}  // namespace v0_1
}  // namespace bitladder
