// SPDX-License-Identifier: MIT
// The sensitivities of a model's linears to texts, from paths to a file: what the sensitivity
// command does, and the quantize command when it is given texts. What is long to compile is in
// model_sensitivities.cpp.
// Tested by tests/llama/model_sensitivities_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>

#include <llama/calibration.hpp>
#include <llama/model.hpp>
#include <llama/module_list.hpp>
#include <llama/sensitivity_file.hpp>
#include <llama/sensitivity_run.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace llama {

/// A way to measure all samples at once that is not the CPU's: on_card() of card_sensitivities.hpp.
/// Tells the mean loss of each sample, and after it the sums of each of `names` by its number.
using measure_at_once = std::function<void(
    const model& m, const std::vector<std::string>& names,
    const std::vector<bitladder::vector_view<const int>>& samples,
    const std::function<void(const std::vector<double>&)>& losses,
    const std::function<void(std::size_t, bitladder::matrix_view<const float>)>& sums,
    const std::function<void(std::int64_t done, std::int64_t all)>& progress)>;

struct model_sensitivities_options {
  std::vector<std::filesystem::path> texts;  ///< see read_calibration
  calibration_options calibration;
  module_list modules;  ///< which linears of every layer; all unless told
  sensitivity_run_options run;
  measure_at_once at_once;  ///< null: on the CPU, sample after sample
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
