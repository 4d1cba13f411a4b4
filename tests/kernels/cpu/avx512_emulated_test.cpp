// SPDX-License-Identifier: MIT
// The AVX-512 kernels with every instruction emulated, so that they are tested on any x86-64 with
// AVX2. Where the machine has AVX-512, gemv_test.cpp runs the real ones too. Seeds 71 to 73.
#if (defined(__x86_64__) || defined(__amd64__)) && (defined(__GNUC__) || defined(__clang__))
// clang-format off: this one comes first
#include "avx512_emulation.hpp"
// clang-format on

#include <bitladder/kernels/cpu/detail/avx512_gemv.hpp>
#include <bitladder/kernels/cpu/detail/scratch.hpp>
#include <bitladder/kernels/cpu/reference.hpp>

#include "fixture.hpp"
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace cpu = bitladder::cpu;
using cpu::isa;

namespace {

template <int Bits, isa Use>
std::vector<float> gemv(const bitladder::bitplane_view& w, const bitladder::codebook_view& tables,
                        const std::vector<float>& x) {
  using decoder = cpu::detail::avx512_decoder<Bits, Use>;
  const cpu::detail::scratch arranged(cpu::detail::padded(w.cols()));
  std::vector<float> y(static_cast<std::size_t>(w.rows()), NAN);
  cpu::detail::arrange_vector<decoder>(x.data(), w.cols(), arranged.data());
  cpu::detail::gemv_rows_avx512<decoder>(w, tables, arranged.data(), y.data(), 0, w.rows());
  return y;
}

template <int Bits>
void compare(const bitladder::bitplane_view& w, const bitladder::codebook_view& tables,
             const std::vector<float>& x) {
  std::vector<float> expected(static_cast<std::size_t>(w.rows()));
  cpu::reference::gemv(w, tables, x, expected);
  CAPTURE(w.rows());
  CAPTURE(w.cols());
  CAPTURE(tables.groups());
  CHECK(support::same_bits(gemv<Bits, isa::avx512>(w, tables, x), expected));
  CHECK(support::same_bits(gemv<Bits, isa::avx512_vbmi>(w, tables, x), expected));
}

bool runs_here() { return supported(isa::avx2); }

}  // namespace

TEST_CASE_TEMPLATE("the AVX-512 kernels give the reference's bits", B, ALL_BITS) {
  if (!runs_here()) return;
  support::random rng(71);
  for (int cols : {1, 31, 32, 33, 96, 511, 512, 513, 1000, 1056})
    for (int rows : {1, 3, 9}) {
      const support::quantized q(rows, cols, B::value, 1, rng);
      compare<B::value>(q.planes.view(), q.tables[B::value],
                        rng.normals(static_cast<std::size_t>(cols)));
    }
  // Column groups of whole words, and a parent with more planes than are read.
  for (int groups : {2, 3, 24}) {
    const support::quantized q(5, 768, 8, groups, rng);
    compare<B::value>(q.planes.view(), q.tables[B::value], rng.normals(768));
  }
}

TEST_CASE_TEMPLATE("they keep infinities, NaN, subnormals and the sign of zero", B, ALL_BITS) {
  if (!runs_here()) return;
  support::random rng(72);
  for (int cols : {33, 512, 1000}) {
    support::quantized q(6, cols, B::value, 1, rng);
    bitladder::fp16_t* table = q.tables.data(B::value);
    auto x = rng.normals(static_cast<std::size_t>(cols));
    for (std::size_t i = 0; i < q.tables[B::value].size(); i += 3)
      table[i] = {static_cast<std::uint16_t>(rng.below(1 << 16))};
    compare<B::value>(q.planes.view(), q.tables[B::value], x);
    x.back() = std::numeric_limits<float>::infinity();
    compare<B::value>(q.planes.view(), q.tables[B::value], x);
    for (std::size_t i = 0; i < q.tables[B::value].size(); ++i)
      table[i] = bitladder::to_fp16(0.05f);
    compare<B::value>(q.planes.view(), q.tables[B::value],
                      std::vector<float>(static_cast<std::size_t>(cols), -1e-45f));
  }
}

TEST_CASE_TEMPLATE("every entry of a table is found", B, ALL_BITS) {
  if (!runs_here()) return;
  support::random rng(73);
  constexpr int entries = 1 << B::value;
  // One column per row counts: the result is the entry itself.
  bitladder::codebook_ladder tables(entries, 1, B::value, B::value);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(entries) * 64);
  for (std::uint8_t& c : codes) c = static_cast<std::uint8_t>(rng.below(entries));
  for (std::size_t i = 0; i < tables[B::value].size(); ++i)
    tables.data(B::value)[i] = {static_cast<std::uint16_t>(rng.below(0x7c00))};
  std::vector<float> x(64, 0.0f);
  const int column = 45;
  x[column] = 1.0f;
  for (int r = 0; r < entries; ++r)
    codes[static_cast<std::size_t>(r) * 64 + column] = static_cast<std::uint8_t>(r);
  const auto planes = bitladder::pack(
      bitladder::matrix_view<const std::uint8_t>(codes.data(), entries, 64), B::value);
  compare<B::value>(planes.view(), tables[B::value], x);
  const auto y = gemv<B::value, isa::avx512_vbmi>(planes.view(), tables[B::value], x);
  for (int r = 0; r < entries; ++r)
    CHECK(y[static_cast<std::size_t>(r)] == to_float(tables[B::value].table(r)[r]));
}
#endif
