// SPDX-License-Identifier: MIT
// y = W x for one token at 2 to 4 bits without a lookup. A row's table is expanded over products of
// code bits (the Moebius transform of its values): W[code] = sum over sets S of planes of c_S times
// the product of the bits in S. The activations become 24-bit integers, stored as 24 bit-planes,
// and the binary tensor cores count, for every S and every bit-plane, the columns where all bits
// are one. Those counts are exact integers; c_S times counts is summed in double,
// so that what a float result loses is its own rounding. Device code only; gemm.cuh launches it.
// Tested by tests/kernels/cuda/gemm_test.cu.
//
// The order of summation: counts are exact within a slice of 1024 columns; a slice's result adds
// the sets in order, and slices are added in order. Neither depends on the launch.
//
// Activations are x = 2^e times an integer of 24 bits, e set by the largest |x| of the slice: an
// error of at most 2^-23 of it per element. If any element is not finite, every result is NaN.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/output.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_kernel.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/policy.cuh>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// c += popcount(a and b), a [16, 256] bits, b [256, 8] bits.
__device__ __forceinline__ void mma_and_popc(int (&c)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Transposes 32 x 32 bits: bit j of word i becomes bit i of word j.
__device__ __forceinline__ void transpose_bits(std::uint32_t (&w)[32]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const std::uint32_t a = w[i], b = w[i + 16];
    w[i] = permute<0x5410>(a, b), w[i + 16] = permute<0x7632>(a, b);
  }
#pragma unroll
  for (int i = 0; i < 32; ++i)
    if (i % 16 < 8) {
      const std::uint32_t a = w[i], b = w[i + 8];
      w[i] = permute<0x6240>(a, b), w[i + 8] = permute<0x7351>(a, b);
    }
#pragma unroll
  for (int i = 0; i < 32; ++i)
    if (i % 8 < 4) {
      const std::uint32_t a = w[i], b = w[i + 4];
      w[i] = select<0x0F0F0F0Fu>(a, b << 4), w[i + 4] = select<0xF0F0F0F0u>(b, a >> 4);
    }
#pragma unroll
  for (int i = 0; i < 32; ++i)
    if (i % 4 < 2) {
      const std::uint32_t a = w[i], b = w[i + 2];
      w[i] = select<0x33333333u>(a, b << 2), w[i + 2] = select<0xCCCCCCCCu>(b, a >> 2);
    }
#pragma unroll
  for (int i = 0; i < 32; ++i)
    if (i % 2 < 1) {
      const std::uint32_t a = w[i], b = w[i + 1];
      w[i] = select<0x55555555u>(a, b << 1), w[i + 1] = select<0xAAAAAAAAu>(b, a >> 1);
    }
}

/// What the launcher adds to small_batch_params.
struct bit_serial_params {
  small_batch_params call;  ///< m = 1, one chunk
  int batch_units;          ///< units whose sums fit in shared memory together, even if paired
};

template <int Bits, class Policy>
struct bit_serial {
  static constexpr int warps = 8;
  static constexpr int threads = 32 * warps;
  static constexpr int sets = (1 << Bits) - 1;  ///< products of bits, the empty one apart
  static constexpr int x_bits = 24;
  static constexpr int n_tiles = x_bits / 8;
  static constexpr int slice_tiles = 4;  ///< column tiles of a slice
  static constexpr int tile_x_words = n_tiles * 64;
  static constexpr int tile_bytes = Bits * packed_layout::tile_words * 4;

  // Shared memory: [planes on their way, 4 tiles a warp][scales of slices][activation planes]
  // [coefficients][sums].
  static constexpr int scale_offset = warps * slice_tiles * tile_bytes;
  BL_HOST_DEVICE static constexpr int slices(int col_tiles) {
    return (col_tiles + slice_tiles - 1) / slice_tiles;
  }
  BL_HOST_DEVICE static constexpr int x_offset(int col_tiles) {
    return scale_offset + slices(col_tiles) * 16;
  }
  BL_HOST_DEVICE static constexpr int coefficient_offset(int col_tiles) {
    return x_offset(col_tiles) + col_tiles * tile_x_words * 4;
  }
  /// Bytes that one unit of a batch takes.
  BL_HOST_DEVICE static constexpr int unit_bytes(int col_tiles) {
    return (16 << Bits) * 8 + slices(col_tiles) * 16 * 8;
  }
  BL_HOST_DEVICE static constexpr int shared_bytes(int col_tiles, int units) {
    return coefficient_offset(col_tiles) + units * unit_bytes(col_tiles);
  }

  const bit_serial_params& params;
  const small_batch_params& p;
  unsigned char* const shared;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const small_batch<Bits, small_batch_policy<Bits, 1>> units;  // for where a unit's data lie

  __device__ bit_serial(const bit_serial_params& all, unsigned char* memory)
      : params(all), p(all.call), shared(memory), units(all.call, memory) {}

  // --- activations -------------------------------------------------------------------------------

  /// What the integers of a slice stand for.
  struct slice_scale {
    double back;  ///< an integer times this is an activation; NaN if the slice has one not finite
    double sum;   ///< of the integers
  };
  __device__ slice_scale* scales() const {
    return reinterpret_cast<slice_scale*>(shared + scale_offset);
  }

  __device__ void as_floats(std::uint32_t x, float& a, float& b) const {
    if (p.x_is_bf16) {
      a = __uint_as_float(x << 16), b = __uint_as_float(x & 0xffff0000u);
    } else {
      const float2 f = __half22float2(*reinterpret_cast<const __half2*>(&x));
      a = f.x, b = f.y;
    }
  }

  /// Writes the bit-planes of all activations: a warp takes a slice, a lane 32 columns of it.
  __device__ void share_x() const {
#pragma unroll 1
    for (int slice = warp; slice < slices(p.col_tiles); slice += warps) {
      const int run = slice * slice_tiles * 8 + lane;
      std::uint32_t x[16], w[32];
      units.load_x_run(0, run * 32, x);
      unsigned largest = 0;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        float a, b;
        as_floats(x[i], a, b);
        largest = max(largest, max(__float_as_uint(fabsf(a)), __float_as_uint(fabsf(b))));
      }
      largest = __reduce_max_sync(0xffffffffu, largest);
      // The largest |x| is in [2^E, 2^(E+1)); integers are x 2^(22 - E), below 2^23.
      const int exponent = max(static_cast<int>(largest >> 23), 27) - 127;
      const float scale = __uint_as_float(static_cast<unsigned>(22 - exponent + 127) << 23);
      long long sum = 0;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        float a, b;
        as_floats(x[i], a, b);
        const int first = __float2int_rn(a * scale), second = __float2int_rn(b * scale);
        w[2 * i] = static_cast<std::uint32_t>(first);
        w[2 * i + 1] = static_cast<std::uint32_t>(second);
        sum += first + second;
      }
      transpose_bits(w);
      const int tile = run / 8, half = lane / 4 % 2, t = lane % 4;
      if (tile < p.col_tiles) {
        // Operand b of lane 4 n + t: word 0 the first half's columns, word 1 the second's.
        std::uint32_t* to = reinterpret_cast<std::uint32_t*>(shared + x_offset(p.col_tiles)) +
                            tile * tile_x_words + t * 2 + half;
#pragma unroll
        for (int b = 0; b < x_bits; ++b) to[b / 8 * 64 + b % 8 * 8] = w[b];
      }
#pragma unroll
      for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
      const double back = 1.0 / static_cast<double>(scale);
      const bool finite = largest < 0x7f800000u;
      if (lane == 0)
        scales()[slice] = {finite ? back : back * static_cast<double>(__uint_as_float(0x7fffffffu)),
                           static_cast<double>(sum)};
    }
  }

  // --- coefficients ------------------------------------------------------------------------------

  /// [units of the batch][sets and the empty one][16 rows]
  __device__ double* coefficients(int unit_in_batch) const {
    return reinterpret_cast<double*>(shared + coefficient_offset(p.col_tiles)) +
           unit_in_batch * (16 << Bits);
  }
  /// [units of the batch][slices][16 rows]
  __device__ double* sums(int unit_in_batch) const {
    return coefficients(params.batch_units) + unit_in_batch * slices(p.col_tiles) * 16;
  }

  /// The Moebius transform of the tables of a batch.
  __device__ void share_coefficients(int begin, int count) const {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count * 16; i += threads) {
      int row_tile;
      const auto& m = p.matrices[units.matrix_of(begin + i / 16, row_tile)];
      const int row = i % 16;
      const __half* table = reinterpret_cast<const __half*>(m.tables) +
                            static_cast<std::size_t>(row_tile) * (16 << Bits) + row % 8 * 2 +
                            row / 8;
      float c[1 << Bits];
#pragma unroll
      for (int f = 0; f < 1 << Bits; ++f) c[f] = __half2float(table[f * 16]);
#pragma unroll
      for (int j = 0; j < Bits; ++j)
#pragma unroll
        for (int f = 0; f < 1 << Bits; ++f)
          if ((f >> j & 1) != 0) c[f] -= c[f ^ 1 << j];
#pragma unroll
      for (int f = 0; f < 1 << Bits; ++f)
        coefficients(i / 16)[f * 16 + row] = static_cast<double>(c[f]);
    }
  }

  // --- products ----------------------------------------------------------------------------------

  using counts = int[sets][n_tiles][4];

  /// Counts set S, then every set that adds later planes to it.
  template <int S, int Next>
  __device__ __forceinline__ void descend(const std::uint32_t (&plane)[Bits][4],
                                          const std::uint32_t (&product)[4],
                                          const uint2 (&x)[n_tiles], counts& c) const {
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) mma_and_popc(c[S - 1][n], product, x[n].x, x[n].y);
    extend<S, Next>(plane, product, x, c);
  }

  template <int S, int Next>
  __device__ __forceinline__ void extend(const std::uint32_t (&plane)[Bits][4],
                                         const std::uint32_t (&product)[4],
                                         const uint2 (&x)[n_tiles], counts& c) const {
    if constexpr (Next < Bits) {
      std::uint32_t with[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) with[i] = S == 0 ? plane[Next][i] : product[i] & plane[Next][i];
      descend<(S | 1 << Next), Next + 1>(plane, with, x, c);
      extend<S, Next + 1>(plane, product, x, c);
    }
  }

  /// This lane's words of slot `i` of its warp's ring.
  __device__ std::uint32_t ring(int i) const {
    return shared_address(shared) +
           static_cast<std::uint32_t>((warp * slice_tiles + i) * tile_bytes + lane * 16);
  }

  __device__ __forceinline__ void multiply(int slot, int tile, counts& c) const {
    uint2 x[n_tiles];
    const uint2* from =
        reinterpret_cast<const uint2*>(shared + x_offset(p.col_tiles)) + tile * (tile_x_words / 2);
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) x[n] = from[n * 32 + lane];
    std::uint32_t plane[Bits][4];
#pragma unroll
    for (int j = 0; j < Bits; ++j) {
      const uint4 w = load_shared_v4(ring(slot) + j * packed_layout::tile_words * 4);
      plane[j][0] = rotate_right(w.x, j), plane[j][1] = rotate_right(w.y, j);
      plane[j][2] = rotate_right(w.z, j), plane[j][3] = rotate_right(w.w, j);
    }
    extend<0, 0>(plane, plane[0], x, c);
  }

  /// The integer as a double, by an exponent and a subtraction: the conversion instruction is four
  /// times as slow.
  __device__ __forceinline__ static double exact(int v) {
    return __hiloint2double(0x43300000, v ^ static_cast<int>(0x80000000u)) - 4503601774854144.0;
  }

  /// The result of a slice.
  __device__ __forceinline__ void store_slice(const counts& c, int unit_in_batch, int slice) const {
    const int lane = opaque(this->lane);
    const int g = lane / 4, t = lane % 4;
    const double* coefficient = coefficients(unit_in_batch) + g;
    // Bit-plane 23, in the last lane of the quad, is the sign. Small negative activations have ones
    // in all high planes, whose counts cancel between lanes: floats would not do.
    const int top = t == 3 ? -2 : 2;
    double upper = 0, lower = 0;
#pragma unroll
    for (int s = 0; s < sets; ++s) {
      auto weigh = [&](int i) {
        const int u0 = c[s][0][i] + 2 * c[s][0][i + 1];
        const int u1 = c[s][1][i] + 2 * c[s][1][i + 1];
        const int u2 = c[s][2][i] + top * c[s][2][i + 1];
        return exact(u0 + 256 * u1 + 65536 * u2);  // at most 1024 * 3 * 2^16
      };
      upper = fma(coefficient[(s + 1) * 16], weigh(0), upper);
      lower = fma(coefficient[(s + 1) * 16 + 8], weigh(2), lower);
    }
    const double shift = __int2double_rn(1 << 2 * t);
    upper *= shift, lower *= shift;
#pragma unroll
    for (int by = 1; by < 4; by *= 2) {
      upper += __shfl_xor_sync(0xffffffffu, upper, by);
      lower += __shfl_xor_sync(0xffffffffu, lower, by);
    }
    if (t == 0) {
      double* to = sums(unit_in_batch) + slice * 16;
      const slice_scale x = scales()[slice];
      to[g] = fma(coefficient[0], x.sum, upper) * x.back;
      to[g + 8] = fma(coefficient[8], x.sum, lower) * x.back;
    }
  }

  // --- the loop ----------------------------------------------------------------------------------

  /// A warp's place among the slices of a batch: slices warp, warp + 8, ... of all units in order.
  struct cursor {
    int unit, slice;
    const std::uint32_t* base;  ///< of the slice, at this lane
  };

  __device__ void aim(cursor& c, int end, int slice_count) const {
    while (c.slice >= slice_count) {
      c.slice -= slice_count;
      ++c.unit;
    }
    if (c.unit < end)
      c.base = units.unit_planes(c.unit) + c.slice * slice_tiles * packed_layout::tile_words +
               lane * packed_layout::lane_words;
  }

  /// Queues the copy of one tile, each lane its own words, as one group even if there is nothing to
  /// copy: so the number of groups says what has arrived.
  __device__ __forceinline__ void request(const cursor& c, int end, int i) const {
    if (c.unit < end && c.slice * slice_tiles + i < p.col_tiles) {
      const std::uint32_t* from = c.base + i * packed_layout::tile_words;
#pragma unroll
      for (int j = 0; j < Bits; ++j) {
        copy_async_16(ring(i) + j * packed_layout::tile_words * 4, from);
        from += p.plane_stride;
      }
    }
    copy_async_commit();
  }

  /// Units begin..end - 1, at most params.batch_units.
  __device__ __forceinline__ void batch(int begin, int end, bool first) const {
    const int slice_count = slices(p.col_tiles);
    cursor next{begin, warp, nullptr};
    aim(next, end, slice_count);
#pragma unroll
    for (int i = 0; i < slice_tiles; ++i) request(next, end, i);
    share_coefficients(begin, end - begin);
    if (first) {
      wait_for_dependency();
      share_x();
    }
    __syncthreads();
#pragma unroll 1
    while (next.unit < end) {
      const int unit = next.unit, slice = next.slice;
      next.slice += warps;
      aim(next, end, slice_count);
      counts c;
#pragma unroll
      for (int s = 0; s < sets; ++s)
#pragma unroll
        for (int n = 0; n < n_tiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) c[s][n][i] = 0;
#pragma unroll
      for (int i = 0; i < slice_tiles; ++i) {
        copy_async_wait<slice_tiles - 1>();
        const int tile = slice * slice_tiles + i;
        if (tile < p.col_tiles) multiply(i, tile, c);
        request(next, end, i);
      }
      store_slice(c, unit - begin, slice);
    }
    __syncthreads();
    // One thread a result: theslices in order.

    const int outputs = (end - begin) >> p.paired;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < outputs * 16; i += threads) {
      const int unit = (i / 16) << p.paired, row = i % 16;
      float gate = 0.f, v = 0.f;
#pragma unroll 1
      for (int part = 0; part <= p.paired; ++part) {
        const double* slice = sums(unit + part) + row;
        double sum = slice[0];
        for (int s = 1; s < slice_count; ++s) sum += slice[s * 16];
        v = static_cast<float>(sum);
        if (part < p.paired) gate = v;
      }
      units.write(begin + unit + p.paired, 0, row, gate, v);
    }
    __syncthreads();
  }
};

template <int Bits>
BL_KERNEL __launch_bounds__(256, bit_serial_policy<Bits>::blocks)
    bit_serial_kernel(const __grid_constant__ bit_serial_params params) {
  extern __shared__ __align__(128) unsigned char shared[];
  launch_dependents();
  const small_batch_params& p = params.call;
  const long long items = p.items;
  const int begin = static_cast<int>(items * blockIdx.x / gridDim.x) << p.paired;
  const int end = static_cast<int>(items * (blockIdx.x + 1) / gridDim.x) << p.paired;
  const bit_serial<Bits, bit_serial_policy<Bits>> body(params, shared);
#pragma unroll 1
  for (int unit = begin; unit < end; unit += params.batch_units)
    body.batch(unit, min(unit + params.batch_units, end), unit == begin);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
