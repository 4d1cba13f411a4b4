// SPDX-License-Identifier: MIT
// A matrix's outliers as kernels are handed them, and what a call says about having any. Tested by
// tests/kernels/cuda/outliers_test.cu.
#pragma once

#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/packed_outliers.hpp>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// As packed_outliers_view, all null if there are none.
struct outlier_source {
  const std::uint32_t* entries;
  const std::uint32_t* heads;
  const std::int32_t* offsets;
};

inline outlier_source source_of(const packed_outliers_view& o) noexcept {
  return o.empty() ? outlier_source{} : outlier_source{o.entries, o.heads, o.offsets};
}

inline bool has_outliers(const gemm_args& a) noexcept {
  for (int i = 0; i < a.count && i < gemm_args::max_matrices; ++i)
    if (!a.matrices[i].w.outliers.empty()) return true;
  return false;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
