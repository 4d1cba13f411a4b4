// SPDX-License-Identifier: MIT
#include <bitladder/core/status.hpp>
#include <bitladder/version.hpp>

#include <doctest/doctest.h>

#include <string>
#include <type_traits>

TEST_CASE("the version is one comparable integer") {
  CHECK(BL_VERSION == BL_VERSION_MAJOR * 1000000 + BL_VERSION_MINOR * 1000 + BL_VERSION_PATCH);
}

TEST_CASE("the inline namespace carries the major and minor version") {
  // Names a symbol through the versioned namespace: a bump of one and not the other fails to
  // compile.
#define BL_TEST_JOIN(a, b) v##a##_##b
#define BL_TEST_NAME(a, b) BL_TEST_JOIN(a, b)
  CHECK((std::is_same<bitladder::error,
                      bitladder::BL_TEST_NAME(BL_VERSION_MAJOR, BL_VERSION_MINOR)::error>::value));
#undef BL_TEST_NAME
#undef BL_TEST_JOIN
}
