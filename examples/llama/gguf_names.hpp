// SPDX-License-Identifier: MIT
// How a GGUF file of a Llama or Qwen 2 names and orders what a Hugging Face folder holds. Names map
// one to one. The rows of a Llama's query and key projections stand in another order: a GGUF file
// keeps the two rows that rope turns together side by side (0, 1), (2, 3), ..., a Hugging Face
// folder keeps them half a head apart. Tested by tests/llama/gguf_test.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace llama {
namespace detail {

struct gguf_name_pair {
  std::string_view gguf, hugging_face;
};

inline constexpr gguf_name_pair gguf_model_names[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};

/// After "blk.N." and "model.layers.N.".
inline constexpr gguf_name_pair gguf_layer_names[] = {
    {"attn_norm.weight", "input_layernorm.weight"},
    {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"attn_q.weight", "self_attn.q_proj.weight"},
    {"attn_k.weight", "self_attn.k_proj.weight"},
    {"attn_v.weight", "self_attn.v_proj.weight"},
    {"attn_output.weight", "self_attn.o_proj.weight"},
    {"ffn_gate.weight", "mlp.gate_proj.weight"},
    {"ffn_up.weight", "mlp.up_proj.weight"},
    {"ffn_down.weight", "mlp.down_proj.weight"},
    {"attn_q.bias", "self_attn.q_proj.bias"},
    {"attn_k.bias", "self_attn.k_proj.bias"},
    {"attn_v.bias", "self_attn.v_proj.bias"},
    {"attn_output.bias", "self_attn.o_proj.bias"},
    {"ffn_gate.bias", "mlp.gate_proj.bias"},
    {"ffn_up.bias", "mlp.up_proj.bias"},
    {"ffn_down.bias", "mlp.down_proj.bias"},
};

/// `prefix`N.`rest` with N a number without leading zeros.
struct layer_name {
  int layer;
  std::string_view rest;
};
inline std::optional<layer_name> split_layer_name(std::string_view name, std::string_view prefix) {
  if (name.substr(0, prefix.size()) != prefix) return std::nullopt;
  name.remove_prefix(prefix.size());
  const std::size_t dot = name.find('.');
  if (dot == std::string_view::npos || dot == 0 || dot > 6) return std::nullopt;
  if (dot > 1 && name[0] == '0') return std::nullopt;
  int layer = 0;
  for (char c : name.substr(0, dot)) {
    if (c < '0' || c > '9') return std::nullopt;
    layer = layer * 10 + (c - '0');
  }
  return layer_name{layer, name.substr(dot + 1)};
}

}  // namespace detail

/// "model.layers.3.mlp.up_proj.weight" for "blk.3.ffn_up.weight"; nothing for a tensor that these
/// models do not have.
inline std::optional<std::string> hugging_face_name(std::string_view stored) {
  for (const auto& pair : detail::gguf_model_names)
    if (pair.gguf == stored) return std::string(pair.hugging_face);
  if (const auto split = detail::split_layer_name(stored, "blk."))
    for (const auto& pair : detail::gguf_layer_names)
      if (pair.gguf == split->rest)
        return "model.layers." + std::to_string(split->layer) + "." +
               std::string(pair.hugging_face);
  return std::nullopt;
}

/// The inverse.
inline std::optional<std::string> gguf_name(std::string_view published) {
  for (const auto& pair : detail::gguf_model_names)
    if (pair.hugging_face == published) return std::string(pair.gguf);
  if (const auto split = detail::split_layer_name(published, "model.layers."))
    for (const auto& pair : detail::gguf_layer_names)
      if (pair.hugging_face == split->rest)
        return "blk." + std::to_string(split->layer) + "." + std::string(pair.gguf);
  return std::nullopt;
}

/// Whether the rows of a Llama's tensor, given by its GGUF name, stand in rope's order of pairs.
inline bool has_rope_rows(std::string_view stored) {
  const auto split = detail::split_layer_name(stored, "blk.");
  return split && (split->rest.substr(0, 7) == "attn_q." || split->rest.substr(0, 7) == "attn_k.");
}

/// Where row `row` of a query or key projection in Hugging Face's order stands in a GGUF file.
/// @param head_dim even
constexpr std::uint64_t gguf_rope_row(std::uint64_t row, std::uint64_t head_dim) {
  const std::uint64_t in_head = row % head_dim, half = head_dim / 2;
  return row - in_head + in_head % half * 2 + in_head / half;
}

}  // namespace llama
