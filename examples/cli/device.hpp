// SPDX-License-Identifier: MIT
// The --device option: which processor a command works on.
#pragma once

#include <bitladder/core/status.hpp>

#include <llama/linear_quantizer.hpp>
#include <llama/model_sensitivities.hpp>
#ifdef BL_HAS_CARD
#include <llama/card_quantizer.hpp>
#include <llama/card_sensitivities.hpp>
#endif

#include <CLI/CLI.hpp>

#include <string>

namespace cli {

inline void add_device(CLI::App& c, std::string& device,
                       const char* text = "cpu, or cuda: the first card") {
  c.add_option("--device", device, text)
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
}

#ifndef BL_HAS_CARD
[[noreturn]] inline void throw_no_card() {
  throw bitladder::error(bitladder::status::unsupported_device,
                         "--device cuda: this program was built without CUDA; expected cpu");
}
#endif

/// @throws bitladder::error if the device is not there, or not in this program
inline llama::measure_at_once measure_on(const std::string& device) {
  if (device == "cpu") return {};
#ifdef BL_HAS_CARD
  return llama::on_card();
#else
  throw_no_card();
#endif
}

/// @param threads of the host; 0 takes all
/// @throws bitladder::error if the device is not there, or not in this program
inline llama::linear_quantizers quantize_on(const std::string& device, int threads) {
  if (device == "cpu") return {};
#ifdef BL_HAS_CARD
  return llama::card_quantizers(threads);
#else
  static_cast<void>(threads);
  throw_no_card();
#endif
}

}  // namespace cli
