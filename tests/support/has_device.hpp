// SPDX-License-Identifier: MIT
// For `* doctest::skip(!support::has_device())`.
#pragma once

#include <cuda_runtime_api.h>

namespace support {

/// Whether a CUDA device can be used here.
inline bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

}  // namespace support
