// SPDX-License-Identifier: MIT
// From the borders of a row's widest codes to its tables, codes and errors: the second half of
// row_ladder.hpp on the card, with the same operations in the same order. Device code only. Tested
// by tests/quantize/cuda/quantize_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/quantize/cuda/detail/row_points.cuh>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// Weight, mean and weighted squared error about the mean of some points.
struct point_moments {
  double weight, mean, error;
};

/// Those of both together.
__device__ inline point_moments together(const point_moments& a, const point_moments& b) {
  if (b.weight == 0) return a;
  if (a.weight == 0) return b;
  const double weight = __dadd_rn(a.weight, b.weight);
  const double shift = b.mean - a.mean;
  const double part = __ddiv_rn(b.weight, weight);
  return {weight, __dadd_rn(a.mean, __dmul_rn(shift, part)),
          __dadd_rn(__dadd_rn(a.error, b.error),
                    __dmul_rn(__dmul_rn(shift, shift), __dmul_rn(a.weight, part)))};
}

/// What a block keeps in shared memory for it.
struct ladder_tables_shared {
  point_moments nodes[511];  ///< of 0 to 8 bits, code c of b bits at 2^b - 1 + c
  double table[510];         ///< of 1 to 8 bits, at 2^b - 2 + c
  int code_begin[257];       ///< where each code's elements begin in sorted order
};

/// What a row leaves.
struct ladder_output {
  std::uint8_t* codes;  ///< [count]
  fp16_t* tables[9];    ///< by bits: [2^bits], null below min_bits
  double* errors;       ///< [9]: weighted variance, then weighted errors by bits
};

/// Moments of every code, from the points up.
__device__ inline void sum_moments(const row_arrays& a, const int* borders, int max_bits,
                                   point_moments* nodes) {
  const int thread = static_cast<int>(threadIdx.x);
  const int leaves = 1 << max_bits;
  for (int c = thread; c < leaves; c += ladder_threads) {
    const int begin = borders[c], end = borders[c + 1];
    point_moments m{0, 0, 0};
    if (begin < end) {
      const double first = static_cast<double>(a.x[begin]);
      double weight = 0, sum = 0, square = 0;
      for (int i = begin; i < end; ++i) {
        const double w = a.w[i], d = static_cast<double>(a.x[i]) - first;
        weight = __dadd_rn(weight, w);
        sum = __dadd_rn(sum, __dmul_rn(w, d));
        square = __dadd_rn(square, __dmul_rn(__dmul_rn(w, d), d));
      }
      if (weight > 0) {
        const double mean = __ddiv_rn(sum, weight);
        const double error = __dsub_rn(square, __dmul_rn(sum, mean));
        m = {weight, __dadd_rn(first, mean), error < 0 ? 0 : error};
      }
    }
    nodes[leaves - 1 + c] = m;
  }
  __syncthreads();
  for (int b = max_bits - 1; b >= 0; --b) {
    for (int c = thread; c < 1 << b; c += ladder_threads)
      nodes[(1 << b) - 1 + c] =
          together(nodes[(2 << b) - 1 + 2 * c], nodes[(2 << b) - 1 + 2 * c + 1]);
    __syncthreads();
  }
}

/// Tables of min_bits to max_bits, unrounded and to `out`.
__device__ inline void fill_tables(const row_arrays& a, const int* borders, int min_bits,
                                   int max_bits, ladder_tables_shared& shared,
                                   const ladder_output& out) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int b = min_bits; b <= max_bits; ++b) {
    double* const table = shared.table + (1 << b) - 2;
    const int shift = max_bits - b;
    for (int c = thread; c < 1 << b; c += ladder_threads) {
      const int begin = borders[c << shift], end = borders[(c + 1) << shift];
      if (begin < end) {
        const double mean = shared.nodes[(1 << b) - 1 + c].mean;
        const double low = static_cast<double>(a.x[begin]);
        const double high = static_cast<double>(a.x[end - 1]);
        const double raised = mean < low ? low : mean;
        table[c] = high < raised ? high : raised;
      } else if (b > min_bits) {
        table[c] = shared.table[(1 << (b - 1)) - 2 + c / 2];
      }
    }
    __syncthreads();
    if (b == min_bits) {  // a code that no weight has takes its neighbour's value
      if (thread == 0)
        for (int c = 1; c < 1 << b; ++c)
          if (borders[c << shift] == borders[(c + 1) << shift]) table[c] = table[c - 1];
      __syncthreads();
    }
    for (int c = thread; c < 1 << b; c += ladder_threads)
      out.tables[b][c] = to_fp16(__double2float_rn(table[c]));
  }
  __syncthreads();
}

/// The errors of the rounded tables, a thread for each precision.
__device__ inline void sum_errors(int min_bits, int max_bits, bool without_sensitivity,
                                  const point_moments* nodes, const ladder_output& out) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) out.errors[0] = without_sensitivity ? 0 : nodes[0].error;
  // In different warps, since tables differ in length.
  const int b = thread / 32;
  if (thread % 32 != 0 || b < min_bits || b > max_bits) return;
  double sum = 0;
  for (int c = 0; !without_sensitivity && c < 1 << b; ++c) {
    const point_moments m = nodes[(1 << b) - 1 + c];
    const double shift = m.mean - static_cast<double>(to_float(out.tables[b][c]));
    sum = __dadd_rn(sum, __dadd_rn(m.error, __dmul_rn(__dmul_rn(m.weight, shift), shift)));
  }
  out.errors[b] = sum;
}

/// The code of every column.
__device__ inline void write_codes(const row_arrays& a, const int* borders, int max_bits, int count,
                                   const std::uint32_t* columns, int* code_begin,
                                   std::uint8_t* codes) {
  const int thread = static_cast<int>(threadIdx.x), last = 1 << max_bits;
  for (int c = thread; c <= last; c += ladder_threads) code_begin[c] = a.first_of[borders[c]];
  __syncthreads();
  for (int i = thread; i < count; i += ladder_threads) {
    int code = 0;  // the last that begins at or before i: it has elements
    for (int step = last / 2; step > 0; step /= 2)
      if (code_begin[code + step] <= i) code += step;
    codes[columns[i]] = static_cast<std::uint8_t>(code);
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
