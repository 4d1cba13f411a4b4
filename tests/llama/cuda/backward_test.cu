// SPDX-License-Identifier: MIT
// Squared gradients on a card against those of the CPU, which backward_test.cpp compares with
// PyTorch's. Seeds: 131 and on.
#include "../model_folder.hpp"
#include <llama/backward_cuda.cuh>
#include <llama/layerwise_gradients.hpp>
#include <llama/squared_gradients.hpp>
#include <support/has_device.hpp>

#include <doctest/doctest.h>

#include <algorithm>
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

using layerwise = llama::layerwise_gradients<llama::cuda_backward_backend>;

std::vector<std::string> all_weights(const llama::model& m) {
  std::vector<std::string> names;
  for (int i = 0; i < m.config().layers; ++i)
    for (const std::string& part : llama::linear_names(*m.config().family))
      names.push_back(llama::layer_prefix(*m.config().family, i) + part + ".weight");
  return names;
}

std::vector<std::vector<int>> some_samples(int count, int length, int vocabulary,
                                           std::uint64_t seed) {
  support::random random(seed);
  std::vector<std::vector<int>> samples(static_cast<std::size_t>(count));
  for (std::vector<int>& s : samples)
    for (int i = 0; i < length; ++i) s.push_back(random.below(vocabulary));
  return samples;
}

struct outcome {
  std::map<std::string, std::vector<float>> sums;
  std::vector<double> losses;
};

outcome run(const llama::model& m, const std::vector<std::vector<int>>& samples,
            std::size_t held_bytes = std::size_t{1} << 30) {
  llama::cuda_backward_backend backend(m);
  std::map<const llama::linear_weight*, std::string> name_of;
  std::unordered_set<const llama::linear_weight*> wanted;
  for (const auto& named : llama::detail::named_linears(*m.config().family, m.weights())) {
    wanted.insert(named.second);
    name_of.emplace(named.second, named.first);
  }
  const std::vector<layerwise::tokens> views(samples.begin(), samples.end());
  outcome o;
  layerwise(backend, held_bytes)
      .run(
          views, wanted, [&](const std::vector<double>& losses) { o.losses = losses; },
          [&](const llama::linear_weight& w, const llama::cuda_matrix& sums) {
            const auto host = backend.read(sums);
            o.sums.emplace(name_of.at(&w),
                           std::vector<float>(host.data(), host.data() + sums.size()));
          },
          [](std::int64_t, std::int64_t) {});
  return o;
}

/// Largest difference of an element of a row, relative to the row's largest.
double difference(const float* a, const float* b, int count) {
  double largest = 0, apart = 0;
  for (int i = 0; i < count; ++i) {
    largest = std::max(largest, std::fabs(static_cast<double>(b[i])));
    apart = std::max(apart, std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  return largest > 0 ? apart / largest : apart;
}

}  // namespace

TEST_CASE("squared gradients of every family are those of the CPU" *
          doctest::skip(!support::has_device())) {
  std::vector<std::string> models = support::golden_models;
  models.insert(models.end(), support::family_models.begin(), support::family_models.end());
  for (const std::string& name : models) {
    CAPTURE(name);
    const llama::model m = llama::load(support::golden_folder(name));
    const auto samples = some_samples(3, 21, m.config().vocabulary, 131);
    llama::squared_gradients cpu(m, all_weights(m));
    std::vector<double> losses;
    for (const std::vector<int>& s : samples) losses.push_back(cpu.add(s));
    const outcome card = run(m, samples);
    for (std::size_t s = 0; s < losses.size(); ++s)
      CHECK(card.losses.at(s) == doctest::Approx(losses[s]).epsilon(1e-6));
    double worst = 0;
    for (std::size_t i = 0; i < cpu.names().size(); ++i) {
      CAPTURE(cpu.names()[i]);
      const auto expected = cpu.sums(i);
      const std::vector<float>& found = card.sums.at(cpu.names()[i]);
      for (int r = 0; r < expected.rows(); ++r)
        worst =
            std::max(worst, difference(found.data() + static_cast<std::size_t>(r) *
                                                          static_cast<std::size_t>(expected.cols()),
                                       expected.row(r), expected.cols()));
    }
    MESSAGE(name << ": largest difference relative to a row's largest element " << worst);
    // A square doubles the relative error of a gradient, which is that of some fifty roundings to
    // 22 bits in a row.
    CHECK(worst < 1e-4);
  }
}

TEST_CASE("with little memory, and again, the same bits" * doctest::skip(!support::has_device())) {
  const llama::model m = llama::load(support::golden_folder("gqa_tied_f32"));
  const auto samples = some_samples(4, 40, m.config().vocabulary, 132);
  const outcome first = run(m, samples), again = run(m, samples), little = run(m, samples, 0);
  CHECK(first.sums == again.sums);
  CHECK(first.losses == again.losses);
  CHECK(first.sums == little.sums);
}

TEST_CASE("a loss that is not finite is told" * doctest::skip(!support::has_device())) {
  support::stored_model stored =
      support::stored_model::read(support::golden_folder("gqa_tied_f32"));
  const float bad = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(stored.tensors["model.norm.weight"].bytes.data(), &bad, sizeof bad);
  const support::temporary_folder folder;
  stored.write(folder.path());
  const llama::model m = llama::load(folder.path());
  const outcome o = run(m, some_samples(2, 9, m.config().vocabulary, 133));
  CHECK(std::isnan(o.losses.at(0)));
  CHECK(o.sums.empty());
}
