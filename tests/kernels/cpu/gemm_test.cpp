// SPDX-License-Identifier: MIT
// Seeds 41 to 45.
#include <bitladder/core/parallel.hpp>
#include <bitladder/kernels/cpu/gemm.hpp>
#include <bitladder/kernels/cpu/gemv.hpp>
#include <bitladder/kernels/cpu/reference.hpp>

#include "fixture.hpp"
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

namespace cpu = bitladder::cpu;
using bitladder::matrix_view;
using bitladder::thread_pool;

namespace {

constexpr int batch_sizes[] = {1, 2, 3, 4, 5, 8, 17};
constexpr int row_counts[] = {1, 2, 3, 7, 33};
constexpr int col_counts[] = {1, 31, 32, 33, 64, 96, 256, 768, 1000, 1056};

/// What row i of every batch must be: gemv of row i, itself compared with the reference elsewhere.
template <int Bits>
std::vector<float> row_by_row(const support::quantized& q, const std::vector<float>& x, int m) {
  const auto w = q.planes.view();
  std::vector<float> y(static_cast<std::size_t>(m) * static_cast<std::size_t>(w.rows()));
  const auto rows = static_cast<std::size_t>(w.rows()), cols = static_cast<std::size_t>(w.cols());
  for (std::size_t i = 0; i < static_cast<std::size_t>(m); ++i)
    cpu::gemv<Bits>(w, q.tables[Bits], {x.data() + i * cols, cols}, {y.data() + i * rows, rows});
  return y;
}

}  // namespace

TEST_CASE_TEMPLATE("row i of a batch has the bits of gemv of row i, on every instruction set", B,
                   ALL_BITS) {
  support::random rng(41);
  for (int cols : col_counts)
    for (int rows : row_counts) {
      const support::quantized q(rows, cols, B::value, 1, rng);
      for (int m : batch_sizes) {
        const auto x = rng.normals(static_cast<std::size_t>(m) * static_cast<std::size_t>(cols));
        const auto expected = row_by_row<B::value>(q, x, m);
        std::vector<float> y(expected.size());
        for (cpu::isa use : support::isas_here()) {
          // Plain code calls fma in the C library: its share of the sweep is kept small.
          if (use == cpu::isa::scalar && (rows > 3 || m > 3)) continue;
          std::fill(y.begin(), y.end(), NAN);
          cpu::gemm<B::value>(q.planes.view(), q.tables[B::value], support::matrix(x, m, cols),
                              support::matrix(y, m, rows), nullptr, use);
          CAPTURE(rows);
          CAPTURE(cols);
          CAPTURE(m);
          CAPTURE(to_string(use));
          CHECK(support::same_bits(y, expected));
        }
      }
    }
}

TEST_CASE_TEMPLATE("column groups and thread counts change no bit of a batch", B, ALL_BITS) {
  support::random rng(42);
  struct {
    int rows, cols, groups, m;
  } const shapes[] = {{19, 64, 2, 3},  {40, 1536, 3, 14}, {9, 2048, 2, 25},  {17, 1000, 5, 4},
                      {33, 66, 3, 13}, {64, 1100, 1, 26}, {21, 2112, 3, 49}, {9, 4200, 1, 5}};
  for (const auto s : shapes) {
    const support::quantized q(s.rows, s.cols, B::value, s.groups, rng);
    const auto x = rng.normals(static_cast<std::size_t>(s.m * s.cols));
    std::vector<float> expected(static_cast<std::size_t>(s.m * s.rows)), y(expected.size());
    cpu::reference::gemm(q.planes.view(), q.tables[B::value], support::matrix(x, s.m, s.cols),
                         support::matrix(expected, s.m, s.rows));
    for (int threads : {1, 2, 3, 5}) {
      thread_pool pool(threads);
      for (cpu::isa use : support::isas_here()) {
        if (use == cpu::isa::scalar && threads != 3) continue;
        std::fill(y.begin(), y.end(), NAN);
        cpu::gemm(B::value, q.planes.view(), q.tables[B::value], support::matrix(x, s.m, s.cols),
                  support::matrix(y, s.m, s.rows), &pool, use);
        CAPTURE(s.rows);
        CAPTURE(s.cols);
        CAPTURE(s.groups);
        CAPTURE(s.m);
        CAPTURE(threads);
        CAPTURE(to_string(use));
        CHECK(support::same_bits(y, expected));
      }
    }
  }
}

TEST_CASE("a dense batch of every type gives the reference's bits, through strides") {
  support::random rng(43);
  for (int cols : {1, 33, 256, 1000, 1056})
    for (int rows : {1, 7, 33})
      for (int m : batch_sizes) {
        const std::size_t count = static_cast<std::size_t>(rows * cols);
        const auto w = rng.normals(count);
        std::vector<bitladder::fp16_t> half(count);
        std::vector<bitladder::bf16_t> brain(count);
        for (std::size_t i = 0; i < count; ++i) {
          half[i] = bitladder::to_fp16(w[i]);
          brain[i] = bitladder::to_bf16(w[i]);
        }
        const std::size_t x_stride = static_cast<std::size_t>(cols) + 5,
                          y_stride = static_cast<std::size_t>(rows) + 2;
        const auto x = rng.normals(x_stride * static_cast<std::size_t>(m));
        std::vector<float> expected(y_stride * static_cast<std::size_t>(m), 9.0f), y = expected;
        const matrix_view<const float> xs(x.data(), m, cols, x_stride);
        const matrix_view<float> ys(y.data(), m, rows, y_stride),
            expected_view(expected.data(), m, rows, y_stride);
        const auto compare = [&](auto weights) {
          cpu::reference::gemm(weights, xs, expected_view);
          std::fill(y.begin(), y.end(), 9.0f);  // what lies between the rows must stay
          cpu::gemm(weights, xs, ys);
          CAPTURE(rows);
          CAPTURE(cols);
          CAPTURE(m);
          CHECK(support::same_bits(y, expected));
        };
        compare(matrix_view<const float>(w.data(), rows, cols));
        compare(matrix_view<const bitladder::fp16_t>(half.data(), rows, cols));
        compare(matrix_view<const bitladder::bf16_t>(brain.data(), rows, cols));
      }
}

TEST_CASE("a NaN in one row of x stays in that row of y") {
  support::random rng(44);
  const int rows = 12, cols = 100;
  support::quantized q(rows, cols, 4, 1, rng);
  // Infinite where codes are zero, which is also what lies beyond the last column.
  for (int r = 0; r < rows; ++r) q.tables.data(4)[16 * r] = bitladder::to_fp16(INFINITY);
  for (int m : {2, 3, 5, 14}) {
    auto x = rng.normals(static_cast<std::size_t>(m * cols));
    for (float& v : x) v = std::abs(v) + 0.5f;  // no infinities of both signs in a sum
    x[static_cast<std::size_t>((m - 1) * cols + 99)] = NAN;
    std::vector<float> expected(static_cast<std::size_t>(m * rows)), y(expected.size());
    cpu::reference::gemm(q.planes.view(), q.tables[4], support::matrix(x, m, cols),
                         support::matrix(expected, m, rows));
    cpu::gemm<4>(q.planes.view(), q.tables[4], support::matrix(x, m, cols),
                 support::matrix(y, m, rows));
    CAPTURE(m);
    CHECK(support::same_bits(y, expected));
    for (int i = 0; i < m; ++i)
      for (int r = 0; r < rows; ++r)
        CHECK(std::isnan(y[static_cast<std::size_t>(i * rows + r)]) == (i == m - 1));
  }
}

TEST_CASE("no columns give zeros; an empty batch or no rows give nothing") {
  std::vector<float> y(2 * 3, 7.0f);
  const bitladder::bitplane_tensor empty(bitladder::bitplane_layout{3, 0, 2});
  cpu::gemm<2>(empty.view(), bitladder::codebook_view(nullptr, 3, 1, 2),
               matrix_view<const float>(nullptr, 2, 0), support::matrix(y, 2, 3));
  CHECK(y == std::vector<float>(6, 0.0f));
  y.assign(6, 7.0f);
  cpu::gemm(matrix_view<const float>(nullptr, 3, 0), matrix_view<const float>(nullptr, 2, 0),
            support::matrix(y, 2, 3));
  CHECK(y == std::vector<float>(6, 0.0f));
  support::random rng(45);
  const support::quantized q(3, 40, 2, 1, rng);
  CHECK_NOTHROW(cpu::gemm<2>(q.planes.view(), q.tables[2], matrix_view<const float>(nullptr, 0, 40),
                             matrix_view<float>(nullptr, 0, 3)));
  CHECK_NOTHROW(cpu::gemm(matrix_view<const float>(nullptr, 0, 40),
                          matrix_view<const float>(nullptr, 0, 40),
                          matrix_view<float>(nullptr, 0, 0)));
}
