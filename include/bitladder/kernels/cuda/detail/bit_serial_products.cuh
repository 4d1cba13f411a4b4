// SPDX-License-Identifier: MIT
// What bit-serial products are made of: activations as bit-planes, tables as coefficients of
// products of bits, counts on the binary tensor cores, and what the counts of a slice amount to.
// How they go together: bit_serial_kernel.cuh. Device code only. Tested by
// tests/kernels/cuda/gemm_test.cu.
//
// Binary products do not run beside other integer instructions: an H200 does 0.59 of them a clock
// and multiprocessor alone, 0.36 with two LOP3 or two IMAD for each. So what is around them counts
// in full: masks, and the weighing of counts at the end of every slice.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/bit_serial_bits.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// Activations are integers of so many bits, counted plane by plane.
constexpr int bit_serial_x_bits = 24;
/// Column tiles of a slice, whose activations have one scale.
constexpr int bit_serial_slice_tiles = 4;
/// Words of a column tile's activations: [runs of 32 columns][bit-planes].
constexpr int bit_serial_tile_x_words = 8 * bit_serial_x_bits;
/// Mean magnitude of some activations, as integers, from which on 16 bits do: the largest is below
/// 2^23.
constexpr int bit_serial_narrow_mean = 1 << 18;

/// What the integers of a slice stand for.
struct alignas(16) bit_serial_slice_scale {
  double back;          ///< an integer times this is an activation; NaN if one is not finite
  double sum[2];        ///< of the integers of each half
  unsigned largest[2];  ///< magnitude in each half
  unsigned wide[2];     ///< of each half: whether bit-planes 0 to 7 are not all zero
};

/// Exponent of the slice whose largest magnitude this is: integers are x 2^(22 - exponent), below
/// 2^23.
__device__ __forceinline__ int bit_serial_exponent(float largest) {
  return max(static_cast<int>(__float_as_uint(largest) >> 23), 27) - 127;
}

__device__ __forceinline__ float bit_serial_scale(int exponent) {
  return __uint_as_float(static_cast<unsigned>(22 - exponent + 127) << 23);
}

/// Rounds integers to 16 bits, the lower 8 zero, if the `32 * Count` of a warp are large enough on
/// the average.
/// @return whether they are not
template <int Count>
__device__ __forceinline__ bool narrow(std::uint32_t (&w)[Count]) {
  int magnitude = 0;  // of a lane below 2^27
#pragma unroll
  for (int k = 0; k < Count; ++k) magnitude += abs(static_cast<int>(w[k]));
  const int all = __reduce_add_sync(0xffffffffu, (magnitude + 63) / 64);
  if (all == 0) return false;
  if (all < bit_serial_narrow_mean / 64 * Count * 32) return true;
#pragma unroll
  for (int k = 0; k < Count; ++k)
    w[k] = static_cast<std::uint32_t>(min(static_cast<int>(w[k]) + 128, (1 << 23) - 1) & ~255);
  return false;
}

/// Writes the bit-planes of a warp's half slice, lane l having columns 16 l ... of it as integers
/// of 24 bits, and what they stand for.
/// @tparam Narrow whether integers may be rounded to 16 bits
/// @param to shared address of the half slice's planes
/// @param largest of the whole slice; not finite makes its results NaN
template <bool Narrow>
__device__ __forceinline__ void share_bit_planes(std::uint32_t (&w)[16], int lane, std::uint32_t to,
                                                 bit_serial_slice_scale& scale, int half,
                                                 float largest, int exponent) {
  bool wide = true;
  if constexpr (Narrow) wide = narrow(w);
  std::uint32_t total = 0;  // of 16 below 2^23
#pragma unroll
  for (int k = 0; k < 16; ++k) total += w[k];
  transpose_bits(w);
  // Two lanes share a run of 32 columns: the first writes its planes 0 to 11, the second the
  // others.
  const bool second = lane % 2 != 0;
  std::uint32_t eight[8], four[4];
#pragma unroll
  for (int k = 0; k < 8; ++k)
    eight[k] = __byte_perm(w[k], __shfl_xor_sync(0xffffffffu, w[k], 1), second ? 0x3276u : 0x5410u);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const std::uint32_t keep = second ? w[k + 12] : w[k + 8];
    const std::uint32_t give = second ? w[k + 8] : w[k + 12];
    four[k] = __byte_perm(keep, __shfl_xor_sync(0xffffffffu, give, 1), second ? 0x1054u : 0x5410u);
  }
  to += static_cast<std::uint32_t>(lane / 2 * bit_serial_x_bits * 4);
  const std::uint32_t to_eight = to + (second ? 64u : 0u), to_four = to + (second ? 48u : 32u);
  store_shared_v4(to_eight, eight[0], eight[1], eight[2], eight[3]);
  store_shared_v4(to_eight + 16, eight[4], eight[5], eight[6], eight[7]);
  store_shared_v4(to_four, four[0], four[1], four[2], four[3]);
  const int sum = static_cast<int>(total);
  const int upper_sum = __reduce_add_sync(0xffffffffu, sum >> 8);
  const int lower_sum = __reduce_add_sync(0xffffffffu, sum & 0xff);
  if (lane == 0) {
    const bool finite = __float_as_uint(largest) < 0x7f800000u;
    if (half == 0) scale.back = power_of_two(finite, exponent - 22);
    scale.sum[half] = fma(256.0, static_cast<double>(upper_sum), static_cast<double>(lower_sum));
    scale.wide[half] = wide ? 1 : 0;
  }
}

/// The same for one column tile, lane l having columns 8 l ... of it; nothing of what they stand
/// for.
/// @param to shared address of the tile's planes
/// @param wide whether the lower 8 bits are not all zero, for all lanes alike
/// @return the sum of this lane's integers
__device__ __forceinline__ int share_tile_planes(const std::uint32_t (&w)[8], int lane,
                                                 std::uint32_t to, bool wide) {
  std::uint32_t total = 0;  // of 8 below 2^23
#pragma unroll
  for (int k = 0; k < 8; ++k) total += w[k];
  // Bytes of the integers by their place: [place][columns 0 to 3, 4 to 7].
  std::uint32_t m[3][2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const std::uint32_t a = permute<0x5140>(w[4 * h], w[4 * h + 1]);
    const std::uint32_t b = permute<0x5140>(w[4 * h + 2], w[4 * h + 3]);
    const std::uint32_t c = permute<0x7362>(w[4 * h], w[4 * h + 1]);
    const std::uint32_t d = permute<0x7362>(w[4 * h + 2], w[4 * h + 3]);
    m[0][h] = permute<0x5410>(a, b), m[1][h] = permute<0x7632>(a, b);
    m[2][h] = permute<0x5410>(c, d);
  }
  // Four lanes share a run of 32 columns; each ends with every fourth plane of it.
  const bool odd = lane % 2 != 0, upper = lane / 2 % 2 != 0;
  to += static_cast<std::uint32_t>(lane / 4 * bit_serial_x_bits * 4 + lane % 4 * 4);
#pragma unroll
  for (int b = 0; b < 3; ++b) {
    if (b == 0 && !wide) {
      store_shared_u32(to, 0);
      store_shared_u32(to + 16, 0);
      continue;
    }
    // Eight by eight bits, transposed by halves.
    std::uint32_t low = m[b][0], high = m[b][1];
    std::uint32_t t = (low ^ (low >> 7)) & 0x00AA00AAu;
    low ^= t ^ (t << 7);
    t = (high ^ (high >> 7)) & 0x00AA00AAu;
    high ^= t ^ (t << 7);
    t = (low ^ (low >> 14)) & 0x0000CCCCu;
    low ^= t ^ (t << 14);
    t = (high ^ (high >> 14)) & 0x0000CCCCu;
    high ^= t ^ (t << 14);
    t = (low ^ (high << 4)) & 0xF0F0F0F0u;
    low ^= t;
    high ^= t >> 4;
    std::uint32_t plane[2] = {low, high};  // 4 planes of 8 columns each
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::uint32_t other = __shfl_xor_sync(0xffffffffu, plane[h], 1);
      plane[h] = __byte_perm(plane[h], other, odd ? 0x3715u : 0x6240u);
      other = __shfl_xor_sync(0xffffffffu, plane[h], 2);
      plane[h] = __byte_perm(plane[h], other, upper ? 0x3276u : 0x5410u);
      store_shared_u32(to + static_cast<std::uint32_t>((8 * b + 4 * h) * 4), plane[h]);
    }
  }
  return static_cast<int>(total);
}

/// The Moebius transform of one row's table, as integers of 31 bits: the largest is in [2^29,
/// 2^30), so that 16 products with weighed counts fit in 64 bits.
/// @param table,to both with a step of 16 from one code to the next
/// @return what the integers stand for
template <int Bits>
__device__ __forceinline__ double moebius_coefficients(const __half* table, int* to) {
  float c[1 << Bits];
#pragma unroll
  for (int f = 0; f < 1 << Bits; ++f) c[f] = __half2float(table[f * 16]);
  unsigned largest = 0;
#pragma unroll
  for (int j = 0; j < Bits; ++j)
#pragma unroll
    for (int f = 0; f < 1 << Bits; ++f)
      if ((f >> j & 1) != 0) c[f] -= c[f ^ 1 << j];
#pragma unroll
  for (int f = 0; f < 1 << Bits; ++f) largest = max(largest, __float_as_uint(fabsf(c[f])));
  const int exponent = max(static_cast<int>(largest >> 23), 64) - 127;
  const float scale = __uint_as_float(static_cast<unsigned>(29 - exponent + 127) << 23);
#pragma unroll
  for (int f = 0; f < 1 << Bits; ++f) to[f * 16] = __float2int_rn(c[f] * scale);
  return power_of_two(largest < 0x7f800000u, exponent - 29);
}

/// Products of one slice of 16 rows by a warp.
/// @tparam PlaneBytes from one plane of a tile to the next, in shared memory
template <int Bits, int PlaneBytes>
struct bit_serial_products {
  static constexpr int sets = (1 << Bits) - 1;  ///< products of bits, the empty one apart
  static_assert(bit_serial_x_bits == 24, "");

  /// Some eights of bit-planes.
  template <int First, int Count>
  struct part {
    static constexpr int first = First, count = Count;
    using counts = int[sets][Count][4];
    /// Operand b of a tile: a bit-plane's words of two runs of 32 columns, for every eight planes.
    struct tile_x {
      std::uint32_t word[Count][2];
    };
  };
  using all_planes = part<0, 3>;
  using upper_planes = part<1, 2>;  ///< 8 to 23
  using lower_planes = part<0, 1>;  ///< 0 to 7, zero if activations have 16 bits

  /// Sums of counts times coefficients, of rows g and g + 8, so far.
  struct weighed {
    long long upper = 0, lower = 0;
  };

  /// Counts set S, then every set that adds later planes to it.
  template <class Part, bool First, int S, int Next>
  __device__ __forceinline__ static void descend(const std::uint32_t (&plane)[Bits][4],
                                                 const std::uint32_t (&product)[4],
                                                 const typename Part::tile_x& x,
                                                 typename Part::counts& c) {
#pragma unroll
    for (int n = 0; n < Part::count; ++n) {
      if constexpr (First)
        mma_and_popc_first(c[S - 1][n], product, x.word[n][0], x.word[n][1]);
      else
        mma_and_popc(c[S - 1][n], product, x.word[n][0], x.word[n][1]);
    }
    extend<Part, First, S, Next>(plane, product, x, c);
  }

  template <class Part, bool First, int S, int Next>
  __device__ __forceinline__ static void extend(const std::uint32_t (&plane)[Bits][4],
                                                const std::uint32_t (&product)[4],
                                                const typename Part::tile_x& x,
                                                typename Part::counts& c) {
    if constexpr (Next < Bits) {
      std::uint32_t with[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) with[i] = S == 0 ? plane[Next][i] : product[i] & plane[Next][i];
      descend<Part, First, (S | 1 << Next), Next + 1>(plane, with, x, c);
      extend<Part, First, S, Next + 1>(plane, product, x, c);
    }
  }

  __device__ __forceinline__ static void load_plane(std::uint32_t from, int j,
                                                    std::uint32_t (&plane)[4]) {
    const uint4 w = load_shared_v4(from + j * PlaneBytes);
    plane[0] = rotate_right(w.x, j), plane[1] = rotate_right(w.y, j);
    plane[2] = rotate_right(w.z, j), plane[3] = rotate_right(w.w, j);
  }

  /// Adds the counts of a tile; the first of a slice begins them.
  /// @param from this lane's words of the tile's planes, in shared memory
  /// @param x_from this lane's words of the tile's activations
  template <class Part, bool First>
  __device__ __forceinline__ static void multiply(std::uint32_t from, const std::uint32_t* x_from,
                                                  typename Part::counts& c) {
    typename Part::tile_x x;
#pragma unroll
    for (int n = 0; n < Part::count; ++n) {
      x.word[n][0] = x_from[(Part::first + n) * 8];
      x.word[n][1] = x_from[(Part::first + n) * 8 + 4 * bit_serial_x_bits];
    }
    std::uint32_t plane[Bits][4];
#pragma unroll
    for (int j = 0; j < Bits; ++j) load_plane(from, j, plane[j]);
    extend<Part, First, 0, 0>(plane, plane[0], x, c);
  }

  /// Offset of this lane's words among a tile's activations.
  __device__ __forceinline__ static int x_offset(int lane) {
    return lane % 4 * bit_serial_x_bits + lane / 4;
  }

  /// Adds the counts of a slice.
  /// @param coefficients of the rows, [2^Bits][8][rows g and g + 8]
  template <class Part>
  __device__ __forceinline__ static void weigh(const typename Part::counts& c,
                                               const int* coefficients, int lane, weighed& sum) {
    const int g = lane / 4, t = lane % 4;
    const int2* coefficient = reinterpret_cast<const int2*>(coefficients) + g;
    // Bit-plane 23, in the last lane of the quad, is the sign. Small negative activations have ones
    // in all high planes, whose counts cancel between lanes: floats would not do.
    const int top = t == 3 ? -2 : 2;
#pragma unroll
    for (int s = 0; s < sets; ++s) {
      auto both = [&](int i) {  // at most 1024 * 3 * 2^16
        int u = 0;
        if constexpr (Part::first == 0) u = c[s][0][i] + 2 * c[s][0][i + 1];
        if constexpr (Part::first + Part::count == 3) {
          constexpr int last = Part::count - 1;
          u += 256 * (c[s][last - 1][i] + 2 * c[s][last - 1][i + 1]) +
               65536 * (c[s][last][i] + top * c[s][last][i + 1]);
        }
        return u;
      };
      const int2 by = coefficient[(s + 1) * 8];
      sum.upper += static_cast<long long>(both(0)) * by.x;
      sum.lower += static_cast<long long>(both(2)) * by.y;
    }
  }

  /// Writes the result of a slice for each of its 16 rows to `sums`.
  /// @param x_back,x_sum what the slice's integers stand for, and their sum
  __device__ __forceinline__ static void store_slice(const weighed& w, const int* coefficients,
                                                     double x_back, double x_sum, int lane,
                                                     double* sums) {
    const int g = lane / 4, t = lane % 4;
    const int2* coefficient = reinterpret_cast<const int2*>(coefficients) + g;
    // Even lanes go on with row g, odd ones with row g + 8.
    const double shift = __int2double_rn(1 << 2 * t);
    const bool odd = t % 2 != 0;
    double sum = static_cast<double>(odd ? w.lower : w.upper) * shift;
    sum += __shfl_xor_sync(0xffffffffu, static_cast<double>(odd ? w.upper : w.lower) * shift, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (t < 2) {
      const int2 none = coefficient[0];
      sum = fma(static_cast<double>(odd ? none.y : none.x), x_sum, sum);
      sums[g + 8 * t] = sum * x_back;
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
