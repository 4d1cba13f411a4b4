// SPDX-License-Identifier: MIT
#include "model_folder.hpp"
#include <llama/config.hpp>

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace {

using nlohmann::json;

/// The smallest config there is.
json minimal() {
  return {{"model_type", "llama"},         {"vocab_size", 96},       {"hidden_size", 32},
          {"intermediate_size", 64},       {"num_hidden_layers", 2}, {"num_attention_heads", 4},
          {"max_position_embeddings", 128}};
}

llama::config load(const std::string& text, const std::string& generation = "") {
  const support::temporary_folder folder;
  std::ofstream(folder.path() / "config.json") << text;
  if (!generation.empty()) std::ofstream(folder.path() / "generation_config.json") << generation;
  return llama::load_config(folder.path());
}
llama::config load(const json& config) { return load(config.dump()); }

/// What loading `config` complains about, from the key on.
std::string complaint(const json& config) {
  try {
    load(config);
  } catch (const bitladder::error& e) {
    const std::string text = e.what();
    CHECK(text.find("config.json: ") != std::string::npos);
    return text.substr(text.find("config.json: ") + 13);
  }
  return "";
}

std::string complaint(const char* key, const json& value) {
  json config = minimal();
  config[key] = value;
  return complaint(config);
}

json rope(const json& parameters) {
  json config = minimal();
  config["rope_parameters"] = parameters;
  return config;
}

}  // namespace

TEST_CASE("what a config leaves out has the published default") {
  const llama::config c = load(minimal());
  CHECK(c.kv_heads == 4);
  CHECK(c.head_dim == 8);
  CHECK(c.norm_epsilon == 1e-6f);
  CHECK(!c.tied_embeddings);
  CHECK(!c.qkv_bias);
  CHECK(!c.output_bias);
  CHECK(!c.mlp_bias);
  CHECK(c.rope.type == llama::rope_type::standard);
  CHECK(c.rope.theta == 10000);
  CHECK(c.bos == -1);
  CHECK(c.eos.empty());
}

TEST_CASE("a null value counts as absent") {
  json config = minimal();
  for (const char* key : {"num_key_value_heads", "head_dim", "rope_scaling", "eos_token_id"})
    config[key] = nullptr;
  CHECK(load(config).kv_heads == 4);
}

TEST_CASE("the golden configs are read as they were written") {
  const llama::config c = llama::load_config(support::golden_folder("llama3_rope_f16"));
  CHECK(c.vocabulary == 80);
  CHECK(c.hidden == 36);
  CHECK(c.heads == 3);
  CHECK(c.kv_heads == 1);
  CHECK(c.head_dim == 20);
  CHECK(c.tied_embeddings);
  CHECK(c.rope.type == llama::rope_type::llama3);
  CHECK(c.rope.theta == 500);
  CHECK(c.rope.factor == 8);
  CHECK(c.rope.original_context == 32);
  CHECK(c.bos == 1);
  CHECK(c.eos == std::vector<int>{3, 5});
  const llama::config d = llama::load_config(support::golden_folder("linear_bias_bf16"));
  CHECK(d.qkv_bias);
  CHECK(d.output_bias);
  CHECK(d.mlp_bias);
  CHECK(d.rope.type == llama::rope_type::linear);
  CHECK(d.rope.factor == 4);
}

TEST_CASE("the older spelling of rope scaling means the same as the newer") {
  for (const char* type_key : {"type", "rope_type"}) {
    json config = minimal();
    config["rope_theta"] = 500000.0;
    config["rope_scaling"] = {{type_key, "llama3"},
                              {"factor", 32.0},
                              {"low_freq_factor", 1.5},
                              {"high_freq_factor", 3.0},
                              {"original_max_position_embeddings", 64}};
    const llama::rope_parameters r = load(config).rope;
    CHECK(r.type == llama::rope_type::llama3);
    CHECK(r.theta == 500000);
    CHECK(r.factor == 32);
    CHECK(r.low_freq_factor == 1.5);
    CHECK(r.high_freq_factor == 3);
    CHECK(r.original_context == 64);
  }
  json config = minimal();
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 2}};
  CHECK(load(config).rope.type == llama::rope_type::linear);
  config["rope_scaling"] = {{"type", "default"}};
  CHECK(load(config).rope.type == llama::rope_type::standard);
}

TEST_CASE("rope that is not known is refused by name") {
  CHECK(complaint(rope({{"rope_type", "dynamic"}, {"factor", 2}})) ==
        "key \"rope_parameters.rope_type\": expected default, linear or llama3, found \"dynamic\"");
  CHECK(complaint(rope({{"rope_type", "yarn"}})).find("found \"yarn\"") != std::string::npos);
  json old = minimal();
  old["rope_scaling"] = {{"type", "dynamic"}, {"factor", 2}};
  CHECK(complaint(old) ==
        "key \"rope_scaling.type\": expected default, linear or llama3, found \"dynamic\"");
  CHECK(complaint(rope({{"rope_type", "linear"}})) ==
        "key \"rope_parameters.factor\": expected a positive number, found nothing");
  CHECK(complaint(rope({{"rope_type", "llama3"},
                        {"factor", 8},
                        {"low_freq_factor", 4},
                        {"high_freq_factor", 4}})) ==
        "key \"rope_parameters.high_freq_factor\": expected more than low_freq_factor, found 4");
  CHECK(complaint(rope({{"partial_rotary_factor", 0.5}})).find("found 0.5") != std::string::npos);
  CHECK(complaint(rope({{"rope_theta", 0}})) ==
        "key \"rope_parameters.rope_theta\": expected a positive number, found 0");
  CHECK(complaint(rope("default")) ==
        "key \"rope_parameters\": expected an object, found \"default\"");
}

TEST_CASE("other architectures are refused by name") {
  CHECK(complaint("model_type", "mamba") ==
        "key \"model_type\": expected llama, mistral, qwen2, opt, phi or phi3 (another one needs a "
        "description in families.hpp: the names of its tensors and linears, norm, activation, "
        "positions, how attention and mlp join, biases), found \"mamba\"");
  CHECK(complaint("model_type", "mistral3").find("found \"mistral3\"") != std::string::npos);
  CHECK(complaint("rope_interleaved", true) ==
        "key \"rope_interleaved\": expected false, found true");
  CHECK(complaint("architectures", {"LlamaForSequenceClassification"}) ==
        "key \"architectures\": expected [\"LlamaForCausalLM\"], found "
        "[\"LlamaForSequenceClassification\"]");
  CHECK(complaint("hidden_act", "gelu") == "key \"hidden_act\": expected \"silu\", found \"gelu\"");
  CHECK(complaint("quantization_config", {{"quant_method", "gptq"}}).find("gptq") !=
        std::string::npos);
  json config = minimal();
  config.erase("model_type");
  CHECK(complaint(config) == "key \"model_type\": expected a string, found nothing");
}

TEST_CASE("the configs that other families are published with are understood") {
  const auto read = [](const char* text) { return load(std::string(text)); };
  const llama::config mistral = read(
      R"({"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
          "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
          "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
          "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
          "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false,
          "vocab_size": 32000})");
  CHECK(mistral.window_of(0) == 4096);
  CHECK(mistral.window_of(31) == 4096);
  CHECK(!mistral.qkv_bias);
  CHECK(mistral.rotary_width() == 128);

  const llama::config qwen = read(
      R"({"architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151643,
          "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
          "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
          "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
          "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
          "tie_word_embeddings": true, "use_mrope": false, "use_sliding_window": false,
          "vocab_size": 151936})");
  CHECK(qwen.window_of(23) == 0);
  CHECK(qwen.qkv_bias);
  CHECK(!qwen.output_bias);
  CHECK(!qwen.mlp_bias);
  CHECK(qwen.tied_embeddings);
  CHECK(qwen.rope.theta == 1e6);

  const llama::config smol = read(
      R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 0,
          "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
          "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
          "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
          "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
          "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
          "tie_word_embeddings": true, "vocab_size": 49152})");
  CHECK(smol.head_dim == 64);
  CHECK(smol.rope.theta == 1e5);
  CHECK(smol.window_of(0) == 0);

  const llama::config opt = read(
      R"({"_remove_final_layer_norm": false, "activation_function": "relu",
          "architectures": ["OPTForCausalLM"], "bos_token_id": 2, "do_layer_norm_before": false,
          "eos_token_id": 2, "ffn_dim": 4096, "hidden_size": 1024,
          "max_position_embeddings": 2048, "model_type": "opt", "num_attention_heads": 16,
          "num_hidden_layers": 24, "pad_token_id": 1, "prefix": "</s>", "vocab_size": 50272,
          "word_embed_proj_dim": 512})");
  CHECK(opt.intermediate == 4096);
  CHECK(opt.embedding_width() == 512);
  CHECK(opt.residual == llama::residual_form::post_norm);
  CHECK(opt.activation == llama::activation_kind::relu);
  CHECK(opt.tied_embeddings);
  CHECK(opt.qkv_bias);
  CHECK(opt.output_bias);
  CHECK(opt.mlp_bias);
  CHECK(opt.norm_epsilon == 1e-5f);

  const llama::config phi = read(
      R"({"architectures": ["PhiForCausalLM"], "bos_token_id": 50256, "embd_pdrop": 0.0,
          "eos_token_id": 50256, "hidden_act": "gelu_new", "hidden_size": 2560,
          "intermediate_size": 10240, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
          "model_type": "phi", "num_attention_heads": 32, "num_hidden_layers": 32,
          "num_key_value_heads": null, "partial_rotary_factor": 0.4, "qk_layernorm": false,
          "rope_scaling": null, "rope_theta": 10000.0, "tie_word_embeddings": false,
          "vocab_size": 51200})");
  CHECK(phi.rotary_width() == 32);
  CHECK(phi.kv_heads == 32);
  CHECK(phi.residual == llama::residual_form::parallel);
  CHECK(phi.activation == llama::activation_kind::gelu_tanh);

  const json phi3 = json::parse(
      R"({"architectures": ["Phi3ForCausalLM"], "attention_bias": false, "bos_token_id": 1,
          "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
          "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3",
          "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
          "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_scaling": null,
          "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false,
          "vocab_size": 32064})");
  CHECK(load(phi3).window_of(5) == 2047);
  CHECK(load(phi3).rotary_width() == 96);
  json longer = phi3;
  longer["rope_scaling"] = {{"type", "longrope"}, {"long_factor", {1.0}}, {"short_factor", {1.0}}};
  CHECK(complaint(longer) ==
        "key \"rope_scaling.type\": expected default, linear or llama3, found \"longrope\"");
}

TEST_CASE("numbers that are missing, not positive or not whole are refused") {
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "max_position_embeddings"}) {
    CAPTURE(key);
    json config = minimal();
    config.erase(key);
    CHECK(complaint(config) ==
          std::string("key \"") + key + "\": expected a positive integer, found nothing");
    CHECK(complaint(key, 0).find("expected a positive integer, found 0") != std::string::npos);
    CHECK(complaint(key, -3).find("expected a positive integer, found -3") != std::string::npos);
    CHECK(complaint(key, 1.5).find("expected an integer, found 1.5") != std::string::npos);
    CHECK(complaint(key, "32").find("expected an integer, found \"32\"") != std::string::npos);
    CHECK(complaint(key, 5000000000).find("expected a 31-bit integer") != std::string::npos);
    CHECK(complaint(key, 18446744073709551615u).find("expected a 31-bit") != std::string::npos);
  }
  CHECK(complaint("rms_norm_eps", 0).find("expected a positive number") != std::string::npos);
  CHECK(complaint("rms_norm_eps", "x").find("expected a number") != std::string::npos);
  CHECK(complaint("tie_word_embeddings", 1).find("expected true or false") != std::string::npos);
}

TEST_CASE("heads that do not divide are refused") {
  CHECK(complaint("num_key_value_heads", 3) ==
        "key \"num_key_value_heads\": expected a divisor of num_attention_heads = 4, found 3");
  CHECK(complaint("num_attention_heads", 5).find("a divisor of hidden_size = 32") !=
        std::string::npos);
  CHECK(complaint("head_dim", 7).find("expected an even number") != std::string::npos);
  json config = minimal();
  config["num_attention_heads"] = 5;
  config["head_dim"] = 12;
  CHECK(load(config).query_width() == 60);
}

TEST_CASE("end tokens come as a number or a list, from generation_config.json if it has them") {
  json config = minimal();
  config["eos_token_id"] = 7;
  CHECK(load(config).eos == std::vector<int>{7});
  CHECK(load(config.dump(), R"({"eos_token_id": [8, 9], "bos_token_id": 1})").eos ==
        std::vector<int>{8, 9});
  CHECK(load(config.dump(), R"({"eos_token_id": [8, 9], "bos_token_id": 1})").bos == 1);
  CHECK(load(config.dump(), R"({"do_sample": true})").eos == std::vector<int>{7});
  CHECK(complaint("eos_token_id", 96) ==
        "key \"eos_token_id\": expected token ids of 0 to 95, found 96");
  CHECK(complaint("eos_token_id", {1, -1}).find("found [1,-1]") != std::string::npos);
  CHECK(complaint("bos_token_id", "<s>").find("expected an integer") != std::string::npos);
}

TEST_CASE("a config that is missing, cut or not an object is refused with its path") {
  const support::temporary_folder folder;
  CHECK_THROWS_AS(llama::load_config(folder.path()), bitladder::error);
  for (const char* text : {"", "{", "[]", "3", "{\"a\": }", "{\"a\":1}{"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(load(std::string(text)), bitladder::error);
  }
  CHECK_THROWS_AS(load(std::string(100000, '[')), bitladder::error);
}
