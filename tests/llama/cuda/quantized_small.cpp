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

namespace {

std::filesystem::path quantized(const std::filesystem::path& to, double outliers) {
  bitladder::thread_pool pool;
  llama::quantize_model_options options;
  options.kmeans.min_bits = options.kmeans.seed_bits = 2;
  options.kmeans.max_bits = 8;
  options.kmeans.outliers.large = outliers;
  llama::quantize_model(small_model(), to, options, &pool);
  return to;
}

}  // namespace

const std::filesystem::path& quantized_small() {
  static const temporary_folder folder;
  static const std::filesystem::path path = quantized(folder.path() / "model", 0);
  return path;
}

const std::filesystem::path& quantized_small_with_outliers() {
  static const temporary_folder folder;
  static const std::filesystem::path path = quantized(folder.path() / "model", 0.45);
  return path;
}

}  // namespace support
