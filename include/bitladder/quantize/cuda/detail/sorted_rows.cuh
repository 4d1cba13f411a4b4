// SPDX-License-Identifier: MIT
// Rows in ascending order, each value's column carried along, on the card: what radix_sort.hpp does
// on the host, for many rows at once. Equal values keep column order. Tested by
// tests/quantize/cuda/quantize_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/quantize/radix_sort.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cub/device/device_segmented_radix_sort.cuh>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
#include <type_traits>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// Keys of a value type: as many bits as it has.
template <class Value>
using sort_key_of = std::conditional_t<sizeof(Value) == 2, std::uint16_t, std::uint32_t>;

/// Keys and columns of all elements; notes in `bad` whether one cannot be quantized.
template <class Value>
BL_KERNEL make_keys_kernel(const Value* values, int count, std::int64_t elements,
                           sort_key_of<Value>* keys, std::uint32_t* columns, int* bad) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < elements; i += stride) {
    const float x = to_float(values[i]);
    if (!(x <= fp16_max && x >= -fp16_max)) *bad = 1;
    keys[i] = static_cast<sort_key_of<Value>>(kmeans::sort_key(values[i]));
    columns[i] = static_cast<std::uint32_t>(i % count);
  }
}

/// Where segment `i` begins.
struct segment_begin {
  int count;
  __host__ __device__ std::int64_t operator()(std::int64_t i) const { return i * count; }
};

/// Sorts `segments` runs of `count` keys, each with its columns. As CUB: a null `scratch` asks for
/// its size.
template <class Key>
[[nodiscard]] cudaError_t sort_segments(void* scratch, std::size_t& scratch_bytes, const Key* keys,
                                        Key* sorted_keys, const std::uint32_t* columns,
                                        std::uint32_t* sorted_columns, int segments, int count,
                                        cudaStream_t stream) {
  const auto begins = thrust::make_transform_iterator(thrust::counting_iterator<std::int64_t>(0),
                                                      segment_begin{count});
  return cub::DeviceSegmentedRadixSort::SortPairs(
      scratch, scratch_bytes, keys, sorted_keys, columns, sorted_columns,
      static_cast<std::int64_t>(segments) * count, static_cast<std::int64_t>(segments), begins,
      begins + 1, 0, static_cast<int>(8 * sizeof(Key)), stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
