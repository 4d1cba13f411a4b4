// SPDX-License-Identifier: MIT
// Seed 21.
#include <bitladder/kernels/cpu/reference.hpp>

#include "fixture.hpp"
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

namespace reference = bitladder::cpu::reference;

TEST_CASE_TEMPLATE("the reference is the plain sum of table values times x, up to rounding", B,
                   ALL_BITS) {
  support::random rng(21);
  const int rows = 5;
  for (int cols : {1, 32, 66, 1000})
    for (int groups : {1, 2}) {
      if (cols % groups != 0) continue;
      const support::quantized q(rows, cols, 8, groups, rng);
      const auto tables = q.tables[B::value];
      const auto x = rng.normals(static_cast<std::size_t>(cols));
      std::vector<float> y(rows);
      reference::gemv(q.planes.view(), tables, x, y);
      for (int r = 0; r < rows; ++r) {
        double sum = 0, magnitude = 0;
        for (int c = 0; c < cols; ++c) {
          const int code = q.codes[static_cast<std::size_t>(r * cols + c)] >> (8 - B::value);
          const double product =
              static_cast<double>(to_float(tables.table(r, c * groups / cols)[code])) *
              static_cast<double>(x[static_cast<std::size_t>(c)]);
          sum += product;
          magnitude += std::abs(product);
        }
        CAPTURE(cols);
        CAPTURE(groups);
        CHECK(std::abs(y[static_cast<std::size_t>(r)] - sum) <=
              support::rounding_bound(cols) * magnitude);
      }
    }
}

TEST_CASE("a batch is one gemv per row") {
  support::random rng(22);
  const support::quantized q(7, 45, 4, 3, rng);
  const auto x = rng.normals(3 * 45);
  std::vector<float> all(3 * 7), one(7);
  reference::gemm(q.planes.view(), q.tables[3], support::matrix(x, 3, 45),
                  support::matrix(all, 3, 7));
  for (std::size_t i = 0; i < 3; ++i) {
    reference::gemv(q.planes.view(), q.tables[3], {x.data() + i * 45, 45}, one);
    CHECK(std::equal(one.begin(), one.end(), all.begin() + static_cast<std::ptrdiff_t>(i * 7)));
  }
}
