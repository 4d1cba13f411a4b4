// SPDX-License-Identifier: MIT
#include "quantized_small.hpp"

#include <bitladder/core/parallel.hpp>

#include <llama/quantize_model.hpp>
#include <support/files.hpp>

#include <filesystem>

namespace support {

std::filesystem::path small_model() {
  return std::filesystem::path(BL_SOURCE_DIR) / "examples" / "models" / "small";
}

const std::filesystem::path& quantized_small() {
  static const temporary_folder folder;
  static const std::filesystem::path path = [] {
    bitladder::thread_pool pool;
    llama::quantize_model_options options;
    options.kmeans.min_bits = options.kmeans.seed_bits = 2;
    options.kmeans.max_bits = 8;
    llama::quantize_model(small_model(), folder.path() / "model", options, &pool);
    return folder.path() / "model";
  }();
  return path;
}

}  // namespace support
