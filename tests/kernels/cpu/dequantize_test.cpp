// SPDX-License-Identifier: MIT
// Seeds 51 and 52.
#include <bitladder/core/parallel.hpp>
#include <bitladder/kernels/cpu/dequantize.hpp>
#include <bitladder/kernels/cpu/reference.hpp>

#include "fixture.hpp"
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <vector>

namespace cpu = bitladder::cpu;

TEST_CASE_TEMPLATE("every weight is exactly its table entry, at every precision of one tensor", B,
                   ALL_BITS) {
  support::random rng(51);
  struct {
    int rows, cols, groups;
  } const shapes[] = {{1, 1, 1},    {3, 31, 1},   {2, 32, 1},  {3, 33, 1},
                      {7, 256, 1},  {5, 768, 3},  {33, 96, 1}, {4, 1000, 1},
                      {4, 1000, 5}, {2, 1056, 1}, {3, 66, 3},  {9, 600, 2}};
  for (const auto s : shapes) {
    const support::quantized q(s.rows, s.cols, 8, s.groups, rng);
    std::vector<float> expected;
    for (int r = 0; r < s.rows; ++r)
      for (int c = 0; c < s.cols; ++c) {
        const int code = q.codes[static_cast<std::size_t>(r * s.cols + c)] >> (8 - B::value);
        expected.push_back(to_float(q.tables[B::value].table(r, c * s.groups / s.cols)[code]));
      }
    std::vector<float> plain(expected.size());
    cpu::reference::dequantize(q.planes.view(), q.tables[B::value],
                               support::matrix(plain, s.rows, s.cols));
    CHECK(plain == expected);
    for (cpu::isa use : support::isas_here())
      for (int threads : {1, 3}) {
        bitladder::thread_pool pool(threads);
        // Rows apart by more than their length: what lies between them must stay.
        const std::size_t stride = static_cast<std::size_t>(s.cols) + 2;
        std::vector<float> out(static_cast<std::size_t>(s.rows) * stride, 9.0f);
        cpu::dequantize<B::value>(q.planes.view(), q.tables[B::value],
                                  bitladder::matrix_view<float>(out.data(), s.rows, s.cols, stride),
                                  &pool, use);
        CAPTURE(s.rows);
        CAPTURE(s.cols);
        CAPTURE(s.groups);
        CAPTURE(to_string(use));
        bool same = true;
        for (std::size_t r = 0; r < static_cast<std::size_t>(s.rows); ++r) {
          for (std::size_t c = 0; c < static_cast<std::size_t>(s.cols); ++c)
            same &= support::same_bits(out[r * stride + c],
                                       expected[r * static_cast<std::size_t>(s.cols) + c]);
          same &= out[r * stride + stride - 2] == 9.0f && out[r * stride + stride - 1] == 9.0f;
        }
        CHECK(same);
      }
  }
}

TEST_CASE("every fp16 value comes through, infinities and subnormals included") {
  // 256 rows whose 8-bit tables hold all 65536 fp16 values; row r reads its codes in order.
  bitladder::codebook_ladder tables(256, 1, 8, 8);
  std::vector<std::uint8_t> codes(256 * 256);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    tables.data(8)[i] = {static_cast<std::uint16_t>(i)};
    codes[i] = static_cast<std::uint8_t>(i % 256);
  }
  const auto planes =
      bitladder::pack(bitladder::matrix_view<const std::uint8_t>(codes.data(), 256, 256), 8);
  for (cpu::isa use : support::isas_here()) {
    std::vector<float> out(codes.size());
    cpu::dequantize(8, planes.view(), tables[8], support::matrix(out, 256, 256), nullptr, use);
    int wrong = 0;
    for (std::size_t i = 0; i < out.size(); ++i)
      wrong += !support::same_bits(
          out[i], bitladder::to_float(bitladder::fp16_t{static_cast<std::uint16_t>(i)}));
    CHECK(wrong == 0);
  }
  // The same through 4-bit tables: 4096 rows of 16 values.
  bitladder::codebook_ladder small(4096, 1, 4, 4);
  std::copy_n(tables.data(8), codes.size(), small.data(4));
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i % 16);
  const auto small_planes =
      bitladder::pack(bitladder::matrix_view<const std::uint8_t>(codes.data(), 4096, 16), 4);
  for (cpu::isa use : support::isas_here()) {
    std::vector<float> out(codes.size());
    cpu::dequantize(4, small_planes.view(), small[4], support::matrix(out, 4096, 16), nullptr, use);
    int wrong = 0;
    for (std::size_t i = 0; i < out.size(); ++i)
      wrong += !support::same_bits(
          out[i], bitladder::to_float(bitladder::fp16_t{static_cast<std::uint16_t>(i)}));
    CHECK(wrong == 0);
  }
}
