// SPDX-License-Identifier: MIT
// One of our checkpoints in the published Any-Precision layout: the same codes and tables, byte for
// byte what that project's own tool would write for them. Tested by tests/llama/foreign_test.cpp.
#pragma once

#include <bitladder/io/anyprec_writer.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace llama {

struct export_options {
  bitladder::anyprec_container container = bitladder::anyprec_container::torch;
  int min_bits = 0;  ///< tables of fewer bits are left out; 0: all are kept
};

/// What was exported.
struct export_report {
  int min_bits = 0, max_bits = 0;
  std::size_t linears = 0;
  std::int64_t weights = 0;
};

/// Told after each linear.
using export_progress = std::function<void(const std::string& linear, std::int64_t weights_done,
                                           std::int64_t weights_in_all)>;

/// Writes the checkpoint folder `source` to the folder `out`, which may not hold a model. A head
/// that is tied to the embedding gets its name, on the same bytes where the container can. Other
/// tensors keep their types. config.json comes last: without it there is no checkpoint.
/// @throws bitladder::error naming file and linear, what was expected and what was found: the
/// layout has one group a row, columns in multiples of 32, and linears in numbered layers
export_report export_model(const std::filesystem::path& source, const std::filesystem::path& out,
                           const export_options& options, const export_progress& progress = {});

}  // namespace llama
