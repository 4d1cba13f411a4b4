// SPDX-License-Identifier: MIT
// A status that nobody looks at is a warning, here an error.
// fails with: unused-result
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/status.hpp>

struct always_ok {
  template <class Bits>
  bitladder::status operator()(Bits) const {
    return bitladder::status::ok;
  }
};

void call(int bits) {
#ifdef BL_MUST_FAIL
  bitladder::dispatch_bits(bits, bitladder::all_bits{}, always_ok{});
#else
  bitladder::check(bitladder::dispatch_bits(bits, bitladder::all_bits{}, always_ok{}));
#endif
}
