// SPDX-License-Identifier: MIT
// products.cuh at the precision BL_CARD_BITS.
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cuda/gemm.cuh>
#include <bitladder/kernels/cuda/gemm_cublas.cuh>

#include <llama/cuda/products.cuh>

namespace llama {
namespace card {

template <int Bits>
bitladder::status product_at(const bitladder::cuda::gemm_args& args, cudaStream_t stream) {
  return bitladder::cuda::gemm<Bits>(args, stream);
}

template <int Bits>
bitladder::status slab_product_at(const bitladder::cuda::gemm_args& args, cublasHandle_t blas,
                                  cudaStream_t stream) {
  return bitladder::cuda::gemm_cublas<Bits>(args, args.workspace, args.workspace_bytes, blas,
                                            stream);
}

template bitladder::status product_at<BL_CARD_BITS>(const bitladder::cuda::gemm_args&,
                                                    cudaStream_t);
template bitladder::status slab_product_at<BL_CARD_BITS>(const bitladder::cuda::gemm_args&,
                                                         cublasHandle_t, cudaStream_t);

}  // namespace card
}  // namespace llama
