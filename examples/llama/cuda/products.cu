// SPDX-License-Identifier: MIT
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cuda/gemm.cuh>

#include <llama/cuda/products.cuh>

#include <cstddef>

namespace llama {
namespace card {

bitladder::status product(int bits, const bitladder::cuda::gemm_args& args, cudaStream_t stream) {
  switch (bits) {
    case 2: return product_at<2>(args, stream);
    case 3: return product_at<3>(args, stream);
    case 4: return product_at<4>(args, stream);
    case 5: return product_at<5>(args, stream);
    case 6: return product_at<6>(args, stream);
    case 7: return product_at<7>(args, stream);
    case 8: return product_at<8>(args, stream);
    default: return bitladder::status::unsupported_bits;
  }
}

std::size_t product_workspace_bytes(const bitladder::cuda::gemm_args& args) {
  return bitladder::cuda::gemm_workspace_bytes(args);
}

}  // namespace card
}  // namespace llama
