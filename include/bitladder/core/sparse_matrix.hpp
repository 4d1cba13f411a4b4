// SPDX-License-Identifier: MIT
// A few weights kept beside a quantized matrix, each exactly: rows compressed (CSR), row offsets
// and columns in 32 bits, values in fp16. A weight in here replaces the one that codes and tables
// give. All such weights of a row (of a column group of it) carry one and the same code in the
// planes, any code: whoever reads b bits finds in one place what the dense part has there, and adds
// the difference. So one stored value serves every precision. Tested by
// tests/core/sparse_matrix_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// Non-owning. Row r has the entries [offsets[r], offsets[r + 1]), columns rising.
class sparse_view {
 public:
  constexpr sparse_view() = default;
  /// @param offsets [rows + 1], from 0 to the number of entries
  /// @param columns of each entry, strictly rising within a row
  /// @param values of each entry
  BL_HOST_DEVICE constexpr sparse_view(const std::int32_t* offsets, const std::int32_t* columns,
                                       const fp16_t* values, int rows, int cols)
      : offsets_(offsets), columns_(columns), values_(values), rows_(rows), cols_(cols) {}

  BL_HOST_DEVICE constexpr const std::int32_t* offsets() const { return offsets_; }
  BL_HOST_DEVICE constexpr const std::int32_t* columns() const { return columns_; }
  BL_HOST_DEVICE constexpr const fp16_t* values() const { return values_; }
  BL_HOST_DEVICE constexpr int rows() const { return rows_; }
  BL_HOST_DEVICE constexpr int cols() const { return cols_; }
  /// Entries of all rows.
  BL_HOST_DEVICE constexpr int count() const { return offsets_ == nullptr ? 0 : offsets_[rows_]; }
  BL_HOST_DEVICE constexpr bool empty() const { return count() == 0; }
  /// The entries of row r.
  BL_HOST_DEVICE constexpr int begin(int r) const { return offsets_[r]; }
  BL_HOST_DEVICE constexpr int end(int r) const { return offsets_[r + 1]; }
  /// All that a product reads.
  BL_HOST_DEVICE constexpr std::size_t bytes() const { return bytes(rows_, count()); }
  /// The same for so many rows and entries; nothing where there are no entries.
  BL_HOST_DEVICE static constexpr std::size_t bytes(int rows, std::int64_t count) {
    return count == 0
               ? 0
               : (static_cast<std::size_t>(rows) + 1) * sizeof(std::int32_t) +
                     static_cast<std::size_t>(count) * (sizeof(std::int32_t) + sizeof(fp16_t));
  }

 private:
  const std::int32_t* offsets_ = nullptr;
  const std::int32_t* columns_ = nullptr;
  const fp16_t* values_ = nullptr;
  int rows_ = 0;
  int cols_ = 0;
};

/// What is wrong with a sparse matrix, and where.
struct sparse_fault {
  status code = status::ok;
  std::string text;  ///< "row 3: ..."; empty if nothing is wrong
};

/// Looks at every offset, column and value: offsets begin at 0, never fall and end at `count`;
/// columns are there and rise; values are finite. Nothing is read beyond what `count` promises.
/// @param count entries that there is memory for
inline sparse_fault find_fault(const sparse_view& m, std::int64_t count) {
  const auto at = [](int row) { return "row " + std::to_string(row) + ": "; };
  const auto bad = [](const std::string& text) { return sparse_fault{status::bad_file, text}; };
  if (m.rows() < 0 || m.cols() < 0 || count < 0)
    return {status::invalid_argument, "expected sizes >= 0, found " + std::to_string(m.rows()) +
                                          " x " + std::to_string(m.cols()) + " with " +
                                          std::to_string(count) + " entries"};
  if (m.offsets() == nullptr || (count > 0 && (m.columns() == nullptr || m.values() == nullptr)))
    return {status::invalid_argument,
            "expected memory for offsets, columns and values, found a "
            "null pointer"};
  if (m.offsets()[0] != 0)
    return bad(at(0) + "expected offset 0, found " + std::to_string(m.offsets()[0]));
  for (int r = 0; r < m.rows(); ++r)
    if (m.end(r) < m.begin(r) || m.end(r) > count)
      return bad(at(r) + "expected an end from " + std::to_string(m.begin(r)) + " to " +
                 std::to_string(count) + ", found " + std::to_string(m.end(r)));
  if (m.count() != count)
    return bad("expected offsets that end at " + std::to_string(count) + ", found " +
               std::to_string(m.count()));
  for (int r = 0; r < m.rows(); ++r) {
    int before = -1;
    for (int i = m.begin(r); i < m.end(r); ++i) {
      const int c = m.columns()[i];
      if (c <= before || c >= m.cols())
        return bad(at(r) + "expected columns that rise and are below " + std::to_string(m.cols()) +
                   ", found " + std::to_string(c) +
                   (before < 0 ? "" : " after " + std::to_string(before)));
      before = c;
      const float v = to_float(m.values()[i]);
      if (!(v >= -fp16_max && v <= fp16_max))
        return bad(at(r) + "column " + std::to_string(c) + ": expected a finite value, found " +
                   std::to_string(v));
    }
  }
  return {};
}

/// Looks whether all entries of a row, and column group, carry one code in the planes.
/// @param m without fault, of the shape of the planes
/// @param groups column groups of a row, which divide the columns
inline sparse_fault find_code_fault(const sparse_view& m, const bitplane_view& planes, int groups) {
  const int group_cols = m.cols() > 0 ? m.cols() / groups : 1;
  for (int r = 0; r < (m.empty() ? 0 : m.rows()); ++r)
    for (int i = m.begin(r), first = i; i < m.end(r); ++i) {
      const int c = m.columns()[i];
      if (c / group_cols != m.columns()[first] / group_cols) first = i;
      const int expected = planes.code(r, m.columns()[first], planes.planes());
      const int found = planes.code(r, c, planes.planes());
      if (found != expected)
        return {status::bad_file, "row " + std::to_string(r) + ", column " + std::to_string(c) +
                                      ": expected code " + std::to_string(expected) +
                                      " as in column " + std::to_string(m.columns()[first]) +
                                      ", found " + std::to_string(found)};
    }
  return {};
}

/// Owning.
class sparse_matrix {
 public:
  /// 0 x 0.
  sparse_matrix() : offsets_(1, 0) {}
  /// No entries yet.
  /// @throws error if a size is negative
  sparse_matrix(int rows, int cols) : rows_(rows), cols_(cols) {
    if (rows < 0 || cols < 0)
      throw error(status::invalid_argument, "sparse matrix: expected sizes >= 0, found " +
                                                std::to_string(rows) + " x " +
                                                std::to_string(cols));
    offsets_.assign(static_cast<std::size_t>(rows) + 1, 0);
  }
  /// @throws error naming row and what was expected there
  sparse_matrix(int rows, int cols, std::vector<std::int32_t> offsets,
                std::vector<std::int32_t> columns, std::vector<fp16_t> values)
      : rows_(rows),
        cols_(cols),
        offsets_(std::move(offsets)),
        columns_(std::move(columns)),
        values_(std::move(values)) {
    if (rows < 0 || offsets_.size() != static_cast<std::size_t>(rows) + 1 ||
        columns_.size() != values_.size())
      throw error(status::shape_mismatch,
                  "sparse matrix: expected an offset more than rows and as many values as columns, "
                  "found " +
                      std::to_string(rows) + " rows, " + std::to_string(offsets_.size()) +
                      " offsets, " + std::to_string(columns_.size()) + " columns, " +
                      std::to_string(values_.size()) + " values");
    const sparse_fault fault = find_fault(view(), static_cast<std::int64_t>(values_.size()));
    if (fault.code != status::ok) throw error(fault.code, "sparse matrix: " + fault.text);
  }

  int rows() const { return rows_; }
  int cols() const { return cols_; }
  int count() const { return static_cast<int>(values_.size()); }
  bool empty() const { return values_.empty(); }
  sparse_view view() const {
    return {offsets_.data(), columns_.data(), values_.data(), rows_, cols_};
  }

 private:
  int rows_ = 0, cols_ = 0;
  std::vector<std::int32_t> offsets_, columns_;
  std::vector<fp16_t> values_;
};

}  // namespace v0_1
}  // namespace bitladder
