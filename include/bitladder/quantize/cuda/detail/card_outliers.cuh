// SPDX-License-Identifier: MIT
// Outliers of a whole matrix that is on the card, chosen and hidden there: choose_outliers of
// outliers.hpp with the same result. Tested by tests/quantize/cuda/quantize_test.cu.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/quantize/cuda/detail/outlier_kernels.cuh>
#include <bitladder/quantize/outliers.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// What the host must know of tables that have outliers, to make their errors those of whole rows.
struct hidden_tables {
  std::vector<double> variance;    ///< weighted, of the whole [tables]
  std::vector<std::uint8_t> idle;  ///< whether nothing but outliers had a sensitivity [tables]
};

/// Chooses in one matrix after another, keeping its memory.
class card_outliers {
 public:
  /// Room for a matrix that is filled next.
  /// @throws error(out_of_memory)
  template <class Value>
  void resize(int rows, int cols) {
    rows_ = rows;
    cols_ = cols;
    words_ = (cols + 31) / 32;
    const std::size_t elements = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols);
    fit(values_, elements * sizeof(Value));
    fit(sensitivities_, elements * sizeof(float));
  }
  template <class Value>
  Value* values() {
    return reinterpret_cast<Value*>(values_.data());
  }
  float* sensitivities() { return reinterpret_cast<float*>(sensitivities_.data()); }

  /// Where every weight counts alike.
  void fill_ones(cudaStream_t stream) {
    fill_ones_kernel<<<1024, outlier_threads, 0, stream>>>(
        sensitivities(), static_cast<std::int64_t>(rows_) * cols_);
    check(launch_status());
  }

  /// Chooses among what was filled in on `stream`, hides them there, and waits.
  /// @param groups column groups of a row
  /// @return nothing if one cannot be kept: the host's choose_outliers says which
  template <class Value>
  std::optional<sparse_matrix> choose(const outlier_counts& n, int groups, hidden_tables& hidden,
                                      cudaStream_t stream) {
    const std::size_t rows = static_cast<std::size_t>(rows_);
    const std::size_t tables = rows * static_cast<std::size_t>(groups);
    const std::size_t count = static_cast<std::size_t>(n.all());
    fit(taken_, rows * static_cast<std::size_t>(words_) * sizeof(std::uint32_t));
    fit(digits_, outlier_digits * sizeof(unsigned long long));
    fit(above_, rows * sizeof(std::int32_t));
    fit(same_, rows * sizeof(std::int32_t));
    fit(offsets_, (rows + 1) * sizeof(std::int32_t));
    fit(columns_, count * sizeof(std::int32_t));
    fit(kept_, count * sizeof(fp16_t));
    fit(variance_, tables * sizeof(double));
    fit(idle_, tables);
    fit(bad_, sizeof(int));
    const outlier_matrix<Value> m{
        values<Value>(), sensitivities(), reinterpret_cast<std::uint32_t*>(taken_.data()),
        rows_,           cols_,           words_};
    check(taken_.clear(stream));
    check(bad_.clear(stream));
    check(variance_.clear(stream));
    std::vector<std::int32_t> of_rows(rows, 0);
    take(m,
         n.rule == outlier_rule::sensitivity ? outlier_order::sensitivity : outlier_order::saliency,
         n.sensitive, of_rows, stream);
    take(m, outlier_order::magnitude, n.large, of_rows, stream);

    std::vector<std::int32_t> offsets(rows + 1, 0), columns(count);
    for (std::size_t r = 0; r < rows; ++r) offsets[r + 1] = offsets[r] + of_rows[r];
    if (static_cast<std::size_t>(offsets[rows]) != count) return std::nullopt;
    copy_in(offsets_, offsets, stream);
    auto* const at = reinterpret_cast<std::int32_t*>(offsets_.data());
    auto* const to = reinterpret_cast<std::int32_t*>(columns_.data());
    collect_outliers_kernel<<<warp_grid(rows_), outlier_threads, 0, stream>>>(
        m, at, to, reinterpret_cast<fp16_t*>(kept_.data()), reinterpret_cast<int*>(bad_.data()));
    check(launch_status());
    const int all = rows_ * groups;
    constexpr int few = 64;  // threads that add one after the other: on many multiprocessors
    whole_variance_kernel<<<(all + few - 1) / few, few, 0, stream>>>(
        m, groups, at, to, reinterpret_cast<double*>(variance_.data()));
    check(launch_status());
    hide_outliers_kernel<<<warp_grid(all), outlier_threads, 0, stream>>>(m, groups, idle_.data());
    check(launch_status());
    std::vector<fp16_t> kept(count);
    std::vector<int> bad(1, 0);
    hidden.variance.resize(tables);
    hidden.idle.resize(tables);
    copy_out(columns_, columns, stream);
    copy_out(kept_, kept, stream);
    copy_out(variance_, hidden.variance, stream);
    copy_out(idle_, hidden.idle, stream);
    copy_out(bad_, bad, stream);
    check(call_status(cudaStreamSynchronize(stream)));
    if (bad[0] != 0) return std::nullopt;
    return sparse_matrix(rows_, cols_, std::move(offsets), std::move(columns), std::move(kept));
  }

 private:
  using memory = buffer<unsigned char>;

  static void fit(memory& to, std::size_t size) {
    if (to.size() < size) check(to.allocate(size), "device memory");
  }
  static int warp_grid(int warps) {
    constexpr int of_block = outlier_threads / 32;
    return std::min((warps + of_block - 1) / of_block, 4096);
  }
  template <class T>
  static void copy_in(memory& to, const std::vector<T>& from, cudaStream_t stream) {
    check(to.upload(reinterpret_cast<const unsigned char*>(from.data()), from.size() * sizeof(T),
                    stream));
  }
  template <class T>
  static void copy_out(const memory& from, std::vector<T>& to, cudaStream_t stream) {
    check(
        from.download(reinterpret_cast<unsigned char*>(to.data()), to.size() * sizeof(T), stream));
  }

  /// Takes the `wanted` greatest of what is left, and adds to `of_rows` how many of each row.
  template <class Value>
  void take(const outlier_matrix<Value>& m, outlier_order order, std::int64_t wanted,
            std::vector<std::int32_t>& of_rows, cudaStream_t stream) {
    if (wanted <= 0) return;
    std::uint32_t lowest = 0;
    std::int64_t left = wanted;
    std::vector<unsigned long long> counts(outlier_digits);
    constexpr int shifts[] = {20, 10, 0};
    for (int shift = 31, bits = 0, i = 0; i < 3; ++i) {
      bits = shift - shifts[i];
      shift = shifts[i];
      check(digits_.clear(stream));
      count_digits_kernel<<<warp_grid(rows_ * words_), outlier_threads, 0, stream>>>(
          m, order, lowest, shift, bits, reinterpret_cast<unsigned long long*>(digits_.data()));
      check(launch_status());
      copy_out(digits_, counts, stream);
      check(call_status(cudaStreamSynchronize(stream)));
      std::size_t d = (std::size_t{1} << bits) - 1;
      for (; d > 0 && static_cast<std::int64_t>(counts[d]) < left; --d)
        left -= static_cast<std::int64_t>(counts[d]);
      lowest = lowest << bits | static_cast<std::uint32_t>(d);
    }
    std::vector<std::int32_t> above(of_rows.size()), same(of_rows.size());
    count_rows_kernel<<<warp_grid(rows_), outlier_threads, 0, stream>>>(
        m, order, lowest, reinterpret_cast<std::int32_t*>(above_.data()),
        reinterpret_cast<std::int32_t*>(same_.data()));
    check(launch_status());
    copy_out(above_, above, stream);
    copy_out(same_, same, stream);
    check(call_status(cudaStreamSynchronize(stream)));
    for (std::size_t r = 0; r < above.size(); ++r) {
      same[r] = static_cast<std::int32_t>(std::min<std::int64_t>(same[r], left));
      left -= same[r];
      of_rows[r] += above[r] + same[r];
    }
    copy_in(same_, same, stream);
    take_outliers_kernel<<<warp_grid(rows_), outlier_threads, 0, stream>>>(
        m, order, lowest, reinterpret_cast<const std::int32_t*>(same_.data()));
    check(launch_status());
  }

  int rows_ = 0, cols_ = 0, words_ = 0;
  memory values_, sensitivities_, taken_, digits_, above_, same_, offsets_, columns_, kept_;
  memory variance_, idle_, bad_;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
