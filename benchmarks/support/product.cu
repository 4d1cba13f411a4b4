// SPDX-License-Identifier: MIT
// From the precision at run time to the object file that has it compiled.
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include "product.cuh"

#include <cstddef>

namespace bench {
namespace {

using timed_bits = bitladder::bits_list<2, 3, 4, 5, 6, 7, 8>;

}  // namespace

std::size_t product_workspace_bytes(engine e, int bits, const bitladder::cuda::gemm_args& args) {
  std::size_t bytes = 0;
  bitladder::check(bitladder::dispatch_bits(bits, timed_bits{}, [&](auto b) {
    bytes = product_workspace_bytes_at<decltype(b)::value>(e, args);
    return bitladder::status::ok;
  }));
  return bytes;
}

bitladder::status product(engine e, int bits, const bitladder::cuda::gemm_args& args,
                          cublasHandle_t handle, cudaStream_t stream) {
  return bitladder::dispatch_bits(bits, timed_bits{}, [&](auto b) {
    return product_at<decltype(b)::value>(e, args, handle, stream);
  });
}

bitladder::status dequantize(const bitladder::cuda::packed_view& w, bitladder::fp16_t* out,
                             cudaStream_t stream) {
  return bitladder::dispatch_bits(w.bits, timed_bits{}, [&](auto b) {
    return dequantize_at<decltype(b)::value>(w, out, stream);
  });
}

}  // namespace bench
