// SPDX-License-Identifier: MIT
// A config.json out of the numbers that config.hpp reads from one: for models that came without.
// Tested by tests/llama/gguf_model_test.cpp.
#pragma once

#include <llama/config.hpp>

#include <nlohmann/json.hpp>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace llama {
namespace detail {

/// The shortest decimal number that reads back as `x`, as a double: 1e-05, not 9.99...e-06.
inline double shortest_decimal(float x) {
  char text[32];
  for (int digits = 1; digits <= 9; ++digits) {
    std::snprintf(text, sizeof text, "%.*g", digits, static_cast<double>(x));
    if (std::strtof(text, nullptr) == x) break;
  }
  return std::strtod(text, nullptr);
}

}  // namespace detail

/// What `load_config` reads back as `c`, for what a GGUF file can say: rotary positions, no window.
inline std::string config_json(const config& c) {
  const family& f = *c.family;
  nlohmann::ordered_json j = {
      {"architectures", nlohmann::ordered_json::array({std::string(f.architecture)})},
      {"model_type", std::string(f.model_type)},
      {f.activation_key, std::string(f.activation)},
      {"vocab_size", c.vocabulary},
      {"hidden_size", c.hidden},
      {f.intermediate_key, c.intermediate},
      {"num_hidden_layers", c.layers},
      {"num_attention_heads", c.heads},
      {"num_key_value_heads", c.kv_heads},
      {"head_dim", c.head_dim},
      {"max_position_embeddings", c.context},
      {"rope_theta", c.rope.theta}};
  if (f.norm_epsilon_key != nullptr)
    j[f.norm_epsilon_key] = detail::shortest_decimal(c.norm_epsilon);
  const auto tell = [&j](const choice& of, bool is) {
    if (of.key != nullptr) j[of.key] = is;
  };
  tell(f.tied_embeddings, c.tied_embeddings);
  tell(f.qkv_bias, c.qkv_bias);
  tell(f.output_bias, c.output_bias);
  tell(f.mlp_bias, c.mlp_bias);
  if (c.rope.type == rope_type::linear)
    j["rope_scaling"] = {{"rope_type", "linear"}, {"factor", c.rope.factor}};
  if (c.rope.type == rope_type::llama3)
    j["rope_scaling"] = {{"rope_type", "llama3"},
                         {"factor", c.rope.factor},
                         {"low_freq_factor", c.rope.low_freq_factor},
                         {"high_freq_factor", c.rope.high_freq_factor},
                         {"original_max_position_embeddings", c.rope.original_context}};
  if (c.bos >= 0) j["bos_token_id"] = c.bos;
  if (c.eos.size() == 1) j["eos_token_id"] = c.eos[0];
  if (c.eos.size() > 1) j["eos_token_id"] = c.eos;
  return j.dump(2) + "\n";
}

}  // namespace llama
