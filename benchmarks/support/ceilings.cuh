// SPDX-License-Identifier: MIT
// What the card can do at best, measured where the kernels are measured: a large copy between two
// device buffers (bytes read plus bytes written), and a chain of kernels that do nothing but read
// as many bytes each as a product has to, the next one starting while the last one drains.
#pragma once

#include <bitladder/cuda/runtime.cuh>

#include "cuda_check.cuh"
#include "graph_timer.cuh"
#include "random_fill.cuh"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bench {

/// Bytes read plus bytes written per second. Also wakes the card up: it copies for half a second
/// before it looks at a clock.
inline double copy_bytes_per_second(cudaStream_t stream) {
  constexpr std::size_t bytes = std::size_t{4} << 30;
  const device_array<std::uint32_t> from(bytes / 4), to(bytes / 4);
  fill_words(from.data(), from.size(), 1, stream);
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  const auto copy = [&] {
    check(cudaEventRecord(begin, stream), "cudaEventRecord");
    check(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, stream), "copy");
    check(cudaEventRecord(end, stream), "cudaEventRecord");
    check(cudaEventSynchronize(end), "copy");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    return static_cast<double>(ms);
  };
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - start < std::chrono::milliseconds(500)) copy();
  std::vector<double> ms;
  for (int i = 0; i < 20; ++i) ms.push_back(copy());
  std::nth_element(ms.begin(), ms.begin() + 10, ms.end());
  static_cast<void>(cudaEventDestroy(begin));
  static_cast<void>(cudaEventDestroy(end));
  return 2.0 * static_cast<double>(bytes) / (ms[10] * 1e-3);
}

namespace detail {

__device__ __forceinline__ uint4 load_streaming(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

/// Reads `count` quads; the sum is written only if it is a value that it never has in practice, so
/// that the reads stay. As a product would, it reads before it waits for the kernel before.
static __global__ void __launch_bounds__(256)
    stream_kernel(const uint4* in, std::size_t count, std::uint32_t* out) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
  constexpr int unroll = 8;
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  std::uint32_t sum = 0;
  for (; i + (unroll - 1) * step < count; i += unroll * step) {
    uint4 v[unroll];
#pragma unroll
    for (int u = 0; u < unroll; ++u) v[u] = load_streaming(in + i + u * step);
#pragma unroll
    for (int u = 0; u < unroll; ++u) sum += v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  uint4 v[unroll] = {};
#pragma unroll
  for (int u = 0; u < unroll; ++u)
    if (i + u * step < count) v[u] = load_streaming(in + i + u * step);
#pragma unroll
  for (int u = 0; u < unroll; ++u) sum += v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  if (sum == 0x9e3779b9u && count == 1) *out = sum;
}

}  // namespace detail

/// One launch in a chain that reads `bytes` (a multiple of 16) per launch, from places that rotate
/// over `pool`; the best of a few grids.
inline timing streaming_floor(graph_timer& timer, const std::uint32_t* pool, std::size_t pool_bytes,
                              std::size_t bytes, int rotation, std::uint32_t* out,
                              const bitladder::cuda::device_properties& device,
                              const time_budget& budget) {
  const std::size_t count = bytes / 16;
  const std::size_t places = std::max<std::size_t>(
      1, std::min<std::size_t>(pool_bytes / bytes, static_cast<std::size_t>(rotation)));
  const int launches =
      launches_for(static_cast<double>(bytes) * 1e-6 / 4.5 + 0.3, static_cast<int>(places));
  timing best;
  for (const int per_sm : {1, 2, 4}) {
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(device.multiprocessors * per_sm));
    config.blockDim = dim3(256);
    config.attrs = &early;
    config.numAttrs = device.compute_capability >= 90 ? 1 : 0;
    const timing t = timer.measure(launches, budget, [&](int i, cudaStream_t stream) {
      config.stream = stream;
      const std::size_t at = static_cast<std::size_t>(i) % places * count;
      check(cudaLaunchKernelEx(&config, detail::stream_kernel,
                               reinterpret_cast<const uint4*>(pool) + at, count, out),
            "stream_kernel");
    });
    if (best.launches == 0 || t.us < best.us) best = t;
  }
  return best;
}

}  // namespace bench
