// SPDX-License-Identifier: MIT
// The launches of a forward pass on a card, in order: one token of each of some sequences, with
// everything that changes from step to step on the device so that the launches can be captured, or
// many tokens of one sequence. Follows forward.hpp. Tested by tests/llama/cuda/engine_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>

#include <llama/config.hpp>
#include <llama/cuda/device_linear.cuh>
#include <llama/cuda/device_model.cuh>
#include <llama/cuda/operations.cuh>
#include <llama/cuda/products.cuh>
#include <llama/cuda/resident_layers.cuh>
#include <llama/cuda/workspace.cuh>
#include <llama/family.hpp>

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cublas_v2.h>
#include <functional>
#include <initializer_list>
#include <string>
#include <utility>

namespace llama {
namespace card {

namespace detail {

template <class = void>
BL_KERNEL round_kernel(const float* x, __half* y, std::size_t count) {
  const std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) y[i] = __float2half_rn(x[i]);
}

}  // namespace detail

/// Queues the launches.
class layer_steps {
 public:
  layer_steps(const config& c, const device_model& weights, workspace& room, bool exact,
              cublasHandle_t blas, cudaStream_t stream)
      : config_(&c),
        weights_(&weights),
        room_(&room),
        exact_(exact),
        blas_(blas),
        stream_(stream) {}

  /// Lets the layers of a lone sequence's step, if it need not have the bits of a batch, go as one
  /// launch.
  void stay(const resident_layers& layers) { resident_ = &layers; }

  /// Queues only launches of this name; all if it is empty.
  void only(std::string name) { only_ = std::move(name); }
  /// Told the name of each launch before it is queued.
  void watch(std::function<void(const char*)> watcher) { watcher_ = std::move(watcher); }

  /// One token of each of `m` sequences, as the device's step_state says: logits, then the next
  /// tokens, positions and log.
  void step(int m, int bits) {
    m_ = m;
    bits_ = bits;
    step_ = true;
    step_state::parameters* const p = room_->state.data();
    const config& c = *config_;
    first_ = true;
    launch("embed", -1, [&] {
      return embed(weights_->embedding.data(), weights_->embedding.type(), c.vocabulary, p->tokens,
                   m, c.hidden, room_->x.data(), stream_, pdl());
    });
    if (!c.family->rotary()) add_learned(p->positions);
    layers();
    last_norm(room_->hidden.data());
    head(room_->hidden.data(), m);
    launch("argmax", -1, [&] {
      return argmax_advance(room_->logits.data(), 0, m, c.vocabulary, p->tokens, p->positions,
                            room_->log.data(), log_steps, p->counts, room_->argmax.data(), stream_,
                            pdl());
    });
  }

  /// `m` tokens of the sequence `slot` from position `start` on, which room.prompt holds. Their
  /// hidden states go to row `kept` and on.
  void prompt(int m, int slot, int start, int bits, int kept) {
    m_ = m;
    bits_ = bits;
    step_ = false;
    slot_ = slot;
    start_ = start;
    const config& c = *config_;
    first_ = true;
    launch("embed", -1, [&] {
      return embed(weights_->embedding.data(), weights_->embedding.type(), c.vocabulary,
                   room_->prompt.data(), m, c.hidden, room_->x.data(), stream_, pdl());
    });
    if (!c.family->rotary()) add_learned(room_->prompt.data() + room_->planned().rows);
    layers();
    last_norm(room_->normed.data());
    const std::size_t width = static_cast<std::size_t>(c.hidden);
    bitladder::check(bitladder::cuda::call_status(cudaMemcpyAsync(
                         room_->hidden.data() + static_cast<std::size_t>(kept) * width,
                         room_->normed.data(), static_cast<std::size_t>(m) * width * sizeof(__half),
                         cudaMemcpyDeviceToDevice, stream_)),
                     "the card: hidden states");
  }

  /// logits = head of `m` rows, at most max_batch of them, at the precision of the last call.
  void head(const __half* x, int m) {
    const int rows = m_;
    m_ = m;
    multiply("head", -1, {{&weights_->head, room_->logits.data()}}, x, bitladder::dtype::f32, false,
             false);
    m_ = rows;
  }

 private:
  struct target {
    const device_linear* w;
    void* y;
  };

  template <class F>
  void launch(const char* name, int layer, F&& queue) {
    if (!only_.empty() && only_ != name) return;
    if (watcher_) watcher_(name);
    const bitladder::status s = queue();
    if (s != bitladder::status::ok)
      throw bitladder::error(s, std::string("the card: ") + name +
                                    (layer < 0 ? "" : " of layer " + std::to_string(layer)) + ": " +
                                    bitladder::to_string(s));
    first_ = false;
  }
  /// What comes first follows a copy, not a kernel.
  bool pdl() const { return !first_; }

  void add_learned(const int* positions) {
    const config& c = *config_;
    launch("positions", -1, [&] {
      return add_positions(weights_->positions.data(), weights_->positions.type(),
                           weights_->positions.rows(), positions, c.family->position_offset, m_,
                           c.hidden, room_->x.data(), stream_, pdl());
    });
  }

  void normalize(const char* name, int layer, const device_norm& w, __half* y, float* y_float) {
    const config& c = *config_;
    launch(name, layer, [&] {
      return norm(c.family->norms, room_->x.data(), w.weight.data(), w.bias.data(), y, y_float, m_,
                  c.hidden, c.norm_epsilon, stream_, pdl());
    });
  }

  /// y = the stream, rounded.
  void round(int layer, __half* y) {
    const std::size_t count =
        static_cast<std::size_t>(m_) * static_cast<std::size_t>(config_->hidden);
    launch("round", layer, [&] {
      detail::round_kernel<><<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream_>>>(
          room_->x.data(), y, count);
      return bitladder::cuda::launch_status();
    });
  }

  void layers() {
    const config& c = *config_;
    if (step_ && m_ == 1 && !exact_ && resident_ != nullptr && resident_->has(bits_)) {
      launch("layers", -1, [&] { return resident_->launch(bits_, pdl(), stream_); });
      return;
    }
    for (int i = 0; i < c.layers; ++i) {
      const device_layer& l = weights_->layers[static_cast<std::size_t>(i)];
      switch (c.residual) {
        case residual_form::pre_norm:
          normalize("norm", i, l.attention_norm, room_->normed.data(), nullptr);
          attend(l, i);
          normalize("norm", i, l.mlp_norm, room_->normed.data(), nullptr);
          feed_forward(l, i);
          break;
        case residual_form::post_norm:
          if (i == 0) round(i, room_->normed.data());
          attend(l, i);
          normalize("norm", i, l.attention_norm, room_->normed.data(), room_->x.data());
          feed_forward(l, i);
          normalize("norm", i, l.mlp_norm, room_->normed.data(), room_->x.data());
          break;
        case residual_form::parallel:
          normalize("norm", i, l.attention_norm, room_->normed.data(), nullptr);
          attend(l, i);
          feed_forward(l, i);
          break;
      }
    }
  }

  void last_norm(__half* y) {
    if (config_->residual == residual_form::post_norm)
      round(-1, y);
    else
      normalize("norm", -1, weights_->norm, y, nullptr);
  }

  /// x += attention(normed)
  void attend(const device_layer& l, int layer) {
    const config& c = *config_;
    workspace& r = *room_;
    multiply("qkv", layer,
             {{&l.query, r.query.data()}, {&l.key, r.key.data()}, {&l.value, r.value.data()}},
             r.normed.data(), bitladder::dtype::f16, false, false);
    const float scale = 1.f / std::sqrt(static_cast<float>(c.head_dim));
    const int window = c.window_of(layer);
    if (step_) {
      decode_attention_args a;
      a.q = r.query.data();
      a.k = r.key.data();
      a.v = r.value.data();
      a.positions = r.state.data()->positions;
      a.slots = r.state.data()->slots;
      a.m = m_;
      a.heads = c.heads;
      a.rope = weights_->rope();
      a.cache = r.cache;
      a.layer = layer;
      a.window = window;
      a.scale = scale;
      a.out = r.attended.data();
      a.scratch = reinterpret_cast<float*>(r.attention.data());
      launch("attention", layer, [&] { return decode_attention(a, stream_, pdl()); });
    } else {
      launch("rope", layer, [&] {
        return rope_store(r.query.data(), r.key.data(), r.value.data(), c.query_width(),
                          c.kv_width(), m_, c.heads, weights_->rope(), r.cache, layer, slot_,
                          start_, r.query.data(), stream_, pdl());
      });
      launch("attention", layer, [&] {
        return prefill_attention(r.query.data(), m_, c.heads, r.cache, layer, slot_, start_, window,
                                 scale, r.attended.data(), stream_, pdl());
      });
    }
    multiply("o", layer, {{&l.output, r.x.data()}}, r.attended.data(), bitladder::dtype::f32, true,
             false);
  }

  /// x += mlp(normed)
  void feed_forward(const device_layer& l, int layer) {
    const config& c = *config_;
    workspace& r = *room_;
    __half* const gate = r.gate.data();
    __half* const up = r.up.data();
    if (!c.family->gated()) {
      multiply("up", layer, {{&l.up, up}}, r.normed.data(), bitladder::dtype::f16, false, false);
      launch("activate", layer, [&] {
        return activate(c.activation, up,
                        static_cast<std::size_t>(m_) * static_cast<std::size_t>(c.intermediate),
                        stream_, pdl());
      });
      multiply("down", layer, {{&l.down, r.x.data()}}, up, bitladder::dtype::f32, true, false);
      return;
    }
    if (!multiply("gate up", layer, {{&l.gate, gate}, {&l.up, up}}, r.normed.data(),
                  bitladder::dtype::f16, false, true))
      launch("silu", layer, [&] {
        return silu_multiply(gate, up, c.intermediate, m_, c.intermediate, gate, stream_, pdl());
      });
    multiply("down", layer, {{&l.down, r.x.data()}}, gate, bitladder::dtype::f32, true, false);
  }

  // ---------------------------------------------------------------------------------- products

  /// y = W x + bias (+ y) for linears that share x.
  /// @return whether silu(gate) * up was made of the two of them, as `swiglu` asked
  bool multiply(const char* name, int layer, std::initializer_list<target> targets, const __half* x,
                bitladder::dtype y_type, bool residual, bool swiglu) {
    const device_linear& first = *targets.begin()->w;
    const bool alike = std::all_of(targets.begin(), targets.end(), [&](const target& t) {
      return t.w->packed() == first.packed() &&
             (first.packed() || t.w->dense(bits_).type() == first.dense(bits_).type());
    });
    const bool few = m_ <= dense_few_args::max_m;
    if (alike && first.packed())
      return multiply_packed(name, layer, targets.begin(), static_cast<int>(targets.size()), x,
                             y_type, residual, swiglu);
    if (alike && few) {
      multiply_few(name, layer, targets.begin(), static_cast<int>(targets.size()), x, y_type,
                   residual, swiglu, 0, m_);
      return swiglu;
    }
    for (const target& t : targets) {
      if (t.w->packed())
        multiply_packed(name, layer, &t, 1, x, y_type, residual, false);
      else if (!few && t.w->dense(bits_).type() == bitladder::dtype::f16 && t.w->bias() == nullptr)
        multiply_blas(name, layer, t, x, y_type, residual);
      else
        for (int begin = 0; begin < m_; begin += dense_few_args::max_m)
          multiply_few(name, layer, &t, 1, x, y_type, residual, false, begin,
                       std::min(m_ - begin, dense_few_args::max_m));
    }
    return false;
  }

  /// @return whether it took in `swiglu`
  bool multiply_packed(const char* name, int layer, const target* targets, int count,
                       const __half* x, bitladder::dtype y_type, bool residual, bool swiglu) {
    bitladder::cuda::gemm_args a;
    a.count = count;
    for (int i = 0; i < count; ++i)
      a.matrices[i] = {targets[i].w->view(bits_), targets[i].y, targets[i].w->bias(),
                       residual ? targets[i].y : nullptr};
    a.x = x;
    a.m = m_;
    a.y_type = y_type;
    a.workspace = room_->products.data();
    a.workspace_bytes = room_->products.size();
    if (!step_ && m_ >= slab_product_tokens(bits_, a)) {
      // Sums of a SwiGLU would pass through memory as floats.
      launch(name, layer, [&] { return slab_product(bits_, a, blas_, stream_); });
      return false;
    }
    if (swiglu) a.epilogue = bitladder::cuda::gemm_epilogue::swiglu;
    a.batch_invariant = exact_;
    a.pdl = pdl();
    launch(name, layer, [&] { return product(bits_, a, stream_); });
    return swiglu;
  }

  /// Tokens begin .. begin + m - 1.
  void multiply_few(const char* name, int layer, const target* targets, int count, const __half* x,
                    bitladder::dtype y_type, bool residual, bool swiglu, int begin, int m) {
    dense_few_args a;
    a.count = count;
    for (int i = 0; i < count; ++i) {
      const device_linear& w = *targets[i].w;
      char* const y = static_cast<char*>(targets[i].y) + static_cast<std::size_t>(begin) *
                                                             static_cast<std::size_t>(w.rows()) *
                                                             bitladder::size_of(y_type);
      a.matrices[i] = {w.dense(bits_).data(), w.rows(), y, w.bias(), residual ? y : nullptr};
    }
    a.type = targets[0].w->dense(bits_).type();
    a.cols = targets[0].w->cols();
    a.x = x + static_cast<std::size_t>(begin) * static_cast<std::size_t>(a.cols);
    a.m = m;
    a.y_type = y_type;
    a.swiglu = swiglu;
    launch(name, layer, [&] { return dense_gemm_few(a, stream_, pdl()); });
  }

  void multiply_blas(const char* name, int layer, const target& t, const __half* x,
                     bitladder::dtype y_type, bool residual) {
    const float one = 1.f, beta = residual ? 1.f : 0.f;
    const int rows = t.w->rows(), cols = t.w->cols();
    launch(name, layer, [&] {
      // cuBLAS counts columns first: the weights are a [cols, rows] matrix to it, transposed.
      const cublasStatus_t s =
          cublasGemmEx(blas_, CUBLAS_OP_T, CUBLAS_OP_N, rows, m_, cols, &one,
                       t.w->dense(bits_).data(), CUDA_R_16F, cols, x, CUDA_R_16F, cols, &beta, t.y,
                       y_type == bitladder::dtype::f16 ? CUDA_R_16F : CUDA_R_32F, rows,
                       CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
      return s == CUBLAS_STATUS_SUCCESS ? bitladder::status::ok : bitladder::status::launch_failed;
    });
  }

  const config* config_;
  const device_model* weights_;
  workspace* room_;
  bool exact_;
  cublasHandle_t blas_;
  cudaStream_t stream_;
  const resident_layers* resident_ = nullptr;
  std::string only_;
  std::function<void(const char*)> watcher_;
  int m_ = 0, bits_ = 0, slot_ = 0, start_ = 0;
  bool step_ = true, first_ = true;
};

}  // namespace card
}  // namespace llama
