// SPDX-License-Identifier: MIT
// One product of given shape, precision and tokens, as a chain of launches over rotating weights,
// activations and results: set up once for all shapes, then run once (to check it) or timed.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include "cuda_check.cuh"
#include "graph_timer.cuh"
#include "outlier_pool.cuh"
#include "product.cuh"
#include "random_fill.cuh"
#include "weight_pool.cuh"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cublas_v2.h>
#include <stdexcept>

namespace bench {

struct product_shape {
  int rows, cols, m, bits;
  bool pdl = true;  ///< launches may start before the one before is done
  bool batch_invariant = false;
  outlier_kind outliers = outlier_kind::none;
};

class product_chain {
 public:
  explicit product_chain(graph_timer& timer)
      : weights(timer.stream()),
        timer_(timer),
        x_(x_elements),
        y_(y_elements),
        cublas_workspace_(cublas_workspace_bytes) {
    // A workspace of its own, else a captured call allocates one.
    if (cublasCreate(&cublas_) != CUBLAS_STATUS_SUCCESS ||
        cublasSetStream(cublas_, timer.stream()) != CUBLAS_STATUS_SUCCESS ||
        cublasSetWorkspace(cublas_, cublas_workspace_.data(), cublas_workspace_bytes) !=
            CUBLAS_STATUS_SUCCESS)
      throw std::runtime_error("cuBLAS does not start");
    fill_normal(x_.data(), x_.size(), 1.0f, 11, timer.stream());
    check(cudaStreamSynchronize(timer.stream()), "fill x");
  }

  product_chain(const product_chain&) = delete;
  product_chain& operator=(const product_chain&) = delete;
  ~product_chain() { static_cast<void>(cublasDestroy(cublas_)); }

  weight_pool weights;
  outlier_pool outliers;

  /// Matrix i of the rotation, outliers and all.
  bitladder::cuda::packed_view matrix(const product_shape& s, int i) {
    bitladder::cuda::packed_view w = weights.view(s.rows, s.cols, s.bits, i);
    if (s.outliers != outlier_kind::none) {
      outliers.prepare(s.rows, s.cols, s.outliers, weight_pool::rotation(w.touched_bytes()));
      w.outliers = outliers.view(i);
    }
    return w;
  }

  /// Tokens [m, cols] of launch i, and where its result [m, rows] goes.
  const bitladder::fp16_t* x(int i, int m, int cols) const {
    return x_.data() + place(i, m, cols, x_elements);
  }
  bitladder::fp16_t* y(int i, int m, int rows) const {
    return y_.data() + place(i, m, rows, y_elements);
  }

  /// Launch 0 alone, into a y of NaN; done on return.
  void run_once(engine e, const product_shape& s) {
    const bitladder::cuda::gemm_args args = call(e, s);
    check(cudaMemsetAsync(args.matrices[0].y, 0xff,
                          static_cast<std::size_t>(s.m) * static_cast<std::size_t>(s.rows) *
                              sizeof(bitladder::fp16_t),
                          timer_.stream()),
          "poison");
    check(product(e, s.bits, args, cublas_, timer_.stream()), "gemm");
    check(cudaStreamSynchronize(timer_.stream()), "gemm");
  }

  timing measure(engine e, const product_shape& s, const time_budget& budget) {
    const bitladder::cuda::gemm_args args = call(e, s);
    const double bytes = static_cast<double>(args.matrices[0].w.touched_bytes());
    const double flops = 2.0 * s.rows * s.cols * s.m;
    // 3.5 TB/s and 400 TFLOP/s, to know roughly how many launches fit.
    const double expected_us = std::max(bytes * 1e-6 / 3.5, flops * 1e-6 / 400) + 1;
    const int rotation = weight_pool::rotation(args.matrices[0].w.touched_bytes());
    return timer_.measure(launches_for(expected_us, rotation), budget,
                          [&](int i, cudaStream_t stream) {
                            bitladder::cuda::gemm_args a = args;
                            a.matrices[0].w = matrix(s, i % rotation);
                            a.matrices[0].y = y(i, s.m, s.rows);
                            a.x = x(i, s.m, s.cols);
                            check(product(e, s.bits, a, cublas_, stream), "gemm");
                          });
  }

 private:
  // The largest x is 2048 x 28672, the largest y 2048 x 57344.
  static constexpr std::size_t x_elements = std::size_t{2048} * 28672 * 2;
  static constexpr std::size_t y_elements = std::size_t{2048} * 57344 * 2;
  static constexpr std::size_t cublas_workspace_bytes = std::size_t{32} << 20;

  /// Up to 64 places in turn, 256-byte aligned.
  static std::size_t place(int i, int m, int width, std::size_t elements) {
    const std::size_t size =
        (static_cast<std::size_t>(m) * static_cast<std::size_t>(width) + 127) / 128 * 128;
    return static_cast<std::size_t>(i) % std::min<std::size_t>(elements / size, 64) * size;
  }

  /// The arguments of launch 0, with scratch that is zero.
  bitladder::cuda::gemm_args call(engine e, const product_shape& s) {
    bitladder::cuda::gemm_args args;
    args.matrices[0].w = matrix(s, 0);
    args.matrices[0].y = y(0, s.m, s.rows);
    args.x = x(0, s.m, s.cols);
    args.m = s.m;
    args.pdl = s.pdl;
    args.batch_invariant = s.batch_invariant;
    args.workspace_bytes = product_workspace_bytes(e, s.bits, args);
    if (workspace_.size() < args.workspace_bytes) workspace_.resize(args.workspace_bytes);
    if (args.workspace_bytes > 0) {
      args.workspace = workspace_.data();
      check(cudaMemsetAsync(args.workspace, 0, args.workspace_bytes, timer_.stream()), "workspace");
    }
    return args;
  }

  graph_timer& timer_;
  device_array<bitladder::fp16_t> x_, y_;
  device_array<unsigned char> workspace_, cublas_workspace_;
  cublasHandle_t cublas_ = nullptr;
};

}  // namespace bench
