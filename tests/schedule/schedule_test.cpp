// SPDX-License-Identifier: MIT
// Schedules against loops that follow PMPD's program step by step. Seed of draws: 1 and on.
#include <bitladder/core/status.hpp>
#include <bitladder/schedule/any.hpp>
#include <bitladder/schedule/bit_log.hpp>
#include <bitladder/schedule/confidence.hpp>
#include <bitladder/schedule/observation.hpp>
#include <bitladder/schedule/parse.hpp>
#include <bitladder/schedule/progressive.hpp>
#include <bitladder/schedule/random_switch.hpp>

#include <support/files.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

namespace bs = bitladder::schedule;
using support::error_of;

namespace {

/// Bits of the prompt and of `tokens` new ones; `probabilities` are told from step 1 on.
std::vector<int> run(bs::any schedule, int tokens, const std::vector<float>& probabilities = {}) {
  std::vector<int> bits;
  bs::observation o;
  for (o.step = 0; o.step <= tokens; ++o.step) {
    const auto i = static_cast<std::size_t>(o.step);
    o.top_probability = i >= 1 && i <= probabilities.size() ? probabilities[i - 1] : -1.f;
    bits.push_back(schedule(o));
    o.bits = bits.back();
  }
  return bits;
}

/// What PMPD's generation loop does with a rule that is given the number of tokens read: the first
/// pass is at the highest precision, the rule is asked after each.
template <class Rule>
std::vector<int> pmpd_loop(int high, int tokens, Rule&& rule) {
  std::vector<int> bits{high};  // the prompt
  int current = high;
  for (int index = 1; index <= tokens; ++index) {
    bits.push_back(current);
    current = rule(index);
  }
  return bits;
}

}  // namespace

TEST_CASE("a number is the same precision for every pass") {
  CHECK(run(4, 3) == std::vector<int>{4, 4, 4, 4});
  CHECK(run(bs::constant(3), 2) == std::vector<int>{3, 3, 3});
  CHECK(bs::any(bs::constant(3)).precisions() == std::vector<int>{3});
  CHECK(bs::any(5).precisions() == std::vector<int>{5});
}

TEST_CASE("the prompt may have a precision of its own") {
  const bs::any plan = bs::phase_aware<bs::progressive>(8, bs::progressive({{1, 4}, {3, 2}}));
  CHECK(run(plan, 4) == std::vector<int>{8, 4, 4, 2, 2});
  CHECK(plan.precisions() == std::vector<int>{4, 2, 8});
  CHECK(!plan.needs_probability());
}

TEST_CASE("progressive precisions fall at their steps, and the prompt has the first") {
  CHECK(run(bs::progressive({{1, 4}, {2, 3}, {5, 2}}), 6) == std::vector<int>{4, 4, 3, 3, 3, 2, 2});
  CHECK(run(bs::progressive({{1, 6}}), 1) == std::vector<int>{6, 6});
  const auto refused = [](std::vector<bs::progressive::change> changes) {
    return error_of([&] { bs::progressive{changes}; }).text;
  };
  CHECK(support::contains(refused({}), "at least one precision"));
  CHECK(support::contains(refused({{2, 4}}), "change 0: expected the first precision from step 1"));
  CHECK(support::contains(refused({{1, 4}, {1, 3}}), "change 1: expected a step after 1"));
  CHECK(support::contains(refused({{1, 4}, {9, 4}}),
                          "change 1: expected fewer bits than 4, found 4 bits from step 9"));
}

TEST_CASE("the static rule counts steps as PMPD's program does") {
  for (int h : {0, 1, 2, 3, 7, 100})
    CHECK(run(bs::pmpd_static(4, 3, h), 8) ==
          pmpd_loop(4, 8, [h](int index) { return index < h ? 4 : 3; }));
  CHECK(run(bs::pmpd_static(4, 3, std::numeric_limits<int>::max()), 3) ==
        std::vector<int>{4, 4, 4, 4});
  CHECK(support::contains(error_of([] { bs::pmpd_static(4, 3, -1); }).text, "found -1"));
  CHECK(support::contains(error_of([] { bs::pmpd_static(3, 3, 1); }).text, "fewer bits than 3"));
}

TEST_CASE("confidence falls when a probability reaches mean and deviation of its window") {
  support::random random(1);
  for (int window : {2, 3, 10}) {
    std::vector<float> p;
    for (int i = 0; i < 200; ++i) p.push_back(static_cast<float>(random.uniform()));
    // The rule is given the probabilities after each token that was read: p[1] after the first.
    std::vector<double> seen;
    int level = 4;
    double threshold = 0;
    const auto expected = pmpd_loop(4, 150, [&](int index) {
      const double now = static_cast<double>(p[static_cast<std::size_t>(index)]);
      if (level == 2) return level;
      if (static_cast<int>(seen.size()) < window) {
        seen.push_back(now);
        double mean = 0, squares = 0;
        for (double x : seen) mean += x / window;
        for (double x : seen) squares += (x - mean) * (x - mean);
        threshold = mean + std::sqrt(squares / (window - 1));
      } else if (now >= threshold) {
        --level;
        seen.clear();
      }
      return level;
    });
    const bs::any plan = bs::confidence({4, 3, 2}, window);
    CHECK(plan.needs_probability());
    const std::vector<int> bits = run(plan, 150, p);
    CHECK(bits == expected);
    if (window == 10) CHECK(bits.back() == 2);  // of two, the threshold may be above 1
    CHECK(run(plan, 150, p) == expected);       // copies begin anew
  }
  bs::any again = bs::confidence({4, 3}, 2);
  const std::vector<float> sure{0.5f, 0.1f, 0.1f, 0.9f};
  bs::observation o;
  for (int text = 0; text < 2; ++text)
    for (o.step = 0; o.step <= 4; ++o.step) {
      o.top_probability = o.step > 0 ? sure[static_cast<std::size_t>(o.step) - 1] : -1.f;
      CHECK(again(o) == (o.step == 4 ? 3 : 4));
    }
  CHECK(support::contains(error_of([] { bs::confidence({}); }).text, "at least one precision"));
  CHECK(support::contains(error_of([] { bs::confidence({3, 4}); }).text, "found 4 after 3"));
  CHECK(support::contains(error_of([] {
                            bs::confidence({4, 3}, 1);
                          }).text,
                          "window of at least 2"));
}

TEST_CASE("a random switch is one of four static ones, drawn for each text by its weights") {
  const int m = 9;
  std::map<std::vector<int>, int> found;
  bs::random_switch even(4, 2, m, 5);
  for (int text = 0; text < 4000; ++text) {
    std::vector<int> bits;
    bs::observation o;
    for (o.step = 0; o.step <= m; ++o.step) bits.push_back(even(o));
    ++found[bits];
  }
  CHECK(found.size() == 4);
  for (int h : {0, 3, 6, 9}) CHECK(std::abs(found[run(bs::pmpd_static(4, 2, h), m)] - 1000) < 150);
  bs::random_switch never(4, 2, m, 5, {0, 0, 0, 2});
  CHECK(run(never, m) == run(bs::pmpd_static(4, 2, m), m));
  CHECK(run(bs::random_switch(4, 2, m, 7), m) == run(bs::random_switch(4, 2, m, 7), m));
  CHECK(support::contains(error_of([] {
                            bs::random_switch(4, 2, 9, 0, {0, 0, 0, 0});
                          }).text,
                          "a sum above 0"));
  CHECK(support::contains(error_of([] {
                            bs::random_switch(4, 2, 9, 0, {-1, 0, 0, 2});
                          }).text,
                          "weights of at least 0"));
}

TEST_CASE("a caller's function sees the step, the probability and the bits before") {
  std::vector<bs::observation> told;
  const bs::any plan = [&told](const bs::observation& o) {
    told.push_back(o);
    return 4 - o.step;
  };
  CHECK(plan.needs_probability());
  CHECK(plan.precisions().empty());
  CHECK(run(plan, 2, {0.5f, 0.25f}) == std::vector<int>{4, 3, 2});
  REQUIRE(told.size() == 3);
  CHECK(told[0].top_probability < 0.f);
  CHECK(told[1].top_probability == 0.5f);
  CHECK(told[2].bits == 3);
  const bs::any by_step = [](int step) { return step < 2 ? 4 : 3; };
  CHECK(!by_step.needs_probability());
  CHECK(run(by_step, 3) == std::vector<int>{4, 4, 3, 3});
  CHECK(by_step(1) == 4);
  CHECK(by_step(2) == 3);
}

TEST_CASE("schedules are read from text") {
  CHECK(run(bs::parse("4"), 2) == std::vector<int>{4, 4, 4});
  CHECK(run(bs::parse("8/4,3@2,2@4"), 5) == std::vector<int>{8, 4, 3, 3, 2, 2});
  CHECK(bs::parse("8/4,3@2").precisions() == std::vector<int>{4, 3, 8});
  CHECK(bs::parse("8/confidence:4,3").needs_probability());
  CHECK(!bs::parse("8/4").needs_probability());
  CHECK(run(bs::parse("random:4,3", 9, 3), 9) == run(bs::random_switch(4, 3, 9, 3), 9));
  const auto refused = [](const char* text) {
    const auto thrown = error_of([&] { bs::parse(text); });
    return thrown.code == bitladder::status::invalid_argument ? thrown.text : "";
  };
  CHECK(support::contains(refused("four"), "schedule \"four\": expected a number, found \"four\""));
  CHECK(support::contains(refused(""), "expected a number, found \"\""));
  CHECK(support::contains(refused("4,3"), "expected BITS@STEP after the first precision"));
  CHECK(support::contains(refused("4,3@"), "found \"\""));
  CHECK(support::contains(refused("4,3@x"), "found \"x\""));
  CHECK(support::contains(refused("/4"), "found \"\""));
  CHECK(support::contains(refused("8/4,5@3"), "fewer bits than 4, found 5 bits from step 3"));
  CHECK(support::contains(refused("random:4"), "two precisions"));
  CHECK(support::contains(refused("99999999999"), "a number"));
}

TEST_CASE("averages count all passes, or those that PMPD's program counts") {
  const std::vector<int> bits{8, 4, 4, 2, 2};
  CHECK(bs::average_bits(bits) == 4.0);
  CHECK(bs::pmpd_average_bits(bits) == doctest::Approx(8.0 / 3));
  CHECK(bs::average_bits({}) == 0);
  CHECK(bs::average_bits({0, 4}) == 10.0);  // unquantized passes
  CHECK(bs::count_bits(bits) == std::map<int, int>{{2, 2}, {4, 2}, {8, 1}});
}
