// SPDX-License-Identifier: MIT
// The tables that give codes their values: for every precision, one ascending fp16 table per row
// (or per row and column group). The table of b bits is its own, not derived from a wider one.
// Layout of one precision: [rows, groups, 2^bits]. Tested by tests/core/codebook_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>

#include <array>
#include <cstddef>
#include <string>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// Tables of one precision, non-owning.
class codebook_view {
 public:
  constexpr codebook_view() = default;
  /// @param data [rows, groups, 2^bits]
  BL_HOST_DEVICE constexpr codebook_view(const fp16_t* data, int rows, int groups, int bits)
      : data_(data), rows_(rows), groups_(groups), bits_(bits) {}

  BL_HOST_DEVICE constexpr const fp16_t* data() const { return data_; }
  BL_HOST_DEVICE constexpr int rows() const { return rows_; }
  /// Equal contiguous column groups of a row, each with its own table; 1 unless asked for.
  BL_HOST_DEVICE constexpr int groups() const { return groups_; }
  BL_HOST_DEVICE constexpr int bits() const { return bits_; }
  /// Entries of one table.
  BL_HOST_DEVICE constexpr int entries() const { return 1 << bits_; }
  /// Entries of all tables.
  BL_HOST_DEVICE constexpr std::size_t size() const {
    return static_cast<std::size_t>(rows_) * static_cast<std::size_t>(groups_) << bits_;
  }
  /// Table of `row` (and column group), `entries()` values in ascending order.
  BL_HOST_DEVICE constexpr const fp16_t* table(int row, int group = 0) const {
    return data_ + ((static_cast<std::size_t>(row) * static_cast<std::size_t>(groups_) +
                     static_cast<std::size_t>(group))
                    << bits_);
  }

 private:
  const fp16_t* data_ = nullptr;
  int rows_ = 0;
  int groups_ = 1;
  int bits_ = 0;
};

/// Tables of every precision from `min_bits` to `max_bits`, owned.
class codebook_ladder {
 public:
  codebook_ladder() = default;
  /// All entries zero.
  /// @throws error unless 1 <= min_bits <= max_bits <= 8, rows >= 0 and groups >= 1
  codebook_ladder(int rows, int groups, int min_bits, int max_bits)
      : rows_(rows), groups_(groups), min_bits_(min_bits), max_bits_(max_bits) {
    if (rows < 0 || groups < 1 || min_bits < 1 || max_bits < min_bits || max_bits > 8)
      throw error(status::invalid_argument,
                  "codebook ladder: expected rows >= 0, groups >= 1 and 1 <= min_bits <= max_bits "
                  "<= 8, found rows " +
                      std::to_string(rows) + ", groups " + std::to_string(groups) + ", bits " +
                      std::to_string(min_bits) + " to " + std::to_string(max_bits));
    for (int b = min_bits; b <= max_bits; ++b)
      tables_[index(b)].resize(codebook_view(nullptr, rows, groups, b).size());
  }

  int rows() const { return rows_; }
  int groups() const { return groups_; }
  int min_bits() const { return min_bits_; }
  int max_bits() const { return max_bits_; }
  bool has(int bits) const { return bits >= min_bits_ && bits <= max_bits_; }
  /// Tables of one precision.
  /// @throws error(not_found) naming the precisions present
  codebook_view operator[](int bits) const {
    require(bits);
    return {tables_[index(bits)].data(), rows_, groups_, bits};
  }
  /// The same, writable: [rows, groups, 2^bits].
  fp16_t* data(int bits) {
    require(bits);
    return tables_[index(bits)].data();
  }

 private:
  static std::size_t index(int bits) { return static_cast<std::size_t>(bits - 1); }
  void require(int bits) const {
    if (!has(bits))
      throw error(status::not_found, "codebook ladder: " + std::to_string(bits) +
                                         " bits asked for, " + std::to_string(min_bits_) + " to " +
                                         std::to_string(max_bits_) + " present");
  }

  int rows_ = 0;
  int groups_ = 1;
  int min_bits_ = 1;
  int max_bits_ = 0;
  std::array<std::vector<fp16_t>, 8> tables_;
};

}  // namespace v0_1
}  // namespace bitladder
