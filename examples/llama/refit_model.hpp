// SPDX-License-Identifier: MIT
// A checkpoint with better tables, and better codes unless the planes are to stay, out of one that
// is there, the model that it was made from, and texts: what the refit command does. Linear by
// linear and resumable. What is long to compile is in refit_model.cpp. Tested by
// tests/llama/refit_model_test.cpp.
#pragma once

#include <bitladder/core/parallel.hpp>
#include <bitladder/quantize/refit_ladder.hpp>

#include <llama/calibration.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace llama {

struct refit_model_options {
  std::vector<std::filesystem::path> texts;  ///< see read_calibration
  calibration_options calibration;
  bitladder::refit_options refit;
  int row_groups = 4;  ///< of rows with second moments of their own
  /// Most bytes of second moments at a time. With fewer than a model needs, samples are run several
  /// times. One linear's are always held.
  std::uint64_t moment_bytes = std::uint64_t{2} << 30;
  bool overwrite = false;
};

/// How it went. Errors are those of the linears that this run did.
struct refit_model_result {
  std::size_t linears = 0;  ///< of the checkpoint
  std::size_t refit = 0;    ///< by this run; the others were done by an earlier one
  std::int64_t weights = 0, moved = 0;
  /// Mean over linears of the error of outputs after, divided by that before. By bits, 0 if not
  /// refit.
  double error_ratio[9] = {};
};

/// Told after each sample and linear. `what` is "moments" or "refit"; `resumed` of `done` were done
/// by an earlier run.
using refit_progress = std::function<void(const std::string& what, std::int64_t done,
                                          std::int64_t resumed, std::int64_t all)>;

/// Refits the checkpoint folder `source` to the folder `out`.
/// @param original the model that it was made from: a folder or a GGUF file
/// @throws bitladder::error naming file, tensor or option, what was expected and what was found
refit_model_result refit_model(const std::filesystem::path& source,
                               const std::filesystem::path& original,
                               const std::filesystem::path& out, const refit_model_options& options,
                               bitladder::thread_pool* pool, const refit_progress& progress = {});

}  // namespace llama
