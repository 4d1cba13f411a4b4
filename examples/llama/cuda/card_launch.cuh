// SPDX-License-Identifier: MIT
// Starting the kernels of operations.cuh, and the few instructions that CUDA C++ has no name for.
// Tested through the kernels by tests/llama/cuda/operations_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace llama {
namespace card {
namespace detail {

struct launch_shape {
  dim3 grid;
  int threads;
  int shared_bytes = 0;  ///< dynamic
  int cluster = 1;       ///< blocks along x that run together
  bool pdl = false;      ///< ignored on cards without it
};

/// Queues one kernel.
template <class... Params, class... Args>
[[nodiscard]] bitladder::status launch(void (*kernel)(Params...), const launch_shape& shape,
                                       cudaStream_t stream, const Args&... args) noexcept {
  using bitladder::status;
  bitladder::cuda::device_properties card;
  status s = bitladder::cuda::properties(card);
  if (s != status::ok) return s;
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shape.shared_bytes > 0) {
    s = bitladder::cuda::call_status(cudaFuncSetAttribute(
        function, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes));
    if (s != status::ok) return s;
  }
  // As the products have it: a change of the carveout between kernels drains the multiprocessor.
  s = bitladder::cuda::call_status(cudaFuncSetAttribute(
      function, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  if (s != status::ok) return s;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (shape.pdl && card.compute_capability >= 90) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  config.attrs = attributes;
  config.numAttrs = count;
  return bitladder::cuda::call_status(
      cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

inline bool aligned16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

#ifdef __CUDACC__

/// Lets the next kernel of the stream start. Does nothing in an ordinary launch.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Waits for the kernels before. Every kernel does, so the end of one is the end of all before it.
__device__ __forceinline__ void wait_for_dependency() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// 16 bytes of weights, which nobody writes and which are read once.
__device__ __forceinline__ uint4 load_weights(const void* p) {
  uint4 d;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
               : "l"(p));
  return d;
}

/// 16 bytes from the second-level cache: what other blocks wrote.
__device__ __forceinline__ uint4 load_shared_by_all(const void* p) {
  uint4 d;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
               : "l"(p));
  return d;
}
__device__ __forceinline__ int load_shared_by_all(const int* p) {
  int d;
  asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(d) : "l"(p));
  return d;
}
__device__ __forceinline__ float load_shared_by_all(const float* p) {
  float d;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(d) : "l"(p));
  return d;
}

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ float2 unpack_half2(std::uint32_t bits) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}
/// Eight numbers that were loaded at once.
__device__ __forceinline__ void widen(const uint4& bits, float (&x)[8]) {
  const std::uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 f = unpack_half2(words[i]);
    x[2 * i] = f.x;
    x[2 * i + 1] = f.y;
  }
}
__device__ __forceinline__ std::uint32_t pack_half2(float low, float high) {
  const __half2 h = __floats2half2_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&h);
}

/// c += a b with fp16 operands and float sums: a [16, 16], b [16, 8]. Column n of the result
/// depends on column n of b alone.
__device__ __forceinline__ void mma_f16(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                        std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                        std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_bf16(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                         std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                         std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

#endif  // __CUDACC__

}  // namespace detail
}  // namespace card
}  // namespace llama
