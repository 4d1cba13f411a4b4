// SPDX-License-Identifier: MIT
// Model folders for tests: golden ones of the data folder, copies with something changed, and
// quantized ones with random codes and tables.
#pragma once

#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/pack.hpp>
#include <bitladder/io/checkpoint_writer.hpp>
#include <bitladder/io/safetensors_plan.hpp>
#include <bitladder/io/safetensors_set.hpp>
#include <bitladder/io/safetensors_writer.hpp>

#include <support/random.hpp>

#include <nlohmann/json.hpp>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace support {

/// A folder that goes when the test ends.
class temporary_folder {
 public:
  temporary_folder() {
    static int count = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("bitladder_test_" + std::to_string(::getpid()) + "_" + std::to_string(count++));
    std::filesystem::create_directories(path_);
  }
  temporary_folder(const temporary_folder&) = delete;
  temporary_folder& operator=(const temporary_folder&) = delete;
  ~temporary_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// The folders that make_llama_golden.py writes.
inline const std::vector<std::string> golden_models = {"mha_untied_f16", "gqa_tied_f32",
                                                       "llama3_rope_f16", "linear_bias_bf16"};

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

  static stored_model read(const std::filesystem::path& folder) {
    stored_model m;
    m.config = support::read_json(folder / "config.json");
    const bitladder::safetensors_set set(folder);
    for (const bitladder::tensor_info& t : set.tensors()) {
      const auto bytes = set.bytes(t);
      m.tensors[t.name] = {t.type, t.shape, {bytes.begin(), bytes.end()}};
    }
    return m;
  }

  void write(const std::filesystem::path& folder) const {
    std::ofstream(folder / "config.json") << config.dump(2);
    bitladder::safetensors_plan plan;
    for (const auto& [name, t] : tensors) plan.add(name, t.type, t.shape);
    auto file = bitladder::safetensors_writer::create(folder / "model.safetensors", plan);
    for (const auto& [name, t] : tensors) file.write(name, t.bytes.data(), t.bytes.size());
    file.commit();
  }
};

/// "model.layers.0.mlp.up_proj" for its ".weight"; empty for tensors that stay dense.
inline std::string linear_name(const std::string& tensor) {
  const std::size_t at = tensor.rfind("_proj.weight");
  return at == std::string::npos ? "" : tensor.substr(0, at + 5);
}

/// Random codes and ascending tables in place of every projection of `m`, written to `folder`;
/// returns the dense fp32 models that they stand for at each precision from min_bits on.
inline std::map<int, stored_model> write_quantized(const stored_model& m,
                                                   const std::filesystem::path& folder,
                                                   int min_bits, int max_bits, int groups,
                                                   std::uint64_t seed) {
  support::random random(seed);
  std::map<int, stored_model> dense;
  for (int b = min_bits; b <= max_bits; ++b) dense[b] = m;
  bitladder::checkpoint_plan plan;
  plan.seed_bits = plan.min_bits = min_bits;
  plan.max_bits = max_bits;
  plan.groups = groups;
  for (const auto& [name, t] : m.tensors) {
    if (linear_name(name).empty())
      plan.tensors.push_back({name, t.type, t.shape});
    else
      plan.linears.push_back(
          {linear_name(name), static_cast<int>(t.shape[0]), static_cast<int>(t.shape[1])});
  }
  bitladder::checkpoint_writer writer(folder, plan, "test");
  for (const auto& t : plan.tensors) {
    const stored_tensor& from = m.tensors.at(t.name);
    writer.write_tensor(t.name, from.bytes.data(), from.bytes.size());
  }
  for (const auto& l : plan.linears) {
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(l.rows * l.cols));
    for (std::uint8_t& c : codes) c = static_cast<std::uint8_t>(random.below(1 << max_bits));
    bitladder::codebook_ladder tables(l.rows, groups, min_bits, max_bits);
    for (int b = min_bits; b <= max_bits; ++b) {
      const std::size_t entries = std::size_t{1} << b;
      std::vector<float> table(entries), weights(codes.size());
      for (std::size_t i = 0; i < static_cast<std::size_t>(l.rows * groups); ++i) {
        for (float& v : table) v = static_cast<float>(0.2 * random.normal());
        std::sort(table.begin(), table.end());
        for (std::size_t e = 0; e < entries; ++e)
          tables.data(b)[i * entries + e] = bitladder::to_fp16(table[e]);
      }
      for (int r = 0; r < l.rows; ++r)
        for (int c = 0; c < l.cols; ++c) {
          const std::size_t i = static_cast<std::size_t>(r * l.cols + c);
          weights[i] = bitladder::to_float(
              tables[b].table(r, c / (l.cols / groups))[codes[i] >> (max_bits - b)]);
        }
      dense[b].tensors[l.name + ".weight"] = stored_tensor::floats({l.rows, l.cols}, weights);
    }
    writer.write_linear(l.name, bitladder::pack({codes.data(), l.rows, l.cols}, max_bits).view(),
                        tables);
  }
  writer.finish(m.config.dump());
  return dense;
}

}  // namespace support
