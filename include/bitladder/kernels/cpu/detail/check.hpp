// SPDX-License-Identifier: MIT
// What every CPU kernel demands of its operands, and the error that says what was found instead.
// Tested by tests/kernels/cpu/bad_input_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>

#include <cstddef>
#include <string>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {
namespace detail {

/// `operation` is the public function's name, which opens the text.
inline void require_pointer(const char* operation, const char* operand, const void* data,
                            bool needed) {
  if (needed && data == nullptr)
    throw error(status::invalid_argument, std::string(operation) + ": expected memory for " +
                                              operand + ", found a null pointer");
}

inline void require_size(const char* operation, const char* operand, std::size_t expected,
                         std::size_t found) {
  if (expected != found)
    throw error(status::shape_mismatch, std::string(operation) + ": expected " + operand + " of " +
                                            std::to_string(expected) + " values, found " +
                                            std::to_string(found));
}

/// A matrix of this shape, with memory for it and rows that do not overlap.
template <class T>
void require_matrix(const char* operation, const char* operand, int rows, int cols,
                    const matrix_view<T>& m) {
  if (m.rows() != rows || m.cols() != cols)
    throw error(status::shape_mismatch, std::string(operation) + ": expected " + operand + " of " +
                                            std::to_string(rows) + " x " + std::to_string(cols) +
                                            ", found " + std::to_string(m.rows()) + " x " +
                                            std::to_string(m.cols()));
  if (rows < 0 || cols < 0)
    throw error(status::invalid_argument, std::string(operation) + ": expected " + operand +
                                              " with rows and cols >= 0, found " +
                                              std::to_string(rows) + " x " + std::to_string(cols));
  if (rows > 1 && m.stride() < static_cast<std::size_t>(cols))
    throw error(status::invalid_argument, std::string(operation) + ": expected " + operand +
                                              " with a stride of at least " + std::to_string(cols) +
                                              ", found " + std::to_string(m.stride()));
  require_pointer(operation, operand, m.data(), rows > 0 && cols > 0);
}

/// Planes that can be read at `bits`, and tables that belong to them.
inline void require_weights(const char* operation, int bits, const bitplane_view& w,
                            const codebook_view& tables) {
  const std::string name(operation);
  if (w.rows() < 0 || w.cols() < 0)
    throw error(status::invalid_argument,
                name + ": expected planes with rows and cols >= 0, found " +
                    std::to_string(w.rows()) + " x " + std::to_string(w.cols()));
  if (w.planes() < bits)
    throw error(status::too_few_planes, name + ": expected at least " + std::to_string(bits) +
                                            " planes, found " + std::to_string(w.planes()));
  if (tables.bits() != bits)
    throw error(status::shape_mismatch, name + ": expected tables of " + std::to_string(bits) +
                                            " bits, found " + std::to_string(tables.bits()));
  if (tables.rows() != w.rows())
    throw error(status::shape_mismatch, name + ": expected tables for " + std::to_string(w.rows()) +
                                            " rows, found " + std::to_string(tables.rows()));
  if (tables.groups() < 1 || w.cols() % tables.groups() != 0)
    throw error(status::shape_mismatch,
                name + ": expected a number of column groups that divides " +
                    std::to_string(w.cols()) + ", found " + std::to_string(tables.groups()));
  const bool any = w.rows() > 0 && w.cols() > 0;
  require_pointer(operation, "the planes", w.data(), any);
  require_pointer(operation, "the tables", tables.data(), any);
}

/// Outliers of the weights' shape, or of any if there are none; what is in them is trusted.
inline void require_outliers(const char* operation, const bitplane_view& w,
                             const sparse_view& outliers) {
  if (outliers.empty()) return;
  if (outliers.rows() != w.rows() || outliers.cols() != w.cols())
    throw error(status::shape_mismatch,
                std::string(operation) + ": expected outliers of " + std::to_string(w.rows()) +
                    " x " + std::to_string(w.cols()) + ", found " +
                    std::to_string(outliers.rows()) + " x " + std::to_string(outliers.cols()));
  require_pointer(operation, "the outliers", outliers.columns(), true);
  require_pointer(operation, "the outliers", outliers.values(), true);
}

/// x of [cols] and y of [rows].
inline void require_vectors(const char* operation, int rows, int cols,
                            const vector_view<const float>& x, const vector_view<float>& y) {
  require_size(operation, "x", static_cast<std::size_t>(cols), x.size());
  require_size(operation, "y", static_cast<std::size_t>(rows), y.size());
  require_pointer(operation, "x", x.data(), cols > 0);
  require_pointer(operation, "y", y.data(), rows > 0);
}

/// The bridge from dispatch_bits.
inline void require_bits(const char* operation, status s, int bits) {
  if (s != status::ok)
    throw error(s, std::string(operation) + ": expected a precision of 1 to 8 bits, found " +
                       std::to_string(bits));
}

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
