// SPDX-License-Identifier: MIT
// All tensors of a Llama, from a Hugging Face folder, a GGUF file or a bitladder checkpoint: each
// is looked up by its published name and its dtype and shape are checked. Large tensors stay views
// into the read-only mapping where it holds floats. Tested by tests/llama/weights_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/safetensors_set.hpp>

#include <llama/config.hpp>
#include <llama/float_tensors.hpp>
#include <llama/linear_weight.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace llama {

/// The tensors of one decoder layer.
template <class Linear, class Vector>
struct layer_weights {
  Vector attention_norm, mlp_norm;
  Linear query, key, value, output;
  Linear gate, up, down;

  /// Calls `f` with each linear.
  template <class F>
  void for_each_linear(F&& f) const {
    for (const Linear* w : {&query, &key, &value, &output, &gate, &up, &down}) f(*w);
  }
};

/// The tensors of a model, in whatever form a backend keeps them.
template <class Linear, class Vector, class Table>
struct model_weights {
  Table embedding;  ///< [vocabulary, hidden]
  std::vector<layer_weights<Linear, Vector>> layers;
  Vector norm;
  Linear head;  ///< [vocabulary, hidden]; the embedding if the two are tied
};

/// The tensors in host memory.
using host_weights = model_weights<linear_weight, std::vector<float>, dense_matrix>;

/// Opens a model's tensors and hands them out checked.
class weight_source {
 public:
  /// @param path a folder, or a GGUF file
  explicit weight_source(const std::filesystem::path& path) : path_(path.string()) {
    if (is_gguf_path(path)) {
      plain_.emplace(path);
      return;
    }
    bitladder::safetensors_set tensors(path);
    if (bitladder::checkpoint::is_checkpoint(tensors))
      quantized_.emplace(std::move(tensors));
    else
      plain_.emplace(std::move(tensors));
  }

  /// Null if there is no bitladder checkpoint.
  const bitladder::checkpoint* quantized() const {
    return quantized_.has_value() ? &*quantized_ : nullptr;
  }

  /// "model.norm.weight" and the like, widened to fp32.
  std::vector<float> vector(const std::string& name, int size) const {
    const bitladder::tensor_info& t = checked(name, {size});
    std::vector<float> out(static_cast<std::size_t>(size));
    if (quantized_.has_value())
      quantized_->tensors().read_as_float(t, out.data());
    else
      plain_->read_as_float(t, out.data());
    return out;
  }

  /// [rows, cols] as it is stored, but for a GGUF file's blocks, which become fp32.
  dense_matrix matrix(const std::string& name, int rows, int cols) {
    const bitladder::tensor_info& t = checked(name, {rows, cols});
    std::vector<std::byte> copy;
    dense_matrix m{t.type, nullptr, rows, cols};
    m.data = quantized_.has_value() ? tensor_bytes(quantized_->tensors(), t, copy)
                                    : plain_->bytes(t, copy);
    if (!copy.empty()) copies_.push_back(std::move(copy));  // moved, its elements stay in place
    return m;
  }

  /// The linear whose tensors are `name`.weight (or .qweight and .lut*) and `name`.bias.
  linear_weight linear(const std::string& name, int rows, int cols, bool bias) {
    linear_weight w;
    w.rows = rows;
    w.cols = cols;
    if (quantized_.has_value() && quantized_->is_quantized(name)) {
      w.planes = quantized_->planes(name);
      if (w.planes.rows() != rows || w.planes.cols() != cols)
        fail(name + ".qweight", shape_text({rows, cols}) + " codes",
             shape_text({w.planes.rows(), w.planes.cols()}));
      for (int bits : quantized_->precisions())
        w.table[static_cast<std::size_t>(bits)] = quantized_->codebook(name, bits);
    } else {
      w.dense = matrix(name + ".weight", rows, cols);
    }
    if (bias)
      w.bias = vector(name + ".bias", rows);
    else if (find(name + ".bias") != nullptr)
      fail(name + ".bias", "no bias, as config.json says", "one");
    return w;
  }

 private:
  static std::string shape_text(const std::vector<std::int64_t>& shape) {
    return bitladder::to_string(shape);
  }

  [[noreturn]] void fail(const std::string& tensor, const std::string& expected,
                         const std::string& found) const {
    throw bitladder::error(
        bitladder::status::bad_file,
        path_ + ": tensor \"" + tensor + "\": expected " + expected + ", found " + found);
  }

  const bitladder::tensor_info* find(const std::string& name) const {
    return quantized_.has_value() ? quantized_->tensors().find(name) : plain_->find(name);
  }

  const bitladder::tensor_info& checked(const std::string& name,
                                        const std::vector<std::int64_t>& shape) const {
    const bitladder::tensor_info* found = find(name);
    const bitladder::tensor_info* t = found != nullptr         ? found
                                      : quantized_.has_value() ? &quantized_->tensors().at(name)
                                                               : &plain_->at(name);  // throws
    if (t->type != bitladder::dtype::f32 && t->type != bitladder::dtype::f16 &&
        t->type != bitladder::dtype::bf16)
      fail(name, "F32, F16 or BF16", bitladder::to_string(t->type));
    if (t->shape != shape) fail(name, "shape " + shape_text(shape), shape_text(t->shape));
    return *t;
  }

  std::string path_;
  std::optional<float_tensors> plain_;
  std::optional<bitladder::checkpoint> quantized_;
  std::vector<std::vector<std::byte>> copies_;
};

/// Every tensor that `c` calls for. The views live as long as `source`.
/// @throws bitladder::error naming folder and tensor, what was expected and what was found
inline host_weights load_weights(weight_source& source, const config& c) {
  host_weights w;
  w.embedding = source.matrix("model.embed_tokens.weight", c.vocabulary, c.hidden);
  for (int i = 0; i < c.layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    auto& to = w.layers.emplace_back();
    to.attention_norm = source.vector(layer + "input_layernorm.weight", c.hidden);
    to.mlp_norm = source.vector(layer + "post_attention_layernorm.weight", c.hidden);
    const auto linear = [&](const char* name, int rows, int cols, bool bias) {
      return source.linear(layer + name, rows, cols, bias);
    };
    to.query = linear("self_attn.q_proj", c.query_width(), c.hidden, c.attention_bias);
    to.key = linear("self_attn.k_proj", c.kv_width(), c.hidden, c.attention_bias);
    to.value = linear("self_attn.v_proj", c.kv_width(), c.hidden, c.attention_bias);
    to.output = linear("self_attn.o_proj", c.hidden, c.query_width(), c.attention_bias);
    to.gate = linear("mlp.gate_proj", c.intermediate, c.hidden, c.mlp_bias);
    to.up = linear("mlp.up_proj", c.intermediate, c.hidden, c.mlp_bias);
    to.down = linear("mlp.down_proj", c.hidden, c.intermediate, c.mlp_bias);
  }
  w.norm = source.vector("model.norm.weight", c.hidden);
  if (c.tied_embeddings) {
    w.head.rows = c.vocabulary;
    w.head.cols = c.hidden;
    w.head.dense = w.embedding;
  } else {
    w.head = source.linear("lm_head", c.vocabulary, c.hidden, false);
  }
  return w;
}

}  // namespace llama
