// SPDX-License-Identifier: MIT
// The tensors of an unquantized model under their Hugging Face names, from safetensors or from a
// GGUF file. What a file keeps as plain floats in the wanted order is handed out in place; blocks
// of a GGUF file become fp32, a tensor at a time. What is long to compile is in float_tensors.cpp.
// Tested by tests/llama/gguf_model_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/safetensors_set.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <llama/config.hpp>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace llama {

class gguf_weights;

/// A file in place of a model's folder is a GGUF file.
inline bool is_gguf_path(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

/// The tensor's bytes: in place, or copied to `copy` if the file did not align them.
inline const std::byte* tensor_bytes(const bitladder::safetensors_set& set,
                                     const bitladder::tensor_info& t,
                                     std::vector<std::byte>& copy) {
  const auto bytes = set.bytes(t);
  if (set.aligned(t)) return bytes.data();
  copy.assign(bytes.begin(), bytes.end());
  return copy.data();
}

/// All tensors of a model, mapped.
class float_tensors {
 public:
  /// @param path a GGUF file, or what safetensors_set takes
  /// @throws bitladder::error naming file and key or tensor, what was expected and what was found
  explicit float_tensors(const std::filesystem::path& path);
  explicit float_tensors(bitladder::safetensors_set set)
      : path_(set.path()), set_(std::move(set)) {}

  /// Null unless the model is a GGUF file, whose tensors are then all there, in their shapes.
  const gguf_weights* gguf() const { return gguf_.get(); }
  /// The config of a GGUF file.
  const config& gguf_config() const;
  const std::string& path() const { return path_; }
  /// As they are handed out: of a GGUF file's blocks, F32.
  const std::vector<bitladder::tensor_info>& tensors() const {
    return gguf_ ? listed_ : set_->tensors();
  }
  /// Null if there is none of that name.
  const bitladder::tensor_info* find(const std::string& name) const {
    if (!gguf_) return set_->find(name);
    for (const bitladder::tensor_info& t : listed_)
      if (t.name == name) return &t;
    return nullptr;
  }
  /// @throws error(not_found) naming the file and what is there
  const bitladder::tensor_info& at(const std::string& name) const;
  /// Whether the file holds blocks of integers, which are handed out as F32.
  /// @param t one of tensors()
  bool is_unpacked(const bitladder::tensor_info& t) const;
  /// The elements, aligned for their type: in place, or else in `copy`, which is then not empty.
  /// @param t one of tensors()
  const std::byte* bytes(const bitladder::tensor_info& t, std::vector<std::byte>& copy) const;
  /// @param out as many floats as `t` has elements
  void read_as_float(const bitladder::tensor_info& t, float* out) const;
  /// Lets the pages of a tensor that will not be read again go.
  void release(const bitladder::tensor_info& t) const;
  /// Text that changes when a file's contents most likely did: its size and time of last change.
  std::string stamp() const;

 private:
  std::string path_;
  std::optional<bitladder::safetensors_set> set_;
  std::shared_ptr<const gguf_weights> gguf_;    // shared, for the type is incomplete here
  std::vector<bitladder::tensor_info> listed_;  // of gguf_; begin is 0 in all
};

/// The texts of files that belong beside a checkpoint, out of a GGUF file.
struct gguf_companions {
  std::string config, tokenizer, tokenizer_config;

  /// @throws bitladder::error naming file and key if the tokenizer is not understood
  explicit gguf_companions(const gguf_weights& source);
};

}  // namespace llama
