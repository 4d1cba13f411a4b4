// SPDX-License-Identifier: MIT
// The outliers of a matrix on the card, found as outliers.hpp finds them: keys that order as
// saliency or magnitude does, their digits counted, the smallest key that is in, the first of those
// that are equal to it. And what quantizing sees of their rows, as hidden_outliers.hpp has it.
// Device code only. Tested by tests/quantize/cuda/quantize_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>

#include <cfloat>
#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// What the greatest are taken of.
enum class outlier_order : std::uint8_t { saliency, sensitivity, magnitude };

/// A matrix on the card and which of its weights are taken, a bit each.
template <class Value>
struct outlier_matrix {
  Value* values;         ///< [rows, cols]
  float* sensitivities;  ///< [rows, cols]
  std::uint32_t* taken;  ///< [rows, words]
  int rows, cols, words;

  __device__ std::size_t at(int row, int col) const {
    return static_cast<std::size_t>(row) * static_cast<std::size_t>(cols) +
           static_cast<std::size_t>(col);
  }
  __device__ std::size_t word(int row, int w) const {
    return static_cast<std::size_t>(row) * static_cast<std::size_t>(words) +
           static_cast<std::size_t>(w);
  }
  __device__ bool is_taken(int row, int col) const {
    return (taken[word(row, col / 32)] >> (col % 32) & 1u) != 0;
  }
  __device__ std::uint32_t key(int row, int col, outlier_order order) const {
    const std::size_t i = at(row, col);
    float v = 0;
    if (order == outlier_order::sensitivity) {
      v = sensitivities[i];
    } else {
      const float x = to_float(values[i]);
      v = order == outlier_order::magnitude ? x : __fmul_rn(__fmul_rn(sensitivities[i], x), x);
    }
    return __float_as_uint(v) & 0x7fffffffu;
  }
};

/// Digits of a key that are counted in one pass.
inline constexpr int outlier_digits = 2048;
inline constexpr int outlier_threads = 256;

__device__ inline int outlier_lane() { return static_cast<int>(threadIdx.x) % 32; }
/// The warp's number in the grid, and how many there are.
__device__ inline int outlier_warp() {
  return static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
}
__device__ inline int outlier_warps() { return static_cast<int>(gridDim.x * blockDim.x / 32); }
/// How many of the lanes before this one are in `mask`.
__device__ inline int lanes_before(std::uint32_t mask) {
  return __popc(mask & ((1u << outlier_lane()) - 1));
}

/// Adds to `counts` the digits at `shift` of the keys that are not taken and begin with `high`.
template <class Value>
BL_KERNEL __launch_bounds__(outlier_threads)
    count_digits_kernel(outlier_matrix<Value> m, outlier_order order, std::uint32_t high, int shift,
                        int bits, unsigned long long* counts) {
  __shared__ unsigned here[outlier_digits];
  for (int i = static_cast<int>(threadIdx.x); i < outlier_digits; i += outlier_threads) here[i] = 0;
  __syncthreads();
  const int all = m.rows * m.words;
  for (int i = outlier_warp(); i < all; i += outlier_warps()) {
    const int row = i / m.words, col = i % m.words * 32 + outlier_lane();
    if (col >= m.cols || m.is_taken(row, col)) continue;
    const std::uint32_t key = m.key(row, col, order);
    if (key >> (shift + bits) == high) atomicAdd(&here[key >> shift & ((1u << bits) - 1)], 1u);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < outlier_digits; i += outlier_threads)
    if (here[i] != 0) atomicAdd(&counts[i], static_cast<unsigned long long>(here[i]));
}

/// Of each row how many keys are above `lowest`, and how many equal to it. A warp takes a row.
template <class Value>
BL_KERNEL __launch_bounds__(outlier_threads)
    count_rows_kernel(outlier_matrix<Value> m, outlier_order order, std::uint32_t lowest,
                      std::int32_t* above, std::int32_t* same) {
  for (int row = outlier_warp(); row < m.rows; row += outlier_warps()) {
    int more = 0, alike = 0;
    for (int first = 0; first < m.cols; first += 32) {
      const int col = first + outlier_lane();
      const bool in = col < m.cols && !m.is_taken(row, col);
      const std::uint32_t key = in ? m.key(row, col, order) : 0;
      more += __popc(__ballot_sync(~0u, in && key > lowest));
      alike += __popc(__ballot_sync(~0u, in && key == lowest));
    }
    if (outlier_lane() == 0) {
      above[row] = more;
      same[row] = alike;
    }
  }
}

/// Takes the keys above `lowest` and of each row the first `same` that are equal to it.
template <class Value>
BL_KERNEL __launch_bounds__(outlier_threads)
    take_outliers_kernel(outlier_matrix<Value> m, outlier_order order, std::uint32_t lowest,
                         const std::int32_t* same) {
  for (int row = outlier_warp(); row < m.rows; row += outlier_warps()) {
    int left = same[row];
    for (int first = 0; first < m.cols; first += 32) {
      const int col = first + outlier_lane();
      const bool in = col < m.cols && !m.is_taken(row, col);
      const std::uint32_t key = in ? m.key(row, col, order) : 0;
      const bool equal = in && key == lowest;
      const std::uint32_t alike = __ballot_sync(~0u, equal);
      const std::uint32_t chosen =
          __ballot_sync(~0u, (in && key > lowest) || (equal && lanes_before(alike) < left));
      left = max(left - __popc(alike), 0);
      if (outlier_lane() == 0 && chosen != 0) m.taken[m.word(row, first / 32)] |= chosen;
      __syncwarp();
    }
  }
}

/// Columns and values of what is taken, from offsets[row] on; notes in `bad` one that cannot be
/// kept.
template <class Value>
BL_KERNEL __launch_bounds__(outlier_threads)
    collect_outliers_kernel(outlier_matrix<Value> m, const std::int32_t* offsets,
                            std::int32_t* columns, fp16_t* kept, int* bad) {
  for (int row = outlier_warp(); row < m.rows; row += outlier_warps()) {
    int at = offsets[row];
    for (int w = 0; w < m.words; ++w) {
      const std::uint32_t mask = m.taken[m.word(row, w)];
      if ((mask >> outlier_lane() & 1u) != 0) {
        const int col = w * 32 + outlier_lane(), i = at + lanes_before(mask);
        const float x = to_float(m.values[m.at(row, col)]), s = m.sensitivities[m.at(row, col)];
        if (!(x <= fp16_max && x >= -fp16_max) || !(s >= 0.f && s <= FLT_MAX)) *bad = 1;
        columns[i] = col;
        kept[i] = to_fp16(x);
      }
      at += __popc(mask);
    }
  }
}

/// The weighted variance of each table, adding in the order of its columns, a thread for each. Of
/// use only for those with outliers, so the others are left out.
template <class Value>
BL_KERNEL __launch_bounds__(outlier_threads)
    whole_variance_kernel(outlier_matrix<Value> m, int groups, const std::int32_t* offsets,
                          const std::int32_t* columns, double* variance) {
  const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (t >= m.rows * groups) return;
  const int row = t / groups, count = m.cols / groups, begin = t % groups * count;
  bool hides = false;
  for (int i = offsets[row]; i < offsets[row + 1]; ++i)
    hides = hides || (columns[i] >= begin && columns[i] < begin + count);
  if (!hides) return;
  const Value* const x = m.values + m.at(row, begin);
  const float* const s = m.sensitivities + m.at(row, begin);
  double weight = 0, sum = 0, square = 0;
#pragma unroll 8
  for (int c = 0; c < count; ++c) {
    const double w = static_cast<double>(s[c]);
    weight = __dadd_rn(weight, w);
    sum = __dadd_rn(sum, __dmul_rn(w, static_cast<double>(to_float(x[c]))));
  }
  const double mean = weight > 0 ? __ddiv_rn(sum, weight) : 0;
#pragma unroll 8
  for (int c = 0; c < count; ++c) {
    const double d = __dsub_rn(static_cast<double>(to_float(x[c])), mean);
    square = __dadd_rn(square, __dmul_rn(__dmul_rn(static_cast<double>(s[c]), d), d));
  }
  variance[t] = square;
}

/// Makes what is taken zero and of no weight, a warp for each table. If what is left of one has no
/// sensitivity, it all counts alike.
/// @param idle of each table whether that was so
template <class Value>
BL_KERNEL __launch_bounds__(outlier_threads)
    hide_outliers_kernel(outlier_matrix<Value> m, int groups, std::uint8_t* idle) {
  const int count = m.cols / groups, tables = m.rows * groups;
  for (int t = outlier_warp(); t < tables; t += outlier_warps()) {
    const int row = t / groups, begin = t % groups * count;
    bool hides = false, weighs = false;
    for (int c = begin + outlier_lane(); c < begin + count; c += 32) {
      const std::size_t i = m.at(row, c);
      if (m.is_taken(row, c)) {
        m.values[i] = Value{};
        m.sensitivities[i] = 0;
        hides = true;
      } else if (m.sensitivities[i] != 0) {
        weighs = true;
      }
    }
    hides = __any_sync(~0u, hides) != 0;
    weighs = __any_sync(~0u, weighs) != 0;
    if (hides && !weighs)
      for (int c = begin + outlier_lane(); c < begin + count; c += 32)
        if (!m.is_taken(row, c)) m.sensitivities[m.at(row, c)] = 1;
    if (outlier_lane() == 0) idle[t] = hides && !weighs ? 1 : 0;
  }
}

/// Fills with ones.
template <class Value>
BL_KERNEL fill_ones_kernel(Value* out, std::int64_t count) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride)
    out[i] = 1;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
