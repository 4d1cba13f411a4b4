// SPDX-License-Identifier: MIT
// The calls of gemm.cuh that tests make, at one precision each. gemm_bits.cu defines them, a file
// for every precision, and sees nothing that would instantiate another's: all eight in each file
// took eight times as long to compile.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include <cuda_fp16.h>

#include <cstddef>

namespace gemm_cases {

namespace bc = bitladder::cuda;
using bitladder::status;

/// gemm(Bits, args, stream), the call for a precision known at run time.
template <int Bits>
status gemm_at(const bc::gemm_args& args, cudaStream_t stream);
/// The short forms.
template <int Bits>
status gemm_at(const bc::packed_view& w, const __half* x, int m, float* y, void* workspace,
               std::size_t workspace_bytes, cudaStream_t stream);
template <int Bits>
status gemv_at(const bc::packed_view& w, const __half* x, float* y, cudaStream_t stream);

}  // namespace gemm_cases
