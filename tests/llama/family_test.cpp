// SPDX-License-Identifier: MIT
// Every family against Hugging Face transformers (golden values of make_llama_golden.py) and
// against itself: chunks, precisions, checkpoints. Seeds: 81 and on.
#include <bitladder/io/checkpoint.hpp>

#include "logits.hpp"
#include "model_folder.hpp"
#include <llama/backend_cpu.hpp>
#include <llama/forward.hpp>
#include <llama/generate.hpp>
#include <llama/quantize_model.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

using cpu_session = llama::session<llama::cpu_backend>;
using support::all_logits;
using support::contains;
using support::error_of;
using support::stored_model;

/// The largest difference from the golden logits, by the largest of those.
double relative_difference(const std::vector<float>& logits, const nlohmann::json& golden) {
  const std::vector<std::vector<double>> rows = golden["logits"];
  const std::vector<std::size_t> positions = golden["positions"];
  REQUIRE(rows.size() == positions.size());
  double worst = 0, largest = 0;
  for (std::size_t i = 0; i < rows.size(); ++i)
    for (std::size_t c = 0; c < rows[i].size(); ++c) {
      const double found = logits.at(positions[i] * rows[i].size() + c);
      worst = std::max(worst, std::abs(found - rows[i][c]));
      largest = std::max(largest, std::abs(rows[i][c]));
    }
  return worst / largest;
}

nlohmann::json golden_of(const std::string& name) {
  return support::read_json(support::golden_folder(name) / "golden.json");
}

/// The golden model's logits with its config or tensors changed.
double changed_difference(const std::string& name,
                          const std::function<void(stored_model&)>& change) {
  stored_model m = stored_model::read(support::golden_folder(name));
  change(m);
  const support::temporary_folder folder;
  m.write(folder.path());
  const auto golden = golden_of(name);
  return relative_difference(all_logits(llama::load(folder.path()), golden["ids"], 0), golden);
}

}  // namespace

TEST_CASE("logits of every family equal those of Hugging Face transformers") {
  for (const std::string& name : support::family_models) {
    CAPTURE(name);
    const llama::model m = llama::load(support::golden_folder(name));
    const auto golden = golden_of(name);
    const double worst =
        relative_difference(all_logits(m, golden["ids"], llama::unquantized), golden);
    MESSAGE(name << ": largest relative difference " << worst);
    CHECK(worst < 1e-5);
  }
}

TEST_CASE("greedy continuations of every family equal those of Hugging Face transformers") {
  for (const std::string& name : support::family_models) {
    CAPTURE(name);
    const llama::model m = llama::load(support::golden_folder(name));
    const auto golden = golden_of(name);
    const std::vector<int> ids = golden["ids"], expected = golden["greedy"];
    llama::cpu_backend backend(m);
    cpu_session s(backend);
    llama::generate_options options;
    options.max_new_tokens = static_cast<int>(expected.size());
    options.sampling.temperature = 0;
    options.stop_at_end_token = false;
    CHECK(llama::generate(s, ids, 0, options).tokens == expected);
  }
}

TEST_CASE("chunks and threads do not change a bit of any family's logits") {
  for (const std::string& name : support::family_models) {
    CAPTURE(name);
    const llama::model m = llama::load(support::golden_folder(name));
    const std::vector<int> ids = golden_of(name)["ids"];
    const std::vector<float> whole = all_logits(m, ids, 0);
    for (int threads : {1, 3})
      for (int chunk : {0, 1, 5, 32, 33}) {
        CAPTURE(threads);
        CAPTURE(chunk);
        CHECK((all_logits(m, ids, 0, chunk, threads) == whole));
      }
  }
}

TEST_CASE("what a description says matters: without it the logits are others") {
  const auto set = [](const char* key, const nlohmann::json& value) {
    return [=](stored_model& m) { m.config[key] = value; };
  };
  CHECK(changed_difference("mistral_f16", [](stored_model&) {}) < 1e-5);
  CHECK(changed_difference("mistral_f16", set("sliding_window", 22)) > 1e-3);
  CHECK(changed_difference("mistral_f16", set("sliding_window", nullptr)) > 1e-3);
  CHECK(changed_difference("mistral_f16",
                           [](stored_model& m) { m.config.erase("sliding_window"); }) > 1e-3);
  CHECK(changed_difference("qwen2_window_f32", set("use_sliding_window", false)) > 1e-3);
  CHECK(changed_difference("qwen2_window_f32",
                           set("layer_types", {"sliding_attention", "sliding_attention"})) > 1e-3);
  CHECK(changed_difference("opt_f16", set("activation_function", "gelu_new")) > 1e-3);
  CHECK(changed_difference("opt_f16", set("do_layer_norm_before", false)) > 1e-3);
  CHECK(changed_difference("phi_gqa_f32", set("hidden_act", "relu")) > 1e-3);
  CHECK(changed_difference("phi_bf16", [](stored_model& m) {
          m.config["rope_parameters"]["partial_rotary_factor"] = 0.6;
        }) > 1e-3);
}

TEST_CASE("older and newer spellings of the same config give the same logits") {
  // max_window_layers where layer_types is not told; rope_theta and partial_rotary_factor beside a
  // rope_scaling of null.
  CHECK(changed_difference("qwen2_window_f32",
                           [](stored_model& m) { m.config.erase("layer_types"); }) < 1e-5);
  for (const char* name : {"mistral_f16", "qwen2_bf16", "phi_bf16", "phi3_f16"}) {
    CAPTURE(name);
    CHECK(changed_difference(name, [](stored_model& m) {
            const nlohmann::json rope = m.config["rope_parameters"];
            m.config.erase("rope_parameters");
            m.config["rope_scaling"] = nullptr;
            for (const char* key : {"rope_theta", "partial_rotary_factor"})
              if (rope.contains(key)) m.config[key] = rope[key];
          }) < 1e-5);
  }
  // The published factor of Phi is a half where the file does not say.
  CHECK(changed_difference("phi_gqa_f32",
                           [](stored_model& m) { m.config.erase("rope_parameters"); }) < 1e-5);
}

TEST_CASE("every family is quantized and runs at 2 to 8 bits, the closer the more bits") {
  for (const std::string& name : support::family_models) {
    CAPTURE(name);
    const support::temporary_folder folder;
    const fs::path out = folder.path() / "out";
    const fs::path source = support::golden_folder(name);
    const auto errors = llama::quantize_model(source, out, {}, nullptr);
    const bitladder::checkpoint made(out);
    const llama::config c = llama::load_config(source);
    const std::size_t linears = llama::linear_names(*c.family).size() * 2;
    CHECK(errors.size() == linears);
    CHECK(made.linears().size() == linears);
    CHECK(support::read_json(out / "config.json")["bitladder"]["modules"].size() == linears);

    const llama::model m = llama::load(out);
    const auto golden = golden_of(name);
    const std::vector<int> ids = golden["ids"];
    std::vector<double> differences;
    for (int bits = 2; bits <= 8; ++bits) {
      CAPTURE(bits);
      const std::vector<float> logits = all_logits(m, ids, bits);
      CHECK((all_logits(m, ids, bits, 1) == logits));
      differences.push_back(relative_difference(logits, golden));
    }
    CHECK(differences[6] < 0.02);
    CHECK(differences[6] < differences[2]);
    CHECK(differences[2] < differences[0]);
  }
}

TEST_CASE("a quantized model of any family gives exactly what its dequantized weights give") {
  for (const std::string& name : support::family_models) {
    CAPTURE(name);
    const support::temporary_folder folder;
    const auto dense = support::write_quantized(stored_model::read(support::golden_folder(name)),
                                                folder.path() / "q", 3, 4, 1, 81);
    const llama::model m = llama::load(folder.path() / "q");
    const std::vector<int> ids = golden_of(name)["ids"];
    for (int b : {3, 4}) {
      const auto path = folder.path() / std::to_string(b);
      fs::create_directories(path);
      dense.at(b).write(path);
      CHECK((all_logits(m, ids, b) == all_logits(llama::load(path), ids, 0)));
    }
  }
}

TEST_CASE("only the linears that are asked for are quantized; the others stay as they were") {
  const support::temporary_folder folder;
  const fs::path out = folder.path() / "out";
  llama::quantize_model_options options;
  options.modules.names = {"fc2", "self_attn.q_proj"};
  const auto errors =
      llama::quantize_model(support::golden_folder("opt_f16"), out, options, nullptr);
  std::vector<std::string> names;
  for (const auto& e : errors) names.push_back(e.name);
  CHECK(names == std::vector<std::string>{
                     "model.decoder.layers.0.self_attn.q_proj", "model.decoder.layers.0.fc2",
                     "model.decoder.layers.1.self_attn.q_proj", "model.decoder.layers.1.fc2"});
  CHECK(support::read_json(out / "config.json")["bitladder"]["modules"] == names);
  const bitladder::checkpoint made(out);
  CHECK(made.tensors().find("model.decoder.layers.0.fc1.weight") != nullptr);
  CHECK(made.tensors().find("model.decoder.layers.0.fc2.weight") == nullptr);
  const auto golden = golden_of("opt_f16");
  CHECK(relative_difference(all_logits(llama::load(out), golden["ids"], 8), golden) < 0.02);

  const auto refused = [&](const std::vector<std::string>& modules) {
    options.modules.names = modules;
    return error_of([&] {
             llama::quantize_model(support::golden_folder("opt_f16"), folder.path() / "x", options,
                                   nullptr);
           })
        .text;
  };
  CHECK(refused({"fc1", "mlp.up_proj"}) ==
        "modules: expected linears of a model of type opt, which are self_attn.q_proj, "
        "self_attn.k_proj, self_attn.v_proj, self_attn.out_proj, fc1, fc2, found \"mlp.up_proj\"");
  CHECK(contains(refused({"fc1", "fc1"}), "expected each linear once, found \"fc1\" again"));
  CHECK(contains(refused({""}), "found \"\""));
  CHECK(!fs::exists(folder.path() / "x"));
}

TEST_CASE("a table of positions bounds the tokens of a session") {
  const llama::model m = llama::load(support::golden_folder("opt_f16"));
  llama::cpu_backend backend(m);
  CHECK(cpu_session(backend).capacity() == 128);
  CHECK(cpu_session(backend, 128).capacity() == 128);
  CHECK(contains(error_of([&] { cpu_session(backend, 129); }).text,
                 "opt_f16: has a table of 128 positions, 129 tokens asked for"));
}

TEST_CASE("what a family has not is refused where the file says it is there") {
  const auto complaint = [](const std::string& name,
                            const std::function<void(stored_model&)>& change) {
    stored_model m = stored_model::read(support::golden_folder(name));
    change(m);
    const support::temporary_folder folder;
    m.write(folder.path());
    const std::string text = error_of([&] { llama::load(folder.path()); }).text;
    CHECK(contains(text, folder.path().string()));
    return text;
  };
  const auto with = [&](const std::string& name, const char* key, const nlohmann::json& value) {
    return complaint(name, [&](stored_model& m) { m.config[key] = value; });
  };
  CHECK(contains(with("phi_bf16", "qk_layernorm", true),
                 "key \"qk_layernorm\": expected false, found true"));
  CHECK(contains(with("opt_f16", "layer_norm_elementwise_affine", false), "expected true"));
  CHECK(contains(with("opt_f16", "_remove_final_layer_norm", true), "expected false"));
  CHECK(contains(with("opt_f16", "activation_function", "gelu"),
                 "expected silu, relu, gelu_new or gelu_pytorch_tanh, found \"gelu\""));
  CHECK(contains(with("qwen2_bf16", "hidden_act", "relu"), "expected \"silu\""));
  CHECK(contains(with("mistral_f16", "sliding_window", 0), "expected a positive integer"));
  CHECK(contains(with("qwen2_window_f32", "layer_types", {"full_attention"}),
                 "a type for each of the 2 layers"));
  CHECK(contains(with("qwen2_window_f32", "layer_types", {"full_attention", "chunked"}),
                 "expected sliding_attention and full_attention"));
  CHECK(contains(with("qwen2_window_f32", "max_window_layers", -1), "expected 0 or more"));
  CHECK(contains(with("opt_f16", "enable_bias", false), "expected no bias"));
  CHECK(contains(with("opt_f16", "word_embed_proj_dim", 20), "expected shape [62, 20]"));
  CHECK(contains(with("opt_f16", "max_position_embeddings", 100), "expected shape [102, 36]"));
  CHECK(contains(with("opt_f16", "max_position_embeddings", 2147483647), "at most 2^30"));
  CHECK(contains(with("phi3_f16", "intermediate_size", 2147483647), "at most 2^30"));
  CHECK(contains(with("mistral_f16", "architectures", {"LlamaForCausalLM"}),
                 "expected [\"MistralForCausalLM\"]"));
  for (double factor : {0.0, 0.1, 0.5, 1.5}) {
    CAPTURE(factor);
    CHECK(contains(complaint("phi_bf16",
                             [&](stored_model& m) {
                               m.config["rope_parameters"]["partial_rotary_factor"] = factor;
                             }),
                   "rope_parameters.partial_rotary_factor"));
  }
  for (const char* name :
       {"model.decoder.layers.1.fc1.bias", "model.decoder.embed_positions.weight",
        "model.decoder.final_layer_norm.bias",
        "model.decoder.layers.0.self_attn_layer_norm.weight"})
    CHECK(contains(complaint("opt_f16", [&](stored_model& m) { m.tensors.erase(name); }), name));
  CHECK(contains(complaint("phi_bf16", [](stored_model& m) { m.tensors.erase("lm_head.bias"); }),
                 "lm_head.bias"));
  CHECK(contains(
      complaint("opt_post_norm_f32",
                [](stored_model& m) { m.tensors.erase("model.decoder.project_in.weight"); }),
      "model.decoder.project_in.weight"));
}
