// SPDX-License-Identifier: MIT
// The weight of one linear layer on a card: packed planes with the tables of the loaded precisions,
// or rows of floats. Rows that a family keeps in one matrix (query, key and value; gate and up)
// become linears of their own, so that the engine knows one form. Tested by
// tests/llama/cuda/engine_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/packed_outliers.hpp>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include <llama/cuda_engine.hpp>
#include <llama/cuda_matrix.cuh>
#include <llama/linear_weight.hpp>
#include <llama/model.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace llama {
namespace card {

namespace detail {

/// bf16 to fp16 in place; `overflow` becomes 1 if a number does not fit.
template <class = void>
BL_KERNEL to_half_kernel(std::uint16_t* data, std::size_t count, int* overflow) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const float f = __bfloat162float(__ushort_as_bfloat16(data[i]));
    const __half h = __float2half_rn(f);
    if (__hisinf(h) != 0 && isfinite(f)) *overflow = 1;
    data[i] = __half_as_ushort(h);
  }
}

}  // namespace detail

/// Precisions to load, or none for what is not quantized.
struct bits_range {
  int least = unquantized, most = unquantized;

  bool quantized() const { return most != unquantized; }
};

/// Rows of floats on the card.
class device_matrix {
 public:
  static std::size_t predict(const dense_matrix& m) { return m.bytes(); }

  /// @param as_half turn bf16 into fp16 if every number fits: what the products for many tokens
  /// take. Of fp16's 11 bits, bf16 fills 8 down to 2^-17; below, 2^-25 may be lost.
  void upload(const dense_matrix& m, int first, int rows, bool as_half, cudaStream_t stream) {
    type_ = m.type;
    rows_ = rows;
    cols_ = m.cols;
    const std::size_t bytes = static_cast<std::size_t>(rows) * m.row_bytes();
    reserve(data_, bytes);
    const auto* from =
        static_cast<const std::byte*>(m.data) + static_cast<std::size_t>(first) * m.row_bytes();
    bitladder::check(data_.upload(from, bytes, stream));
    if (as_half && type_ == bitladder::dtype::bf16) {
      bitladder::cuda::buffer<int> overflow;
      reserve(overflow, 1);
      bitladder::check(overflow.clear(stream));
      detail::to_half_kernel<><<<1024, 256, 0, stream>>>(
          reinterpret_cast<std::uint16_t*>(data_.data()), bytes / 2, overflow.data());
      bitladder::check(bitladder::cuda::launch_status());
      int over = 0;
      bitladder::check(overflow.download(&over, 1, stream));
      bitladder::check(bitladder::cuda::call_status(cudaStreamSynchronize(stream)));
      if (over == 0)
        type_ = bitladder::dtype::f16;
      else
        bitladder::check(data_.upload(from, bytes, stream));
    }
  }

  bitladder::dtype type() const { return type_; }
  int rows() const { return rows_; }
  int cols() const { return cols_; }
  const void* data() const { return data_.data(); }
  std::size_t bytes() const { return data_.size(); }

 private:
  bitladder::cuda::buffer<std::byte> data_;
  bitladder::dtype type_ = bitladder::dtype::f16;
  int rows_ = 0, cols_ = 0;
};

/// Some rows of a linear, in host memory.
struct linear_rows {
  const linear_weight* w = nullptr;
  int first = 0, rows = 0;

  linear_rows(const linear_weight& all) : w(&all), rows(all.rows) {}
  linear_rows(const linear_weight& all, int from, int count) : w(&all), first(from), rows(count) {}

  bool all() const { return rows == w->rows; }
  int groups(int bits) const { return w->table[static_cast<std::size_t>(bits)].groups(); }
  /// Whether products with packed planes take it.
  bool packable(const bits_range& bits) const {
    if (!w->quantized() || w->cols % 32 != 0) return false;
    const int g = groups(bits.most);
    return g == 1 || (w->cols % g == 0 && w->cols / g % 32 == 0);
  }
};

namespace detail {

/// Runs of outliers in the rows, as pack_outliers makes them.
inline std::size_t outlier_runs(const linear_rows& r, int groups) {
  const bitladder::sparse_view& o = r.w->outliers;
  if (o.empty()) return 0;
  constexpr int span = bitladder::cuda::packed_outliers_view::span_cols;
  constexpr int most = bitladder::cuda::packed_outliers_view::run_entries;
  const int group_cols = r.w->cols / groups;
  std::size_t runs = 0;
  for (int row = r.first; row < r.first + r.rows; ++row)
    for (int i = o.begin(row), last = i; i < o.end(row); i = last, ++runs)
      for (last = i; last < o.end(row) && last - i < most; ++last) {
        const int c = o.columns()[last], c0 = o.columns()[i];
        if (c / group_cols != c0 / group_cols || c / span != c0 / span) break;
      }
  return runs;
}

}  // namespace detail

/// y = W x + bias on the card.
class device_linear {
 public:
  /// Adds to `use` what `upload` takes.
  static void predict(const linear_rows& r, const bits_range& bits, card_memory& use) {
    if (r.w->rows == 0) return;
    using bitladder::cuda::packed_layout;
    using bitladder::cuda::packed_table_layout;
    if (!r.w->bias.empty()) use.rest += static_cast<std::size_t>(r.rows) * sizeof(float);
    if (!r.w->quantized()) {
      use.rest += static_cast<std::size_t>(r.rows) * r.w->dense.row_bytes();
    } else if (!r.packable(bits)) {
      use.rest += static_cast<std::size_t>(bits.most - bits.least + 1) *
                  static_cast<std::size_t>(r.rows) * static_cast<std::size_t>(r.w->cols) *
                  sizeof(bitladder::fp16_t);
    } else {
      const int planes = std::min(r.w->planes.planes(), bits.most), groups = r.groups(bits.most);
      const packed_layout layout{r.rows, r.w->cols, planes};
      use.planes += layout.total_words() * sizeof(std::uint32_t);
      for (int b = bits.least; b <= bits.most; ++b)
        use.tables +=
            packed_table_layout{r.rows, groups, b}.total_entries() * sizeof(bitladder::fp16_t);
      const std::size_t runs = detail::outlier_runs(r, groups);
      if (runs > 0)
        use.outliers +=
            (runs * (bitladder::cuda::packed_outliers_view::run_entries +
                     static_cast<std::size_t>(bits.most - bits.least + 1)) +
             static_cast<std::size_t>(layout.row_tiles()) * packed_layout::tile_rows + 1) *
            sizeof(std::uint32_t);
    }
  }

  /// @param y_type of what products write: that of the bias too
  void upload(const linear_rows& r, const bits_range& bits, bitladder::dtype y_type,
              cudaStream_t stream) {
    rows_ = r.rows;
    cols_ = r.w->cols;
    if (rows_ == 0) return;
    upload_bias(r, y_type, stream);
    if (!r.w->quantized()) {
      dense_[unquantized].upload(r.w->dense, r.first, r.rows, true, stream);
    } else if (r.packable(bits)) {
      upload_planes(r, bits, stream);
      packed_ = true;
    } else {
      for (int b = bits.least; b <= bits.most; ++b) upload_codes(r, b, stream);
    }
  }

  /// A linear whose rows are the table's, which stays where it is.
  void share(const device_matrix& table, const std::vector<float>& bias, cudaStream_t stream) {
    rows_ = table.rows();
    cols_ = table.cols();
    shared_ = &table;
    if (bias.empty()) return;
    reserve(bias_, bias.size() * sizeof(float));
    bitladder::check(bias_.upload(reinterpret_cast<const std::byte*>(bias.data()),
                                  bias.size() * sizeof(float), stream));
  }

  bool empty() const { return rows_ == 0; }
  int rows() const { return rows_; }
  int cols() const { return cols_; }
  bool packed() const { return packed_; }
  bitladder::cuda::packed_view view(int bits) const { return planes_.view(bits); }
  /// If it is not packed.
  const device_matrix& dense(int bits) const {
    if (shared_ != nullptr) return *shared_;
    const device_matrix& own = dense_[unquantized];
    return own.rows() != 0 ? own : dense_[static_cast<std::size_t>(bits)];
  }
  /// Null if there is none.
  const void* bias() const { return bias_.data(); }

 private:
  void upload_bias(const linear_rows& r, bitladder::dtype y_type, cudaStream_t stream) {
    if (r.w->bias.empty()) return;
    const auto count = static_cast<std::size_t>(r.rows);
    const float* from = r.w->bias.data() + r.first;
    reserve(bias_, count * sizeof(float));
    if (y_type == bitladder::dtype::f32) {
      bitladder::check(
          bias_.upload(reinterpret_cast<const std::byte*>(from), count * sizeof(float), stream));
      return;
    }
    std::vector<bitladder::fp16_t> halves(count);
    for (std::size_t i = 0; i < count; ++i) halves[i] = bitladder::to_fp16(from[i]);
    bitladder::check(bias_.upload(reinterpret_cast<const std::byte*>(halves.data()),
                                  count * sizeof(bitladder::fp16_t), stream));
    bitladder::check(bitladder::cuda::call_status(cudaStreamSynchronize(stream)));
  }

  void upload_planes(const linear_rows& r, const bits_range& bits, cudaStream_t stream) {
    const linear_weight& w = *r.w;
    const int groups = r.groups(bits.most);
    bitladder::codebook_ladder tables(r.rows, groups, bits.least, bits.most);
    for (int b = bits.least; b <= bits.most; ++b) {
      const bitladder::codebook_view from = w.table[static_cast<std::size_t>(b)];
      std::copy_n(from.table(r.first), tables[b].size(), tables.data(b));
    }
    const bitladder::bitplane_view top = w.planes.top(std::min(w.planes.planes(), bits.most));
    if (r.all()) {
      bitladder::check(planes_.upload(top, tables, w.outliers, stream));
      return;
    }
    bitladder::bitplane_tensor part(bitladder::bitplane_layout{r.rows, w.cols, top.planes()});
    for (int p = 0; p < top.planes(); ++p)
      std::copy_n(top.row(p, r.first), part.layout().plane_words(),
                  part.data() + part.layout().word(p, 0, 0));
    std::vector<std::int32_t> offsets;
    bitladder::sparse_view outliers;
    if (!w.outliers.empty()) {
      const int begin = w.outliers.begin(r.first);
      for (int row = 0; row <= r.rows; ++row)
        offsets.push_back(w.outliers.offsets()[r.first + row] - begin);
      outliers = {offsets.data(), w.outliers.columns() + begin, w.outliers.values() + begin, r.rows,
                  w.cols};
    }
    bitladder::check(planes_.upload(part.view(), tables, outliers, stream));
  }

  /// Columns that no tile takes: a table's values in place of codes.
  void upload_codes(const linear_rows& r, int bits, cudaStream_t stream) {
    const linear_weight& w = *r.w;
    const bitladder::codebook_view table = w.table[static_cast<std::size_t>(bits)];
    const int group_cols = w.cols / table.groups();
    std::vector<bitladder::fp16_t> values(static_cast<std::size_t>(r.rows) *
                                          static_cast<std::size_t>(w.cols));
    for (int row = 0; row < r.rows; ++row) {
      bitladder::fp16_t* to =
          values.data() + static_cast<std::size_t>(row) * static_cast<std::size_t>(w.cols);
      for (int c = 0; c < w.cols; ++c)
        to[c] = table.table(r.first + row, c / group_cols)[w.planes.code(r.first + row, c, bits)];
      if (w.outliers.empty()) continue;
      for (int i = w.outliers.begin(r.first + row); i < w.outliers.end(r.first + row); ++i)
        to[w.outliers.columns()[i]] = w.outliers.values()[i];
    }
    dense_[static_cast<std::size_t>(bits)].upload(
        {bitladder::dtype::f16, values.data(), r.rows, w.cols}, 0, r.rows, false, stream);
    bitladder::check(bitladder::cuda::call_status(cudaStreamSynchronize(stream)));
  }

  bitladder::cuda::packed_weights planes_;
  std::array<device_matrix, 9> dense_;  // at [unquantized], or by precision
  const device_matrix* shared_ = nullptr;
  bitladder::cuda::buffer<std::byte> bias_;
  int rows_ = 0, cols_ = 0;
  bool packed_ = false;
};

}  // namespace card
}  // namespace llama
