// SPDX-License-Identifier: MIT
// Linears quantized on all cards, without CUDA in the header: card_quantizer.cu is built where
// there is a CUDA compiler. Tested by tests/llama/cuda/quantize_model_test.cu.
#pragma once

#include <llama/linear_quantizer.hpp>

namespace llama {

/// Two workers for each card that is visible (CUDA_VISIBLE_DEVICES says which are): while one
/// reads, chooses outliers or ends a linear, the card has the other's. Codes and tables are those
/// of the CPU but for ties that rounding decides, among weights whose sensitivity is next to
/// nothing: so a checkpoint that one began is not finished by the other.
/// @param threads of the host that all workers share; 0 takes the machine's count
/// @throws bitladder::error(unsupported_device) if there is no card
linear_quantizers card_quantizers(int threads = 0);

}  // namespace llama
