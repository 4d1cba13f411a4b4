// SPDX-License-Identifier: MIT
// A model folder of given shapes with random weights, for programs that measure speed: values do
// not matter, only that they stay finite and that every weight has its own memory.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/io/checkpoint_writer.hpp>
#include <bitladder/io/safetensors_plan.hpp>
#include <bitladder/io/safetensors_writer.hpp>

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace bench {

/// Shapes of a Llama whose head is its embedding.
struct model_shape {
  int layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, context;
};

constexpr model_shape smollm2_135m{30, 576, 1536, 9, 3, 64, 49152, 8192};
/// But for its head, which is a matrix of its own there.
constexpr model_shape llama2_7b{32, 4096, 11008, 32, 32, 128, 32000, 4096};

/// What the linears are stored as.
enum class model_form {
  planes,  ///< 2 to 8 bits in bitplanes, embedding in fp16
  f32,
  bf16
};

/// Written at construction, gone with the object. In the system's folder for temporary files: set
/// TMPDIR to a folder in memory if that one is slow.
class random_model {
 public:
  random_model(const model_shape& s, model_form form)
      : path_(std::filesystem::temp_directory_path() /
              ("bitladder-bench-" + std::to_string(::getpid()) + '-' +
               std::to_string(static_cast<int>(form)))),
        // Of uniform numbers up to this, as many products with numbers of size 1 add up to about 1.
        largest_(1.7f / std::sqrt(static_cast<float>(s.hidden))) {
    try {
      switch (form) {
        case model_form::planes: write_planes(s); break;
        case model_form::f32: write_dense<float>(s, bitladder::dtype::f32); break;
        case model_form::bf16: write_dense<bitladder::bf16_t>(s, bitladder::dtype::bf16); break;
      }
    } catch (...) {
      remove();
      throw;
    }
  }
  random_model(const random_model&) = delete;
  random_model& operator=(const random_model&) = delete;
  ~random_model() { remove(); }

  const std::filesystem::path& path() const { return path_; }

 private:
  static constexpr int min_bits = 2, max_bits = 8;
  static constexpr std::size_t most_drawn = std::size_t{1} << 22;

  static std::string config(const model_shape& s) {
    return R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",)"
           R"( "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "hidden_size": )" +
           std::to_string(s.hidden) + R"(, "intermediate_size": )" +
           std::to_string(s.intermediate) + R"(, "num_hidden_layers": )" +
           std::to_string(s.layers) + R"(, "num_attention_heads": )" + std::to_string(s.heads) +
           R"(, "num_key_value_heads": )" + std::to_string(s.kv_heads) + R"(, "head_dim": )" +
           std::to_string(s.head_dim) + R"(, "vocab_size": )" + std::to_string(s.vocabulary) +
           R"(, "max_position_embeddings": )" + std::to_string(s.context) + "}";
  }

  static std::vector<bitladder::checkpoint_plan::linear> linears(const model_shape& s) {
    std::vector<bitladder::checkpoint_plan::linear> all;
    for (int i = 0; i < s.layers; ++i) {
      const std::string layer = "model.layers." + std::to_string(i) + ".";
      all.push_back({layer + "self_attn.q_proj", s.heads * s.head_dim, s.hidden});
      all.push_back({layer + "self_attn.k_proj", s.kv_heads * s.head_dim, s.hidden});
      all.push_back({layer + "self_attn.v_proj", s.kv_heads * s.head_dim, s.hidden});
      all.push_back({layer + "self_attn.o_proj", s.hidden, s.heads * s.head_dim});
      all.push_back({layer + "mlp.gate_proj", s.intermediate, s.hidden});
      all.push_back({layer + "mlp.up_proj", s.intermediate, s.hidden});
      all.push_back({layer + "mlp.down_proj", s.hidden, s.intermediate});
    }
    return all;
  }

  static std::vector<std::string> norms(const model_shape& s) {
    std::vector<std::string> all{"model.norm.weight"};
    for (int i = 0; i < s.layers; ++i)
      for (const char* name : {"input_layernorm", "post_attention_layernorm"})
        all.push_back("model.layers." + std::to_string(i) + "." + name + ".weight");
    return all;
  }

  /// most_drawn numbers are drawn; more are these again and again, as drawing takes longer than
  /// writing.
  template <class T>
  std::vector<T> random_values(std::size_t count) {
    constexpr std::size_t most = most_drawn;
    std::vector<T> values(count);
    for (std::size_t i = 0; i < std::min(count, most); ++i) {
      const float f =
          (static_cast<float>(static_cast<std::uint32_t>(rng_())) * 0x1p-31f - 1.f) * largest_;
      if constexpr (std::is_same_v<T, float>)
        values[i] = f;
      else if constexpr (std::is_same_v<T, bitladder::bf16_t>)
        values[i] = bitladder::to_bf16(f);
      else
        values[i] = bitladder::to_fp16(f);
    }
    for (std::size_t i = most; i < count; i += most)
      std::copy_n(values.begin(), std::min(most, count - i),
                  values.begin() + static_cast<std::ptrdiff_t>(i));
    return values;
  }

  void write_planes(const model_shape& s) {
    bitladder::checkpoint_plan plan;
    plan.min_bits = min_bits;
    plan.max_bits = max_bits;
    plan.linears = linears(s);
    for (const std::string& name : norms(s))
      plan.tensors.push_back({name, bitladder::dtype::f32, {s.hidden}});
    plan.tensors.push_back(
        {"model.embed_tokens.weight", bitladder::dtype::f16, {s.vocabulary, s.hidden}});
    bitladder::checkpoint_writer writer(path_, plan, "random");
    for (const auto& l : plan.linears) {
      bitladder::bitplane_tensor planes(bitladder::bitplane_layout{l.rows, l.cols, max_bits});
      const std::size_t words = planes.layout().total_words();
      for (std::size_t i = 0; i < std::min(words, most_drawn); ++i)
        planes.data()[i] = static_cast<std::uint32_t>(rng_());
      for (std::size_t i = most_drawn; i < words; i += most_drawn)
        std::copy_n(planes.data(), std::min(most_drawn, words - i), planes.data() + i);
      if (l.cols % 32 != 0)  // bits past the last column are zero
        for (int p = 0; p < max_bits; ++p)
          for (int r = 0; r < l.rows; ++r)
            planes.data()[planes.layout().word(p, r, l.cols / 32)] &= (1u << l.cols % 32) - 1;
      bitladder::codebook_ladder tables(l.rows, 1, min_bits, max_bits);
      for (int b = min_bits; b <= max_bits; ++b)
        for (std::size_t i = 0; i < tables[b].size(); ++i) {
          const int entries = 1 << b, at = static_cast<int>(i) & (entries - 1);
          tables.data(b)[i] = bitladder::to_fp16(
              largest_ * static_cast<float>(2 * at + 1 - entries) / static_cast<float>(entries));
        }
      writer.write_linear(l.name, planes.view(), tables);
    }
    const std::vector<float> ones(static_cast<std::size_t>(s.hidden), 1.f);
    for (const std::string& name : norms(s))
      writer.write_tensor(name, ones.data(), ones.size() * sizeof(float));
    const auto embedding = random_values<bitladder::fp16_t>(static_cast<std::size_t>(s.vocabulary) *
                                                            static_cast<std::size_t>(s.hidden));
    writer.write_tensor("model.embed_tokens.weight", embedding.data(),
                        embedding.size() * sizeof(bitladder::fp16_t));
    writer.finish(config(s));
  }

  template <class T>
  void write_dense(const model_shape& s, bitladder::dtype type) {
    std::filesystem::create_directories(path_);
    std::ofstream(path_ / "config.json") << config(s);
    auto matrices = linears(s);
    for (auto& l : matrices) l.name += ".weight";
    matrices.push_back({"model.embed_tokens.weight", s.vocabulary, s.hidden});
    bitladder::safetensors_plan plan;
    for (const std::string& name : norms(s)) plan.add(name, bitladder::dtype::f32, {s.hidden});
    for (const auto& m : matrices) plan.add(m.name, type, {m.rows, m.cols});
    auto file = bitladder::safetensors_writer::create(path_ / "model.safetensors", plan);
    const std::vector<float> ones(static_cast<std::size_t>(s.hidden), 1.f);
    for (const std::string& name : norms(s))
      file.write(name, ones.data(), ones.size() * sizeof(float));
    for (const auto& m : matrices) {
      const auto values =
          random_values<T>(static_cast<std::size_t>(m.rows) * static_cast<std::size_t>(m.cols));
      file.write(m.name, values.data(), values.size() * sizeof(T));
    }
    file.commit();
  }

  void remove() noexcept {
    std::error_code ignored;
    for (const char* suffix : {"", ".partial", ".partial.journal"})
      std::filesystem::remove_all(std::filesystem::path(path_) += suffix, ignored);
  }

  std::filesystem::path path_;
  float largest_;
  std::mt19937_64 rng_{1};
};

}  // namespace bench
