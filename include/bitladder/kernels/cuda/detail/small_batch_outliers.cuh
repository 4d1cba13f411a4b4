// SPDX-License-Identifier: MIT
// Outliers in the kernel for up to 16 tokens: requested with the first planes,
// summed before the first products, left where small_batch_sums adds them.
// Device code only. Tested by tests/kernels/cuda/outliers_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/outlier_runs.cuh>
#include <bitladder/kernels/cuda/detail/outlier_sums.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// @tparam Shape small_batch, for its sizes and its places in shared memory
template <class Shape>
struct small_batch_outliers {
  static constexpr int tokens = Shape::tokens;
  static constexpr int threads = Shape::threads;
  /// Sums that fit where the warps' shares are going to be.
  static constexpr int window = (Shape::scale_offset - Shape::partial_offset) / 4;

  const Shape &block;
  const int begin, end;  ///< units of the block
  const bool here;       ///< else nothing is done
  outlier_spans spans;

  __device__ __forceinline__ small_batch_outliers(const Shape &of, int first, int last,
                                                  bool outliers)
      : block(of), begin(first), end(last), here(outliers), spans(of.p) {}

  __device__ __forceinline__ float *window_sums() const {
    return reinterpret_cast<float *>(block.shared + Shape::partial_offset);
  }
  /// One token's.
  __device__ __forceinline__ outlier_block held() const {
    return {block.shared + block.p.outlier_offset, block.p.outlier_units, block.p.outlier_staged,
            window_sums(), window};
  }

  /// Where small_batch_x::share puts a column of its token, which is as it was
  /// unless bfloat16.
  __device__ __forceinline__ static int shared_column(int col) {
    return col / 128 * 128 + col % 4 * 32 + col / 32 % 4 * 8 + col / 8 % 4 * 2 + col / 4 % 2;
  }

  /// First of all.
  __device__ __forceinline__ void find() {
    if constexpr (Shape::outliers_come && tokens == 1)
      if (here) spans.find(begin, end);
  }
  /// After the first planes were requested.
  __device__ __forceinline__ void fetch() const {
    if constexpr (Shape::outliers_come && tokens == 1)
      if (here) fetch_outliers<threads>(spans, block, begin, end, held());
  }
  /// Several tokens': before activations are in registers. Waits for the kernel
  /// before.
  __device__ __forceinline__ void sum_all() const {
    if constexpr (Shape::outliers_come && tokens > 1)
      if (here) sum_outliers<tokens, threads>(block.p, begin, end, window_sums(), window / tokens);
  }
  /// One token's: when activations were shared. A barrier comes after.
  __device__ __forceinline__ void sum_shared() const {
    if constexpr (Shape::outliers_come && tokens == 1) {
      if (!here) return;
      const outlier_block from = held();
      const small_batch_params &p = block.p;
      copy_async_wait_all();
      __syncthreads();
      if (p.chunks == 1 && !p.x_is_bf16)
        sum_outlier_runs<threads>(p, begin, end, from, [this](int col) {
          const unsigned char *x = block.shared + Shape::x_offset;
          return reinterpret_cast<const std::uint16_t *>(x)[shared_column(col)];
        });
      else
        sum_outlier_runs<threads>(p, begin, end, from, [&p](int col) {
          return static_cast<const std::uint16_t *>(p.x)[col];
        });
      __syncthreads();
      const int rows = (end - begin) * packed_layout::tile_rows;
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < rows; i += threads)
        from.row_sums[i] = from.row_sum(block, begin, i);
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
