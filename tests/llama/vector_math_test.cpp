// SPDX-License-Identifier: MIT
// Against plain loops in double, and the two compilations against each other. Seed: 11.
#include <llama/vector_math.hpp>
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

std::vector<isa> isas() {
  std::vector<isa> out;
  for (isa i : bitladder::cpu::all_isas)
    if (bitladder::cpu::supported(i)) out.push_back(i);
  return out;
}

/// What `f(isa)` gives with each instruction set, which must be the same bits; returns them.
template <class F>
std::vector<float> same_everywhere(F&& f) {
  const std::vector<float> first = f(isa::scalar);
  for (isa i : isas()) {
    const std::vector<float> other = f(i);
    REQUIRE(other.size() == first.size());
    for (std::size_t k = 0; k < first.size(); ++k) {
      CAPTURE(k);
      CHECK(std::memcmp(&first[k], &other[k], sizeof(float)) == 0);
    }
  }
  return first;
}

const std::size_t sizes[] = {1, 2, 7, 8, 9, 31, 32, 33, 100, 257};

}  // namespace

TEST_CASE("exp is within 2 units in the last place, clamped outside its range, NaN for NaN") {
  double worst = 0;
  for (double x = -87; x < 88; x += 0.0007) {
    const float f = static_cast<float>(x);
    const double exact = std::exp(static_cast<double>(f));
    worst = std::max(worst, std::abs(static_cast<double>(llama::detail::exp(f)) - exact) / exact);
  }
  CHECK(worst < 1.2e-7);
  CHECK(llama::detail::exp(0.f) == 1.f);
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(llama::detail::exp(-infinity) < 1e-37f);
  CHECK(llama::detail::exp(infinity) > 1e38f);
  CHECK(std::isnan(llama::detail::exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("the terms of a softmax and their sum") {
  support::random random(11);
  for (std::size_t n : sizes) {
    CAPTURE(n);
    std::vector<float> x = random.normals(n);
    for (float& v : x) v *= 8;
    const float scale = 0.37f;
    const std::vector<float> got = same_everywhere([&](isa i) {
      std::vector<float> y = x;
      const float max = llama::run<llama::row_max>(i, y.data(), n);
      y.push_back(llama::run<llama::exp_terms>(i, y.data(), n, max, scale));
      y.push_back(max);
      return y;
    });
    const float max = *std::max_element(x.begin(), x.end());
    CHECK(got[n + 1] == max);
    double sum = 0;
    for (std::size_t k = 0; k < n; ++k) {
      const double term = std::exp(static_cast<double>(scale) *
                                   (static_cast<double>(x[k]) - static_cast<double>(max)));
      CHECK(static_cast<double>(got[k]) == doctest::Approx(term).epsilon(1e-5));
      sum += term;
    }
    CHECK(static_cast<double>(got[n]) == doctest::Approx(sum).epsilon(1e-5));
  }
}

TEST_CASE("silu(gate) * up, for large gates too") {
  support::random random(12);
  for (std::size_t n : sizes) {
    std::vector<float> gate = random.normals(n);
    const std::vector<float> up = random.normals(n);
    if (n > 2) {
      gate[0] = -200;
      gate[1] = 200;
    }
    const std::vector<float> got = same_everywhere([&](isa i) {
      std::vector<float> y = gate;
      llama::run<llama::silu_product>(i, y.data(), up.data(), n);
      return y;
    });
    for (std::size_t k = 0; k < n; ++k) {
      const double g = static_cast<double>(gate[k]);
      CHECK(static_cast<double>(got[k]) ==
            doctest::Approx(g / (1 + std::exp(-g)) * static_cast<double>(up[k])).epsilon(1e-5));
    }
  }
}

TEST_CASE("RMS norm divides by the root of the mean square") {
  support::random random(13);
  for (std::size_t n : sizes) {
    const std::vector<float> x = random.normals(n), weight = random.normals(n);
    const std::vector<float> got = same_everywhere([&](isa i) {
      std::vector<float> y(n);
      llama::run<llama::rms_norm_row>(i, x.data(), weight.data(), y.data(), n, 1e-5f);
      return y;
    });
    double squares = 0;
    for (float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
    const double rms = std::sqrt(squares / static_cast<double>(n) + 1e-5);
    for (std::size_t k = 0; k < n; ++k)
      CHECK(static_cast<double>(got[k]) ==
            doctest::Approx(static_cast<double>(x[k]) / rms * static_cast<double>(weight[k]))
                .epsilon(1e-5));
  }
}

TEST_CASE("rope turns the pairs (i, i + half) and keeps their length") {
  support::random random(14);
  for (std::size_t pairs : {1u, 3u, 4u, 8u, 16u, 31u, 64u}) {
    const std::vector<float> x = random.normals(2 * pairs);
    std::vector<float> cosines(pairs), sines(pairs);
    for (std::size_t k = 0; k < pairs; ++k) {
      const double angle = 6 * random.uniform();
      cosines[k] = static_cast<float>(std::cos(angle));
      sines[k] = static_cast<float>(std::sin(angle));
    }
    const std::vector<float> got = same_everywhere([&](isa i) {
      std::vector<float> y = x;
      llama::run<llama::rope_head>(i, y.data(), cosines.data(), sines.data(), pairs);
      return y;
    });
    for (std::size_t k = 0; k < pairs; ++k) {
      const double a = static_cast<double>(x[k]), b = static_cast<double>(x[k + pairs]);
      const double c = static_cast<double>(cosines[k]), s = static_cast<double>(sines[k]);
      CHECK(static_cast<double>(got[k]) == doctest::Approx(a * c - b * s).epsilon(1e-5));
      CHECK(static_cast<double>(got[k + pairs]) == doctest::Approx(b * c + a * s).epsilon(1e-5));
    }
  }
}

TEST_CASE("rows are added") {
  support::random random(15);
  for (std::size_t n : sizes) {
    const std::vector<float> x = random.normals(n), y = random.normals(n);
    const std::vector<float> got = same_everywhere([&](isa i) {
      std::vector<float> out = y;
      llama::run<llama::add_row>(i, x.data(), out.data(), n);
      return out;
    });
    for (std::size_t k = 0; k < n; ++k) CHECK(got[k] == x[k] + y[k]);
  }
}
