// SPDX-License-Identifier: MIT
// A quantized checkpoint of another project (foreign_checkpoint.hpp) into one of ours, which every
// command reads: linear by linear, so that memory holds one of them, and resumable. Codes and
// tables keep their meaning; nothing is quantized again. Tested by tests/llama/foreign_test.cpp.
#pragma once

#include <bitladder/core/parallel.hpp>

#include <llama/foreign_checkpoint.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace llama {

struct import_options {
  /// Folder with config.json, tokenizer.json and so on; empty: that of the tensors.
  std::filesystem::path companions;
  bool overwrite = false;  ///< replace a checkpoint that is there, or other unfinished work
};

/// What was imported.
struct import_report {
  std::string format;  ///< "Any-Precision" or "SqueezeLLM"
  int min_bits = 0, max_bits = 0;
  std::size_t linears = 0;
  std::int64_t weights = 0;
  std::int64_t outliers = 0;  ///< weights that stay beside the codes
  foreign_rounding rounding;  ///< the largest of all tables
};

/// Told after each linear. `resumed` counts the weights that an earlier run had done.
using import_progress = std::function<void(const std::string& linear, std::int64_t weights_done,
                                           std::int64_t resumed, std::int64_t weights_in_all)>;

/// Writes `source`, a folder or a file of SqueezeLLM tensors, as the checkpoint folder `out`. A
/// head that is tied to the embedding and stored as its copy is left out, as our checkpoints have
/// it. If an earlier run with the same source was interrupted, goes on where it stopped.
/// @throws bitladder::error naming file and tensor, what was expected and what was found, before
/// anything is written if the config or a shape is wrong; `out` is then as it was before
import_report import_model(const std::filesystem::path& source, const std::filesystem::path& out,
                           const import_options& options, bitladder::thread_pool* pool,
                           const import_progress& progress = {});

}  // namespace llama
