// SPDX-License-Identifier: MIT
// From packed plane words to operands of the tensor cores. `merge` brings the bits of each code
// together; the words it makes index tables in shared memory that are laid out so that every lane
// reads its own bank, whatever the codes are (lut.cuh builds them). Tested by
// tests/kernels/cuda/gemm_test.cu, the column order by tests/kernels/cuda/packed_layout_test.cpp.
//
// A merged word holds its columns in bytes. Up to 4 bits, field word r (0..3) has in byte m the two
// codes of columns 8 m + r (low nibble) and 8 m + r + 4 (high nibble): a byte is an index into a
// table of PAIRS of values. Above, field word r (0..7) has in byte m the code of column 8 m + r.
// Either way pair i = 4 r + m (r, m in 0..3) is columns 8 m + r and 8 m + r + 4 of the 32, and
// activations are put in that order once (pair_column).
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/ptx.cuh>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// How a precision is decoded.
template <int Bits>
struct decoding {
  static_assert(Bits >= 1 && Bits <= 8, "bitplanes are read at 1 to 8 bits");
  static constexpr bool pairs = Bits <= 4;     ///< one lookup gives two values
  static constexpr int words = pairs ? 4 : 8;  ///< field words per 32 columns
};

/// Column (0..31) of value `which` (0 or 1) of pair `i` (0..15).
BL_HOST_DEVICE constexpr int pair_column(int i, int which) {
  return 8 * (i % 4) + i / 4 + 4 * which;
}

/// Which of several tables lookups go to, in the form that costs nothing per lookup: a constant
/// part of the fields, or of the lane's offset.
template <int Bits>
struct lut_stage {
  std::uint32_t even = 0, odd = 0;  ///< take the places of planes that are not read
  std::uint32_t lane_offset = 0;    ///< added to 4 * lane

  __device__ static lut_stage of(int stage) {
    lut_stage s;
    const std::uint32_t mask = stage == 0 ? 0u : ~0u;
    if constexpr (Bits == 3) {
      // Plane 3 of columns 4..7 modulo 8: the high nibbles.
      s.even = s.odd = mask & 0x87878787u;
    } else if constexpr (Bits <= 2) {
      s.even = mask & 0x55555555u;
      s.odd = mask & 0xAAAAAAAAu;
    } else {
      s.lane_offset = static_cast<std::uint32_t>(stage) * (Bits == 4 ? 65536u : 128u);
    }
    return s;
  }
};

/// Merges the words of the top `Bits` planes (stored form: plane j rotated left by j).
template <int Bits>
__device__ __forceinline__ void merge(const std::uint32_t (&plane)[Bits],
                                      std::uint32_t (&field)[decoding<Bits>::words],
                                      const lut_stage<Bits>& stage = {}) {
  // Step 1: planes 2i and 2i+1 side by side; `even` has plane 2i at even positions, `odd` at odd.
  constexpr std::uint32_t alternate = 0x55555555u;
  constexpr int couples = Bits <= 4 ? 2 : 4;
  std::uint32_t even[couples], odd[couples];
#pragma unroll
  for (int c = 0; c < couples; ++c) {
    const int first = 2 * c;
    if (first + 1 < Bits) {
      even[c] = select<alternate>(plane[first], plane[first + 1 < Bits ? first + 1 : 0]);
      odd[c] = select<~alternate>(plane[first], plane[first + 1 < Bits ? first + 1 : 0]);
    } else if (first < Bits) {
      // 3 and 7 bits mark the stage where plane 3 or 7 would be.
      constexpr bool marks = Bits == 3 || Bits == 7;
      even[c] = select<alternate>(plane[first < Bits ? first : 0], marks ? stage.even : 0);
      odd[c] = select<~alternate>(plane[first < Bits ? first : 0], marks ? stage.odd : 0);
    } else {
      // Others mark it where plane 2 (up to 2 bits) or planes 6 and 7 would be.
      constexpr bool marks = Bits <= 2 || Bits == 5 || Bits == 6;
      even[c] = marks ? stage.even : 0;
      odd[c] = marks ? stage.odd : 0;
    }
  }
  // Step 2: four planes side by side, the first at positions r modulo 4.
  constexpr int quads = Bits <= 4 ? 1 : 2;
  std::uint32_t quad[quads][4];
#pragma unroll
  for (int q = 0; q < quads; ++q) {
    quad[q][0] = select<0x33333333u>(even[2 * q], even[2 * q + 1]);
    quad[q][1] = select<0x66666666u>(odd[2 * q], odd[2 * q + 1]);
    quad[q][2] = select<0xCCCCCCCCu>(even[2 * q], even[2 * q + 1]);
    quad[q][3] = select<0x99999999u>(odd[2 * q], odd[2 * q + 1]);
  }
  // Step 3: eight planes side by side; then fields are brought to the edges of bytes.
  if constexpr (Bits <= 4) {
#pragma unroll
    for (int r = 0; r < 4; ++r) field[r] = r == 0 ? quad[0][0] : rotate_right(quad[0][r], r);
  } else {
    field[0] = select<0x0F0F0F0Fu>(quad[0][0], quad[1][0]);
    field[1] = rotate_right(select<0x1E1E1E1Eu>(quad[0][1], quad[1][1]), 1);
    field[2] = rotate_right(select<0x3C3C3C3Cu>(quad[0][2], quad[1][2]), 2);
    field[3] = rotate_right(select<0x78787878u>(quad[0][3], quad[1][3]), 3);
    field[4] = rotate_right(select<0xF0F0F0F0u>(quad[0][0], quad[1][0]), 4);
    field[5] = rotate_right(select<0xE1E1E1E1u>(quad[0][1], quad[1][1]), 5);
    field[6] = rotate_right(select<0xC3C3C3C3u>(quad[0][2], quad[1][2]), 6);
    field[7] = rotate_right(select<0x87878787u>(quad[0][3], quad[1][3]), 7);
  }
}

/// Tables in shared memory, 32 words (one per lane) for every index, so that lane l only touches
/// bank l. Lane 4 g + t reads rows g and g + 8.
/// Pairs: word [index][row g or g + 8][lane] holds the two values of that row.
/// Single values: word [code][stage][lane] holds the value of row g (low half) and of row g + 8.
/// An index always steps 256 bytes, so that an address is one byte permutation.
template <int Bits>
struct lut_layout {
  static constexpr int index_bytes = 256;
  /// From one stage's table to the other's (lut_stage): marked nibbles, the next 64 KiB, or the
  /// other half of every index.
  static constexpr int stage_bytes = Bits <= 2   ? 0x44 * index_bytes
                                     : Bits == 3 ? 0x80 * index_bytes
                                     : Bits == 4 ? 65536
                                                 : 128;
  /// From the tables of one row tile to those of another that is read at the same time: up to 3
  /// bits the mark of low nibbles.
  static constexpr int slot_bytes = Bits <= 3   ? 0x08 * index_bytes
                                    : Bits == 4 ? 2 * 65536
                                                : index_bytes << Bits;
  /// Bytes of `stages` times `slots` (1 or 2 each) tables.
  static constexpr int bytes(int slots, int stages) {
    return Bits <= 2   ? 0x80 * index_bytes
           : Bits == 3 ? 0x100 * index_bytes
           : Bits == 4 ? slots * stages * 65536
                       : slots * slot_bytes;
  }
};

/// Values of pair `Pair` (0..15) of row g + 8 * Row, as two fp16: the first column in the low half.
/// @tparam Base a part of the table's address that is known: it is the load's immediate and free
/// @param lane_offset 4 * lane plus the stage's part
/// @param table the rest of the first table's shared address; 0 costs nothing
template <int Bits, int Pair, int Row, int Base = 0>
__device__ __forceinline__ std::uint32_t look_up(
    const std::uint32_t (&field)[decoding<Bits>::words], std::uint32_t lane_offset,
    std::uint32_t table) {
  // Byte 1 of the address is the index, the others are the lane's.
  constexpr std::uint32_t selector = 0x7604u | (Pair % 4) << 4;
  if constexpr (decoding<Bits>::pairs) {
    return load_shared_u32<Base + 128 * Row>(permute<selector>(field[Pair / 4], lane_offset) +
                                             table);
  } else {
    const std::uint32_t lo =
        load_shared_u16<Base + 2 * Row>(permute<selector>(field[Pair / 4], lane_offset) + table);
    const std::uint32_t hi = load_shared_u16<Base + 2 * Row>(
        permute<selector>(field[Pair / 4 + 4], lane_offset) + table);
    return hi * 65536u + lo;
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
