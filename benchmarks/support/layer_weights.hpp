// SPDX-License-Identifier: MIT
// Random weights and sensitivities in the shapes of one layer of Llama-2-7B: four matrices of 4096
// x 4096, two of 11008 x 4096 and one of 4096 x 11008, 202 million weights. Weights follow
// Student's t with 4 degrees of freedom, sensitivities chi-squared with 1.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/quantize/sensitivity.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace bench {

struct layer_shape {
  int rows, cols;
};

constexpr layer_shape layer_shapes[] = {{4096, 4096},  {4096, 4096},  {4096, 4096}, {4096, 4096},
                                        {11008, 4096}, {11008, 4096}, {4096, 11008}};

/// Numbers of one row, the same whichever thread makes them.
class row_random {
 public:
  explicit row_random(std::uint64_t row) : state_(row << 32) {}
  double normal() {
    const double radius = std::sqrt(-2 * std::log(uniform()));
    return radius * std::cos(6.283185307179586 * uniform());
  }
  double student_t() {  // chi-squared of 4 is twice the sum of two exponentials
    return normal() / std::sqrt(-0.5 * std::log(uniform() * uniform()));
  }

 private:
  double uniform() {  // (0, 1], splitmix64
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<double>(((z ^ z >> 31) >> 11) + 1) * 0x1p-53;
  }

  std::uint64_t state_;
};

inline float as(float, double x) { return static_cast<float>(x); }
inline bitladder::fp16_t as(bitladder::fp16_t, double x) {
  return bitladder::to_fp16(static_cast<float>(x));
}
inline bitladder::bf16_t as(bitladder::bf16_t, double x) {
  return bitladder::to_bf16(static_cast<float>(x));
}

template <class Value>
struct layer_matrix {
  int rows, cols;
  std::vector<Value> weights;
  std::vector<float> sensitivities;

  bitladder::matrix_view<const Value> values() const { return {weights.data(), rows, cols}; }
  bitladder::sensitivity sens() const {
    return bitladder::sensitivity::from_values({sensitivities.data(), rows, cols});
  }
};

template <class Value>
/// @param part of how many equal parts of the rows one is made
std::vector<layer_matrix<Value>> make_layer(int part) {
  std::vector<layer_matrix<Value>> layer;
  bitladder::thread_pool pool;
  std::uint64_t first_row = 1;
  for (const layer_shape& s : layer_shapes) {
    layer_matrix<Value> m{s.rows / part, s.cols, {}, {}};
    const std::size_t cols = static_cast<std::size_t>(m.cols);
    m.weights.resize(static_cast<std::size_t>(m.rows) * cols);
    m.sensitivities.resize(m.weights.size());
    pool.run(m.rows, 8, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        row_random random(first_row + static_cast<std::uint64_t>(r));
        for (std::size_t i = static_cast<std::size_t>(r) * cols;
             i < static_cast<std::size_t>(r + 1) * cols; ++i) {
          m.weights[i] = as(Value{}, 0.02 * random.student_t());
          const double n = random.normal();
          m.sensitivities[i] = static_cast<float>(n * n);
        }
      }
    });
    first_row += static_cast<std::uint64_t>(m.rows);
    layer.push_back(std::move(m));
  }
  return layer;
}

}  // namespace bench
