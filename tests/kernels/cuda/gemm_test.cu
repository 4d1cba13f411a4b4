// SPDX-License-Identifier: MIT
// Products on the card against double sums over the host's planes and tables: every precision,
// batch and shape, what becomes of the sums, and that a row's bits depend on nothing but the row
// and the token. Seeds 811 to 819. Numbers that are hard to sum are in gemm_bounds_test.cu.
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>

#include <support/has_device.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <kernels/cuda/gemm_cases.cuh>
#include <string>
#include <vector>

namespace {

using namespace gemm_cases;

/// What the float sum of a row may be off by, for random numbers, in units of |x| times the row's
/// rms weight. Products of two fp16 are exact in float. A column tile's chain cuts 16 sums, each up
/// to 2^-23 of it if the tensor core drops what lies below; all to one side, so that the chains of
/// a row, |x| rms long together, lose up to 8 * 2^-23 = 1e-6 of that on average. Terms that are cut
/// before they are added, the tree and the groups are some roundings more: five times as much is
/// never seen, and a column left out is a thousand times as much.
constexpr double bound = 5e-6;
// The kernel that a lone token may take counts exactly and sums in double: what it loses is the
// rounding of activations to 24 bits of the largest of 1024, less than the above; for their
// rounding to 16 bits, where it is done, `expected` makes room.

double rounding_of(double v) { return std::fabs(v) * 0x1p-24; }

/// y = x w + bias + residual, as the sums are defined.
struct epilogue {
  const numbers* bias = nullptr;
  const numbers* residual = nullptr;  ///< [m, rows]
  const results* in_place = nullptr;

  double want(double sum, int token, int row) const {
    if (bias != nullptr) sum += bias->at(0, row);
    return sum + residue(token, row);
  }
  double residue(int token, int row) const {
    if (in_place != nullptr) return in_place->before(token, row);
    return residual != nullptr ? residual->at(token, row) : 0;
  }
  /// Both additions round.
  double allowed(double sum, int token, int row) const {
    const double all = want(sum, token, row);
    return rounding_of(all - residue(token, row)) + rounding_of(all);
  }
};

dtype any(support::random& rng, std::initializer_list<dtype> types) {
  return *(types.begin() + rng.below(static_cast<int>(types.size())));
}
dtype any_x(support::random& rng) { return any(rng, {dtype::f16, dtype::bf16}); }
dtype any_y(support::random& rng) { return any(rng, {dtype::f16, dtype::bf16, dtype::f32}); }

/// One product with types, strides, bias and residual at random; "" if right.
std::string random_product(int bits, int m, const weights& w, bool invariant,
                           support::random& rng) {
  const int rows = w.rows, cols = w.cols;
  const numbers x(any_x(rng), m, cols, cols + 8 * rng.below(3), rng);
  results y(any_y(rng), m, rows, rng.below(4), rng);
  const numbers bias(y.type, 1, rows, rows, rng), residual(y.type, m, rows, y.stride, rng);
  epilogue e;
  if (rng.below(2) == 0) e.bias = &bias;
  const int what = rng.below(3);
  if (what == 1) e.residual = &residual;
  if (what == 2) e.in_place = &y;
  bc::gemm_args a = arguments(x, m, y.type, y.stride);
  a.batch_invariant = invariant;
  a.matrices[0].w = w.device.view(bits);
  a.matrices[0].y = y.data();
  if (e.bias != nullptr) a.matrices[0].bias = bias.device.data();
  if (what != 0) a.matrices[0].residual = what == 1 ? residual.device.data() : y.data();
  call(bits, a);
  const expected want(x, w, bits, !invariant);
  const auto at = [&](int token, int row) { return size(token) * size(rows) + size(row); };
  const std::string found = faults(
      y, [&](int token, int row) { return e.want(want.sum[at(token, row)], token, row); },
      [&](int token, int row) {
        return bound * want.unit[at(token, row)] + e.allowed(want.sum[at(token, row)], token, row);
      });
  if (found.empty()) return "";
  return std::string(to_string(x.type)) + " to " + to_string(y.type) + ", " +
         std::to_string(w.device.layout().planes) + " planes, x stride " +
         std::to_string(x.stride - cols) + " more, bias " + std::to_string(e.bias != nullptr) +
         ", residual " + std::to_string(what) + ": " + found;
}

TEST_CASE("products of every precision, batch and shape agree with double sums" *
          doctest::skip(!support::has_device())) {
  support::random rng(811);
  const int rows_of[] = {1, 15, 16, 17, 100};
  const int cols_of[] = {32, 96, 256, 288, 1056, 4096, 4128, 8224};
  int turn = 0;
  for (int bits = 1; bits <= 8; ++bits) {
    for (int c = 0; c < 8; ++c) {
      const int cols = cols_of[c];
      // Each precision meets every batch from 1 to 16, each number of columns most of them.
      const int narrow = 2 + (3 * c + bits) % 7, wide = 9 + (3 * c + bits) % 8;
      const int many[] = {17, 33, 64};
      for (const int m : {1, narrow, wide, many[(c + bits) % 3]}) {
        const int rows = rows_of[turn++ % 5];
        CAPTURE(bits);
        CAPTURE(m);
        CAPTURE(rows);
        CAPTURE(cols);
        const weights w(rows, cols, bits + rng.below(9 - bits), rng);
        CHECK(random_product(bits, m, w, true, rng) == "");
        if (m == 1 || m == wide) CHECK(random_product(bits, m, w, false, rng) == "");
      }
    }
  }
}

TEST_CASE("products of many row tiles agree with double sums" *
          doctest::skip(!support::has_device())) {
  // More row tiles than blocks are resident: a block takes several, of unequal number.
  support::random rng(812);
  const weights w(5003, 96, 8, rng);
  for (int bits = 1; bits <= 8; ++bits) {
    for (const int m : {1, 6, 13}) {
      CAPTURE(bits);
      CAPTURE(m);
      CHECK(random_product(bits, m, w, true, rng) == "");
      if (m == 1) CHECK(random_product(bits, m, w, false, rng) == "");
    }
  }
}

TEST_CASE("tables of column groups are served too" * doctest::skip(!support::has_device())) {
  support::random rng(813);
  for (int bits = 1; bits <= 8; ++bits) {
    for (const int groups : {3, 9, 96}) {
      const weights w(groups == 96 ? 5 : 33, 288, bits, rng, groups);
      for (const int m : {1, 2, 5, 17}) {
        CAPTURE(bits);
        CAPTURE(m);
        CAPTURE(groups);
        CHECK(random_product(bits, m, w, m % 2 == 0, rng) == "");
      }
    }
  }
}

TEST_CASE("two to four matrices of different rows share the activations" *
          doctest::skip(!support::has_device())) {
  support::random rng(814);
  const int rows_of[] = {100, 1, 33, 16};
  for (int bits = 1; bits <= 8; ++bits) {
    const int cols = bits % 2 == 0 ? 1056 : 4416;  // 11 and 46 times 96
    for (const int m : {1, 8, 16, 20}) {
      const int count = 2 + rng.below(3), stride = 103;
      const numbers x(any_x(rng), m, cols, cols + 8, rng);
      const dtype type = any_y(rng);
      std::vector<weights> w;
      std::vector<results> y;
      for (int i = 0; i < count; ++i) {
        // One of them with column groups sends all of them another way.
        const int groups = m == 8 && i == 1 ? cols / 96 : 1;
        w.emplace_back(rows_of[i], cols, 8, rng, groups);
        y.emplace_back(type, m, rows_of[i], stride - rows_of[i], rng);
      }
      const numbers bias(type, 1, 100, 100, rng);
      bc::gemm_args a = arguments(x, m, type, stride);
      a.count = count;
      a.pdl = rng.below(2) == 0;
      std::vector<epilogue> e(size(count));
      for (int i = 0; i < count; ++i) {
        a.matrices[i].w = w[size(i)].device.view(bits);
        a.matrices[i].y = y[size(i)].data();
      }
      a.matrices[0].bias = bias.device.data();
      a.matrices[1].residual = y[1].data();
      e[0].bias = &bias;
      e[1].in_place = &y[1];
      call(bits, a);
      for (int i = 0; i < count; ++i) {
        CAPTURE(bits);
        CAPTURE(m);
        CAPTURE(count);
        CAPTURE(i);
        const expected want(x, w[size(i)], bits, true);
        const auto at = [&](int token, int row) {
          return size(token) * size(rows_of[i]) + size(row);
        };
        CHECK(faults(
                  y[size(i)],
                  [&](int token, int row) {
                    return e[size(i)].want(want.sum[at(token, row)], token, row);
                  },
                  [&](int token, int row) {
                    return bound * want.unit[at(token, row)] +
                           e[size(i)].allowed(want.sum[at(token, row)], token, row);
                  }) == "");
      }
    }
  }
}

TEST_CASE("SwiGLU is silu of the first product times the second" *
          doctest::skip(!support::has_device())) {
  support::random rng(815);
  const int rows_of[] = {1, 16, 33, 100}, cols_of[] = {96, 1056, 8224};
  int turn = 0;
  for (int bits = 1; bits <= 8; ++bits) {
    for (const int m : {1, 1, 6, 16, 17}) {
      const int rows = rows_of[turn % 4], cols = cols_of[turn % 3];
      const bool invariant = turn++ % 5 != 0;  // the first of the two lone tokens is not
      const weights gate(rows, cols, 8, rng), up(rows, cols, bits, rng);
      const numbers x(any_x(rng), m, cols, cols, rng);
      results y(any_y(rng), m, rows, 3, rng), second(y.type, m, rows, 3, rng);
      const numbers bias(y.type, 2, rows, rows, rng);
      const bool biased = rng.below(2) == 0, residual = rng.below(2) == 0;
      bc::gemm_args a = arguments(x, m, y.type, y.stride);
      a.batch_invariant = invariant;
      a.count = 2;
      a.epilogue = bc::gemm_epilogue::swiglu;
      a.matrices[0].w = gate.device.view(bits);
      a.matrices[0].y = y.data();
      a.matrices[1].w = up.device.view(bits);
      a.matrices[1].y = rng.below(2) == 0 ? second.data() : nullptr;
      if (biased) {
        a.matrices[0].bias = bias.device.data();
        a.matrices[1].bias = bias.device.data() + size(rows) * size_of(y.type);
      }
      if (residual) a.matrices[0].residual = y.data();
      call(bits, a);
      const expected g(x, gate, bits, !invariant), u(x, up, bits, !invariant);
      struct parts {
        double gate, up, silu, gate_room, up_room, residual;
      };
      const auto parts_of = [&](int token, int row) {
        const std::size_t i = size(token) * size(rows) + size(row);
        parts p;
        p.gate = g.sum[i] + (biased ? bias.at(0, row) : 0);
        p.up = u.sum[i] + (biased ? bias.at(1, row) : 0);
        p.silu = p.gate / (1 + std::exp(-p.gate));
        const double unit = bound;
        p.gate_room = unit * g.unit[i] + rounding_of(p.gate);
        p.up_room = unit * u.unit[i] + rounding_of(p.up);
        p.residual = residual ? y.before(token, row) : 0;
        return p;
      };
      CAPTURE(bits);
      CAPTURE(m);
      CAPTURE(rows);
      CAPTURE(cols);
      CAPTURE(invariant);
      CAPTURE(biased);
      CAPTURE(residual);
      CAPTURE(to_string(y.type));
      CHECK(faults(
                y,
                [&](int token, int row) {
                  const parts p = parts_of(token, row);
                  return p.silu * p.up + p.residual;
                },
                [&](int token, int row) {
                  const parts p = parts_of(token, row);
                  // silu is nowhere steeper than 1.1. expf is good to 2 units in the last place, a
                  // sum, a division and a product round.
                  return 1.1 * p.gate_room * (std::fabs(p.up) + p.up_room) +
                         std::fabs(p.silu) * p.up_room + 8 * rounding_of(p.silu * p.up) +
                         rounding_of(p.silu * p.up + p.residual);
                }) == "");
      CHECK(second.download() == second.values);  // only the first has results
    }
  }
}

/// Three matrices, 16 tokens, and calls for parts of them.
struct layers {
  static constexpr int rows_of[3] = {33, 100, 5};
  static constexpr int tokens = 16;
  int bits;
  numbers x;
  std::vector<weights> w;
  support::random& rng;

  layers(int b, int cols, support::random& r)
      : bits(b), x(b % 3 == 0 ? dtype::bf16 : dtype::f16, tokens, cols, cols + 8, r), rng(r) {
    for (const int rows : rows_of) w.emplace_back(rows, cols, 8, r);
  }
  /// Results of matrices first .. first + count - 1 for tokens from .. from + m - 1, in one call.
  std::vector<std::vector<float>> run(int first, int count, int from, int m, bool invariant = true,
                                      bool pdl = false) {
    std::vector<results> y;
    for (int i = 0; i < count; ++i)
      y.emplace_back(dtype::f32, m, rows_of[first + i], 100 - rows_of[first + i], rng);
    bc::gemm_args a = arguments(x, m, dtype::f32, 100);
    a.x = x.device.data() + size(from) * size(x.stride) * 2;
    a.count = count;
    a.pdl = pdl;
    a.batch_invariant = invariant;
    for (int i = 0; i < count; ++i)
      a.matrices[i] = {w[size(first + i)].device.view(bits), y[size(i)].data()};
    call(bits, a);
    std::vector<std::vector<float>> out;
    for (const results& r : y) out.push_back(r.now());
    return out;
  }
};

/// Whether tokens from .. from + m - 1 of `all` are `part`.
bool is_part(const std::vector<float>& all, const std::vector<float>& part, int rows, int from,
             int m) {
  if (part.size() != size(m) * size(rows)) return false;
  return std::equal(part.begin(), part.end(), all.begin() + from * rows,
                    [](float a, float b) { return support::same_bits(a, b); });
}

TEST_CASE("a token has the same bits in every batch up to 16, every fusion and every run" *
          doctest::skip(!support::has_device())) {
  support::random rng(816);
  for (int bits = 1; bits <= 8; ++bits) {
    for (const int cols : {bits % 2 == 0 ? 288 : 1056, 8224}) {
      layers l(bits, cols, rng);
      const std::vector<std::vector<float>> all = l.run(0, 3, 0, 16);
      for (int m = 1; m <= 16; ++m) {
        const int from = (16 - m) / 2;
        CAPTURE(bits);
        CAPTURE(cols);
        CAPTURE(m);
        const std::vector<std::vector<float>> fused = l.run(0, 3, from, m, true, m % 2 == 0);
        for (int i = 0; i < 3; ++i) {
          CAPTURE(i);
          const int rows = layers::rows_of[i];
          CHECK(is_part(all[size(i)], fused[size(i)], rows, from, m));
          CHECK(is_part(all[size(i)], l.run(i, 1, from, m)[0], rows, from, m));
        }
      }
    }
  }
}

TEST_CASE("a lone token that takes the fastest kernel has the same bits in every fusion and run" *
          doctest::skip(!support::has_device())) {
  support::random rng(817);
  for (int bits = 1; bits <= 8; ++bits) {
    for (const int cols : {32, 1056, 8224}) {
      layers l(bits, cols, rng);
      CAPTURE(bits);
      CAPTURE(cols);
      const std::vector<std::vector<float>> fused = l.run(0, 3, 2, 1, false);
      const std::vector<std::vector<float>> again = l.run(0, 3, 2, 1, false, true);
      for (int i = 0; i < 3; ++i) {
        CAPTURE(i);
        const int rows = layers::rows_of[i];
        CHECK(is_part(fused[size(i)], again[size(i)], rows, 0, 1));
        CHECK(is_part(fused[size(i)], l.run(i, 1, 2, 1, false)[0], rows, 0, 1));
      }
    }
  }
}

TEST_CASE("the short forms are the same calls" * doctest::skip(!support::has_device())) {
  support::random rng(818);
  const int rows = 33, cols = 288, m = 5;
  const weights w(rows, cols, 8, rng);
  const numbers x(dtype::f16, m, cols, cols, rng);
  const auto* const from = reinterpret_cast<const __half*>(x.device.data());
  const auto each = [&](auto b) {
    constexpr int bits = decltype(b)::value;
    CAPTURE(bits);
    results y(dtype::f32, m, rows, 0, rng), same(dtype::f32, m, rows, 0, rng);
    bc::gemm_args a = arguments(x, m, dtype::f32, rows);
    a.matrices[0] = {w.device.view(bits), y.data()};
    call(bits, a);
    REQUIRE(gemm_at<bits>(w.device.view(bits), from, m, reinterpret_cast<float*>(same.data()),
                          nullptr, 0, nullptr) == status::ok);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(is_part(y.now(), same.now(), rows, 0, m));

    results one(dtype::f32, 1, rows, 0, rng), alone(dtype::f32, 1, rows, 0, rng);
    a.m = 1;
    a.batch_invariant = false;
    a.matrices[0].y = one.data();
    call(bits, a);
    REQUIRE(gemv_at<bits>(w.device.view(bits), from, reinterpret_cast<float*>(alone.data()),
                          nullptr) == status::ok);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(is_part(one.now(), alone.now(), rows, 0, 1));
    return status::ok;
  };
  for (int bits = 1; bits <= 8; ++bits)
    REQUIRE(bitladder::dispatch_bits(bits, bitladder::all_bits{}, each) == status::ok);
}

/// y = w2 (w1 x), the second product starting while the first may still run.
struct chain {
  int bits, m;
  results between, y;
  bc::buffer<std::uint8_t> scratch;
  bc::gemm_args first, second;

  /// @param w1 rows a multiple of 8, so that tokens of what it gives are aligned
  chain(int b, int tokens, const numbers& x, const weights& w1, const weights& w2, bool pdl,
        bool invariant, support::random& rng)
      : bits(b),
        m(tokens),
        between(dtype::f16, m, w1.rows, 0, rng),
        y(dtype::f32, m, w2.rows, 0, rng),
        first(arguments(x, m, dtype::f16, w1.rows)),
        second(first) {
    first.matrices[0] = {w1.device.view(bits), between.data()};
    second.x = between.data();
    second.x_stride = w1.rows;
    second.y_type = dtype::f32;
    second.y_stride = w2.rows;
    second.matrices[0] = {w2.device.view(bits), y.data()};
    first.pdl = second.pdl = pdl;
    first.batch_invariant = second.batch_invariant = invariant;
    const std::size_t bytes =
        std::max(bc::gemm_workspace_bytes(first), bc::gemm_workspace_bytes(second));
    REQUIRE(scratch.allocate(bytes) == status::ok);
    if (bytes > 0) REQUIRE(cudaMemset(scratch.data(), 0xff, bytes) == cudaSuccess);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    first.workspace = second.workspace = scratch.data();
    first.workspace_bytes = second.workspace_bytes = bytes;
  }
  status queue(cudaStream_t stream) {
    const status s = gemm_at(bits, first, stream);
    return s == status::ok ? gemm_at(bits, second, stream) : s;
  }
};

TEST_CASE("calls can be captured, replayed and overlapped" *
          doctest::skip(!support::has_device())) {
  cudaStream_t stream;
  REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  support::random rng(819);
  const weights w1(288, 4352, 8, rng), w2(50, 288, 8, rng);
  const numbers x(dtype::f16, 40, 4352, 4352, rng);
  for (int bits = 1; bits <= 8; ++bits) {
    for (const int m : {-1, 1, 7, 16, 40}) {  // -1: one token by the fastest kernel
      const int tokens = std::abs(m);
      CAPTURE(bits);
      CAPTURE(m);
      chain plain(bits, tokens, x, w1, w2, false, m != -1, rng);
      REQUIRE(plain.queue(stream) == status::ok);
      REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
      const std::vector<float> want = plain.y.now();

      chain overlapped(bits, tokens, x, w1, w2, true, m != -1, rng);
      for (int i = 0; i < 10; ++i) REQUIRE(overlapped.queue(stream) == status::ok);
      REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
      CHECK(is_part(want, overlapped.y.now(), w2.rows, 0, tokens));

      for (chain* c : {&plain, &overlapped}) {
        c->y.upload();  // away with what stands there
        REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t exec = nullptr;
        REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
        const status s = c->queue(stream);
        REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
        REQUIRE(s == status::ok);
        REQUIRE(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
        for (int i = 0; i < 3; ++i) REQUIRE(cudaGraphLaunch(exec, stream) == cudaSuccess);
        REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
        CHECK(is_part(want, c->y.now(), w2.rows, 0, tokens));
        REQUIRE(cudaGraphExecDestroy(exec) == cudaSuccess);
        REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
      }
    }
  }
  REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
}

}  // namespace
