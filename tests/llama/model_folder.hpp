// SPDX-License-Identifier: MIT
// Model folders for tests: golden ones of the data folder, copies with something changed, and
// quantized ones with random codes and tables.
#pragma once

#include <bitladder/core/dtype.hpp>

#include <llama/families.hpp>
#include <support/files.hpp>
#include <support/random.hpp>

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace support {

/// The folders that make_llama_golden.py writes: Llamas ...
inline const std::vector<std::string> golden_models = {"mha_untied_f16", "gqa_tied_f32",
                                                       "llama3_rope_f16", "linear_bias_bf16"};
/// ... and others.
inline const std::vector<std::string> family_models = {
    "mistral_f16",       "qwen2_bf16", "qwen2_window_f32", "opt_f16",
    "opt_post_norm_f32", "phi_bf16",   "phi_gqa_f32",      "phi3_f16"};

inline std::filesystem::path golden_folder(const std::string& name) {
  return std::filesystem::path(BL_SOURCE_DIR) / "tests" / "llama" / "data" / name;
}

inline nlohmann::json read_json(const std::filesystem::path& path) {
  return nlohmann::json::parse(std::ifstream(path));
}

struct stored_tensor {
  bitladder::dtype type;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;

  static stored_tensor floats(std::vector<std::int64_t> shape, const std::vector<float>& values) {
    stored_tensor t{bitladder::dtype::f32, std::move(shape), {}};
    t.bytes.resize(values.size() * sizeof(float));
    std::memcpy(t.bytes.data(), values.data(), t.bytes.size());
    return t;
  }
};

/// A model as data, to be changed and written elsewhere.
struct stored_model {
  nlohmann::json config;
  std::map<std::string, stored_tensor> tensors;

  static stored_model read(const std::filesystem::path& folder);
  void write(const std::filesystem::path& folder) const;
};

/// "model.layers.0.mlp.up_proj" for its ".weight"; empty for tensors that stay dense.
inline std::string linear_name(const std::string& tensor) {
  const std::string suffix = ".weight";
  if (tensor.size() <= suffix.size() ||
      tensor.compare(tensor.size() - suffix.size(), suffix.size(), suffix) != 0)
    return "";
  const std::string name = tensor.substr(0, tensor.size() - suffix.size());
  for (const llama::family& f : llama::known_families)
    for (const std::string& part : llama::linear_names(f))
      for (int layer : {0, 1})
        if (name == llama::layer_prefix(f, layer) + part) return name;
  return "";
}

/// Random codes and ascending tables in place of every linear of the two layers of `m`, written to
/// `folder`; returns the dense fp32 models that they stand for at each precision from min_bits on.
std::map<int, stored_model> write_quantized(const stored_model& m,
                                            const std::filesystem::path& folder, int min_bits,
                                            int max_bits, int groups, std::uint64_t seed);

}  // namespace support
