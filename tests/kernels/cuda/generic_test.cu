// SPDX-License-Identifier: MIT
// The product that runs everywhere, against the CPU reference. Seed 23.
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/kernels/cpu/reference.hpp>
#include <bitladder/kernels/cuda/detail/generic_launch.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include <support/has_device.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <kernels/cpu/fixture.hpp>
#include <limits>
#include <type_traits>
#include <vector>

namespace {

namespace bc = bitladder::cuda;
using bitladder::dtype;
using bitladder::status;

std::size_t size(int n) { return static_cast<std::size_t>(n); }

/// Numbers of any of the types that kernels read and write, [rows, stride]; the elements beyond
/// `cols` are not part of the matrix.
struct elements {
  dtype type;
  int rows, cols, stride;
  std::vector<float> values;  ///< [rows, stride], exactly what is stored
  bc::buffer<std::uint8_t> device;

  static float rounded(dtype type, float v) {
    if (type == dtype::f16) return to_float(bitladder::to_fp16(v));
    if (type == dtype::bf16) return to_float(bitladder::to_bf16(v));
    return v;
  }

  elements(dtype t, int r, int c, int s, support::random& rng)
      : type(t), rows(r), cols(c), stride(s) {
    for (int i = 0; i < r * s; ++i) values.push_back(rounded(t, static_cast<float>(rng.normal())));
    upload();
  }

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
    std::vector<float> out;
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::uint32_t word = 0;
      std::memcpy(&word, &bytes[i * size_of(type)], size_of(type));
      const auto half = static_cast<std::uint16_t>(word);
      out.push_back(type == dtype::f32   ? bitladder::detail::float_of(word)
                    : type == dtype::f16 ? to_float(bitladder::fp16_t{half})
                                         : to_float(bitladder::bf16_t{half}));
    }
    return out;
  }

  float at(int r, int c) const { return values[size(r) * size(stride) + size(c)]; }
};

/// W x of the CPU reference, [m, rows].
std::vector<float> reference(const support::quantized& q, int bits, const elements& x) {
  std::vector<float> dense, y(size(x.rows) * size(q.planes.layout().rows));
  for (int t = 0; t < x.rows; ++t)
    for (int c = 0; c < x.cols; ++c) dense.push_back(x.at(t, c));
  bitladder::cpu::reference::gemm(q.planes.view(), q.tables[bits],
                                  support::matrix(dense, x.rows, x.cols),
                                  support::matrix(y, x.rows, q.planes.layout().rows));
  return y;
}

bc::packed_weights upload(const support::quantized& q) {
  bc::packed_weights w;
  REQUIRE(w.upload(q.planes.view(), q.tables, nullptr) == status::ok);
  return w;
}

bc::gemm_args arguments(const elements& x, elements& y) {
  bc::gemm_args a;
  a.x = x.device.data();
  a.x_type = x.type;
  a.x_stride = x.stride;
  a.m = x.rows;
  a.y_type = y.type;
  a.y_stride = y.stride;
  return a;
}

void run(int bits, const bc::gemm_args& a) {
  REQUIRE(bitladder::dispatch_bits(bits, bitladder::all_bits{}, [&](auto b) {
            return bc::detail::launch_generic<decltype(b)::value>(a, nullptr);
          }) == status::ok);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
}

/// How many elements of y, the ones between its rows included, are not `expected(token, row)`.
template <class Expected>
int differences(const elements& y, Expected&& expected) {
  const std::vector<float> found = y.download();
  int wrong = 0;
  for (int t = 0; t < y.rows; ++t)
    for (int c = 0; c < y.stride; ++c)
      wrong += !support::same_bits(found[size(t) * size(y.stride) + size(c)],
                                   c < y.cols ? expected(t, c) : y.at(t, c));
  return wrong;
}

TEST_CASE("the generic product has the bits of the CPU reference, for groups of any size" *
          doctest::skip(!support::has_device())) {
  support::random rng(23);
  struct shape {
    int rows, cols, groups;
  };
  const shape shapes[] = {{1, 32, 1},   {16, 96, 3},   {17, 224, 1},  {9, 256, 2},   {40, 288, 24},
                          {33, 768, 8}, {7, 1056, 11}, {3, 480, 480}, {31, 544, 17}, {100, 64, 1}};
  for (const shape& s : shapes) {
    for (int bits = 1; bits <= 8; ++bits) {
      const int planes = bits + rng.below(9 - bits);
      const support::quantized q(s.rows, s.cols, planes, s.groups, rng);
      const bc::packed_weights w = upload(q);
      for (const int m : {1, 2, 8, 9, 17}) {
        CAPTURE(s.rows);
        CAPTURE(s.cols);
        CAPTURE(s.groups);
        CAPTURE(planes);
        CAPTURE(bits);
        CAPTURE(m);
        const elements x(m % 2 == 0 ? dtype::bf16 : dtype::f16, m, s.cols, s.cols + 8 * (m % 3),
                         rng);
        elements y(dtype::f32, m, s.rows, s.rows + m % 3, rng);
        bc::gemm_args a = arguments(x, y);
        a.matrices[0] = {w.view(bits), y.device.data()};
        run(bits, a);
        const std::vector<float> wanted = reference(q, bits, x);
        CHECK(differences(
                  y, [&](int t, int r) { return wanted[size(t) * size(s.rows) + size(r)]; }) == 0);
      }
    }
  }
}

TEST_CASE("bias and residual are added in float, then rounded once to any output type" *
          doctest::skip(!support::has_device())) {
  support::random rng(23);
  const int rows = 37, cols = 320, m = 5, bits = 3;
  const support::quantized q(rows, cols, 4, 10, rng);
  const bc::packed_weights w = upload(q);
  for (const dtype type : {dtype::f16, dtype::bf16, dtype::f32}) {
    for (const bool in_place : {false, true}) {
      CAPTURE(to_string(type));
      CAPTURE(in_place);
      const elements x(dtype::f16, m, cols, cols, rng), bias(type, 1, rows, rows, rng);
      const elements residual(type, m, rows, rows + 3, rng);
      elements y(type, m, rows, rows + 3, rng);
      bc::gemm_args a = arguments(x, y);
      a.matrices[0] = {w.view(bits), y.device.data(), bias.device.data(),
                       in_place ? y.device.data() : residual.device.data()};
      run(bits, a);
      const std::vector<float> wanted = reference(q, bits, x);
      CHECK(differences(y, [&](int t, int r) {
              const float sum = wanted[size(t) * size(rows) + size(r)] + bias.at(0, r);
              return elements::rounded(type, sum + (in_place ? y : residual).at(t, r));
            }) == 0);
    }
  }
}

TEST_CASE("several matrices share the activations" * doctest::skip(!support::has_device())) {
  support::random rng(23);
  const int cols = 160, m = 3, bits = 4;
  const support::quantized q[3] = {
      {20, cols, 4, 5, rng}, {5, cols, 8, 1, rng}, {33, cols, 4, 2, rng}};
  const elements x(dtype::bf16, m, cols, cols, rng);
  elements y[3] = {
      {dtype::f32, m, 20, 40, rng}, {dtype::f32, m, 5, 40, rng}, {dtype::f32, m, 33, 40, rng}};
  const bc::packed_weights w[3] = {upload(q[0]), upload(q[1]), upload(q[2])};
  bc::gemm_args a = arguments(x, y[0]);
  a.count = 3;
  for (int i = 0; i < 3; ++i) a.matrices[i] = {w[i].view(bits), y[i].device.data()};
  run(bits, a);
  for (int i = 0; i < 3; ++i) {
    CAPTURE(i);
    const std::vector<float> wanted = reference(q[i], bits, x);
    CHECK(differences(y[i], [&](int t, int r) {
            return wanted[size(t) * size(y[i].cols) + size(r)];
          }) == 0);
  }
}

TEST_CASE("swiglu multiplies silu of the first matrix with the second" *
          doctest::skip(!support::has_device())) {
  support::random rng(23);
  const int rows = 23, cols = 192, bits = 5;
  for (const int m : {1, 11}) {
    const support::quantized gate(rows, cols, 5, 6, rng), up(rows, cols, 8, 2, rng);
    const bc::packed_weights w[2] = {upload(gate), upload(up)};
    const elements x(dtype::f16, m, cols, cols, rng), bias(dtype::f32, 2, rows, rows, rng);
    elements y(dtype::f32, m, rows, rows, rng);
    bc::gemm_args a = arguments(x, y);
    a.count = 2;
    a.epilogue = bc::gemm_epilogue::swiglu;
    const auto* const biases = reinterpret_cast<const float*>(bias.device.data());
    a.matrices[0] = {w[0].view(bits), y.device.data(), biases};
    a.matrices[1] = {w[1].view(bits), nullptr, biases + rows};
    run(bits, a);
    const std::vector<float> g = reference(gate, bits, x), u = reference(up, bits, x);
    const std::vector<float> found = y.download();
    for (int i = 0; i < m * rows; ++i) {
      const double gi = g[size(i)] + bias.at(0, i % rows), ui = u[size(i)] + bias.at(1, i % rows);
      const double wanted = gi / (1 + std::exp(-gi)) * ui;
      // Rounding of the sums is the same; expf, the division and two products are 1 ulp or two
      // each.
      CHECK(std::abs(found[size(i)] - wanted) <=
            16 * 0x1p-24 * (std::abs(wanted) + std::abs(gi * ui) * 0x1p-8));
    }
  }
}

TEST_CASE("a token's results do not depend on its batch, and not-a-number stays in its token" *
          doctest::skip(!support::has_device())) {
  support::random rng(23);
  const int rows = 19, cols = 96, m = 10, bits = 6;
  const support::quantized q(rows, cols, 6, 3, rng);
  const bc::packed_weights w = upload(q);
  elements x(dtype::f16, m, cols, cols, rng);
  x.values[size(3 * cols + 7)] = std::numeric_limits<float>::quiet_NaN();
  x.values[size(5 * cols + 50)] = std::numeric_limits<float>::infinity();
  x.values[size(6 * cols + 1)] = 65504.f;
  x.values[size(7 * cols + 2)] = 0x1p-24f;
  x.upload();
  elements y(dtype::f32, m, rows, rows, rng);
  bc::gemm_args a = arguments(x, y);
  a.matrices[0] = {w.view(bits), y.device.data()};
  run(bits, a);
  const std::vector<float> wanted = reference(q, bits, x);
  const auto expected = [&](int t, int r) { return wanted[size(t) * size(rows) + size(r)]; };
  CHECK(differences(y, expected) == 0);
  for (int t = 0; t < m; ++t) {
    elements one(dtype::f32, 1, rows, rows, rng);
    bc::gemm_args b = a;
    b.x = x.device.data() + 2 * t * cols;
    b.m = 1;
    b.matrices[0].y = one.device.data();
    run(bits, b);
    CHECK(differences(one, [&](int, int r) { return expected(t, r); }) == 0);
  }
}

}  // namespace
