// SPDX-License-Identifier: MIT
// What a product should have been: sums in double over the packed words, tables and outliers, read
// back from the device, with none of the kernels' code.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include "cuda_check.cuh"

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bench {
namespace detail {

template <class T>
std::vector<T> fetch(const T* device, std::size_t count) {
  std::vector<T> host(count);
  check(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost), "download");
  return host;
}

}  // namespace detail

/// How far y is from what it should be, beyond its own rounding to fp16, relative to |x| times the
/// row's rms weight: the largest over up to three tokens and four rows at both ends of the matrix;
/// NaN if one is.
/// @param x [m, cols]
/// @param y [m, rows]
inline double largest_error(const bitladder::cuda::packed_view& w, const bitladder::fp16_t* x,
                            const bitladder::fp16_t* y, int m) {
  using bitladder::to_float;
  const bitladder::cuda::packed_layout& l = w.layout;
  const bitladder::cuda::packed_table_layout tables = w.table_layout();
  const auto cols = static_cast<std::size_t>(l.cols);
  double largest = 0;
  for (const int tile : {0, l.row_tiles() - 1}) {
    const auto words = detail::fetch(w.planes + l.word(tile, 0, 0, 0, 0), l.row_tile_stride());
    const auto table = detail::fetch(w.tables + tables.entry(tile, 0, 0, 0),
                                     static_cast<std::size_t>(tables.tile_entries()));
    for (const int row : {3, (l.rows - 1) % 16}) {
      std::vector<double> weight(cols);
      double square = 0;
      for (int col = 0; col < l.cols; ++col) {
        // Lane 4 g + t holds in word 2 h + s row g + 8 s and columns 128 h + 32 t.
        const int lane = row % 8 * 4 + col % 128 / 32, part = col % 256 / 128 * 2 + row / 8;
        int field = 0;
        for (int j = 0; j < w.bits; ++j) {
          const std::uint32_t word = words[l.word(0, j, col / 256, lane, part)];
          field |= static_cast<int>(word >> bitladder::cuda::packed_layout::bit(j, col % 32) & 1u)
                   << j;
        }
        const double v = to_float(table[tables.entry(0, 0, field, row)]);
        weight[static_cast<std::size_t>(col)] = v;
      }
      // Random planes have other codes in the outliers' places: what is added is the difference to
      // what a run says that it replaces.
      if (!w.outliers.empty()) {
        const auto runs = detail::fetch(w.outliers.offsets + tile * 16 + row, 2);
        for (int i = runs[0]; i < runs[1]; ++i) {
          const std::uint32_t head = detail::fetch(w.outliers.heads + i, 1)[0];
          const auto entry =
              detail::fetch(w.outliers.entries + 32 * static_cast<std::size_t>(i), 32);
          const auto value = [](std::uint32_t word) {
            return to_float(bitladder::fp16_t{static_cast<std::uint16_t>(word >> 16)});
          };
          for (std::uint32_t k = 0; k <= (head & 31u); ++k)
            weight[(head >> 5 & 2047u) * 65536u + (entry[k] & 0xffffu)] +=
                value(entry[k]) - value(head);
        }
      }
      for (const double v : weight) square += v * v;
      for (const int token : {0, m / 2, m - 1}) {
        const auto in = detail::fetch(x + static_cast<std::size_t>(token) * cols, cols);
        const std::size_t at = static_cast<std::size_t>(token) * static_cast<std::size_t>(l.rows) +
                               static_cast<std::size_t>(tile * 16 + row);
        double sum = 0, norm = 0;
        for (std::size_t col = 0; col < cols; ++col) {
          const double v = to_float(in[col]);
          sum += v * weight[col];
          norm += v * v;
        }
        const double scale = std::sqrt(norm * square / l.cols);
        const double off = std::abs(to_float(detail::fetch(y + at, 1)[0]) - sum);
        const double error = (off - std::abs(sum) * 0x1p-11) / scale;
        if (std::isnan(error)) return error;
        largest = std::fmax(largest, error);
      }
    }
  }
  return largest;
}

}  // namespace bench
