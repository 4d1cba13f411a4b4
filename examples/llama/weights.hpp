// SPDX-License-Identifier: MIT
// All tensors of a model, from whatever kind of file: each is looked up by the name that its
// family's description gives and its dtype and shape are checked. Large tensors stay views into the
// read-only mapping where it holds floats. Tested by tests/llama/weights_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <llama/config.hpp>
#include <llama/family.hpp>
#include <llama/linear_weight.hpp>
#include <llama/weight_file.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llama {

/// A norm; `bias` is empty where the family has none.
template <class Vector>
struct norm_weights {
  Vector weight, bias;
};

/// The tensors of one decoder layer. What the family does not have is empty.
template <class Linear, class Vector>
struct layer_weights {
  norm_weights<Vector> attention_norm, mlp_norm;
  Linear query, key, value, query_key_value, output;
  Linear gate, up, gate_up, down;

  /// Calls `f` with each linear, empty ones too.
  template <class F>
  void for_each_linear(F&& f) const {
    for (const Linear* w :
         {&query, &key, &value, &query_key_value, &output, &gate, &up, &gate_up, &down})
      f(*w);
  }
};

/// The tensors of a model, in whatever form a backend keeps them. What the family does not have is
/// empty.
template <class Linear, class Vector, class Table>
struct model_weights {
  Table embedding;                 ///< [vocabulary, embedding width]
  Table positions;                 ///< [context + offset, hidden]
  Linear project_in, project_out;  ///< between embedding width and hidden
  std::vector<layer_weights<Linear, Vector>> layers;
  norm_weights<Vector> norm;
  Linear head;  ///< [vocabulary, embedding width]; the embedding if the two are tied
};

/// The tensors in host memory.
using host_weights = model_weights<linear_weight, std::vector<float>, dense_matrix>;

/// Opens a model's tensors and hands them out checked.
class weight_source {
 public:
  /// @param path a folder, or a GGUF file
  explicit weight_source(const std::filesystem::path& path)
      : weight_source(open_weight_file(path), path.string()) {}
  /// @param path what errors begin with
  weight_source(std::unique_ptr<weight_file> file, std::string path)
      : path_(std::move(path)), file_(std::move(file)) {}

  /// Precisions that quantized linears can be run at, rising; empty in a file without any.
  std::vector<int> precisions() const { return file_->precisions(); }

  /// "model.norm.weight" and the like, widened to fp32.
  std::vector<float> vector(const std::string& name, int size) const {
    const bitladder::tensor_info& t = checked(name, {size});
    std::vector<float> out(static_cast<std::size_t>(size));
    file_->read_as_float(t, out.data());
    return out;
  }

  /// [rows, cols] as it is stored, but for a GGUF file's blocks, which become fp32.
  dense_matrix matrix(const std::string& name, int rows, int cols) {
    const bitladder::tensor_info& t = checked(name, {rows, cols});
    std::vector<std::byte> copy;
    dense_matrix m{t.type, nullptr, rows, cols};
    m.data = file_->bytes(t, copy);
    if (!copy.empty()) copies_.push_back(std::move(copy));  // moved, its elements stay in place
    return m;
  }

  /// The linear whose tensors are `name`.weight (or .qweight and .lut*) and `name`.bias.
  linear_weight linear(const std::string& name, int rows, int cols, bool bias) {
    linear_weight w;
    w.rows = rows;
    w.cols = cols;
    if (file_->is_quantized(name)) {
      w.planes = file_->planes(name);
      if (w.planes.rows() != rows || w.planes.cols() != cols)
        fail(name + ".qweight", shape_text({rows, cols}) + " codes",
             shape_text({w.planes.rows(), w.planes.cols()}));
      for (int bits : file_->precisions())
        w.table[static_cast<std::size_t>(bits)] = file_->codebook(name, bits);
      w.outliers = file_->outliers(name);
    } else {
      w.dense = matrix(name + ".weight", rows, cols);
    }
    if (bias)
      w.bias = vector(name + ".bias", rows);
    else if (file_->find(name + ".bias") != nullptr)
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

  const bitladder::tensor_info& checked(const std::string& name,
                                        const std::vector<std::int64_t>& shape) const {
    const bitladder::tensor_info& t = file_->at(name);
    if (t.type != bitladder::dtype::f32 && t.type != bitladder::dtype::f16 &&
        t.type != bitladder::dtype::bf16)
      fail(name, "F32, F16 or BF16", bitladder::to_string(t.type));
    if (t.shape != shape) fail(name, "shape " + shape_text(shape), shape_text(t.shape));
    return t;
  }

  std::string path_;
  std::unique_ptr<weight_file> file_;
  std::vector<std::vector<std::byte>> copies_;
};

/// Every tensor that `c` calls for. The views live as long as `source`.
/// @throws bitladder::error naming folder and tensor, what was expected and what was found
inline host_weights load_weights(weight_source& source, const config& c) {
  const family& f = *c.family;
  const layer_names& names = f.layer;
  const int width = c.embedding_width();
  const auto norm_of = [&](const std::string& name) {
    norm_weights<std::vector<float>> n;
    n.weight = source.vector(name + ".weight", c.hidden);
    if (f.norms == norm_kind::layer) n.bias = source.vector(name + ".bias", c.hidden);
    return n;
  };
  const auto matrix_of = [&](std::string_view name, int rows, int cols) {
    return source.matrix(std::string(name) + ".weight", rows, cols);
  };

  host_weights w;
  w.embedding = matrix_of(f.embedding, c.vocabulary, width);
  if (!f.rotary()) w.positions = matrix_of(f.positions, c.context + f.position_offset, c.hidden);
  if (width != c.hidden) {
    w.project_in = source.linear(std::string(f.project_in), c.hidden, width, false);
    w.project_out = source.linear(std::string(f.project_out), width, c.hidden, false);
  }
  for (int i = 0; i < c.layers; ++i) {
    const std::string layer = layer_prefix(f, i);
    auto& to = w.layers.emplace_back();
    const auto norm = [&](std::string_view name) {
      return name.empty() ? norm_weights<std::vector<float>>{} : norm_of(layer + std::string(name));
    };
    const auto linear = [&](std::string_view name, int rows, int cols, bool bias) {
      return name.empty() ? linear_weight{}
                          : source.linear(layer + std::string(name), rows, cols, bias);
    };
    to.attention_norm = norm(names.attention_norm);
    to.mlp_norm = norm(names.mlp_norm);
    to.query = linear(names.query, c.query_width(), c.hidden, c.qkv_bias);
    to.key = linear(names.key, c.kv_width(), c.hidden, c.qkv_bias);
    to.value = linear(names.value, c.kv_width(), c.hidden, c.qkv_bias);
    to.query_key_value =
        linear(names.query_key_value, c.query_width() + 2 * c.kv_width(), c.hidden, c.qkv_bias);
    to.output = linear(names.output, c.hidden, c.query_width(), c.output_bias);
    to.gate = linear(names.gate, c.intermediate, c.hidden, c.mlp_bias);
    to.up = linear(names.up, c.intermediate, c.hidden, c.mlp_bias);
    to.gate_up = linear(names.gate_up, 2 * c.intermediate, c.hidden, c.mlp_bias);
    to.down = linear(names.down, c.hidden, c.intermediate, c.mlp_bias);
  }
  if (c.residual != residual_form::post_norm) w.norm = norm_of(std::string(f.norm));
  if (c.tied_embeddings) {
    w.head.rows = c.vocabulary;
    w.head.cols = width;
    w.head.dense = w.embedding;
    if (f.head_bias) w.head.bias = source.vector(std::string(f.head) + ".bias", c.vocabulary);
  } else {
    w.head = source.linear(std::string(f.head), c.vocabulary, width, f.head_bias);
  }
  return w;
}

}  // namespace llama
