// SPDX-License-Identifier: MIT
#include <bitladder/core/matrix_view.hpp>

#include <doctest/doctest.h>

#include <type_traits>
#include <vector>

using bitladder::matrix_view;
using bitladder::vector_view;

TEST_CASE("a matrix view addresses rows by its stride") {
  std::vector<int> v(12);
  for (int i = 0; i < 12; ++i) v[static_cast<std::size_t>(i)] = i;
  const matrix_view<int> dense(v.data(), 3, 4);
  CHECK(dense(2, 3) == 11);
  const matrix_view<int> left(v.data(), 3, 2, 4);
  CHECK(left(2, 1) == 9);
  CHECK(left.row(1) == v.data() + 4);
}

TEST_CASE("views gain const and never lose it") {
  std::vector<float> v{1, 2, 3};
  const std::vector<float>& constant = v;
  const vector_view<const float> a = constant;
  const vector_view<float> b = v;
  const vector_view<const float> c = b;
  CHECK(a.data() == c.data());
  CHECK(c.size() == 3);
  b[1] = 5;
  CHECK(c[1] == 5);
  CHECK(!std::is_convertible<vector_view<const float>, vector_view<float>>::value);
  CHECK(std::is_convertible<matrix_view<float>, matrix_view<const float>>::value);
  CHECK(!std::is_convertible<matrix_view<const float>, matrix_view<float>>::value);
  CHECK(!std::is_constructible<vector_view<float>, const std::vector<float>&>::value);
}

TEST_CASE("rows past 2^31 elements are addressed with 64 bits") {
  const matrix_view<char> huge(nullptr, 70000, 70000);
  CHECK(reinterpret_cast<std::size_t>(huge.row(69999)) == 69999ull * 70000ull);
}
