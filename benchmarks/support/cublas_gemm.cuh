// SPDX-License-Identifier: MIT
// The baseline: Y = X W^T by cuBLAS, everything fp16, sums in float. The library's heuristic names
// its eight best algorithms for the shape, each is timed, and the fastest is measured.
#pragma once

#include <bitladder/core/dtype.hpp>

#include "cuda_check.cuh"
#include "graph_timer.cuh"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>

namespace bench {

inline void check(cublasStatus_t s, const char* what) {
  if (s != CUBLAS_STATUS_SUCCESS)
    throw std::runtime_error(std::string(what) + ": " + cublasLtGetStatusString(s));
}

class cublas_baseline {
 public:
  cublas_baseline() : workspace_(std::size_t{64} << 20) {
    check(cublasLtCreate(&handle_), "cublasLtCreate");
  }
  cublas_baseline(const cublas_baseline&) = delete;
  cublas_baseline& operator=(const cublas_baseline&) = delete;
  ~cublas_baseline() { static_cast<void>(cublasLtDestroy(handle_)); }

  /// @param weight weight(i), x(i), y(i): where launch i finds [rows, cols] and [m, cols] and
  ///        leaves [m, rows]
  template <class Weight, class X, class Y>
  timing measure(graph_timer& timer, int rows, int cols, int m, int rotation, Weight&& weight,
                 X&& x, Y&& y, const time_budget& budget) {
    const problem p(rows, cols, m);
    cublasLtMatmulHeuristicResult_t found[8];
    int count = 0;
    preference limit(workspace_.size());
    check(cublasLtMatmulAlgoGetHeuristic(handle_, p.operation, p.w, p.x, p.y, p.y, limit.value, 8,
                                         found, &count),
          "cublasLtMatmulAlgoGetHeuristic");
    const double weights = static_cast<double>(rows) * cols;
    const double expected_us =
        std::max(2e-6 * weights / 3.5, 2e-6 * weights * m / 500) + 3;  // 3.5 TB/s, 500 TFLOP/s
    const auto launch = [&](const cublasLtMatmulAlgo_t& algorithm) {
      return [&, algorithm](int i, cudaStream_t stream) {
        const float one = 1, zero = 0;
        check(
            cublasLtMatmul(handle_, p.operation, &one, weight(i), p.w, x(i), p.x, &zero, y(i), p.y,
                           y(i), p.y, &algorithm, workspace_.data(), workspace_.size(), stream),
            "cublasLtMatmul");
      };
    };
    const time_budget trial{2, 2, 3};
    const int trial_launches = static_cast<int>(std::min(std::max(2000 / expected_us, 2.0), 32.0));
    int best = -1;
    double best_us = 0;
    for (int i = 0; i < count; ++i) {
      if (found[i].state != CUBLAS_STATUS_SUCCESS) continue;
      const timing t = timer.measure(trial_launches, trial, launch(found[i].algo));
      if (best < 0 || t.us < best_us) best = i, best_us = t.us;
    }
    if (best < 0) throw std::runtime_error("cuBLAS has no algorithm for this shape");
    return timer.measure(launches_for(expected_us, rotation), budget, launch(found[best].algo));
  }

 private:
  struct preference {
    cublasLtMatmulPreference_t value = nullptr;
    explicit preference(std::size_t workspace) {
      check(cublasLtMatmulPreferenceCreate(&value), "cublasLtMatmulPreferenceCreate");
      check(cublasLtMatmulPreferenceSetAttribute(value, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                 &workspace, sizeof workspace),
            "cublasLtMatmulPreferenceSetAttribute");
    }
    preference(const preference&) = delete;
    preference& operator=(const preference&) = delete;
    ~preference() { static_cast<void>(cublasLtMatmulPreferenceDestroy(value)); }
  };

  /// cuBLAS is column-major: Y^T [rows x m] = W [cols x rows]^T X^T [cols x m].
  struct problem {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
    problem(int rows, int cols, int m) {
      check(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "matmul");
      const cublasOperation_t transposed = CUBLAS_OP_T;
      check(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                           sizeof transposed),
            "matmul");
      const auto n = static_cast<std::uint64_t>(rows), k = static_cast<std::uint64_t>(cols),
                 tokens = static_cast<std::uint64_t>(m);
      check(cublasLtMatrixLayoutCreate(&w, CUDA_R_16F, k, n, cols), "layout");
      check(cublasLtMatrixLayoutCreate(&x, CUDA_R_16F, k, tokens, cols), "layout");
      check(cublasLtMatrixLayoutCreate(&y, CUDA_R_16F, n, tokens, rows), "layout");
    }
    problem(const problem&) = delete;
    problem& operator=(const problem&) = delete;
    ~problem() {
      static_cast<void>(cublasLtMatrixLayoutDestroy(y));
      static_cast<void>(cublasLtMatrixLayoutDestroy(x));
      static_cast<void>(cublasLtMatrixLayoutDestroy(w));
      static_cast<void>(cublasLtMatmulDescDestroy(operation));
    }
  };

  cublasLtHandle_t handle_ = nullptr;
  device_array<unsigned char> workspace_;
};

}  // namespace bench
