// SPDX-License-Identifier: MIT
// Codes to bitplanes and back. The `_scalar` functions say what the others compute, one bit at a
// time; `pack` and `unpack` move eight bits per multiplication, on any 64-bit machine. Tested by
// tests/core/pack_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>

#include <cstdint>
#include <cstring>
#include <string>

namespace bitladder {
inline namespace v0_1 {

namespace detail {

inline void require_unpackable(const bitplane_view& planes, int bits,
                               const matrix_view<std::uint8_t>& codes) {
  if (bits < 1 || bits > planes.planes())
    throw error(status::too_few_planes, "unpack: " + std::to_string(bits) +
                                            " bits asked for, the tensor holds " +
                                            std::to_string(planes.planes()));
  if (codes.rows() != planes.rows() || codes.cols() != planes.cols())
    throw error(status::shape_mismatch,
                "unpack: expected codes of " + std::to_string(planes.rows()) + " x " +
                    std::to_string(planes.cols()) + ", found " + std::to_string(codes.rows()) +
                    " x " + std::to_string(codes.cols()));
}

/// Bit 0 of each of eight bytes (first byte lowest) to one byte, first byte at bit 0.
constexpr std::uint32_t gather_low_bits(std::uint64_t bytes) {
  return static_cast<std::uint32_t>((bytes & 0x0101010101010101u) * 0x0102040810204080u >> 56);
}

/// The inverse: bit i of `byte` to bit 0 of byte i.
constexpr std::uint64_t spread_bits(std::uint32_t byte) {
  // Copies the byte to all eight, keeps bit i of copy i, and moves it to bit 0: a byte with one bit
  // set, plus 0x7f, has its top bit set exactly when that bit was.
  const std::uint64_t kept = byte * 0x0101010101010101u & 0x8040201008040201u;
  return (kept + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
}

}  // namespace detail

/// Planes of `codes`, most significant first: plane p holds bit `planes - 1 - p`. Bits of a code at
/// or above 2^planes are dropped. One bit at a time.
/// @param codes [rows, cols]
inline bitplane_tensor pack_scalar(matrix_view<const std::uint8_t> codes, int planes) {
  bitplane_tensor out(bitplane_layout{codes.rows(), codes.cols(), planes});
  for (int p = 0; p < planes; ++p)
    for (int r = 0; r < codes.rows(); ++r)
      for (int c = 0; c < codes.cols(); ++c)
        out.data()[out.layout().word(p, r, c / 32)] |=
            static_cast<std::uint32_t>(codes(r, c) >> (planes - 1 - p) & 1) << (c % 32);
  return out;
}

/// The `bits`-bit codes of `planes`. One bit at a time.
/// @throws error if the tensor holds fewer planes, or the shapes differ
inline void unpack_scalar(bitplane_view planes, int bits, matrix_view<std::uint8_t> codes) {
  detail::require_unpackable(planes, bits, codes);
  for (int r = 0; r < codes.rows(); ++r)
    for (int c = 0; c < codes.cols(); ++c)
      codes(r, c) = static_cast<std::uint8_t>(planes.code(r, c, bits));
}

/// Same result as pack_scalar. O(rows * cols * planes / 8) steps.
inline bitplane_tensor pack(matrix_view<const std::uint8_t> codes, int planes) {
  bitplane_tensor out(bitplane_layout{codes.rows(), codes.cols(), planes});
  const bitplane_layout& layout = out.layout();
  for (int r = 0; r < codes.rows(); ++r) {
    for (int w = 0; w < layout.words(); ++w) {
      std::uint8_t bytes[32] = {};  // zeros past the last column
      const int count = layout.cols - w * 32 < 32 ? layout.cols - w * 32 : 32;
      std::memcpy(bytes, codes.row(r) + w * 32, static_cast<std::size_t>(count));
      std::uint64_t eight[4];
      for (int i = 0; i < 4; ++i) {
        eight[i] = 0;
        for (int k = 0; k < 8; ++k)
          eight[i] |= static_cast<std::uint64_t>(bytes[i * 8 + k]) << (8 * k);
      }
      for (int p = 0; p < planes; ++p) {
        const int shift = planes - 1 - p;
        std::uint32_t word = 0;
        for (int i = 0; i < 4; ++i) word |= detail::gather_low_bits(eight[i] >> shift) << (8 * i);
        out.data()[layout.word(p, r, w)] = word;
      }
    }
  }
  return out;
}

/// Same result as unpack_scalar. O(rows * cols * bits / 8) steps.
inline void unpack(bitplane_view planes, int bits, matrix_view<std::uint8_t> codes) {
  detail::require_unpackable(planes, bits, codes);
  const bitplane_layout& layout = planes.layout();
  for (int r = 0; r < codes.rows(); ++r) {
    for (int w = 0; w < layout.words(); ++w) {
      std::uint64_t eight[4] = {};
      for (int p = 0; p < bits; ++p) {
        const std::uint32_t word = planes.data()[layout.word(p, r, w)];
        for (int i = 0; i < 4; ++i)
          eight[i] = eight[i] << 1 | detail::spread_bits(word >> (8 * i) & 0xffu);
      }
      std::uint8_t bytes[32];
      for (int i = 0; i < 32; ++i)
        bytes[i] = static_cast<std::uint8_t>(eight[i / 8] >> (8 * (i % 8)));
      const int count = layout.cols - w * 32 < 32 ? layout.cols - w * 32 : 32;
      std::memcpy(codes.row(r) + w * 32, bytes, static_cast<std::size_t>(count));
    }
  }
}

}  // namespace v0_1
}  // namespace bitladder
