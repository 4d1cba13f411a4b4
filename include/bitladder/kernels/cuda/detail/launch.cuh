// SPDX-License-Identifier: MIT
// Starting a kernel with dynamic shared memory and, on request, programmatic dependent launch.
// Tested by tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>

#include <cuda_runtime_api.h>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

struct launch_shape {
  dim3 grid;
  int threads;
  int shared_bytes;
  bool pdl;  ///< only where the card has it
};

/// Queues one kernel that takes one parameter block.
template <class Params>
[[nodiscard]] status launch(void (*kernel)(const Params), const launch_shape& shape,
                            const Params& params, cudaStream_t stream) noexcept {
  const void* function = reinterpret_cast<const void*>(kernel);
  // Function attributes belong to the context, so they are set at every launch: it costs less than
  // remembering per device, and needs no state. One carveout for all kernels, because changing it
  // between kernels drains the multiprocessor.
  status s = call_status(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              shape.shared_bytes));
  if (s != status::ok) return s;
  s = call_status(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                       cudaSharedmemCarveoutMaxShared));
  if (s != status::ok) return s;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = shape.pdl ? 1 : 0;
  return call_status(cudaLaunchKernelEx(&config, kernel, params));
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
