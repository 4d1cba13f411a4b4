// SPDX-License-Identifier: MIT
#include <llama/cuda/card_launch.cuh>
#include <llama/cuda/decode_attention_kernel.cuh>
#include <llama/cuda/operations.cuh>
#include <llama/cuda/prefill_attention_kernel.cuh>

#include <algorithm>

namespace llama {
namespace card {
namespace {

using bitladder::status;

constexpr int widest_head = 256;

status check_cache(const cache_view& cache, int layer, int heads) noexcept {
  if (cache.data == nullptr || cache.slots < 1 || cache.kv_heads < 1 || cache.capacity < 1 ||
      cache.head_dim < 1 || cache.head_dim > widest_head || layer < 0 || layer >= cache.layers ||
      heads < 1 || heads % cache.kv_heads != 0)
    return status::invalid_argument;
  // A head's elements are counted in 32 bits.
  if (cache.head_size() > std::size_t{1} << 30) return status::invalid_argument;
  return detail::aligned16(cache.data) ? status::ok : status::misaligned;
}

/// Query heads that a block takes at once: few enough for its registers.
int heads_at_once(int heads_of_kv) { return heads_of_kv == 1 ? 1 : 2; }

template <int Lanes, int Heads>
status launch_decode(const decode_attention_args& args, cudaStream_t stream, bool pdl) noexcept {
  auto* kernel = detail::decode_attention_kernel<Lanes, Heads>;
  cudaFuncAttributes compiled{};
  status s = bitladder::cuda::call_status(
      cudaFuncGetAttributes(&compiled, reinterpret_cast<const void*>(kernel)));
  if (s != status::ok) return s;
  const int heads_of_kv = args.heads / args.cache.kv_heads;
  const detail::decode_attention_params params{args, (heads_of_kv + Heads - 1) / Heads};
  // Blocks per kv head: as many as the card holds at once, two on a multiprocessor.
  bitladder::cuda::device_properties card;
  s = bitladder::cuda::properties(card);
  if (s != status::ok) return s;
  const int others = args.cache.kv_heads * params.head_groups;
  int ranks = detail::attention_parts;
  while (ranks > 1 && static_cast<std::int64_t>(others) * args.m * ranks > 2 * card.multiprocessors)
    ranks /= 2;
  detail::launch_shape shape{};
  shape.grid = dim3(static_cast<unsigned>(ranks), static_cast<unsigned>(others),
                    static_cast<unsigned>(args.m));
  shape.threads = detail::attention_threads;
  // The kernel meets in a cluster where its code is that of sm_90, whatever the card is.
  const bool clusters = compiled.ptxVersion >= 90;
  shape.cluster = clusters ? ranks : 1;
  shape.pdl = pdl;
  if (!clusters && args.scratch == nullptr) return status::invalid_argument;
  return detail::launch(kernel, shape, stream, params);
}

template <int Width, int Tile>
status launch_prefill(const detail::prefill_attention_params& params, cudaStream_t stream,
                      bool pdl) noexcept {
  detail::launch_shape shape{};
  shape.grid = dim3(
      static_cast<unsigned>((params.m + detail::prefill_queries - 1) / detail::prefill_queries),
      static_cast<unsigned>(params.heads));
  shape.threads = detail::prefill_threads;
  shape.shared_bytes = detail::prefill_shared_bytes<Width, Tile>();
  shape.pdl = pdl;
  return detail::launch(detail::prefill_attention_kernel<Width, Tile>, shape, stream, params);
}

}  // namespace

std::size_t decode_attention_scratch_bytes(int m, int heads, int head_dim) noexcept {
  // Per group of query heads; a group is one head at least, and padded to 4 at most.
  const int width = head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
  const std::size_t each = detail::attention_parts * detail::attention_part_floats(4, width) + 4;
  return static_cast<std::size_t>(std::max(m, 0)) * static_cast<std::size_t>(std::max(heads, 0)) *
         each * sizeof(float);
}

status decode_attention(const decode_attention_args& given, cudaStream_t stream,
                        bool pdl) noexcept {
  decode_attention_args a = given;
  status s = check_cache(a.cache, a.layer, a.heads);
  if (s != status::ok) return s;
  const int d = a.cache.head_dim;
  if (a.q_stride == 0) a.q_stride = a.heads * d;
  if (a.kv_stride == 0) a.kv_stride = a.cache.kv_heads * d;
  if (a.m < 0 || a.m > 65535 || a.window < 0 || a.rope.pairs < 0 || 2 * a.rope.pairs > d)
    return status::invalid_argument;
  if (a.q_stride < a.heads * d || a.kv_stride < a.cache.kv_heads * d) return status::shape_mismatch;
  if (a.slots == nullptr && a.m > a.cache.slots) return status::shape_mismatch;
  if (a.m == 0) return status::ok;
  if (a.q == nullptr || a.k == nullptr || a.v == nullptr || a.positions == nullptr ||
      a.out == nullptr ||
      (a.rope.pairs > 0 && (a.rope.cosines == nullptr || a.rope.sines == nullptr)))
    return status::invalid_argument;
  const int heads = heads_at_once(a.heads / a.cache.kv_heads);
  if (d <= 64)
    return heads == 1 ? launch_decode<8, 1>(a, stream, pdl) : launch_decode<8, 2>(a, stream, pdl);
  if (d <= 128)
    return heads == 1 ? launch_decode<16, 1>(a, stream, pdl) : launch_decode<16, 2>(a, stream, pdl);
  return heads == 1 ? launch_decode<32, 1>(a, stream, pdl) : launch_decode<32, 2>(a, stream, pdl);
}

status prefill_attention(const __half* q, int m, int heads, const cache_view& cache, int layer,
                         int slot, int start, int window, float scale, __half* out,
                         cudaStream_t stream, bool pdl) noexcept {
  const status s = check_cache(cache, layer, heads);
  if (s != status::ok) return s;
  if (m < 0 || slot < 0 || slot >= cache.slots || start < 0 || window < 0 || heads > 65535)
    return status::invalid_argument;
  if (m > cache.capacity - start) return status::shape_mismatch;
  if (m == 0) return status::ok;
  if (q == nullptr || out == nullptr) return status::invalid_argument;
  if (!detail::aligned16(q) || !detail::aligned16(out)) return status::misaligned;
  const detail::prefill_attention_params params{q,     out,  cache, m,      heads,
                                                layer, slot, start, window, scale * 1.44269504f};
  if (cache.head_dim <= 64) return launch_prefill<64, 64>(params, stream, pdl);
  if (cache.head_dim <= 128) return launch_prefill<128, 64>(params, stream, pdl);
  return launch_prefill<256, 32>(params, stream, pdl);
}

}  // namespace card
}  // namespace llama
