// SPDX-License-Identifier: MIT
// A precision that no bitplane tensor has is refused by the compiler, with a sentence.
// fails with: bitplanes are read at 1 to 8 bits
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/kernels/cpu/gemv.hpp>

#ifdef BL_MUST_FAIL
constexpr int bits = 9;
#else
constexpr int bits = 8;
#endif

void call(bitladder::bitplane_view w, bitladder::codebook_view t,
          bitladder::vector_view<const float> x, bitladder::vector_view<float> y) {
  bitladder::cpu::gemv<bits>(w, t, x, y);
}
