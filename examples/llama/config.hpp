// SPDX-License-Identifier: MIT
// The numbers of a model, read from the config.json of a Hugging Face folder and checked, as the
// description of its family says (families.hpp): grouped heads, explicit head width, biases, tied
// embeddings, sliding windows, default, linear and llama3 rope in both spellings
// (`rope_parameters`, or `rope_theta` + `rope_scaling`). Tested by tests/llama/config_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#include <llama/families.hpp>
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
  int columns = 0;              ///< the first ones of a head, which turn; 0: all
};

/// How far back attention looks.
struct attention_window {
  int size = 0;              ///< positions that a query sees, its own among them; 0: all
  int first_layer = 0;       ///< layers below this one see all ...
  std::vector<bool> layers;  ///< ... unless this says it of each
};

/// Shape and constants of a model.
struct config {
  const llama::family* family = &known_families[0];
  int vocabulary = 0;
  int hidden = 0;
  int intermediate = 0;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int context = 0;  ///< positions that the model was made for
  float norm_epsilon = 1e-6f;
  int table_width = 0;  ///< columns of the embedding; 0: as many as the layers have
  activation_kind activation = activation_kind::silu;
  residual_form residual = residual_form::pre_norm;
  bool tied_embeddings = false;
  bool qkv_bias = false;
  bool output_bias = false;
  bool mlp_bias = false;
  rope_parameters rope;
  attention_window window;
  int bos = -1;          ///< -1: none given
  std::vector<int> eos;  ///< any of these ends a text; generation_config.json wins over config.json

  int query_width() const { return heads * head_dim; }
  int kv_width() const { return kv_heads * head_dim; }
  /// Columns of the embedding and the head.
  int embedding_width() const { return table_width > 0 ? table_width : hidden; }
  /// Columns of a head that turn with the position.
  int rotary_width() const { return rope.columns > 0 ? rope.columns : head_dim; }
  /// Positions that a query of `layer` sees, its own among them; 0: all.
  int window_of(int layer) const {
    const bool has = window.layers.empty() ? layer >= window.first_layer
                                           : window.layers[static_cast<std::size_t>(layer)];
    return has ? window.size : 0;
  }
};

namespace detail {

/// The family that the file says it is.
inline const family& read_family(const json_reader& root) {
  const std::string type = root.text("model_type");
  const family* f = find_family(type);
  if (f == nullptr)
    root.fail("model_type", family_list() +
                                " (another one needs a description in families.hpp: the names of "
                                "its tensors and linears, norm, activation, positions, how "
                                "attention and mlp join, biases)");
  if (root.has("architectures")) {
    const std::vector<std::string> names = root.texts("architectures");
    if (names.size() != 1 || names[0] != f->architecture)
      root.fail("architectures", "[\"" + std::string(f->architecture) + "\"]");
  }
  if (f->must_be_false != nullptr && root.boolean_or(f->must_be_false, false))
    root.fail(f->must_be_false, "false");
  if (f->must_be_true != nullptr && !root.boolean_or(f->must_be_true, true))
    root.fail(f->must_be_true, "true");
  return *f;
}

inline activation_kind read_activation(const json_reader& root, const family& f) {
  const std::string name = root.text_or(f.activation_key, std::string(f.activation));
  if (f.gated()) {
    if (name != "silu") root.fail(f.activation_key, "\"silu\"");
    return activation_kind::silu;
  }
  if (name == "silu") return activation_kind::silu;
  if (name == "relu") return activation_kind::relu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return activation_kind::gelu_tanh;
  root.fail(f.activation_key, "silu, relu, gelu_new or gelu_pytorch_tanh");
}

/// The columns of a head that turn, of all of them.
inline int read_rotary_columns(const json_reader& root, const json_reader& scaling, const family& f,
                               int head_dim) {
  constexpr const char* key = "partial_rotary_factor";
  const json_reader& where = scaling.has(key) ? scaling : root;
  if (!f.partial_rotary) {
    if (scaling.number_or(key, 1) != 1)
      scaling.fail(key, "1 (" + std::string(f.model_type) + " rotates whole heads)");
    return head_dim;
  }
  const double fraction = where.positive_number_or(key, f.rotary_fraction);
  const int columns = fraction <= 1 ? static_cast<int>(head_dim * fraction) : 0;
  if (columns == 0 || columns % 2 != 0)
    where.fail(key, "a part of head_dim = " + std::to_string(head_dim) +
                        " that is an even number of columns (rope turns pairs)");
  return columns;
}

inline rope_parameters read_rope(const json_reader& root, const config& c) {
  rope_parameters rope;
  // The newer key holds everything; the older spelling has the base beside a `rope_scaling` object.
  const bool newer = root.has("rope_parameters");
  rope.theta = root.positive_number_or("rope_theta", rope.theta);
  const char* key = newer ? "rope_parameters" : "rope_scaling";
  const json_reader scaling = root.has(key) ? root.object(key) : root;
  const int columns = read_rotary_columns(root, scaling, *c.family, c.head_dim);
  if (columns != c.head_dim) rope.columns = columns;
  if (!root.has(key)) return rope;
  rope.theta = scaling.positive_number_or("rope_theta", rope.theta);
  const std::string type = scaling.has("rope_type") ? scaling.text("rope_type")
                           : scaling.has("type")    ? scaling.text("type")
                                                    : "default";
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
  rope.original_context =
      scaling.positive_integer_or("original_max_position_embeddings", c.context);
  return rope;
}

inline attention_window read_window(const json_reader& root, const config& c) {
  const window_keys& keys = c.family->window;
  attention_window w;
  if (keys.size == nullptr) return w;
  if (keys.enabled != nullptr && !root.boolean_or(keys.enabled, false)) return w;
  if (root.has(keys.size))
    w.size = root.positive_integer(keys.size);
  else if (!root.is_null(keys.size))
    w.size = keys.size_otherwise;
  if (keys.first_layer == nullptr) return w;
  w.first_layer = root.natural_or(keys.first_layer, keys.first_layer_otherwise);
  if (!root.has("layer_types")) return w;
  for (const std::string& type : root.texts("layer_types")) {
    if (type != "sliding_attention" && type != "full_attention")
      root.fail("layer_types", "sliding_attention and full_attention");
    w.layers.push_back(type == "sliding_attention");
  }
  if (w.layers.size() != static_cast<std::size_t>(c.layers))
    root.fail("layer_types", "a type for each of the " + std::to_string(c.layers) + " layers");
  return w;
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

  config c;
  const family& f = detail::read_family(root);
  c.family = &f;
  c.vocabulary = root.positive_integer("vocab_size");
  c.hidden = root.positive_integer("hidden_size");
  c.intermediate = root.positive_integer(f.intermediate_key);
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
  if (static_cast<std::int64_t>(c.heads) * c.head_dim > 1 << 24)
    root.fail("num_attention_heads", "heads * head_dim of at most 2^24");
  c.context = root.positive_integer("max_position_embeddings");
  // Twice the one and two more than the other are sizes of tensors.
  if (c.intermediate > 1 << 30) root.fail(f.intermediate_key, "at most 2^30");
  if (c.context > 1 << 30) root.fail("max_position_embeddings", "at most 2^30");
  if (f.norm_epsilon_key == nullptr)
    c.norm_epsilon = static_cast<float>(f.norm_epsilon);
  else
    c.norm_epsilon =
        static_cast<float>(root.positive_number_or(f.norm_epsilon_key, f.norm_epsilon));
  c.table_width = f.table_width_key == nullptr ? 0 : root.positive_integer_or(f.table_width_key, 0);
  c.activation = detail::read_activation(root, f);
  c.residual = f.pre_norm_key == nullptr || root.boolean_or(f.pre_norm_key, true)
                   ? f.residual
                   : residual_form::post_norm;
  const auto yes = [&](const choice& k) {
    return k.key == nullptr ? k.otherwise : root.boolean_or(k.key, k.otherwise);
  };
  c.tied_embeddings = yes(f.tied_embeddings);
  c.qkv_bias = yes(f.qkv_bias);
  c.output_bias = yes(f.output_bias);
  c.mlp_bias = yes(f.mlp_bias);
  if (f.rotary()) {
    if (!f.partial_rotary && c.head_dim % 2 != 0)
      root.fail("head_dim", "an even number (rope turns pairs)");
    c.rope = detail::read_rope(root, c);
  }
  c.window = detail::read_window(root, c);
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
