// SPDX-License-Identifier: MIT
// products.cuh at the precision BL_CARD_BITS.
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cuda/gemm.cuh>

#include <llama/cuda/products.cuh>

namespace llama {
namespace card {

template <int Bits>
bitladder::status product_at(const bitladder::cuda::gemm_args& args, cudaStream_t stream) {
  return bitladder::cuda::gemm<Bits>(args, stream);
}

template bitladder::status product_at<BL_CARD_BITS>(const bitladder::cuda::gemm_args&,
                                                    cudaStream_t);

}  // namespace card
}  // namespace llama
