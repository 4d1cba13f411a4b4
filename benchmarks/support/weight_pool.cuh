// SPDX-License-Identifier: MIT
// Random weights for all shapes and precisions out of one allocation: 8 planes of every matrix, as
// they would be stored, of which a product reads the top ones, and tables of the precision in use.
// As many matrices stand side by side as are needed to read more than any second-level cache holds
// before one comes round again.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include "cuda_check.cuh"
#include "llama_shapes.hpp"
#include "random_fill.cuh"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace bench {

class weight_pool {
 public:
  static constexpr int planes_stored = 8;
  static constexpr int fewest_bits = 2;
  /// More than four times the 60 MB of an H200.
  static constexpr std::size_t rotation_bytes = std::size_t{256} << 20;

  /// Matrices to go through when each call reads `bytes`; at least 2.
  static int rotation(std::size_t bytes) {
    return std::max(2, static_cast<int>((rotation_bytes + bytes - 1) / bytes));
  }

  explicit weight_pool(cudaStream_t stream) : stream_(stream) {}

  const std::uint32_t* planes() {
    make();
    return planes_.data();
  }
  std::size_t bytes() {
    make();
    return planes_.size() * sizeof(std::uint32_t);
  }

  /// Matrix `i` of the rotation. Tables are drawn anew when the precision changes, after what was
  /// queued before on the stream.
  bitladder::cuda::packed_view view(int rows, int cols, int bits, int i) {
    make();
    if (bits != bits_) {
      fill_tables(tables_.data(), tables_.size(), bits, 0.02f, static_cast<std::uint64_t>(bits),
                  stream_);
      check(cudaStreamSynchronize(stream_), "fill tables");
      bits_ = bits;
    }
    bitladder::cuda::packed_view w;
    w.layout = {rows, cols, planes_stored};
    w.bits = bits;
    w.planes = planes_.data() + static_cast<std::size_t>(i) * w.layout.total_words();
    w.tables = tables_.data() + static_cast<std::size_t>(i) * w.table_layout().total_entries();
    if (w.planes + w.layout.total_words() > planes_.data() + planes_.size() ||
        w.tables + w.table_layout().total_entries() > tables_.data() + tables_.size())
      throw std::out_of_range("the pool of weights is too small");
    return w;
  }

 private:
  void make() {
    if (planes_.size() > 0) return;
    std::size_t words = 0, entries = 0;
    for (const shape& s : llama_shapes)
      for (int bits = fewest_bits; bits <= planes_stored; ++bits) {
        bitladder::cuda::packed_view w;
        w.layout = {s.rows, s.cols, planes_stored};
        w.bits = bits;
        const auto copies = static_cast<std::size_t>(rotation(w.touched_bytes()));
        words = std::max(words, copies * w.layout.total_words());
        entries = std::max(entries, copies * w.table_layout().total_entries());
      }
    planes_.resize(words);
    tables_.resize(entries);
    fill_words(planes_.data(), words, 10, stream_);
    check(cudaStreamSynchronize(stream_), "fill planes");
  }

  cudaStream_t stream_;
  device_array<std::uint32_t> planes_;
  device_array<bitladder::fp16_t> tables_;
  int bits_ = 0;
};

}  // namespace bench
