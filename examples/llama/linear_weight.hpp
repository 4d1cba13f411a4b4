// SPDX-License-Identifier: MIT
// The weight of one linear layer as it is stored: rows of floats, or bitplanes with one table per
// precision and maybe outliers. Views only; nothing is widened. Tested by
// tests/llama/weights_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/sparse_matrix.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace llama {

/// Rows of fp32, fp16 or bf16, aligned for their type.
struct dense_matrix {
  bitladder::dtype type = bitladder::dtype::f32;
  const void* data = nullptr;
  int rows = 0;
  int cols = 0;

  /// The rows as `T`, which must be what `type` says.
  template <class T>
  bitladder::matrix_view<const T> view() const {
    return {static_cast<const T*>(data), rows, cols};
  }
  std::size_t row_bytes() const {
    return static_cast<std::size_t>(cols) * bitladder::size_of(type);
  }
  std::size_t bytes() const { return static_cast<std::size_t>(rows) * row_bytes(); }
};

/// y = W x + bias, W [rows, cols].
struct linear_weight {
  int rows = 0;
  int cols = 0;
  dense_matrix dense;                             ///< used if there are no planes
  bitladder::bitplane_view planes;                ///< null if the weight is dense
  std::array<bitladder::codebook_view, 9> table;  ///< by precision; null where there is none
  bitladder::sparse_view outliers;                ///< beside the planes; empty if there are none
  std::vector<float> bias;                        ///< empty if there is none

  bool quantized() const { return planes.data() != nullptr; }
  bool has(int bits) const {
    return bits >= 1 && bits <= 8 && table[static_cast<std::size_t>(bits)].data() != nullptr;
  }
  /// What a matrix-vector product at `bits` reads: the top planes, that precision's table and the
  /// outliers, or the dense rows.
  std::size_t bytes(int bits) const {
    const std::size_t bias_bytes = bias.size() * sizeof(float);
    if (!quantized()) return dense.bytes() + bias_bytes;
    return planes.layout().total_words(bits) * sizeof(std::uint32_t) +
           table[static_cast<std::size_t>(bits)].size() * sizeof(bitladder::fp16_t) +
           outliers.bytes() + bias_bytes;
  }
};

}  // namespace llama
