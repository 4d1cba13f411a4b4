// SPDX-License-Identifier: MIT
// The quantizer on the card: the same exact seed, splits, tables and codes as quantize.hpp, bit for
// bit, many rows at once. Tested by tests/quantize/cuda/quantize_test.cu.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/quantize/cuda/detail/pack_codes_kernel.cuh>
#include <bitladder/quantize/cuda/detail/row_ladder_kernel.cuh>
#include <bitladder/quantize/options.hpp>
#include <bitladder/quantize/quantize.hpp>
#include <bitladder/quantize/row_ladder.hpp>
#include <bitladder/quantize/sensitivity.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

namespace detail {

/// Device memory of one batch of rows after another. It grows and is kept.
struct quantize_buffers {
  using bytes = buffer<unsigned char>;
  bytes values, sensitivities, keys, sorted_keys, columns, sorted_columns, sort_scratch, scratch;
  bytes codes, planes, errors, states, bad;
  std::array<bytes, 9> tables;  ///< by bits

  template <class T>
  static T* at(bytes& b) {
    return reinterpret_cast<T*>(b.data());
  }
  static void fit(bytes& b, std::size_t size) {
    if (b.size() < size) check(b.allocate(size));
  }
};

/// How a matrix is cut and how the kernel runs.
struct quantize_plan {
  int rows_at_once = 0;
  int tables_at_once = 0;
  int count = 0;  ///< elements of a table
  int blocks = 0;
  int shared_bytes = 0;
  std::size_t slab_bytes = 0;
  std::size_t sort_bytes = 0;
};

template <class Value>
quantize_plan plan_quantize(int rows, int cols, const kmeans_options& o) {
  constexpr std::int64_t elements_at_once = 1 << 22;
  device_properties device;
  check(properties(device));
  quantize_plan plan;
  plan.rows_at_once = static_cast<int>(
      std::min<std::int64_t>(rows, std::max<std::int64_t>(1, elements_at_once / cols)));
  plan.tables_at_once = plan.rows_at_once * o.groups;
  plan.count = cols / o.groups;
  const row_arrays_layout layout(plan.count, o.seed_bits);
  // Two blocks share a multiprocessor's memory.
  constexpr int reserved = 1024 + static_cast<int>(sizeof(row_ladder_shared));
  const int room = std::min(device.shared_bytes_per_block - reserved,
                            device.shared_bytes_per_multiprocessor / 2 - reserved);
  const bool in_shared = room > 0 && layout.prefix_bytes() <= static_cast<std::size_t>(room);
  plan.shared_bytes = in_shared ? static_cast<int>(layout.prefix_bytes()) : 0;
  plan.slab_bytes = layout.slab_bytes(in_shared);
  plan.blocks = std::min(plan.tables_at_once, 2 * device.multiprocessors);
  check(call_status(cudaFuncSetAttribute(reinterpret_cast<const void*>(&row_ladder_kernel<Value>),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         plan.shared_bytes)));
  check(call_status(sort_segments<sort_key_of<Value>>(nullptr, plan.sort_bytes, nullptr, nullptr,
                                                      nullptr, nullptr, plan.tables_at_once,
                                                      plan.count, nullptr)));
  return plan;
}

template <class Value>
void allocate(quantize_buffers& b, const quantize_plan& plan, const kmeans_options& o,
              bool weighted, const bitplane_layout* packed) {
  const std::size_t tables = static_cast<std::size_t>(plan.tables_at_once);
  const std::size_t elements = tables * static_cast<std::size_t>(plan.count);
  const auto fit = [](quantize_buffers::bytes& to, std::size_t size) {
    quantize_buffers::fit(to, size);
  };
  fit(b.values, elements * sizeof(Value));
  if (weighted) fit(b.sensitivities, elements * sizeof(float));
  fit(b.keys, elements * sizeof(sort_key_of<Value>));
  fit(b.sorted_keys, elements * sizeof(sort_key_of<Value>));
  fit(b.columns, elements * sizeof(std::uint32_t));
  fit(b.sorted_columns, elements * sizeof(std::uint32_t));
  fit(b.sort_scratch, plan.sort_bytes);
  fit(b.scratch, static_cast<std::size_t>(plan.blocks) * plan.slab_bytes);
  fit(b.codes, elements);
  if (packed != nullptr)
    fit(b.planes, static_cast<std::size_t>(plan.rows_at_once) *
                      static_cast<std::size_t>(packed->words() * packed->planes) * 4);
  for (int bits = o.min_bits; bits <= o.max_bits; ++bits)
    fit(b.tables[static_cast<std::size_t>(bits)], (tables << bits) * sizeof(fp16_t));
  fit(b.errors, tables * 9 * sizeof(double));
  fit(b.states, tables * sizeof(row_state));
  fit(b.bad, sizeof(int));
}

/// Queues sorting and quantizing what b.values and b.sensitivities hold.
template <class Value>
void queue_quantize(quantize_buffers& b, const quantize_plan& plan, const kmeans_options& o,
                    bool weighted, int tables, cudaStream_t stream) {
  using key = sort_key_of<Value>;
  using at = quantize_buffers;
  const std::int64_t elements = static_cast<std::int64_t>(tables) * plan.count;
  constexpr int threads = 256;
  const int grid =
      static_cast<int>(std::min<std::int64_t>((elements + threads - 1) / threads, 65536));
  make_keys_kernel<Value><<<grid, threads, 0, stream>>>(
      at::at<const Value>(b.values), plan.count, elements, at::at<key>(b.keys),
      at::at<std::uint32_t>(b.columns), at::at<int>(b.bad));
  check(launch_status());
  std::size_t sort_bytes = plan.sort_bytes;
  check(call_status(
      sort_segments(b.sort_scratch.data(), sort_bytes, at::at<const key>(b.keys),
                    at::at<key>(b.sorted_keys), at::at<const std::uint32_t>(b.columns),
                    at::at<std::uint32_t>(b.sorted_columns), tables, plan.count, stream)));
  row_ladder_params p{};
  p.keys = b.sorted_keys.data();
  p.columns = at::at<const std::uint32_t>(b.sorted_columns);
  p.sensitivities = weighted ? at::at<const float>(b.sensitivities) : nullptr;
  p.scratch = b.scratch.data();
  p.slab_bytes = plan.slab_bytes;
  p.codes = b.codes.data();
  for (std::size_t bits = 1; bits <= 8; ++bits) p.tables[bits] = at::at<fp16_t>(b.tables[bits]);
  p.errors = at::at<double>(b.errors);
  p.states = at::at<row_state>(b.states);
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
}

/// Queues the copy of rows to device memory without gaps. Rows without gaps go as one: the runtime
/// copies others from ordinary memory row by row.
template <class T>
void copy_rows_in(quantize_buffers::bytes& to, const T* from, std::size_t stride, int rows,
                  int cols, cudaStream_t stream) {
  const std::size_t width = static_cast<std::size_t>(cols) * sizeof(T);
  if (stride == static_cast<std::size_t>(cols)) {
    check(call_status(cudaMemcpyAsync(to.data(), from, width * static_cast<std::size_t>(rows),
                                      cudaMemcpyHostToDevice, stream)));
    return;
  }
  check(call_status(cudaMemcpy2DAsync(to.data(), width, from, stride * sizeof(T), width,
                                      static_cast<std::size_t>(rows), cudaMemcpyHostToDevice,
                                      stream)));
}

/// Queues a copy to the host.
template <class T>
void copy_out(const quantize_buffers::bytes& from, T* to, std::size_t count, cudaStream_t stream) {
  check(from.download(reinterpret_cast<unsigned char*>(to), count * sizeof(T), stream));
}

}  // namespace detail

/// A quantized matrix whose codes are packed to planes of `codebooks.max_bits()` bits.
struct packed_matrix {
  bitplane_tensor planes;
  codebook_ladder codebooks;
  quantize_report report;
};

/// Quantizes one matrix after another on the device that was current when it was made, keeping its
/// memory there. While some rows are quantized, the next are copied.
class quantizer {
 public:
  /// @throws error if there is no device
  quantizer() {
    for (slot& s : slots_)
      check(call_status(cudaStreamCreateWithFlags(&s.stream, cudaStreamNonBlocking)));
  }
  quantizer(const quantizer&) = delete;
  quantizer& operator=(const quantizer&) = delete;
  ~quantizer() {
    for (slot& s : slots_)
      if (s.stream != nullptr) static_cast<void>(call_status(cudaStreamDestroy(s.stream)));
  }

  /// Quantizes `w` as bitladder::quantize does, and waits for it.
  /// @tparam Value float, fp16_t or bf16_t
  /// @param s as many rows and columns as `w`
  /// @throws error as bitladder::quantize, for the published method (which runs on the host alone),
  /// and if the device has too little memory: some 60 bytes for each of 4 million elements, and the
  /// arrays of four rows for each multiprocessor
  template <class Value>
  quantized_matrix quantize(matrix_view<const Value> w, const sensitivity& s,
                            const kmeans_options& options) {
    bitladder::detail::check_quantize(w, s, options);
    bitladder::detail::quantized_parts parts(w.rows(), w.cols(), options);
    run(w, s, options, parts, nullptr);
    return std::move(parts).done();
  }

  /// The same with the codes packed on the device: what pack(codes, max_bits) gives.
  template <class Value>
  packed_matrix quantize_packed(matrix_view<const Value> w, const sensitivity& s,
                                const kmeans_options& options) {
    bitladder::detail::check_quantize(w, s, options);
    bitladder::detail::quantized_parts parts(w.rows(), w.cols(), options, false);
    bitplane_tensor planes(bitplane_layout{w.rows(), w.cols(), options.max_bits});
    run(w, s, options, parts, &planes);
    const quantized_matrix q = std::move(parts).done();
    return {std::move(planes), q.codebooks(), q.report()};
  }

 private:
  /// Rows under way.
  struct slot {
    cudaStream_t stream = nullptr;
    detail::quantize_buffers buffers;
    int row = 0, rows = 0;  ///< none if 0
  };

  /// @param planes where codes go packed, or null for the codes of `parts`
  template <class Value>
  void run(matrix_view<const Value> w, const sensitivity& s, const kmeans_options& options,
           bitladder::detail::quantized_parts& parts, bitplane_tensor* planes) {
    if (options.method != quantize_method::exact)
      throw error(status::invalid_argument,
                  "quantize on a CUDA device: expected method exact, found " +
                      std::string(to_string(options.method)));
    if (w.rows() == 0 || w.cols() == 0) return;
    const detail::quantize_plan plan = detail::plan_quantize<Value>(w.rows(), w.cols(), options);
    for (slot& to : slots_) {
      detail::allocate<Value>(to.buffers, plan, options, !s.is_uniform(),
                              planes == nullptr ? nullptr : &planes->layout());
      check(to.buffers.bad.clear(to.stream));
      to.rows = 0;
    }
    // Copies to and from memory that is not page-locked hold this thread up, so results are fetched
    // when the next rows have been sent.
    bool good = true;
    int at = 0;
    for (int row = 0; row < w.rows() && good; row += plan.rows_at_once) {
      start(slots_[at], w, s, options, plan, row, std::min(plan.rows_at_once, w.rows() - row),
            planes);
      at ^= 1;
      good = finish(slots_[at], w, s, options, plan, parts, planes);
    }
    good = finish(slots_[at ^ 1], w, s, options, plan, parts, planes) && good;
    if (!good) bitladder::detail::report_bad_input(w, s);
  }

  template <class Value>
  void start(slot& to, matrix_view<const Value> w, const sensitivity& s,
             const kmeans_options& options, const detail::quantize_plan& plan, int row, int rows,
             const bitplane_tensor* planes) {
    detail::copy_rows_in(to.buffers.values, w.row(row), w.stride(), rows, w.cols(), to.stream);
    const bool weighted = !s.is_uniform();
    if (weighted) {
      const std::size_t stride =
          s.rows() > 1 ? static_cast<std::size_t>(s.row(1) - s.row(0)) : std::size_t{0};
      detail::copy_rows_in(to.buffers.sensitivities, s.row(row),
                           std::max(stride, static_cast<std::size_t>(s.cols())), rows, w.cols(),
                           to.stream);
    }
    detail::queue_quantize<Value>(to.buffers, plan, options, weighted, rows * options.groups,
                                  to.stream);
    if (planes != nullptr)
      detail::queue_pack_codes(detail::quantize_buffers::at<const std::uint8_t>(to.buffers.codes),
                               detail::quantize_buffers::at<std::uint32_t>(to.buffers.planes), rows,
                               w.cols(), options.max_bits, to.stream);
    to.row = row;
    to.rows = rows;
  }

  /// @return false if something cannot be quantized
  template <class Value>
  bool finish(slot& from, matrix_view<const Value> w, const sensitivity& s,
              const kmeans_options& options, const detail::quantize_plan& plan,
              bitladder::detail::quantized_parts& parts, bitplane_tensor* planes) {
    if (from.rows == 0) return true;
    const std::size_t count =
        static_cast<std::size_t>(from.rows) * static_cast<std::size_t>(options.groups);
    const std::size_t first =
        static_cast<std::size_t>(from.row) * static_cast<std::size_t>(options.groups);
    int bad = 0;
    states_.resize(count);
    errors_.resize(count);
    const detail::quantize_buffers& b = from.buffers;
    detail::copy_out(b.states, states_.data(), count, from.stream);
    detail::copy_out(b.errors, errors_.data(), count, from.stream);
    detail::copy_out(b.bad, &bad, 1, from.stream);
    if (planes == nullptr)
      detail::copy_out(b.codes, parts.codes(from.row), count * static_cast<std::size_t>(plan.count),
                       from.stream);
    else
      copy_planes(from, *planes);
    for (int bits = options.min_bits; bits <= options.max_bits; ++bits)
      detail::copy_out(b.tables[static_cast<std::size_t>(bits)], parts.table(bits, first),
                       count << bits, from.stream);
    check(call_status(cudaStreamSynchronize(from.stream)));
    const int row = from.row;
    from.rows = 0;
    if (bad != 0) return false;
    for (std::size_t t = 0; t < count; ++t) {
      switch (states_[t]) {
        case detail::row_state::bad_sensitivity: return false;
        case detail::row_state::done: {
          std::array<double, 9>& e = parts.errors(first + t);
          e[0] = errors_[t][0];
          for (std::size_t bits = 1; bits < e.size(); ++bits)
            if (parts.has(static_cast<int>(bits))) e[bits] = errors_[t][bits];
          break;
        }
        case detail::row_state::few_points: {
          const int at_row = row + static_cast<int>(t) / options.groups;
          const int at_col = static_cast<int>(t) % options.groups * plan.count;
          codes_.resize(static_cast<std::size_t>(plan.count));
          std::uint8_t* const codes =
              planes == nullptr ? parts.codes(at_row) + at_col : codes_.data();
          if (!parts.build(on_host_, w, s, at_row, at_col, first + t, codes)) return false;
          if (planes != nullptr) set_codes(*planes, at_row, at_col, plan.count, codes);
          break;
        }
      }
    }
    return true;
  }

  /// Queues the copy of a slot's planes.
  static void copy_planes(const slot& from, bitplane_tensor& to) {
    const bitplane_layout& l = to.layout();
    const std::size_t words =
        static_cast<std::size_t>(from.rows) * static_cast<std::size_t>(l.words());
    for (int p = 0; p < l.planes; ++p)
      check(call_status(cudaMemcpyAsync(
          to.data() + l.word(p, from.row, 0),
          from.buffers.planes.data() + static_cast<std::size_t>(p) * words * sizeof(std::uint32_t),
          words * sizeof(std::uint32_t), cudaMemcpyDeviceToHost, from.stream)));
  }

  static void set_codes(bitplane_tensor& to, int row, int col, int count,
                        const std::uint8_t* codes) {
    const bitplane_layout& l = to.layout();
    for (int p = 0; p < l.planes; ++p)
      for (int i = 0; i < count; ++i) {
        std::uint32_t& word = to.data()[l.word(p, row, (col + i) / 32)];
        const std::uint32_t bit = 1u << (col + i) % 32;
        word = (codes[i] >> (l.planes - 1 - p) & 1) != 0 ? word | bit : word & ~bit;
      }
  }

  slot slots_[2];
  std::vector<detail::row_state> states_;
  std::vector<std::array<double, 9>> errors_;
  std::vector<std::uint8_t> codes_;
  kmeans::row_ladder on_host_;
};

/// Quantizes one matrix on the device that is current: see quantizer::quantize.
template <class Value>
quantized_matrix quantize(matrix_view<const Value> w, const sensitivity& s,
                          const kmeans_options& options) {
  return quantizer().quantize(w, s, options);
}

/// The same for a view of elements that may be written.
template <class Value>
quantized_matrix quantize(matrix_view<Value> w, const sensitivity& s,
                          const kmeans_options& options) {
  return quantize(matrix_view<const Value>(w), s, options);
}

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
