// SPDX-License-Identifier: MIT
// y = W x for one token at 2 to 4 bits without a lookup. A row's table is expanded over products of
// code bits (the Moebius transform of its values): W[code] = sum over sets S of planes of c_S times
// the product of the bits in S. The activations become 24-bit integers, stored as 24 bit-planes,
// and the binary tensor cores count, for every S and every bit-plane, the columns where all bits
// are one. Those counts are exact integers, and so are their sums with the c_S, which become
// integers of 31 bits. Device code only; gemm.cuh launches it. Tested by
// tests/kernels/cuda/gemm_test.cu.
//
// The order of summation: a slice of 1024 columns is exact but for the last rounding to double;
// slices are added in order. Neither depends on the launch.
//
// Activations are x = 2^e times an integer of 24 bits, e set by the largest |x| of the slice: an
// error of at most 2^-23 of it per element; that of a coefficient is 2^-30 of the row's largest. If
// any element is not finite, every result is NaN.
//
// Outliers are summed by outlier_sums.cuh and added in the end.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/bit_serial_bits.cuh>
#include <bitladder/kernels/cuda/detail/bit_serial_outliers.cuh>
#include <bitladder/kernels/cuda/detail/output.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_units.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/policy.cuh>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

/// What the launcher adds to small_batch_params.
struct bit_serial_params {
  small_batch_params call;  ///< m = 1, one chunk
  int block_items;          ///< results, in row tiles, of a block
  int larger_blocks;        ///< the first blocks, which have one more
  int batch_units;          ///< units whose sums fit in shared memory together, even if paired
  int staged_runs;          ///< of outliers, that are there before the activations
};

/// @tparam Outliers whether any matrix has some: the code for them takes registers
template <int Bits, class Policy, bool Outliers>
struct bit_serial {
  static constexpr int warps = Policy::warps;
  static constexpr int threads = 32 * warps;
  static_assert(warps % 2 == 0 && warps <= 30, "pairs of warps, a barrier each");
  static constexpr int sets = (1 << Bits) - 1;  ///< products of bits, the empty one apart
  static constexpr int x_bits = 24;
  static constexpr int n_tiles = x_bits / 8;
  static constexpr int slice_tiles = 4;  ///< column tiles of a slice
  static constexpr int slice_cols = slice_tiles * packed_layout::tile_cols;
  static constexpr int tile_x_words = 8 * x_bits;  ///< [runs of 32 columns][bit-planes]
  static constexpr int tile_bytes = Bits * packed_layout::tile_words * 4;

  /// What the integers of a slice stand for.
  struct slice_scale {
    double back;    ///< an integer times this is an activation; NaN if the slice has one not finite
    double sum[2];  ///< of the integers of each half
    unsigned largest[2];  ///< magnitude in each half
  };

  // Shared memory: [planes on their way, 4 tiles a warp][scales of slices][activation planes]
  // [coefficients][scales of rows][sums][outliers].
  static constexpr int scale_offset = warps * slice_tiles * tile_bytes;
  BL_HOST_DEVICE static constexpr int slices(int col_tiles) {
    return (col_tiles + slice_tiles - 1) / slice_tiles;
  }
  BL_HOST_DEVICE static constexpr int x_offset(int col_tiles) {
    return scale_offset + slices(col_tiles) * static_cast<int>(sizeof(slice_scale));
  }
  BL_HOST_DEVICE static constexpr int coefficient_offset(int col_tiles) {
    return x_offset(col_tiles) + slices(col_tiles) * slice_tiles * tile_x_words * 4;
  }
  /// Bytes that one unit of a batch takes.
  BL_HOST_DEVICE static constexpr int unit_bytes(int col_tiles) {
    return (16 << Bits) * 4 + (1 + slices(col_tiles)) * 16 * 8;
  }
  BL_HOST_DEVICE static constexpr int outlier_offset(int col_tiles, int units) {
    return coefficient_offset(col_tiles) + units * unit_bytes(col_tiles);
  }
  using outlier_memory = bit_serial_outliers<threads, slice_cols>;
  BL_HOST_DEVICE static constexpr int shared_bytes(int col_tiles, int units, int staged_runs) {
    return outlier_offset(col_tiles, units) +
           (Outliers ? outlier_memory::bytes(slices(col_tiles), units, staged_runs) : 0);
  }

  const bit_serial_params& params;
  const small_batch_params& p;
  unsigned char* const shared;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const small_batch_units units;

  __device__ bit_serial(const bit_serial_params& all, unsigned char* memory)
      : params(all), p(all.call), shared(memory), units(all.call) {}

  // --- activations -------------------------------------------------------------------------------

  __device__ slice_scale* scales() const {
    return reinterpret_cast<slice_scale*>(shared + scale_offset);
  }

  /// Writes the bit-planes of all activations. A warp takes half a slice, a lane 16 columns of it:
  /// 4096 columns occupy 8 warps (H200, 4096 x 4096, 2 bits: 2.9 us; with a slice a warp 3.4).
  __device__ void share_x() const {
    const int halves = 2 * slices(p.col_tiles);
#pragma unroll 1
    for (int from = 0; from < halves; from += warps) {
      const int i = from + warp, half = i % 2;
      if (i >= halves) {
        // Nobody waits for this warp, but compute-sanitizer's racecheck loses count of barriers to
        // which only some warps of a block come.
        wait_for_warps(1 + warp / 2, 64);
        break;
      }
      slice_scale& scale_of_slice = scales()[i / 2];
      std::uint32_t x[8];
      units.load_x_half_run((i * 32 + lane) * 16, x);
      if constexpr (Outliers) outliers().share_x((i * 32 + lane) * 16, x);
      std::uint32_t pair = 0;  // magnitudes of fp16 and bf16 are ordered as integers
#pragma unroll
      for (int k = 0; k < 8; ++k) pair = __vmaxu2(pair, x[k] & 0x7fff7fffu);
      std::uint32_t top = __reduce_max_sync(0xffffffffu, max(pair & 0xffffu, pair >> 16));
      if (lane == 0) scale_of_slice.largest[half] = top;
      wait_for_warps(1 + warp / 2, 64);
      top = max(top, scale_of_slice.largest[half ^ 1]);
      float largest, unused;
      as_floats(top, p.x_is_bf16, largest, unused);
      // The largest |x| is in [2^E, 2^(E+1)); integers are x 2^(22 - E), below 2^23.
      const int exponent = max(static_cast<int>(__float_as_uint(largest) >> 23), 27) - 127;
      const float scale = __uint_as_float(static_cast<unsigned>(22 - exponent + 127) << 23);
      std::uint32_t w[16];
      std::uint32_t total = 0;  // of 16 below 2^23
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        float a, b;
        as_floats(x[k], p.x_is_bf16, a, b);
        const int first = __float2int_rn(a * scale), second = __float2int_rn(b * scale);
        w[2 * k] = static_cast<std::uint32_t>(first);
        w[2 * k + 1] = static_cast<std::uint32_t>(second);
        total += w[2 * k] + w[2 * k + 1];
      }
      transpose_bits(w);
      // Two lanes share a run of 32 columns: the first writes its planes 0 to 11, the second the
      // others.
      const bool second = lane % 2 != 0;
      std::uint32_t eight[8], four[4];
#pragma unroll
      for (int k = 0; k < 8; ++k)
        eight[k] =
            __byte_perm(w[k], __shfl_xor_sync(0xffffffffu, w[k], 1), second ? 0x3276u : 0x5410u);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const std::uint32_t keep = second ? w[k + 12] : w[k + 8];
        const std::uint32_t give = second ? w[k + 8] : w[k + 12];
        four[k] =
            __byte_perm(keep, __shfl_xor_sync(0xffffffffu, give, 1), second ? 0x1054u : 0x5410u);
      }
      const std::uint32_t to = shared_address(shared + x_offset(p.col_tiles)) +
                               static_cast<std::uint32_t>((i * 32 + lane) / 2 * x_bits * 4);
      const std::uint32_t to_eight = to + (second ? 64u : 0u), to_four = to + (second ? 48u : 32u);
      store_shared_v4(to_eight, eight[0], eight[1], eight[2], eight[3]);
      store_shared_v4(to_eight + 16, eight[4], eight[5], eight[6], eight[7]);
      store_shared_v4(to_four, four[0], four[1], four[2], four[3]);
      const int sum = static_cast<int>(total);
      const int upper_sum = __reduce_add_sync(0xffffffffu, sum >> 8);
      const int lower_sum = __reduce_add_sync(0xffffffffu, sum & 0xff);
      if (lane == 0) {
        const bool finite = __float_as_uint(largest) < 0x7f800000u;
        if (half == 0) scale_of_slice.back = power_of_two(finite, exponent - 22);
        scale_of_slice.sum[half] =
            fma(256.0, static_cast<double>(upper_sum), static_cast<double>(lower_sum));
      }
    }
  }

  // --- coefficients ------------------------------------------------------------------------------

  /// [units of the batch][sets and the empty one][8][rows g and g + 8]
  __device__ int* coefficients(int unit_in_batch) const {
    return reinterpret_cast<int*>(shared + coefficient_offset(p.col_tiles)) +
           unit_in_batch * (16 << Bits);
  }
  /// [units of the batch][16 rows]: what the integers among the coefficients stand for.
  __device__ double* row_scales(int unit_in_batch) const {
    return reinterpret_cast<double*>(coefficients(params.batch_units)) + unit_in_batch * 16;
  }
  /// [units of the batch][slices][16 rows]
  __device__ double* sums(int unit_in_batch) const {
    return row_scales(params.batch_units) + unit_in_batch * slices(p.col_tiles) * 16;
  }

  /// The Moebius transform of the tables of a batch, as integers of 31 bits: the largest of a row
  /// is in [2^29, 2^30), so that 16 products with weighed counts fit in 64 bits.
  __device__ void share_coefficients(int begin, int count) const {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count * 16; i += threads) {
      int row_tile;
      const auto& m = p.matrices[units.matrix_of(begin + i / 16, row_tile)];
      const __half* table = reinterpret_cast<const __half*>(m.tables) +
                            static_cast<std::size_t>(row_tile) * (16 << Bits) + i % 16;
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
      for (int f = 0; f < 1 << Bits; ++f)
        coefficients(i / 16)[f * 16 + i % 16] = __float2int_rn(c[f] * scale);
      const bool finite = largest < 0x7f800000u;
      row_scales(i / 16)[i % 2 * 8 + i % 16 / 2] = power_of_two(finite, exponent - 29);
    }
  }

  __device__ __forceinline__ outlier_memory outliers() const {
    return {units, shared + outlier_offset(p.col_tiles, params.batch_units), slices(p.col_tiles),
            params.batch_units, params.staged_runs};
  }

  // --- products ----------------------------------------------------------------------------------

  using counts = int[sets][n_tiles][4];

  /// Operand b of a tile: a bit-plane's words of two runs of 32 columns, for every eight planes.
  struct tile_x {
    std::uint32_t word[n_tiles][2];
  };

  /// Counts set S, then every set that adds later planes to it.
  template <bool First, int S, int Next>
  __device__ __forceinline__ void descend(const std::uint32_t (&plane)[Bits][4],
                                          const std::uint32_t (&product)[4], const tile_x& x,
                                          counts& c) const {
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
      if constexpr (First)
        mma_and_popc_first(c[S - 1][n], product, x.word[n][0], x.word[n][1]);
      else
        mma_and_popc(c[S - 1][n], product, x.word[n][0], x.word[n][1]);
    }
    extend<First, S, Next>(plane, product, x, c);
  }

  template <bool First, int S, int Next>
  __device__ __forceinline__ void extend(const std::uint32_t (&plane)[Bits][4],
                                         const std::uint32_t (&product)[4], const tile_x& x,
                                         counts& c) const {
    if constexpr (Next < Bits) {
      std::uint32_t with[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) with[i] = S == 0 ? plane[Next][i] : product[i] & plane[Next][i];
      descend<First, (S | 1 << Next), Next + 1>(plane, with, x, c);
      extend<First, S, Next + 1>(plane, product, x, c);
    }
  }

  /// This lane's words of slot `i` of its warp's ring.
  __device__ std::uint32_t ring(int i) const {
    return shared_address(shared) +
           static_cast<std::uint32_t>((warp * slice_tiles + i) * tile_bytes + lane * 16);
  }

  __device__ __forceinline__ static void load_plane(std::uint32_t from, int j,
                                                    std::uint32_t (&plane)[4]) {
    const uint4 w = load_shared_v4(from + j * packed_layout::tile_words * 4);
    plane[0] = rotate_right(w.x, j), plane[1] = rotate_right(w.y, j);
    plane[2] = rotate_right(w.z, j), plane[3] = rotate_right(w.w, j);
  }

  /// Adds the counts of a tile; the first of a slice begins them.
  /// @param from this lane's words of the tile's planes, in shared memory
  /// @param x_from this lane's words of the tile's activations
  template <bool First>
  __device__ __forceinline__ void multiply(std::uint32_t from, const std::uint32_t* x_from,
                                           counts& c) const {
    tile_x x;
#pragma unroll
    for (int n = 0; n < n_tiles; ++n)
      x.word[n][0] = x_from[n * 8], x.word[n][1] = x_from[n * 8 + 4 * x_bits];
    std::uint32_t plane[Bits][4];
#pragma unroll
    for (int j = 0; j < Bits; ++j) load_plane(from, j, plane[j]);
    extend<First, 0, 0>(plane, plane[0], x, c);
  }

  /// The result of a slice.
  __device__ __forceinline__ void store_slice(const counts& c, int unit_in_batch, int slice) const {
    const int lane = opaque(this->lane);
    const int g = lane / 4, t = lane % 4;
    const int2* coefficient = reinterpret_cast<const int2*>(coefficients(unit_in_batch)) + g;
    // Bit-plane 23, in the last lane of the quad, is the sign. Small negative activations have ones
    // in all high planes, whose counts cancel between lanes: floats would not do.
    const int top = t == 3 ? -2 : 2;
    long long upper = 0, lower = 0;
#pragma unroll
    for (int s = 0; s < sets; ++s) {
      auto weigh = [&](int i) {
        const int u0 = c[s][0][i] + 2 * c[s][0][i + 1];
        const int u1 = c[s][1][i] + 2 * c[s][1][i + 1];
        const int u2 = c[s][2][i] + top * c[s][2][i + 1];
        return u0 + 256 * u1 + 65536 * u2;  // at most 1024 * 3 * 2^16
      };
      const int2 by = coefficient[(s + 1) * 8];
      upper += static_cast<long long>(weigh(0)) * by.x;
      lower += static_cast<long long>(weigh(2)) * by.y;
    }
    // Even lanes go on with row g, odd ones with row g + 8.
    const double shift = __int2double_rn(1 << 2 * t);
    const bool odd = t % 2 != 0;
    double sum = static_cast<double>(odd ? lower : upper) * shift;
    sum += __shfl_xor_sync(0xffffffffu, static_cast<double>(odd ? upper : lower) * shift, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (t < 2) {
      const slice_scale& x = scales()[slice];
      const int2 none = coefficient[0];
      sum = fma(static_cast<double>(odd ? none.y : none.x), x.sum[0] + x.sum[1], sum);
      sums(unit_in_batch)[slice * 16 + g + 8 * t] = sum * x.back;
    }
  }

  // --- the loop ----------------------------------------------------------------------------------

  /// A warp's place among the slices of a batch, of which it takes a run.
  struct cursor {
    int unit, slice;            ///< the unit counted in the batch
    int left;                   ///< slices from here on
    int tiles;                  ///< of the slice; none past the run
    const std::uint32_t* base;  ///< of the slice, at this lane
  };

  __device__ void aim(cursor& c, int done) const {
    c.base = units.unit_planes(first_unit() + opaque(done) + c.unit) +
             c.slice * slice_tiles * packed_layout::tile_words + lane * packed_layout::lane_words;
  }

  __device__ void count_tiles(cursor& c) const {
    c.tiles = c.left > 0 ? p.col_tiles - c.slice * slice_tiles : 0;
  }

  __device__ __forceinline__ void advance(cursor& c, int done, int slice_count) const {
    --c.left;
    c.base += slice_tiles * packed_layout::tile_words;
    if (++c.slice == slice_count) {
      c.slice = 0;
      ++c.unit;
      if (c.left > 0) aim(c, done);
    }
    count_tiles(c);
  }

  /// Queues the copy of one tile, each lane its own words, as one group even if there is nothing to
  /// copy: so the number of groups says what has arrived.
  __device__ __forceinline__ void request(const cursor& c, int i) const {
    if (i < c.tiles) {
      const std::uint32_t stride = static_cast<std::uint32_t>(p.plane_stride);
#pragma unroll
      for (int j = 0; j < Bits; ++j)
        copy_async_16(ring(i) + j * packed_layout::tile_words * 4,
                      c.base + i * packed_layout::tile_words + j * stride);
    }
    copy_async_commit();
  }

  /// This block's units: a run of them all, in order.
  __device__ int first_unit() const {
    const int block = static_cast<int>(blockIdx.x);
    return (block * params.block_items + min(block, params.larger_blocks)) << p.paired;
  }
  __device__ int unit_count() const {
    const int more = static_cast<int>(blockIdx.x) < params.larger_blocks ? 1 : 0;
    return (params.block_items + more) << p.paired;
  }

  /// The batch after `done` units.
  __device__ __forceinline__ void batch(int done) const {
    const int slice_count = slices(p.col_tiles);
    cursor next;
    {
      const int total = min(params.batch_units, unit_count() - done) * slice_count;
      const int from = total * warp / warps, to = total * (warp + 1) / warps;
      next.unit = from / slice_count;
      next.slice = from % slice_count;
      next.left = to - from;
    }
    if (next.left > 0) aim(next, done);
    count_tiles(next);
    [[maybe_unused]] outlier_spans spans(p);
    [[maybe_unused]] const auto batch_end = [&] {
      return first_unit() + min(opaque(done) + params.batch_units, unit_count());
    };
    if constexpr (Outliers) spans.find(first_unit() + done, batch_end());
#pragma unroll
    for (int i = 0; i < slice_tiles; ++i) request(next, i);
    share_coefficients(first_unit() + done, min(params.batch_units, unit_count() - done));
    if constexpr (Outliers) outliers().fetch(spans, first_unit() + done, batch_end());
    if (done == 0) {
      wait_for_dependency();
      share_x();
    }
    __syncthreads();
#pragma unroll 1
    while (next.tiles > 0) {
      const std::uint32_t* x =
          reinterpret_cast<const std::uint32_t*>(shared + x_offset(p.col_tiles)) +
          next.slice * slice_tiles * tile_x_words + opaque(lane) % 4 * x_bits + lane / 4;
      advance(next, done, slice_count);
      counts c;
#pragma unroll
      for (int i = 0; i < slice_tiles; ++i) {
        copy_async_wait<slice_tiles - 1>();
        // Past the last column activations are zero, so whatever the ring holds counts nothing. A
        // branch would cost more: the tensor cores are drained before it.
        if (i == 0)
          multiply<true>(ring(i), x, c);
        else
          multiply<false>(ring(i), x + i * tile_x_words, c);
        request(next, i);
      }
      // The slice before the next, found again: it would take two registers of the products.
      const int after = next.slice;
      store_slice(c, after == 0 ? next.unit - 1 : next.unit,
                  after == 0 ? slice_count - 1 : after - 1);
    }
    // Now there are registers for outliers, which came while planes were multiplied.
    if constexpr (Outliers) {
      copy_async_wait_all();
      outliers().sum(first_unit() + opaque(done), batch_end());
    }
    __syncthreads();
    // One thread a result: the slices in order.
    done = opaque(done);
    const int begin = first_unit() + done;
    const int outputs = min(params.batch_units, unit_count() - done) >> p.paired;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < outputs * 16; i += threads) {
      const int unit = (i / 16) << p.paired, row = i % 16;
      float gate = 0.f, v = 0.f;
#pragma unroll 1
      for (int half = 0; half <= p.paired; ++half) {
        const double* from = sums(unit + half) + row;
        double sum = from[0];
#pragma unroll 4
        for (int s = 1; s < slice_count; ++s) sum += from[s * 16];
        v = static_cast<float>(sum * row_scales(unit + half)[row]);
        if constexpr (Outliers) v += outliers().row_sum(begin, (unit + half) * 16 + row);
        if (half < p.paired) gate = v;
      }
      units.write(begin + unit + p.paired, 0, row, gate, v);
    }
    __syncthreads();
  }
};

template <int Bits, bool Outliers>
BL_KERNEL __launch_bounds__(32 * bit_serial_policy<Bits>::warps, bit_serial_policy<Bits>::blocks)
    bit_serial_kernel(const __grid_constant__ bit_serial_params params) {
  extern __shared__ __align__(128) unsigned char shared[];
  launch_dependents();
  const bit_serial<Bits, bit_serial_policy<Bits>, Outliers> body(params, shared);
#pragma unroll 1
  for (int done = 0; done < body.unit_count(); done += params.batch_units) body.batch(done);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
