// SPDX-License-Identifier: MIT
// The one order in which every CPU kernel adds up a dot product. Scalar and SIMD code, stored dense
// or as bitplanes, one vector or a batch, any number of threads: all give these bits, so that a
// result never depends on the machine or on how the work was cut. Tested by
// tests/kernels/cpu/order_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>

#include <cmath>

namespace bitladder {
inline namespace v0_1 {
namespace cpu {

// The order, in full:
//
//  1. There are 32 running sums, one per lane. Column c belongs to lane c % 32, so one word of a
//     bitplane feeds every lane once.
//  2. Each lane starts at +0 and takes its columns in increasing order:
//     lane = fma(weight, x, lane) in float, one rounding per step. Where the columns end in the
//     middle of a word, the lanes beyond the end take no step.
//  3. The lanes are added as a tree of halves: lane[l] += lane[l + 16] for l < 16, then + 8, + 4,
//     + 2, + 1. Lane 0 is the result.
//
//  4. Where the row has outliers (core/sparse_matrix.hpp), the rules above are for what codes and
//     tables give, outliers' places included, and a second sum is added to their result in the
//     end. It has 8 lanes from +0: outlier i of the row, counted from 0, takes the step
//     lane[i % 8] = fma(value - there, x, lane[i % 8]), where `there` is what the dense part has in
//     its place and the difference is rounded to float; then a tree of halves, + 4, + 2, + 1. A row
//     without outliers takes no such step. (An infinite x at an outlier meets both parts, so the
//     result may be NaN where the outlier alone would give infinity.)
//
// 32 lanes are four AVX2 or two AVX-512 registers: enough independent chains to hide the latency of
// an fma, and few enough to keep several rows in registers. A NaN result is a NaN in every kernel,
// but its payload is not part of the promise.
//
// SIMD code that wants no mask for rule 2 may pad: a step with weight -0 and x +0 adds -0, which
// leaves every lane as it was (+0 and NaN included), whereas adding +0 would turn -0 into +0.

/// Running sums of one dot product.
inline constexpr int lanes = 32;

/// Of the sum over outliers, rule 4.
inline constexpr int outlier_lanes = 8;

/// What SIMD code puts in place of a weight beyond the last column; the x there must be +0.
inline constexpr float padding_weight = -0.0f;

/// Rule 3. Overwrites the lanes.
inline float add_lanes(float (&lane)[lanes]) {
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

/// The dot product of `count` weights of any stored type with as many floats.
template <class T>
float dot(const T* weights, const float* x, int count) {
  float lane[lanes] = {};
  int c = 0;
  for (; c + lanes <= count; c += lanes)
    for (int l = 0; l < lanes; ++l) lane[l] = std::fma(to_float(weights[c + l]), x[c + l], lane[l]);
  for (int l = 0; c + l < count; ++l)
    lane[l] = std::fma(to_float(weights[c + l]), x[c + l], lane[l]);
  return add_lanes(lane);
}

}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
