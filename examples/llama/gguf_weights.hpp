// SPDX-License-Identifier: MIT
// The tensors of a model in a GGUF file under their Hugging Face names, shapes and order of rows,
// as floats. Everything is checked on opening: no tensor that `config` calls for is missing, none
// is there that would be left out silently. Tested by tests/llama/gguf_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/gguf.hpp>
#include <bitladder/io/gguf_dequantize.hpp>

#include <llama/config.hpp>
#include <llama/gguf_config.hpp>
#include <llama/gguf_names.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llama {

/// A GGUF file of a Llama or Qwen 2, mapped. `name` is always "model.layers.0.mlp.up_proj.weight"
/// and the like.
class gguf_weights {
 public:
  /// @throws bitladder::error naming file and key or tensor, what was expected and what was found
  explicit gguf_weights(const std::filesystem::path& path)
      : file_(path), config_(load_config(file_)) {
    for (const bitladder::gguf_tensor& t : file_.tensors()) {
      if (t.name == "rope_freqs.weight") continue;  // part of the config
      const auto name = hugging_face_name(t.name);
      const auto split = detail::split_layer_name(t.name, "blk.");
      if (!name || (split && split->layer >= config_.layers))
        fail(t, "is not one of a " + std::string(config_.family->gguf) + " model of " +
                    std::to_string(config_.layers) + " layers");
      const std::vector<std::int64_t> shape = shape_of(split ? split->rest : t.name);
      if (t.shape != shape)
        fail(t, "expected shape " + bitladder::to_string(shape) + ", found " +
                    bitladder::to_string(t.shape));
      if (!bitladder::can_dequantize(t.type)) bitladder::dequantize(file_, t);  // throws
    }
    require();
  }

  const bitladder::gguf_file& file() const { return file_; }
  const config& shape() const { return config_; }
  /// In the order of the file.
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const bitladder::gguf_tensor& t : file_.tensors())
      if (auto name = hugging_face_name(t.name)) all.push_back(*std::move(name));
    return all;
  }

  /// Null if there is none of that name.
  const bitladder::gguf_tensor* find(const std::string& name) const {
    const auto stored = gguf_name(name);
    return stored ? file_.find(*stored) : nullptr;
  }
  /// @throws error(not_found) naming the file and both names
  const bitladder::gguf_tensor& at(const std::string& name) const {
    if (const bitladder::gguf_tensor* t = find(name)) return *t;
    throw bitladder::error(bitladder::status::not_found,
                           file_.path() + ": no tensor \"" + name + "\" (\"" +
                               gguf_name(name).value_or("no name in a GGUF file") + "\")");
  }
  /// Whether rows stand in another order than `read_rows` gives; if not, file().bytes(at(name)) may
  /// be used in place.
  bool is_reordered(const std::string& name) const { return is_reordered(at(name)); }

  /// Rows [first, first + count) in Hugging Face's order; a vector is one row.
  /// @param out count * at(name).cols() floats
  void read_rows(const std::string& name, std::uint64_t first, std::uint64_t count,
                 float* out) const {
    const bitladder::gguf_tensor& t = at(name);
    const std::uint64_t rows = t.rows(), cols = t.cols();
    const auto width = static_cast<std::uint64_t>(config_.head_dim);
    if (!is_reordered(t) || first > rows || count > rows - first || count == 0) {
      bitladder::dequantize_rows(file_, t, first, count, out);
    } else if (t.shape.size() == 1) {  // a bias: its elements are what rows are elsewhere
      std::vector<float> stored(static_cast<std::size_t>(cols));
      bitladder::dequantize_rows(file_, t, 0, 1, stored.data());
      for (std::uint64_t i = 0; i < cols; ++i)
        out[i] = stored[static_cast<std::size_t>(gguf_rope_row(i, width))];
    } else {
      for (std::uint64_t r = 0; r < count; ++r)
        bitladder::dequantize_rows(file_, t, gguf_rope_row(first + r, width), 1, out + r * cols);
    }
  }
  /// All of a tensor.
  std::vector<float> read(const std::string& name) const {
    const bitladder::gguf_tensor& t = at(name);
    std::vector<float> values(static_cast<std::size_t>(t.elements()));
    read_rows(name, 0, t.rows(), values.data());
    return values;
  }

 private:
  bool is_reordered(const bitladder::gguf_tensor& t) const {
    return config_.family->gguf_rope_rows && has_rope_rows(t.name);
  }

  [[noreturn]] void fail(const bitladder::gguf_tensor& t, const std::string& what) const {
    throw bitladder::error(
        bitladder::status::bad_file,
        file_.path() + ": tensor " + bitladder::detail::quoted(t.name) + ": " + what);
  }

  /// @param part a GGUF name, without "blk.N." of a layer's
  std::vector<std::int64_t> shape_of(std::string_view part) const {
    const config& c = config_;
    const bool bias = part.substr(part.rfind('.')) == ".bias";
    const auto linear = [&](int rows, int cols) {
      return bias ? std::vector<std::int64_t>{rows} : std::vector<std::int64_t>{rows, cols};
    };
    part = part.substr(0, part.rfind('.'));
    if (part == "token_embd" || part == "output") return linear(c.vocabulary, c.hidden);
    if (part == "attn_q") return linear(c.query_width(), c.hidden);
    if (part == "attn_k" || part == "attn_v") return linear(c.kv_width(), c.hidden);
    if (part == "attn_output") return linear(c.hidden, c.query_width());
    if (part == "ffn_gate" || part == "ffn_up") return linear(c.intermediate, c.hidden);
    if (part == "ffn_down") return linear(c.hidden, c.intermediate);
    return {c.hidden};  // the norms
  }

  void require() const {
    static_cast<void>(file_.at("output_norm.weight"));
    // Each layer has tensors of its own, so a count beyond them ends at the first that is missing.
    for (int i = 0; i < config_.layers; ++i)
      for (const auto& pair : detail::gguf_layer_names) {
        const std::string_view part = pair.gguf;
        if (part.substr(part.rfind('.')) == ".bias" && !has_bias(part)) continue;
        static_cast<void>(file_.at("blk." + std::to_string(i) + "." + std::string(part)));
      }
  }

  bool has_bias(std::string_view part) const {
    if (part.substr(0, 4) != "attn") return config_.mlp_bias;
    return part == "attn_output.bias" ? config_.output_bias : config_.qkv_bias;
  }

  bitladder::gguf_file file_;
  config config_;
};

}  // namespace llama
