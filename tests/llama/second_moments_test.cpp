// SPDX-License-Identifier: MIT
// Of a sample with one token to foretell, the gradient of a weight is its output's gradient times
// its input, so squared gradients, which have tests of their own, say what second moments must be.
// Seeds: 201 and on.
#include <bitladder/core/parallel.hpp>

#include "model_folder.hpp"
#include <llama/model.hpp>
#include <llama/second_moments.hpp>
#include <llama/squared_gradients.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

namespace {

std::vector<std::string> weights_of(const llama::model& m) {
  std::vector<std::string> names;
  for (int i = 0; i < m.config().layers; ++i)
    for (const std::string& part : llama::linear_names(*m.config().family))
      names.push_back(llama::layer_prefix(*m.config().family, i) + part + ".weight");
  return names;
}

std::vector<int> some_ids(int count, int vocabulary, std::uint64_t seed) {
  support::random random(seed);
  std::vector<int> ids;
  for (int i = 0; i < count; ++i) ids.push_back(random.below(vocabulary));
  return ids;
}

}  // namespace

TEST_CASE("the diagonal over samples of one step is the mean squared gradient of a group's rows") {
  std::vector<std::string> all = support::golden_models;
  all.insert(all.end(), support::family_models.begin(), support::family_models.end());
  for (const std::string& name : all) {
    CAPTURE(name);
    const llama::model m(support::golden_folder(name));
    const std::vector<std::string> names = weights_of(m);
    llama::squared_gradients squares(m, names);
    llama::second_moments moments(m, names, 4);
    for (std::uint64_t s = 0; s < 3; ++s) {
      const std::vector<int> ids = some_ids(2, m.config().vocabulary, 201 + s);
      CHECK(moments.add(ids) == squares.add(ids));
    }
    for (std::size_t i = 0; i < names.size(); ++i) {
      const auto expected = squares.sums(i);
      const auto found = moments.moments(i);
      REQUIRE(expected.rows() % static_cast<int>(found.size()) == 0);
      const int rows = expected.rows() / static_cast<int>(found.size());
      double worst = 0, largest = 0;
      for (std::size_t g = 0; g < found.size(); ++g)
        for (int c = 0; c < expected.cols(); ++c) {
          double mean = 0;
          for (int r = 0; r < rows; ++r)
            mean += static_cast<double>(expected(static_cast<int>(g) * rows + r, c)) / rows;
          largest = std::max(largest, mean);
          worst = std::max(worst, std::abs(mean - static_cast<double>(found[g](c, c))));
        }
      CHECK(largest > 0);
      CHECK(worst < 1e-5 * largest);
    }
  }
}

TEST_CASE("second moments of one token are of rank one, and symmetric to the last bit over many") {
  const llama::model m(support::golden_folder("gqa_tied_f32"));
  const std::vector<std::string> names = weights_of(m);
  llama::second_moments one(m, names, 1), many(m, names, 2);
  one.add(some_ids(2, m.config().vocabulary, 210));
  many.add(some_ids(12, m.config().vocabulary, 211));
  many.add(some_ids(9, m.config().vocabulary, 212));
  for (std::size_t i = 0; i < names.size(); ++i) {
    const auto h = one.moments(i)[0];
    double scale = 0;
    for (int c = 0; c < h.cols(); ++c) scale = std::max(scale, static_cast<double>(h(c, c)));
    double worst = 0;
    for (int r = 0; r < h.rows(); ++r)
      for (int c = 0; c < h.cols(); ++c)
        worst =
            std::max(worst, std::abs(static_cast<double>(h(r, c)) * static_cast<double>(h(r, c)) -
                                     static_cast<double>(h(r, r)) * static_cast<double>(h(c, c))));
    CHECK(worst < 1e-5 * scale * scale);
    for (const auto& g : many.moments(i)) {
      bool same = true;
      for (int r = 0; r < g.rows(); ++r)
        for (int c = 0; c < r; ++c) same = same && g(r, c) == g(c, r);
      CHECK(same);
    }
  }
}

TEST_CASE("second moments do not depend on threads") {
  const llama::model m(support::golden_folder("phi3_f16"));
  const std::vector<std::string> names = weights_of(m);
  bitladder::thread_pool pool(3);
  llama::second_moments alone(m, names, 4), threaded(m, names, 4, &pool);
  const std::vector<int> ids = some_ids(20, m.config().vocabulary, 220);
  alone.add(ids);
  threaded.add(ids);
  for (std::size_t i = 0; i < names.size(); ++i)
    for (std::size_t g = 0; g < alone.moments(i).size(); ++g) {
      const auto a = alone.moments(i)[g], b = threaded.moments(i)[g];
      bool same = true;
      for (int r = 0; r < a.rows(); ++r)
        for (int c = 0; c < a.cols(); ++c) same = same && a(r, c) == b(r, c);
      CHECK(same);
    }
}
