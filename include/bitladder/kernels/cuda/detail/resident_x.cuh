// SPDX-License-Identifier: MIT
// Activations of resident_products.cuh: waited for, divided by their root mean square if asked for,
// and made bit-planes. Every block does this for all of them: to share the work between blocks
// would take another trip through the second-level cache. Device code only. Tested by
// tests/llama/cuda/resident_layers_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/bit_serial_products.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/resident_shape.cuh>
#include <bitladder/kernels/cuda/resident_step.cuh>
#include <bitladder/kernels/cuda/tagged_pairs.cuh>

#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {
namespace detail {

template <int Bits>
struct resident_x {
  using shape = resident_shape<Bits>;
  static constexpr int warps = shape::warps, slice_tiles = resident_slice_tiles;

  typename shape::slice_scale* const scales;  ///< [slices], in shared memory
  float* const parts;                         ///< [warps], in shared memory
  const std::uint32_t planes;                 ///< shared address of the bit-planes
  const int warp, lane;

  /// Eight activations, as they come.
  using pairs = tagged_pair[2][2];

  __device__ __forceinline__ static void load(const tagged_pair* x, pairs& p) {
    load_pairs(x, p[0]);
    load_pairs(x + 2, p[1]);
  }
  __device__ __forceinline__ static bool complete(const pairs& p, std::uint32_t tag) {
    std::uint32_t differ = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) differ |= static_cast<std::uint32_t>(p[k / 2][k % 2] >> 48) ^ tag;
    return differ == 0;
  }

  /// Eight columns from `col` on, times their weight in the norm; zero past the last.
  __device__ __forceinline__ static void weigh(const resident_step& s, int col, const pairs& p,
                                               float& squares, float (&v)[8]) {
    float4 w[2] = {make_float4(1, 1, 1, 1), make_float4(1, 1, 1, 1)};
    const bool here = col < s.cols;
    if (s.norm != nullptr && here) {
      w[0] = __ldg(reinterpret_cast<const float4*>(s.norm + col));
      w[1] = __ldg(reinterpret_cast<const float4*>(s.norm + col) + 1);
    }
    const float weight[8] = {w[0].x, w[0].y, w[0].z, w[0].w, w[1].x, w[1].y, w[1].z, w[1].w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float a, b;
      untag_pair(p[k / 2][k % 2], a, b);
      a = here ? a : 0.f, b = here ? b : 0.f;
      squares = fmaf(b, b, fmaf(a, a, squares));
      v[2 * k] = a * weight[2 * k], v[2 * k + 1] = b * weight[2 * k + 1];
    }
  }

  /// Writes the bit-planes of all activations; a warp takes column tiles, a lane 8 columns of each.
  /// Loops instead of registers for all tiles of a warp: the instructions of a layer, each of which
  /// is run through once, should stay in their cache. By all warps of a block.
  /// @param expected tag of x; @param tiles of whole slices; @param arrived called when x is there
  template <class Arrived>
  __device__ __forceinline__ void share(const resident_step& s, std::uint32_t expected, int tiles,
                                        Arrived&& arrived) const {
    static_assert(warps % slice_tiles == 0, "a slice's tiles go to neighbours");
    const auto col = [&](int tile) { return (tile * 32 + lane) * 8; };
    const auto fetch = [&](int tile, pairs& p) {
      if (tile < tiles && col(tile) < s.cols) load(s.x + col(tile) / 2, p);
    };
    const auto wait = [&](int tile, pairs& p) {
      if (col(tile) < s.cols)
        while (!complete(p, expected)) load(s.x + col(tile) / 2, p);
      __syncwarp();
    };
    const bool normed = s.norm != nullptr;
    pairs p, next;
    float squares = 0.f, v[8];
    if (normed) {
#pragma unroll 1
      for (int tile = warp + warps; tile < tiles; tile += warps) {  // the others' part of the norm
        fetch(tile, p);
        wait(tile, p);
        weigh(s, col(tile), p, squares, v);
      }
    }
    // One lane looks until its last word comes; then mostly all have.
    if (lane == 0 && warp < tiles && col(warp) < s.cols)
      static_cast<void>(wait_for_pair(s.x + col(warp) / 2 + 3, expected));
    __syncwarp();
    fetch(warp, p);
    float norm = 1.f;
#pragma unroll 1
    for (int tile = warp, base = 0; base < tiles; base += warps, tile += warps) {
      const bool here = tile < tiles;
      fetch(tile + warps, next);
      if (here) {
        wait(tile, p);
        float first = 0.f;
        weigh(s, col(tile), p, first, v);
        if (base == 0) squares += first;
        unsigned top = 0;  // magnitudes of floats are ordered as integers
#pragma unroll
        for (int k = 0; k < 8; ++k) top = max(top, __float_as_uint(v[k]) & 0x7fffffffu);
        top = __reduce_max_sync(0xffffffffu, top);
        if (lane == 0) scales[tile / slice_tiles].largest[tile % slice_tiles] = top;
      }
      if (base == 0) arrived();
      // Warps without columns come too, or compute-sanitizer's racecheck loses count of barriers.
      if (normed && base == 0) {
#pragma unroll
        for (int by = 16; by > 0; by /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, by);
        if (lane == 0) parts[warp] = squares;
        __syncthreads();
        squares = lane < warps ? parts[lane] : 0.f;
#pragma unroll
        for (int by = 16; by > 0; by /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, by);
        norm = rsqrtf(fmaf(squares, s.mean_by, s.epsilon));
      } else {
        wait_for_warps(1 + warp / slice_tiles, 32 * slice_tiles);  // those with the same slice
      }
      if (!here) continue;
      auto& scale = scales[tile / slice_tiles];
      const uint4 tops = *reinterpret_cast<const uint4*>(scale.largest);
      const float largest = __uint_as_float(max(max(tops.x, tops.y), max(tops.z, tops.w))) * norm;
      const int exponent = bit_serial_exponent(largest);
      const float by = norm * bit_serial_scale(exponent);
      std::uint32_t w[8];
#pragma unroll
      for (int k = 0; k < 8; ++k)  // a product of floats may round up to 2^23
        w[k] = static_cast<std::uint32_t>(min(__float2int_rn(v[k] * by), (1 << 23) - 1));
      const bool wide = narrow(w);
      const int sum = share_tile_planes(
          w, lane, planes + static_cast<std::uint32_t>(tile * bit_serial_tile_x_words * 4), wide);
      const int upper = __reduce_add_sync(0xffffffffu, sum >> 8);
      const int lower = __reduce_add_sync(0xffffffffu, sum & 0xff);
      if (lane == 0) {
        const bool finite = __float_as_uint(largest) < 0x7f800000u;
        if (tile % slice_tiles == 0) scale.back = power_of_two(finite, exponent - 22);
        scale.wide[tile % slice_tiles] = wide ? 1 : 0;
        scale.sum[tile % slice_tiles] =
            fma(256.0, static_cast<double>(upper), static_cast<double>(lower));
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) p[k / 2][k % 2] = next[k / 2][k % 2];
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
