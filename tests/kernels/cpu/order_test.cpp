// SPDX-License-Identifier: MIT
// Seed 11.
#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cpu/order.hpp>

#include "fixture.hpp"
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

namespace cpu = bitladder::cpu;

namespace {

// The three rules again, written lane by lane instead of column by column.
float dot_by_lanes(const std::vector<float>& w, const std::vector<float>& x) {
  std::vector<float> sums;
  for (std::size_t lane = 0; lane < 32; ++lane) {
    float sum = 0;
    for (std::size_t c = lane; c < w.size(); c += 32) sum = std::fma(w[c], x[c], sum);
    sums.push_back(sum);
  }
  while (sums.size() > 1) {
    std::vector<float> halves;
    for (std::size_t l = 0; l < sums.size() / 2; ++l)
      halves.push_back(sums[l] + sums[l + sums.size() / 2]);
    sums = halves;
  }
  return sums[0];
}

}  // namespace

TEST_CASE("a dot product follows the documented order, bit for bit") {
  support::random rng(11);
  for (int cols : {0, 1, 5, 31, 32, 33, 63, 64, 65, 257, 1000}) {
    const auto w = rng.normals(static_cast<std::size_t>(cols));
    const auto x = rng.normals(static_cast<std::size_t>(cols));
    CAPTURE(cols);
    CHECK(support::same_bits(cpu::dot(w.data(), x.data(), cols), dot_by_lanes(w, x)));
  }
}

TEST_CASE("the bits of one fixed dot product never change") {
  // w[c] = 1 / (c + 1), x[c] = (-1)^c sqrt(c + 1): values by tests/kernels/cpu/order_golden.py.
  std::vector<float> w, x;
  for (int c = 0; c < 100; ++c) {
    w.push_back(1.0f / static_cast<float>(c + 1));
    x.push_back(std::sqrt(static_cast<float>(c + 1)) * (c % 2 == 0 ? 1.0f : -1.0f));
  }
  CHECK(bitladder::detail::bits_of(cpu::dot(w.data(), x.data(), 1)) == 0x3f800000u);
  CHECK(bitladder::detail::bits_of(cpu::dot(w.data(), x.data(), 33)) == 0x3f30f7a8u);
  CHECK(bitladder::detail::bits_of(cpu::dot(w.data(), x.data(), 100)) == 0x3f0e1600u);
}

TEST_CASE("16-bit weights are widened before the product") {
  support::random rng(12);
  const auto x = rng.normals(70);
  std::vector<bitladder::fp16_t> half;
  std::vector<bitladder::bf16_t> brain;
  std::vector<float> half_wide, brain_wide;
  for (float v : rng.normals(70)) {
    half.push_back(bitladder::to_fp16(v));
    brain.push_back(bitladder::to_bf16(v));
    half_wide.push_back(to_float(half.back()));
    brain_wide.push_back(to_float(brain.back()));
  }
  CHECK(cpu::dot(half.data(), x.data(), 70) == cpu::dot(half_wide.data(), x.data(), 70));
  CHECK(cpu::dot(brain.data(), x.data(), 70) == cpu::dot(brain_wide.data(), x.data(), 70));
}

TEST_CASE("a padding step changes no lane, not even minus zero") {
  for (float lane : {0.0f, -0.0f, 1.5f, -INFINITY, NAN})
    CHECK(support::same_bits(std::fma(cpu::padding_weight, 0.0f, lane), lane));
}
