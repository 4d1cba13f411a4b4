// SPDX-License-Identifier: MIT
// The product of a linear layer, whatever form its weight has. Declared here and compiled once, in
// multiply.cpp: the kernels of eight precisions take longer to compile than the rest of a program.
// Tested by tests/llama/forward_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>

#include <llama/linear_weight.hpp>

namespace llama {

/// In which order products are summed.
enum class summation {
  fixed,  ///< the library's: a token's bits depend on nothing but the token and those before it
  blas,   ///< for a hundred tokens at once and more, a BLAS's: faster, and other bits than alone
};

/// Whether this program was built with a BLAS (BL_WITH_BLAS).
bool has_blas();

/// y = W x for every row of x, without the bias.
/// @param bits precision of a quantized weight; ignored for a dense one
/// @param x [m, w.cols]
/// @param y [m, w.rows]
/// @param order without a BLAS always the library's
void multiply(const linear_weight& w, int bits, bitladder::matrix_view<const float> x,
              bitladder::matrix_view<float> y, bitladder::thread_pool* pool,
              summation order = summation::fixed);

}  // namespace llama
