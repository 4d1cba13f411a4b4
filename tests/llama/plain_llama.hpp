// SPDX-License-Identifier: MIT
// A Llama's mean next-token loss in plain loops and doubles, from nothing but config.json and the
// tensors: what gradients are checked against by moving one weight a little.
#pragma once

#include "model_folder.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <string>
#include <vector>

namespace support {

/// RMS norm before, silu, grouped heads, plain rope, no biases, head tied.
class plain_llama {
 public:
  using row = std::vector<double>;

  /// @param m of fp32 tensors
  explicit plain_llama(const stored_model& m) : config_(m.config) {
    for (const auto& [name, t] : m.tensors) {
      REQUIRE(t.type == bitladder::dtype::f32);
      std::vector<float> values(t.bytes.size() / sizeof(float));
      std::memcpy(values.data(), t.bytes.data(), t.bytes.size());
      tensors_[name] = row(values.begin(), values.end());
    }
  }

  double& weight(const std::string& tensor, std::size_t at) { return tensors_.at(tensor).at(at); }

  double loss(const std::vector<int>& ids) const {
    const auto size = [&](const char* key) { return config_[key].get<std::size_t>(); };
    const std::size_t hidden = size("hidden_size"), heads = size("num_attention_heads"),
                      group = heads / size("num_key_value_heads"), dim = hidden / heads;
    const double theta = config_["rope_parameters"]["rope_theta"];
    const row& table = tensors_.at("model.embed_tokens.weight");
    std::vector<row> x;
    for (int id : ids) {
      const auto first = table.begin() + static_cast<std::ptrdiff_t>(hidden) * id;
      x.emplace_back(first, first + static_cast<std::ptrdiff_t>(hidden));
    }
    for (std::size_t l = 0; l < size("num_hidden_layers"); ++l) {
      const std::string layer = "model.layers." + std::to_string(l) + ".";
      std::vector<row> q, k, v;
      for (std::size_t t = 0; t < x.size(); ++t) {
        const row n = norm(x[t], layer + "input_layernorm.weight");
        q.push_back(turned(times(layer + "self_attn.q_proj.weight", n), t, dim, theta));
        k.push_back(turned(times(layer + "self_attn.k_proj.weight", n), t, dim, theta));
        v.push_back(times(layer + "self_attn.v_proj.weight", n));
      }
      for (std::size_t t = 0; t < x.size(); ++t) {
        row seen(hidden);
        for (std::size_t h = 0; h < heads; ++h) {
          row p(t + 1);
          double sum = 0;
          for (std::size_t s = 0; s <= t; ++s) {
            double score = 0;
            for (std::size_t d = 0; d < dim; ++d)
              score += q[t][h * dim + d] * k[s][h / group * dim + d];
            sum += p[s] = std::exp(score / std::sqrt(static_cast<double>(dim)));
          }
          for (std::size_t s = 0; s <= t; ++s)
            for (std::size_t d = 0; d < dim; ++d)
              seen[h * dim + d] += p[s] / sum * v[s][h / group * dim + d];
        }
        add(times(layer + "self_attn.o_proj.weight", seen), x[t]);
        const row n = norm(x[t], layer + "post_attention_layernorm.weight");
        row gate = times(layer + "mlp.gate_proj.weight", n);
        const row up = times(layer + "mlp.up_proj.weight", n);
        for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
        add(times(layer + "mlp.down_proj.weight", gate), x[t]);
      }
    }
    double total = 0;
    for (std::size_t t = 0; t + 1 < x.size(); ++t) {
      const row logits = times("model.embed_tokens.weight", norm(x[t], "model.norm.weight"));
      double sum = 0;
      for (double l : logits) sum += std::exp(l);
      total += std::log(sum) - logits[static_cast<std::size_t>(ids[t + 1])];
    }
    return total / static_cast<double>(x.size() - 1);
  }

 private:
  row times(const std::string& tensor, const row& x) const {
    const row& w = tensors_.at(tensor);
    row y(w.size() / x.size());
    const double* at = w.data();
    for (double& sum : y)
      for (double e : x) sum += *at++ * e;
    return y;
  }
  row norm(const row& x, const std::string& tensor) const {
    double squares = 0;
    for (double e : x) squares += e * e;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) +
                                       config_["rms_norm_eps"].get<double>());
    row y = tensors_.at(tensor);
    for (std::size_t i = 0; i < x.size(); ++i) y[i] *= x[i] * scale;
    return y;
  }
  static row turned(row x, std::size_t position, std::size_t dim, double theta) {
    for (std::size_t h = 0; h < x.size(); h += dim)
      for (std::size_t i = 0; i < dim / 2; ++i) {
        const double angle =
            static_cast<double>(position) *
            std::pow(theta, -2 * static_cast<double>(i) / static_cast<double>(dim));
        const double a = x[h + i], b = x[h + i + dim / 2];
        x[h + i] = a * std::cos(angle) - b * std::sin(angle);
        x[h + i + dim / 2] = b * std::cos(angle) + a * std::sin(angle);
      }
    return x;
  }
  static void add(const row& x, row& y) {
    for (std::size_t i = 0; i < x.size(); ++i) y[i] += x[i];
  }

  nlohmann::json config_;
  std::map<std::string, row> tensors_;
};

}  // namespace support
