// SPDX-License-Identifier: MIT
// Products and weights with outliers. Seeds 91 to 98.
#include <bitladder/core/parallel.hpp>
#include <bitladder/kernels/cpu/dequantize.hpp>
#include <bitladder/kernels/cpu/gemm.hpp>
#include <bitladder/kernels/cpu/gemm_blas.hpp>
#include <bitladder/kernels/cpu/gemv.hpp>
#include <bitladder/kernels/cpu/reference.hpp>

#include "fixture.hpp"
#include <support/files.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace cpu = bitladder::cpu;
using bitladder::matrix_view;
using bitladder::sparse_matrix;
using bitladder::sparse_view;
using bitladder::thread_pool;
using support::error_of;

namespace {

/// Random weights of 8 planes, of which some are outliers.
struct weights {
  int rows, cols, groups;
  support::quantized q;
  sparse_matrix outliers;

  /// @param share `share(row)` is that of outliers in a row
  template <class Share>
  weights(int row_count, int col_count, int group_count, support::random& rng, const Share& share)
      : rows(row_count),
        cols(col_count),
        groups(group_count),
        q(row_count, col_count, 8, group_count, rng) {
    std::vector<std::int32_t> offsets = {0}, columns;
    std::vector<bitladder::fp16_t> values;
    for (int r = 0; r < rows; ++r) {
      int code = -1;
      for (int c = 0; c < cols; ++c) {
        if (c % (cols / groups) == 0) code = -1;
        if (rng.uniform() >= share(r)) continue;
        std::uint8_t& here = q.codes[at(r, c)];
        if (code < 0) code = here;
        here = static_cast<std::uint8_t>(code);
        columns.push_back(c);
        values.push_back(bitladder::to_fp16(static_cast<float>(rng.normal())));
      }
      offsets.push_back(static_cast<std::int32_t>(columns.size()));
    }
    q.planes = bitladder::pack(matrix_view<const std::uint8_t>(q.codes.data(), rows, cols), 8);
    outliers = {rows, cols, std::move(offsets), std::move(columns), std::move(values)};
    REQUIRE(find_code_fault(outliers.view(), q.planes.view(), groups).code ==
            bitladder::status::ok);
  }
  std::size_t at(int r, int c) const {
    return static_cast<std::size_t>(r) * static_cast<std::size_t>(cols) +
           static_cast<std::size_t>(c);
  }
  /// By codes, tables and entries one by one.
  std::vector<float> dense(int bits) const {
    std::vector<float> w;
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < cols; ++c)
        w.push_back(to_float(
            q.tables[bits].table(r, c / (cols / groups))[q.codes[at(r, c)] >> (8 - bits)]));
    const sparse_view o = outliers.view();
    for (int r = 0; r < rows; ++r)
      for (int i = o.begin(r); i < o.end(r); ++i)
        w[at(r, o.columns()[i])] = to_float(o.values()[i]);
    return w;
  }
};

/// Most rows without, some with a few, few with many.
double skewed(int row) { return row % 7 == 3 ? 0.9 : row % 3 == 0 ? 0.02 : 0; }

struct shape {
  int rows, cols, groups;
};
constexpr shape shapes[] = {{1, 1, 1},   {3, 31, 1},  {8, 64, 2},   {19, 96, 3},
                            {33, 66, 3}, {9, 256, 1}, {40, 100, 1}, {17, 1000, 5}};

}  // namespace

TEST_CASE_TEMPLATE(
    "products with outliers have the reference's bits at every precision of one file", B,
    ALL_BITS) {
  support::random rng(91);
  for (const shape s : shapes) {
    const weights w(s.rows, s.cols, s.groups, rng, skewed);
    const auto planes = w.q.planes.view();
    const auto tables = w.q.tables[B::value];
    for (int m : {1, 2, 3, 5, 14}) {
      const auto x = rng.normals(static_cast<std::size_t>(m * s.cols));
      std::vector<float> expected(static_cast<std::size_t>(m * s.rows)), y(expected.size());
      cpu::reference::gemm(planes, tables, w.outliers.view(), support::matrix(x, m, s.cols),
                           support::matrix(expected, m, s.rows));
      for (cpu::isa use : support::isas_here())
        for (int threads : {1, 3}) {
          if (use == cpu::isa::scalar && (threads > 1 || m > 3)) continue;
          thread_pool pool(threads);
          std::fill(y.begin(), y.end(), NAN);
          cpu::gemm<B::value>(planes, tables, w.outliers.view(), support::matrix(x, m, s.cols),
                              support::matrix(y, m, s.rows), &pool, use);
          CAPTURE(s.rows);
          CAPTURE(s.cols);
          CAPTURE(s.groups);
          CAPTURE(m);
          CAPTURE(threads);
          CAPTURE(to_string(use));
          CHECK(support::same_bits(y, expected));
          if (m > 1) continue;
          std::fill(y.begin(), y.end(), NAN);
          cpu::gemv(B::value, planes, tables, w.outliers.view(), x, y, &pool, use);
          CHECK(support::same_bits(y, expected));
        }
    }
  }
}

TEST_CASE("products are those of the weights with outliers in place, up to rounding") {
  support::random rng(92);
  for (const shape s : shapes) {
    const weights w(s.rows, s.cols, s.groups, rng, skewed);
    const auto x = rng.normals(static_cast<std::size_t>(s.cols));
    std::vector<float> y(static_cast<std::size_t>(s.rows));
    for (int bits = 1; bits <= 8; ++bits) {
      const std::vector<float> dense = w.dense(bits);
      cpu::gemv(bits, w.q.planes.view(), w.q.tables[bits], w.outliers.view(), x, y);
      for (int r = 0; r < s.rows; ++r) {
        double exact = 0, size = 0;
        for (int c = 0; c < s.cols; ++c)
          exact += static_cast<double>(dense[w.at(r, c)]) *
                   static_cast<double>(x[static_cast<std::size_t>(c)]);
        const sparse_view o = w.outliers.view();
        for (int c = 0; c < s.cols; ++c)
          size += std::fabs(static_cast<double>(
                                cpu::reference::weight(w.q.planes.view(), w.q.tables[bits], r, c)) *
                            static_cast<double>(x[static_cast<std::size_t>(c)]));
        double outlier_size = 0;
        for (int i = o.begin(r); i < o.end(r); ++i) {
          const int c = o.columns()[i];
          outlier_size += std::fabs((static_cast<double>(to_float(o.values()[i])) -
                                     static_cast<double>(cpu::reference::weight(
                                         w.q.planes.view(), w.q.tables[bits], r, c))) *
                                    static_cast<double>(x[static_cast<std::size_t>(c)]));
        }
        // The dense sum's bound; of the other, a rounding of each difference, each step of a lane
        // and three of the tree; and one for the sum of both.
        const double steps = (o.end(r) - o.begin(r) + 7) / 8 + 4;
        const double bound = size * support::rounding_bound(s.cols) +
                             outlier_size * steps * 0x1p-24 * 1.01 +
                             (size + outlier_size) * 0x1p-24 * 1.01;
        CHECK(std::fabs(static_cast<double>(y[static_cast<std::size_t>(r)]) - exact) <= bound);
      }
    }
  }
}

TEST_CASE("dequantized weights are outliers' own values where there are some") {
  support::random rng(93);
  for (const shape s : shapes) {
    const weights w(s.rows, s.cols, s.groups, rng, skewed);
    for (int bits = 1; bits <= 8; ++bits) {
      const std::vector<float> expected = w.dense(bits);
      std::vector<float> out(expected.size()), plain(expected.size());
      thread_pool pool(2);
      cpu::dequantize(bits, w.q.planes.view(), w.q.tables[bits], w.outliers.view(),
                      support::matrix(out, s.rows, s.cols), &pool);
      CHECK(out == expected);
      cpu::reference::dequantize(w.q.planes.view(), w.q.tables[bits], w.outliers.view(),
                                 support::matrix(plain, s.rows, s.cols));
      CHECK(plain == expected);
    }
  }
}

TEST_CASE("a row without outliers keeps the bits it has in a matrix without any") {
  support::random rng(94);
  const weights w(29, 200, 1, rng, skewed);
  const auto x = rng.normals(200);
  std::vector<float> y(29), plain(29);
  cpu::gemv<4>(w.q.planes.view(), w.q.tables[4], w.outliers.view(), x, y);
  cpu::gemv<4>(w.q.planes.view(), w.q.tables[4], x, plain);
  int alike = 0;
  for (int r = 0; r < 29; ++r) {
    const bool without = w.outliers.view().begin(r) == w.outliers.view().end(r);
    const std::size_t i = static_cast<std::size_t>(r);
    if (without) CHECK(support::same_bits(y[i], plain[i]));
    if (!without) CHECK(y[i] != plain[i]);
    alike += without;
  }
  CHECK(alike > 10);
  for (const sparse_matrix& none : {sparse_matrix(29, 200), sparse_matrix()}) {
    cpu::gemv<4>(w.q.planes.view(), w.q.tables[4], none.view(), x, y);
    CHECK(support::same_bits(y, plain));
  }
}

TEST_CASE("crowded rows, on many threads and in large batches, change no bit") {
  support::random rng(95);
  // All outliers of 400 rows are in three, or in all of them.
  const weights crowded(400, 512, 1, rng,
                        [](int r) { return r == 5 || r == 6 || r == 399 ? 1.0 : 0.0; });
  const weights full(100, 512, 2, rng, [](int) { return 1.0; });
  for (const weights* w : {&crowded, &full})
    for (int m : {1, 3, 40}) {
      const auto x = rng.normals(static_cast<std::size_t>(m * 512));
      std::vector<float> expected(static_cast<std::size_t>(m * w->rows)), y(expected.size());
      cpu::reference::gemm(w->q.planes.view(), w->q.tables[3], w->outliers.view(),
                           support::matrix(x, m, 512), support::matrix(expected, m, w->rows));
      for (int threads : {1, 2, 3, 8}) {
        thread_pool pool(threads);
        std::fill(y.begin(), y.end(), NAN);
        cpu::gemm<3>(w->q.planes.view(), w->q.tables[3], w->outliers.view(),
                     support::matrix(x, m, 512), support::matrix(y, m, w->rows), &pool);
        CHECK(support::same_bits(y, expected));
      }
    }
}

TEST_CASE("pieces of work cover all rows once, whatever the outliers") {
  support::random rng(96);
  for (int rows : {1, 7, 8, 9, 63, 400}) {
    for (const double share : {0.0, 0.01, 1.0}) {
      const weights w(rows, 40, 1, rng, [&](int r) { return r % 13 == 1 ? share : share / 50; });
      for (int threads : {1, 3}) {
        thread_pool pool(threads);
        std::vector<std::atomic<int>> seen(static_cast<std::size_t>(rows));
        cpu::detail::split_rows(&pool, rows, 40, 16, w.outliers.view(), [&](int begin, int end) {
          CHECK_MESSAGE(begin % 8 == 0, begin);
          for (int r = begin; r < end; ++r) ++seen[static_cast<std::size_t>(r)];
        });
        for (const auto& count : seen) CHECK(count.load() == 1);
      }
    }
  }
}

TEST_CASE("a BLAS gets panels with outliers in place") {
  support::random rng(97);
  const weights w(21, 70, 2, rng, skewed);
  const int m = 4;
  const auto x = rng.normals(m * 70);
  std::vector<float> y(m * 21);
  const auto sgemm = [](int rows, int n, int k, const float* a, int lda, const float* b, int ldb,
                        float* c, int ldc) {
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < n; ++j) {
        double sum = 0;
        for (int p = 0; p < k; ++p)
          sum += static_cast<double>(a[i * lda + p]) * static_cast<double>(b[j * ldb + p]);
        c[i * ldc + j] = static_cast<float>(sum);
      }
  };
  for (int bits : {2, 8}) {
    const std::vector<float> dense = w.dense(bits);
    cpu::gemm_blas(bits, w.q.planes.view(), w.q.tables[bits], w.outliers.view(),
                   support::matrix(x, m, 70), support::matrix(y, m, 21), sgemm);
    std::vector<float> expected(y.size());
    sgemm(m, 21, 70, x.data(), 70, dense.data(), 70, expected.data(), 21);
    CHECK(y == expected);
  }
}

TEST_CASE("outliers of another shape, or without memory, are refused") {
  support::random rng(98);
  const weights w(6, 40, 1, rng, [](int) { return 0.5; });
  const auto x = rng.normals(40);
  std::vector<float> y(6), out(240);
  const sparse_view o = w.outliers.view();
  const auto error = [&](const sparse_view& outliers) {
    return error_of([&] { cpu::gemv<4>(w.q.planes.view(), w.q.tables[4], outliers, x, y); });
  };
  CHECK(error(o).text.empty());
  CHECK(error({o.offsets(), o.columns(), o.values(), 5, 40}).text ==
        "gemv: expected outliers of 6 x 40, found 5 x 40");
  CHECK(error({o.offsets(), o.columns(), o.values(), 6, 41}).code ==
        bitladder::status::shape_mismatch);
  CHECK(error({o.offsets(), nullptr, o.values(), 6, 40}).names("memory for the outliers"));
  CHECK(error({o.offsets(), o.columns(), nullptr, 6, 40}).names("memory for the outliers"));
  const sparse_view wrong(o.offsets(), o.columns(), o.values(), 6, 39);
  CHECK(
      error_of([&] {
        cpu::gemm(4, w.q.planes.view(), w.q.tables[4], wrong, {x.data(), 1, 40}, {y.data(), 1, 6});
      }).names("gemm: expected outliers of 6 x 40"));
  CHECK(error_of([&] {
          cpu::dequantize(4, w.q.planes.view(), w.q.tables[4], wrong, {out.data(), 6, 40});
        }).names("dequantize: expected outliers of 6 x 40"));
  CHECK(error_of([&] {
          cpu::gemv(9, w.q.planes.view(), w.q.tables[4], o, x, y);
        }).names("1 to 8 bits, found 9"));
}
