// SPDX-License-Identifier: MIT
// gemm.cuh and gemv.cuh at the precision BL_TEST_BITS, once for every precision, so that no file
// takes long to compile.
#include <bitladder/core/dispatch.hpp>
#include <bitladder/kernels/cuda/gemm.cuh>
#include <bitladder/kernels/cuda/gemv.cuh>

#include <cuda_fp16.h>

#include <cstddef>
#include <kernels/cuda/gemm_at.cuh>

namespace gemm_cases {

template <int Bits>
status gemm_at(const bc::gemm_args& args, cudaStream_t stream) {
  return bc::gemm<bitladder::bits_list<Bits>>(Bits, args, stream);
}
template <int Bits>
status gemm_at(const bc::packed_view& w, const __half* x, int m, float* y, void* workspace,
               std::size_t workspace_bytes, cudaStream_t stream) {
  return bc::gemm<Bits>(w, x, m, y, workspace, workspace_bytes, stream);
}
template <int Bits>
status gemv_at(const bc::packed_view& w, const __half* x, float* y, cudaStream_t stream) {
  return bc::gemv<Bits>(w, x, y, stream);
}

template status gemm_at<BL_TEST_BITS>(const bc::gemm_args&, cudaStream_t);
template status gemm_at<BL_TEST_BITS>(const bc::packed_view&, const __half*, int, float*, void*,
                                      std::size_t, cudaStream_t);
template status gemv_at<BL_TEST_BITS>(const bc::packed_view&, const __half*, float*, cudaStream_t);

}  // namespace gemm_cases
