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
// Activations are x = 2^e times an integer of 24 bits, e set by the largest |x| of the slice. At 4
// bits, of a half slice whose mean |x| is 2^18 of these units or more they are rounded to 16 bits,
// and unless one half is not so, the planes of the other 8 are not counted. The error per element
// is at most 2^-15 of the largest, which then is below 32 times the mean: at most 2^-11 of the
// mean, what fp16 makes of a number of this size; else at most 2^-23 of the largest. That of a
// coefficient is 2^-30 of the row's largest. If any element is not finite, every result is NaN.
//
// Outliers are summed by outlier_sums.cuh and added in the end.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/bit_serial_bits.cuh>
#include <bitladder/kernels/cuda/detail/bit_serial_outliers.cuh>
#include <bitladder/kernels/cuda/detail/bit_serial_products.cuh>
#include <bitladder/kernels/cuda/detail/output.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/detail/small_batch_units.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/policy.cuh>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

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
  static constexpr int slice_tiles = bit_serial_slice_tiles;
  static constexpr int slice_cols = slice_tiles * packed_layout::tile_cols;
  static constexpr int tile_x_words = bit_serial_tile_x_words;
  static constexpr int tile_bytes = Bits * packed_layout::tile_words * 4;
  using products = bit_serial_products<Bits, packed_layout::tile_words * 4>;
  /// Whether activations are rounded to 16 bits where that is enough: a second pass counts the
  /// other planes where it is not. With fewer products the rest takes longer than what that saves
  /// (H200, 22016 x 4096: 4 bits 14.7 us, 16.7 without; 2 bits 9.4 and 8.5; 4096 x 4096 at 3
  /// bits 4.6 and 3.7).
  static constexpr bool narrows = Bits >= 4;
  using first_planes =
      std::conditional_t<narrows, typename products::upper_planes, typename products::all_planes>;
  using lower_planes = typename products::lower_planes;
  using slice_scale = bit_serial_slice_scale;

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
      const int exponent = bit_serial_exponent(largest);
      const float scale = bit_serial_scale(exponent);
      std::uint32_t w[16];
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        float a, b;
        as_floats(x[k], p.x_is_bf16, a, b);
        w[2 * k] = static_cast<std::uint32_t>(__float2int_rn(a * scale));
        w[2 * k + 1] = static_cast<std::uint32_t>(__float2int_rn(b * scale));
      }
      share_bit_planes<narrows>(w, lane,
                                shared_address(shared + x_offset(p.col_tiles)) +
                                    static_cast<std::uint32_t>(i * 2 * tile_x_words * 4),
                                scale_of_slice, half, largest, exponent);
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

  /// The coefficients of a batch's tables.
  __device__ void share_coefficients(int begin, int count) const {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count * 16; i += threads) {
      int row_tile;
      const auto& m = p.matrices[units.matrix_of(begin + i / 16, row_tile)];
      const __half* table = reinterpret_cast<const __half*>(m.tables) +
                            static_cast<std::size_t>(row_tile) * (16 << Bits) + i % 16;
      row_scales(i / 16)[i % 2 * 8 + i % 16 / 2] =
          moebius_coefficients<Bits>(table, coefficients(i / 16) + i % 16);
    }
  }

  __device__ __forceinline__ outlier_memory outliers() const {
    return {units, shared + outlier_offset(p.col_tiles, params.batch_units), slices(p.col_tiles),
            params.batch_units, params.staged_runs};
  }

  // --- products ----------------------------------------------------------------------------------

  /// This lane's words of slot `i` of its warp's ring.
  __device__ std::uint32_t ring(int i) const {
    return shared_address(shared) +
           static_cast<std::uint32_t>((warp * slice_tiles + i) * tile_bytes + lane * 16);
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
  /// @param none whether there is nothing yet
  __device__ __forceinline__ void request(const cursor& c, int i, bool none = false) const {
    if (i < c.tiles && !none) {
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
          next.slice * slice_tiles * tile_x_words + products::x_offset(opaque(lane));
      const slice_scale& scale_of_slice = scales()[next.slice];
      const bool wide = narrows && (scale_of_slice.wide[0] | scale_of_slice.wide[1]) != 0;
      advance(next, done, slice_count);
      // The slice before the next, found again: it would take two registers of the products.
      const auto before = [&](int& unit, int& slice) {
        const int after = next.slice;
        unit = after == 0 ? next.unit - 1 : next.unit;
        slice = after == 0 ? slice_count - 1 : after - 1;
      };
      typename products::weighed sum;
      {
        typename first_planes::counts c;
#pragma unroll
        for (int i = 0; i < slice_tiles; ++i) {
          copy_async_wait<slice_tiles - 1>();
          // Past the last column activations are zero, so whatever the ring holds counts nothing. A
          // branch would cost more: the tensor cores are drained before it.
          if (i == 0)
            products::template multiply<first_planes, true>(ring(i), x, c);
          else
            products::template multiply<first_planes, false>(ring(i), x + i * tile_x_words, c);
          request(next, i, wide);
        }
        int unit, slice;
        before(unit, slice);
        products::template weigh<first_planes>(c, coefficients(unit), opaque(lane), sum);
      }
      int unit, slice;
      before(unit, slice);
      if (wide) {
        typename lower_planes::counts c;
#pragma unroll
        for (int i = 0; i < slice_tiles; ++i) {
          if (i == 0)
            products::template multiply<lower_planes, true>(ring(i), x, c);
          else
            products::template multiply<lower_planes, false>(ring(i), x + i * tile_x_words, c);
          request(next, i);
        }
        products::template weigh<lower_planes>(c, coefficients(unit), opaque(lane), sum);
      }
      const slice_scale& scale = scales()[slice];
      products::store_slice(sum, coefficients(unit), scale.back, scale.sum[0] + scale.sum[1],
                            opaque(lane), sums(unit) + slice * 16);
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
