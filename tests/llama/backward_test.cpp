// SPDX-License-Identifier: MIT
// Squared gradients of every family against PyTorch's autograd (golden values of
// make_backward_golden.py), against differences of a plain loss in doubles, and against itself:
// threads, samples, choices of weights. Seeds: 91 and on.
#include <bitladder/io/safetensors_set.hpp>

#include "model_folder.hpp"
#include "plain_llama.hpp"
#include <llama/backend_cpu.hpp>
#include <llama/forward.hpp>
#include <llama/squared_gradients.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

namespace {

using support::contains;
using support::error_of;
using support::golden_folder;
using support::stored_model;

std::vector<std::string> all_models() {
  std::vector<std::string> names = support::golden_models;
  names.insert(names.end(), support::family_models.begin(), support::family_models.end());
  return names;
}

/// What is quantized by default.
std::vector<std::string> all_weights(const llama::model& m) {
  std::vector<std::string> names;
  for (int i = 0; i < m.config().layers; ++i)
    for (const std::string& part : llama::linear_names(*m.config().family))
      names.push_back(llama::layer_prefix(*m.config().family, i) + part + ".weight");
  return names;
}

std::vector<int> ids_of(const std::string& name) {
  return support::read_json(golden_folder(name) / "golden.json")["ids"];
}

std::vector<int> some_ids(int count, int vocabulary, std::uint64_t seed) {
  support::random random(seed);
  std::vector<int> ids;
  for (int i = 0; i < count; ++i) ids.push_back(random.below(vocabulary));
  return ids;
}

std::vector<float> copy_of(bitladder::matrix_view<const float> m) {
  std::vector<float> values;
  for (int r = 0; r < m.rows(); ++r) values.insert(values.end(), m.row(r), m.row(r) + m.cols());
  return values;
}

/// All sums of `weights` for `samples`.
std::vector<std::vector<float>> sums_of(const llama::model& m,
                                        const std::vector<std::string>& weights,
                                        const std::vector<std::vector<int>>& samples,
                                        int threads = 1) {
  bitladder::thread_pool pool(threads);
  llama::squared_gradients s(m, weights, threads > 1 ? &pool : nullptr);
  for (const std::vector<int>& ids : samples) s.add(ids);
  std::vector<std::vector<float>> sums;
  for (std::size_t i = 0; i < weights.size(); ++i) sums.push_back(copy_of(s.sums(i)));
  return sums;
}

/// The mean next-token loss by the forward pass.
double forward_loss(const llama::model& m, const std::vector<int>& ids) {
  llama::cpu_backend backend(m);
  llama::session<llama::cpu_backend> s(backend, static_cast<int>(ids.size()));
  s.forward(ids, llama::unquantized);
  const int count = static_cast<int>(ids.size()) - 1;
  const auto logits = s.logits(0, count);
  double loss = 0;
  for (int r = 0; r < count; ++r) {
    double sum = 0;
    for (int c = 0; c < logits.cols(); ++c) sum += std::exp(static_cast<double>(logits(r, c)));
    loss += std::log(sum) - static_cast<double>(logits(r, ids[static_cast<std::size_t>(r) + 1]));
  }
  return loss / count;
}

/// The largest difference of two rows of numbers, relative to the number and, where that is small,
/// to a thousandth of the mean: a gradient that is nearly 0 is a difference of large terms.
double worst_relative(const std::vector<double>& found, const std::vector<float>& golden) {
  REQUIRE(found.size() == golden.size());
  double mean = 0;
  for (float g : golden) mean += static_cast<double>(g) / static_cast<double>(golden.size());
  REQUIRE(mean > 0);
  double worst = 0;
  for (std::size_t i = 0; i < golden.size(); ++i) {
    const double g = static_cast<double>(golden[i]);
    worst = std::max(worst, std::abs(found[i] - g) / (g + mean / 1000));
  }
  return worst;
}

}  // namespace

TEST_CASE("squared gradients of every family equal those of PyTorch's autograd") {
  constexpr std::size_t stride = 19, text = 50;  // as the script has them
  for (const std::string& name : all_models()) {
    CAPTURE(name);
    const llama::model m = llama::load(golden_folder(name));
    const bitladder::safetensors_set golden(golden_folder("backward") / (name + ".safetensors"));
    const std::vector<std::string> weights = all_weights(m);
    CHECK(golden.tensors().size() == 2 * weights.size() + 1);
    std::vector<int> second = support::read_json(golden_folder(name) / "golden.json")["text"];
    second.resize(text);
    llama::squared_gradients s(m, weights);
    const std::vector<double> losses = {s.add(ids_of(name)), s.add(second)};
    CHECK(s.samples() == 2);
    CHECK(worst_relative(losses, golden.read_as_float("losses")) < 1e-6);
    double worst_element = 0, worst_row = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      CAPTURE(weights[i]);
      const std::vector<float> sums = copy_of(s.sums(i));
      std::vector<double> rows(static_cast<std::size_t>(s.sums(i).rows())), elements;
      for (std::size_t e = 0; e < sums.size(); ++e) {
        rows[e * rows.size() / sums.size()] += static_cast<double>(sums[e]);
        if (e % stride == 0) elements.push_back(static_cast<double>(sums[e]));
      }
      const double row = worst_relative(rows, golden.read_as_float(weights[i] + ".rows"));
      const double element =
          worst_relative(elements, golden.read_as_float(weights[i] + ".elements"));
      CHECK(row < 1e-4);
      CHECK(element < 1e-3);
      worst_row = std::max(worst_row, row);
      worst_element = std::max(worst_element, element);
    }
    MESSAGE(name << ": largest relative difference of a row " << worst_row << ", of an element "
                 << worst_element);
  }
}

TEST_CASE("squared gradients are the squares of central differences of the loss") {
  const stored_model stored = stored_model::read(golden_folder("gqa_tied_f32"));
  const llama::model m = llama::load(golden_folder("gqa_tied_f32"));
  const std::vector<int> ids = some_ids(14, m.config().vocabulary, 91);
  const std::vector<std::string> weights = all_weights(m);
  llama::squared_gradients s(m, weights);
  const double loss = s.add(ids);
  support::plain_llama plain(stored);
  CHECK(std::abs(loss - plain.loss(ids)) < 1e-6);
  support::random random(92);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    CAPTURE(weights[i]);
    const std::vector<float> sums = copy_of(s.sums(i));
    double mean = 0;
    for (float x : sums) mean += static_cast<double>(x) / static_cast<double>(sums.size());
    for (int trial = 0; trial < 4; ++trial) {
      const auto at = static_cast<std::size_t>(random.below(static_cast<int>(sums.size())));
      double& w = plain.weight(weights[i], at);
      const double before = w, step = 1e-5;
      w = before + step;
      const double above = plain.loss(ids);
      w = before - step;
      const double below = plain.loss(ids);
      w = before;
      const double gradient = (above - below) / (2 * step);
      // The rope of the plain loss does not round its angles to floats.
      CHECK(std::abs(std::sqrt(static_cast<double>(sums[at])) - std::abs(gradient)) <
            1e-4 * (std::abs(gradient) + std::sqrt(mean)));
    }
  }
}

TEST_CASE("the loss is that of the forward pass") {
  for (const std::string& name : all_models()) {
    CAPTURE(name);
    const llama::model m = llama::load(golden_folder(name));
    const std::vector<int> ids = ids_of(name);
    CHECK(llama::squared_gradients(m, {}).add(ids) ==
          doctest::Approx(forward_loss(m, ids)).epsilon(1e-6));
  }
}

TEST_CASE("threads do not change a bit of the sums") {
  for (const std::string& name : all_models()) {
    CAPTURE(name);
    const llama::model m = llama::load(golden_folder(name));
    const std::vector<std::vector<int>> samples = {
        ids_of(name), some_ids(m.config().family->rotary() ? 203 : 129, m.config().vocabulary, 93)};
    const auto alone = sums_of(m, all_weights(m), samples);
    for (int threads : {2, 5}) CHECK((sums_of(m, all_weights(m), samples, threads) == alone));
  }
}

TEST_CASE("a sample adds the same squares whatever came before it") {
  for (const std::string name : {"qwen2_window_f32", "opt_post_norm_f32", "phi3_f16"}) {
    CAPTURE(name);
    const llama::model m = llama::load(golden_folder(name));
    const std::vector<std::string> weights = all_weights(m);
    const std::vector<int> longer = some_ids(110, m.config().vocabulary, 94),
                           shorter = some_ids(2, m.config().vocabulary, 95);
    const auto one = sums_of(m, weights, {longer}), other = sums_of(m, weights, {shorter}),
               both = sums_of(m, weights, {longer, shorter});
    for (std::size_t i = 0; i < weights.size(); ++i) {
      CAPTURE(weights[i]);
      bool same = true;
      for (std::size_t e = 0; e < both[i].size(); ++e) {
        const float sum = one[i][e] + other[i][e];
        same &= std::abs(both[i][e] - sum) <= sum * 1.2e-7f;  // a product and a sum may be one step
      }
      CHECK(same);
    }
  }
}

TEST_CASE("a choice of weights gets the sums that it has among all") {
  for (const std::string& name : all_models()) {
    CAPTURE(name);
    const llama::model m = llama::load(golden_folder(name));
    const std::vector<std::vector<int>> samples = {ids_of(name)};
    std::vector<std::string> weights = all_weights(m);
    const auto all = sums_of(m, weights, samples);
    // The last first, alone: what lies below it is not run backward at all.
    CHECK((sums_of(m, {weights.back()}, samples)[0] == all.back()));
    std::reverse(weights.begin(), weights.end());
    const auto reversed = sums_of(m, weights, samples);
    for (std::size_t i = 0; i < weights.size(); ++i)
      CHECK((reversed[i] == all[weights.size() - 1 - i]));
  }
}

TEST_CASE("a head whose logits are not all held at once gives the same gradients") {
  // A vocabulary of which 128 rows of logits are all that is held.
  stored_model stored = stored_model::read(golden_folder("gqa_tied_f32"));
  const int vocabulary = (1 << 15) + 1;
  auto& table = stored.tensors["model.embed_tokens.weight"];
  const std::size_t cols = static_cast<std::size_t>(table.shape[1]);
  std::vector<float> values = support::random(96).normals(vocabulary * cols);
  for (float& v : values) v *= 0.1f;
  table = support::stored_tensor::floats({vocabulary, static_cast<std::int64_t>(cols)}, values);
  stored.config["vocab_size"] = vocabulary;
  const support::temporary_folder folder;
  stored.write(folder.path());
  const llama::model m = llama::load(folder.path());
  const std::vector<int> ids = some_ids(132, vocabulary, 97);
  llama::squared_gradients s(m, {"model.layers.1.mlp.down_proj.weight"});
  const double loss = s.add(ids);
  const std::vector<float> sums = copy_of(s.sums(0));
  const auto at =
      static_cast<std::size_t>(std::max_element(sums.begin(), sums.end()) - sums.begin());
  support::plain_llama plain(stored);
  double& w = plain.weight(s.names()[0], at);
  const double before = w, step = 1e-4;
  w = before + step;
  const double above = plain.loss(ids);
  w = before - step;
  const double below = plain.loss(ids), gradient = (above - below) / (2 * step);
  CHECK(std::abs(loss - (above + below) / 2) < 1e-6);
  CHECK(std::abs(std::sqrt(static_cast<double>(sums[at])) / std::abs(gradient) - 1) < 1e-4);
}

TEST_CASE("wrong samples are refused and leave the sums as they were") {
  const llama::model m = llama::load(golden_folder("opt_f16"));
  const std::vector<std::string> weights = all_weights(m);
  llama::squared_gradients s(m, weights);
  s.add(std::vector<int>{5, 6, 7});
  const std::vector<float> before = copy_of(s.sums(3));
  const auto refused = [&](const std::vector<int>& ids, const std::string& text) {
    const std::string found = error_of([&] { s.add(ids); }).text;
    CAPTURE(found);
    CHECK(contains(found, "opt_f16: sample 2: " + text));
    CHECK((copy_of(s.sums(3)) == before));
    CHECK(s.samples() == 1);
  };
  refused({}, "expected at least two tokens, found 0");
  refused({1}, "expected at least two tokens, found 1");
  refused({1, 62}, "expected tokens of 0 to 61, found 62");
  refused({-1, 3}, "expected tokens of 0 to 61, found -1");
  refused(std::vector<int>(130, 1), "expected at most 129 tokens, found 130");
  s.add(std::vector<int>(129, 1));
  CHECK(s.samples() == 2);
}

TEST_CASE("a loss that is not finite is refused and leaves the sums as they were") {
  stored_model stored = stored_model::read(golden_folder("gqa_tied_f32"));
  auto& t = stored.tensors["model.norm.weight"];
  const float bad = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(t.bytes.data(), &bad, sizeof bad);
  const support::temporary_folder folder;
  stored.write(folder.path());
  const llama::model m = llama::load(folder.path());
  llama::squared_gradients s(m, all_weights(m));
  CHECK(contains(error_of([&] {
                   s.add(std::vector<int>{1, 2, 3});
                 }).text,
                 "sample 1: expected a finite loss, found"));
  CHECK(s.samples() == 0);
  for (std::size_t i = 0; i < s.names().size(); ++i)
    for (float x : copy_of(s.sums(i))) REQUIRE(x == 0.f);
}

TEST_CASE("weights that are no linear of a layer, and quantized models, are refused") {
  const llama::model m = llama::load(golden_folder("phi3_f16"));
  const auto refused = [&](const std::vector<std::string>& names, const std::string& text) {
    const std::string found = error_of([&] { llama::squared_gradients(m, names); }).text;
    CAPTURE(found);
    CHECK(contains(found, "phi3_f16: tensor \"" + text));
  };
  const std::string fused = "model.layers.1.self_attn.qkv_proj.weight";
  refused({"lm_head.weight"},
          "lm_head.weight\": expected the weight of a linear of a layer, such as "
          "\"model.layers.0.self_attn.qkv_proj.weight\"");
  refused({"model.layers.0.self_attn.q_proj.weight"}, "model.layers.0.self_attn.q_proj.weight\"");
  refused({"model.layers.2.self_attn.qkv_proj.weight"}, "model.layers.2.");
  refused({"model.layers.1.self_attn.qkv_proj"}, "model.layers.1.self_attn.qkv_proj\"");
  refused({""}, "\": expected the weight");
  refused({fused, fused}, fused + "\": expected each weight once");

  const support::temporary_folder folder;
  support::write_quantized(stored_model::read(golden_folder("phi3_f16")), folder / "q", 3, 4, 1,
                           98);
  const llama::model q = llama::load(folder / "q");
  CHECK(contains(error_of([&] { llama::squared_gradients(q, {fused}); }).text,
                 "expected a model with float weights"));
}
