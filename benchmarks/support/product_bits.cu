// SPDX-License-Identifier: MIT
// product.cuh at the precision BL_BENCH_BITS.
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cuda/dequantize.cuh>
#include <bitladder/kernels/cuda/gemm.cuh>
#include <bitladder/kernels/cuda/gemm_cublas.cuh>
#include <bitladder/kernels/cuda/large_batch.cuh>

#include "product.cuh"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace bench {

namespace cuda = bitladder::cuda;
using bitladder::status;
using cuda::gemm_args;

// Inline: nvcc gives the unnamed namespaces of one file compiled several times the same name.
namespace detail {

/// Tokens `first` and on, `m` of them, of a call for one matrix.
inline gemm_args tokens_of(const gemm_args& args, int first, int m) {
  gemm_args part = args;
  const cuda::packed_layout& layout = args.matrices[0].w.layout;
  const auto at = [first](auto* p, std::int64_t stride, int width, bitladder::dtype type) {
    using byte = std::conditional_t<std::is_const<std::remove_pointer_t<decltype(p)>>::value,
                                    const char, char>;
    return static_cast<byte*>(p) +
           first * (stride != 0 ? stride : width) * static_cast<std::int64_t>(size_of(type));
  };
  part.x = at(args.x, args.x_stride, layout.cols, args.x_type);
  part.matrices[0].y = at(args.matrices[0].y, args.y_stride, layout.rows, args.y_type);
  part.m = m;
  return part;
}

constexpr int small_tokens = 16;

/// What `chosen` stands for.
inline engine resolve(engine e, int m) {
  return e == engine::chosen && m >= cublas_min_m ? engine::slabs : e;
}

}  // namespace detail

template <int Bits>
std::size_t product_workspace_bytes_at(engine e, const gemm_args& args) {
  switch (detail::resolve(e, args.m)) {
    case engine::chosen: break;
    case engine::small:
      return cuda::gemm_workspace_bytes(
          detail::tokens_of(args, 0, std::min(args.m, detail::small_tokens)));
    case engine::large: return cuda::large_batch_workspace_bytes(args);
    case engine::slabs: return cuda::gemm_cublas_workspace_bytes(args);
  }
  return cuda::gemm_workspace_bytes(args);
}

template <int Bits>
status product_at(engine e, const gemm_args& args, cublasHandle_t handle, cudaStream_t stream) {
  switch (detail::resolve(e, args.m)) {
    case engine::chosen: break;
    case engine::small: {
      status s = status::ok;
      for (int first = 0; first < args.m && s == status::ok; first += detail::small_tokens)
        s = cuda::gemm<Bits>(
            detail::tokens_of(args, first, std::min(args.m - first, detail::small_tokens)), stream);
      return s;
    }
    case engine::large:
      return cuda::large_batch<Bits>(args, args.workspace, args.workspace_bytes, stream);
    case engine::slabs:
      return cuda::gemm_cublas<Bits>(args, args.workspace, args.workspace_bytes, handle, stream);
  }
  return cuda::gemm<Bits>(args, stream);
}

template <int Bits>
status dequantize_at(const cuda::packed_view& w, bitladder::fp16_t* out, cudaStream_t stream) {
  return cuda::dequantize<Bits>(w, out, bitladder::dtype::f16, 0, w.layout.rows, 0, stream);
}

template std::size_t product_workspace_bytes_at<BL_BENCH_BITS>(engine, const gemm_args&);
template status product_at<BL_BENCH_BITS>(engine, const gemm_args&, cublasHandle_t, cudaStream_t);
template status dequantize_at<BL_BENCH_BITS>(const cuda::packed_view&, bitladder::fp16_t*,
                                             cudaStream_t);

}  // namespace bench
