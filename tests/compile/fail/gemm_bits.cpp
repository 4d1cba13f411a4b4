// SPDX-License-Identifier: MIT
// No bits at all are not a precision either.
// fails with: bitplanes are read at 1 to 8 bits
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/kernels/cpu/gemm.hpp>

#ifdef BL_MUST_FAIL
constexpr int bits = 0;
#else
constexpr int bits = 1;
#endif

void call(bitladder::bitplane_view w, bitladder::codebook_view t,
          bitladder::matrix_view<const float> x, bitladder::matrix_view<float> y) {
  bitladder::cpu::gemm<bits>(w, t, x, y);
}
