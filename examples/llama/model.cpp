// SPDX-License-Identifier: MIT
#include <bitladder/io/gguf.hpp>

#include <llama/config.hpp>
#include <llama/float_tensors.hpp>
#include <llama/gguf_config.hpp>
#include <llama/model.hpp>
#include <llama/weights.hpp>

#include <filesystem>
#include <memory>
#include <utility>

namespace llama {

model::model(std::filesystem::path folder)
    : folder_(std::move(folder)),
      config_(is_gguf_path(folder_) ? load_config(bitladder::gguf_file(folder_))
                                    : load_config(folder_)),
      source_(std::make_unique<weight_source>(folder_)),
      weights_(load_weights(*source_, config_)) {
  if (source_->quantized() != nullptr) precisions_ = source_->quantized()->precisions();
  for_each_linear([&](const linear_weight& w) { quantized_ = quantized_ || w.quantized(); });
  if (!quantized_) precisions_.clear();
}

}  // namespace llama
