// SPDX-License-Identifier: MIT
// Against plain loops in double, and the two compilations against each other. Seed: 91 and on.
#include <llama/layer_math.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <vector>

namespace {

using bitladder::cpu::isa;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// What `f(isa)` gives with each instruction set, which must be the same bits; returns them.
template <class F>
std::vector<float> same_everywhere(F&& f) {
  const std::vector<float> first = f(isa::scalar);
  for (isa i : bitladder::cpu::all_isas) {
    if (!bitladder::cpu::supported(i)) continue;
    const std::vector<float> other = f(i);
    REQUIRE(other.size() == first.size());
    CHECK(std::memcmp(first.data(), other.data(), first.size() * sizeof(float)) == 0);
  }
  return first;
}

template <class Row>
std::vector<float> applied(const std::vector<float>& x) {
  return same_everywhere([&](isa i) {
    std::vector<float> y = x;
    llama::run<Row>(i, y.data(), y.size());
    return y;
  });
}

const std::size_t sizes[] = {1, 2, 7, 8, 9, 31, 32, 33, 100, 257};

std::vector<float> range(float from, float to, float step) {
  std::vector<float> x;
  for (float v = from; v <= to; v += step) x.push_back(v);
  return x;
}

}  // namespace

TEST_CASE("a layer norm has the mean and the variance taken out, whatever the mean") {
  support::random random(91);
  for (std::size_t n : sizes)
    for (float offset : {0.f, 3.f, -1000.f}) {
      CAPTURE(n);
      CAPTURE(offset);
      std::vector<float> x = random.normals(n), weight = random.normals(n),
                         bias = random.normals(n);
      for (float& v : x) v += offset;
      const float epsilon = 1e-5f;
      const std::vector<float> got = same_everywhere([&](isa i) {
        std::vector<float> y(n);
        llama::run<llama::layer_norm_row>(i, x.data(), weight.data(), bias.data(), y.data(), n,
                                          epsilon);
        return y;
      });
      double mean = 0, variance = 0, largest = 0;
      for (float v : x) mean += static_cast<double>(v) / static_cast<double>(n);
      for (float v : x) {
        const double d = static_cast<double>(v) - mean;
        variance += d * d / static_cast<double>(n);
        largest = std::max(largest, std::abs(static_cast<double>(v)));
      }
      const double scale = 1 / std::sqrt(variance + static_cast<double>(epsilon));
      for (std::size_t k = 0; k < n; ++k) {
        const double w = static_cast<double>(weight[k]), b = static_cast<double>(bias[k]);
        const double term = (static_cast<double>(x[k]) - mean) * scale * w;
        // The mean carries at most n / 8 + 4 roundings of numbers up to `largest`; every result has
        // its share of that, and some roundings of its own.
        const double roundings = static_cast<double>(n) / 8 + 4;
        const double bound =
            std::ldexp(1.0, -24) * (largest * scale * std::abs(w) * roundings * 2 +
                                    (roundings + 8) * (std::abs(term) + std::abs(b)));
        CHECK(std::abs(static_cast<double>(got[k]) - (term + b)) <= bound);
      }
    }
}

TEST_CASE("a layer norm of equal numbers is its bias") {
  const std::vector<float> x(20, 1.5f), weight(20, 2.f), bias(20, 0.25f);
  std::vector<float> y(20);
  llama::run<llama::layer_norm_row>(isa::scalar, x.data(), weight.data(), bias.data(), y.data(),
                                    y.size(), 1e-5f);
  for (float v : y) CHECK(v == 0.25f);
}

TEST_CASE("relu keeps what is above zero") {
  for (std::size_t n : sizes) {
    std::vector<float> x(n);
    for (std::size_t k = 0; k < n; ++k) x[k] = static_cast<float>(k) - static_cast<float>(n) / 2;
    const std::vector<float> got = applied<llama::relu_row>(x);
    for (std::size_t k = 0; k < n; ++k) CHECK(got[k] == std::max(x[k], 0.f));
  }
  const std::vector<float> got = applied<llama::relu_row>({infinity, -infinity, not_a_number});
  CHECK(got[0] == infinity);
  CHECK(got[1] == 0.f);
  CHECK(std::isnan(got[2]));
}

TEST_CASE("silu alone is silu times one") {
  const std::vector<float> x = range(-100.f, 100.f, 0.37f);
  const std::vector<float> got = applied<llama::silu_row>(x);
  std::vector<float> gate = x;
  const std::vector<float> ones(x.size(), 1.f);
  llama::run<llama::silu_product>(isa::scalar, gate.data(), ones.data(), gate.size());
  CHECK(got == gate);
}

TEST_CASE("gelu is within the bound that its comment derives") {
  std::vector<float> x = range(-12.f, 12.f, 0.00037f);
  for (float tiny : {0.f, 1e-30f, -1e-30f, 1e-3f, -1e-3f, 30.f, -30.f, 1e10f, -1e10f})
    x.push_back(tiny);
  const std::vector<float> got = applied<llama::gelu_tanh_row>(x);
  double worst_of_bound = 0, worst = 0;
  for (std::size_t k = 0; k < x.size(); ++k) {
    const double v = static_cast<double>(x[k]);
    const double u = std::sqrt(2 / 3.14159265358979323846) * (v + 0.044715 * v * v * v);
    const double s = 1 / (1 + std::exp(-2 * u)), exact = v * s;
    const double error = std::abs(static_cast<double>(got[k]) - exact);
    const double steep = std::abs(v) < 1e3 ? std::abs(v * 2 * u) * s * (1 - s) : 0;
    const double bound =
        std::ldexp(3 * std::abs(exact) + 2 * steep, -23) * 1.001 + std::ldexp(std::abs(v), -126);
    CHECK(error <= bound);
    if (bound > 0) worst_of_bound = std::max(worst_of_bound, error / bound);
    if (std::abs(v) <= 12) worst = std::max(worst, error);
  }
  MESSAGE("largest part of the bound " << worst_of_bound << ", largest error " << worst);
  CHECK(worst < 1e-6);
  const std::vector<float> ends = applied<llama::gelu_tanh_row>({infinity, not_a_number});
  CHECK(ends[0] == infinity);
  CHECK(std::isnan(ends[1]));
}
