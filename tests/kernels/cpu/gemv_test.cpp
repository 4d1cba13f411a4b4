// SPDX-License-Identifier: MIT
// Seeds 31 to 36.
#include <bitladder/core/parallel.hpp>
#include <bitladder/kernels/cpu/gemv.hpp>
#include <bitladder/kernels/cpu/reference.hpp>

#include "fixture.hpp"
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace cpu = bitladder::cpu;
using bitladder::matrix_view;
using bitladder::thread_pool;

namespace {

constexpr int row_counts[] = {1, 2, 3, 7, 33};
constexpr int col_counts[] = {1, 31, 32, 33, 64, 96, 256, 768, 1000, 1056};

template <class T>
T narrow(float v);
template <>
float narrow<float>(float v) {
  return v;
}
template <>
bitladder::fp16_t narrow<bitladder::fp16_t>(float v) {
  return bitladder::to_fp16(v);
}
template <>
bitladder::bf16_t narrow<bitladder::bf16_t>(float v) {
  return bitladder::to_bf16(v);
}

}  // namespace

TEST_CASE_TEMPLATE("every instruction set gives the reference's bits", B, ALL_BITS) {
  support::random rng(31);
  for (int cols : col_counts)
    for (int rows : row_counts) {
      const support::quantized q(rows, cols, B::value, 1, rng);
      const auto x = rng.normals(static_cast<std::size_t>(cols));
      std::vector<float> expected(static_cast<std::size_t>(rows)), y(expected.size());
      cpu::reference::gemv(q.planes.view(), q.tables[B::value], x, expected);
      for (cpu::isa use : support::isas_here()) {
        std::fill(y.begin(), y.end(), NAN);
        cpu::gemv<B::value>(q.planes.view(), q.tables[B::value], x, y, nullptr, use);
        CAPTURE(rows);
        CAPTURE(cols);
        CAPTURE(to_string(use));
        CHECK(support::same_bits(y, expected));
      }
    }
}

TEST_CASE_TEMPLATE("column groups use their own tables, also where they end inside a word", B,
                   ALL_BITS) {
  support::random rng(32);
  struct {
    int cols, groups;
  } const shapes[] = {{64, 2}, {256, 2},  {768, 3}, {1024, 4}, {1280, 2},
                      {96, 2}, {1000, 5}, {33, 33}, {66, 3}};
  for (const auto shape : shapes)
    for (int rows : {1, 3, 8}) {
      const support::quantized q(rows, shape.cols, B::value, shape.groups, rng);
      const auto x = rng.normals(static_cast<std::size_t>(shape.cols));
      std::vector<float> expected(static_cast<std::size_t>(rows)), y(expected.size());
      cpu::reference::gemv(q.planes.view(), q.tables[B::value], x, expected);
      for (cpu::isa use : support::isas_here()) {
        cpu::gemv<B::value>(q.planes.view(), q.tables[B::value], x, y, nullptr, use);
        CAPTURE(shape.cols);
        CAPTURE(shape.groups);
        CAPTURE(to_string(use));
        CHECK(support::same_bits(y, expected));
      }
    }
}

TEST_CASE_TEMPLATE("a narrow read of a wide tensor equals a tensor packed at that width", B,
                   ALL_BITS) {
  support::random rng(33);
  const int rows = 9, cols = 300;
  const support::quantized wide(rows, cols, 8, 1, rng);
  std::vector<std::uint8_t> top = wide.codes;
  for (std::uint8_t& c : top) c = static_cast<std::uint8_t>(c >> (8 - B::value));
  const auto narrow_planes =
      bitladder::pack(matrix_view<const std::uint8_t>(top.data(), rows, cols), B::value);
  const auto x = rng.normals(cols);
  std::vector<float> from_wide(rows), from_narrow(rows), at_run_time(rows);
  cpu::gemv<B::value>(wide.planes.view(), wide.tables[B::value], x, from_wide);
  cpu::gemv<B::value>(narrow_planes.view(), wide.tables[B::value], x, from_narrow);
  cpu::gemv(B::value, wide.planes.view(), wide.tables[B::value], x, at_run_time);
  CHECK(support::same_bits(from_wide, from_narrow));
  CHECK(support::same_bits(from_wide, at_run_time));
}

TEST_CASE_TEMPLATE("the thread count changes no bit", B, ALL_BITS) {
  support::random rng(34);
  const int rows = 301, cols = 544;
  const support::quantized q(rows, cols, B::value, 1, rng);
  const auto x = rng.normals(cols);
  std::vector<float> expected(rows), y(rows);
  cpu::gemv<B::value>(q.planes.view(), q.tables[B::value], x, expected);
  for (int threads : {1, 2, 3, 5}) {
    thread_pool pool(threads);
    for (cpu::isa use : support::isas_here()) {
      std::fill(y.begin(), y.end(), NAN);
      cpu::gemv<B::value>(q.planes.view(), q.tables[B::value], x, y, &pool, use);
      CAPTURE(threads);
      CHECK(support::same_bits(y, expected));
    }
  }
}

TEST_CASE_TEMPLATE("NaN, infinities, minus zero and the smallest numbers pass as in the reference",
                   B, ALL_BITS) {
  support::random rng(35);
  const float special[] = {
      NAN,    INFINITY, -INFINITY, -0.0f, std::numeric_limits<float>::denorm_min(),
      1e-30f, -1e-40f,  3e38f};
  for (int cols : {33, 96, 1000}) {
    support::quantized q(4, cols, B::value, 1, rng);
    auto* table = q.tables.data(B::value);
    table[0] = bitladder::to_fp16(-INFINITY);  // row 0 only; padding must not multiply it by zero
    table[1] = {0x0001};                       // the smallest fp16
    for (float s : special) {
      auto x = rng.normals(static_cast<std::size_t>(cols));
      x[static_cast<std::size_t>(rng.below(cols))] = s;
      x.back() = s;
      std::vector<float> expected(4), y(4);
      cpu::reference::gemv(q.planes.view(), q.tables[B::value], x, expected);
      for (cpu::isa use : support::isas_here()) {
        cpu::gemv<B::value>(q.planes.view(), q.tables[B::value], x, y, nullptr, use);
        CAPTURE(cols);
        CAPTURE(s);
        CAPTURE(to_string(use));
        CHECK(support::same_bits(y, expected));
      }
    }
    // Products that underflow to minus zero in every lane: a careless padding would turn the sum
    // into plus zero.
    for (std::size_t i = 0; i < q.tables[B::value].size(); ++i)
      table[i] = bitladder::to_fp16(0.05f);
    const std::vector<float> tiny(static_cast<std::size_t>(cols), -1e-45f);
    std::vector<float> y(4);
    for (cpu::isa use : support::isas_here()) {
      cpu::gemv<B::value>(q.planes.view(), q.tables[B::value], tiny, y, nullptr, use);
      CHECK(support::same_bits(y, std::vector<float>(4, -0.0f)));
    }
  }
}

TEST_CASE_TEMPLATE("dense weights of every type give the reference's bits", T, float,
                   bitladder::fp16_t, bitladder::bf16_t) {
  support::random rng(36);
  for (int cols : col_counts)
    for (int rows : row_counts) {
      const std::size_t stride = static_cast<std::size_t>(cols) + 3;
      std::vector<T> w(static_cast<std::size_t>(rows) * stride);
      for (T& v : w) v = narrow<T>(static_cast<float>(rng.normal()));
      const matrix_view<const T> view(w.data(), rows, cols, stride);
      const auto x = rng.normals(static_cast<std::size_t>(cols));
      std::vector<float> expected(static_cast<std::size_t>(rows)), y(expected.size());
      cpu::reference::gemv(view, x, expected);
      for (cpu::isa use : support::isas_here())
        for (int threads : {1, 2}) {
          thread_pool pool(threads);
          std::fill(y.begin(), y.end(), NAN);
          cpu::gemv(view, x, y, &pool, use);
          CAPTURE(rows);
          CAPTURE(cols);
          CAPTURE(to_string(use));
          CHECK(support::same_bits(y, expected));
        }
    }
}

TEST_CASE("no columns give zeros, and no rows give nothing") {
  std::vector<float> x, y(3, 7.0f), none;
  const bitladder::bitplane_tensor empty(bitladder::bitplane_layout{3, 0, 4});
  cpu::gemv<4>(empty.view(), bitladder::codebook_view(nullptr, 3, 1, 4), x, y);
  CHECK(y == std::vector<float>(3, 0.0f));
  y.assign(3, 7.0f);
  cpu::gemv(matrix_view<const float>(nullptr, 3, 0), x, y);
  CHECK(y == std::vector<float>(3, 0.0f));
  x.assign(5, 1.0f);
  const bitladder::bitplane_tensor no_rows(bitladder::bitplane_layout{0, 5, 4});
  CHECK_NOTHROW(cpu::gemv<4>(no_rows.view(), bitladder::codebook_view(nullptr, 0, 1, 4), x, none));
  CHECK_NOTHROW(cpu::gemv(matrix_view<const float>(nullptr, 0, 5), x, none));
}
