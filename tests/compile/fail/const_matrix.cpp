// SPDX-License-Identifier: MIT
// A view of constant elements does not become one of writable elements.
// fails with: could not convert|no viable conversion
#include <bitladder/core/matrix_view.hpp>

void write(bitladder::matrix_view<float>);

void call(const float* read_only, float* writable) {
#ifdef BL_MUST_FAIL
  write(bitladder::matrix_view<const float>(read_only, 2, 2));
#else
  static_cast<void>(read_only);
#endif
  write(bitladder::matrix_view<float>(writable, 2, 2));
}
