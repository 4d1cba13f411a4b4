// SPDX-License-Identifier: MIT
// Slab-wise products by cuBLAS against double sums. Its sums are its own business, so the bound is
// wider than for our kernels. Links cuBLAS. Seeds 701 to 704.
#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cuda/gemm_cublas.cuh>

#include <support/has_device.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cublas_v2.h>
#include <kernels/cuda/large_batch_cases.cuh>
#include <string>
#include <vector>

namespace {

using namespace large_batch_cases;

/// The tensor cores round towards zero, once per 16 columns of a sum that goes on to the end.
double cublas_unit(double unit, int cols) { return unit * (2 + cols / 128.0); }

struct handle {
  cublasHandle_t value = nullptr;
  handle() { REQUIRE(cublasCreate(&value) == CUBLAS_STATUS_SUCCESS); }
  ~handle() { cublasDestroy(value); }
};

TEST_CASE("cuBLAS over slabs agrees with double sums for all types, several matrices and groups" *
          doctest::skip(!support::has_device())) {
  support::random rng(701);
  const handle h;
  const int m = 70, cols = 288;
  for (const dtype x_type : {dtype::f16, dtype::bf16}) {
    const numbers x(x_type, m, cols, cols + 8, rng);
    for (const dtype type : {dtype::f16, dtype::bf16, dtype::f32}) {
      for (const bool extras : {false, true}) {
        const int rows_of[2] = {100, 33}, stride = 104;
        std::vector<weights> w;
        std::vector<numbers> y;
        w.emplace_back(rows_of[0], cols, 4, rng, 1);
        w.emplace_back(rows_of[1], cols, 4, rng, 3);
        for (const int rows : rows_of) y.emplace_back(type, m, rows, stride, rng);
        const numbers bias(type, 1, 100, 100, rng);
        bc::gemm_args args;
        args.count = 2;
        args.x = x.device.data();
        args.x_type = x_type;
        args.x_stride = x.stride;
        args.m = m;
        args.y_type = type;
        args.y_stride = stride;
        for (int i = 0; i < 2; ++i) {
          args.matrices[i].w = w[size(i)].device.view(4);
          args.matrices[i].y = y[size(i)].device.data();
        }
        if (extras) {
          args.matrices[0].bias = bias.device.data();
          args.matrices[1].residual = y[1].device.data();
        }
        bc::buffer<std::uint8_t> scratch;
        REQUIRE(scratch.allocate(bc::gemm_cublas_workspace_bytes(args)) == status::ok);
        REQUIRE(bc::gemm_cublas<4>(args, scratch.data(), scratch.size(), h.value, nullptr) ==
                status::ok);
        REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
        for (int i = 0; i < 2; ++i) {
          const expected want(x, w[size(i)], 4);
          const int rows = rows_of[i];
          CAPTURE(to_string(x_type));
          CAPTURE(to_string(type));
          CAPTURE(extras);
          CAPTURE(i);
          CHECK(mistakes(
                    y[size(i)], y[size(i)].values, rows,
                    [&](int t, int r) {
                      double v = want.sum[size(t) * size(rows) + size(r)];
                      if (extras) v += i == 0 ? bias.at(0, r) : y[1].at(t, r);
                      return v;
                    },
                    [&](int t, int r) {
                      return cublas_unit(want.unit[size(t) * size(rows) + size(r)], cols) + 0.1;
                    }) == "");
        }
      }
    }
  }
}

TEST_CASE("slabs and runs of tokens meet without a seam" * doctest::skip(!support::has_device())) {
  support::random rng(702);
  const handle h;
  struct shape {
    int m, rows, cols;
  };
  // 96 MiB of fp16 rows of 32768 columns are 1536 rows; 2048 tokens are finished at once.
  for (const shape s : {shape{5, 1540, 32768}, shape{2051, 20, 64}}) {
    const numbers x(dtype::bf16, s.m, s.cols, s.cols, rng);
    const weights w(s.rows, s.cols, 2, rng);
    numbers y(dtype::f32, s.m, s.rows, s.rows, rng);
    bc::gemm_args args;
    args.matrices[0] = {w.device.view(2), y.device.data()};
    args.x = x.device.data();
    args.x_type = dtype::bf16;
    args.m = s.m;
    args.y_type = dtype::f32;
    bc::buffer<std::uint8_t> scratch;
    REQUIRE(scratch.allocate(bc::gemm_cublas_workspace_bytes(args)) == status::ok);
    cudaStream_t stream;
    REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
    REQUIRE(bc::gemm_cublas<2>(args, scratch.data(), scratch.size(), h.value, stream) ==
            status::ok);
    REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
    cudaStream_t after = stream;
    CHECK(cublasGetStream(h.value, &after) == CUBLAS_STATUS_SUCCESS);
    CHECK(after == nullptr);
    REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
    const expected want(x, w, 2);
    CAPTURE(s.m);
    CHECK(mistakes(
              y, y.values, s.rows,
              [&](int t, int r) { return want.sum[size(t) * size(s.rows) + size(r)]; },
              [&](int t, int r) {
                return cublas_unit(want.unit[size(t) * size(s.rows) + size(r)], s.cols);
              }) == "");
  }
}

TEST_CASE("cuBLAS adds to what is in the place of a result, for the matrices that ask for it" *
          doctest::skip(!support::has_device())) {
  support::random rng(704);
  const handle h;
  const int m = 33, cols = 160, rows_of[2] = {50, 70}, stride = 72;
  for (const dtype type : {dtype::f16, dtype::f32}) {
    const numbers x(dtype::f16, m, cols, cols, rng);
    std::vector<weights> w;
    std::vector<numbers> y;
    bc::gemm_args args;
    args.count = 2;
    args.x = x.device.data();
    args.m = m;
    args.y_type = type;
    args.y_stride = stride;
    for (const int rows : rows_of) {
      w.emplace_back(rows, cols, 5, rng);
      y.emplace_back(type, m, rows, stride, rng);
    }
    for (int i = 0; i < 2; ++i)
      args.matrices[i] = {w[size(i)].device.view(5), y[size(i)].device.data()};
    const std::size_t plain = bc::gemm_cublas_workspace_bytes(args);
    args.matrices[1].residual = y[1].device.data();
    CHECK(bc::gemm_cublas_workspace_bytes(args) == plain);  // no sums pass through memory
    bc::buffer<std::uint8_t> scratch;
    REQUIRE(scratch.allocate(plain) == status::ok);
    REQUIRE(bc::gemm_cublas<5>(args, scratch.data(), scratch.size(), h.value, nullptr) ==
            status::ok);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    for (int i = 0; i < 2; ++i) {
      const expected want(x, w[size(i)], 5);
      const int rows = rows_of[i];
      CAPTURE(to_string(type));
      CAPTURE(i);
      CHECK(mistakes(
                y[size(i)], y[size(i)].values, rows,
                [&](int t, int r) {
                  const double sum = want.sum[size(t) * size(rows) + size(r)];
                  return i == 0 ? sum : sum + y[1].at(t, r);
                },
                [&](int t, int r) {
                  return cublas_unit(want.unit[size(t) * size(rows) + size(r)], cols) + 0.1;
                }) == "");
    }
  }
}

TEST_CASE("cuBLAS serves SwiGLU" * doctest::skip(!support::has_device())) {
  support::random rng(703);
  const handle h;
  const int m = 40, rows = 50, cols = 96;
  const numbers x(dtype::f16, m, cols, cols, rng);
  const weights gate(rows, cols, 3, rng), up(rows, cols, 3, rng);
  numbers y(dtype::f32, m, rows, rows, rng);
  bc::gemm_args args;
  args.count = 2;
  args.epilogue = bc::gemm_epilogue::swiglu;
  args.matrices[0] = {gate.device.view(3), y.device.data()};
  args.matrices[1] = {up.device.view(3), nullptr};
  args.x = x.device.data();
  args.m = m;
  args.y_type = dtype::f32;
  bc::buffer<std::uint8_t> scratch;
  REQUIRE(scratch.allocate(bc::gemm_cublas_workspace_bytes(args)) == status::ok);
  REQUIRE(bc::gemm_cublas<3>(args, scratch.data(), scratch.size(), h.value, nullptr) == status::ok);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  const expected g(x, gate, 3), u(x, up, 3);
  CHECK(mistakes(
            y, y.values, rows,
            [&](int t, int r) {
              const std::size_t at = size(t) * size(rows) + size(r);
              return g.sum[at] / (1 + std::exp(-g.sum[at])) * u.sum[at];
            },
            [&](int t, int r) {
              const std::size_t at = size(t) * size(rows) + size(r);
              return 4 * ((std::fabs(g.sum[at]) + 1) * (u.unit[at] + 0.1) +
                          (std::fabs(u.sum[at]) + 1) * (g.unit[at] + 0.1));
            }) == "");
}

}  // namespace
