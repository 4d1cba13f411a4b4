// SPDX-License-Identifier: MIT
// What makes one family of decoder models differ from another, as data: names of tensors, norm,
// activation, positions, how a layer's halves join, biases, and the keys of config.json that say
// so. forward.hpp and weights.hpp follow it; families.hpp lists the known ones.
// Tested by tests/llama/family_test.cpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace llama {

/// How rows are brought to one scale.
enum class norm_kind {
  rms,    ///< x / rms(x) * weight
  layer,  ///< (x - mean) / deviation * weight + bias
};

/// The function between the linears of an mlp.
enum class activation_kind { silu, relu, gelu_tanh };

/// How attention and mlp join the stream x of hidden states.
enum class residual_form {
  pre_norm,   ///< x += attention(norm(x)), then x += mlp(norm(x)); one more norm after all layers
  post_norm,  ///< x = norm(x + attention(x)), then x = norm(x + mlp(x)); no norm after all layers
  parallel,   ///< x += attention(n) + mlp(n), n = norm(x); one more norm after all layers
};

/// Tensors of a layer, below "model.layers.0."; an empty name is one that the family does not have.
/// Either query, key and value are linears of their own, or their rows lie in one; either gate and
/// up likewise, or there is no gate at all.
struct layer_names {
  std::string_view attention_norm, mlp_norm;
  std::string_view query, key, value, query_key_value, output;
  std::string_view gate, up, gate_up, down;
};

/// A yes or no that a family has for good, or that a key of config.json may change.
struct choice {
  bool otherwise = false;     ///< if there is no key, or the file leaves it out
  const char* key = nullptr;  ///< null: fixed
};

/// Where config.json says how far attention looks back.
struct window_keys {
  const char* size = nullptr;         ///< null: a family without windows
  int size_otherwise = 0;             ///< if the file leaves it out; 0: no window
  const char* enabled = nullptr;      ///< false there turns windows off, as does leaving it out
  const char* first_layer = nullptr;  ///< layers below this one have no window
  int first_layer_otherwise = 0;
};

/// The description of a family. What is written here is what a Llama has.
struct family {
  std::string_view model_type = "llama";               ///< of config.json
  std::string_view architecture = "LlamaForCausalLM";  ///< of config.json

  // Names of tensors, without ".weight" and ".bias".
  std::string_view layers = "model.layers";
  std::string_view embedding = "model.embed_tokens";
  std::string_view positions;                ///< a table; empty: positions are rotary
  std::string_view project_in, project_out;  ///< if the embedding is not as wide as the layers
  std::string_view norm = "model.norm";
  std::string_view head = "lm_head";
  layer_names layer = {"input_layernorm",  "post_attention_layernorm",
                       "self_attn.q_proj", "self_attn.k_proj",
                       "self_attn.v_proj", "",
                       "self_attn.o_proj", "mlp.gate_proj",
                       "mlp.up_proj",      "",
                       "mlp.down_proj"};

  norm_kind norms = norm_kind::rms;
  residual_form residual = residual_form::pre_norm;
  int position_offset = 0;  ///< row of the table of positions that the first token takes
  bool head_bias = false;
  choice qkv_bias, output_bias, mlp_bias;
  choice tied_embeddings = {false, "tie_word_embeddings"};

  // config.json
  const char* intermediate_key = "intermediate_size";
  const char* activation_key = "hidden_act";
  std::string_view activation = "silu";  ///< if the file leaves it out
  const char* norm_epsilon_key = "rms_norm_eps";
  double norm_epsilon = 1e-6;             ///< if the file leaves it out
  bool partial_rotary = false;            ///< whether "partial_rotary_factor" may be less than 1
  double rotary_fraction = 1;             ///< if the file leaves it out
  const char* pre_norm_key = nullptr;     ///< false there makes the form post_norm
  const char* table_width_key = nullptr;  ///< columns of the embedding, if not the hidden size
  window_keys window;
  const char* must_be_false = nullptr;  ///< a key of something that this description cannot tell
  const char* must_be_true = nullptr;   ///< likewise

  // GGUF files
  std::string_view gguf;       ///< "general.architecture" there; empty: such files are not read
  bool gguf_rope_rows = true;  ///< whether rows that rope turns together stand side by side there

  /// Whether an activated gate multiplies the other half of the mlp.
  constexpr bool gated() const { return !layer.gate.empty() || !layer.gate_up.empty(); }
  constexpr bool rotary() const { return positions.empty(); }
};

/// Layer `i`'s prefix: "model.layers.3.".
inline std::string layer_prefix(const family& f, int i) {
  return std::string(f.layers) + "." + std::to_string(i) + ".";
}

/// The linears of each layer in the order of the forward pass: "self_attn.q_proj" and so on. All of
/// them are quantized unless told otherwise.
inline std::vector<std::string> linear_names(const family& f) {
  const layer_names& n = f.layer;
  std::vector<std::string> names;
  for (std::string_view name :
       {n.query, n.key, n.value, n.query_key_value, n.output, n.gate, n.up, n.gate_up, n.down})
    if (!name.empty()) names.emplace_back(name);
  return names;
}

}  // namespace llama
