// SPDX-License-Identifier: MIT
// Whole models quantized on the cards: the checkpoints of the CPU, byte for byte. What else the
// workers must do quantize_model_test.cpp tests without a card. Seed: 141.
#include <bitladder/io/safetensors_plan.hpp>
#include <bitladder/io/safetensors_writer.hpp>
#include <bitladder/quantize/options.hpp>

#include "../model_folder.hpp"
#include <llama/card_quantizer.hpp>
#include <llama/quantize_model.hpp>
#include <support/has_device.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

/// A sensitivity for every linear, none next to nothing: those may be told apart by rounding alone.
void write_sensitivities(const support::stored_model& m, const fs::path& file) {
  support::random random(141);
  bitladder::safetensors_plan plan;
  std::map<std::string, std::vector<float>> values;
  for (const auto& [name, t] : m.tensors) {
    if (support::linear_name(name).empty()) continue;
    plan.add(name, bitladder::dtype::f32, t.shape);
    std::vector<float>& v = values[name];
    v.resize(static_cast<std::size_t>(t.shape[0] * t.shape[1]));
    for (float& x : v) x = 1e-3f + static_cast<float>(random.chi_squared());
  }
  auto out = bitladder::safetensors_writer::create(file, plan);
  for (const auto& [name, v] : values) out.write(name, v.data(), v.size() * sizeof(float));
  out.commit();
}

}  // namespace

TEST_CASE("the cards write the checkpoint of the CPU" * doctest::skip(!support::has_device())) {
  std::vector<std::string> models = support::golden_models;
  models.insert(models.end(), support::family_models.begin(), support::family_models.end());
  for (const std::string& name : models) {
    CAPTURE(name);
    const support::temporary_folder folder;
    const fs::path source = support::golden_folder(name);
    llama::quantize_model_options options;
    options.sensitivities = folder.path() / "s.safetensors";
    write_sensitivities(support::stored_model::read(source), options.sensitivities);
    for (const bool outliers : {false, true}) {
      CAPTURE(outliers);
      if (outliers) options.kmeans.outliers = {0.5, 2};
      const fs::path cpu = folder.path() / (outliers ? "cpu-sparse" : "cpu");
      const fs::path card = folder.path() / (outliers ? "card-sparse" : "card");
      options.on = {};
      const auto errors = llama::quantize_model(source, cpu, options, nullptr);
      options.on = llama::card_quantizers();
      const auto found = llama::quantize_model(source, card, options, nullptr);
      REQUIRE(found.size() == errors.size());
      for (std::size_t i = 0; i < errors.size(); ++i)
        CHECK(found[i].relative_error == errors[i].relative_error);
      CHECK(support::read_folder(card) == support::read_folder(cpu));
    }
  }
}

TEST_CASE("interrupted on the cards and started again, the same bytes" *
          doctest::skip(!support::has_device())) {
  const support::temporary_folder folder;
  const fs::path source = support::golden_folder("mha_untied_f16");
  llama::quantize_model_options options;
  options.on = llama::card_quantizers(1);
  llama::quantize_model(source, folder.path() / "whole", options, nullptr);
  struct stop {};
  int calls = 0;
  const fs::path out = folder.path() / "out";
  CHECK_THROWS_AS(
      llama::quantize_model(source, out, options, nullptr,
                            [&](const std::string&, std::int64_t, std::int64_t, std::int64_t) {
                              if (++calls == 6) throw stop();
                            }),
      stop);
  std::int64_t resumed = 0;
  llama::quantize_model(source, out, options, nullptr,
                        [&](const std::string&, std::int64_t, std::int64_t before, std::int64_t) {
                          resumed = before;
                        });
  CHECK(resumed > 0);
  CHECK(support::read_folder(out) == support::read_folder(folder.path() / "whole"));
}

TEST_CASE("a weight that cannot be quantized is told by name, and what was done is kept" *
          doctest::skip(!support::has_device())) {
  const support::temporary_folder folder;
  const fs::path bad = folder.path() / "bad", out = folder.path() / "out";
  fs::create_directories(bad);
  support::stored_model m = support::stored_model::read(support::golden_folder("gqa_tied_f32"));
  const std::string victim = "model.layers.1.mlp.down_proj.weight";
  const float nan = std::nanf("");
  support::stored_tensor& t = m.tensors.at(victim);
  std::memcpy(t.bytes.data() + 4 * (t.shape[1] + 2), &nan, 4);
  m.write(bad);
  llama::quantize_model_options options;
  options.on = llama::card_quantizers();
  const std::string text =
      support::error_of([&] { llama::quantize_model(bad, out, options, nullptr); }).text;
  CHECK(support::contains(text, victim));
  CHECK(support::contains(text, "row 1, column 2"));
  std::int64_t resumed = 0;
  static_cast<void>(support::error_of([&] {
    llama::quantize_model(bad, out, options, nullptr,
                          [&](const std::string&, std::int64_t, std::int64_t before, std::int64_t) {
                            resumed = before;
                          });
  }));
  CHECK(resumed > 0);
  CHECK(!fs::exists(out));
}
