// SPDX-License-Identifier: MIT
// What every kind of file answers about a model's tensors: safetensors, GGUF, a bitladder
// checkpoint. A further kind is one more class here and one more line in `open_weight_file`
// (model.cpp). Tested by tests/llama/weights_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <llama/float_tensors.hpp>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace llama {

/// The tensors of a model under their Hugging Face names. What is handed out lives as long as this.
class weight_file {
 public:
  weight_file() = default;
  weight_file(const weight_file&) = delete;
  weight_file& operator=(const weight_file&) = delete;
  virtual ~weight_file() = default;

  /// What errors call it.
  virtual const std::string& path() const = 0;
  /// A tensor that is not planes or tables; null if there is none of that name.
  virtual const bitladder::tensor_info* find(const std::string& name) const = 0;
  /// @throws bitladder::error naming the file and what is there
  virtual const bitladder::tensor_info& at(const std::string& name) const = 0;
  /// The elements, aligned for their type: in place, or else in `copy`, which is then not empty.
  /// @param t what `find` or `at` gave
  virtual const std::byte* bytes(const bitladder::tensor_info& t,
                                 std::vector<std::byte>& copy) const = 0;
  /// @param out as many floats as `t` has elements
  virtual void read_as_float(const bitladder::tensor_info& t, float* out) const = 0;

  /// Precisions that quantized linears can be run at, rising; empty in a file without any.
  virtual std::vector<int> precisions() const = 0;
  /// @param linear "model.layers.0.mlp.up_proj"
  virtual bool is_quantized(const std::string& linear) const = 0;
  /// All planes of a quantized linear.
  virtual bitladder::bitplane_view planes(const std::string& linear) const = 0;
  /// The tables of a quantized linear at one of `precisions()`.
  virtual bitladder::codebook_view codebook(const std::string& linear, int bits) const = 0;
  /// The outliers of a quantized linear, checked; empty if it has none.
  virtual bitladder::sparse_view outliers(const std::string& linear) const = 0;
};

/// Safetensors or GGUF: floats only.
class float_weight_file final : public weight_file {
 public:
  explicit float_weight_file(float_tensors tensors) : tensors_(std::move(tensors)) {}

  const std::string& path() const override { return tensors_.path(); }
  const bitladder::tensor_info* find(const std::string& name) const override {
    return tensors_.find(name);
  }
  const bitladder::tensor_info& at(const std::string& name) const override {
    return tensors_.at(name);
  }
  const std::byte* bytes(const bitladder::tensor_info& t,
                         std::vector<std::byte>& copy) const override {
    return tensors_.bytes(t, copy);
  }
  void read_as_float(const bitladder::tensor_info& t, float* out) const override {
    tensors_.read_as_float(t, out);
  }
  std::vector<int> precisions() const override { return {}; }
  bool is_quantized(const std::string&) const override { return false; }
  bitladder::bitplane_view planes(const std::string&) const override { return {}; }
  bitladder::codebook_view codebook(const std::string&, int) const override { return {}; }
  bitladder::sparse_view outliers(const std::string&) const override { return {}; }

 private:
  float_tensors tensors_;
};

/// A bitladder checkpoint: all in place.
class checkpoint_weight_file final : public weight_file {
 public:
  explicit checkpoint_weight_file(bitladder::checkpoint c) : checkpoint_(std::move(c)) {}

  const std::string& path() const override { return checkpoint_.path(); }
  const bitladder::tensor_info* find(const std::string& name) const override {
    return checkpoint_.tensors().find(name);
  }
  const bitladder::tensor_info& at(const std::string& name) const override {
    return checkpoint_.tensors().at(name);
  }
  const std::byte* bytes(const bitladder::tensor_info& t,
                         std::vector<std::byte>& copy) const override {
    return tensor_bytes(checkpoint_.tensors(), t, copy);
  }
  void read_as_float(const bitladder::tensor_info& t, float* out) const override {
    checkpoint_.tensors().read_as_float(t, out);
  }
  std::vector<int> precisions() const override { return checkpoint_.precisions(); }
  bool is_quantized(const std::string& linear) const override {
    return checkpoint_.is_quantized(linear);
  }
  bitladder::bitplane_view planes(const std::string& linear) const override {
    return checkpoint_.planes(linear);
  }
  bitladder::codebook_view codebook(const std::string& linear, int bits) const override {
    return checkpoint_.codebook(linear, bits);
  }
  bitladder::sparse_view outliers(const std::string& linear) const override {
    return checkpoint_.outliers(linear);
  }

 private:
  bitladder::checkpoint checkpoint_;
};

/// Opens a folder or a GGUF file as what it is.
/// @throws bitladder::error naming the file
std::unique_ptr<weight_file> open_weight_file(const std::filesystem::path& path);

}  // namespace llama
