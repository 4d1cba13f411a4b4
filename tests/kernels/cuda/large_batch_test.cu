// SPDX-License-Identifier: MIT
// Products of many tokens against double sums: 1 to 4 bits here, 5 to 8 in
// large_batch_wide_test.cu, and whatever does not depend on the precision. Seeds 401 to 504 and 31
// to 36.
#include <bitladder/core/dtype.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/large_batch.cuh>

#include <support/has_device.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <kernels/cuda/large_batch_cases.cuh>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace large_batch_cases;

template <int Bits>
using bits = std::integral_constant<int, Bits>;

/// Every address that lookups of a block's row tiles can form belongs to one table entry.
template <int Bits, int Slots, bool Pairs>
int table_collisions(int replicas) {
  using tables = bc::detail::large_batch_tables<Bits, Slots, Pairs>;
  const int bytes = tables::bytes(replicas), low = tables::low_bits(replicas);
  std::vector<int> owner(size(bytes / 4), -1);
  int collisions = 0;
  for (int slot = 0; slot < Slots; ++slot) {
    const int place = tables::place(slot >> low);
    for (int a = 0; a < tables::codes; ++a) {
      for (int b = 0; b < (tables::pairs ? tables::codes : 1); ++b) {
        if ((place & (a | b << 4)) != 0) ++collisions;  // a bit with two meanings
        for (int row = 0; row < (tables::pairs ? 2 : 1); ++row) {
          for (int lane = 0; lane < 32; ++lane) {
            const int address = (place | a | b << 4) * 256 + row * 128 +
                                (slot & ((1 << low) - 1)) * 32 * replicas +
                                (lane / 4 * replicas + lane % 4 % replicas) * 4;
            const int entry = ((slot * 256 + (a | b << 4)) * 2 + row) * 8 + lane / 4;
            if (address < 0 || address + 4 > bytes) {
              ++collisions;
              continue;
            }
            int& o = owner[size(address / 4)];
            if (o != -1 && o != entry) ++collisions;
            o = entry;
          }
        }
      }
    }
  }
  return collisions;
}

TEST_CASE_TEMPLATE("the tables of a block's row tiles share no byte", Bits, bits<1>, bits<2>,
                   bits<3>, bits<4>, bits<5>, bits<6>, bits<7>, bits<8>) {
  for (const int replicas : {4, 2, 1}) {
    CAPTURE(Bits::value);
    CAPTURE(replicas);
    CHECK(table_collisions<Bits::value, 4, (Bits::value <= 4)>(replicas) == 0);
    CHECK(table_collisions<Bits::value, 4, (Bits::value <= 3)>(replicas) == 0);
    CHECK(table_collisions<Bits::value, 8, (Bits::value <= 3)>(replicas) == 0);
  }
}

TEST_CASE_TEMPLATE("a plan fits every supported card", Bits, bits<1>, bits<2>, bits<3>, bits<4>,
                   bits<5>, bits<6>, bits<7>, bits<8>) {
  struct card {
    int capability, multiprocessors, shared, of_multiprocessor;
  };
  for (const card c :
       {card{80, 108, 166912, 167936}, card{86, 84, 101376, 102400}, card{89, 128, 101376, 102400},
        card{90, 132, 232448, 233472}, card{120, 188, 101376, 102400}}) {
    bc::device_properties device;
    device.compute_capability = c.capability;
    device.multiprocessors = c.multiprocessors;
    device.shared_bytes_per_block = c.shared;
    device.shared_bytes_per_multiprocessor = c.of_multiprocessor;
    for (const int m : {17, 32, 33, 64, 65, 200, 1024}) {
      for (const int rows : {16, 300, 4096, 28672}) {
        for (const int col_tiles : {1, 2, 16, 112}) {
          bc::gemm_args args;
          args.m = m;
          args.matrices[0].w.layout = {rows, col_tiles * 256, Bits::value};
          const bc::detail::large_batch_plan plan =
              bc::detail::choose_large_batch<Bits::value>(args, device, c.capability >= 90);
          CAPTURE(c.capability);
          CAPTURE(m);
          CAPTURE(rows);
          CAPTURE(col_tiles);
          CHECK((plan.tokens == 32 || plan.tokens == 64 || plan.tokens == 128));
          CHECK(plan.stages >= 1);
          CHECK(plan.shared_bytes <= c.shared);
          CHECK(plan.resident * (plan.shared_bytes + 1024) <= c.of_multiprocessor);
          CHECK(plan.cluster >= 1);
          CHECK(plan.cluster <= (c.capability >= 90 ? 8 : 1));
          CHECK(plan.cluster <= col_tiles);
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("every plan gives the products of many tokens", Bits, bits<4>, bits<3>, bits<2>,
                   bits<1>) {
  if (!support::has_device()) return;  // TEST_CASE_TEMPLATE takes no skip()
  every_plan_is_right<Bits::value>();
}

TEST_CASE_TEMPLATE("products of many tokens agree with double sums", Bits, bits<4>, bits<3>,
                   bits<2>, bits<1>) {
  if (!support::has_device()) return;
  shapes_are_right<Bits::value>();
}

/// A call over `count` matrices with everything that can be added.
struct full_call {
  bc::gemm_args args;
  bc::buffer<std::uint8_t> scratch;

  full_call(const numbers& x, int m, int cols) {
    args.x = x.device.data();
    args.x_type = x.type;
    args.x_stride = x.stride;
    args.m = m;
    REQUIRE(scratch.allocate(bc::large_batch_workspace_bytes(m, cols)) == status::ok);
  }
  void run() {
    REQUIRE(bc::large_batch<3>(args, scratch.data(), scratch.size(), nullptr) == status::ok);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  }
};

TEST_CASE("bias and residual are added before one rounding, for several matrices of any type" *
          doctest::skip(!support::has_device())) {
  support::random rng(31);
  const int m = 70, cols = 544;
  const numbers x(dtype::bf16, m, cols, cols, rng);
  for (const dtype type : {dtype::f16, dtype::bf16, dtype::f32}) {
    for (const int pad : {0, 4, 5}) {  // strides that allow wide accesses, and one that does not
      const int rows_of[3] = {200, 64, 130};
      const int stride = 200 + pad;
      full_call call(x, m, cols);
      call.args.count = 3;
      call.args.y_type = type;
      call.args.y_stride = stride;
      std::vector<weights> w;
      std::vector<numbers> y, bias, residual;
      for (int i = 0; i < 3; ++i) {
        w.emplace_back(rows_of[i], cols, 3, rng);
        y.emplace_back(type, m, rows_of[i], stride, rng);
        bias.emplace_back(type, 1, rows_of[i], rows_of[i], rng);
        residual.emplace_back(type, m, rows_of[i], stride, rng);
      }
      for (int i = 0; i < 3; ++i) {
        bc::gemm_matrix& a = call.args.matrices[i];
        a.w = w[size(i)].device.view(3);
        a.y = y[size(i)].device.data();
        if (i != 1) a.bias = bias[size(i)].device.data();
        if (i == 0) a.residual = residual[0].device.data();
        if (i == 2) a.residual = y[2].device.data();  // in place
      }
      call.run();
      for (int i = 0; i < 3; ++i) {
        const expected want(x, w[size(i)], 3);
        CAPTURE(to_string(type));
        CAPTURE(pad);
        CAPTURE(i);
        const int rows = rows_of[i];
        CHECK(mistakes(
                  y[size(i)], y[size(i)].values, rows,
                  [&](int t, int r) {
                    double v = want.sum[size(t) * size(rows) + size(r)];
                    if (i != 1) v += bias[size(i)].at(0, r);
                    if (i == 0) v += residual[0].at(t, r);
                    if (i == 2) v += y[2].at(t, r);
                    return v;
                  },
                  [&](int t, int r) {
                    return want.unit[size(t) * size(rows) + size(r)] + 0.1;  // float additions
                  }) == "");
      }
    }
  }
}

TEST_CASE("SwiGLU multiplies the silu of one matrix by the other" *
          doctest::skip(!support::has_device())) {
  support::random rng(32);
  const int cols = 288;
  for (const int rows : {40, 64, 200}) {
    for (const int m : {20, 150}) {
      const numbers x(dtype::f16, m, cols, cols, rng);
      const weights gate(rows, cols, 3, rng), up(rows, cols, 3, rng);
      numbers y(dtype::f32, m, rows, rows, rng), residual(dtype::f32, m, rows, rows, rng);
      numbers gate_bias(dtype::f32, 1, rows, rows, rng), up_bias(dtype::f32, 1, rows, rows, rng);
      full_call call(x, m, cols);
      call.args.count = 2;
      call.args.epilogue = bc::gemm_epilogue::swiglu;
      call.args.y_type = dtype::f32;
      call.args.matrices[0] = {gate.device.view(3), y.device.data(), gate_bias.device.data(),
                               residual.device.data()};
      call.args.matrices[1] = {up.device.view(3), nullptr, up_bias.device.data(), nullptr};
      call.run();
      const expected g(x, gate, 3), u(x, up, 3);
      CAPTURE(rows);
      CAPTURE(m);
      CHECK(mistakes(
                y, y.values, rows,
                [&](int t, int r) {
                  const std::size_t at = size(t) * size(rows) + size(r);
                  const double a = g.sum[at] + gate_bias.at(0, r), b = u.sum[at] + up_bias.at(0, r);
                  return a / (1 + std::exp(-a)) * b + residual.at(t, r);
                },
                [&](int t, int r) {
                  const std::size_t at = size(t) * size(rows) + size(r);
                  const double a = std::fabs(g.sum[at] + gate_bias.at(0, r));
                  const double b = std::fabs(u.sum[at] + up_bias.at(0, r));
                  return (a + 1) * (u.unit[at] + 0.1) + 1.2 * (b + 1) * (g.unit[at] + 0.1);
                }) == "");
    }
  }
}

TEST_CASE("results are the same bits in every run" * doctest::skip(!support::has_device())) {
  support::random rng(33);
  const int m = 40, rows = 100, cols = 4096;  // few blocks: columns are divided where they can be
  const numbers x(dtype::f16, m, cols, cols, rng);
  const weights w(rows, cols, 3, rng);
  numbers y(dtype::f32, m, rows, rows, rng);
  full_call call(x, m, cols);
  call.args.y_type = dtype::f32;
  call.args.matrices[0] = {w.device.view(3), y.device.data()};
  call.run();
  const std::vector<float> first = y.download();
  for (int run = 0; run < 20; ++run) {
    y.upload();
    call.run();
    REQUIRE(support::same_bits(y.download(), first));
  }
}

TEST_CASE("tokens of any magnitude keep the bound, and what is not finite stays with its token" *
          doctest::skip(!support::has_device())) {
  support::random rng(34);
  const int m = 24, rows = 48, cols = 320;
  for (const dtype type : {dtype::f16, dtype::bf16}) {
    numbers x(type, m, cols, cols, rng);
    for (int t = 0; t < m; ++t) {
      for (int c = 0; c < cols; ++c) {
        float& v = x.at(t, c);
        if (type == dtype::bf16)
          v = numbers::rounded(type, v * std::ldexp(1.f, 9 * t - 110));  // 2^-110 to 2^97
        else if (t % 3 == 0)
          v = numbers::rounded(type, v * 0x1p-18f);  // subnormal
        if (c == 5) v = numbers::rounded(type, v * 1000.f);
      }
    }
    for (int c = 0; c < cols; ++c) x.at(3, c) = 0.f;
    x.at(7, 100) = std::numeric_limits<float>::infinity();
    x.at(8, 31) = std::numeric_limits<float>::quiet_NaN();
    x.upload();
    const weights w(rows, cols, 3, rng);
    numbers y(dtype::f32, m, rows, rows, rng);
    full_call call(x, m, cols);
    call.args.y_type = dtype::f32;
    call.args.matrices[0] = {w.device.view(3), y.device.data()};
    call.run();
    const expected want(x, w, 3);
    const std::vector<float> got = y.download();
    int wrong = 0;
    for (int t = 0; t < m; ++t) {
      for (int r = 0; r < rows; ++r) {
        const std::size_t at = size(t) * size(rows) + size(r);
        if (t == 7) {
          wrong += std::isfinite(got[at]);
        } else if (t == 8) {
          wrong += !std::isnan(got[at]);
        } else if (!(std::fabs(got[at] - want.sum[at]) <= bound * want.unit[at] + 0x1p-149)) {
          if (wrong++ == 0)
            MESSAGE("token ", t, " row ", r, ": ", got[at], " for ", want.sum[at], ", unit ",
                    want.unit[at]);
        }
      }
    }
    CAPTURE(to_string(type));
    CHECK(wrong == 0);
  }
}

TEST_CASE("a call of many tokens that cannot be is refused") {
  alignas(16) static std::uint8_t memory[64];
  bc::gemm_args good;
  good.matrices[0].w = {reinterpret_cast<std::uint32_t*>(memory),
                        reinterpret_cast<bitladder::fp16_t*>(memory),
                        {16, 64, 3},
                        1,
                        3};
  good.matrices[0].y = memory;
  good.x = memory;
  good.m = 20;
  const auto answer = [&](const bc::gemm_args& a) { return bc::detail::check_large_batch(3, a); };
  CHECK(answer(good) == status::ok);
  bc::gemm_args a = good;
  a.x = nullptr;
  CHECK(answer(a) == status::invalid_argument);
  a = good;
  a.m = 0;
  CHECK(answer(a) == status::invalid_argument);
  a = good;
  a.count = 5;
  CHECK(answer(a) == status::invalid_argument);
  a = good;
  a.x_type = dtype::f32;
  CHECK(answer(a) == status::invalid_argument);
  a = good;
  a.y_type = dtype::i8;
  CHECK(answer(a) == status::invalid_argument);
  a = good;
  a.matrices[0].w.bits = 4;
  CHECK(answer(a) == status::unsupported_bits);
  a = good;
  a.matrices[0].w.layout.planes = 2;
  CHECK(answer(a) == status::too_few_planes);
  a = good;
  a.matrices[0].w.layout.cols = 48;
  CHECK(answer(a) == status::invalid_argument);
  a = good;
  a.matrices[0].y = nullptr;
  CHECK(answer(a) == status::invalid_argument);
  a = good;
  a.x = memory + 2;
  CHECK(answer(a) == status::misaligned);
  a = good;
  a.x_stride = 68;
  CHECK(answer(a) == status::misaligned);
  a = good;
  a.y_stride = 15;
  CHECK(answer(a) == status::shape_mismatch);
  a = good;
  a.epilogue = bc::gemm_epilogue::swiglu;
  CHECK(answer(a) == status::invalid_argument);
  a = good;
  a.matrices[0].w.groups = 2;
  CHECK(answer(a) == status::invalid_argument);
  // These come before a device is asked.
  CHECK(bc::detail::run_large_batch<3>(good, {}, false, nullptr, 0, nullptr) ==
        status::invalid_argument);
  CHECK(bc::detail::run_large_batch<3>(good, {}, false, memory, 16, nullptr) ==
        status::invalid_argument);
}

}  // namespace
