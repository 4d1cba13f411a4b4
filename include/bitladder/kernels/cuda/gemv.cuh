// SPDX-License-Identifier: MIT
// One vector times a matrix on the card: the step that a decoding language model repeats. The short
// form of gemm.cuh for one token. Tested by tests/kernels/cuda/gemm_test.cu.
#pragma once

#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cuda/gemm.cuh>

#include <cuda_runtime_api.h>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

/// y = W x by the fastest kernel, queued on `stream`. Its bits may differ from those of a row of
/// gemm, which keeps them the same for every batch: at 4 bits activations may be rounded to 16
/// bits, by at most 2^-11 of their mean magnitude (detail/bit_serial_kernel.cuh). Up to 16384
/// columns need no workspace; beyond, call gemm.
/// @tparam Bits precision to read; w = packed_weights::view(Bits)
/// @param x [cols] of fp16 or bf16, 16-byte aligned
/// @param y [rows] of fp16, bf16 or float
/// @return as gemm
template <int Bits, class X, class Y>
[[nodiscard]] status gemv(const packed_view& w, const X* x, Y* y, cudaStream_t stream) noexcept {
  gemm_args args;
  args.matrices[0].w = w;
  args.matrices[0].y = y;
  args.x = x;
  args.x_type = element<X>::type;
  args.y_type = element<Y>::type;
  args.batch_invariant = false;
  device_properties device;
  status s = detail::check_call(Bits, args, device);
  if (s != status::ok) return s;
  if (!detail::has_column_groups(args)) {
    s = detail::launch_token<Bits>(args, 0, device, stream);
    if (s != status::unsupported_device) return s;
  }
  return detail::launch_generic<Bits>(args, stream);
}

/// The same at the precision that the view carries.
template <class X, class Y>
[[nodiscard]] status gemv(const packed_view& w, const X* x, Y* y, cudaStream_t stream) noexcept {
  return dispatch_bits(w.bits, all_bits{},
                       [&](auto b) { return gemv<decltype(b)::value>(w, x, y, stream); });
}

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
