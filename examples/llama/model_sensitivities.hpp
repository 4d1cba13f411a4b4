// SPDX-License-Identifier: MIT
// The sensitivities of a model's linears to texts, from paths to a file: what the sensitivity
// command does, and the quantize command when it is given texts. What is long to compile is in
// model_sensitivities.cpp.
// Tested by tests/llama/model_sensitivities_test.cpp.
#pragma once

#include <bitladder/core/parallel.hpp>

#include <llama/calibration.hpp>
#include <llama/module_list.hpp>
#include <llama/sensitivity_file.hpp>
#include <llama/sensitivity_run.hpp>

#include <cstddef>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace llama {

struct model_sensitivities_options {
  std::vector<std::filesystem::path> texts;  ///< see read_calibration
  calibration_options calibration;
  module_list modules;  ///< which linears of every layer; all unless told
  sensitivity_run_options run;
  /// Told of every weight before any work; what it throws ends the call.
  std::function<void(const sensitivity_shape&)> check;
};

/// What was made, for a summary.
struct model_sensitivities_result : sensitivity_result {
  std::size_t linears = 0;
  std::string drawn;  ///< how samples came out of the texts
};

/// Sums over samples of texts the squared gradient of each sample's mean loss for the weights of
/// the linears of `source`, a folder or a GGUF file, and writes them to `out`. If `out` is there
/// and was made from the same, nothing is computed; if a run was interrupted, it goes on.
/// @throws bitladder::error naming file, tensor or option, what was expected and what was found
model_sensitivities_result model_sensitivities(const std::filesystem::path& source,
                                               const std::filesystem::path& out,
                                               const model_sensitivities_options& options,
                                               bitladder::thread_pool* pool);

}  // namespace llama
