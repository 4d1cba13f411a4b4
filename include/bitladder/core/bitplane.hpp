// SPDX-License-Identifier: MIT
// Bitplanes: all codes' most significant bits together, then the next bits, and so on, so that a
// reader of b bits touches the first b planes and nothing else. Address arithmetic is constexpr and
// shared with kernels. Layout [planes, rows, words], words = ceil(cols / 32); column c of a row is
// bit c % 32 of word c / 32, bit 0 the least significant; the bits past the last column are zero.
// Tested by tests/core/bitplane_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/status.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// Where the bits of code (row, col) live.
struct bitplane_layout {
  static constexpr int max_planes = 8;  ///< codes are bytes

  int rows = 0;    ///< out features
  int cols = 0;    ///< in features, any number
  int planes = 0;  ///< 1..8, most significant first

  /// 32-bit words of one row of one plane.
  BL_HOST_DEVICE constexpr int words() const { return cols / 32 + (cols % 32 != 0); }
  /// Words of one plane.
  BL_HOST_DEVICE constexpr std::size_t plane_words() const {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(words());
  }
  /// Words of the first `bits` planes: all that a reader of `bits` bits touches.
  BL_HOST_DEVICE constexpr std::size_t total_words(int bits) const {
    return plane_words() * static_cast<std::size_t>(bits);
  }
  BL_HOST_DEVICE constexpr std::size_t total_words() const { return total_words(planes); }
  /// Index of word `w` of `row` in `plane`.
  BL_HOST_DEVICE constexpr std::size_t word(int plane, int row, int w) const {
    return (static_cast<std::size_t>(plane) * static_cast<std::size_t>(rows) +
            static_cast<std::size_t>(row)) *
               static_cast<std::size_t>(words()) +
           static_cast<std::size_t>(w);
  }
};

BL_HOST_DEVICE constexpr bool operator==(const bitplane_layout& a, const bitplane_layout& b) {
  return a.rows == b.rows && a.cols == b.cols && a.planes == b.planes;
}

/// Code of column `lane` of a word, from the words of the top `Bits` planes.
template <int Bits>
BL_HOST_DEVICE constexpr int code_at(const std::uint32_t (&plane)[Bits], int lane) {
  int code = 0;
  for (int p = 0; p < Bits; ++p) code = code * 2 + static_cast<int>(plane[p] >> lane & 1u);
  return code;
}

/// Non-owning planes.
class bitplane_view {
 public:
  constexpr bitplane_view() = default;
  /// @param data `layout.total_words()` words, 4-byte aligned
  BL_HOST_DEVICE constexpr bitplane_view(const std::uint32_t* data, bitplane_layout layout)
      : data_(data), layout_(layout) {}

  BL_HOST_DEVICE constexpr const std::uint32_t* data() const { return data_; }
  BL_HOST_DEVICE constexpr const bitplane_layout& layout() const { return layout_; }
  BL_HOST_DEVICE constexpr int rows() const { return layout_.rows; }
  BL_HOST_DEVICE constexpr int cols() const { return layout_.cols; }
  BL_HOST_DEVICE constexpr int planes() const { return layout_.planes; }
  /// The words of `row` in `plane`.
  BL_HOST_DEVICE constexpr const std::uint32_t* row(int plane, int row) const {
    return data_ + layout_.word(plane, row, 0);
  }
  /// The same tensor seen at its `bits` most significant planes (bits <= planes()).
  BL_HOST_DEVICE constexpr bitplane_view top(int bits) const {
    return {data_, bitplane_layout{layout_.rows, layout_.cols, bits}};
  }
  /// The `bits`-bit code of one weight: the top `bits` bits of its stored code.
  BL_HOST_DEVICE constexpr int code(int row, int col, int bits) const {
    int c = 0;
    for (int p = 0; p < bits; ++p)
      c = c * 2 + static_cast<int>(data_[layout_.word(p, row, col / 32)] >> (col % 32) & 1u);
    return c;
  }

 private:
  const std::uint32_t* data_ = nullptr;
  bitplane_layout layout_{};
};

/// Owning planes, zero at first.
class bitplane_tensor {
 public:
  bitplane_tensor() = default;
  /// @throws error if a size is negative or planes is outside 1..8
  explicit bitplane_tensor(bitplane_layout layout)
      : layout_(validated(layout)), words_(layout.total_words()) {}

  const bitplane_layout& layout() const { return layout_; }
  bitplane_view view() const { return {words_.data(), layout_}; }
  std::uint32_t* data() { return words_.data(); }
  const std::uint32_t* data() const { return words_.data(); }

 private:
  static bitplane_layout validated(bitplane_layout l) {
    if (l.rows < 0 || l.cols < 0 || l.planes < 1 || l.planes > bitplane_layout::max_planes)
      throw error(status::invalid_argument,
                  "bitplane layout: expected rows >= 0, cols >= 0 and 1 to 8 planes, found " +
                      std::to_string(l.rows) + " x " + std::to_string(l.cols) + " with " +
                      std::to_string(l.planes) + " planes");
    return l;
  }

  bitplane_layout layout_{};
  std::vector<std::uint32_t> words_;
};

}  // namespace v0_1
}  // namespace bitladder
