// SPDX-License-Identifier: MIT
// Seed 61.
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cpu/dequantize.hpp>
#include <bitladder/kernels/cpu/gemm.hpp>
#include <bitladder/kernels/cpu/gemv.hpp>

#include "fixture.hpp"
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <string>
#include <vector>

namespace cpu = bitladder::cpu;
using bitladder::codebook_view;
using bitladder::matrix_view;
using bitladder::status;

namespace {

/// The error of a call, as "code: text", or nothing.
template <class Call>
std::string failure(Call&& call) {
  try {
    call();
  } catch (const bitladder::error& e) {
    return std::string(to_string(e.code())) + ": " + e.what();
  }
  return "no error";
}

std::string text(status s, const std::string& what) {
  return std::string(to_string(s)) + ": " + what;
}

struct operands {
  support::random rng{61};
  support::quantized q{6, 40, 4, 2, rng};
  bitladder::bitplane_view w = q.planes.view();
  std::vector<float> x = rng.normals(40), y = std::vector<float>(6);
  std::vector<float> xs = rng.normals(3 * 40), ys = std::vector<float>(3 * 6);
};

}  // namespace

TEST_CASE_FIXTURE(operands,
                  "gemv says which operand is wrong, what it expected and what it found") {
  CHECK(failure([&] { cpu::gemv<4>(w, q.tables[4], x, y); }) == "no error");
  CHECK(failure([&] { cpu::gemv<5>(w, q.tables[4], x, y); }) ==
        text(status::too_few_planes, "gemv: expected at least 5 planes, found 4"));
  CHECK(failure([&] { cpu::gemv<3>(w, q.tables[4], x, y); }) ==
        text(status::shape_mismatch, "gemv: expected tables of 3 bits, found 4"));
  CHECK(failure([&] { cpu::gemv(9, w, q.tables[4], x, y); }) ==
        text(status::unsupported_bits, "gemv: expected a precision of 1 to 8 bits, found 9"));
  CHECK(failure([&] { cpu::gemv(0, w, q.tables[4], x, y); }) ==
        text(status::unsupported_bits, "gemv: expected a precision of 1 to 8 bits, found 0"));
  const codebook_view t = q.tables[4];
  CHECK(failure([&] { cpu::gemv<4>(w, codebook_view(t.data(), 5, 2, 4), x, y); }) ==
        text(status::shape_mismatch, "gemv: expected tables for 6 rows, found 5"));
  CHECK(failure([&] { cpu::gemv<4>(w, codebook_view(t.data(), 6, 3, 4), x, y); }) ==
        text(status::shape_mismatch,
             "gemv: expected a number of column groups that divides 40, found 3"));
  CHECK(failure([&] { cpu::gemv<4>(w, codebook_view(t.data(), 6, 0, 4), x, y); }) ==
        text(status::shape_mismatch,
             "gemv: expected a number of column groups that divides 40, found 0"));
  CHECK(
      failure([&] { cpu::gemv<4>(w, codebook_view(nullptr, 6, 2, 4), x, y); }) ==
      text(status::invalid_argument, "gemv: expected memory for the tables, found a null pointer"));
  CHECK(
      failure([&] { cpu::gemv<4>(bitladder::bitplane_view(nullptr, w.layout()), t, x, y); }) ==
      text(status::invalid_argument, "gemv: expected memory for the planes, found a null pointer"));
  CHECK(failure([&] {
          cpu::gemv<4>(w, t, {x.data(), 39}, y);
        }) == text(status::shape_mismatch, "gemv: expected x of 40 values, found 39"));
  CHECK(failure([&] {
          cpu::gemv<4>(w, t, x, {y.data(), 5});
        }) == text(status::shape_mismatch, "gemv: expected y of 6 values, found 5"));
  CHECK(failure([&] {
          cpu::gemv<4>(w, t, {nullptr, 40}, y);
        }) == text(status::invalid_argument, "gemv: expected memory for x, found a null pointer"));
  CHECK(failure([&] {
          cpu::gemv<4>(w, t, x, {nullptr, 6});
        }) == text(status::invalid_argument, "gemv: expected memory for y, found a null pointer"));
  CHECK(failure([&] {
          cpu::gemv<4>(bitladder::bitplane_view(w.data(), {-6, 40, 4}), t, x, y);
        }) == text(status::invalid_argument,
                   "gemv: expected planes with rows and cols >= 0, found -6 x 40"));
}

TEST_CASE_FIXTURE(operands, "gemm and dequantize do, too") {
  const codebook_view t = q.tables[4];
  CHECK(failure([&] {
          cpu::gemm<4>(w, t, support::matrix(xs, 3, 40), support::matrix(ys, 3, 6));
        }) == "no error");
  CHECK(failure([&] {
          cpu::gemm<4>(w, t, support::matrix(xs, 3, 39), support::matrix(ys, 3, 6));
        }) == text(status::shape_mismatch, "gemm: expected x of 3 x 40, found 3 x 39"));
  CHECK(failure([&] {
          cpu::gemm<4>(w, t, support::matrix(xs, 3, 40), support::matrix(ys, 2, 6));
        }) == text(status::shape_mismatch, "gemm: expected y of 3 x 6, found 2 x 6"));
  CHECK(failure(
            [&] { cpu::gemm(11, w, t, support::matrix(xs, 3, 40), support::matrix(ys, 3, 6)); }) ==
        text(status::unsupported_bits, "gemm: expected a precision of 1 to 8 bits, found 11"));
  CHECK(failure([&] {
          cpu::gemm<4>(w, t, {nullptr, 3, 40}, support::matrix(ys, 3, 6));
        }) == text(status::invalid_argument, "gemm: expected memory for x, found a null pointer"));
  CHECK(failure([&] {
          cpu::gemm<4>(w, t, {xs.data(), 3, 40, 10}, support::matrix(ys, 3, 6));
        }) ==
        text(status::invalid_argument, "gemm: expected x with a stride of at least 40, found 10"));
  CHECK(failure([&] {
          cpu::gemm<4>(w, t, {xs.data(), -1, 40}, {ys.data(), -1, 6});
        }) ==
        text(status::invalid_argument, "gemm: expected x with rows and cols >= 0, found -1 x 40"));
  std::vector<float> out(6 * 40);
  CHECK(failure([&] { cpu::dequantize<4>(w, t, support::matrix(out, 6, 40)); }) == "no error");
  CHECK(failure([&] { cpu::dequantize<4>(w, t, support::matrix(out, 5, 40)); }) ==
        text(status::shape_mismatch, "dequantize: expected out of 6 x 40, found 5 x 40"));
  CHECK(
      failure([&] { cpu::dequantize(-1, w, t, support::matrix(out, 6, 40)); }) ==
      text(status::unsupported_bits, "dequantize: expected a precision of 1 to 8 bits, found -1"));
}

TEST_CASE_FIXTURE(operands, "dense products check their shapes") {
  const matrix_view<const float> dense(xs.data(), 3, 40);
  std::vector<float> three(3);
  CHECK(failure([&] { cpu::gemv(dense, x, three); }) == "no error");
  CHECK(failure([&] { cpu::gemv(dense, x, y); }) ==
        text(status::shape_mismatch, "gemv: expected y of 3 values, found 6"));
  CHECK(failure([&] { cpu::gemv(matrix_view<const float>(nullptr, 3, 40), x, three); }) ==
        text(status::invalid_argument, "gemv: expected memory for weights, found a null pointer"));
  CHECK(failure([&] {
          cpu::gemm(dense, {x.data(), 1, 39}, {three.data(), 1, 3});
        }) == text(status::shape_mismatch, "gemm: expected x of 1 x 40, found 1 x 39"));
}
