// SPDX-License-Identifier: MIT
// The calls that the programs here time, behind plain functions, so that the kernels are compiled
// once for all of them, each precision by itself (product_bits.cu).
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cublas_v2.h>

namespace bench {

/// The ways to multiply; not every one takes every call.
enum class engine {
  chosen,  ///< what the library's policy says; slabs from `cublas_min_m` tokens
  small,   ///< the kernel for up to 16 tokens, again and again
  large,   ///< dequantize inside the product
  slabs,   ///< dequantize some rows at a time, cuBLAS for the product
};

/// Where `chosen` goes over to slabs, which gemm itself does not call: only users who link cuBLAS
/// have them.
constexpr int cublas_min_m = 1024;

/// Scratch of `product`.
std::size_t product_workspace_bytes(engine e, int bits, const bitladder::cuda::gemm_args& args);

/// @param bits 2 to 8
/// @param args its workspace is the scratch of whichever engine
/// @param handle has `stream`, and a workspace, so that it can be captured
bitladder::status product(engine e, int bits, const bitladder::cuda::gemm_args& args,
                          cublasHandle_t handle, cudaStream_t stream);

/// All of `w` as fp16, [rows, cols].
bitladder::status dequantize(const bitladder::cuda::packed_view& w, bitladder::fp16_t* out,
                             cudaStream_t stream);

/// What they call, defined for one precision in each object file of product_bits.cu.
template <int Bits>
std::size_t product_workspace_bytes_at(engine e, const bitladder::cuda::gemm_args& args);
template <int Bits>
bitladder::status product_at(engine e, const bitladder::cuda::gemm_args& args,
                             cublasHandle_t handle, cudaStream_t stream);
template <int Bits>
bitladder::status dequantize_at(const bitladder::cuda::packed_view& w, bitladder::fp16_t* out,
                                cudaStream_t stream);

}  // namespace bench
