// SPDX-License-Identifier: MIT
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/gguf.hpp>
#include <bitladder/io/safetensors_set.hpp>

#include <llama/config.hpp>
#include <llama/float_tensors.hpp>
#include <llama/foreign_checkpoint.hpp>
#include <llama/foreign_weights.hpp>
#include <llama/gguf_config.hpp>
#include <llama/model.hpp>
#include <llama/weight_file.hpp>
#include <llama/weights.hpp>

#include <filesystem>
#include <memory>
#include <utility>

namespace llama {

std::unique_ptr<weight_file> open_weight_file(const std::filesystem::path& path) {
  if (is_gguf_path(path)) return std::make_unique<float_weight_file>(float_tensors(path));
  if (is_foreign(path)) return std::make_unique<foreign_weight_file>(open_foreign(path));
  bitladder::safetensors_set tensors(path);
  if (bitladder::checkpoint::is_checkpoint(tensors))
    return std::make_unique<checkpoint_weight_file>(bitladder::checkpoint(std::move(tensors)));
  return std::make_unique<float_weight_file>(float_tensors(std::move(tensors)));
}

model::model(std::filesystem::path folder)
    : folder_(std::move(folder)),
      config_(is_gguf_path(folder_) ? load_config(bitladder::gguf_file(folder_))
                                    : load_config(folder_)),
      source_(std::make_unique<weight_source>(folder_)),
      weights_(load_weights(*source_, config_)) {
  precisions_ = source_->precisions();
  for_each_linear([&](const linear_weight& w) { quantized_ = quantized_ || w.quantized(); });
  if (!quantized_) precisions_.clear();
}

}  // namespace llama
