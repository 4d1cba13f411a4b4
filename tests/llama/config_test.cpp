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
  CHECK(!c.attention_bias);
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
  CHECK(d.attention_bias);
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
  CHECK(complaint("model_type", "mistral") ==
        "key \"model_type\": expected \"llama\", found \"mistral\"");
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
