// SPDX-License-Identifier: MIT
// The --device option: which processor a command works on.
#pragma once

#include <bitladder/core/status.hpp>

#include <llama/model_sensitivities.hpp>
#ifdef BL_HAS_CARD
#include <llama/card_sensitivities.hpp>
#endif

#include <CLI/CLI.hpp>

#include <string>

namespace cli {

inline void add_device(CLI::App& c, std::string& device) {
  c.add_option("--device", device, "cpu, or cuda: the first card")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
}

/// @throws bitladder::error if the device is not there, or not in this program
inline llama::measure_at_once measure_on(const std::string& device) {
  if (device == "cpu") return {};
#ifdef BL_HAS_CARD
  return llama::on_card();
#else
  throw bitladder::error(bitladder::status::unsupported_device,
                         "--device cuda: this program was built without CUDA; expected cpu");
#endif
}

}  // namespace cli
