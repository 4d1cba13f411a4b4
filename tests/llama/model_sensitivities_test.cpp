// SPDX-License-Identifier: MIT
#include <bitladder/core/parallel.hpp>
#include <bitladder/io/safetensors.hpp>

#include "model_folder.hpp"
#include <llama/model.hpp>
#include <llama/model_sensitivities.hpp>
#include <llama/module_list.hpp>
#include <llama/sensitivity_file.hpp>
#include <llama/squared_gradients.hpp>
#include <support/files.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

using support::contains;
using support::error_of;
using support::read_all;

constexpr int sample_count = 4, seq_len = 12;

/// A file of random tokens of a model, and options to measure on it.
llama::model_sensitivities_options tokens_for(const fs::path& model, const fs::path& file) {
  support::random random(5);
  const int vocabulary = llama::model(model).config().vocabulary;
  std::vector<std::int32_t> ids;
  for (int i = 0; i < sample_count * seq_len; ++i) ids.push_back(random.below(vocabulary));
  support::write_all(file, {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof ids[0]});
  llama::model_sensitivities_options o;
  o.texts = {file};
  o.calibration.samples = sample_count;
  o.calibration.seq_len = seq_len;
  o.run.save_seconds = 0;
  return o;
}

void measure(const fs::path& model, const fs::path& out,
             const llama::model_sensitivities_options& o) {
  llama::model_sensitivities(model, out, o, nullptr);
}

/// A copy of a golden model that may be changed.
fs::path copied(const std::string& name, const support::temporary_folder& to) {
  const fs::path copy = to / name;
  fs::copy(support::golden_folder(name), copy);
  return copy;
}

}  // namespace

TEST_CASE("the file holds the squared gradients of every linear") {
  for (const std::string name : {"gqa_tied_f32", "mha_untied_f16", "phi3_f16", "opt_f16"}) {
    CAPTURE(name);
    const support::temporary_folder folder;
    const fs::path source = support::golden_folder(name), out = folder / "s.safetensors";
    const auto options = tokens_for(source, folder / "t.bin");
    const auto made = llama::model_sensitivities(source, out, options, nullptr);
    CHECK(made.drawn == "tokens");
    CHECK(!made.reused);

    const llama::model m(source);
    const bitladder::safetensors_file file(out);
    CHECK(made.linears == file.tensors().size());
    std::vector<std::string> names;
    for (const auto& t : file.tensors()) names.push_back(t.name);
    llama::squared_gradients expected(m, names);
    const llama::calibration samples =
        llama::read_calibration(options.texts, nullptr, m.config().vocabulary, options.calibration);
    double loss = 0;
    for (int i = 0; i < sample_count; ++i) loss += expected.add(samples.sample(i));
    CHECK(made.mean_loss == loss / sample_count);
    double largest = 0;
    for (std::size_t i = 0; i < names.size(); ++i) {
      const std::vector<float> values = file.read_as_float(names[i]);
      const auto sums = expected.sums(i);
      REQUIRE(values.size() ==
              static_cast<std::size_t>(sums.rows()) * static_cast<std::size_t>(sums.cols()));
      for (int r = 0; r < sums.rows(); ++r)
        for (int c = 0; c < sums.cols(); ++c) {
          const float value = values[static_cast<std::size_t>(r * sums.cols() + c)];
          REQUIRE(value == sums(r, c));
          largest = std::fmax(largest, static_cast<double>(value));
        }
    }
    CHECK(largest > 0);
  }
}

TEST_CASE("only the linears that are asked for are measured") {
  const support::temporary_folder folder;
  const fs::path source = support::golden_folder("gqa_tied_f32"), out = folder / "s";
  auto options = tokens_for(source, folder / "t.bin");
  options.modules = llama::read_module_list("mlp.down_proj,self_attn.q_proj");
  std::vector<std::string> checked;
  options.check = [&](const llama::sensitivity_shape& s) { checked.push_back(s.name); };
  measure(source, out, options);
  CHECK(checked == std::vector<std::string>{"model.layers.0.self_attn.q_proj.weight",
                                            "model.layers.0.mlp.down_proj.weight",
                                            "model.layers.1.self_attn.q_proj.weight",
                                            "model.layers.1.mlp.down_proj.weight"});
  CHECK(bitladder::safetensors_file(out).tensors().size() == 4);
  options.modules = {};
  CHECK(contains(error_of([&] { measure(source, out, options); }).text, "other linears"));
}

TEST_CASE("a model is known by its bytes, wherever they are") {
  const support::temporary_folder folder;
  const fs::path source = copied("gqa_tied_f32", folder), out = folder / "s";
  auto options = tokens_for(source, folder / "t.bin");
  measure(source, out, options);
  CHECK(llama::model_sensitivities(support::golden_folder("gqa_tied_f32"), out, options, nullptr)
            .reused);
  const fs::path weights = source / "model.safetensors";
  const std::string good = read_all(weights);
  std::string changed = good;
  changed[changed.size() - 9] = static_cast<char>(changed[changed.size() - 9] ^ 1);
  support::write_all(weights, changed);
  CHECK(contains(error_of([&] { measure(source, out, options); }).text, "another model"));
  support::write_all(weights, good);
  CHECK(llama::model_sensitivities(source, out, options, nullptr).reused);
  auto config = support::read_json(source / "config.json");
  config["rms_norm_eps"] = 1e-3;
  support::write_all(source / "config.json", config.dump());
  CHECK(contains(error_of([&] { measure(source, out, options); }).text, "another model"));
  options.calibration.random_state = 9;  // has no part in a file of tokens
  CHECK(llama::model_sensitivities(support::golden_folder("gqa_tied_f32"), out, options, nullptr)
            .reused);
}

TEST_CASE("killed after any sample, with any number of threads, the bytes are the same") {
  const support::temporary_folder folder;
  const fs::path source = support::golden_folder("mha_untied_f16");
  const auto options = tokens_for(source, folder / "t.bin");
  measure(source, folder / "whole", options);
  const std::string whole = read_all(folder / "whole");
  for (int kill_after = 1; kill_after < sample_count; ++kill_after) {
    CAPTURE(kill_after);
    const fs::path out = folder / ("killed" + std::to_string(kill_after));
    const int status = support::in_child([&] {
      auto killed = options;
      killed.run.progress = [&](int done, int, int, double) {
        if (done == kill_after) ::raise(SIGKILL);
      };
      measure(source, out, killed);
    });
    REQUIRE(WIFSIGNALED(status));
    CHECK(!fs::exists(out));
    bitladder::thread_pool pool(kill_after + 1);
    CHECK(llama::model_sensitivities(source, out, options, &pool).resumed == kill_after);
    CHECK(read_all(out) == whole);
  }
}

TEST_CASE("what cannot be measured is said with model, expected and found") {
  const support::temporary_folder folder;
  const fs::path source = support::golden_folder("gqa_tied_f32"), out = folder / "s";
  auto options = tokens_for(source, folder / "t.bin");
  const int context = llama::model(source).config().context;
  options.calibration.seq_len = context + 1;
  auto thrown = error_of([&] { measure(source, out, options); });
  CHECK(thrown.names(source.string()));
  CHECK(thrown.names("at most " + std::to_string(context) + " tokens, found " +
                     std::to_string(context + 1)));

  options.calibration.seq_len = seq_len;
  options.texts = {folder / "t.txt"};
  support::write_all(folder / "t.txt", "a text");
  thrown = error_of([&] { measure(source, out, options); });
  CHECK(thrown.names("t.txt"));
  CHECK(thrown.names("there is no tokenizer"));

  const fs::path quantized = folder / "q";
  support::write_quantized(support::stored_model::read(source), quantized, 2, 4, 1, 3);
  thrown = error_of([&] { measure(quantized, out, options); });
  CHECK(thrown.names(quantized.string()));
  CHECK(thrown.names("quantized already"));
  CHECK(!fs::exists(out));
}
