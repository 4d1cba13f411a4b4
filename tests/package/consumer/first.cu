// SPDX-License-Identifier: MIT
#include <bitladder/cuda.cuh>

int first_unit();

int first_unit() {
  bitladder::cuda::device_properties properties;
  const bitladder::status s = bitladder::cuda::properties(properties);
  bitladder::cuda::buffer<float> memory;  // without a device, an error and not a crash
  return s == bitladder::status::ok ? static_cast<int>(memory.allocate(16)) : static_cast<int>(s);
}
