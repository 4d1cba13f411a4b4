// SPDX-License-Identifier: MIT
#include <llama/config.hpp>
#include <llama/model.hpp>
#include <llama/weights.hpp>

#include <filesystem>
#include <memory>
#include <utility>

namespace llama {

model::model(std::filesystem::path folder)
    : folder_(std::move(folder)),
      config_(load_config(folder_)),
      source_(std::make_unique<weight_source>(folder_)),
      weights_(load_weights(*source_, config_)) {
  if (source_->quantized() != nullptr) precisions_ = source_->quantized()->precisions();
  for_each_linear([&](const linear_weight& w) { quantized_ = quantized_ || w.quantized(); });
  if (!quantized_) precisions_.clear();
}

}  // namespace llama
