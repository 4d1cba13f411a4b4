// SPDX-License-Identifier: MIT
// What the tests of products of many tokens share: weights on the card and as doubles, numbers of
// any element type, and the comparison, which names the first wrong result.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/large_batch.cuh>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include <support/has_device.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <kernels/cpu/fixture.hpp>
#include <string>
#include <vector>

namespace large_batch_cases {

namespace bc = bitladder::cuda;
using bitladder::dtype;
using bitladder::status;

inline std::size_t size(int n) { return static_cast<std::size_t>(n); }

/// [rows, stride] numbers of a type on the card; those beyond `cols` are not part of the matrix.
struct numbers {
  dtype type;
  int rows, cols, stride;
  std::vector<float> values;  ///< exactly what is stored
  bc::buffer<std::uint8_t> device;

  numbers(dtype t, int r, int c, int s) : type(t), rows(r), cols(c), stride(s) {
    values.assign(size(r) * size(s), 0.f);
  }
  numbers(dtype t, int r, int c, int s, support::random& rng) : numbers(t, r, c, s) {
    for (float& v : values) v = rounded(t, static_cast<float>(rng.normal()));
    upload();
  }
  static float rounded(dtype type, float v) {
    if (type == dtype::f16) return to_float(bitladder::to_fp16(v));
    if (type == dtype::bf16) return to_float(bitladder::to_bf16(v));
    return v;
  }
  float& at(int r, int c) { return values[size(r) * size(stride) + size(c)]; }
  float at(int r, int c) const { return values[size(r) * size(stride) + size(c)]; }

  void upload() {
    std::vector<std::uint8_t> bytes(values.size() * size_of(type));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::uint32_t word = type == dtype::f32   ? bitladder::detail::bits_of(values[i])
                                 : type == dtype::f16 ? bitladder::to_fp16(values[i]).bits
                                                      : bitladder::to_bf16(values[i]).bits;
      std::memcpy(&bytes[i * size_of(type)], &word, size_of(type));
    }
    if (device.empty()) REQUIRE(device.allocate(bytes.size()) == status::ok);
    REQUIRE(cudaMemcpy(device.data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice) ==
            cudaSuccess);
  }
  std::vector<float> download() const {
    std::vector<std::uint8_t> bytes(values.size() * size_of(type));
    REQUIRE(cudaMemcpy(bytes.data(), device.data(), bytes.size(), cudaMemcpyDeviceToHost) ==
            cudaSuccess);
    std::vector<float> out(values.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      std::uint32_t word = 0;
      std::memcpy(&word, &bytes[i * size_of(type)], size_of(type));
      const auto half = static_cast<std::uint16_t>(word);
      out[i] = type == dtype::f32   ? bitladder::detail::float_of(word)
               : type == dtype::f16 ? to_float(bitladder::fp16_t{half})
                                    : to_float(bitladder::bf16_t{half});
    }
    return out;
  }
};

/// Random weights of `planes` planes, on the host and on the card.
struct weights {
  support::quantized host;
  bc::packed_weights device;
  int rows, cols;

  weights(int r, int c, int planes, support::random& rng, int groups = 1)
      : host(r, c, planes, groups, rng), rows(r), cols(c) {
    REQUIRE(device.upload(host.planes.view(), host.tables, nullptr) == status::ok);
  }
  /// [rows, cols] at a precision.
  std::vector<double> values(int bits) const {
    std::vector<double> w(size(rows) * size(cols));
    const bitladder::codebook_view tables = host.tables[bits];
    const int group = cols / tables.groups();
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < cols; ++c)
        w[size(r) * size(cols) + size(c)] =
            to_float(tables.table(r, c / group)[host.planes.view().code(r, c, bits)]);
    return w;
  }
};

/// What float sums may be off by, in units of `expected::unit`.
inline constexpr double bound = 5e-6;

/// A token as the kernel that counts bits takes it (bit_serial_kernel.cuh): integers of 24 bits in
/// slices of 1024 columns, or at 4 bits of 16 bits in halves of them.
inline std::vector<double> as_counted(const std::vector<double>& token) {
  std::vector<double> x(token.size());
  for (std::size_t slice = 0; slice < x.size(); slice += 1024) {
    const std::size_t slice_end = std::min(slice + 1024, x.size());
    double largest = 0;
    for (std::size_t c = slice; c < slice_end; ++c)
      largest = std::max(largest, std::fabs(token[c]));
    if (largest == 0) continue;
    const double unit = std::ldexp(1.0, std::max(std::ilogb(largest), -100) - 22);
    for (std::size_t half = slice; half < slice_end; half += 512) {
      const std::size_t end = std::min(half + 512, slice_end);
      std::vector<long long> integer;
      for (std::size_t c = half; c < end; ++c) integer.push_back(std::llrint(token[c] / unit));
      long long magnitude = 0;  // sums of 16, in units of 64
      for (std::size_t i = 0; i < integer.size(); i += 16) {
        long long of_16 = 63;
        for (std::size_t k = i; k < std::min(i + 16, integer.size()); ++k)
          of_16 += std::llabs(integer[k]);
        magnitude += of_16 / 64;
      }
      const bool narrow = magnitude >= (1 << 18) / 64 * 512;
      for (std::size_t i = 0; i < integer.size(); ++i) {
        long long v = integer[i];
        if (narrow) v = std::min(v + 128, (1LL << 23) - 1) & ~255LL;
        x[half + i] = static_cast<double>(v) * unit;
      }
    }
  }
  return x;
}

/// By how much that changes the product with a row.
inline double counting_changes(const std::vector<double>& token, const double* row) {
  const std::vector<double> x = as_counted(token);
  double sum = 0;
  for (std::size_t c = 0; c < x.size(); ++c) sum += row[c] * (x[c] - token[c]);
  return std::fabs(sum);
}

/// Exact products of x and w, and what errors are measured against: |x| times a row's rms weight.
struct expected {
  int m, rows;
  std::vector<double> sum, unit;  ///< [m, rows]

  /// @param counts whether a lone token may go to the kernel that counts bits: the unit has room
  /// for
  ///        what that makes of the token
  expected(const numbers& x, const weights& w, int bits, bool counts = false)
      : m(x.rows), rows(w.rows), sum(size(m) * size(rows)), unit(sum.size()) {
    const std::vector<double> values = w.values(bits);
    std::vector<double> rms(size(rows)), token(size(w.cols));
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < w.cols; ++c)
        rms[size(r)] += values[size(r) * size(w.cols) + size(c)] *
                        values[size(r) * size(w.cols) + size(c)] / w.cols;
      rms[size(r)] = std::sqrt(rms[size(r)]);
    }
    for (int i = 0; i < m; ++i) {
      double norm = 0;
      for (int c = 0; c < w.cols; ++c) {
        token[size(c)] = x.at(i, c);
        norm += token[size(c)] * token[size(c)];
      }
      norm = std::sqrt(norm);
      for (int r = 0; r < rows; ++r) {
        const double* row = &values[size(r) * size(w.cols)];
        double s[4] = {};  // independent, for the compiler's sake
        for (int c = 0; c < w.cols; c += 4)
          for (int k = 0; k < 4; ++k) s[k] += row[c + k] * token[size(c + k)];
        sum[size(i) * size(rows) + size(r)] = s[0] + s[1] + s[2] + s[3];
        unit[size(i) * size(rows) + size(r)] = norm * rms[size(r)];
        if (counts && m == 1 && bits == 4) unit[size(r)] += counting_changes(token, row) / bound;
      }
    }
  }
};

/// Half a step of the output type at `v`.
inline double half_step(dtype type, double v) {
  if (type == dtype::f32) return std::fabs(v) * 0x1p-24;
  if (type == dtype::f16) return std::max(std::fabs(v) * 0x1p-11, 0x1p-25);
  return std::fabs(v) * 0x1p-8;
}

/// Compares results with `want` (and its units), names the first that is wrong and how many are.
template <class Want, class Unit>
std::string mistakes(const numbers& y, const std::vector<float>& before, int rows, Want&& want,
                     Unit&& unit) {
  const std::vector<float> got = y.download();
  int wrong = 0, touched = 0;
  double worst = 0;
  std::string first;
  for (int i = 0; i < y.rows; ++i) {
    for (int c = 0; c < y.stride; ++c) {
      const std::size_t at = size(i) * size(y.stride) + size(c);
      if (c >= rows) {
        touched += !support::same_bits(got[at], before[at]);
        continue;
      }
      const double w = want(i, c), allowed = bound * unit(i, c) + half_step(y.type, w) * 1.01;
      const double error = std::fabs(got[at] - w);
      worst = std::max(worst, (error - half_step(y.type, w)) / unit(i, c));
      if (!(error <= allowed) && wrong++ == 0)
        first = "token " + std::to_string(i) + " row " + std::to_string(c) + ": " +
                std::to_string(got[at]) + " for " + std::to_string(w) + ", allowed " +
                std::to_string(allowed);
    }
  }
  if (wrong == 0 && touched == 0) return "";
  return std::to_string(wrong) + " wrong, " + std::to_string(touched) + " touched outside, worst " +
         std::to_string(worst) + ", first " + first;
}

/// One product with a given plan; "" if right.
template <int Bits>
std::string run_plan(const bc::detail::large_batch_plan& plan, const numbers& x, const weights& w,
                     const expected& want, bool clusters) {
  numbers y(dtype::f32, x.rows, w.rows, w.rows + 3);
  for (float& v : y.values) v = -77.f;
  y.upload();
  bc::gemm_args args;
  args.matrices[0].w = w.device.view(Bits);
  args.matrices[0].y = y.device.data();
  args.x = x.device.data();
  args.x_type = x.type;
  args.x_stride = x.stride;
  args.m = x.rows;
  args.y_type = dtype::f32;
  args.y_stride = y.stride;
  bc::buffer<std::uint8_t> scratch;
  REQUIRE(scratch.allocate(bc::large_batch_workspace_bytes(x.rows, w.cols)) == status::ok);
  // Scratch may hold anything: 0xff is NaN to whoever reads what nobody wrote.
  REQUIRE(cudaMemset(scratch.data(), 0xff, scratch.size()) == cudaSuccess);
  REQUIRE(bc::detail::check_large_batch(Bits, args) == status::ok);
  REQUIRE(bc::detail::run_large_batch<Bits>(args, plan, clusters, scratch.data(), scratch.size(),
                                            nullptr) == status::ok);
  const cudaError_t after = cudaDeviceSynchronize();
  if (after != cudaSuccess) return std::string("device: ") + cudaGetErrorString(after);
  return mistakes(
      y, y.values, w.rows, [&](int i, int r) { return want.sum[size(i) * size(w.rows) + size(r)]; },
      [&](int i, int r) { return want.unit[size(i) * size(w.rows) + size(r)]; });
}

/// From the plainest plan to the most involved: the first that fails says which part is wrong.
template <int Bits, int Tokens, int Resident>
void every_plan_is_right(const numbers& x, const weights& w, const expected& want,
                         const bc::device_properties& device, bool clusters) {
  using shape = bc::detail::large_batch_shape<Bits, Tokens, Resident>;
  for (const int cluster : {1, 2, 3, 5}) {
    if (cluster > 1 && !clusters) continue;
    for (const int replicas : {4, 2, 1}) {
      for (int stages = shape::min_stages; stages <= shape::max_stages; ++stages) {
        bc::detail::large_batch_plan plan;
        plan.tokens = Tokens;
        plan.resident = Resident;
        plan.rows = shape::rows;
        plan.cluster = cluster;
        plan.replicas = replicas;
        plan.stages = stages;
        plan.shared_bytes = shape::shared_bytes(
            bc::detail::large_batch_tables_of<Bits, shape>::bytes(replicas), stages);
        if (plan.shared_bytes > device.shared_bytes_per_block) continue;
        CAPTURE(Bits);
        CAPTURE(Tokens);
        CAPTURE(Resident);
        CAPTURE(cluster);
        CAPTURE(replicas);
        CAPTURE(stages);
        REQUIRE(run_plan<Bits>(plan, x, w, want, clusters) == "");
      }
    }
  }
}

template <int Bits>
void every_plan_is_right() {
  bc::device_properties device;
  REQUIRE(bc::properties(device) == status::ok);
  bool clusters = false;
  REQUIRE(bc::detail::large_batch_clusters<Bits>(device, clusters) == status::ok);
  support::random rng(400 + Bits);
  const weights w(300, 1056, 8, rng);  // 3 row blocks, 5 column tiles, both ragged
  const numbers x(dtype::f16, 130, 1056, 1056, rng);
  const expected want(x, w, Bits);
  bc::detail::each_large_batch<Bits>([&](auto tokens, auto resident) {
    every_plan_is_right<Bits, decltype(tokens)::value, decltype(resident)::value>(x, w, want,
                                                                                  device, clusters);
  });
}

/// The public call: all token counts and odd shapes, both types of x in turn.
template <int Bits>
void shapes_are_right() {
  support::random rng(500 + Bits);
  int turn = Bits;
  for (const int m : {17, 32, 33, 64, 65, 100, 130, 257}) {
    for (const int rows : {1, 16, 63, 64, 100, 200}) {
      const int cols_of[] = {32, 224, 256, 288, 1056, 4096};
      const int cols = cols_of[turn++ % 6];
      const dtype type = turn / 6 % 2 == 0 ? dtype::f16 : dtype::bf16;
      const weights w(rows, cols, 8, rng);
      const numbers x(type, m, cols, cols + 8, rng);
      const expected want(x, w, Bits);
      numbers y(dtype::f32, m, rows, rows);
      y.upload();
      bc::gemm_args args;
      args.matrices[0].w = w.device.view(Bits);
      args.matrices[0].y = y.device.data();
      args.x = x.device.data();
      args.x_type = type;
      args.x_stride = x.stride;
      args.m = m;
      args.y_type = dtype::f32;
      bc::buffer<std::uint8_t> scratch;
      REQUIRE(scratch.allocate(bc::large_batch_workspace_bytes(m, cols)) == status::ok);
      REQUIRE(cudaMemset(scratch.data(), 0xff, scratch.size()) == cudaSuccess);
      CAPTURE(Bits);
      CAPTURE(m);
      CAPTURE(rows);
      CAPTURE(cols);
      CAPTURE(to_string(type));
      REQUIRE(bc::large_batch<Bits>(args, scratch.data(), scratch.size(), nullptr) == status::ok);
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
      REQUIRE(mistakes(
                  y, y.values, rows,
                  [&](int i, int r) { return want.sum[size(i) * size(rows) + size(r)]; },
                  [&](int i, int r) { return want.unit[size(i) * size(rows) + size(r)]; }) == "");
    }
  }
}

}  // namespace large_batch_cases
