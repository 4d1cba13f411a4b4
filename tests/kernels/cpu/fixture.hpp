// SPDX-License-Identifier: MIT
// What the kernel tests share: random weights with tables, comparison by bits, and loops over the
// instruction sets of the machine.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/pack.hpp>
#include <bitladder/kernels/cpu/isa.hpp>

#include <support/random.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace support {

template <int Bits>
using bits = std::integral_constant<int, Bits>;

#define ALL_BITS                                                                            \
  support::bits<1>, support::bits<2>, support::bits<3>, support::bits<4>, support::bits<5>, \
      support::bits<6>, support::bits<7>, support::bits<8>

/// Random codes of `planes` bits with random ascending tables of every precision up to that.
struct quantized {
  std::vector<std::uint8_t> codes;
  bitladder::bitplane_tensor planes;
  bitladder::codebook_ladder tables;

  quantized(int rows, int cols, int plane_count, int groups, random& rng)
      : codes(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols)),
        tables(rows, groups, 1, plane_count) {
    for (std::uint8_t& c : codes) c = static_cast<std::uint8_t>(rng.below(1 << plane_count));
    planes = bitladder::pack(bitladder::matrix_view<const std::uint8_t>(codes.data(), rows, cols),
                             plane_count);
    for (int b = 1; b <= plane_count; ++b) {
      const std::size_t entries = std::size_t{1} << b;
      std::vector<float> values(entries);
      for (std::size_t t = 0; t < tables[b].size(); t += entries) {
        for (float& v : values) v = static_cast<float>(0.05 * rng.normal());
        std::sort(values.begin(), values.end());
        for (std::size_t i = 0; i < entries; ++i)
          tables.data(b)[t + i] = bitladder::to_fp16(values[i]);
      }
    }
  }
};

inline bitladder::matrix_view<const float> matrix(const std::vector<float>& v, int rows, int cols) {
  return {v.data(), rows, cols};
}
inline bitladder::matrix_view<float> matrix(std::vector<float>& v, int rows, int cols) {
  return {v.data(), rows, cols};
}

/// Equal bits, except that any NaN equals any NaN.
inline bool same_bits(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::memcmp(&a, &b, sizeof a) == 0;
}
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float x, float y) { return same_bits(x, y); });
}

inline std::vector<bitladder::cpu::isa> isas_here() {
  std::vector<bitladder::cpu::isa> here;
  for (bitladder::cpu::isa i : bitladder::cpu::all_isas)
    if (supported(i)) here.push_back(i);
  return here;
}

/// How far a float sum of `depth` products may be from the exact one, in units of sum |w x|: each
/// lane rounds once per step and the tree five times.
inline double rounding_bound(int depth) { return ((depth + 31) / 32 + 5) * 0x1p-24 * 1.01; }

}  // namespace support
