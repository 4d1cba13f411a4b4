// SPDX-License-Identifier: MIT
// Weights back to numbers on the card, against the host's planes and tables: every value exactly,
// and nothing written beside them. Seeds 601 to 608.
#include <bitladder/core/dtype.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/dequantize.cuh>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include <support/has_device.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <kernels/cpu/fixture.hpp>
#include <string>
#include <type_traits>
#include <vector>

namespace {

namespace bc = bitladder::cuda;
using bitladder::dtype;
using bitladder::status;

template <int Bits>
using bits = std::integral_constant<int, Bits>;

std::size_t size(int n) { return static_cast<std::size_t>(n); }

/// The bits of a value as stored in a type.
std::uint32_t stored(dtype type, bitladder::fp16_t v) {
  if (type == dtype::f16) return v.bits;
  if (type == dtype::bf16) return bitladder::to_bf16(to_float(v)).bits;
  return bitladder::detail::bits_of(to_float(v));
}

struct window {
  int begin, count;
};

/// Rows `part` of the weights, in rows that are `pad` elements longer; "" if all is right.
template <int Bits>
std::string run(const support::quantized& host, const bc::packed_weights& w, int groups, dtype type,
                window part, int pad) {
  const int cols = w.layout().cols, stride = cols + pad;
  const int guard = 3;  // rows after the last that must stay
  const std::size_t bytes = size_of(type), count = size(part.count + guard) * size(stride);
  bc::buffer<std::uint8_t> out;
  REQUIRE(out.allocate(count * bytes) == status::ok);
  REQUIRE(cudaMemset(out.data(), 0xa5, count * bytes) == cudaSuccess);
  REQUIRE(bc::dequantize<Bits>(w.view(Bits), out.data(), type, part.begin, part.count,
                               pad == 0 ? 0 : stride, nullptr) == status::ok);
  std::vector<std::uint8_t> got(count * bytes);
  REQUIRE(cudaMemcpy(got.data(), out.data(), got.size(), cudaMemcpyDeviceToHost) == cudaSuccess);
  int wrong = 0, touched = 0;
  std::string first;
  for (int r = 0; r < part.count + guard; ++r) {
    for (int c = 0; c < stride; ++c) {
      std::uint32_t word = 0, want = 0xa5a5a5a5u >> (32 - 8 * static_cast<int>(bytes));
      std::memcpy(&word, &got[(size(r) * size(stride) + size(c)) * bytes], bytes);
      const bool inside = r < part.count && c < cols;
      if (inside)
        want = stored(type,
                      host.tables[Bits].table(
                          part.begin + r,
                          c / (cols / groups))[host.planes.view().code(part.begin + r, c, Bits)]);
      if (word == want) continue;
      ++(inside ? wrong : touched);
      if (first.empty())
        first = "row " + std::to_string(r) + " column " + std::to_string(c) + ": " +
                std::to_string(word) + " for " + std::to_string(want);
    }
  }
  if (first.empty()) return "";
  return std::to_string(wrong) + " wrong, " + std::to_string(touched) + " touched, first " + first;
}

TEST_CASE_TEMPLATE("every weight comes back as its table has it", Bits, bits<1>, bits<2>, bits<3>,
                   bits<4>, bits<5>, bits<6>, bits<7>, bits<8>) {
  if (!support::has_device()) return;  // TEST_CASE_TEMPLATE takes no skip()
  support::random rng(600 + Bits::value);
  for (const int rows : {1, 16, 17, 63, 100}) {
    for (const int cols : {32, 224, 256, 288, 1056, 4096}) {
      if (rows > 17 && cols > 1056) continue;  // the host's part takes its time
      for (const int groups : {1, 2, 4}) {
        if (cols % groups != 0 || cols / groups % 32 != 0) continue;
        const support::quantized host(rows, cols, 8, groups, rng);
        bc::packed_weights w;
        REQUIRE(w.upload(host.planes.view(), host.tables, nullptr) == status::ok);
        for (const dtype type : {dtype::f16, dtype::bf16, dtype::f32}) {
          CAPTURE(Bits::value);
          CAPTURE(rows);
          CAPTURE(cols);
          CAPTURE(groups);
          CAPTURE(to_string(type));
          CHECK(run<Bits::value>(host, w, groups, type, {0, rows}, 0) == "");
          CHECK(run<Bits::value>(host, w, groups, type, {0, rows}, 8) == "");
          if (rows > 16) {
            CHECK(run<Bits::value>(host, w, groups, type, {16, rows - 16}, 0) == "");
            CHECK(run<Bits::value>(host, w, groups, type, {0, 5}, 8) == "");
          }
          if (rows > 48) CHECK(run<Bits::value>(host, w, groups, type, {32, 9}, 0) == "");
        }
      }
    }
  }
}

TEST_CASE("a precision known at run time gives the same" * doctest::skip(!support::has_device())) {
  support::random rng(609);
  const support::quantized host(16, 32, 8, 1, rng);
  bc::packed_weights w;
  REQUIRE(w.upload(host.planes.view(), host.tables, nullptr) == status::ok);
  bc::buffer<std::uint16_t> out;
  REQUIRE(out.allocate(16 * 32) == status::ok);
  for (int b = 1; b <= 8; ++b) {
    REQUIRE(bc::dequantize(b, w.view(b), out.data(), dtype::f16, 0, 16, 0, nullptr) == status::ok);
    std::vector<std::uint16_t> got(out.size());
    REQUIRE(out.download(got.data(), got.size(), nullptr) == status::ok);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    int wrong = 0;
    for (int r = 0; r < 16; ++r)
      for (int c = 0; c < 32; ++c)
        wrong +=
            got[size(r * 32 + c)] != host.tables[b].table(r)[host.planes.view().code(r, c, b)].bits;
    CHECK(wrong == 0);
  }
  CHECK(bc::dequantize(9, w.view(8), out.data(), dtype::f16, 0, 16, 0, nullptr) ==
        status::unsupported_bits);
}

TEST_CASE("what cannot be dequantized is refused") {
  alignas(16) static std::uint8_t memory[64];
  const bc::packed_view good{reinterpret_cast<std::uint32_t*>(memory),
                             reinterpret_cast<bitladder::fp16_t*>(memory),
                             {40, 64, 3},
                             1,
                             3};
  const auto answer = [&](const bc::packed_view& w, void* out, dtype type, int begin, int count,
                          std::int64_t stride) {
    return bc::dequantize<3>(w, out, type, begin, count, stride, nullptr);
  };
  bc::packed_view w = good;
  w.bits = 4;
  CHECK(answer(w, memory, dtype::f16, 0, 16, 0) == status::unsupported_bits);
  w = good;
  w.layout.planes = 2;
  CHECK(answer(w, memory, dtype::f16, 0, 16, 0) == status::too_few_planes);
  w = good;
  w.planes = nullptr;
  CHECK(answer(w, memory, dtype::f16, 0, 16, 0) == status::invalid_argument);
  w = good;
  w.groups = 4;  // of 16 columns
  CHECK(answer(w, memory, dtype::f16, 0, 16, 0) == status::shape_mismatch);
  CHECK(answer(good, nullptr, dtype::f16, 0, 16, 0) == status::invalid_argument);
  CHECK(answer(good, memory, dtype::i8, 0, 16, 0) == status::invalid_argument);
  CHECK(answer(good, memory, dtype::f16, 8, 16, 0) == status::invalid_argument);
  CHECK(answer(good, memory, dtype::f16, 32, 9, 0) == status::invalid_argument);
  CHECK(answer(good, memory, dtype::f16, 48, 1, 0) == status::invalid_argument);
  CHECK(answer(good, memory, dtype::f16, 0, 0, 0) == status::invalid_argument);
  CHECK(answer(good, memory, dtype::f16, 0, 16, 56) == status::shape_mismatch);
  CHECK(answer(good, memory, dtype::f16, 0, 16, 68) == status::misaligned);
  CHECK(answer(good, memory + 8, dtype::f16, 0, 16, 0) == status::misaligned);
}

}  // namespace
