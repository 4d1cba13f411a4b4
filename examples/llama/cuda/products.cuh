// SPDX-License-Identifier: MIT
// Products with bitplanes at a precision known at run time. Each precision's kernels are compiled
// once, by themselves (product_bits.cu), as all of them together take many minutes. Tested by
// tests/llama/cuda/engine_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cuda/gemm_args.cuh>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cublas_v2.h>

namespace llama {
namespace card {

/// The precisions that a card runs bitplanes at.
constexpr int min_bits = 2, max_bits = 8;

/// bitladder::cuda::gemm at one precision, defined in an object file of product_bits.cu.
template <int Bits>
[[nodiscard]] bitladder::status product_at(const bitladder::cuda::gemm_args& args,
                                           cudaStream_t stream);

/// Y = X W^T, as bitladder::cuda::gemm.
/// @return unsupported_bits outside min_bits to max_bits
[[nodiscard]] bitladder::status product(int bits, const bitladder::cuda::gemm_args& args,
                                        cudaStream_t stream);

/// Scratch that such a call needs at most.
[[nodiscard]] std::size_t product_workspace_bytes(const bitladder::cuda::gemm_args& args);

/// bitladder::cuda::gemm_cublas at one precision, with args.workspace as its scratch.
template <int Bits>
[[nodiscard]] bitladder::status slab_product_at(const bitladder::cuda::gemm_args& args,
                                                cublasHandle_t blas, cudaStream_t stream);

/// The same by slabs of dequantized rows and cuBLAS.
[[nodiscard]] bitladder::status slab_product(int bits, const bitladder::cuda::gemm_args& args,
                                             cublasHandle_t blas, cudaStream_t stream);

[[nodiscard]] std::size_t slab_product_workspace_bytes(const bitladder::cuda::gemm_args& args);

/// From how many tokens on slabs are the faster way for these matrices.
[[nodiscard]] int slab_product_tokens(int bits, const bitladder::cuda::gemm_args& args);

}  // namespace card
}  // namespace llama
