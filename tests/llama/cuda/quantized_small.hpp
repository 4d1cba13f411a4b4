// SPDX-License-Identifier: MIT
// The bundled model, quantized. Apart from its users, as quantizing takes long to compile.
#pragma once

#include <filesystem>

namespace support {

/// Where the bundled model is.
std::filesystem::path small_model();

/// The same at 2 to 8 bits, made on the CPU at the first call.
const std::filesystem::path& quantized_small();

/// With 0.45% of the weights beside the planes.
const std::filesystem::path& quantized_small_with_outliers();

}  // namespace support
