// SPDX-License-Identifier: MIT
#include <bitladder/cuda/runtime.cuh>

#include <support/has_device.hpp>

#include <doctest/doctest.h>

#include <thread>
#include <vector>

namespace {

using bitladder::status;
namespace cuda = bitladder::cuda;

static_assert(cuda::to_status(cudaSuccess) == status::ok, "");

TEST_CASE("a runtime error becomes the status that tells the caller what to do") {
  CHECK(cuda::to_status(cudaErrorInvalidValue) == status::invalid_argument);
  CHECK(cuda::to_status(cudaErrorMemoryAllocation) == status::out_of_memory);
  CHECK(cuda::to_status(cudaErrorNoDevice) == status::unsupported_device);
  CHECK(cuda::to_status(cudaErrorNoKernelImageForDevice) == status::unsupported_device);
  CHECK(cuda::to_status(cudaErrorIllegalAddress) == status::launch_failed);
}

TEST_CASE("a device that does not exist is reported, and the error does not stay behind") {
  cuda::device_properties p;
  CHECK(cuda::properties(-1, p) == status::unsupported_device);
  CHECK(cuda::properties(1 << 20, p) == status::unsupported_device);
  if (support::has_device()) CHECK(cudaPeekAtLastError() == cudaSuccess);
}

TEST_CASE("properties are the runtime's own, from the cache and from many threads" *
          doctest::skip(!support::has_device())) {
  cudaDeviceProp expected;
  REQUIRE(cudaGetDeviceProperties(&expected, 0) == cudaSuccess);
  std::vector<cuda::device_properties> seen(16);
  std::vector<std::thread> threads;
  for (int round = 0; round < 2; ++round) {
    threads.clear();
    for (cuda::device_properties& p : seen)
      threads.emplace_back([&p] {
        if (cuda::properties(0, p) != status::ok) p = {};
      });
    for (std::thread& t : threads) t.join();
    for (const cuda::device_properties& p : seen) {
      CHECK(p.compute_capability == 10 * expected.major + expected.minor);
      CHECK(p.multiprocessors == expected.multiProcessorCount);
      CHECK(p.shared_bytes_per_block == static_cast<int>(expected.sharedMemPerBlockOptin));
      CHECK(p.shared_bytes_per_multiprocessor ==
            static_cast<int>(expected.sharedMemPerMultiprocessor));
      CHECK(p.l2_bytes == expected.l2CacheSize);
    }
  }
  cuda::device_properties current;
  REQUIRE(cuda::properties(current) == status::ok);
  CHECK(current.multiprocessors == expected.multiProcessorCount);
}

}  // namespace
