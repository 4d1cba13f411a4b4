// SPDX-License-Identifier: MIT
// Hopper's bulk copies to shared memory, the barriers that count their bytes, and clusters of
// blocks that see each other's shared memory. Code for cards before sm_90 may include this and use
// only what is outside the guard. Tested by tests/kernels/cuda/large_batch_test.cu.
#pragma once

#include <bitladder/config.hpp>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// All threads of all blocks of the cluster meet; what they wrote before is visible after.
__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
#else
  __syncthreads();
#endif
}

/// The same for who only must not leave: a release costs the round trip of every write to global
/// memory (H200: 0.7 us at the end of a block).
__device__ __forceinline__ void cluster_leave() {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.relaxed.aligned;\n"
      "barrier.cluster.wait.aligned;" ::
          : "memory");
#endif
}

/// Four floats of the shared memory of block `rank` of the cluster.
/// @param address as this block would address its own
__device__ __forceinline__ float4 load_cluster_f4(std::uint32_t address, int rank) {
  float4 v;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{.reg .u32 r; mapa.shared::cluster.u32 r, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [r];}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(address), "r"(rank)
      : "memory");
#else
  static_cast<void>(rank);
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
#endif
  return v;
}

#if __CUDA_ARCH__ >= 900

/// Makes initialized barriers known to the copy engine; a barrier of the block follows.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Arrives, and adds `bytes` to what must be copied before the phase ends.
__device__ __forceinline__ void barrier_expect(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Queues a copy of `bytes` (a multiple of 16) to this block's shared memory.
__device__ __forceinline__ void bulk_copy(std::uint32_t shared, const void* global, int bytes,
                                          std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

#endif

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
