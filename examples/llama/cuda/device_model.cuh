// SPDX-License-Identifier: MIT
// All weights of a model on a card, resident once, and how much memory they take. Tested by
// tests/llama/cuda/engine_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/cuda/runtime.cuh>

#include <llama/config.hpp>
#include <llama/cuda/device_linear.cuh>
#include <llama/cuda/operations.cuh>
#include <llama/cuda_engine.hpp>
#include <llama/cuda_matrix.cuh>
#include <llama/family.hpp>
#include <llama/model.hpp>
#include <llama/rope.hpp>
#include <llama/weights.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace llama {
namespace card {

/// A layer's linears by rows of the host's, whichever way the family keeps them.
struct layer_rows {
  linear_rows query, key, value, output, gate, up, down;

  layer_rows(const config& c, const layer_weights<linear_weight, std::vector<float>>& l)
      : query(l.query),
        key(l.key),
        value(l.value),
        output(l.output),
        gate(l.gate),
        up(l.up),
        down(l.down) {
    if (!c.family->layer.query_key_value.empty()) {
      query = {l.query_key_value, 0, c.query_width()};
      key = {l.query_key_value, c.query_width(), c.kv_width()};
      value = {l.query_key_value, c.query_width() + c.kv_width(), c.kv_width()};
    }
    if (!c.family->layer.gate_up.empty()) {
      gate = {l.gate_up, 0, c.intermediate};
      up = {l.gate_up, c.intermediate, c.intermediate};
    }
  }

  template <class F>
  void for_each(F&& f) const {
    for (const linear_rows* r : {&query, &key, &value, &output, &gate, &up, &down}) f(*r);
  }
};

struct device_norm {
  bitladder::cuda::buffer<float> weight, bias;

  static std::size_t predict(const norm_weights<std::vector<float>>& n) {
    return (n.weight.size() + n.bias.size()) * sizeof(float);
  }
  void upload(const norm_weights<std::vector<float>>& n, cudaStream_t stream) {
    reserve(weight, n.weight.size());
    bitladder::check(weight.upload(n.weight.data(), n.weight.size(), stream));
    reserve(bias, n.bias.size());
    bitladder::check(bias.upload(n.bias.data(), n.bias.size(), stream));
  }
};

struct device_layer {
  device_norm attention_norm, mlp_norm;
  device_linear query, key, value, output, gate, up, down;
};

/// @throws bitladder::error naming what of the family does not run on a card yet
inline void check_runs_here(const model& m) {
  const config& c = m.config();
  if (c.embedding_width() != c.hidden)
    throw bitladder::error(
        bitladder::status::unsupported_device,
        m.folder().string() + ": a model of the family \"" + std::string(c.family->model_type) +
            "\" whose embedding is not as wide as its layers is not run on a "
            "card yet; expected " +
            std::to_string(c.hidden) + " columns, found " + std::to_string(c.embedding_width()));
}

/// Everything that a step reads and does not change.
class device_model {
 public:
  /// Planes, tables, outliers and the rest.
  static card_memory predict(const model& m, const bits_range& bits, int capacity) {
    card_memory use;
    const config& c = m.config();
    const host_weights& w = m.weights();
    use.rest += w.embedding.bytes() + w.positions.bytes() + device_norm::predict(w.norm);
    for (const auto& l : w.layers) {
      use.rest += device_norm::predict(l.attention_norm) + device_norm::predict(l.mlp_norm);
      layer_rows(c, l).for_each(
          [&](const linear_rows& r) { device_linear::predict(r, bits, use); });
    }
    if (!shares_head(w))
      device_linear::predict(w.head, bits, use);
    else
      use.rest += w.head.bias.size() * sizeof(float);
    if (c.family->rotary()) use.rest += 2 * angles(c, capacity) * sizeof(float);
    return use;
  }

  void upload(const model& m, const bits_range& bits, int capacity, cudaStream_t stream,
              const std::function<void(std::size_t, std::size_t)>& progress) {
    const config& c = m.config();
    const host_weights& w = m.weights();
    const card_memory all = predict(m, bits, capacity);
    card_memory done;
    const auto told = [&] {
      if (progress)
        progress(done.planes + done.tables + done.outliers + done.rest,
                 all.planes + all.tables + all.outliers + all.rest);
    };
    embedding.upload(w.embedding, 0, w.embedding.rows, false, stream);
    done.rest += w.embedding.bytes();
    if (w.positions.rows > 0) positions.upload(w.positions, 0, w.positions.rows, false, stream);
    norm.upload(w.norm, stream);
    told();
    const auto put = [&](device_linear& to, const linear_rows& r, bitladder::dtype y_type) {
      to.upload(r, bits, y_type, stream);
      device_linear::predict(r, bits, done);
      told();
    };
    constexpr auto f16 = bitladder::dtype::f16, f32 = bitladder::dtype::f32;
    layers.resize(w.layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const layer_rows from(c, w.layers[i]);
      device_layer& to = layers[i];
      to.attention_norm.upload(w.layers[i].attention_norm, stream);
      to.mlp_norm.upload(w.layers[i].mlp_norm, stream);
      put(to.query, from.query, f16);
      put(to.key, from.key, f16);
      put(to.value, from.value, f16);
      put(to.output, from.output, f32);
      put(to.gate, from.gate, f16);
      put(to.up, from.up, f16);
      put(to.down, from.down, f32);
    }
    if (shares_head(w))
      head.share(embedding, w.head.bias, stream);
    else
      put(head, w.head, f32);
    if (c.family->rotary()) upload_angles(c, capacity, stream);
    bitladder::check(bitladder::cuda::call_status(cudaStreamSynchronize(stream)));
  }

  rope_view rope() const { return {cosines.data(), sines.data(), pairs}; }

  device_matrix embedding, positions;
  std::vector<device_layer> layers;
  device_norm norm;
  device_linear head;
  bitladder::cuda::buffer<float> cosines, sines;  // [capacity, pairs]
  int pairs = 0;

 private:
  static bool shares_head(const host_weights& w) { return w.head.dense.data == w.embedding.data; }
  static std::size_t angles(const config& c, int capacity) {
    return static_cast<std::size_t>(capacity) * static_cast<std::size_t>(c.rotary_width() / 2);
  }

  void upload_angles(const config& c, int capacity, cudaStream_t stream) {
    rope_table table(c);
    table.reserve(capacity);
    pairs = table.pairs();
    reserve(cosines, angles(c, capacity));
    reserve(sines, angles(c, capacity));
    bitladder::check(cosines.upload(table.cosines(0), cosines.size(), stream));
    bitladder::check(sines.upload(table.sines(0), sines.size(), stream));
    // The table goes with this scope.
    bitladder::check(bitladder::cuda::call_status(cudaStreamSynchronize(stream)));
  }
};

}  // namespace card
}  // namespace llama
