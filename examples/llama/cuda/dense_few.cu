// SPDX-License-Identifier: MIT
#include <llama/cuda/card_launch.cuh>
#include <llama/cuda/dense_few_kernel.cuh>
#include <llama/cuda/operations.cuh>

#include <type_traits>

namespace llama {
namespace card {
namespace {

using bitladder::dtype;
using bitladder::status;

using kernel_pointer = void (*)(const detail::dense_few_params);

template <class W, bool Pair>
kernel_pointer choose(bool whole_vectors, int m) {
  if constexpr (!std::is_same<W, float>::value) {
    if (whole_vectors)
      return m <= 8 ? detail::dense_few_kernel<W, 8, Pair> : detail::dense_few_kernel<W, 16, Pair>;
  }
  return detail::dense_any_kernel<W, Pair>;
}

template <class W>
kernel_pointer choose(bool pair, bool whole_vectors, int m) {
  return pair ? choose<W, true>(whole_vectors, m) : choose<W, false>(whole_vectors, m);
}

}  // namespace

status dense_gemm_few(const dense_few_args& a, cudaStream_t stream, bool pdl) noexcept {
  const bool typed = a.type == dtype::f16 || a.type == dtype::bf16 || a.type == dtype::f32;
  if (!typed || (a.y_type != dtype::f16 && a.y_type != dtype::f32) || a.count < 1 ||
      a.count > dense_few_args::max_matrices || a.m < 0 || a.m > dense_few_args::max_m ||
      a.cols < 1 || a.x == nullptr || a.y_stride < 0)
    return status::invalid_argument;
  if (a.swiglu && a.count != 2) return status::invalid_argument;
  if (a.swiglu && a.matrices[0].rows != a.matrices[1].rows) return status::shape_mismatch;
  // 16-byte loads need rows that begin at 16 bytes.
  bool whole_vectors = a.cols % 8 == 0;
  if (whole_vectors && !detail::aligned16(a.x)) return status::misaligned;
  detail::dense_few_params params{};
  int blocks = 0;
  for (int i = 0; i < dense_few_args::max_matrices; ++i) {
    params.first_block[i] = blocks;
    if (i >= a.count) continue;
    const dense_product& w = a.matrices[i];
    if (w.weights == nullptr || w.rows < 1 || (w.y == nullptr && !(a.swiglu && i == 1)))
      return status::invalid_argument;
    if (a.y_stride != 0 && a.y_stride < w.rows) return status::shape_mismatch;
    if (!detail::aligned16(w.weights)) return status::misaligned;
    params.matrices[i] = w;
    if (!a.swiglu || i == 0) blocks += (w.rows + detail::dense_rows - 1) / detail::dense_rows;
  }
  for (int i = a.swiglu ? 1 : a.count; i < dense_few_args::max_matrices; ++i)
    params.first_block[i] = blocks;
  if (a.m == 0) return status::ok;
  params.cols = a.cols;
  params.m = a.m;
  params.x = a.x;
  params.y_stride = a.y_stride;
  params.y_float = a.y_type == dtype::f32;
  kernel_pointer kernel = nullptr;
  if (a.type == dtype::f16)
    kernel = choose<__half>(a.swiglu, whole_vectors, a.m);
  else if (a.type == dtype::bf16)
    kernel = choose<__nv_bfloat16>(a.swiglu, whole_vectors, a.m);
  else
    kernel = choose<float>(a.swiglu, whole_vectors, a.m);
  const bool staged = whole_vectors && a.type != dtype::f32;
  const detail::launch_shape shape{dim3(static_cast<unsigned>(blocks)), detail::dense_threads,
                                   staged ? detail::dense_shared_bytes : 0, 1, pdl};
  return detail::launch(kernel, shape, stream, params);
}

}  // namespace card
}  // namespace llama
