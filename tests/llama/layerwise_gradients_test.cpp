// SPDX-License-Identifier: MIT
// Many samples layer by layer against the same samples one by one, whose gradients
// backward_test.cpp compares with PyTorch's. Seeds: 121 and on.
#include "model_folder.hpp"
#include <llama/backward_cpu.hpp>
#include <llama/layerwise_gradients.hpp>
#include <llama/squared_gradients.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <unordered_set>
#include <vector>

namespace {

using support::stored_model;
using layerwise = llama::layerwise_gradients<llama::cpu_backward_backend>;

std::vector<std::vector<int>> some_samples(int count, int vocabulary, std::uint64_t seed) {
  support::random random(seed);
  std::vector<std::vector<int>> samples(static_cast<std::size_t>(count));
  for (std::size_t s = 0; s < samples.size(); ++s)
    for (std::size_t i = 0; i < 5 + 3 * s; ++i) samples[s].push_back(random.below(vocabulary));
  return samples;
}

std::vector<float> copy_of(bitladder::matrix_view<const float> m) {
  std::vector<float> values;
  for (int r = 0; r < m.rows(); ++r) values.insert(values.end(), m.row(r), m.row(r) + m.cols());
  return values;
}

/// Names of weights of every linear, or of the layers from `first` on.
std::vector<std::string> weights_of(const llama::model& m, int first = 0) {
  std::vector<std::string> names;
  for (int i = first; i < m.config().layers; ++i)
    for (const std::string& part : llama::linear_names(*m.config().family))
      names.push_back(llama::layer_prefix(*m.config().family, i) + part + ".weight");
  return names;
}

struct outcome {
  std::map<std::string, std::vector<float>> sums;
  std::vector<double> losses;
  std::int64_t done = 0, all = 0, told = 0;
};

outcome run(const llama::model& m, const std::vector<std::string>& names,
            const std::vector<std::vector<int>>& samples, std::size_t held_bytes,
            bitladder::thread_pool* pool = nullptr) {
  llama::cpu_backward_backend backend(m, pool);
  std::map<const llama::linear_weight*, std::string> name_of;
  std::unordered_set<const llama::linear_weight*> wanted;
  for (const auto& [name, linear] : llama::detail::named_linears(*m.config().family, m.weights()))
    for (const std::string& n : names)
      if (n == name) {
        wanted.insert(linear);
        name_of.emplace(linear, name);
      }
  std::vector<layerwise::tokens> views(samples.begin(), samples.end());
  outcome o;
  layerwise(backend, held_bytes)
      .run(
          views, wanted, [&](const std::vector<double>& losses) { o.losses = losses; },
          [&](const llama::linear_weight& w, const llama::cpu_buffer& sums) {
            CHECK(o.sums.emplace(name_of.at(&w), copy_of(sums.view())).second);
          },
          [&](std::int64_t done, std::int64_t all) {
            CHECK(done == ++o.told);
            o.done = done;
            o.all = all;
          });
  return o;
}

}  // namespace

TEST_CASE("layer by layer, many samples sum up to the bits that they have one by one") {
  std::vector<std::string> models = support::golden_models;
  models.insert(models.end(), support::family_models.begin(), support::family_models.end());
  for (const std::string& name : models) {
    CAPTURE(name);
    const llama::model m = llama::load(support::golden_folder(name));
    const auto samples = some_samples(4, m.config().vocabulary, 121);
    const std::vector<std::string> names = weights_of(m);
    llama::squared_gradients one_by_one(m, names);
    std::vector<double> losses;
    for (const std::vector<int>& s : samples) losses.push_back(one_by_one.add(s));
    const outcome o = run(m, names, samples, std::size_t{1} << 30);
    CHECK(o.losses == losses);
    CHECK(o.done == o.all);
    REQUIRE(o.sums.size() == names.size());
    for (std::size_t i = 0; i < names.size(); ++i) {
      CAPTURE(names[i]);
      CHECK(o.sums.at(names[i]) == copy_of(one_by_one.sums(i)));
    }
  }
}

TEST_CASE("with little memory layers are run again, and threads share the work: the same bits") {
  const llama::model m = llama::load(support::golden_folder(support::golden_models[0]));
  const auto samples = some_samples(3, m.config().vocabulary, 122);
  const std::vector<std::string> names = weights_of(m);
  const outcome all = run(m, names, samples, std::size_t{1} << 30);
  bitladder::thread_pool pool(3);
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1} << 12, std::size_t{1} << 14}) {
    const outcome o = run(m, names, samples, bytes, &pool);
    CHECK(o.sums == all.sums);
    CHECK(o.losses == all.losses);
    CHECK(o.done == o.all);
  }
}

TEST_CASE("the layers below those that are asked for are not run backward") {
  const llama::model m = llama::load(support::golden_folder(support::golden_models[0]));
  const int layers = m.config().layers;
  REQUIRE(layers >= 2);
  const auto samples = some_samples(3, m.config().vocabulary, 123);
  const outcome all = run(m, weights_of(m), samples, std::size_t{1} << 30);
  const outcome last = run(m, weights_of(m, layers - 1), samples, std::size_t{1} << 30);
  CHECK(last.done == last.all);
  CHECK(last.done == 3 * (layers + 1));
  for (const auto& [name, sums] : last.sums) CHECK(sums == all.sums.at(name));
  const outcome none = run(m, {}, samples, std::size_t{1} << 30);
  CHECK(none.sums.empty());
  CHECK(none.losses == all.losses);
}

TEST_CASE("samples wait at the least distance that fits, or at that which needs least") {
  CHECK(llama::layer_distance(32, 32) == 1);
  CHECK(llama::layer_distance(32, 1000) == 1);
  CHECK(llama::layer_distance(32, 31) == 2);  // 16 and one between
  CHECK(llama::layer_distance(32, 12) == 4);  // 8 and three
  CHECK(llama::layer_distance(32, 11) == 4);
  CHECK(llama::layer_distance(32, 0) == 4);  // eleven, as for 5, 6 and 8
  CHECK(llama::layer_distance(1, 0) == 1);
}

TEST_CASE("a loss that is not finite ends the run before any sums are given") {
  stored_model stored = stored_model::read(support::golden_folder("gqa_tied_f32"));
  const float bad = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(stored.tensors["model.norm.weight"].bytes.data(), &bad, sizeof bad);
  const support::temporary_folder folder;
  stored.write(folder.path());
  const llama::model m = llama::load(folder.path());
  const outcome o =
      run(m, weights_of(m), some_samples(2, m.config().vocabulary, 124), std::size_t{1} << 30);
  CHECK(std::isnan(o.losses.at(0)));
  CHECK(o.sums.empty());
}
