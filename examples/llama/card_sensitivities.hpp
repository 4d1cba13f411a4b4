// SPDX-License-Identifier: MIT
// Sensitivities measured on a card, without CUDA in the header: card_sensitivities.cu is built
// where there is a CUDA compiler. Tested by tests/llama/cuda/backward_test.cu.
#pragma once

#include <llama/model_sensitivities.hpp>

#include <cstddef>

namespace llama {

/// @param held_bytes of the card's memory for what samples wait with between layers
/// @throws bitladder::error(unsupported_device) if there is no card
measure_at_once on_card(std::size_t held_bytes = std::size_t{8} << 30);

}  // namespace llama
