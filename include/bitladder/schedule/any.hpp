// SPDX-License-Identifier: MIT
// Any schedule behind one type: a number, a function of the step, one of this folder's, or a
// caller's own. Tested by tests/schedule/schedule_test.cpp.
#pragma once

#include <bitladder/schedule/observation.hpp>

#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace schedule {

namespace detail {

template <class F, class = void>
struct lists_precisions : std::false_type {};
template <class F>
struct lists_precisions<F, std::void_t<decltype(std::declval<const F&>().precisions())>>
    : std::true_type {};

template <class F, class = void>
struct says_what_it_needs : std::false_type {};
template <class F>
struct says_what_it_needs<F, std::void_t<decltype(std::declval<const F&>().needs_probability())>>
    : std::true_type {};

}  // namespace detail

/// Copies have their own state, so a copy taken before a text is a fresh schedule for it.
class any {
 public:
  /// The same precision for every pass.
  any(int bits) : bits_([bits](const observation&) { return bits; }), precisions_{bits} {}

  /// @tparam F int(const observation&), or int(int step). If it has a member precisions(), those
  /// are what it may ask for; a member needs_probability() says whether it looks at top
  /// probabilities, as a function of an observation without it is taken to do
  template <class F, class Plain = std::decay_t<F>,
            std::enable_if_t<(std::is_invocable_r<int, Plain&, const observation&>::value ||
                              std::is_invocable_r<int, Plain&, int>::value) &&
                                 !std::is_same<Plain, any>::value,
                             int> = 0>
  any(F&& schedule) {
    if constexpr (detail::lists_precisions<Plain>::value) precisions_ = schedule.precisions();
    constexpr bool observes = std::is_invocable_r<int, Plain&, const observation&>::value;
    needs_probability_ = observes;
    if constexpr (detail::says_what_it_needs<Plain>::value)
      needs_probability_ = schedule.needs_probability();
    if constexpr (observes)
      bits_ = std::forward<F>(schedule);
    else
      bits_ = [step_bits = std::forward<F>(schedule)](const observation& o) mutable {
        return step_bits(o.step);
      };
  }

  /// Bits of the pass that `o` tells of.
  int operator()(const observation& o) { return bits_(o); }
  /// Bits by the step alone, of a fresh copy: for schedules that look at nothing else.
  int operator()(int step) const {
    auto fresh = bits_;
    observation o;
    o.step = step;
    return fresh(o);
  }

  /// What it may ask for; empty if it does not say.
  const std::vector<int>& precisions() const { return precisions_; }
  /// Whether observations need top probabilities, which cost a pass over the logits.
  bool needs_probability() const { return needs_probability_; }

 private:
  std::function<int(const observation&)> bits_;
  std::vector<int> precisions_;
  bool needs_probability_ = false;
};

}  // namespace schedule
}  // namespace v0_1
}  // namespace bitladder
