// SPDX-License-Identifier: MIT
// Non-owning views of caller memory: a vector (pointer, size) and a row-major matrix (pointer,
// rows, cols, stride in elements). Views are values; const-ness of the elements is in the type.
// Tested by tests/core/matrix_view_test.cpp.
#pragma once

#include <bitladder/config.hpp>

#include <cstddef>
#include <type_traits>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// `size` consecutive elements.
template <class T>
class vector_view {
 public:
  constexpr vector_view() = default;
  BL_HOST_DEVICE constexpr vector_view(T* data, std::size_t size) : data_(data), size_(size) {}
  vector_view(std::vector<std::remove_const_t<T>>& v) : data_(v.data()), size_(v.size()) {}
  template <class U = T, std::enable_if_t<std::is_const<U>::value, int> = 0>
  vector_view(const std::vector<std::remove_const_t<T>>& v) : data_(v.data()), size_(v.size()) {}
  /// From a view whose elements may be written.
  template <class U, std::enable_if_t<std::is_same<T, const U>::value, int> = 0>
  BL_HOST_DEVICE constexpr vector_view(vector_view<U> v) : data_(v.data()), size_(v.size()) {}

  BL_HOST_DEVICE constexpr T* data() const { return data_; }
  BL_HOST_DEVICE constexpr std::size_t size() const { return size_; }
  BL_HOST_DEVICE constexpr T* begin() const { return data_; }
  BL_HOST_DEVICE constexpr T* end() const { return data_ + size_; }
  BL_HOST_DEVICE constexpr T& operator[](std::size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

/// `rows` x `cols` elements; row r starts `r * stride` elements after the first.
template <class T>
class matrix_view {
 public:
  constexpr matrix_view() = default;
  /// Dense rows.
  BL_HOST_DEVICE constexpr matrix_view(T* data, int rows, int cols)
      : data_(data), rows_(rows), cols_(cols), stride_(static_cast<std::size_t>(cols)) {}
  /// @param stride distance of row starts in elements, at least cols
  BL_HOST_DEVICE constexpr matrix_view(T* data, int rows, int cols, std::size_t stride)
      : data_(data), rows_(rows), cols_(cols), stride_(stride) {}
  /// From a view whose elements may be written.
  template <class U, std::enable_if_t<std::is_same<T, const U>::value, int> = 0>
  BL_HOST_DEVICE constexpr matrix_view(matrix_view<U> m)
      : data_(m.data()), rows_(m.rows()), cols_(m.cols()), stride_(m.stride()) {}

  BL_HOST_DEVICE constexpr T* data() const { return data_; }
  BL_HOST_DEVICE constexpr int rows() const { return rows_; }
  BL_HOST_DEVICE constexpr int cols() const { return cols_; }
  BL_HOST_DEVICE constexpr std::size_t stride() const { return stride_; }
  BL_HOST_DEVICE constexpr T* row(int r) const {
    return data_ + static_cast<std::size_t>(r) * stride_;
  }
  BL_HOST_DEVICE constexpr T& operator()(int r, int c) const { return row(r)[c]; }

 private:
  T* data_ = nullptr;
  int rows_ = 0;
  int cols_ = 0;
  std::size_t stride_ = 0;
};

}  // namespace v0_1
}  // namespace bitladder
