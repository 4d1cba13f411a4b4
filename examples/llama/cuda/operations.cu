// SPDX-License-Identifier: MIT
#include <llama/cuda/argmax_kernel.cuh>
#include <llama/cuda/card_launch.cuh>
#include <llama/cuda/operations.cuh>
#include <llama/cuda/rope_kernel.cuh>
#include <llama/cuda/row_kernels.cuh>

#include <algorithm>

namespace llama {
namespace card {
namespace {

using bitladder::dtype;
using bitladder::status;

/// Blocks for `count` elements, up to 8 of a thread's.
unsigned blocks_for(std::size_t count, unsigned most) {
  const std::size_t blocks =
      (count + detail::element_threads - 1) / static_cast<std::size_t>(detail::element_threads);
  return static_cast<unsigned>(std::min<std::size_t>(blocks, most));
}

detail::launch_shape elements(dim3 grid, bool pdl) {
  return {grid, detail::element_threads, 0, 1, pdl};
}

template <class T, bool Add>
status embed_rows(const void* table, int rows, const int* tokens, int offset, int m, int width,
                  float* x, cudaStream_t stream, bool pdl) noexcept {
  const dim3 grid(blocks_for(static_cast<std::size_t>(width), 64), static_cast<unsigned>(m));
  return detail::launch(detail::embed_kernel<T, Add>, elements(grid, pdl), stream,
                        static_cast<const T*>(table), rows, tokens, offset, width, x);
}

template <bool Add>
status embed_any(const void* table, dtype type, int rows, const int* tokens, int offset, int m,
                 int width, float* x, cudaStream_t stream, bool pdl) noexcept {
  if (m < 0 || width < 0 || rows < 0 || offset < 0 || m > 65535) return status::invalid_argument;
  if (m == 0 || width == 0) return status::ok;
  if (table == nullptr || tokens == nullptr || x == nullptr) return status::invalid_argument;
  switch (type) {
    case dtype::f32:
      return embed_rows<float, Add>(table, rows, tokens, offset, m, width, x, stream, pdl);
    case dtype::f16:
      return embed_rows<__half, Add>(table, rows, tokens, offset, m, width, x, stream, pdl);
    case dtype::bf16:
      return embed_rows<__nv_bfloat16, Add>(table, rows, tokens, offset, m, width, x, stream, pdl);
    default: return status::invalid_argument;
  }
}

template <norm_kind Kind>
status norm_rows(const float* x, const float* weight, const float* bias, __half* y, float* y_float,
                 int m, int width, float epsilon, cudaStream_t stream, bool pdl) noexcept {
  const detail::launch_shape shape{dim3(static_cast<unsigned>(m)), detail::norm_threads, 0, 1, pdl};
  auto* kernel = detail::any_norm_kernel<Kind>;
  constexpr int one = 4 * detail::norm_threads;
  if (width % 4 == 0 && width <= one)
    kernel = detail::norm_kernel<Kind, 1>;
  else if (width % 4 == 0 && width <= 2 * one)
    kernel = detail::norm_kernel<Kind, 2>;
  else if (width % 4 == 0 && width <= 4 * one)
    kernel = detail::norm_kernel<Kind, 4>;
  return detail::launch(kernel, shape, stream, x, weight, bias, y, y_float, width, epsilon);
}

}  // namespace

status embed(const void* table, dtype type, int vocabulary, const int* tokens, int m, int width,
             float* x, cudaStream_t stream, bool pdl) noexcept {
  return embed_any<false>(table, type, vocabulary, tokens, 0, m, width, x, stream, pdl);
}

status add_positions(const void* table, dtype type, int rows, const int* positions, int offset,
                     int m, int width, float* x, cudaStream_t stream, bool pdl) noexcept {
  return embed_any<true>(table, type, rows, positions, offset, m, width, x, stream, pdl);
}

status norm(norm_kind kind, const float* x, const float* weight, const float* bias, __half* y,
            float* y_float, int m, int width, float epsilon, cudaStream_t stream,
            bool pdl) noexcept {
  if (m < 0 || width < 0) return status::invalid_argument;
  if (m == 0 || width == 0) return status::ok;
  if (x == nullptr || weight == nullptr || (y == nullptr && y_float == nullptr))
    return status::invalid_argument;
  for (const void* p : {static_cast<const void*>(x), static_cast<const void*>(weight),
                        static_cast<const void*>(bias), static_cast<const void*>(y),
                        static_cast<const void*>(y_float)})
    if (!detail::aligned16(p)) return status::misaligned;
  return kind == norm_kind::rms ? norm_rows<norm_kind::rms>(x, weight, bias, y, y_float, m, width,
                                                            epsilon, stream, pdl)
                                : norm_rows<norm_kind::layer>(x, weight, bias, y, y_float, m, width,
                                                              epsilon, stream, pdl);
}

status rope_store(const __half* q, const __half* k, const __half* v, int q_stride, int kv_stride,
                  int m, int heads, const rope_view& rope, const cache_view& cache, int layer,
                  int slot, int start, __half* q_out, cudaStream_t stream, bool pdl) noexcept {
  const int d = cache.head_dim;
  if (m < 0 || heads < 1 || start < 0 || layer < 0 || layer >= cache.layers || slot < 0 ||
      slot >= cache.slots || d < 1 || cache.kv_heads < 1 || heads % cache.kv_heads != 0 ||
      rope.pairs < 0 || 2 * rope.pairs > d)
    return status::invalid_argument;
  if (m > cache.capacity - start || q_stride < heads * d || kv_stride < cache.kv_heads * d)
    return status::shape_mismatch;
  if (m == 0) return status::ok;
  if (q == nullptr || k == nullptr || v == nullptr || q_out == nullptr || cache.data == nullptr ||
      (rope.pairs > 0 && (rope.cosines == nullptr || rope.sines == nullptr)))
    return status::invalid_argument;
  const detail::launch_shape shape{dim3(static_cast<unsigned>(m)), detail::rope_threads, 0, 1, pdl};
  return detail::launch(detail::rope_store_kernel<>, shape, stream, q, k, v, q_stride, kv_stride,
                        heads, rope, cache, layer, slot, start, q_out);
}

status activate(activation_kind f, __half* x, std::size_t count, cudaStream_t stream,
                bool pdl) noexcept {
  if (count == 0) return status::ok;
  if (x == nullptr) return status::invalid_argument;
  auto* kernel = detail::activate_kernel<activation_kind::silu>;
  if (f == activation_kind::relu) kernel = detail::activate_kernel<activation_kind::relu>;
  if (f == activation_kind::gelu_tanh) kernel = detail::activate_kernel<activation_kind::gelu_tanh>;
  return detail::launch(kernel, elements(dim3(blocks_for(count, 2048)), pdl), stream, x, count);
}

status silu_multiply(const __half* gate, const __half* up, std::int64_t stride, int m, int width,
                     __half* y, cudaStream_t stream, bool pdl) noexcept {
  if (m < 0 || m > 65535 || width < 0 || stride < width) return status::invalid_argument;
  if (m == 0 || width == 0) return status::ok;
  if (gate == nullptr || up == nullptr || y == nullptr) return status::invalid_argument;
  const dim3 grid(blocks_for(static_cast<std::size_t>(width), 64), static_cast<unsigned>(m));
  return detail::launch(detail::silu_multiply_kernel<>, elements(grid, pdl), stream, gate, up,
                        stride, width, y);
}

status add(const __half* y, float* x, std::size_t count, cudaStream_t stream, bool pdl) noexcept {
  if (count == 0) return status::ok;
  if (x == nullptr || y == nullptr) return status::invalid_argument;
  return detail::launch(detail::add_kernel<>, elements(dim3(blocks_for(count, 2048)), pdl), stream,
                        y, x, count);
}

std::size_t argmax_scratch_bytes(int m) noexcept {
  return sizeof(detail::argmax_state) * static_cast<std::size_t>(std::max(m, 0));
}

status argmax_advance(const float* logits, std::int64_t stride, int m, int vocabulary, int* tokens,
                      int* positions, int* log, int log_stride, int* counts, void* scratch,
                      cudaStream_t stream, bool pdl) noexcept {
  if (stride == 0) stride = vocabulary;
  if (m < 0 || m > 65535 || vocabulary < 1 || stride < vocabulary || log_stride < 0 ||
      (log == nullptr) != (counts == nullptr))
    return status::invalid_argument;
  if (m == 0) return status::ok;
  if (logits == nullptr || tokens == nullptr || positions == nullptr || scratch == nullptr)
    return status::invalid_argument;
  const dim3 grid(detail::argmax_blocks, static_cast<unsigned>(m));
  return detail::launch(detail::argmax_kernel<>,
                        detail::launch_shape{grid, detail::argmax_threads, 0, 1, pdl}, stream,
                        logits, stride, vocabulary, tokens, positions, log, log_stride, counts,
                        static_cast<detail::argmax_state*>(scratch));
}

}  // namespace card
}  // namespace llama
