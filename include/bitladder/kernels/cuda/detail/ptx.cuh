// SPDX-License-Identifier: MIT
// The few instructions that CUDA C++ has no name for. Each wrapper is one instruction; paths that
// an architecture lacks are chosen here by __CUDA_ARCH__. Tested through the kernels that use them.
#pragma once

#include <bitladder/config.hpp>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// a where `Mask` has ones, b elsewhere. Written out because nvcc makes two LOP3 of the C++ form.
template <std::uint32_t Mask>
__device__ __forceinline__ std::uint32_t select(std::uint32_t a, std::uint32_t b) {
  std::uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xE4;" : "=r"(d) : "r"(a), "r"(b), "n"(Mask));
  return d;
}

/// Bytes picked from {a, b} by the nibbles of `Selector` (0..3 from a, 4..7 from b).
template <std::uint32_t Selector>
__device__ __forceinline__ std::uint32_t permute(std::uint32_t a, std::uint32_t b) {
  std::uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "n"(Selector));
  return d;
}

__device__ __forceinline__ std::uint32_t rotate_right(std::uint32_t a, int by) {
  return __funnelshift_r(a, a, by);
}

/// The same value, unknown to the compiler: what is derived from it is computed where it is used,
/// rather than once before the loop and kept in registers that the loop needs.
__device__ __forceinline__ int opaque(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

/// Shared-memory address as the 32-bit load and store instructions take it.
__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// Loads from shared memory. Not volatile: the compiler may move them, so whoever writes the words
/// puts a barrier (with a memory clobber) between the write and the read; `Offset` is an immediate.
template <int Offset>
__device__ __forceinline__ std::uint32_t load_shared_u32(std::uint32_t address) {
  std::uint32_t d;
  asm volatile("ld.shared.u32 %0, [%1+%2];" : "=r"(d) : "r"(address), "n"(Offset));
  return d;
}

template <int Offset>
__device__ __forceinline__ std::uint32_t load_shared_u16(std::uint32_t address) {
  std::uint32_t d;
  asm volatile("{.reg .u16 h; ld.shared.u16 h, [%1+%2]; cvt.u32.u16 %0, h;}"
               : "=r"(d)
               : "r"(address), "n"(Offset));
  return d;
}

__device__ __forceinline__ uint4 load_shared_v4(std::uint32_t address) {
  uint4 d;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
               : "r"(address));
  return d;
}

__device__ __forceinline__ uint2 load_shared_v2(std::uint32_t address) {
  uint2 d;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(d.x), "=r"(d.y) : "r"(address));
  return d;
}

/// 16 bytes in lanes that are `here`; the others keep what they have. Four lanes with addresses of
/// their own take one pass through shared memory where 32 lanes that share them take four.
__device__ __forceinline__ void load_shared_v4_if(std::uint32_t address, bool here,
                                                  std::uint32_t (&d)[4]) {
  asm volatile(
      "{.reg .pred p; setp.ne.u32 p, %5, 0;\n"
      "@p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];}"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(address), "r"(static_cast<std::uint32_t>(here)));
}

__device__ __forceinline__ float load_shared_f32(std::uint32_t address) {
  float d;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(d) : "r"(address));
  return d;
}

__device__ __forceinline__ void store_shared_u32(std::uint32_t address, std::uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}

template <int Offset>
__device__ __forceinline__ void store_shared_f32(std::uint32_t address, float v) {
  asm volatile("st.shared.f32 [%0+%1], %2;" ::"r"(address), "n"(Offset), "f"(v) : "memory");
}

__device__ __forceinline__ void store_shared_v4(std::uint32_t address, std::uint32_t a,
                                                std::uint32_t b, std::uint32_t c, std::uint32_t d) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

/// 16 bytes that are read once: weights must not push activations and tables out of the first-level
/// cache. Volatile, so that the load stays where the pipeline put it.
__device__ __forceinline__ uint4 load_once(const std::uint32_t* p) {
  uint4 d;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
               : "l"(p));
  return d;
}

/// Queues a copy of 16 bytes from global to shared memory.
__device__ __forceinline__ void copy_async_16(std::uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

/// Of 4 bytes.
__device__ __forceinline__ void copy_async_4(std::uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}

/// Makes one group of the copies queued since the last call.
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most `Pending` groups have not arrived.
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

__device__ __forceinline__ void copy_async_wait_all() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

/// A barrier in shared memory at which arriving and waiting are apart: who waits for phase n waits
/// for those only who have not arrived in it. 8 bytes, 8-byte aligned.
__device__ __forceinline__ void split_barrier_init(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// This thread's writes before are seen by who waits.
__device__ __forceinline__ void split_barrier_arrive(std::uint32_t barrier) {
  asm volatile("{.reg .b64 s; mbarrier.arrive.shared.b64 s, [%0];}" ::"r"(barrier) : "memory");
}

/// Waits for the end of the phase with this parity: 0 for the first.
__device__ __forceinline__ void split_barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  do {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
#else
    // Tests and does not sleep: before sm_90 there is nothing else.
    asm volatile(
        "{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
#endif
  } while (done == 0);
}

/// c += a b with fp16 operands and float sums: a [16, 16], b [16, 8]. Column n of the result
/// depends on column n of b alone.
__device__ __forceinline__ void mma_16816(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                          std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                          std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Programmatic dependent launch: lets the next kernel of the stream start, and waits for the
/// results of the previous one. Both do nothing in an ordinary launch.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_dependency() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
