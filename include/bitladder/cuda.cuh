// SPDX-License-Identifier: MIT
// Everything, CUDA included, for .cu files; kernels/cuda/gemm_cublas.cuh, which needs cuBLAS, and
// quantize/cuda/quantize.cuh, which takes in much of CUB, are included by name. For users; the
// library's own headers include what they use.
#pragma once

#include <bitladder/bitladder.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/dequantize.cuh>
#include <bitladder/kernels/cuda/gemm.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/gemv.cuh>
#include <bitladder/kernels/cuda/large_batch.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/packed_weights.cuh>
#include <bitladder/kernels/cuda/policy.cuh>
#include <bitladder/kernels/cuda/repack.cuh>
