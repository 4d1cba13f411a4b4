// SPDX-License-Identifier: MIT
// Weights on the card: packed planes (packed_layout.hpp), stored once, a table for every precision,
// and outliers that replace single weights at each of them (packed_outliers.hpp). packed_view is
// what kernels take, packed_weights owns the memory. Tested by
// tests/kernels/cuda/packed_weights_test.cu and outliers_test.cu.
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
#include <bitladder/kernels/cuda/repack.cuh>

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <utility>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// Non-owning: packed planes and the tables of one precision, both on the device.
struct packed_view {
  const std::uint32_t* planes = nullptr;  ///< layout.total_words() words, 16-byte aligned
  const fp16_t* tables = nullptr;         ///< table_layout().total_entries(), 16-byte aligned
  packed_layout layout{};
  int groups = 1;  ///< column groups with a table each; they divide the columns equally
  int bits = 0;    ///< precision of `tables`
  packed_outliers_view outliers{};  ///< on the device too; none by default

  constexpr packed_table_layout table_layout() const { return {layout.rows, groups, bits}; }
  /// Bytes that a product with these weights reads: planes and one table, no padding; outliers as
  /// they are stored.
  constexpr std::size_t touched_bytes() const {
    return static_cast<std::size_t>(layout.rows) *
               (static_cast<std::size_t>(layout.cols) * static_cast<std::size_t>(bits) / 8 +
                (static_cast<std::size_t>(groups) << bits) * sizeof(fp16_t)) +
           outliers.bytes(layout.rows);
  }
};

/// Owns one matrix on the device that was current in `upload`. Move-only.
class packed_weights {
 public:
  packed_weights() = default;
  packed_weights(packed_weights&& other) noexcept { swap(other); }
  packed_weights& operator=(packed_weights&& other) noexcept {
    swap(other);
    return *this;
  }

  /// Copies planes and tables to the card and rearranges them there. Allocates and synchronizes
  /// with `stream`: set-up, not a hot call. After a failure the object is empty.
  /// @param planes cols a multiple of 32
  /// @param tables rows as in `planes`; its groups divide the columns
  /// @return invalid_argument (empty, or cols not a multiple of 32), shape_mismatch,
  ///         too_few_planes (tables above planes), out_of_memory
  [[nodiscard]] status upload(bitplane_view planes, const codebook_ladder& tables,
                              cudaStream_t stream) noexcept {
    return upload(planes, tables, sparse_view(), stream);
  }

  /// The same with weights that replace those of codes and tables, at every precision.
  /// @param outliers none, or of the shape of the planes, which hold one code for all outliers of a
  /// row and column group
  /// @return as above; shape_mismatch; bad_file (what find_fault and find_code_fault find)
  [[nodiscard]] status upload(bitplane_view planes, const codebook_ladder& tables,
                              sparse_view outliers, cudaStream_t stream) noexcept {
    *this = packed_weights();  // gives the old memory back before the new is asked for
    status s = check(planes, tables);
    if (s == status::ok) s = check_outliers(planes, tables.groups(), outliers);
    if (s != status::ok) return s;
    s = fill(planes, tables, stream);
    if (s == status::ok && !outliers.empty()) s = fill_outliers(planes, tables, outliers, stream);
    if (s != status::ok) *this = packed_weights();
    return s;
  }

  const packed_layout& layout() const noexcept { return layout_; }
  int groups() const noexcept { return groups_; }
  int min_bits() const noexcept { return min_bits_; }
  int max_bits() const noexcept { return max_bits_; }
  /// The weights as a product at `bits` reads them. For a precision without tables the view's
  /// `bits` is 0, which every launcher refuses with unsupported_bits.
  packed_view view(int bits) const noexcept {
    packed_view v;
    v.planes = planes_.data();
    v.layout = layout_;
    v.groups = groups_;
    if (bits < min_bits_ || bits > max_bits_ || planes_.empty()) return v;
    v.tables = tables_[index(bits)].data();
    v.bits = bits;
    v.outliers = {outlier_entries_.data(), outlier_heads_[index(bits)].data(),
                  outlier_offsets_.data(), static_cast<int>(outlier_heads_[index(bits)].size())};
    return v;
  }

 private:
  // Whole objects, so that sizes never part from the memory that they describe.
  void swap(packed_weights& other) noexcept {
    std::swap(planes_, other.planes_);
    std::swap(tables_, other.tables_);
    std::swap(outlier_entries_, other.outlier_entries_);
    std::swap(outlier_heads_, other.outlier_heads_);
    std::swap(outlier_offsets_, other.outlier_offsets_);
    std::swap(layout_, other.layout_);
    std::swap(groups_, other.groups_);
    std::swap(min_bits_, other.min_bits_);
    std::swap(max_bits_, other.max_bits_);
  }

  static constexpr std::size_t index(int bits) { return static_cast<std::size_t>(bits - 1); }

  static status check(const bitplane_view& planes, const codebook_ladder& tables) noexcept {
    if (planes.data() == nullptr || !detail::is_tileable(planes.rows()) || planes.cols() < 1 ||
        planes.cols() % 32 != 0 || planes.planes() < 1 ||
        planes.planes() > bitplane_layout::max_planes)
      return status::invalid_argument;
    if (tables.rows() != planes.rows() || planes.cols() % tables.groups() != 0)
      return status::shape_mismatch;
    if (tables.max_bits() > planes.planes()) return status::too_few_planes;
    return status::ok;
  }

  static status check_outliers(const bitplane_view& planes, int groups,
                               const sparse_view& outliers) noexcept {
    if (outliers.empty()) return status::ok;
    if (outliers.rows() != planes.rows() || outliers.cols() != planes.cols())
      return status::shape_mismatch;
    // A run's head has 10 bits for the span of columns.
    if (planes.cols() > 1 << 26) return status::invalid_argument;
    try {
      const sparse_fault fault = find_fault(outliers, outliers.count());
      return fault.code != status::ok ? fault.code : find_code_fault(outliers, planes, groups).code;
    } catch (const std::exception&) {
      return status::out_of_memory;
    }
  }

  status fill_outliers(const bitplane_view& planes, const codebook_ladder& tables,
                       const sparse_view& outliers, cudaStream_t stream) noexcept {
    try {
      const packed_outliers packed = pack_outliers(outliers, planes, tables);
      status s = outlier_entries_.allocate(packed.entries.size());
      if (s == status::ok) s = outlier_offsets_.allocate(packed.offsets.size());
      if (s == status::ok)
        s = outlier_entries_.upload(packed.entries.data(), packed.entries.size(), stream);
      if (s == status::ok)
        s = outlier_offsets_.upload(packed.offsets.data(), packed.offsets.size(), stream);
      for (std::size_t i = 0; s == status::ok && i < packed.heads.size(); ++i) {
        s = outlier_heads_[i].allocate(packed.heads[i].size());
        if (s == status::ok)
          s = outlier_heads_[i].upload(packed.heads[i].data(), packed.heads[i].size(), stream);
      }
      const status done = call_status(cudaStreamSynchronize(stream));
      return s != status::ok ? s : done;
    } catch (const std::exception&) {
      return status::out_of_memory;
    }
  }

  status fill(const bitplane_view& planes, const codebook_ladder& tables,
              cudaStream_t stream) noexcept {
    layout_ = {planes.rows(), planes.cols(), planes.planes()};
    groups_ = tables.groups();
    min_bits_ = tables.min_bits();
    max_bits_ = tables.max_bits();
    status s = planes_.allocate(layout_.total_words());
    for (int b = min_bits_; s == status::ok && b <= max_bits_; ++b)
      s = tables_[index(b)].allocate(packed_table_layout{layout_.rows, groups_, b}.total_entries());

    // One plane and one table at a time pass through the canonical layout on the card.
    buffer<std::uint32_t> plane;
    if (s == status::ok) s = plane.allocate(planes.layout().plane_words());
    buffer<fp16_t> table;
    if (s == status::ok) s = table.allocate(tables[max_bits_].size());
    for (int j = 0; s == status::ok && j < layout_.planes; ++j) {
      s = plane.upload(planes.row(j, 0), plane.size(), stream);
      if (s == status::ok)
        s = detail::launch_repack_planes<detail::repack_direction::pack>(
            {plane.data(), planes_.data(), layout_, j, 1}, stream);
    }
    for (int b = min_bits_; s == status::ok && b <= max_bits_; ++b) {
      s = table.upload(tables[b].data(), tables[b].size(), stream);
      if (s == status::ok)
        s = repack_tables(table.data(), tables_[index(b)].data(), {layout_.rows, groups_, b},
                          stream);
    }
    // Also after a failure: the buffers must not go while a kernel may still use them.
    const status done = call_status(cudaStreamSynchronize(stream));
    return s != status::ok ? s : done;
  }

  buffer<std::uint32_t> planes_;
  std::array<buffer<fp16_t>, 8> tables_;  // at [bits - 1]
  buffer<std::uint32_t> outlier_entries_;
  std::array<buffer<std::uint32_t>, 8> outlier_heads_;  // at [bits - 1]
  buffer<std::int32_t> outlier_offsets_;
  packed_layout layout_{};
  int groups_ = 1;
  int min_bits_ = 0;
  int max_bits_ = 0;
};

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
