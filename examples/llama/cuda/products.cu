// SPDX-License-Identifier: MIT
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cuda/gemm.cuh>
#include <bitladder/kernels/cuda/gemm_cublas.cuh>
#include <bitladder/kernels/cuda/policy.cuh>

#include <llama/cuda/products.cuh>

#include <climits>
#include <cstddef>

namespace llama {
namespace card {
namespace {

template <class F>
bitladder::status at(int bits, F&& f) {
  return bitladder::dispatch_bits(bits, bitladder::bits_list<2, 3, 4, 5, 6, 7, 8>{}, f);
}

}  // namespace

bitladder::status product(int bits, const bitladder::cuda::gemm_args& args, cudaStream_t stream) {
  return at(bits, [&](auto b) { return product_at<decltype(b)::value>(args, stream); });
}

std::size_t product_workspace_bytes(const bitladder::cuda::gemm_args& args) {
  return bitladder::cuda::gemm_workspace_bytes(args);
}

bitladder::status slab_product(int bits, const bitladder::cuda::gemm_args& args,
                               cublasHandle_t blas, cudaStream_t stream) {
  return at(bits, [&](auto b) { return slab_product_at<decltype(b)::value>(args, blas, stream); });
}

std::size_t slab_product_workspace_bytes(const bitladder::cuda::gemm_args& args) {
  return bitladder::cuda::gemm_cublas_workspace_bytes(args);
}

int slab_product_tokens(int bits, const bitladder::cuda::gemm_args& args) {
  // Outliers are put into a slab as it is made; beside other products they are a launch of their
  // own. An H200 takes 942 us for the linears of a 7B's layer with 512 tokens, 4 bits and 0.45% of
  // outliers, 204 us with 64 tokens; by slabs a layer with its attention takes 579 us with 512 and
  // 412 with 256 if there are none. With outliers slabs were not timed.
  for (int i = 0; i < args.count; ++i)
    if (args.matrices[i].w.outliers.runs > 0) return 256;
  int tokens = INT_MAX;
  const bitladder::status known = at(bits, [&](auto b) {
    tokens = bitladder::cuda::gemm_policy<decltype(b)::value>::cublas_tokens();
    return bitladder::status::ok;
  });
  return known == bitladder::status::ok ? tokens : INT_MAX;
}

}  // namespace card
}  // namespace llama
