// SPDX-License-Identifier: MIT
// The sparse part of a published SqueezeLLM linear in our form. There it is a compressed matrix
// that is added to the dense one: a value is the weight less the table entry at its place, which
// is the entry next to zero. Here the weight itself is kept (core/sparse_matrix.hpp). Tested by
// tests/io/squeezellm_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// Little-endian arrays as the file has them, at any address.
struct squeezellm_sparse {
  const std::byte* rows = nullptr;    ///< int32 [rows + 1]
  const std::byte* cols = nullptr;    ///< int32 [count]
  const std::byte* values = nullptr;  ///< float [count]
  std::int64_t count = 0;             ///< less than 2^31
};

namespace detail {

template <class T>
std::vector<T> copied(const std::byte* from, std::size_t count) {
  std::vector<T> v(count);
  if (count > 0) std::memcpy(v.data(), from, count * sizeof(T));
  return v;
}

/// All codes of a row's outliers become `code`.
inline void set_codes(bitplane_tensor& planes, int row, const std::int32_t* columns, int count,
                      int code) {
  const bitplane_layout& layout = planes.layout();
  for (int p = 0; p < layout.planes; ++p) {
    const std::uint32_t bit = static_cast<std::uint32_t>(code >> (layout.planes - 1 - p) & 1);
    for (int i = 0; i < count; ++i) {
      std::uint32_t& word = planes.data()[layout.word(p, row, columns[i] / 32)];
      word = (word & ~(1u << (columns[i] % 32))) | bit << (columns[i] % 32);
    }
  }
}

}  // namespace detail

/// Weights as value + entry, in float, rounded to fp16. Columns may stand in any order.
/// @param tables of each row its entries, ascending, before their rounding to fp16
/// @param planes codes by the order of those entries; those of outliers become, in every row, that
/// of the entry next to zero
/// @param where what errors begin with
/// @throws error(bad_file) naming row and column of what is not a sparse matrix, or not within fp16
inline sparse_matrix outliers_from_squeezellm(const squeezellm_sparse& from,
                                              const std::vector<float>& tables,
                                              bitplane_tensor& planes, const std::string& where) {
  const bitplane_layout layout = planes.layout();
  const auto fail = [&](int row, const std::string& what) {
    throw error(status::bad_file, where + ": row " + std::to_string(row) + ": " + what);
  };
  std::vector<std::int32_t> offsets =
      detail::copied<std::int32_t>(from.rows, static_cast<std::size_t>(layout.rows) + 1);
  const std::size_t count = static_cast<std::size_t>(from.count);
  std::vector<std::int32_t> columns = detail::copied<std::int32_t>(from.cols, count);
  const std::vector<float> stored = detail::copied<float>(from.values, count);
  if (offsets.front() != 0) fail(0, "expected offset 0, found " + std::to_string(offsets.front()));
  std::vector<fp16_t> values(count);
  std::vector<std::pair<std::int32_t, float>> entries;
  for (int r = 0; r < layout.rows; ++r) {
    const std::int32_t begin = offsets[static_cast<std::size_t>(r)];
    const std::int32_t end = offsets[static_cast<std::size_t>(r) + 1];
    if (end < begin || end > from.count)
      fail(r, "expected an end from " + std::to_string(begin) + " to " +
                  std::to_string(from.count) + ", found " + std::to_string(end));
    entries.clear();
    for (std::int32_t i = begin; i < end; ++i)
      entries.emplace_back(columns[static_cast<std::size_t>(i)],
                           stored[static_cast<std::size_t>(i)]);
    std::stable_sort(entries.begin(), entries.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    const float* const table = tables.data() + (static_cast<std::size_t>(r) << layout.planes);
    for (std::size_t k = 0; k < entries.size(); ++k) {
      const auto [c, residual] = entries[k];
      if (c < 0 || c >= layout.cols)
        fail(r, "expected columns from 0 to " + std::to_string(layout.cols - 1) + ", found " +
                    std::to_string(c));
      if (k > 0 && entries[k - 1].first == c)
        fail(r, "column " + std::to_string(c) + " is there twice");
      const float weight = residual + table[planes.view().code(r, c, layout.planes)];
      if (!(std::fabs(weight) <= fp16_max))
        fail(r, "column " + std::to_string(c) + ": expected a weight from -65504 to 65504, found " +
                    std::to_string(weight));
      const std::size_t at = static_cast<std::size_t>(begin) + k;
      columns[at] = c;
      values[at] = to_fp16(weight);
    }
    const float* const entry =
        std::min_element(table, table + (std::size_t{1} << layout.planes),
                         [](float a, float b) { return std::fabs(a) < std::fabs(b); });
    detail::set_codes(planes, r, columns.data() + begin, end - begin,
                      static_cast<int>(entry - table));
  }
  if (offsets.back() != from.count)
    fail(std::max(layout.rows - 1, 0), "expected an end at " + std::to_string(from.count) +
                                           ", found " + std::to_string(offsets.back()));
  return {layout.rows, layout.cols, std::move(offsets), std::move(columns), std::move(values)};
}

}  // namespace v0_1
}  // namespace bitladder
