// SPDX-License-Identifier: MIT
// Products with bitplanes inside a kernel that stays on the card for many of them, such as all
// layers of a decode step. A block has its rows of every product, takes activations as soon as
// others have made them (tagged_pairs.cuh), and hands on its results. Each warp has a ring in
// shared memory for the weights that it multiplies next, of this product and of those after, so
// that memory is read while numbers are on their way, norms are taken and attention runs. One
// token, 2 or 3 bits, on the binary tensor cores: detail/bit_serial_kernel.cuh has the method, the
// order of sums and the bounds, of which those at 4 bits hold here with a column tile for half a
// slice; that of rounding activations to 24 bits on their way is in tagged_pairs.cuh. All blocks
// must be on the card together. sm_90 and later. Tested by
// tests/llama/cuda/resident_layers_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/kernels/cuda/detail/bit_serial_products.cuh>
#include <bitladder/kernels/cuda/detail/ptx.cuh>
#include <bitladder/kernels/cuda/detail/resident_source.cuh>
#include <bitladder/kernels/cuda/detail/resident_x.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/policy.cuh>
#include <bitladder/kernels/cuda/resident_shape.cuh>
#include <bitladder/kernels/cuda/resident_step.cuh>
#include <bitladder/kernels/cuda/tagged_pairs.cuh>

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// The products of a block. All of its threads call every member together.
/// @tparam Own what the kernel does in steps that are no products: `slices(step, warp, first)` says
///         how many slices of its own a warp wants to be copied for it, `aim(step, slice, source)`
///         where one of them is, and `request(source, i, to)` queues copies to its slot i
template <int Bits, class Own>
class resident_products {
  using shape = resident_shape<Bits>;
  using products = detail::bit_serial_products<Bits, shape::plane_bytes>;
  using upper_planes = typename products::upper_planes;
  using lower_planes = typename products::lower_planes;
  using slice_scale = typename shape::slice_scale;
  static constexpr int warps = shape::warps, threads = shape::threads, slots = shape::slots;
  static constexpr int slice_tiles = resident_slice_tiles;
  /// The warp that looks after steps to come: one between those with results to write, which are
  /// the first, and those with tables to prepare, the last.
  static constexpr int clerk = warps / 2;
  static_assert(slice_tiles == detail::bit_serial_slice_tiles, "");

 public:
  using source = resident_source;

  /// @param program `count` steps in device memory
  /// @param shared memory.total bytes, 128-byte aligned
  /// @param tag of the program: other than that of the launch before by more than the largest age
  __device__ resident_products(const resident_step* program, int count,
                               const resident_memory& memory, unsigned char* shared,
                               std::uint32_t tag, Own& own)
      : program_(program), count_(count), memory_(memory), shared_(shared), tag_(tag), own_(own) {
    if (warp_ == clerk) {
      for (int i = 0; i < shape::held_steps - 1; ++i) hold(i);
      __syncwarp();
      for (int i = 0; i < shape::held_steps - 2; ++i) prepare_runs(i);
      __syncwarp();
      prefetch(0);
      prefetch(1);
    }
    ready_ = shape::held_steps - 2;
    __syncthreads();
    slot_ = slots - slice_tiles;
    if (lane_ == 0) cursor() = {-1, 1, 0, 0};  // the last slice of the step before the first
    __syncwarp();
#pragma unroll 1
    for (int n = 0; n < slots; n += slice_tiles) {
      advance();
      request_all(n);
    }
  }

  __device__ const resident_step& step(int i) const {
    return reinterpret_cast<const resident_step*>(shared_ +
                                                  memory_.steps)[i & (shape::held_steps - 1)];
  }

  /// This warp's slices of step i, no product: how many, and the first as `slices` of Own gave it.
  __device__ int own_slices(int i, int& first) const {
    const resident_cursor& c = run_of(i, warp_);
    first = c.slice;
    return c.left;
  }

  /// Shared memory for the kernel's own use outside of products.
  __device__ unsigned char* own_memory() const { return shared_ + memory_.x; }

  /// At the end of every step. A barrier of the block follows in the next.
  __device__ void end(int i) {
    if (warp_ == clerk) {
      hold(i + shape::held_steps - 1);
      prepare_runs(i + shape::held_steps - 2);
      prefetch(i + 2);
      __syncwarp();
    }
    ready_ = i + shape::held_steps - 1;
  }

  /// Turns to the next slice of this warp.
  __device__ __forceinline__ void next_slice() {
    slot_ += slice_tiles;
    if (slot_ == slots) slot_ = 0;
    advance();
  }
  /// This lane's words of slot i of the slice.
  __device__ __forceinline__ std::uint32_t slot(int i) const { return slot_address(slot_ + i); }
  /// Returns when the slice has come.
  __device__ __forceinline__ void wait_all() const {
    detail::copy_async_wait<(slots / slice_tiles - 1) * shape::groups>();
  }
  /// When the slice was read: makes room for what comes next.
  __device__ __forceinline__ void refill_all() const { request_all(slot_); }

  __device__ std::uint32_t tag(int age) const {
    return (tag_ + static_cast<std::uint32_t>(age)) & 0xffffu;
  }

  /// Begins the residual rows that this block holds with x, and hands them to the first step.
  /// @param i a step that adds to them
  /// @param to,age [rows / 2] tagged pairs and their tag
  __device__ void begin_residual(int i, const float* x, tagged_pair* to, int age) const {
    const resident_step& s = program_[i];
    const resident_run run = find_block_run(s, warp_);
    const int outputs = run.units * 16;
    for (int base = 0; base < outputs; base += threads) {
      const int n = base + static_cast<int>(threadIdx.x), at = run.begin * 16 + n;
      const bool here = n < outputs && at < s.matrices[0].rows;
      const float v = here ? __ldcg(x + at) : 0.f;
      if (here) residual()[n] = v;
      hand_over(to, at, here, v, age);
    }
  }

  /// Step i, a product.
  /// @param mark called with 1 when x is there, 2 when it is prepared, 3 when all is multiplied
  template <class Mark>
  __device__ void product(int i, Mark&& mark) {
    set_ = i & 1;
    const resident_step& s = step(i);
    const block_run run = run_of(i);
    const resident_cursor mine = run_of(i, warp_);
    const int tiles = run.slices * slice_tiles;
    // Warps without activations to prepare take the tables; if all have some, the last have less.
    if (tiles >= warps || warp_ >= tiles)
      share_coefficients(s, run, threads - 1 - static_cast<int>(threadIdx.x),
                         tiles >= warps ? threads : 32 * (warps - tiles));
    if (run.units > 0)
      detail::resident_x<Bits>{scales(), reinterpret_cast<float*>(shared_ + memory_.parts),
                               detail::shared_address(shared_ + memory_.x), warp_, lane_}
          .share(s, tag(s.x_age), tiles, [&] { mark(1); });
    __syncthreads();
    mark(2);
    int unit = mine.unit - run.begin, slice = mine.slice;
#pragma unroll 1
    for (int n = 0; n < mine.left; ++n) {
      const std::uint32_t* x = reinterpret_cast<const std::uint32_t*>(shared_ + memory_.x) +
                               slice * slice_tiles * detail::bit_serial_tile_x_words +
                               products::x_offset(detail::opaque(lane_));
      next_slice();
      const slice_scale& scale = scales()[slice];
      const uint4 wides = *reinterpret_cast<const uint4*>(scale.wide);
      const bool wide = (wides.x | wides.y | wides.z | wides.w) != 0;
      typename products::weighed sum;
      // Past the last column activations are zero, so whatever a slot holds counts nothing.
      {
        typename upper_planes::counts c;
        if constexpr (shape::groups == 1) wait_all();
#pragma unroll
        for (int t = 0; t < slice_tiles; ++t) {
          if constexpr (shape::groups > 1) detail::copy_async_wait<slots - 1>();  // its oldest slot
          if (t == 0)
            products::template multiply<upper_planes, true>(slot(t), x, c);
          else
            products::template multiply<upper_planes, false>(
                slot(t), x + t * detail::bit_serial_tile_x_words, c);
          if constexpr (shape::groups > 1) {
            if (wide)
              detail::copy_async_commit();
            else
              request(slot_, t);
          }
        }
        if (shape::groups == 1 && !wide) refill_all();
        products::template weigh<upper_planes>(c, coefficients(unit), detail::opaque(lane_), sum);
      }
      if (wide) {
        typename lower_planes::counts c;
#pragma unroll
        for (int t = 0; t < slice_tiles; ++t) {
          if (t == 0)
            products::template multiply<lower_planes, true>(slot(t), x, c);
          else
            products::template multiply<lower_planes, false>(
                slot(t), x + t * detail::bit_serial_tile_x_words, c);
        }
        refill_all();
        products::template weigh<lower_planes>(c, coefficients(unit), detail::opaque(lane_), sum);
      }
      products::store_slice(sum, coefficients(unit), scale.back,
                            (scale.sum[0] + scale.sum[1]) + (scale.sum[2] + scale.sum[3]),
                            detail::opaque(lane_), sums(unit, run.slices) + slice * 16);
      if (++slice == run.slices) slice = 0, ++unit;
    }
    __syncthreads();
    mark(3);
    write(s, run);
    end(i);
  }

 private:
  // ------------------------------------------------------------------------------- shared memory

  __device__ resident_cursor& cursor() const {
    return reinterpret_cast<resident_cursor*>(shared_ + memory_.cursors)[warp_];
  }
  __device__ std::uint32_t slot_address(int slot) const {
    return detail::shared_address(shared_ + memory_.ring) +
           static_cast<std::uint32_t>((warp_ * slots + slot) * shape::slot_bytes + lane_ * 16);
  }
  __device__ slice_scale* scales() const {
    return reinterpret_cast<slice_scale*>(shared_ + memory_.scales);
  }
  __device__ int* coefficients(int unit) const {
    return reinterpret_cast<int*>(shared_ + memory_.coefficients + set_ * memory_.sets) +
           unit * (16 << Bits);
  }
  __device__ double* row_scales(int unit) const {
    return reinterpret_cast<double*>(shared_ + memory_.row_scales + set_ * memory_.sets) +
           unit * 16;
  }
  __device__ double* sums(int unit, int slices) const {
    return reinterpret_cast<double*>(shared_ + memory_.sums + set_ * memory_.sets) +
           unit * slices * 16;
  }
  __device__ float* residual() const {
    return reinterpret_cast<float*>(shared_ + memory_.residual);
  }

  /// Copies a step to shared memory. By one warp.
  __device__ void hold(int i) const {
    constexpr int vectors = static_cast<int>(sizeof(resident_step) / 16);
    static_assert(vectors <= 32, "");
    if (i < count_ && lane_ < vectors)
      reinterpret_cast<uint4*>(shared_ +
                               memory_.steps)[(i & (shape::held_steps - 1)) * vectors + lane_] =
          __ldg(reinterpret_cast<const uint4*>(program_ + i) + lane_);
  }

  __device__ resident_cursor& run_of(int i, int warp) const {
    return reinterpret_cast<resident_cursor*>(
        shared_ + memory_.runs)[(i & (shape::held_steps - 1)) * (warps + 1) + warp];
  }
  /// A block's units in a step that is held.
  struct block_run {
    int begin, units, slices;
  };
  __device__ block_run run_of(int i) const {
    const resident_cursor& c = run_of(i, warps);
    return {c.step, c.left, c.unit};
  }

  /// Where the warps begin in a step that is held. By one warp, a lane for each.
  __device__ void prepare_runs(int i) const {
    if (i >= count_) return;
    const resident_step& s = step(i);
    if (lane_ < warps) run_of(i, lane_) = find_far_run(&s, i, lane_, own_);
    if (lane_ == warps && s.count > 0) {
      const resident_run run = find_block_run(s, 0);
      run_of(i, warps) = {run.begin, run.units, run.slices, 0};
    }
  }

  __device__ static resident_run find_block_run(const resident_step& s, int warp) {
    return {
        s.items, s.paired, s.col_tiles, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x),
        warp,    warps};
  }

  /// By value and not inlined: where it is called is rarely come to, and code is to be small.
  __device__ static __noinline__ resident_cursor find_far_run(const resident_step* s, int i,
                                                              int warp, Own own) {
    resident_cursor c{i, 0, 0, 0};
    if (s->count > 0) {
      const resident_run run = find_block_run(*s, warp);
      c.left = run.to - run.from;
      c.unit = run.begin + run.from / run.slices;
      c.slice = run.from % run.slices;
    } else {
      c.left = own.slices(*s, warp, c.slice);
    }
    return c;
  }

  // -------------------------------------------------------------------------------------- copies

  /// As find_far_run: of a step in device memory.
  __device__ static __noinline__ source find_far_slice(const resident_step* s, int unit, int slice,
                                                       Own own) {
    return detail::find_slice(*s, unit, slice, own);
  }
  /// Points `next_` at the cursor's slice.
  __device__ __forceinline__ void aim(const resident_cursor& c) {
    next_ = c.step < ready_ ? detail::find_slice(step(c.step), c.unit, c.slice, own_)
                            : find_far_slice(program_ + c.step, c.unit, c.slice, own_);
  }

  /// The first slice of this warp after step i.
  __device__ __forceinline__ void seek(int i) {
    resident_cursor c{i, 0, 0, 0};
    next_.stride = 1;
    next_.count = 0;
#pragma unroll 1
    while (c.left == 0 && c.step + 1 < count_) {
      const int n = c.step + 1;
      if (n < ready_)
        c = run_of(n, warp_);
      else
        c = find_far_run(program_ + n, n, warp_,
                         own_);  // where a block has few slices in a step or none
    }
    if (c.left > 0) aim(c);
    __syncwarp();
    if (lane_ == 0) cursor() = c;
    __syncwarp();
  }

  /// Points `next_` at the slice after that one.
  __device__ __forceinline__ void advance() {
    resident_cursor c = cursor();
    if (--c.left > 0) {
      ++c.slice;
      if (next_.stride != 0 && next_.count > slice_tiles) {
        next_.from += slice_tiles * packed_layout::tile_words;
        next_.count -= slice_tiles;
      } else {
        if (next_.stride != 0) c.slice = 0, ++c.unit;
        aim(c);
      }
      __syncwarp();
      if (lane_ == 0) cursor() = c;
      __syncwarp();
    } else {
      seek(c.step);
    }
  }

  /// Queues the copies to slots `begin` to `end` of a slice, as one group even if there is nothing
  /// to copy: so the number of groups says what has come.
  template <int Begin, int End>
  __device__ __forceinline__ void request_slots(int first) const {
    const std::uint32_t to = slot_address(first);
    if (next_.stride == 0) {
#pragma unroll
      for (int i = Begin; i < End; ++i) own_.request(next_, i, to + i * shape::slot_bytes);
    } else {
      const std::uint32_t* from = next_.from;
#pragma unroll
      for (int j = 0; j < Bits; ++j) {
#pragma unroll
        for (int i = Begin; i < End; ++i)
          if (i < next_.count)
            detail::copy_async_16(to + j * shape::plane_bytes + i * shape::slot_bytes,
                                  from + i * packed_layout::tile_words);
        from += next_.stride;
      }
    }
    detail::copy_async_commit();
  }
  __device__ __forceinline__ void request(int first, int i) const {
    switch (i) {
      case 0: return request_slots<0, 1>(first);
      case 1: return request_slots<1, 2>(first);
      case 2: return request_slots<2, 3>(first);
      default: return request_slots<3, 4>(first);
    }
  }
  __device__ __forceinline__ void request_all(int first) const {
    if constexpr (shape::groups == 1) {
      request_slots<0, slice_tiles>(first);
    } else {
#pragma unroll
      for (int i = 0; i < slice_tiles; ++i) request(first, i);
    }
  }

  /// Asks for what a product reads that is not copied. By one warp.
  __device__ void prefetch(int i) const {
    if (i >= count_ || step(i).count == 0) return;
    const auto ask = [](const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); };
    const resident_step& s = step(i);
    const block_run run = run_of(i);
    constexpr int bytes = (16 << Bits) * 2, lines = (bytes + 127) / 128;
    for (int n = lane_; n < run.units * lines; n += 32) {
      int row_tile;
      const auto& m = s.matrices[detail::matrix_of(s, run.begin + n / lines, row_tile)];
      ask(reinterpret_cast<const char*>(m.tables) + static_cast<std::size_t>(row_tile) * bytes +
          n % lines * 128);
    }
    if (s.norm != nullptr && lane_ == 0)
      for (int at = static_cast<int>(blockIdx.x) * 32; at < s.cols;
           at += static_cast<int>(gridDim.x) * 32)
        ask(s.norm + at);
  }

  // -------------------------------------------------------------------------------------- tables

  /// @param first,stride of the rows that this thread takes
  __device__ void share_coefficients(const resident_step& s, const block_run& run, int first,
                                     int stride) const {
#pragma unroll 1
    for (int i = first; i < run.units * 16; i += stride) {
      int row_tile;
      const auto& m = s.matrices[detail::matrix_of(s, run.begin + i / 16, row_tile)];
      const __half* table = reinterpret_cast<const __half*>(m.tables) +
                            static_cast<std::size_t>(row_tile) * (16 << Bits) + i % 16;
      row_scales(i / 16)[i % 2 * 8 + i % 16 / 2] =
          detail::moebius_coefficients<Bits>(table, coefficients(i / 16) + i % 16);
    }
  }

  // ------------------------------------------------------------------------------------- results

  /// Even threads write their own result and the next thread's. By all threads of a warp.
  __device__ __forceinline__ void hand_over(tagged_pair* to, int at, bool here, float v,
                                            int age) const {
    const float next = __shfl_down_sync(0xffffffffu, v, 1);
    if (here && lane_ % 2 == 0) store_pair(to + at / 2, tag_pair(v, next, tag(age)));
  }

  /// One thread a result: the slices in order.
  __device__ void write(const resident_step& s, const block_run& run) const {
    const int outputs = (run.units >> s.paired) * 16;
#pragma unroll 1
    for (int base = 0; base < outputs; base += threads) {
      const int i = base + static_cast<int>(threadIdx.x);
      const int unit = (min(i, outputs - 1) / 16) << s.paired, row = i % 16;
      float gate = 0.f, v = 0.f;
#pragma unroll 1
      for (int part = 0; part <= s.paired; ++part) {
        gate = v;
        const double* from = sums(unit + part, run.slices) + row;
        double sum = from[0];
#pragma unroll 4
        for (int n = 1; n < run.slices; ++n) sum += from[n * 16];
        v = static_cast<float>(sum * row_scales(unit + part)[row]);
      }
      int row_tile = (run.begin + unit) / 2;
      const int which = s.paired != 0 ? 0 : detail::matrix_of(s, run.begin + unit, row_tile);
      const auto& m = s.matrices[which];
      const int at = row_tile * packed_layout::tile_rows + row;
      const bool here = i < outputs && at < m.rows;
      if (here) {
        if (s.residual != 0) {
          v += residual()[i];
          residual()[i] = v;
          if (s.last != nullptr) s.last[at] = v;
        } else if (s.paired != 0) {
          const auto& other = s.matrices[1];
          if (m.bias != nullptr) gate += __half2float(m.bias[at]);
          if (other.bias != nullptr) v += __half2float(other.bias[at]);
          v *= __fdividef(gate, 1.f + __expf(-gate));
        } else if (m.bias != nullptr) {
          v += __half2float(m.bias[at]);
        }
      }
      hand_over(m.y, at, here, v, s.y_age);
    }
  }

  const resident_step* program_;
  const int count_;
  const resident_memory& memory_;
  unsigned char* const shared_;
  const std::uint32_t tag_;
  Own& own_;
  const int warp_ = static_cast<int>(threadIdx.x) / 32, lane_ = static_cast<int>(threadIdx.x) % 32;
  source next_;  // what is requested
  int slot_;     // the first of the slice that is read
  int ready_;    // steps before this one are or were in shared memory, with their runs
  int set_ = 0;  // of coefficients, row scales and sums
};

#endif

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
