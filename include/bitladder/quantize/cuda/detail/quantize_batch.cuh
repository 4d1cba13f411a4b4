// SPDX-License-Identifier: MIT
// Some rows of a matrix on the card: how many at once, the memory they take there, what is queued
// for them, and where in one block of memory their results lie. Tested by
// tests/quantize/cuda/quantize_test.cu.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/quantize/cuda/detail/pack_codes_kernel.cuh>
#include <bitladder/quantize/cuda/detail/row_ladder_kernel.cuh>
#include <bitladder/quantize/options.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// How a matrix is cut and how the kernel runs.
struct quantize_plan {
  int rows_at_once = 0;
  int cols = 0;
  int count = 0;  ///< elements of a table
  int blocks = 0;
  int shared_bytes = 0;
  bool weighted = false;
  bool packed = false;    ///< planes are wanted, not codes
  bool resident = false;  ///< the whole matrix is on the card already
  std::size_t slab_bytes = 0;
  std::size_t sort_bytes = 0;
};

/// Where the results of some rows lie in one block of memory, on the card and on the host.
struct batch_results {
  std::size_t bad = 0;                ///< int: not 0 if a weight cannot be quantized
  std::size_t states = 0;             ///< row_state [tables]
  std::size_t errors = 0;             ///< double [tables][9]
  std::array<std::size_t, 9> tables;  ///< by bits: fp16_t [tables][2^bits]
  std::size_t codes = 0;  ///< uint8 [rows][cols], or words [planes][rows][words] if packed
  std::size_t bytes = 0;  ///< of all

  batch_results(const quantize_plan& plan, const kmeans_options& o, int rows) : tables{} {
    const std::size_t n = static_cast<std::size_t>(rows) * static_cast<std::size_t>(o.groups);
    bad = take(sizeof(int));
    states = take(n * sizeof(row_state));
    errors = take(n * 9 * sizeof(double));
    for (int b = o.min_bits; b <= o.max_bits; ++b)
      tables[static_cast<std::size_t>(b)] = take((n << b) * sizeof(fp16_t));
    const bitplane_layout planes{rows, plan.cols, o.max_bits};
    codes =
        take(plan.packed ? planes.total_words() * sizeof(std::uint32_t)
                         : static_cast<std::size_t>(rows) * static_cast<std::size_t>(plan.cols));
  }

 private:
  std::size_t take(std::size_t size) {
    const std::size_t at = bytes;
    bytes += (size + 255) / 256 * 256;
    return at;
  }
};

/// Device memory of one batch of rows after another. It grows and is kept.
struct quantize_buffers {
  using memory = buffer<unsigned char>;
  memory values, sensitivities, keys, sorted_keys, columns, sorted_columns, sort_scratch, scratch;
  memory codes;  ///< before they are packed
  memory results;

  template <class T>
  static T* at(memory& m, std::size_t offset = 0) {
    return reinterpret_cast<T*>(m.data() + offset);
  }
};

template <class Value>
quantize_plan plan_quantize(int rows, int cols, const kmeans_options& o, bool weighted,
                            bool packed) {
  constexpr std::int64_t elements_at_once = 1 << 22;
  device_properties device;
  check(properties(device));
  quantize_plan plan;
  plan.rows_at_once = static_cast<int>(
      std::min<std::int64_t>(rows, std::max<std::int64_t>(1, elements_at_once / cols)));
  plan.cols = cols;
  plan.count = cols / o.groups;
  plan.weighted = weighted;
  plan.packed = packed;
  const int tables = plan.rows_at_once * o.groups;
  const row_arrays_layout layout(plan.count, o.seed_bits);
  // Two blocks share a multiprocessor's memory.
  constexpr int reserved = 1024 + static_cast<int>(sizeof(row_ladder_shared));
  const int room = std::min(device.shared_bytes_per_block - reserved,
                            device.shared_bytes_per_multiprocessor / 2 - reserved);
  const bool in_shared = room > 0 && layout.prefix_bytes() <= static_cast<std::size_t>(room);
  plan.shared_bytes = in_shared ? static_cast<int>(layout.prefix_bytes()) : 0;
  plan.slab_bytes = layout.slab_bytes(in_shared);
  plan.blocks = std::min(tables, 2 * device.multiprocessors);
  check(call_status(cudaFuncSetAttribute(reinterpret_cast<const void*>(&row_ladder_kernel<Value>),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         device.shared_bytes_per_block - reserved)));
  check(call_status(sort_segments<sort_key_of<Value>>(
      nullptr, plan.sort_bytes, nullptr, nullptr, nullptr, nullptr, tables, plan.count, nullptr)));
  return plan;
}

/// @throws error(out_of_memory)
template <class Value>
void allocate(quantize_buffers& b, const quantize_plan& plan, const kmeans_options& o) {
  const std::size_t elements =
      static_cast<std::size_t>(plan.rows_at_once) * static_cast<std::size_t>(plan.cols);
  const auto fit = [](quantize_buffers::memory& to, std::size_t size) {
    if (to.size() < size) check(to.allocate(size), "device memory");
  };
  if (!plan.resident) fit(b.values, elements * sizeof(Value));
  if (!plan.resident && plan.weighted) fit(b.sensitivities, elements * sizeof(float));
  fit(b.keys, elements * sizeof(sort_key_of<Value>));
  fit(b.sorted_keys, elements * sizeof(sort_key_of<Value>));
  fit(b.columns, elements * sizeof(std::uint32_t));
  fit(b.sorted_columns, elements * sizeof(std::uint32_t));
  fit(b.sort_scratch, plan.sort_bytes);
  fit(b.scratch, static_cast<std::size_t>(plan.blocks) * plan.slab_bytes);
  if (plan.packed) fit(b.codes, elements);
  fit(b.results, batch_results(plan, o, plan.rows_at_once).bytes);
}

/// Queues everything from rows on the card to b.results.
/// @param values [rows, cols]
/// @param sensitivities the same, or null for all equal
/// @param rows at most plan.rows_at_once
template <class Value>
void queue_quantize(quantize_buffers& b, const quantize_plan& plan, const kmeans_options& o,
                    const Value* values, const float* sensitivities, int rows,
                    cudaStream_t stream) {
  using key = sort_key_of<Value>;
  using at = quantize_buffers;
  const batch_results where(plan, o, rows);
  const int tables = rows * o.groups;
  const std::int64_t elements = static_cast<std::int64_t>(tables) * plan.count;
  check(call_status(cudaMemsetAsync(b.results.data() + where.bad, 0, sizeof(int), stream)));
  constexpr int threads = 256;
  const int grid =
      static_cast<int>(std::min<std::int64_t>((elements + threads - 1) / threads, 65536));
  make_keys_kernel<Value><<<grid, threads, 0, stream>>>(
      values, plan.count, elements, at::at<key>(b.keys), at::at<std::uint32_t>(b.columns),
      at::at<int>(b.results, where.bad));
  check(launch_status());
  std::size_t sort_bytes = plan.sort_bytes;
  check(call_status(
      sort_segments(b.sort_scratch.data(), sort_bytes, at::at<const key>(b.keys),
                    at::at<key>(b.sorted_keys), at::at<const std::uint32_t>(b.columns),
                    at::at<std::uint32_t>(b.sorted_columns), tables, plan.count, stream)));
  row_ladder_params p{};
  p.keys = b.sorted_keys.data();
  p.columns = at::at<const std::uint32_t>(b.sorted_columns);
  p.sensitivities = sensitivities;
  p.scratch = b.scratch.data();
  p.slab_bytes = plan.slab_bytes;
  p.codes = plan.packed ? b.codes.data() : b.results.data() + where.codes;
  for (int bits = o.min_bits; bits <= o.max_bits; ++bits)
    p.tables[bits] = at::at<fp16_t>(b.results, where.tables[static_cast<std::size_t>(bits)]);
  p.errors = at::at<double>(b.results, where.errors);
  p.states = at::at<row_state>(b.results, where.states);
  p.count = plan.count;
  p.table_count = tables;
  p.seed_bits = o.seed_bits;
  p.min_bits = o.min_bits;
  p.max_bits = o.max_bits;
  p.lookahead = o.lookahead;
  p.prefix_in_shared = plan.shared_bytes > 0;
  row_ladder_kernel<Value>
      <<<std::min(plan.blocks, tables), ladder_threads, plan.shared_bytes, stream>>>(p);
  check(launch_status());
  if (plan.packed)
    queue_pack_codes(at::at<const std::uint8_t>(b.codes),
                     at::at<std::uint32_t>(b.results, where.codes), rows, plan.cols, o.max_bits,
                     stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
