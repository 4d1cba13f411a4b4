// SPDX-License-Identifier: MIT
// Random data: seed 13.
#include <bitladder/quantize/interval_search.hpp>

#include <support/random.hpp>

#include <doctest/doctest.h>

#include <limits>
#include <vector>

using namespace bitladder::kmeans;

namespace {

struct sums {
  std::vector<double> gain, sum, weight;
};

sums make(support::random& r, int count, bool ties) {
  sums s;
  double sum = 0, weight = 0;
  for (int i = 0; i <= count; ++i) {
    s.gain.push_back(ties ? r.below(3) : r.uniform() * 10);
    s.sum.push_back(sum);
    s.weight.push_back(weight);
    const double w = ties ? 1 : r.chi_squared() + 1e-9;
    sum += ties ? r.below(3) - 1 : r.normal() * w;
    weight += w;
  }
  return s;
}

}  // namespace

TEST_CASE("the plain loops find the largest value, the first among equals") {
  support::random r(13);
  for (int count = 1; count < 40; ++count) {
    const sums s = make(r, count, count % 2 == 0);
    const double end = s.weight.back() + 1;
    const candidate best =
        best_interval_scalar(s.gain.data(), s.sum.data(), s.weight.data(), count, 0.25, end);
    const auto value = [&](std::size_t i) {
      const double d = s.sum[i] - 0.25;
      return s.gain[i] + d * d / (end - s.weight[i]);
    };
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      CHECK(value(i) <= best.value);
      if (static_cast<int>(i) < best.index) CHECK(value(i) < best.value);
    }
    CHECK(value(static_cast<std::size_t>(best.index)) == best.value);
  }
}

TEST_CASE("cuts are found by the fall of the error") {
  support::random r(13);
  for (int count = 2; count < 40; ++count) {
    const sums s = make(r, count, false);
    const std::size_t n = static_cast<std::size_t>(count);
    const auto gain = [&](std::size_t i, std::size_t j) {
      const double d = s.sum[j] - s.sum[i];
      return d * d / (s.weight[j] - s.weight[i]);
    };
    const candidate best = best_cut_scalar(s.sum.data(), s.weight.data(), count);
    REQUIRE(best.index > 0);
    REQUIRE(best.index < count);
    const std::size_t b = static_cast<std::size_t>(best.index);
    CHECK(best.value * s.weight[n] ==
          doctest::Approx(gain(0, b) + gain(b, n) - gain(0, n)).epsilon(1e-6));
    for (std::size_t i = 1; i < n; ++i)
      CHECK(gain(0, i) + gain(i, n) <= gain(0, b) + gain(b, n) + 1e-9);
  }
}

TEST_CASE("the machine's version equals the plain one to the last bit") {
  support::random r(13);
  const interval_search fast = interval_search::fastest();
  for (int count = 1; count < 200; ++count) {
    for (int form = 0; form < 4; ++form) {
      sums s = make(r, count, form == 1);
      if (form == 2)  // places that cannot be reached
        for (int i = 0; i < (count + 1) / 2; ++i)
          s.gain[static_cast<std::size_t>(i)] = -std::numeric_limits<double>::infinity();
      if (form == 3)
        for (double& x : s.sum) x = 0;  // all alike
      for (const double w : {s.weight.back() + 1, -1.0}) {
        const candidate a =
            best_interval_scalar(s.gain.data(), s.sum.data(), s.weight.data(), count, 0.5, w);
        const candidate b =
            fast.best_interval(s.gain.data(), s.sum.data(), s.weight.data(), count, 0.5, w);
        CHECK(a.index == b.index);
        CHECK(a.value == b.value);
      }
      if (count < 2) continue;
      const candidate a = best_cut_scalar(s.sum.data(), s.weight.data(), count);
      const candidate b = fast.best_cut(s.sum.data(), s.weight.data(), count);
      CHECK(a.index == b.index);
      CHECK(a.value == b.value);
    }
  }
}
