// SPDX-License-Identifier: MIT
// The numbers of a Llama, read from the config.json of a Hugging Face folder and checked. Knows
// Llama 2, 3, 3.1 and 3.2: grouped heads, explicit head width, biases, tied embeddings, default,
// linear and llama3 rope in both spellings (`rope_parameters`, or `rope_theta` + `rope_scaling`).
// Tested by tests/llama/config_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#include <llama/json_reader.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace llama {

/// How rotary frequencies are stretched for contexts longer than the trained one.
enum class rope_type { standard, linear, llama3 };

/// Parameters of the rotary position embedding.
struct rope_parameters {
  rope_type type = rope_type::standard;
  double theta = 10000;         ///< base of the frequencies
  double factor = 1;            ///< linear, llama3: how much longer the context became
  double low_freq_factor = 1;   ///< llama3: wavelengths above original / this are stretched
  double high_freq_factor = 4;  ///< llama3: wavelengths below original / this stay
  int original_context = 0;     ///< llama3: context before stretching
};

/// Shape and constants of a model.
struct config {
  int vocabulary = 0;
  int hidden = 0;
  int intermediate = 0;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int context = 0;  ///< positions that the model was made for
  float norm_epsilon = 1e-6f;
  bool tied_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  rope_parameters rope;
  int bos = -1;          ///< -1: none given
  std::vector<int> eos;  ///< any of these ends a text; generation_config.json wins over config.json

  int query_width() const { return heads * head_dim; }
  int kv_width() const { return kv_heads * head_dim; }
};

namespace detail {

inline rope_parameters read_rope(const json_reader& root, int context) {
  rope_parameters rope;
  // The newer key holds everything; the older spelling has the base beside a `rope_scaling` object.
  const bool newer = root.has("rope_parameters");
  rope.theta = root.positive_number_or("rope_theta", rope.theta);
  const char* key = newer ? "rope_parameters" : "rope_scaling";
  if (!root.has(key)) return rope;
  const json_reader scaling = root.object(key);
  rope.theta = scaling.positive_number_or("rope_theta", rope.theta);
  const std::string type = scaling.has("rope_type") ? scaling.text("rope_type")
                           : scaling.has("type")    ? scaling.text("type")
                                                    : "default";
  if (scaling.number_or("partial_rotary_factor", 1) != 1)
    scaling.fail("partial_rotary_factor", "1 (a Llama rotates whole heads)");
  if (type == "default") return rope;
  if (type != "linear" && type != "llama3")
    scaling.fail(scaling.has("rope_type") ? "rope_type" : "type", "default, linear or llama3");
  rope.factor = scaling.positive_number("factor");
  rope.type = rope_type::linear;
  if (type == "linear") return rope;
  rope.type = rope_type::llama3;
  rope.low_freq_factor = scaling.positive_number("low_freq_factor");
  rope.high_freq_factor = scaling.positive_number("high_freq_factor");
  if (rope.high_freq_factor <= rope.low_freq_factor)
    scaling.fail("high_freq_factor", "more than low_freq_factor");
  rope.original_context = scaling.positive_integer_or("original_max_position_embeddings", context);
  return rope;
}

inline std::vector<int> read_ids(const json_reader& root, const char* key, int vocabulary) {
  std::vector<int> ids = root.integers_or_empty(key);
  for (int id : ids)
    if (id < 0 || id >= vocabulary)
      root.fail(key, "token ids of 0 to " + std::to_string(vocabulary - 1));
  return ids;
}

}  // namespace detail

/// Reads `folder`/config.json, and generation_config.json if it is there.
/// @throws bitladder::error naming file and key, what was expected and what was found
inline config load_config(const std::filesystem::path& folder) {
  const json_reader root = json_reader::open(folder / "config.json");
  // Quantized formats of others keep "llama" here and change the tensors.
  if (root.has("quantization_config"))
    root.fail("quantization_config", "no foreign quantization (fp32, fp16, bf16 or bitladder)");
  if (root.text("model_type") != "llama") root.fail("model_type", "\"llama\"");
  if (root.has("architectures")) {
    const std::vector<std::string> names = root.texts("architectures");
    if (names.size() != 1 || names[0] != "LlamaForCausalLM")
      root.fail("architectures", "[\"LlamaForCausalLM\"]");
  }
  if (root.text_or("hidden_act", "silu") != "silu") root.fail("hidden_act", "\"silu\"");

  config c;
  c.vocabulary = root.positive_integer("vocab_size");
  c.hidden = root.positive_integer("hidden_size");
  c.intermediate = root.positive_integer("intermediate_size");
  c.layers = root.positive_integer("num_hidden_layers");
  c.heads = root.positive_integer("num_attention_heads");
  c.kv_heads = root.positive_integer_or("num_key_value_heads", c.heads);
  if (c.heads % c.kv_heads != 0)
    root.fail("num_key_value_heads",
              "a divisor of num_attention_heads = " + std::to_string(c.heads));
  if (!root.has("head_dim") && c.hidden % c.heads != 0)
    root.fail("num_attention_heads", "a divisor of hidden_size = " + std::to_string(c.hidden) +
                                         ", or an explicit head_dim");
  c.head_dim = root.positive_integer_or("head_dim", c.hidden / c.heads);
  if (c.head_dim % 2 != 0) root.fail("head_dim", "an even number (rope turns pairs)");
  if (static_cast<std::int64_t>(c.heads) * c.head_dim > 1 << 24)
    root.fail("num_attention_heads", "heads * head_dim of at most 2^24");
  c.context = root.positive_integer("max_position_embeddings");
  c.norm_epsilon = static_cast<float>(root.positive_number_or("rms_norm_eps", 1e-6));
  c.tied_embeddings = root.boolean_or("tie_word_embeddings", false);
  c.attention_bias = root.boolean_or("attention_bias", false);
  c.mlp_bias = root.boolean_or("mlp_bias", false);
  c.rope = detail::read_rope(root, c.context);
  const std::vector<int> bos = detail::read_ids(root, "bos_token_id", c.vocabulary);
  if (!bos.empty()) c.bos = bos[0];
  c.eos = detail::read_ids(root, "eos_token_id", c.vocabulary);

  const std::filesystem::path generation = folder / "generation_config.json";
  if (std::filesystem::exists(generation)) {
    const json_reader g = json_reader::open(generation);
    const std::vector<int> g_bos = detail::read_ids(g, "bos_token_id", c.vocabulary);
    if (!g_bos.empty()) c.bos = g_bos[0];
    const std::vector<int> g_eos = detail::read_ids(g, "eos_token_id", c.vocabulary);
    if (!g_eos.empty()) c.eos = g_eos;
  }
  return c;
}

}  // namespace llama
