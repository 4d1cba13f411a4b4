// SPDX-License-Identifier: MIT
// The ladder of one row after another: points, seed, splits, tables and codes, by a block of
// threads. Device code only. Tested by tests/quantize/cuda/quantize_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/quantize/cuda/detail/ladder_tables.cuh>
#include <bitladder/quantize/cuda/detail/sorted_rows.cuh>
#include <bitladder/quantize/cuda/detail/split_clusters.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// How a row ended.
enum class row_state : std::uint8_t {
  done,
  few_points,      ///< no more different values than clusters at the seed: left to the host
  bad_sensitivity  ///< one is not finite or negative
};

struct row_ladder_params {
  const void* keys;              ///< sorted [tables][count]
  const std::uint32_t* columns;  ///< of the keys, in their group [tables][count]
  const float* sensitivities;    ///< [tables][count], or null
  unsigned char* scratch;        ///< slab_bytes for each block
  std::size_t slab_bytes;
  std::uint8_t* codes;  ///< [tables][count]
  fp16_t* tables[9];    ///< by bits: [tables][2^bits]
  double* errors;       ///< [tables][9]
  row_state* states;    ///< [tables]
  int count;            ///< elements of a table: a row or a column group of it
  int table_count;
  int seed_bits, min_bits, max_bits;
  double lookahead;
  bool prefix_in_shared;  ///< dynamic shared memory holds weight and sum
};

/// Bytes of a block's arrays; one that is not 0 in `shared` says how many lie there instead.
struct row_arrays_layout {
  std::size_t places, layers;

  static std::size_t rounded(std::size_t bytes) { return (bytes + 255) / 256 * 256; }
  row_arrays_layout(int count, int seed_bits)
      : places(static_cast<std::size_t>(count) + 1),
        layers(static_cast<std::size_t>(std::max((1 << seed_bits) - 1, 1))) {}
  std::size_t prefix_bytes() const { return 2 * places * sizeof(double); }
  std::size_t slab_bytes(bool prefix_in_shared) const {
    return rounded(places * (3 * sizeof(double) + sizeof(float) + sizeof(int)) +
                   layers * places * sizeof(int) + (prefix_in_shared ? 0 : prefix_bytes()));
  }
};

struct row_ladder_shared {
  union {
    row_points_shared points;
    ladder_tables_shared tables;
  };
  best_candidate of_warps[ladder_warps];
  int borders[2][257];
};

template <class Value>
BL_KERNEL __launch_bounds__(ladder_threads, 2)
    row_ladder_kernel(const __grid_constant__ row_ladder_params p) {
  using key = sort_key_of<Value>;
  extern __shared__ __align__(16) double row_ladder_prefix[];
  __shared__ row_ladder_shared shared;
  const std::size_t places = static_cast<std::size_t>(p.count) + 1;
  row_arrays a;
  double* at = reinterpret_cast<double*>(p.scratch + blockIdx.x * p.slab_bytes);
  const auto take = [&](std::size_t n) {
    double* const here = at;
    at += n;
    return here;
  };
  double* const prefix = p.prefix_in_shared ? row_ladder_prefix : take(2 * places);
  a.weight = prefix;
  a.sum = prefix + places;
  a.gain[0] = take(places);
  a.gain[1] = take(places);
  a.w = take(places);
  a.x = reinterpret_cast<float*>(at);
  a.first_of = reinterpret_cast<int*>(a.x + places);
  a.start = a.first_of + places;

  for (int t = static_cast<int>(blockIdx.x); t < p.table_count; t += static_cast<int>(gridDim.x)) {
    const std::size_t first = static_cast<std::size_t>(t) * static_cast<std::size_t>(p.count);
    const std::uint32_t* const columns = p.columns + first;
    __syncthreads();
    const row_points points = make_points<Value>(
        static_cast<const key*>(p.keys) + first, columns,
        p.sensitivities == nullptr ? nullptr : p.sensitivities + first, p.count, a, shared.points);
    const int clusters = 1 << p.seed_bits;
    if (points.size <= clusters) {
      if (threadIdx.x == 0)
        p.states[t] = points.size == 0 ? row_state::bad_sensitivity : row_state::few_points;
      continue;
    }
    int* borders = shared.borders[0];
    int* finer = shared.borders[1];
    solve_borders(a, points.size, clusters, places, borders, shared.of_warps);
    for (int b = p.seed_bits; b < p.max_bits; ++b) {
      split_all(a, borders, 1 << b, b + 1 < p.max_bits ? p.lookahead : 0, finer);
      int* const done = borders;
      borders = finer;
      finer = done;
    }
    ladder_output out;
    out.codes = p.codes + first;
    for (int b = p.min_bits; b <= p.max_bits; ++b)
      out.tables[b] = p.tables[b] + (static_cast<std::size_t>(t) << b);
    out.errors = p.errors + static_cast<std::size_t>(t) * 9;
    sum_moments(a, borders, p.max_bits, shared.tables.nodes);
    fill_tables(a, borders, p.min_bits, p.max_bits, shared.tables, out);
    sum_errors(p.min_bits, p.max_bits, points.without_sensitivity, shared.tables.nodes, out);
    write_codes(a, borders, p.max_bits, p.count, columns, shared.tables.code_begin, out.codes);
    if (threadIdx.x == 0) p.states[t] = row_state::done;
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
