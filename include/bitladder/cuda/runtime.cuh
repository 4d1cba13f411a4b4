// SPDX-License-Identifier: MIT
// The CUDA runtime in the library's words: its errors as `status`, and the few properties of a card
// that launchers choose by, asked once per device. Tested by tests/cuda/runtime_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/status.hpp>

#include <cuda_runtime_api.h>

#include <atomic>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// What a runtime error means to a caller of the library.
[[nodiscard]] constexpr status to_status(cudaError_t e) noexcept {
  switch (e) {
    case cudaSuccess: return status::ok;
    case cudaErrorInvalidValue: return status::invalid_argument;
    case cudaErrorMemoryAllocation: return status::out_of_memory;
    case cudaErrorMisalignedAddress: return status::misaligned;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion: return status::unsupported_device;
    default: return status::launch_failed;
  }
}

/// Status of a runtime call. The runtime also remembers a failed call's error for the next
/// cudaGetLastError, where it would be taken for a failed launch, so that memory is cleared.
[[nodiscard]] inline status call_status(cudaError_t e) noexcept {
  if (e != cudaSuccess) static_cast<void>(cudaGetLastError());
  return to_status(e);
}

/// Status of the kernel launch on the line before.
[[nodiscard]] inline status launch_status() noexcept { return to_status(cudaGetLastError()); }

/// What launchers choose by.
struct device_properties {
  int compute_capability = 0;               ///< 10 * major + minor, e.g. 90
  int multiprocessors = 0;                  ///< streaming multiprocessors
  int shared_bytes_per_block = 0;           ///< the most that a block can opt in to
  int shared_bytes_per_multiprocessor = 0;  ///< shared by the blocks that are resident together
  int l2_bytes = 0;                         ///< second-level cache
};

namespace detail {

inline status read_properties(int device, device_properties& out) noexcept {
  struct item {
    int* value;
    cudaDeviceAttr attribute;
  };
  int major = 0, minor = 0;
  const item items[] = {
      {&major, cudaDevAttrComputeCapabilityMajor},
      {&minor, cudaDevAttrComputeCapabilityMinor},
      {&out.multiprocessors, cudaDevAttrMultiProcessorCount},
      {&out.shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin},
      {&out.shared_bytes_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor},
      {&out.l2_bytes, cudaDevAttrL2CacheSize},
  };
  for (const item& i : items) {
    const status s = call_status(cudaDeviceGetAttribute(i.value, i.attribute, device));
    if (s != status::ok) return s;
  }
  out.compute_capability = 10 * major + minor;
  return status::ok;
}

/// One device's answer. The thread that takes it from `empty` writes it; others that come before it
/// is `ready` use their own reading, so nobody waits and nothing is locked.
struct property_slot {
  enum : int { empty, taken, ready };
  std::atomic<int> state{empty};
  device_properties value;
};

}  // namespace detail

/// Properties of one device, from a cache after the first call; any thread may call.
/// @return unsupported_device if there is no such device
[[nodiscard]] inline status properties(int device, device_properties& out) noexcept {
  constexpr int cached = 64;  // devices beyond these are asked every time
  static detail::property_slot slots[cached];
  detail::property_slot* slot = device >= 0 && device < cached ? &slots[device] : nullptr;
  if (slot != nullptr &&
      slot->state.load(std::memory_order_acquire) == detail::property_slot::ready) {
    out = slot->value;
    return status::ok;
  }
  const status s = detail::read_properties(device, out);
  int expected = detail::property_slot::empty;
  if (s == status::ok && slot != nullptr &&
      slot->state.compare_exchange_strong(expected, detail::property_slot::taken)) {
    slot->value = out;
    slot->state.store(detail::property_slot::ready, std::memory_order_release);
  }
  return s;
}

/// Properties of the calling thread's current device.
[[nodiscard]] inline status properties(device_properties& out) noexcept {
  int device = 0;
  const status s = call_status(cudaGetDevice(&device));
  return s == status::ok ? properties(device, out) : s;
}

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
