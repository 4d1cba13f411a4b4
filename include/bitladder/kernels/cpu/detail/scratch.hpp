// SPDX-License-Identifier: MIT
// Working memory of one call: floats on a cache line boundary, left uninitialized. Tested through
// tests/kernels/cpu/gemm_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

class scratch {
 public:
  explicit scratch(std::size_t count)
      : data_(static_cast<float*>(::operator new(count * sizeof(float), line))) {}

  float* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t line{64};
  struct release {
    void operator()(float* p) const { ::operator delete(p, line); }
  };
  std::unique_ptr<float, release> data_;
};

/// `cols` rounded up to whole words of 32 columns.
constexpr std::size_t padded(int cols) { return (static_cast<std::size_t>(cols) + 31) / 32 * 32; }

/// A copy of `x` with whole words per row, +0 beyond the last column.
/// @param out [x.rows(), padded(x.cols())]
inline matrix_view<const float> pad_rows(const matrix_view<const float>& x, float* out) {
  const std::size_t width = padded(x.cols());
  for (int i = 0; i < x.rows(); ++i) {
    float* row = out + static_cast<std::size_t>(i) * width;
    std::fill(std::copy_n(x.row(i), x.cols(), row), row + width, 0.0f);
  }
  return {out, x.rows(), x.cols(), width};
}

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
