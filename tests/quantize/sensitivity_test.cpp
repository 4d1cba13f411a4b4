// SPDX-License-Identifier: MIT
#include <bitladder/quantize/sensitivity.hpp>

#include <doctest/doctest.h>

#include <vector>

using bitladder::matrix_view;
using bitladder::sensitivity;

TEST_CASE("uniform sensitivities have a shape and no values") {
  const sensitivity s = sensitivity::uniform(3, 5);
  CHECK(s.rows() == 3);
  CHECK(s.cols() == 5);
  CHECK(s.is_uniform());
  CHECK(s.row(2) == nullptr);
}

TEST_CASE("values are viewed where they are, stride included") {
  const std::vector<float> v{1, 2, 9, 3, 4, 9};
  const sensitivity s = sensitivity::from_values({v.data(), 2, 2, 3});
  CHECK_FALSE(s.is_uniform());
  CHECK(s.row(0) == v.data());
  CHECK(s.row(1)[1] == 4);
}

TEST_CASE("gradients are squared and kept, also by copies") {
  sensitivity copy;
  {
    const std::vector<float> g{1, -2, 9, 3, -4, 9};
    const sensitivity s = sensitivity::from_gradients({g.data(), 2, 2, 3});
    copy = s;
  }
  CHECK(copy.rows() == 2);
  CHECK(copy.cols() == 2);
  CHECK(copy.row(0)[1] == 4);
  CHECK(copy.row(1)[0] == 9);
  CHECK(copy.row(1)[1] == 16);
}

TEST_CASE("negative sizes and null values are refused") {
  CHECK_THROWS_AS(sensitivity::uniform(-1, 2), bitladder::error);
  CHECK_THROWS_AS(sensitivity::from_values({nullptr, 2, 2}), bitladder::error);
  CHECK_NOTHROW(sensitivity::from_values({nullptr, 0, 2}));
}
