// SPDX-License-Identifier: MIT
#include <llama/rope.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

namespace {

llama::config with(llama::rope_parameters rope, int head_dim = 8) {
  llama::config c;
  c.head_dim = head_dim;
  c.rope = rope;
  return c;
}

}  // namespace

TEST_CASE("plain frequencies are powers of the base") {
  const std::vector<float> f = llama::rope_frequencies(with({}));
  REQUIRE(f.size() == 4);
  for (std::size_t i = 0; i < 4; ++i)
    CHECK(f[i] == doctest::Approx(std::pow(10.0, -static_cast<double>(i))).epsilon(1e-6));
}

TEST_CASE("linear scaling divides every frequency by the factor") {
  llama::rope_parameters r;
  const std::vector<float> plain = llama::rope_frequencies(with(r));
  r.type = llama::rope_type::linear;
  r.factor = 4;
  const std::vector<float> scaled = llama::rope_frequencies(with(r));
  for (std::size_t i = 0; i < 4; ++i) CHECK(scaled[i] == plain[i] / 4);
}

TEST_CASE("llama3 scaling keeps short wavelengths, stretches long ones and blends between") {
  llama::rope_parameters r;
  r.theta = 500000;
  const std::vector<float> plain = llama::rope_frequencies(with(r, 128));
  r.type = llama::rope_type::llama3;
  r.factor = 8;
  r.original_context = 8192;
  const std::vector<float> scaled = llama::rope_frequencies(with(r, 128));
  int kept = 0, blended = 0, stretched = 0;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const double wavelength = 2 * std::acos(-1.0) / static_cast<double>(plain[i]);
    const double ratio = static_cast<double>(scaled[i]) / static_cast<double>(plain[i]);
    if (wavelength < 8192.0 / 4) {
      CHECK(ratio == 1);
      ++kept;
    } else if (wavelength > 8192.0) {
      CHECK(ratio == doctest::Approx(1.0 / 8).epsilon(1e-6));
      ++stretched;
    } else {
      const double smooth = (8192 / wavelength - 1) / 3;
      CHECK(ratio == doctest::Approx(smooth + (1 - smooth) / 8).epsilon(1e-6));
      ++blended;
    }
  }
  CHECK(kept > 0);
  CHECK(blended > 0);
  CHECK(stretched > 0);
}

TEST_CASE("a table grown in steps is the table made at once") {
  llama::rope_table once(with({})), stepwise(with({}));
  once.reserve(40);
  for (int n : {1, 2, 17, 17, 40}) stepwise.reserve(n);
  CHECK(stepwise.positions() == 40);
  for (int p = 0; p < 40; ++p)
    for (int i = 0; i < once.pairs(); ++i) {
      CHECK(once.cosines(p)[i] == stepwise.cosines(p)[i]);
      CHECK(once.sines(p)[i] == stepwise.sines(p)[i]);
      const double angle = p * std::pow(10.0, -i);
      CHECK(once.cosines(p)[i] == doctest::Approx(std::cos(angle)).epsilon(1e-5));
      CHECK(once.sines(p)[i] == doctest::Approx(std::sin(angle)).epsilon(1e-5));
    }
}
