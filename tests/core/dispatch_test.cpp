// SPDX-License-Identifier: MIT
#include <bitladder/core/dispatch.hpp>

#include <doctest/doctest.h>

using bitladder::status;

TEST_CASE("a run-time precision reaches the call compiled for it, once") {
  for (int bits = 1; bits <= 8; ++bits) {
    int seen = 0, calls = 0;
    const status s = bitladder::dispatch_bits(bits, bitladder::all_bits{}, [&](auto b) {
      constexpr int value = decltype(b)::value;
      seen = value;
      ++calls;
      return value == 5 ? status::misaligned : status::ok;
    });
    CHECK(seen == bits);
    CHECK(calls == 1);
    CHECK(s == (bits == 5 ? status::misaligned : status::ok));
  }
}

TEST_CASE("a precision outside the list is reported and nothing is called") {
  for (int bits : {-1, 0, 2, 4, 9, 1 << 20})
    CHECK(bitladder::dispatch_bits(bits, bitladder::bits_list<3, 8>{}, [](auto) -> status {
            FAIL("called");
            return status::ok;
          }) == status::unsupported_bits);
}
