// SPDX-License-Identifier: MIT
// Schedules that go by the step alone: one precision, a precision of its own for the prompt, and
// precisions that fall as the text grows (PMPD, arXiv 2410.13461, section 4: errors in early tokens
// hurt most, as all later ones build on them). Tested by tests/schedule/schedule_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/schedule/observation.hpp>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace schedule {

/// Every pass at the same precision.
class constant {
 public:
  explicit constant(int bits) : bits_(bits) {}
  int operator()(const observation&) const { return bits_; }
  std::vector<int> precisions() const { return {bits_}; }
  static constexpr bool needs_probability() { return false; }

 private:
  int bits_;
};

/// The prompt at a precision of its own: reading it is bound by arithmetic, so its bits cost hardly
/// any time, while each new token costs as many bytes as it has bits.
template <class Decode>
class phase_aware {
 public:
  phase_aware(int prefill_bits, Decode decode)
      : prefill_bits_(prefill_bits), decode_(std::move(decode)) {}

  int operator()(const observation& o) { return o.step == 0 ? prefill_bits_ : decode_(o); }
  /// Those of the prompt and of the decode schedule; may name one twice.
  std::vector<int> precisions() const {
    std::vector<int> all = decode_.precisions();
    all.push_back(prefill_bits_);
    return all;
  }
  bool needs_probability() const { return decode_.needs_probability(); }

 private:
  int prefill_bits_;
  Decode decode_;
};

/// Precisions that fall at given steps.
class progressive {
 public:
  /// From step `step` on (1 reads the first new token), `bits`.
  struct change {
    int step, bits;
  };

  /// @param changes the first at step 1 (which the prompt has as well), steps rising, bits falling
  /// @throws error(invalid_argument) that says which change is not so
  explicit progressive(std::vector<change> changes) : changes_(std::move(changes)) {
    if (changes_.empty())
      throw error(status::invalid_argument, "progressive: expected at least one precision");
    if (changes_.front().step != 1) refuse(0, "the first precision from step 1 on");
    for (std::size_t i = 1; i < changes_.size(); ++i) {
      if (changes_[i].step <= changes_[i - 1].step)
        refuse(i, "a step after " + std::to_string(changes_[i - 1].step));
      if (changes_[i].bits >= changes_[i - 1].bits)
        refuse(i, "fewer bits than " + std::to_string(changes_[i - 1].bits));
    }
  }

  int operator()(const observation& o) const {
    int bits = changes_.front().bits;
    for (const change& c : changes_)
      if (c.step <= o.step) bits = c.bits;
    return bits;
  }
  std::vector<int> precisions() const {
    std::vector<int> all;
    for (const change& c : changes_) all.push_back(c.bits);
    return all;
  }
  static constexpr bool needs_probability() { return false; }
  const std::vector<change>& changes() const { return changes_; }

 private:
  [[noreturn]] void refuse(std::size_t i, const std::string& expected) const {
    throw error(status::invalid_argument,
                "progressive: change " + std::to_string(i) + ": expected " + expected + ", found " +
                    std::to_string(changes_[i].bits) + " bits from step " +
                    std::to_string(changes_[i].step));
  }

  std::vector<change> changes_;
};

/// PMPD's static rule as its program counts: `high_steps` = h is compared with the number of new
/// tokens that have been read, and asked only after the first of them, so max(1, h) tokens are read
/// at `high`, and 0 is the same as 1.
/// @throws error(invalid_argument) unless high > low and high_steps >= 0
inline progressive pmpd_static(int high, int low, int high_steps) {
  if (high_steps < 0)
    throw error(status::invalid_argument,
                "pmpd_static: expected 0 or more steps, found " + std::to_string(high_steps));
  if (high_steps == std::numeric_limits<int>::max()) --high_steps;
  return progressive({{1, high}, {std::max(1, high_steps) + 1, low}});
}

}  // namespace schedule
}  // namespace v0_1
}  // namespace bitladder
