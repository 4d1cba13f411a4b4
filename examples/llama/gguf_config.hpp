// SPDX-License-Identifier: MIT
// The numbers of a model out of the metadata of a GGUF file: what config.hpp reads from a folder,
// with the same checks. Knows the architectures that families.hpp gives a name in GGUF files:
// "llama" (Llama 2 and 3, SmolLM2, Mistral without a window) and "qwen2", with standard, linear and
// llama3 rope. Tested by tests/llama/gguf_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/gguf.hpp>
#include <bitladder/io/gguf_dequantize.hpp>

#include <llama/config.hpp>
#include <llama/families.hpp>
#include <llama/rope.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

namespace llama {
namespace detail {

/// Reads the keys "llama.*", or those of another architecture, with their checks.
class gguf_config_reader {
 public:
  explicit gguf_config_reader(const bitladder::gguf_file& file)
      : file_(file), metadata_(file.metadata()), family_(family_of(metadata_)) {}

  config read() const {
    if (metadata_.integer_or("split.count", 1) > 1)
      metadata_.fail("split.count", "a model in one file (1)");
    refuse_unless_zero(key("expert_count"), "no experts");
    config c;
    c.family = &family_;
    read_shape(c);
    c.norm_epsilon =
        static_cast<float>(positive_number(key("attention.layer_norm_rms_epsilon"), nullptr));
    c.tied_embeddings = file_.find("output.weight") == nullptr;
    // Where a family may have biases, the file says by having them.
    const bool attention = has_any("blk.0.attn_", {"q.bias", "k.bias", "v.bias", "output.bias"});
    const bool mlp = has_any("blk.0.ffn_", {"gate.bias", "up.bias", "down.bias"});
    const auto has = [](const choice& of, bool is) {
      return of.key == nullptr ? of.otherwise : is;
    };
    c.qkv_bias = has(family_.qkv_bias, attention);
    c.output_bias = has(family_.output_bias, attention);
    c.mlp_bias = has(family_.mlp_bias, mlp);
    read_rope(c);
    read_ids(c);
    return c;
  }

 private:
  static const family& family_of(const bitladder::gguf_metadata& metadata) {
    const std::string architecture(metadata.text("general.architecture"));
    std::string known;
    for (const family& f : known_families) {
      if (f.gguf.empty()) continue;
      if (architecture == f.gguf) return f;
      known += (known.empty() ? "\"" : " or \"") + std::string(f.gguf) + "\"";
    }
    metadata.fail("general.architecture", known);
  }

  std::string key(const char* name) const { return std::string(family_.gguf) + "." + name; }

  void read_shape(config& c) const {
    // The table decides, for it is what ids are looked up in.
    const std::vector<std::int64_t>& table = file_.at("token_embd.weight").shape;
    if (table.size() != 2 || table[0] <= 0 || table[0] > std::numeric_limits<int>::max())
      throw bitladder::error(bitladder::status::bad_file,
                             file_.path() +
                                 ": tensor \"token_embd.weight\": expected shape [vocabulary, "
                                 "hidden], found " +
                                 bitladder::to_string(table));
    c.vocabulary = static_cast<int>(table[0]);
    if (metadata_.integer_or(key("vocab_size"), c.vocabulary) != c.vocabulary)
      metadata_.fail(key("vocab_size"),
                     std::to_string(c.vocabulary) + ", the rows of tensor \"token_embd.weight\"");
    c.hidden = positive(key("embedding_length"));
    c.intermediate = positive(key("feed_forward_length"));
    c.layers = positive(key("block_count"));
    c.heads = positive(key("attention.head_count"));
    c.kv_heads = metadata_.has(key("attention.head_count_kv"))
                     ? positive(key("attention.head_count_kv"))
                     : c.heads;
    if (c.heads % c.kv_heads != 0)
      metadata_.fail(key("attention.head_count_kv"),
                     "a divisor of head_count = " + std::to_string(c.heads));
    const bool has_width = metadata_.has(key("attention.key_length"));
    if (!has_width && c.hidden % c.heads != 0)
      metadata_.fail(key("attention.head_count"),
                     "a divisor of embedding_length = " + std::to_string(c.hidden) +
                         ", or an explicit key_length");
    c.head_dim = has_width ? positive(key("attention.key_length")) : c.hidden / c.heads;
    if (c.head_dim % 2 != 0)
      metadata_.fail(
          has_width ? key("attention.key_length") : key("attention.head_count"),
          "heads of an even width (rope turns pairs), not " + std::to_string(c.head_dim));
    for (const std::string& width : {key("attention.value_length"), key("rope.dimension_count")})
      if (metadata_.integer_or(width, c.head_dim) != c.head_dim)
        metadata_.fail(width, std::to_string(c.head_dim) + ", the width of a head");
    if (static_cast<std::int64_t>(c.heads) * c.head_dim > 1 << 24)
      metadata_.fail(key("attention.head_count"), "heads * width of at most 2^24");
    c.context = positive(key("context_length"));
    const std::int64_t window = metadata_.integer_or(key("attention.sliding_window"), 0);
    if (window != 0 && window < c.context)
      metadata_.fail(key("attention.sliding_window"), "no sliding window");
  }

  void read_rope(config& c) const {
    c.rope.theta = positive_number(key("rope.freq_base"), &c.rope.theta);
    const std::string type(metadata_.text_or(key("rope.scaling.type"), "none"));
    const std::string factor = metadata_.has(key("rope.scaling.factor"))
                                   ? key("rope.scaling.factor")
                                   : key("rope.scale_linear");
    if (type != "none" && type != "linear")
      metadata_.fail(key("rope.scaling.type"), "\"none\" or \"linear\"");
    if (type == "linear" || metadata_.has(key("rope.scale_linear"))) {
      c.rope.factor = positive_number(factor, nullptr);
      if (c.rope.factor != 1) c.rope.type = rope_type::linear;
    }
    if (file_.find("rope_freqs.weight") != nullptr) read_frequency_factors(c);
  }

  // Of llama3 rope a GGUF file keeps only what each frequency is divided by. The parameters behind
  // it are searched, because the frequencies come out of them with other roundings than by
  // dividing. Original context and the two limits matter by their ratios alone, so the limits may
  // be taken to be 1 and 4, the ones in use, and only the context is unknown.
  void read_frequency_factors(config& c) const {
    const bitladder::gguf_tensor& t = file_.at("rope_freqs.weight");
    const auto fail = [&](const std::string& what) {
      throw bitladder::error(bitladder::status::bad_file,
                             file_.path() + ": tensor \"rope_freqs.weight\": " + what);
    };
    if (t.type != bitladder::gguf_type::f32 || t.shape != std::vector<std::int64_t>{c.head_dim / 2})
      fail("expected F32 [" + std::to_string(c.head_dim / 2) + "], found " +
           bitladder::to_string(t.type) + " " + bitladder::to_string(t.shape));
    if (c.rope.type != rope_type::standard) fail("expected none beside linear scaling");
    const std::vector<float> factors = bitladder::dequantize(file_, t);
    const std::vector<float> plain = rope_frequencies(c);
    const auto fits = [&](const config& candidate) {
      const std::vector<float> stretched = rope_frequencies(candidate);
      for (std::size_t i = 0; i < plain.size(); ++i)
        if (!(std::fabs(plain[i] / stretched[i] - factors[i]) <= 1e-4f * factors[i])) return false;
      return true;
    };
    if (fits(c)) return;  // all 1
    config candidate = c;
    candidate.rope.type = rope_type::llama3;
    candidate.rope.factor = static_cast<double>(factors.back());
    candidate.rope.low_freq_factor = 1;
    candidate.rope.high_freq_factor = 4;
    std::vector<int> contexts = {c.context};
    if (metadata_.has(key("rope.scaling.original_context_length")))
      contexts.push_back(positive(key("rope.scaling.original_context_length")));
    for (int n = 16; n <= 1 << 20; n *= 2) contexts.push_back(n);
    for (int n : contexts) {
      candidate.rope.original_context = n;
      if (candidate.rope.factor > 0 && fits(candidate)) {
        c.rope = candidate.rope;
        return;
      }
    }
    fail(
        "expected the factors of llama3 rope with frequency limits 1 and 4 and an original "
        "context that is a power of two, found others");
  }

  void read_ids(config& c) const {
    const auto id = [&](const char* key) {
      const std::int64_t x = metadata_.integer_or(key, -1);
      if (metadata_.has(key) && (x < 0 || x >= c.vocabulary))
        metadata_.fail(key, "a token id of 0 to " + std::to_string(c.vocabulary - 1));
      return static_cast<int>(x);
    };
    const bitladder::gguf_value* tokens = metadata_.find("tokenizer.ggml.tokens");
    if (tokens != nullptr && tokens->size() > static_cast<std::uint64_t>(c.vocabulary))
      metadata_.fail("tokenizer.ggml.tokens",
                     "at most " + std::to_string(c.vocabulary) +
                         " tokens, the rows of tensor \"token_embd.weight\"");
    c.bos = id("tokenizer.ggml.bos_token_id");
    for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
      const int x = id(key);
      if (x >= 0 && (c.eos.empty() || c.eos.back() != x)) c.eos.push_back(x);
    }
  }

  // Some of these keys may be arrays with a number for each layer; the layers read here are equal.
  int positive(const std::string& key) const {
    std::int64_t x = 0;
    const bitladder::gguf_value* v = metadata_.find(key);
    if (v != nullptr && v->is_array()) {
      const std::vector<std::int64_t> all = metadata_.integers(key);
      if (!all.empty()) x = all[0];
      for (std::int64_t other : all)
        if (other != x) metadata_.fail(key, "the same number for all layers");
    } else {
      x = metadata_.integer(key);
    }
    if (x <= 0 || x > std::numeric_limits<int>::max())
      metadata_.fail(key, "a number of 1 to 2147483647");
    return static_cast<int>(x);
  }

  double positive_number(const std::string& key, const double* other) const {
    if (other != nullptr && !metadata_.has(key)) return *other;
    const double x = metadata_.number(key);
    if (!(x > 0) || !std::isfinite(x)) metadata_.fail(key, "a finite number above 0");
    return x;
  }

  void refuse_unless_zero(const std::string& key, const char* expected) const {
    if (metadata_.integer_or(key, 0) != 0) metadata_.fail(key, expected);
  }

  bool has_any(const std::string& prefix, std::initializer_list<const char*> names) const {
    for (const char* name : names)
      if (file_.find(prefix + name) != nullptr) return true;
    return false;
  }

  const bitladder::gguf_file& file_;
  const bitladder::gguf_metadata& metadata_;
  const family& family_;
};

}  // namespace detail

/// The config that the file describes.
/// @throws bitladder::error naming file and key or tensor, what was expected and what was found
inline config load_config(const bitladder::gguf_file& file) {
  return detail::gguf_config_reader(file).read();
}

}  // namespace llama
