// SPDX-License-Identifier: MIT
// The memory of a card that steps write: activations, logits, the cache, scratch and what changes
// from step to step, all of it allocated once. Tested by tests/llama/cuda/engine_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>

#include <llama/config.hpp>
#include <llama/cuda/device_linear.cuh>
#include <llama/cuda/device_model.cuh>
#include <llama/cuda/operations.cuh>
#include <llama/cuda/products.cuh>
#include <llama/cuda_engine.hpp>
#include <llama/cuda_matrix.cuh>
#include <llama/model.hpp>

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <climits>
#include <cstddef>
#include <initializer_list>

namespace llama {
namespace card {

/// How many tokens go through at once: so many that a slab of dequantized rows serves them well,
/// for 100 KB each of a 7B's activations.
constexpr int prompt_chunk = 2048;
/// Hidden states of a prompt that are kept for logits.
constexpr int most_kept = 4096;
/// Greedy steps between two looks at the log.
constexpr int log_steps = 1024;

/// What the steps of a batch read and write on the device. `uploaded` is what the host sets.
struct step_state {
  struct parameters {
    int tokens[card_engine::max_batch];
    int positions[card_engine::max_batch];
    int slots[card_engine::max_batch];
    int counts[card_engine::max_batch];  ///< of tokens in the log
  };
};

/// Room to work in, allocated once.
class workspace {
 public:
  struct sizes {
    int rows = 0;  ///< tokens at once
    int kept = 0;  ///< hidden states
    std::size_t products = 0, blas = 0;
    cache_view cache;
  };

  static sizes plan(const model& m, const bits_range& bits, int batch, int capacity) {
    const config& c = m.config();
    sizes s;
    s.rows = std::max(card_engine::max_batch, std::min(prompt_chunk, capacity));
    s.kept = std::max(card_engine::max_batch, std::min(most_kept, capacity));
    s.cache = {nullptr, c.layers, batch, c.kv_heads, capacity, c.head_dim};
    bool blas = false;
    const auto need = [&](std::initializer_list<linear_rows> rows, bool swiglu, int at_once) {
      bitladder::cuda::gemm_args args;
      args.count = 0;
      for (const linear_rows& r : rows) {
        if (r.w->rows == 0) continue;
        if (!r.w->quantized() && r.w->dense.type != bitladder::dtype::f32) blas = true;
        if (!r.packable(bits)) {
          blas = blas || r.w->quantized();
          continue;
        }
        bitladder::cuda::gemm_matrix& matrix = args.matrices[args.count++];
        matrix.w.layout = {r.rows, r.w->cols, r.w->planes.planes()};
        matrix.w.outliers.runs = static_cast<int>(detail::outlier_runs(r, r.groups(bits.most)));
        if (!r.w->bias.empty()) matrix.bias = r.w->bias.data();
      }
      if (args.count == 0) return;
      // Up to how many tokens `product` is asked, and from where `slab_product` is.
      int most = 0, least_slab = INT_MAX;
      for (int b = bits.least; b <= bits.most; ++b) {
        const int tokens = slab_product_tokens(b, args);
        most = std::max(most, std::min(at_once, tokens));
        least_slab = std::min(least_slab, tokens);
      }
      if (at_once >= least_slab) {
        blas = true;
        args.m = at_once;
        s.products = std::max(s.products, slab_product_workspace_bytes(args));
      }
      if (swiglu && args.count == 2) args.epilogue = bitladder::cuda::gemm_epilogue::swiglu;
      for (bool exact : {false, true})
        for (int rows_at_once : {1, 8, 16, most}) {
          args.m = rows_at_once;
          args.batch_invariant = exact;
          s.products = std::max(s.products, product_workspace_bytes(args));
        }
    };
    for (const auto& l : m.weights().layers) {
      const layer_rows r(c, l);
      need({r.query, r.key, r.value}, false, s.rows);
      need({r.output}, false, s.rows);
      need({r.gate, r.up}, true, s.rows);
      for (const linear_rows& one : {r.query, r.key, r.value, r.gate, r.up, r.down})
        need({one}, false, s.rows);
    }
    if (blas) s.blas = std::size_t{32} << 20;
    need({m.weights().head}, false, card_engine::max_batch);  // without cuBLAS
    return s;
  }

  static std::size_t bytes(const config& c, const sizes& s) {
    std::size_t sum = s.products + s.blas;
    for_each_buffer(c, s, [&](std::size_t count, std::size_t size) { sum += count * size; });
    return sum;
  }

  void allocate(const config& c, const sizes& s, cudaStream_t stream) {
    sizes_ = s;
    const auto rows = static_cast<std::size_t>(s.rows);
    reserve(x, rows * width(c.hidden));
    reserve(normed, rows * width(c.hidden));
    reserve(query, rows * width(c.query_width()));
    reserve(key, rows * width(c.kv_width()));
    reserve(value, rows * width(c.kv_width()));
    reserve(attended, rows * width(c.query_width()));
    reserve(gate, rows * width(c.intermediate));
    reserve(up, rows * width(c.intermediate));
    reserve(hidden, static_cast<std::size_t>(s.kept) * width(c.hidden));
    reserve(part, card_engine::max_batch * width(c.hidden));
    reserve(logits, card_engine::max_batch * width(c.vocabulary));
    reserve(state, 1);
    reserve(prompt, rows * 2);
    reserve(log, static_cast<std::size_t>(card_engine::max_batch) * log_steps);
    reserve(attention,
            decode_attention_scratch_bytes(card_engine::max_batch, c.heads, c.head_dim) + 16);
    reserve(argmax, argmax_scratch_bytes(card_engine::max_batch));
    reserve(products, s.products);
    reserve(blas, s.blas);
    reserve(cache_memory, s.cache.size());
    cache = s.cache;
    cache.data = cache_memory.data();
    bitladder::check(attention.clear(stream));
    bitladder::check(argmax.clear(stream));
    bitladder::check(state.clear(stream));
    bitladder::check(log.clear(stream));  // read whole, and written as far as steps go
    bitladder::check(cache_memory.clear(stream));
    // The sanitizer's initcheck takes what cuBLAS writes on an H200 for unwritten.
    for (auto* written_by_blas : {&query, &key, &value, &gate, &up})
      bitladder::check(written_by_blas->clear(stream));
    bitladder::check(products.clear(stream));
  }

  const sizes& planned() const { return sizes_; }

  bitladder::cuda::buffer<float> x, logits;
  bitladder::cuda::buffer<__half> normed, query, key, value, attended, gate, up, hidden, part;
  bitladder::cuda::buffer<step_state::parameters> state;
  bitladder::cuda::buffer<int> prompt, log;  ///< prompt: tokens, then positions
  bitladder::cuda::buffer<std::byte> attention, argmax, products, blas;
  bitladder::cuda::buffer<__half> cache_memory;
  cache_view cache;

 private:
  static std::size_t width(int n) { return static_cast<std::size_t>(n); }

  template <class F>
  static void for_each_buffer(const config& c, const sizes& s, F&& f) {
    const auto rows = static_cast<std::size_t>(s.rows);
    constexpr std::size_t batch = card_engine::max_batch;
    f(rows * width(c.hidden), sizeof(float) + sizeof(__half));
    f(rows * (2 * width(c.query_width()) + 2 * width(c.kv_width()) + 2 * width(c.intermediate)),
      sizeof(__half));
    f((static_cast<std::size_t>(s.kept) + batch) * width(c.hidden), sizeof(__half));
    f(batch * width(c.vocabulary), sizeof(float));
    f(1, sizeof(step_state::parameters));
    f(rows * 2 + batch * log_steps, sizeof(int));
    f(decode_attention_scratch_bytes(card_engine::max_batch, c.heads, c.head_dim) + 16 +
          argmax_scratch_bytes(card_engine::max_batch),
      1);
  }

  sizes sizes_;
};

}  // namespace card
}  // namespace llama
