// SPDX-License-Identifier: MIT
// Outliers in the bit-serial kernel: requested with the first planes of a
// batch, summed when its products are done, added to the results. Device code
// only. Tested by tests/kernels/cuda/outliers_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/outlier_runs.cuh>
#include <bitladder/kernels/cuda/detail/outlier_sums.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_units.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// What a batch keeps of its outliers in shared memory: [activations as they
/// are][sums of runs] [outlier_block].
/// @tparam Threads of a block; @tparam SliceCols columns that activations are
/// padded to
template <int Threads, int SliceCols>
struct bit_serial_outliers {
  static constexpr int slice_cols = SliceCols;
  /// Runs of a unit whose sums have room at once.
  static constexpr int unit_runs = 64;

  /// Of `units` and some runs that are there before the products.
  BL_HOST_DEVICE static constexpr int bytes(int slices, int units, int staged_runs) {
    return slices * slice_cols * 2 + outlier_block::head_bytes +
           units * (outlier_block::unit_bytes + unit_runs * 4) +
           staged_runs * outlier_stage::run_bytes;
  }

  const small_batch_units &units;
  unsigned char *const memory;
  const int slices, batch_units, staged_runs;

  __device__ __forceinline__ std::uint16_t *x() const {
    return reinterpret_cast<std::uint16_t *>(memory);
  }
  __device__ __forceinline__ outlier_block held() const {
    const int window = batch_units * unit_runs;
    auto *sums = reinterpret_cast<float *>(x() + slices * slice_cols);
    return {reinterpret_cast<unsigned char *>(sums + window), batch_units, staged_runs, sums,
            window};
  }

  /// 16 activations from `col` on.
  __device__ __forceinline__ void share_x(int col, const std::uint32_t (&v)[8]) const {
    const std::uint32_t to = shared_address(x() + col);
    store_shared_v4(to, v[0], v[1], v[2], v[3]);
    store_shared_v4(to + 16, v[4], v[5], v[6], v[7]);
  }
  __device__ __forceinline__ void fetch(const outlier_spans &spans, int begin, int end) const {
    fetch_outliers<Threads>(spans, units, begin, end, held());
  }
  /// After a barrier since fetch, before one to row_sum.
  __device__ __forceinline__ void sum(int begin, int end) const {
    sum_outlier_runs<Threads>(units.p, begin, end, held(), [this](int col) { return x()[col]; });
  }
  /// @param begin of the batch's units; @param i row of these
  __device__ __forceinline__ float row_sum(int begin, int i) const {
    return held().row_sum(units, begin, i);
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
