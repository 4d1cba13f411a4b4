// SPDX-License-Identifier: MIT
// With a plain sgemm in place of a library's, and with a CBLAS where one was found
// (BL_TEST_HAS_CBLAS). Seeds 81 to 84.
#include <bitladder/core/parallel.hpp>
#include <bitladder/kernels/cpu/gemm_blas.hpp>

#include "fixture.hpp"
#include <support/random.hpp>

#include <doctest/doctest.h>

#if defined(BL_TEST_HAS_CBLAS)
#include <cblas.h>
#endif

#include <atomic>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <type_traits>
#include <vector>

namespace cpu = bitladder::cpu;
using bitladder::matrix_view;
using bitladder::thread_pool;

namespace {

/// Reads neither beyond the columns of a row nor what C held.
void plain_sgemm(int m, int n, int k, const float* a, int lda, const float* b, int ldb, float* c,
                 int ldc) {
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      float sum = 0;
      for (int p = 0; p < k; ++p)
        sum += a[static_cast<std::ptrdiff_t>(i) * lda + p] *
               b[static_cast<std::ptrdiff_t>(j) * ldb + p];
      c[static_cast<std::ptrdiff_t>(i) * ldc + j] = sum;
    }
}

#if defined(BL_TEST_HAS_CBLAS)
void library_sgemm(int m, int n, int k, const float* a, int lda, const float* b, int ldb, float* c,
                   int ldc) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, a, lda, b, ldb, 0, c, ldc);
}
#else
constexpr auto library_sgemm = plain_sgemm;
#endif

/// Whether y [m, rows], rows `stride` apart, is x w^T as any order of float sums gives it: each of
/// `cols` products and sums is rounded once.
bool is_product(const std::vector<float>& y, std::size_t stride, const std::vector<float>& x,
                const std::vector<double>& w, int m, int rows, int cols) {
  for (int i = 0; i < m; ++i)
    for (int r = 0; r < rows; ++r) {
      double sum = 0, size = 0;
      for (int c = 0; c < cols; ++c) {
        const double product = static_cast<double>(x[static_cast<std::size_t>(i * cols + c)]) *
                               w[static_cast<std::size_t>(r * cols + c)];
        sum += product;
        size += std::abs(product);
      }
      const double found = y[static_cast<std::size_t>(i) * stride + static_cast<std::size_t>(r)];
      if (!(std::abs(found - sum) <= (cols + 1) * 0x1p-24 * 1.01 * size)) return false;
    }
  return true;
}

std::vector<double> weights_at(const support::quantized& q, int rows, int cols, int bits,
                               int planes) {
  std::vector<double> w;
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < cols; ++c) {
      const int code = q.codes[static_cast<std::size_t>(r * cols + c)] >> (planes - bits);
      w.push_back(static_cast<double>(
          to_float(q.tables[bits].table(r, c * q.tables.groups() / cols)[code])));
    }
  return w;
}

}  // namespace

TEST_CASE_TEMPLATE("a product by panels is the product, at every precision, shape and stride", B,
                   ALL_BITS) {
  support::random rng(81);
  struct {
    int m, rows, cols, groups;
  } const shapes[] = {{1, 1, 1, 1},   {3, 7, 33, 1},    {2, 65, 64, 1}, {5, 200, 31, 1},
                      {4, 33, 96, 3}, {17, 130, 66, 3}, {2, 9, 600, 2}};
  for (const auto& s : shapes) {
    const support::quantized q(s.rows, s.cols, 8, s.groups, rng);
    const auto x = rng.normals(static_cast<std::size_t>(s.m * s.cols));
    const auto w = weights_at(q, s.rows, s.cols, B::value, 8);
    const std::size_t stride = static_cast<std::size_t>(s.rows) + 3;
    for (cpu::isa use : support::isas_here())
      for (int threads : {1, 2, 3}) {
        CAPTURE(s.rows);
        CAPTURE(s.cols);
        CAPTURE(to_string(use));
        thread_pool pool(threads);
        std::vector<float> y(static_cast<std::size_t>(s.m) * stride, NAN);
        const matrix_view<float> to(y.data(), s.m, s.rows, stride);
        cpu::gemm_blas<B::value>(q.planes.view(), q.tables[B::value],
                                 support::matrix(x, s.m, s.cols), to, plain_sgemm, &pool, use);
        CHECK(is_product(y, stride, x, w, s.m, s.rows, s.cols));
        for (std::size_t i = 0; i < y.size(); ++i)  // what lies between the rows stays
          if (i % stride >= static_cast<std::size_t>(s.rows)) REQUIRE(std::isnan(y[i]));
      }
  }
}

TEST_CASE("a matrix of many panels is covered once, by a library's sgemm too") {
  support::random rng(82);
  const int m = 130, rows = 301, cols = 8224;  // 127 rows a panel
  const support::quantized q(rows, cols, 2, 1, rng);
  const auto x = rng.normals(static_cast<std::size_t>(m * cols));
  const auto w = weights_at(q, rows, cols, 2, 2);
  for (int threads : {0, 1, 2}) {
    thread_pool pool(threads == 0 ? 1 : threads);
    std::atomic<int> covered{0}, most{0};
    std::vector<float> y(static_cast<std::size_t>(m * rows), NAN);
    const auto count_and_multiply = [&](int m_, int n, int k, const float* a, int lda,
                                        const float* b, int ldb, float* c, int ldc) {
      covered += n;
      for (int before = most; n > before && !most.compare_exchange_weak(before, n);) {
      }
      library_sgemm(m_, n, k, a, lda, b, ldb, c, ldc);
    };
    cpu::gemm_blas(2, q.planes.view(), q.tables[2], support::matrix(x, m, cols),
                   support::matrix(y, m, rows), count_and_multiply, threads == 0 ? nullptr : &pool);
    CHECK(covered == rows);
    CHECK(most <= cpu::gemm_blas_policy::panel_floats / cols);
    CHECK(is_product(y, rows, x, w, m, rows, cols));
  }
}

TEST_CASE_TEMPLATE("dense weights of every type, rows apart by more than their length", T, float,
                   bitladder::fp16_t, bitladder::bf16_t) {
  support::random rng(83);
  for (int cols : {1, 31, 32, 100}) {
    const int m = 3, rows = 70;
    const std::size_t stride = static_cast<std::size_t>(cols) + 5;
    std::vector<T> stored(static_cast<std::size_t>(rows) * stride);
    std::vector<double> w;
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < cols; ++c) {
        T& v = stored[static_cast<std::size_t>(r) * stride + static_cast<std::size_t>(c)];
        const float value = static_cast<float>(rng.normal());
        if constexpr (std::is_same_v<T, float>) v = value;
        if constexpr (std::is_same_v<T, bitladder::fp16_t>) v = bitladder::to_fp16(value);
        if constexpr (std::is_same_v<T, bitladder::bf16_t>) v = bitladder::to_bf16(value);
        w.push_back(static_cast<double>(bitladder::to_float(v)));
      }
    const auto x = rng.normals(static_cast<std::size_t>(m * cols));
    for (cpu::isa use : support::isas_here()) {
      thread_pool pool(2);
      std::vector<float> y(static_cast<std::size_t>(m * rows), NAN);
      cpu::gemm_blas(matrix_view<const T>(stored.data(), rows, cols, stride),
                     support::matrix(x, m, cols), support::matrix(y, m, rows), plain_sgemm, &pool,
                     use);
      CHECK(is_product(y, rows, x, w, m, rows, cols));
    }
  }
}

TEST_CASE("nothing to multiply calls no BLAS, and bad operands are refused before it") {
  support::random rng(84);
  const auto never = [](int, int, int, const float*, int, const float*, int, float*, int) {
    throw std::logic_error("called");
  };
  const support::quantized q(4, 40, 3, 1, rng), none(4, 0, 3, 1, rng);
  std::vector<float> x(80), y(8, 9.f);
  cpu::gemm_blas(3, none.planes.view(), none.tables[3], {x.data(), 2, 0}, {y.data(), 2, 4}, never);
  CHECK(y == std::vector<float>(8, 0.f));
  cpu::gemm_blas(3, q.planes.view(), q.tables[3], {x.data(), 0, 40}, {y.data(), 0, 4}, never);
  const auto refused = [&](int bits, matrix_view<const float> from, matrix_view<float> to) {
    CHECK_THROWS_AS(cpu::gemm_blas(bits, q.planes.view(), q.tables[3], from, to, never),
                    bitladder::error);
  };
  refused(3, {x.data(), 2, 39}, {y.data(), 2, 4});
  refused(3, {x.data(), 2, 40}, {y.data(), 2, 3});
  refused(3, {nullptr, 2, 40}, {y.data(), 2, 4});
  refused(3, {x.data(), 2, 40, std::size_t{1} << 31}, {y.data(), 2, 4});
  refused(2, {x.data(), 2, 40}, {y.data(), 2, 4});
  refused(9, {x.data(), 2, 40}, {y.data(), 2, 4});
  // What the BLAS throws arrives.
  thread_pool pool(2);
  CHECK_THROWS_AS(cpu::gemm_blas(3, q.planes.view(), q.tables[3], {x.data(), 2, 40},
                                 {y.data(), 2, 4}, never, &pool),
                  std::logic_error);
}
