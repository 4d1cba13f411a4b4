// SPDX-License-Identifier: MIT
// Outliers (core/sparse_matrix.hpp) as the CUDA kernels read them: cut into runs of up to 32 of one
// row, one column group and one span of 65536 columns, each a row of 128 bytes, so that eight lanes
// take a run with one load each and a row with many outliers is many lanes' work. A run is added up
// in one order and the runs of a row one after the other: sums depend on nothing but the row. What
// codes and tables give in the outliers' places, the same for all of a run, stands beside it once
// for every precision. Tested by tests/kernels/cuda/outliers_test.cu.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// Non-owning: the outliers of a matrix at one precision. An entry is column % 65536 | the value's
/// fp16 bits << 16. A run's head is outliers - 1 | column / 65536 << 5 | the fp16 bits of what they
/// replace << 16.
struct packed_outliers_view {
  static constexpr int run_entries = 32;
  static constexpr int span_cols = 65536;

  const std::uint32_t* entries = nullptr;  ///< [runs, 32], 16-byte aligned
  const std::uint32_t* heads = nullptr;    ///< [runs], of the precision
  const std::int32_t* offsets = nullptr;   ///< [16 * row tiles + 1]: row r has runs offsets[r] ...
  int runs = 0;

  BL_HOST_DEVICE constexpr bool empty() const { return runs == 0; }
  /// All that a product reads; nothing where there are no outliers.
  constexpr std::size_t bytes(int rows) const {
    return empty() ? 0
                   : static_cast<std::size_t>(runs) * (run_entries + 1) * sizeof(std::uint32_t) +
                         (static_cast<std::size_t>(rows) + 1) * sizeof(std::int32_t);
  }
};

/// On the host, for every precision of the tables.
struct packed_outliers {
  std::vector<std::uint32_t> entries;
  std::array<std::vector<std::uint32_t>, 8> heads;  ///< at [bits - 1]
  std::vector<std::int32_t> offsets;
};

/// @param outliers without fault (find_fault, find_code_fault), of the shape of the planes
/// @param planes cols at most 2^26, a multiple of the tables' groups
/// @param tables up to the precision of the planes
inline packed_outliers pack_outliers(const sparse_view& outliers, const bitplane_view& planes,
                                     const codebook_ladder& tables) {
  constexpr int most = packed_outliers_view::run_entries, span = packed_outliers_view::span_cols;
  const packed_layout layout{planes.rows(), planes.cols(), planes.planes()};
  const int group_cols = planes.cols() / tables.groups();
  packed_outliers p;
  const auto runs = [&] { return static_cast<std::int32_t>(p.entries.size() / most); };
  p.offsets.reserve(static_cast<std::size_t>(layout.row_tiles()) * packed_layout::tile_rows + 1);
  for (int r = 0; r < layout.row_tiles() * packed_layout::tile_rows; ++r) {
    p.offsets.push_back(runs());
    if (r >= planes.rows()) continue;
    for (int i = outliers.begin(r), last = i; i < outliers.end(r); i = last) {
      const int first_col = outliers.columns()[i], group = first_col / group_cols;
      for (; last < outliers.end(r) && last - i < most; ++last) {
        const int col = outliers.columns()[last];
        if (col / group_cols != group || col / span != first_col / span) break;
        p.entries.push_back(static_cast<std::uint32_t>(outliers.values()[last].bits) << 16 |
                            static_cast<std::uint32_t>(col % span));
      }
      p.entries.resize((p.entries.size() + most - 1) / most * most);
      const std::uint32_t head = static_cast<std::uint32_t>(last - i - 1) |
                                 static_cast<std::uint32_t>(first_col / span) << 5;
      for (int b = tables.min_bits(); b <= tables.max_bits(); ++b) {
        const fp16_t base = tables[b].table(r, group)[planes.code(r, first_col, b)];
        p.heads[static_cast<std::size_t>(b - 1)].push_back(
            head | static_cast<std::uint32_t>(base.bits) << 16);
      }
    }
  }
  p.offsets.push_back(runs());
  return p;
}

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
