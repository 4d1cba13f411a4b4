// SPDX-License-Identifier: MIT
// What a schedule did: the precision of every pass, counted. Tested by
// tests/schedule/schedule_test.cpp.
#pragma once

#include <bitladder/config.hpp>

#include <cstddef>
#include <map>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace schedule {

/// Passes by their precision. Unquantized passes, 0, count as 16 bits.
/// @param bits of every pass, the prompt's first
/// @param first pass that is counted
inline std::map<int, int> count_bits(const std::vector<int>& bits, std::size_t first = 0) {
  std::map<int, int> counts;
  for (std::size_t i = first; i < bits.size(); ++i) ++counts[bits[i] == 0 ? 16 : bits[i]];
  return counts;
}

/// The mean precision of all passes, the prompt's among them; 0 of none.
inline double average_bits(const std::vector<int>& bits, std::size_t first = 0) {
  double sum = 0, passes = 0;
  for (const auto& [b, count] : count_bits(bits, first)) {
    sum += static_cast<double>(b) * count;
    passes += count;
  }
  return passes > 0 ? sum / passes : 0;
}

/// The mean as PMPD's program reports it: it leaves out the prompt and the first new token, for
/// which its schedule is not asked.
inline double pmpd_average_bits(const std::vector<int>& bits) { return average_bits(bits, 2); }

}  // namespace schedule
}  // namespace v0_1
}  // namespace bitladder
