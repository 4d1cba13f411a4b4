// SPDX-License-Identifier: MIT
// What the tests of gemm.cuh share: the call at a precision known at run time, with every precision
// compiled by itself (gemm_bits.cu), and results with room around them.
#pragma once

#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/kernels/cuda/gemm.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>

#include <support/random.hpp>

#include <cuda_fp16.h>
#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <kernels/cuda/gemm_at.cuh>
#include <kernels/cuda/large_batch_cases.cuh>
#include <string>
#include <vector>

namespace gemm_cases {

using bitladder::dtype;
using large_batch_cases::expected;
using large_batch_cases::half_step;
using large_batch_cases::numbers;
using large_batch_cases::size;
using large_batch_cases::weights;

/// At a precision known at run time.
inline status gemm_at(int bits, const bc::gemm_args& args, cudaStream_t stream) {
  return bitladder::dispatch_bits(bits, bitladder::all_bits{}, [&](auto b) {
    return gemm_at<decltype(b)::value>(args, stream);
  });
}

/// Random numbers [m, rows + pad] where results go, with a token's room before and after.
struct results : numbers {
  int m, pad;

  results(dtype type, int tokens, int rows, int more, support::random& rng)
      : numbers(type, tokens + 2, rows, rows + more, rng), m(tokens), pad(more) {}
  std::uint8_t* data() { return device.data() + size(stride) * size_of(type); }
  /// What stood there before the call.
  float before(int token, int row) const { return at(token + 1, row); }
  /// What stands there now, [m, rows].
  std::vector<float> now() const {
    const std::vector<float> all = download();
    std::vector<float> y;
    for (int i = 0; i < m; ++i)
      for (int r = 0; r < cols; ++r) y.push_back(all[size(i + 1) * size(stride) + size(r)]);
    return y;
  }
};

/// "" if every result is `want(token, row)` up to `allowed(token, row)` and one rounding to the
/// type, and nothing beside the results was written; else the first that is not.
template <class Want, class Allowed>
std::string faults(const results& y, Want&& want, Allowed&& allowed) {
  const std::vector<float> got = y.download();
  int wrong = 0, touched = 0;
  double worst = 0;
  std::string first;
  for (int i = 0; i < y.rows; ++i) {
    for (int c = 0; c < y.stride; ++c) {
      const std::size_t at = size(i) * size(y.stride) + size(c);
      if (i == 0 || i > y.m || c >= y.cols) {
        touched += !support::same_bits(got[at], y.values[at]);
        continue;
      }
      const double w = want(i - 1, c), room = allowed(i - 1, c);
      const double error = std::fabs(got[at] - w);
      const double most = room + half_step(y.type, std::fabs(w) + room) * 1.01;
      worst = std::max(worst, error / most);
      if (!(error <= most) && wrong++ == 0)
        first = "token " + std::to_string(i - 1) + " row " + std::to_string(c) + ": " +
                std::to_string(got[at]) + " for " + std::to_string(w) + ", off by " +
                std::to_string(error / most) + " times what is allowed";
    }
  }
  if (wrong == 0 && touched == 0) return "";
  return std::to_string(wrong) + " wrong, at worst " + std::to_string(worst) +
         " times what is allowed, " + std::to_string(touched) + " touched outside; " + first;
}

/// A call for tokens of x; matrices and what becomes of them are the caller's.
inline bc::gemm_args arguments(const numbers& x, int m, dtype y_type, int y_stride) {
  bc::gemm_args a;
  a.x = x.device.data();
  a.x_type = x.type;
  a.x_stride = x.stride;
  a.m = m;
  a.y_type = y_type;
  a.y_stride = y_stride;
  return a;
}

/// Calls, with the scratch that the call asks for, and waits. Scratch may hold anything: 0xff is
/// NaN to whoever reads what nobody wrote.
inline void call(int bits, bc::gemm_args& a) {
  bc::buffer<std::uint8_t> scratch;
  REQUIRE(scratch.allocate(bc::gemm_workspace_bytes(a)) == status::ok);
  if (!scratch.empty()) REQUIRE(cudaMemset(scratch.data(), 0xff, scratch.size()) == cudaSuccess);
  a.workspace = scratch.data();
  a.workspace_bytes = scratch.size();
  REQUIRE(gemm_at(bits, a, nullptr) == status::ok);
  const cudaError_t after = cudaDeviceSynchronize();
  INFO(std::string(cudaGetErrorString(after)));
  REQUIRE(after == cudaSuccess);
}

}  // namespace gemm_cases
