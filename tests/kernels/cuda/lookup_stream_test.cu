// SPDX-License-Identifier: MIT
// The lookup kernel for one token whose warps never meet, called directly, because gemm.cuh leaves
// to it only matrices of many rows. A card that says it has few multiprocessors gives a block many
// units, so that every slot for a table changes hands. Seeds 841
// to 845.
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/detail/lookup_stream_launch.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>

#include <support/has_device.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <kernels/cuda/gemm_cases.cuh>
#include <string>
#include <vector>

namespace {

using namespace gemm_cases;

/// As in gemm_test.cu, in units of |x| times the row's rms weight: a column tile is two chains of 8
/// steps here, and tiles are added one after the other.
constexpr double bound = 5e-6;

double rounding_of(double v) { return std::fabs(v) * 0x1p-24; }

status launch_at(int bits, const bc::gemm_args& a, int multiprocessors) {
  bc::device_properties device;
  const status s = bc::properties(device);
  if (s != status::ok) return s;
  device.multiprocessors = multiprocessors;
  switch (bits) {
    case 5: return bc::detail::launch_lookup_stream<5>(a, device, nullptr);
    case 6: return bc::detail::launch_lookup_stream<6>(a, device, nullptr);
    case 7: return bc::detail::launch_lookup_stream<7>(a, device, nullptr);
    default: return bc::detail::launch_lookup_stream<8>(a, device, nullptr);
  }
}

void call_at(int bits, const bc::gemm_args& a, int multiprocessors) {
  REQUIRE(launch_at(bits, a, multiprocessors) == status::ok);
  const cudaError_t after = cudaDeviceSynchronize();
  INFO(std::string(cudaGetErrorString(after)));
  REQUIRE(after == cudaSuccess);
}

/// Whether a block has room on this card: four tables of 8 bits take 128 KiB.
bool has_room() {
  bc::device_properties device;
  return support::has_device() && bc::properties(device) == status::ok &&
         device.shared_bytes_per_block >= 227 * 1024;
}

TEST_CASE("a warp's items of every shape add up to double sums" * doctest::skip(!has_room())) {
  support::random rng(841);
  const int rows_of[] = {1, 16, 100, 399}, cols_of[] = {3104, 4096, 4128, 8224, 11008};
  int turn = 0;
  for (const int bits : {5, 6, 7, 8}) {
    for (const int given : cols_of) {
      const int cols = bits == 8 ? std::max(given, 3616) : given;  // 8 items fill a table of 8 bits
      for (const int multiprocessors : {1, 3}) {
        // Sums of many units beside tables of 8 bits are too much for one block.
        const int rows = std::min(rows_of[turn++ % 4], bits == 8 ? 100 : 399);
        CAPTURE(bits);
        CAPTURE(rows);
        CAPTURE(cols);
        CAPTURE(multiprocessors);
        const dtype x_type = rng.below(2) == 0 ? dtype::f16 : dtype::bf16;
        const weights w(rows, cols, bits + rng.below(9 - bits), rng);
        const numbers x(x_type, 1, cols, cols, rng);
        results y(dtype::f32, 1, rows, 3, rng);
        const numbers bias(y.type, 1, rows, rows, rng);
        bc::gemm_args a = arguments(x, 1, y.type, y.stride);
        a.matrices[0] = {w.device.view(bits), y.data(), bias.device.data()};
        call_at(bits, a, multiprocessors);
        const expected want(x, w, bits);
        CHECK(faults(
                  y, [&](int, int row) { return want.sum[size(row)] + bias.at(0, row); },
                  [&](int, int row) {
                    return bound * want.unit[size(row)] +
                           rounding_of(want.sum[size(row)] + bias.at(0, row));
                  }) == "");
      }
    }
  }
}

TEST_CASE("a warp's items make the same bits whatever the blocks, the fusion and the run" *
          doctest::skip(!has_room())) {
  support::random rng(842);
  const int rows_of[] = {300, 33, 150};
  for (const int bits : {5, 6, 7, 8}) {
    const int cols = 4416;
    const numbers x(bits == 5 ? dtype::f16 : dtype::bf16, 1, cols, cols, rng);
    std::vector<weights> w;
    for (const int rows : rows_of) w.emplace_back(rows, cols, 8, rng);
    const auto run = [&](int first, int count, int multiprocessors) {
      std::vector<results> y;
      for (int i = first; i < first + count; ++i)
        y.emplace_back(dtype::f32, 1, rows_of[i], 300 - rows_of[i], rng);
      bc::gemm_args a = arguments(x, 1, dtype::f32, 300);
      a.count = count;
      for (int i = 0; i < count; ++i)
        a.matrices[i] = {w[size(first + i)].device.view(bits), y[size(i)].data()};
      call_at(bits, a, multiprocessors);
      std::vector<std::vector<float>> out;
      for (const results& r : y) out.push_back(r.now());
      return out;
    };
    const std::vector<std::vector<float>> all = run(0, 3, 1);
    for (const int multiprocessors : {1, 2, 5, 132}) {
      CAPTURE(bits);
      CAPTURE(multiprocessors);
      const std::vector<std::vector<float>> again = run(0, 3, multiprocessors);
      for (int i = 0; i < 3; ++i) {
        CAPTURE(i);
        const auto same = [](float a, float b) { return support::same_bits(a, b); };
        const std::vector<float>& v = all[size(i)];
        const std::vector<float> alone = run(i, 1, multiprocessors)[0];
        REQUIRE(v.size() == size(rows_of[i]));
        CHECK(std::equal(v.begin(), v.end(), again[size(i)].begin(), same));
        CHECK(std::equal(v.begin(), v.end(), alone.begin(), same));
      }
    }
  }
}

TEST_CASE("a warp's items of two matrices make SwiGLU" * doctest::skip(!has_room())) {
  support::random rng(843);
  for (const int bits : {5, 6, 7, 8}) {
    for (const int multiprocessors : {1, 4}) {
      const int rows = 203, cols = 4128;
      CAPTURE(bits);
      CAPTURE(multiprocessors);
      const weights gate(rows, cols, 8, rng), up(rows, cols, bits, rng);
      const numbers x(dtype::f16, 1, cols, cols, rng);
      results y(dtype::f32, 1, rows, 3, rng);
      bc::gemm_args a = arguments(x, 1, y.type, y.stride);
      a.count = 2;
      a.epilogue = bc::gemm_epilogue::swiglu;
      a.matrices[0] = {gate.device.view(bits), y.data()};
      a.matrices[1] = {up.device.view(bits), nullptr};
      call_at(bits, a, multiprocessors);
      const expected g(x, gate, bits), u(x, up, bits);
      const auto silu = [&](int row) {
        return g.sum[size(row)] / (1 + std::exp(-g.sum[size(row)]));
      };
      CHECK(faults(
                y, [&](int, int row) { return silu(row) * u.sum[size(row)]; },
                [&](int, int row) {
                  // The slope of silu is below 1.1; expf and the division round some times.
                  const double s = silu(row), up_sum = u.sum[size(row)];
                  const double gate_room = 1.1 * bound * g.unit[size(row)] + std::fabs(s) * 0x1p-20;
                  const double up_room = bound * u.unit[size(row)];
                  return gate_room * std::fabs(up_sum) + std::fabs(s) * up_room +
                         gate_room * up_room + rounding_of(s * up_sum);
                }) == "");
    }
  }
}

/// `count` random numbers on the card, the same 64 Ki again and again.
template <class T, class Make>
bc::buffer<T> random_buffer(std::size_t count, Make&& make) {
  std::vector<T> some(size(65536));
  for (T& v : some) v = make();
  bc::buffer<T> b;
  REQUIRE(b.allocate(count) == status::ok);
  for (std::size_t i = 0; i < count; i += some.size())
    REQUIRE(cudaMemcpy(b.data() + i, some.data(), std::min(some.size(), count - i) * sizeof(T),
                       cudaMemcpyHostToDevice) == cudaSuccess);
  return b;
}

TEST_CASE("a lone token whose bits need not be those of a batch goes this way for many rows" *
          doctest::skip(!has_room())) {
  support::random rng(845);
  bc::device_properties device;
  REQUIRE(bc::properties(device) == status::ok);
  const bc::packed_layout layout{8 * device.multiprocessors * bc::packed_layout::tile_rows, 4096,
                                 8};
  const auto planes = random_buffer<std::uint32_t>(layout.total_words(), [&] {
    return static_cast<std::uint32_t>(rng.below(65536)) << 16 |
           static_cast<std::uint32_t>(rng.below(65536));
  });
  const numbers x(dtype::f16, 1, layout.cols, layout.cols, rng);
  for (const int bits : {5, 6, 7, 8}) {
    CAPTURE(bits);
    const bc::packed_table_layout entries{layout.rows, 1, bits};
    const auto tables = random_buffer<bitladder::fp16_t>(entries.total_entries(), [&] {
      return bitladder::to_fp16(static_cast<float>(rng.below(2001) - 1000) / 1000.f);
    });
    bc::buffer<float> y;
    REQUIRE(y.allocate(size(2 * layout.rows)) == status::ok);
    bc::gemm_args a = arguments(x, 1, dtype::f32, 0);
    a.matrices[0].w = {planes.data(), tables.data(), layout, 1, bits, {}};
    a.batch_invariant = false;
    a.matrices[0].y = y.data();
    call(bits, a);
    a.matrices[0].y = y.data() + layout.rows;
    call_at(bits, a, 24);
    std::vector<float> got(size(2 * layout.rows));
    REQUIRE(cudaMemcpy(got.data(), y.data(), got.size() * sizeof(float), cudaMemcpyDeviceToHost) ==
            cudaSuccess);
    CHECK(std::equal(got.begin(), got.begin() + layout.rows, got.begin() + layout.rows,
                     [](float v, float w) { return support::same_bits(v, w); }));
  }
}

TEST_CASE("rows too short to fill their tables are left to the other kernel" *
          doctest::skip(!has_room())) {
  support::random rng(844);
  const weights w(20, 3072, 8, rng);
  const numbers x(dtype::f16, 1, 3072, 3072, rng);
  results y(dtype::f32, 1, 20, 0, rng);
  bc::gemm_args a = arguments(x, 1, y.type, y.stride);
  for (const int bits : {5, 6, 7, 8}) {
    a.matrices[0] = {w.device.view(bits), y.data()};
    CHECK(launch_at(bits, a, 1) == status::unsupported_device);
  }
}

}  // namespace
