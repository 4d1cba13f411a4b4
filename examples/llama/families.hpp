// SPDX-License-Identifier: MIT
// The families that run, each told as what it has where a Llama has something else. A new one is a
// function here and a golden model in tests/llama/make_llama_golden.py.
// Tested by tests/llama/family_test.cpp.
#pragma once

#include <llama/family.hpp>

#include <string>
#include <string_view>

namespace llama {
namespace detail {

/// Llama 2, 3, 3.1, 3.2 and SmolLM 1 and 2.
constexpr family llama_family() {
  family f;
  f.qkv_bias = f.output_bias = {false, "attention_bias"};
  f.mlp_bias = {false, "mlp_bias"};
  f.gguf = "llama";
  f.must_be_false = "rope_interleaved";
  return f;
}

/// Mistral 7B: every layer looks back over a window. GGUF files of it say that they are Llamas.
constexpr family mistral_family() {
  family f;
  f.model_type = "mistral";
  f.architecture = "MistralForCausalLM";
  f.window.size = "sliding_window";
  f.window.size_otherwise = 4096;
  return f;
}

/// Qwen 2 and 2.5: biases where queries, keys and values are made; if windows are on, then in the
/// upper layers.
constexpr family qwen2_family() {
  family f;
  f.model_type = "qwen2";
  f.architecture = "Qwen2ForCausalLM";
  f.qkv_bias = {true, nullptr};
  f.window = {"sliding_window", 4096, "use_sliding_window", "max_window_layers", 28};
  f.gguf = "qwen2";
  f.gguf_rope_rows = false;
  f.must_be_false = "use_mrope";
  return f;
}

/// OPT: a table of positions that starts at row 2, layer norms, biases everywhere, no gate.
constexpr family opt_family() {
  family f;
  f.model_type = "opt";
  f.architecture = "OPTForCausalLM";
  f.layers = "model.decoder.layers";
  f.embedding = "model.decoder.embed_tokens";
  f.positions = "model.decoder.embed_positions";
  f.position_offset = 2;
  f.project_in = "model.decoder.project_in";
  f.project_out = "model.decoder.project_out";
  f.norm = "model.decoder.final_layer_norm";
  f.layer = {"self_attn_layer_norm",
             "final_layer_norm",
             "self_attn.q_proj",
             "self_attn.k_proj",
             "self_attn.v_proj",
             "",
             "self_attn.out_proj",
             "",
             "fc1",
             "",
             "fc2"};
  f.norms = norm_kind::layer;
  f.qkv_bias = f.output_bias = f.mlp_bias = {true, "enable_bias"};
  f.tied_embeddings.otherwise = true;
  f.intermediate_key = "ffn_dim";
  f.activation_key = "activation_function";
  f.activation = "relu";
  f.norm_epsilon_key = nullptr;
  f.norm_epsilon = 1e-5;
  f.pre_norm_key = "do_layer_norm_before";
  f.table_width_key = "word_embed_proj_dim";
  f.must_be_false = "_remove_final_layer_norm";
  f.must_be_true = "layer_norm_elementwise_affine";
  return f;
}

/// Phi 1, 1.5 and 2: attention and mlp side by side behind one layer norm, heads of which only the
/// first columns turn, biases everywhere, no gate.
constexpr family phi_family() {
  family f;
  f.model_type = "phi";
  f.architecture = "PhiForCausalLM";
  f.norm = "model.final_layernorm";
  f.layer.mlp_norm = "";
  f.layer.output = "self_attn.dense";
  f.layer.gate = "";
  f.layer.up = "mlp.fc1";
  f.layer.down = "mlp.fc2";
  f.norms = norm_kind::layer;
  f.residual = residual_form::parallel;
  f.qkv_bias = f.output_bias = f.mlp_bias = {true, nullptr};
  f.head_bias = true;
  f.activation = "gelu_new";
  f.norm_epsilon_key = "layer_norm_eps";
  f.norm_epsilon = 1e-5;
  f.partial_rotary = true;
  f.rotary_fraction = 0.5;
  f.must_be_false = "qk_layernorm";
  return f;
}

/// Phi 3 with the 4k context: one linear for queries, keys and values, one for gate and up.
constexpr family phi3_family() {
  family f;
  f.model_type = "phi3";
  f.architecture = "Phi3ForCausalLM";
  f.layer.query = f.layer.key = f.layer.value = "";
  f.layer.query_key_value = "self_attn.qkv_proj";
  f.layer.gate = f.layer.up = "";
  f.layer.gate_up = "mlp.gate_up_proj";
  f.norm_epsilon = 1e-5;
  f.partial_rotary = true;
  f.window.size = "sliding_window";
  return f;
}

}  // namespace detail

/// The first is Llama.
inline constexpr family known_families[] = {detail::llama_family(), detail::mistral_family(),
                                            detail::qwen2_family(), detail::opt_family(),
                                            detail::phi_family(),   detail::phi3_family()};

/// The family of a "model_type"; null if it is not known.
inline const family* find_family(std::string_view model_type) {
  for (const family& f : known_families)
    if (f.model_type == model_type) return &f;
  return nullptr;
}

/// "llama, mistral, ... or phi3"
inline std::string family_list() {
  std::string text;
  const std::string_view last = known_families[std::size(known_families) - 1].model_type;
  for (const family& f : known_families)
    text += (text.empty() ? "" : f.model_type == last ? " or " : ", ") + std::string(f.model_type);
  return text;
}

}  // namespace llama
