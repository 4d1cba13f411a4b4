// SPDX-License-Identifier: MIT
// A model folder or GGUF file, opened: its numbers, its tensors in host memory and the precisions
// it can run at. Tested by tests/llama/model_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#include <llama/config.hpp>
#include <llama/weights.hpp>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace llama {

/// Precision of weights as they were before any quantization; 16 is understood as the same.
inline constexpr int unquantized = 0;

/// Read-only once loaded; backends and sessions refer to it, so it must outlive them.
class model {
 public:
  /// @throws bitladder::error naming file and key or tensor, what was expected and what was found
  explicit model(std::filesystem::path folder);

  /// Where it was opened: a folder, or a GGUF file.
  const std::filesystem::path& folder() const { return folder_; }
  const llama::config& config() const { return config_; }
  const host_weights& weights() const { return weights_; }
  /// True if linears are bitplanes; then `unquantized` is not among the precisions.
  bool quantized() const { return quantized_; }
  /// Bits that the file holds tables for, rising; {unquantized} for a dense model.
  std::vector<int> precisions() const {
    return quantized_ ? precisions_ : std::vector<int>{unquantized};
  }

  /// The precision that `bits` means here.
  /// @throws bitladder::error naming the folder and the precisions present
  int checked_precision(int bits) const {
    const int b = bits == 16 ? unquantized : bits;
    std::string present;
    for (int p : precisions()) {
      if (p == b) return b;
      present += (present.empty() ? "" : ", ") + name_of(p);
    }
    throw bitladder::error(
        bitladder::status::not_found,
        folder_.string() + ": precision " + name_of(b) + " asked for, present: " + present);
  }

  /// Bytes of weights that one decode step reads: every linear's top planes and the one table of
  /// that precision, what is dense in full, and one row of the embedding.
  std::size_t bytes_per_token(int bits) const {
    const int b = checked_precision(bits);
    const auto norm_bytes = [](const norm_weights<std::vector<float>>& n) {
      return (n.weight.size() + n.bias.size()) * sizeof(float);
    };
    std::size_t bytes =
        weights_.embedding.row_bytes() + weights_.positions.row_bytes() + norm_bytes(weights_.norm);
    for_each_linear([&](const linear_weight& w) { bytes += w.bytes(b); });
    for (const auto& layer : weights_.layers)
      bytes += norm_bytes(layer.attention_norm) + norm_bytes(layer.mlp_norm);
    return bytes;
  }

 private:
  static std::string name_of(int bits) {
    return bits == unquantized ? "unquantized" : std::to_string(bits) + " bits";
  }
  template <class F>
  void for_each_linear(F&& f) const {
    for (const auto& layer : weights_.layers) layer.for_each_linear(f);
    for (const linear_weight* w : {&weights_.project_in, &weights_.project_out, &weights_.head})
      f(*w);
  }

  std::filesystem::path folder_;
  llama::config config_;
  std::unique_ptr<weight_source> source_;
  host_weights weights_;
  std::vector<int> precisions_;
  bool quantized_ = false;
};

/// Opens a Hugging Face folder, a GGUF file or a bitladder checkpoint.
inline model load(const std::filesystem::path& path) { return model(path); }

}  // namespace llama
