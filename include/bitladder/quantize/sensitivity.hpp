// SPDX-License-Identifier: MIT
// How much an error in each weight matters: the weights of the weighted k-means. Uniform, a view of
// the caller's values [rows, cols], or squares of gradients, which are then owned. Values are
// checked where they are read, by quantize(). Tested by tests/quantize/sensitivity_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// One non-negative number per weight; only ratios within a row matter. A weight of sensitivity
/// zero does not move any centre as long as its row has others; a row of zeros counts as uniform.
class sensitivity {
 public:
  sensitivity() = default;

  /// Every weight matters alike.
  static sensitivity uniform(int rows, int cols) {
    sensitivity s;
    s.values_ = matrix_view<const float>(nullptr, checked(rows), checked(cols));
    return s;
  }
  /// The caller's own numbers, not copied: they must outlive this object.
  static sensitivity from_values(matrix_view<const float> values) {
    checked(values.rows());
    checked(values.cols());
    if (values.data() == nullptr && values.rows() > 0 && values.cols() > 0)
      throw error(status::invalid_argument, "sensitivity: expected values, found a null pointer");
    sensitivity s;
    s.values_ = values;
    return s;
  }
  /// Squares of `gradients`, kept in this object (copies of it share them).
  static sensitivity from_gradients(matrix_view<const float> gradients) {
    const std::size_t cols = static_cast<std::size_t>(checked(gradients.cols()));
    const auto squares = std::make_shared<std::vector<float>>(
        static_cast<std::size_t>(checked(gradients.rows())) * cols);
    for (int r = 0; r < gradients.rows(); ++r)
      for (int c = 0; c < gradients.cols(); ++c)
        (*squares)[static_cast<std::size_t>(r) * cols + static_cast<std::size_t>(c)] =
            gradients(r, c) * gradients(r, c);
    sensitivity s = from_values({squares->data(), gradients.rows(), gradients.cols()});
    s.owned_ = squares;
    return s;
  }

  int rows() const { return values_.rows(); }
  int cols() const { return values_.cols(); }
  bool is_uniform() const { return values_.data() == nullptr; }
  /// The values of row `r`, or null if uniform.
  const float* row(int r) const { return is_uniform() ? nullptr : values_.row(r); }

 private:
  static int checked(int size) {
    if (size < 0)
      throw error(status::invalid_argument,
                  "sensitivity: expected sizes >= 0, found " + std::to_string(size));
    return size;
  }

  matrix_view<const float> values_;
  std::shared_ptr<const std::vector<float>> owned_;
};

}  // namespace v0_1
}  // namespace bitladder
