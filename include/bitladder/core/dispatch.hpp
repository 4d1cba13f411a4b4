// SPDX-License-Identifier: MIT
// From a precision known at run time to one known at compile time, without a macro. Tested by
// tests/core/dispatch_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#include <type_traits>

namespace bitladder {
inline namespace v0_1 {

/// The precisions that a call is compiled for.
template <int... Bits>
struct bits_list {};

/// Every precision a bitplane tensor can be read at.
using all_bits = bits_list<1, 2, 3, 4, 5, 6, 7, 8>;

/// Calls `f(std::integral_constant<int, bits>{})`, which returns a status, if `bits` is in the
/// list.
/// @return what `f` returned, or status::unsupported_bits
template <int... Bits, class F>
[[nodiscard]] status dispatch_bits(int bits, bits_list<Bits...>, F&& f) {
  status s = status::unsupported_bits;
  static_cast<void>(((bits == Bits && (s = f(std::integral_constant<int, Bits>{}), true)) || ...));
  return s;
}

}  // namespace v0_1
}  // namespace bitladder
