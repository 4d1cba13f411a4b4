// SPDX-License-Identifier: MIT
// Outliers (packed_outliers.hpp) of up to 16 tokens: eight lanes take a run, four outliers each.
// The order of summation: a lane adds its four in order, the lanes are a tree of halves, and the
// runs of a row are added in order from zero. It is the same in every kernel for up to 16 tokens.
// Device code only. Tested by tests/kernels/cuda/outliers_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_units.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <cuda_fp16.h>

#include <climits>
#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// A lane's share of a run.
struct outlier_share {
  uint4 entry;
  std::uint32_t head;
  bool here;  ///< else nothing of it counts
};

__device__ __forceinline__ int outlier_count(std::uint32_t head) {
  return static_cast<int>(head & 31u) + 1;
}
__device__ __forceinline__ int outlier_first_col(std::uint32_t head) {
  return static_cast<int>(head >> 5 & 2047u) * packed_outliers_view::span_cols;
}
/// An entry's value, or a head's.
__device__ __forceinline__ float outlier_value(std::uint32_t word) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
}

/// @param lane of the run's eight
__device__ __forceinline__ outlier_share load_outliers(const outlier_source& from, int run,
                                                       int lane) {
  return {__ldg(reinterpret_cast<const uint4*>(from.entries) + static_cast<std::size_t>(run) * 8 +
                lane),
          __ldg(from.heads + run), true};
}

__device__ __forceinline__ float activation(std::uint16_t bits, bool is_bf16) {
  return is_bf16 ? __uint_as_float(static_cast<std::uint32_t>(bits) << 16)
                 : __half2float(__ushort_as_half(bits));
}

/// The sum of a lane's share, to be added over the run's lanes.
/// @param x_at the stored activation of a column
/// @param lane of the run's eight
template <class XAt>
__device__ __forceinline__ float multiply_outliers(const outlier_share& s, XAt&& x_at, bool is_bf16,
                                                   int lane) {
  const std::uint32_t entry[4] = {s.entry.x, s.entry.y, s.entry.z, s.entry.w};
  const int count = s.here ? outlier_count(s.head) - 4 * lane : 0;
  const int first_col = outlier_first_col(s.head);
  const float base = outlier_value(s.head);
  std::uint16_t bits[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    bits[i] = i < count ? x_at(first_col + static_cast<int>(entry[i] & 0xffffu)) : 0;
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < count) sum = fmaf(outlier_value(entry[i]) - base, activation(bits[i], is_bf16), sum);
  return sum;
}

/// Over the eight lanes of a run, for all of them. By whole warps.
__device__ __forceinline__ float add_outlier_lanes(float sum) {
#pragma unroll
  for (int by = 4; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
  return sum;
}

/// The runs of a block's units, numbered from 0 over all its matrices.
struct outlier_spans {
  const small_batch_params& p;
  int before[small_batch_params::max_matrices];  ///< runs of the matrices before
  int shift[small_batch_params::max_matrices];   ///< from such a number to a run of the matrix
  int total;

  __device__ __forceinline__ explicit outlier_spans(const small_batch_params& params) : p(params) {}

  __device__ __forceinline__ void find(int begin, int end) {
    total = 0;
#pragma unroll
    for (int i = 0; i < small_batch_params::max_matrices; ++i) {
      before[i] = INT_MAX, shift[i] = 0;
      if (i >= p.count) continue;
      before[i] = total;
      const auto& m = p.matrices[i];
      if (m.outliers.offsets == nullptr) continue;
      int from = begin / 2, to = end / 2;
      if (p.paired == 0) {
        from = max(begin, m.first_unit) - m.first_unit;
        to = (i + 1 < p.count ? min(end, p.matrices[i + 1].first_unit) : end) - m.first_unit;
        if (from >= to) continue;
      }
      const int first = __ldg(m.outliers.offsets + from * packed_layout::tile_rows);
      shift[i] = first - total;
      total += __ldg(m.outliers.offsets + to * packed_layout::tile_rows) - first;
    }
  }

  /// Turns a number into a run of the matrix returned.
  __device__ __forceinline__ int matrix_of(int& run) const {
    int matrix = 0, by = shift[0];
#pragma unroll
    for (int i = 1; i < small_batch_params::max_matrices; ++i)
      if (run >= before[i]) matrix = i, by = shift[i];
    run += by;
    return matrix;
  }

  /// The numbers of the runs of a row of a unit.
  __device__ __forceinline__ int2 runs_of(const small_batch_units& units, int unit, int row) const {
    int row_tile;
    const int matrix = units.matrix_of(unit, row_tile);
    const std::int32_t* offsets = p.matrices[matrix].outliers.offsets;
    if (offsets == nullptr) return make_int2(0, 0);
    offsets += row_tile * packed_layout::tile_rows + row;
    int by = shift[0];
#pragma unroll
    for (int i = 1; i < small_batch_params::max_matrices; ++i)
      if (i == matrix) by = shift[i];
    return make_int2(__ldg(offsets) - by, __ldg(offsets + 1) - by);
  }
};

/// Where a block keeps runs between their request and their products, in shared memory.
struct outlier_stage {
  uint4* entries;        ///< [most, 8]
  std::uint32_t* heads;  ///< [most]
  int most;              ///< runs for which there is room

  static constexpr int run_bytes = 128 + 4;

  /// @param memory most * run_bytes, 16-byte aligned
  __device__ __forceinline__ outlier_stage(unsigned char* memory, int runs)
      : entries(reinterpret_cast<uint4*>(memory)),
        heads(reinterpret_cast<std::uint32_t*>(memory + runs * 128)),
        most(runs) {}
};

/// A block's part in a step: `Ahead` runs for every eight lanes.
template <int Threads, int Ahead>
struct outlier_step {
  static constexpr int runs = Threads / 8 * Ahead;

  outlier_share share[Ahead];

  /// The block's last threads come first: the others are busier.
  __device__ __forceinline__ static int run(int i) {
    return (Threads / 8 - 1 - static_cast<int>(threadIdx.x) / 8) * Ahead + i;
  }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 8; }

  /// Runs from number `first` on, below `end`.
  __device__ __forceinline__ void load(const outlier_spans& spans, int first, int end) {
#pragma unroll
    for (int i = 0; i < Ahead; ++i) {
      int number = first + run(i);
      share[i] = {};
      if (number < end) {
        const int matrix = spans.matrix_of(number);
        share[i] = load_outliers(spans.p.matrices[matrix].outliers, number, lane());
      }
    }
  }

  /// Queues copies to the stage, of which the same lanes read the same parts.
  __device__ __forceinline__ static void copy(const outlier_stage& stage,
                                              const outlier_spans& spans, int first, int end) {
#pragma unroll
    for (int i = 0; i < Ahead; ++i) {
      const int number = first + run(i);
      if (number >= end) continue;
      int at = number;
      const outlier_source& from = spans.p.matrices[spans.matrix_of(at)].outliers;
      copy_async_16(shared_address(stage.entries + number * 8 + lane()),
                    from.entries + static_cast<std::size_t>(at) * 32 + lane() * 4);
      if (lane() == 0) copy_async_4(shared_address(stage.heads + number), from.heads + at);
    }
  }
  __device__ __forceinline__ void load(const outlier_stage& stage, int first, int end) {
#pragma unroll
    for (int i = 0; i < Ahead; ++i) {
      const int number = first + run(i);
      share[i] = {};
      if (number < end) share[i] = {stage.entries[number * 8 + lane()], stage.heads[number], true};
    }
  }

  /// Leaves each run's sum for one token at sums[number - window].
  template <class XAt>
  __device__ __forceinline__ void multiply(XAt&& x_at, bool is_bf16, int first, int end,
                                           float* sums, int window) const {
    float sum[Ahead];
#pragma unroll
    for (int i = 0; i < Ahead; ++i) sum[i] = multiply_outliers(share[i], x_at, is_bf16, lane());
#pragma unroll
    for (int i = 0; i < Ahead; ++i) {
      const float all = add_outlier_lanes(sum[i]);
      const int number = first + run(i);
      if (lane() == 0 && number < end) sums[number - window] = all;
    }
  }

  /// For each token t of eight at sums[t * pitch + number - window].
  /// @param x [columns, tokens] from the first of the eight on, 16-byte aligned
  __device__ __forceinline__ void multiply_eight(const std::uint16_t* x, int tokens, bool is_bf16,
                                                 int first, int end, float* sums, int window,
                                                 int pitch) const {
#pragma unroll
    for (int i = 0; i < Ahead; ++i) {
      const outlier_share& s = share[i];
      const std::uint32_t entry[4] = {s.entry.x, s.entry.y, s.entry.z, s.entry.w};
      const int count = s.here ? outlier_count(s.head) - 4 * lane() : 0;
      const float base = outlier_value(s.head);
      uint4 eight[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        eight[k] = make_uint4(0, 0, 0, 0);
        const int col = outlier_first_col(s.head) + static_cast<int>(entry[k] & 0xffffu);
        if (k < count)
          eight[k] = *reinterpret_cast<const uint4*>(x + static_cast<std::size_t>(col) * tokens);
      }
      const int number = first + run(i);
#pragma unroll
      for (int t = 0; t < 8; ++t) {
        float sum = 0.f;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const std::uint32_t pair = t / 2 == 0   ? eight[k].x
                                     : t / 2 == 1 ? eight[k].y
                                     : t / 2 == 2 ? eight[k].z
                                                  : eight[k].w;
          const auto bits = static_cast<std::uint16_t>(t % 2 == 0 ? pair & 0xffffu : pair >> 16);
          if (k < count) sum = fmaf(outlier_value(entry[k]) - base, activation(bits, is_bf16), sum);
        }
        sum = add_outlier_lanes(sum);
        if (lane() == 0 && number < end) sums[t * pitch + number - window] = sum;
      }
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
