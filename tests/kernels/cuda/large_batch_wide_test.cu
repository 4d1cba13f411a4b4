// SPDX-License-Identifier: MIT
// The other half of large_batch_test.cu, so that no file takes long to compile. Seeds 405 to 508.
#include <support/has_device.hpp>

#include <doctest/doctest.h>

#include <kernels/cuda/large_batch_cases.cuh>
#include <type_traits>

namespace {

template <int Bits>
using bits = std::integral_constant<int, Bits>;

TEST_CASE_TEMPLATE("every plan gives the products of many tokens, 5 to 8 bits", Bits, bits<5>,
                   bits<6>, bits<7>, bits<8>) {
  if (!support::has_device()) return;  // TEST_CASE_TEMPLATE takes no skip()
  large_batch_cases::every_plan_is_right<Bits::value>();
}

TEST_CASE_TEMPLATE("products of many tokens agree with double sums, 5 to 8 bits", Bits, bits<5>,
                   bits<6>, bits<7>, bits<8>) {
  if (!support::has_device()) return;
  large_batch_cases::shapes_are_right<Bits::value>();
}

}  // namespace
