// SPDX-License-Identifier: MIT
// The quantizer on the card: the same exact seed, splits, tables, codes and outliers as
// quantize.hpp, bit for bit, many rows at once. Tested by tests/quantize/cuda/quantize_test.cu.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/quantize/cuda/detail/card_outliers.cuh>
#include <bitladder/quantize/cuda/detail/page_locked.cuh>
#include <bitladder/quantize/cuda/detail/quantize_batch.cuh>
#include <bitladder/quantize/hidden_outliers.hpp>
#include <bitladder/quantize/options.hpp>
#include <bitladder/quantize/outliers.hpp>
#include <bitladder/quantize/quantize.hpp>
#include <bitladder/quantize/row_ladder.hpp>
#include <bitladder/quantize/sensitivity.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// What goes with the planes of a quantized matrix.
struct quantized_tables {
  codebook_ladder codebooks;
  sparse_matrix outliers;  ///< see quantized_matrix::outliers
  quantize_report report;
};

/// A quantized matrix whose codes are packed to planes of `codebooks.max_bits()` bits.
struct packed_matrix : quantized_tables {
  bitplane_tensor planes;
};

/// Where a quantizer's thread spent its time, in seconds.
struct quantizer_times {
  double choose = 0;  ///< for the card to choose outliers
  double in = 0;      ///< from the caller's memory to page-locked memory
  double wait = 0;    ///< for the card
  double out = 0;     ///< from page-locked memory to the caller's
};

/// Quantizes one matrix after another on the device that was current when it was made, keeping its
/// memory there. While some rows are quantized, the next are copied. A host thread that wants to
/// keep a card busy beyond the end of a matrix has a second one work on the next: each its own
/// quantizer.
class quantizer {
 public:
  /// @param pool threads that copy and choose outliers, or null for the caller's alone; the result
  /// does not depend on it
  /// @throws error if there is no device
  explicit quantizer(thread_pool* pool = nullptr) : pool_(pool) {
    for (slot& s : slots_) {
      check(call_status(cudaStreamCreateWithFlags(&s.stream, cudaStreamNonBlocking)));
      check(call_status(
          cudaEventCreateWithFlags(&s.done, cudaEventDisableTiming | cudaEventBlockingSync)));
    }
  }
  quantizer(const quantizer&) = delete;
  quantizer& operator=(const quantizer&) = delete;

  /// Quantizes `w` as bitladder::quantize does, and waits for it.
  /// @tparam Value float, fp16_t or bf16_t
  /// @param s as many rows and columns as `w`
  /// @throws error as bitladder::quantize, for the published method (which runs on the host alone),
  /// and if the device has too little memory: some 60 bytes for each of 4 million elements, and the
  /// arrays of four rows for each multiprocessor, and with outliers the whole of `w` and `s`; as
  /// page-locked memory of the host some 16 bytes for each of those elements
  template <class Value>
  quantized_matrix quantize(matrix_view<const Value> w, const sensitivity& s,
                            const kmeans_options& options) {
    bitladder::detail::check_quantize(w, s, options, true);
    bitladder::detail::quantized_parts parts(w.rows(), w.cols(), options);
    run(w, s, options, parts, nullptr);
    return std::move(parts).done();
  }

  /// The same with the codes packed on the device: what pack(codes, max_bits) gives.
  template <class Value>
  packed_matrix quantize_packed(matrix_view<const Value> w, const sensitivity& s,
                                const kmeans_options& options) {
    bitladder::detail::check_quantize(w, s, options, true);
    packed_matrix q;
    q.planes = bitplane_tensor(bitplane_layout{w.rows(), w.cols(), options.max_bits});
    static_cast<quantized_tables&>(q) = quantize_packed(w, s, options, q.planes.data());
    return q;
  }

  /// The same with the planes in the caller's memory, all of which is written.
  /// @param planes words of bitplane_layout{rows, cols, options.max_bits}
  template <class Value>
  quantized_tables quantize_packed(matrix_view<const Value> w, const sensitivity& s,
                                   const kmeans_options& options, std::uint32_t* planes) {
    bitladder::detail::check_quantize(w, s, options, true);
    bitladder::detail::quantized_parts parts(w.rows(), w.cols(), options, false);
    run(w, s, options, parts, planes);
    const quantized_matrix q = std::move(parts).done();
    return {q.codebooks(), q.outliers(), q.report()};
  }

  /// Of everything so far.
  const quantizer_times& times() const { return times_; }

 private:
  /// Rows under way.
  struct slot {
    slot() = default;
    slot(const slot&) = delete;
    slot& operator=(const slot&) = delete;
    ~slot() {
      if (stream == nullptr) return;
      static_cast<void>(call_status(cudaStreamSynchronize(stream)));
      if (done != nullptr) static_cast<void>(call_status(cudaEventDestroy(done)));
      static_cast<void>(call_status(cudaStreamDestroy(stream)));
    }

    detail::quantize_buffers on_card;
    detail::page_locked values, sensitivities, results;
    cudaStream_t stream = nullptr;
    cudaEvent_t done = nullptr;
    int row = 0, rows = 0;  ///< none if 0
  };

  /// One matrix.
  template <class Value>
  struct job {
    matrix_view<const Value> w;
    const sensitivity& s;
    const kmeans_options& options;
    detail::quantize_plan plan;
    sparse_view outliers;
    const detail::hidden_tables& hidden;
    bitladder::detail::quantized_parts& parts;
    std::uint32_t* planes;  ///< where codes go packed, or null for the codes of `parts`
  };

  /// Adds the time of its life.
  class stopwatch {
   public:
    explicit stopwatch(double& seconds) : seconds_(seconds) {}
    ~stopwatch() {
      seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }

   private:
    double& seconds_;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  };

  template <class Value>
  void run(matrix_view<const Value> w, const sensitivity& s, const kmeans_options& options,
           bitladder::detail::quantized_parts& parts, std::uint32_t* planes) {
    if (options.method != quantize_method::exact)
      throw error(status::invalid_argument,
                  "quantize on a CUDA device: expected method exact, found " +
                      std::string(to_string(options.method)));
    if (w.cols() == 0) return;
    const outlier_counts n = count_outliers(options.outliers, w.rows(), w.cols(), s.is_uniform());
    sparse_matrix outliers(w.rows(), w.cols());
    if (w.rows() > 0) {
      const bool some = n.all() > 0;
      detail::quantize_plan plan = detail::plan_quantize<Value>(
          w.rows(), w.cols(), options, some || !s.is_uniform(), planes != nullptr);
      plan.resident = some;
      detail::hidden_tables hidden;
      settle_slots();
      if (some) outliers = choose(w, s, n, options.groups, plan, hidden);
      const job<Value> j{w, s, options, plan, outliers.view(), hidden, parts, planes};
      if (!run(j)) bitladder::detail::report_bad_input(w, s);
    }
    parts.keep(std::move(outliers));
  }

  /// Waits for what a run that failed has left under way.
  void settle_slots() {
    for (slot& s : slots_) {
      if (s.rows > 0) check(call_status(cudaStreamSynchronize(s.stream)));
      s.rows = 0;
    }
  }

  /// Sends the whole matrix, and has the card choose and hide its outliers.
  template <class Value>
  sparse_matrix choose(matrix_view<const Value> w, const sensitivity& s, const outlier_counts& n,
                       int groups, const detail::quantize_plan& plan,
                       detail::hidden_tables& hidden) {
    const cudaStream_t stream = slots_[0].stream;
    const std::size_t cols = static_cast<std::size_t>(w.cols());
    outliers_.template resize<Value>(w.rows(), w.cols());
    if (s.is_uniform()) outliers_.fill_ones(stream);
    int at = 0;
    for (int row = 0; row < w.rows(); row += plan.rows_at_once, at ^= 1) {
      const int rows = std::min(plan.rows_at_once, w.rows() - row);
      slot& by = slots_[at];
      {
        const stopwatch watch(times_.wait);
        check(call_status(cudaEventSynchronize(by.done)));  // it may be on its way from here
      }
      gather(by, w, s, !s.is_uniform(), row, rows);
      const std::size_t first = static_cast<std::size_t>(row) * cols;
      const std::size_t elements = static_cast<std::size_t>(rows) * cols;
      by.rows = rows;
      check(call_status(cudaMemcpyAsync(outliers_.template values<Value>() + first,
                                        by.values.template as<const Value>(),
                                        elements * sizeof(Value), cudaMemcpyHostToDevice, stream)));
      if (!s.is_uniform())
        check(call_status(cudaMemcpyAsync(
            outliers_.sensitivities() + first, by.sensitivities.template as<const float>(),
            elements * sizeof(float), cudaMemcpyHostToDevice, stream)));
      check(call_status(cudaEventRecord(by.done, stream)));
    }
    const stopwatch watch(times_.choose);
    std::optional<sparse_matrix> chosen =
        outliers_.template choose<Value>(n, groups, hidden, stream);
    for (slot& by : slots_) by.rows = 0;
    if (!chosen) {  // the host says which weight or sensitivity is bad
      static_cast<void>(choose_outliers(w, s, n, pool_));
      bitladder::detail::report_bad_input(w, s);
      throw error(status::launch_failed, "quantize: outliers could not be chosen on the card");
    }
    return std::move(*chosen);
  }

  /// @return false if something cannot be quantized
  template <class Value>
  bool run(const job<Value>& j) {
    bool good = true;
    int at = 0;
    for (int row = 0; row < j.w.rows() && good; row += j.plan.rows_at_once) {
      // The card has the other's rows meanwhile.
      good = finish(slots_[at], j);
      if (good) start(slots_[at], j, row, std::min(j.plan.rows_at_once, j.w.rows() - row));
      at ^= 1;
    }
    for (int i = 0; i < 2; ++i, at ^= 1) good = finish(slots_[at], j) && good;
    return good;
  }

  /// Copies rows to page-locked memory, unless they are on the card, and queues everything up to
  /// their results.
  template <class Value>
  void start(slot& to, const job<Value>& j, int row, int rows) {
    const std::size_t cols = static_cast<std::size_t>(j.w.cols());
    const std::size_t first = static_cast<std::size_t>(row) * cols;
    const std::size_t elements = static_cast<std::size_t>(rows) * cols;
    const detail::batch_results where(j.plan, j.options, rows);
    detail::quantize_buffers& b = to.on_card;
    detail::allocate<Value>(b, j.plan, j.options);
    to.results.fit(where.bytes);
    if (!j.plan.resident) gather(to, j.w, j.s, j.plan.weighted, row, rows);
    // From here on, until finish, the memory of this slot is the card's.
    to.row = row;
    to.rows = rows;
    const Value* values = nullptr;
    const float* sensitivities = nullptr;
    if (j.plan.resident) {
      values = outliers_.template values<Value>() + first;
      sensitivities = outliers_.sensitivities() + first;
    } else {
      check(b.values.upload(to.values.template as<const unsigned char>(), elements * sizeof(Value),
                            to.stream));
      values = reinterpret_cast<const Value*>(b.values.data());
      if (j.plan.weighted) {
        check(b.sensitivities.upload(to.sensitivities.template as<const unsigned char>(),
                                     elements * sizeof(float), to.stream));
        sensitivities = reinterpret_cast<const float*>(b.sensitivities.data());
      }
    }
    detail::queue_quantize(b, j.plan, j.options, values, sensitivities, rows, to.stream);
    check(b.results.download(to.results.template as<unsigned char>(), where.bytes, to.stream));
    check(call_status(cudaEventRecord(to.done, to.stream)));
  }

  /// Rows to page-locked memory.
  template <class Value>
  void gather(slot& to, matrix_view<const Value> w, const sensitivity& s, bool weighted, int row,
              int rows) {
    const stopwatch watch(times_.in);
    const std::size_t cols = static_cast<std::size_t>(w.cols());
    const std::size_t elements = static_cast<std::size_t>(rows) * cols;
    to.values.fit(elements * sizeof(Value));
    if (weighted) to.sensitivities.fit(elements * sizeof(float));
    Value* const values = to.values.template as<Value>();
    float* const weights = weighted ? to.sensitivities.template as<float>() : nullptr;
    const std::int64_t grain = std::max(1, (1 << 16) / w.cols());
    parallel_for(pool_, rows, grain, [&](std::int64_t begin, std::int64_t end) {
      for (int r = static_cast<int>(begin); r < static_cast<int>(end); ++r) {
        const std::size_t at = static_cast<std::size_t>(r) * cols;
        std::memcpy(values + at, w.row(row + r), cols * sizeof(Value));
        if (weighted) std::memcpy(weights + at, s.row(row + r), cols * sizeof(float));
      }
    });
  }

  /// Waits for a slot's rows and takes their results.
  /// @return false if something cannot be quantized
  template <class Value>
  bool finish(slot& from, const job<Value>& j) {
    if (from.rows == 0) return true;
    {
      const stopwatch watch(times_.wait);
      check(call_status(cudaEventSynchronize(from.done)));
    }
    const stopwatch watch(times_.out);
    const int row = from.row, rows = std::exchange(from.rows, 0);
    const unsigned char* const found = from.results.as<const unsigned char>();
    const detail::batch_results where(j.plan, j.options, rows);
    if (*reinterpret_cast<const int*>(found + where.bad) != 0) return false;
    take_results(j, row, rows, found, where);
    std::atomic<bool> good{true};
    // Errors of rows with outliers are longer work.
    parallel_for(
        pool_, rows, j.outliers.empty() ? 1024 : 8, [&](std::int64_t begin, std::int64_t end) {
          if (!settle(j, row, static_cast<int>(begin), static_cast<int>(end), found, where))
            good.store(false, std::memory_order_relaxed);
        });
    return good.load();
  }

  /// Codes and tables, as they are.
  template <class Value>
  void take_results(const job<Value>& j, int row, int rows, const unsigned char* found,
                    const detail::batch_results& where) {
    const std::size_t groups = static_cast<std::size_t>(j.options.groups);
    const std::size_t first = static_cast<std::size_t>(row) * groups;
    const std::size_t tables = static_cast<std::size_t>(rows) * groups;
    copies_.clear();
    for (int bits = j.options.min_bits; bits <= j.options.max_bits; ++bits)
      copies_.add(j.parts.table(bits, first), found + where.tables[static_cast<std::size_t>(bits)],
                  (tables << bits) * sizeof(fp16_t));
    const unsigned char* codes = found + where.codes;
    if (j.planes == nullptr) {
      copies_.add(j.parts.codes(row), codes,
                  static_cast<std::size_t>(rows) * static_cast<std::size_t>(j.w.cols()));
    } else {
      const bitplane_layout l = layout_of(j);
      const std::size_t bytes = static_cast<std::size_t>(rows) *
                                static_cast<std::size_t>(l.words()) * sizeof(std::uint32_t);
      for (int p = 0; p < l.planes; ++p, codes += bytes)
        copies_.add(j.planes + l.word(p, row, 0), codes, bytes);
    }
    copies_.run(pool_);
  }

  /// The errors of rows [begin, end) from `row` on, and everything of those left to the host.
  /// @return false if a sensitivity cannot be used
  template <class Value>
  bool settle(const job<Value>& j, int row, int begin, int end, const unsigned char* found,
              const detail::batch_results& where) {
    const auto* const states = reinterpret_cast<const detail::row_state*>(found + where.states);
    const auto* const errors = reinterpret_cast<const std::array<double, 9>*>(found + where.errors);
    for (int i = begin * j.options.groups; i < end * j.options.groups; ++i) {
      const int r = row + i / j.options.groups, col = i % j.options.groups * j.plan.count;
      const std::size_t t =
          static_cast<std::size_t>(row) * static_cast<std::size_t>(j.options.groups) +
          static_cast<std::size_t>(i);
      if (states[i] == detail::row_state::bad_sensitivity) return false;
      if (states[i] == detail::row_state::few_points) {
        if (!build(j, r, col, t)) return false;
        continue;
      }
      std::array<double, 9>& e = j.parts.errors(t);
      e[0] = errors[i][0];
      for (int bits = j.options.min_bits; bits <= j.options.max_bits; ++bits)
        e[static_cast<std::size_t>(bits)] = errors[i][static_cast<std::size_t>(bits)];
      if (!j.outliers.empty()) correct(j, r, col, t);
    }
    return true;
  }

  /// The errors of a table's clustering to those of the whole row, as hidden_outliers has it.
  template <class Value>
  static void correct(const job<Value>& j, int row, int col, std::size_t t) {
    const std::int32_t* const columns = j.outliers.columns();
    const std::int32_t* const end = columns + j.outliers.end(row);
    const std::int32_t* c = std::lower_bound(columns + j.outliers.begin(row), end, col);
    if (c == end || *c >= col + j.plan.count) return;
    double rounding = 0;
    for (; c != end && *c < col + j.plan.count; ++c) {
      const double d = static_cast<double>(to_float(j.w(row, *c))) -
                       static_cast<double>(to_float(j.outliers.values()[c - columns]));
      rounding += (j.s.is_uniform() ? 1.0 : static_cast<double>(j.s.row(row)[*c])) * d * d;
    }
    std::array<double, 9>& e = j.parts.errors(t);
    for (int b = j.options.min_bits; b <= j.options.max_bits; ++b) {
      double& at = e[static_cast<std::size_t>(b)];
      at = (j.hidden.idle[t] != 0 ? 0 : at) + rounding;
    }
    e[0] = j.hidden.variance[t];
  }

  /// One table on the host. All outliers of it are one point, and so have one code.
  template <class Value>
  bool build(const job<Value>& j, int row, int col, std::size_t t) {
    std::unique_ptr<kmeans::row_ladder> ladder = on_host_.take();
    bitladder::detail::hidden_outliers<Value> hidden;
    std::vector<std::uint8_t> own;
    std::uint8_t* codes = nullptr;
    if (j.planes == nullptr) {
      codes = j.parts.codes(row) + col;
    } else {
      own.resize(static_cast<std::size_t>(j.plan.count));
      codes = own.data();
    }
    const bool hides = hidden.take(j.w, j.s, j.outliers, row, col, j.plan.count);
    const bool good =
        hides ? j.parts.build(*ladder, hidden.weights(), hidden.sensitivities(), 0, col, t, codes)
              : j.parts.build(*ladder, j.w, j.s, row, col, t, codes);
    on_host_.give(std::move(ladder));
    if (!good) return false;
    if (hides) hidden.correct(j.parts.errors(t), j.options.min_bits, j.options.max_bits);
    if (j.planes != nullptr) set_codes(j, row, col, codes);
    return true;
  }

  template <class Value>
  static bitplane_layout layout_of(const job<Value>& j) {
    return {j.w.rows(), j.w.cols(), j.options.max_bits};
  }

  template <class Value>
  static void set_codes(const job<Value>& j, int row, int col, const std::uint8_t* codes) {
    const bitplane_layout l = layout_of(j);
    for (int p = 0; p < l.planes; ++p)
      for (int i = 0; i < j.plan.count; ++i) {
        std::uint32_t& word = j.planes[l.word(p, row, (col + i) / 32)];
        const std::uint32_t bit = 1u << (col + i) % 32;
        word = (codes[i] >> (l.planes - 1 - p) & 1) != 0 ? word | bit : word & ~bit;
      }
  }

  thread_pool* pool_;
  slot slots_[2];
  quantizer_times times_;
  detail::copy_list copies_;
  detail::card_outliers outliers_;
  bitladder::detail::scratch_pool<kmeans::row_ladder> on_host_;
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
