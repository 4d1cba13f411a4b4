// SPDX-License-Identifier: MIT
// Random outliers for one matrix shape at a time, as often as its weights rotate: 0.45% of all
// weights, evenly, or half of them in every hundredth row.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/kernels/cuda/packed_outliers.hpp>

#include "cuda_check.cuh"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace bench {

enum class outlier_kind { none, even, crowded };

class outlier_pool {
 public:
  static constexpr double share = 0.0045;

  /// Makes `copies` of such a matrix, unless that is what it has.
  void prepare(int rows, int cols, outlier_kind kind, int copies) {
    if (rows == rows_ && cols == cols_ && kind == kind_ && copies <= copies_) return;
    const bitladder::cuda::packed_outliers p = make(rows, cols, kind);
    runs_ = static_cast<int>(p.heads[0].size());
    entry_words_ = p.entries.size(), head_words_ = p.heads[0].size();
    offset_words_ = p.offsets.size();
    entries_.resize(entry_words_ * static_cast<std::size_t>(copies));
    heads_.resize(head_words_ * static_cast<std::size_t>(copies));
    offsets_.resize(offset_words_ * static_cast<std::size_t>(copies));
    for (std::size_t i = 0; i < static_cast<std::size_t>(copies); ++i) {
      copy(entries_.data() + i * entry_words_, p.entries);
      copy(heads_.data() + i * head_words_, p.heads[0]);
      copy(offsets_.data() + i * offset_words_, p.offsets);
    }
    rows_ = rows, cols_ = cols, kind_ = kind, copies_ = copies;
  }

  bitladder::cuda::packed_outliers_view view(int i) {
    const auto at = static_cast<std::size_t>(i % copies_);
    return {entries_.data() + at * entry_words_, heads_.data() + at * head_words_,
            offsets_.data() + at * offset_words_, runs_};
  }

 private:
  template <class T>
  static void copy(T* to, const std::vector<T>& from) {
    check(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "outliers");
  }

  static bitladder::cuda::packed_outliers make(int rows, int cols, outlier_kind kind) {
    std::mt19937 engine(7);
    std::vector<std::int32_t> offsets = {0}, columns;
    std::vector<bitladder::fp16_t> values;
    for (int r = 0; r < rows; ++r) {
      const double here = kind == outlier_kind::even ? share
                          : r % 100 == 0             ? 50 * share
                                                     : share / 2;
      std::geometric_distribution<int> gap(here);
      for (int c = gap(engine); c < cols; c += 1 + gap(engine)) {
        columns.push_back(c);
        values.push_back(bitladder::to_fp16(static_cast<float>(engine() % 2001) * 1e-4f - 0.1f));
      }
      offsets.push_back(static_cast<std::int32_t>(columns.size()));
    }
    // What they replace is any number, here that of code 0 at one bit.
    const bitladder::bitplane_tensor planes(bitladder::bitplane_layout{rows, cols, 1});
    bitladder::codebook_ladder tables(rows, 1, 1, 1);
    for (std::size_t i = 0; i < tables[1].size(); ++i)
      tables.data(1)[i] = bitladder::to_fp16(static_cast<float>(i % 64) * 1e-3f - 0.03f);
    return bitladder::cuda::pack_outliers(
        bitladder::sparse_matrix(rows, cols, offsets, columns, values).view(), planes.view(),
        tables);
  }

  int rows_ = 0, cols_ = 0, copies_ = 0, runs_ = 0;
  outlier_kind kind_ = outlier_kind::none;
  std::size_t entry_words_ = 0, head_words_ = 0, offset_words_ = 0;
  device_array<std::uint32_t> entries_, heads_;
  device_array<std::int32_t> offsets_;
};

}  // namespace bench
