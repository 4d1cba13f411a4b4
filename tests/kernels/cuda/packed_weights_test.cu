// SPDX-License-Identifier: MIT
// Seed 22.
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/kernels/cuda/detail/decode.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/packed_weights.cuh>
#include <bitladder/kernels/cuda/repack.cuh>

#include <support/has_device.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

// Not in the unnamed namespace, where a kernel cannot be hidden: it is local already.
namespace packed_weights_test {

/// words: [threads][Bits] stored plane words; fields: [threads][words of the decoding].
template <int Bits>
BL_KERNEL merge_kernel(const std::uint32_t* words, std::uint32_t* fields) {
  constexpr int count = bitladder::cuda::detail::decoding<Bits>::words;
  std::uint32_t plane[Bits], field[count];
  for (int j = 0; j < Bits; ++j) plane[j] = words[threadIdx.x * Bits + j];
  bitladder::cuda::detail::merge<Bits>(plane, field);
  for (int r = 0; r < count; ++r) fields[threadIdx.x * count + r] = field[r];
}

}  // namespace packed_weights_test

namespace {

namespace bc = bitladder::cuda;
using bc::packed_layout;
using bc::packed_table_layout;
using bitladder::bitplane_layout;
using bitladder::bitplane_tensor;
using bitladder::bitplane_view;
using bitladder::codebook_ladder;
using bitladder::fp16_t;
using bitladder::status;

template <int Bits>
using bits = std::integral_constant<int, Bits>;

static_assert(!std::is_copy_constructible<bc::packed_weights>::value, "one owner");
static_assert(std::is_nothrow_move_constructible<bc::packed_weights>::value, "");
static_assert(std::is_nothrow_move_assignable<bc::packed_weights>::value, "");

bitplane_tensor random_planes(int rows, int cols, int planes, support::random& rng) {
  bitplane_tensor t(bitplane_layout{rows, cols, planes});
  for (std::size_t i = 0; i < t.layout().total_words(); ++i)
    t.data()[i] = static_cast<std::uint32_t>(rng.next());
  return t;
}

/// Any 16 bits but 0, which is what padding must be.
codebook_ladder random_tables(int rows, int groups, int min_bits, int max_bits,
                              support::random& rng) {
  codebook_ladder t(rows, groups, min_bits, max_bits);
  for (int b = min_bits; b <= max_bits; ++b)
    for (std::size_t i = 0; i < t[b].size(); ++i)
      t.data(b)[i] = {static_cast<std::uint16_t>(1 + rng.below(65535))};
  return t;
}

template <class T>
bc::buffer<T> on_device(const T* host, std::size_t count) {
  bc::buffer<T> b;
  REQUIRE(b.allocate(count) == status::ok);
  REQUIRE(b.upload(host, count, nullptr) == status::ok);
  return b;
}

template <class T>
std::vector<T> on_host(const T* device, std::size_t count) {
  std::vector<T> v(count);
  REQUIRE(cudaMemcpy(v.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
  return v;
}

/// Memory whose every byte is 0xA5, so that words that nobody wrote are seen.
template <class T>
bc::buffer<T> unwritten(std::size_t count) {
  bc::buffer<T> b;
  REQUIRE(b.allocate(count) == status::ok);
  REQUIRE(cudaMemset(b.data(), 0xA5, count * sizeof(T)) == cudaSuccess);
  return b;
}

/// What packed planes must be, word by word.
std::vector<std::uint32_t> packed_on_host(const bitplane_view& planes) {
  const packed_layout l{planes.rows(), planes.cols(), planes.planes()};
  std::vector<std::uint32_t> out(l.total_words());
  for (int tile = 0; tile < l.row_tiles(); ++tile)
    for (int plane = 0; plane < l.planes; ++plane)
      for (int col_tile = 0; col_tile < l.col_tiles(); ++col_tile)
        for (int i = 0; i < packed_layout::tile_words; ++i) {
          const bc::packed_source s = packed_layout::source(tile, col_tile, i / 4, i % 4);
          if (s.row < l.rows && s.word < planes.layout().words())
            out[l.word(tile, plane, col_tile, i / 4, i % 4)] =
                packed_layout::rotate(planes.row(plane, s.row)[s.word], plane);
        }
  return out;
}

/// What packed tables must be, entry by entry.
std::vector<fp16_t> packed_on_host(const bitladder::codebook_view& tables) {
  const packed_table_layout l{tables.rows(), tables.groups(), tables.bits()};
  std::vector<fp16_t> out(l.total_entries());
  for (int row = 0; row < tables.rows(); ++row)
    for (int group = 0; group < tables.groups(); ++group)
      for (int code = 0; code < tables.entries(); ++code)
        out[l.entry(row / 16, group, packed_table_layout::reverse(code, tables.bits()), row % 16)] =
            tables.table(row, group)[code];
  return out;
}

TEST_CASE("planes are packed as the layout says, padding zero, and come back" *
          doctest::skip(!support::has_device())) {
  support::random rng(22);
  for (const int rows : {1, 15, 16, 17, 100}) {
    for (const int cols : {32, 64, 224, 256, 288, 1056}) {
      for (int planes = 1; planes <= 8; ++planes) {
        CAPTURE(rows);
        CAPTURE(cols);
        CAPTURE(planes);
        const bitplane_tensor in = random_planes(rows, cols, planes, rng);
        const std::size_t words = in.layout().total_words();
        const packed_layout layout{rows, cols, planes};
        const auto canonical = on_device(in.data(), words);
        auto packed = unwritten<std::uint32_t>(layout.total_words());
        auto back = unwritten<std::uint32_t>(words);
        REQUIRE(bc::repack_planes(canonical.data(), in.layout(), packed.data(), layout, nullptr) ==
                status::ok);
        REQUIRE(bc::unpack_planes(packed.data(), layout, back.data(), in.layout(), nullptr) ==
                status::ok);
        CHECK(on_host(packed.data(), layout.total_words()) == packed_on_host(in.view()));
        CHECK(on_host(back.data(), words) ==
              std::vector<std::uint32_t>(in.data(), in.data() + words));
      }
    }
  }
}

TEST_CASE("the top planes alone can be packed, and unpacked" *
          doctest::skip(!support::has_device())) {
  support::random rng(22);
  const bitplane_tensor in = random_planes(33, 288, 8, rng);
  const auto canonical = on_device(in.data(), in.layout().total_words());
  const bitplane_view top = in.view().top(3);
  const packed_layout layout{33, 288, 3};
  auto packed = unwritten<std::uint32_t>(layout.total_words());
  REQUIRE(bc::repack_planes(canonical.data(), in.layout(), packed.data(), layout, nullptr) ==
          status::ok);
  CHECK(on_host(packed.data(), layout.total_words()) == packed_on_host(top));
  const bitplane_layout two{33, 288, 2};
  auto back = unwritten<std::uint32_t>(two.total_words());
  REQUIRE(bc::unpack_planes(packed.data(), layout, back.data(), two, nullptr) == status::ok);
  CHECK(on_host(back.data(), two.total_words()) ==
        std::vector<std::uint32_t>(in.data(), in.data() + two.total_words()));
}

TEST_CASE("tables are packed in tile order, padding zero, and come back" *
          doctest::skip(!support::has_device())) {
  support::random rng(22);
  for (const int rows : {1, 15, 16, 17, 100}) {
    for (const int groups : {1, 2, 7}) {
      const codebook_ladder in = random_tables(rows, groups, 1, 8, rng);
      for (int b = 1; b <= 8; ++b) {
        CAPTURE(rows);
        CAPTURE(groups);
        CAPTURE(b);
        const packed_table_layout layout{rows, groups, b};
        const auto canonical = on_device(in[b].data(), in[b].size());
        auto packed = unwritten<fp16_t>(layout.total_entries());
        auto back = unwritten<fp16_t>(in[b].size());
        REQUIRE(bc::repack_tables(canonical.data(), packed.data(), layout, nullptr) == status::ok);
        REQUIRE(bc::unpack_tables(packed.data(), layout, back.data(), nullptr) == status::ok);
        const bool same = on_host(packed.data(), layout.total_entries()) == packed_on_host(in[b]);
        CHECK(same);
        const bool same_back = on_host(back.data(), in[b].size()) ==
                               std::vector<fp16_t>(in[b].data(), in[b].data() + in[b].size());
        CHECK(same_back);
      }
    }
  }
}

TEST_CASE("uploaded weights hold every plane and every precision's tables" *
          doctest::skip(!support::has_device())) {
  support::random rng(22);
  cudaStream_t stream;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  for (const int groups : {1, 2}) {
    const bitplane_tensor planes = random_planes(100, 288, 8, rng);
    const codebook_ladder tables = random_tables(100, groups, 2, 7, rng);
    bc::packed_weights first;
    REQUIRE(first.upload(planes.view(), tables, stream) == status::ok);
    const bc::packed_weights w = std::move(first);
    CHECK(first.view(3).bits == 0);
    CHECK(first.view(3).planes == nullptr);
    CHECK(w.layout() == packed_layout{100, 288, 8});
    CHECK(w.groups() == groups);
    CHECK(w.min_bits() == 2);
    CHECK(w.max_bits() == 7);
    for (const int b : {-1, 0, 1, 8, 9}) {
      CHECK(w.view(b).bits == 0);
      CHECK(w.view(b).tables == nullptr);
    }
    for (int b = 2; b <= 7; ++b) {
      CAPTURE(b);
      const bc::packed_view v = w.view(b);
      CHECK(v.bits == b);
      CHECK(v.groups == groups);
      CHECK(v.layout == w.layout());
      CHECK(reinterpret_cast<std::uintptr_t>(v.planes) % 16 == 0);
      CHECK(reinterpret_cast<std::uintptr_t>(v.tables) % 16 == 0);
      CHECK(on_host(v.planes, v.layout.total_words()) == packed_on_host(planes.view()));
      const bool same =
          on_host(v.tables, v.table_layout().total_entries()) == packed_on_host(tables[b]);
      CHECK(same);
      CHECK(v.touched_bytes() ==
            100 * (288 * static_cast<std::size_t>(b) / 8 + groups * 2 * (std::size_t{1} << b)));
    }
  }
  REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("weights can be uploaded again, and a failure leaves none" *
          doctest::skip(!support::has_device())) {
  support::random rng(22);
  const bitplane_tensor a = random_planes(17, 64, 4, rng), b = random_planes(40, 320, 3, rng);
  bc::packed_weights w;
  REQUIRE(w.upload(a.view(), random_tables(17, 1, 1, 4, rng), nullptr) == status::ok);
  REQUIRE(w.upload(b.view(), random_tables(40, 1, 3, 3, rng), nullptr) == status::ok);
  CHECK(w.view(4).bits == 0);
  const bc::packed_view v = w.view(3);
  CHECK(v.layout == packed_layout{40, 320, 3});
  CHECK(on_host(v.planes, v.layout.total_words()) == packed_on_host(b.view()));
  CHECK(w.upload(b.view(), random_tables(39, 1, 3, 3, rng), nullptr) == status::shape_mismatch);
  CHECK(w.view(3).bits == 0);
  CHECK(w.view(3).planes == nullptr);
  CHECK(w.layout() == packed_layout{});
  CHECK(w.max_bits() == 0);
}

TEST_CASE("merged words are the reversed codes of the columns stated" *
          doctest::skip(!support::has_device())) {
  support::random rng(22);
  const auto check = [&](auto b) {
    constexpr int width = decltype(b)::value, count = bc::detail::decoding<width>::words;
    CAPTURE(width);
    std::vector<std::uint32_t> canonical(32 * width), stored;
    for (std::size_t i = 0; i < canonical.size(); ++i) {
      canonical[i] = static_cast<std::uint32_t>(rng.next());
      stored.push_back(packed_layout::rotate(canonical[i], static_cast<int>(i) % width));
    }
    const auto words = on_device(stored.data(), stored.size());
    auto fields = unwritten<std::uint32_t>(32 * count);
    packed_weights_test::merge_kernel<width><<<1, 32>>>(words.data(), fields.data());
    REQUIRE(bc::launch_status() == status::ok);
    const std::vector<std::uint32_t> merged = on_host(fields.data(), fields.size());
    const auto field = [&](int thread, int column) {
      std::uint32_t f = 0;
      for (int j = 0; j < width; ++j)
        f |= (canonical[static_cast<std::size_t>(thread * width + j)] >> column & 1u) << j;
      return f;
    };
    for (int thread = 0; thread < 32; ++thread)
      for (int r = 0; r < count; ++r)
        for (int m = 0; m < 4; ++m) {
          const std::uint32_t byte =
              merged[static_cast<std::size_t>(thread * count + r)] >> (8 * m) & 0xFFu;
          const int column = 8 * m + r;
          CHECK(byte == (bc::detail::decoding<width>::pairs
                             ? field(thread, column) | field(thread, column + 4) << 4
                             : field(thread, column)));
        }
  };
  check(bits<1>{});
  check(bits<2>{});
  check(bits<3>{});
  check(bits<4>{});
  check(bits<5>{});
  check(bits<6>{});
  check(bits<7>{});
  check(bits<8>{});
}

// What follows is refused before the card is asked, so it runs without one; no pointer is read.
TEST_CASE("bad arguments to the repack of planes each give their status") {
  alignas(16) std::uint32_t memory[8] = {};
  std::uint32_t* const p = memory;
  const bitplane_layout c{16, 64, 3};
  const packed_layout l{16, 64, 3};
  const auto both = [](const std::uint32_t* canonical, const bitplane_layout& from,
                       const std::uint32_t* packed, const packed_layout& to) {
    const status s =
        bc::repack_planes(canonical, from, const_cast<std::uint32_t*>(packed), to, nullptr);
    CHECK(bc::unpack_planes(packed, to, const_cast<std::uint32_t*>(canonical), from, nullptr) == s);
    return s;
  };
  CHECK(both(nullptr, c, p, l) == status::invalid_argument);
  CHECK(both(p, c, nullptr, l) == status::invalid_argument);
  CHECK(both(p, {0, 64, 3}, p, {0, 64, 3}) == status::invalid_argument);
  CHECK(both(p, {-1, 64, 3}, p, {-1, 64, 3}) == status::invalid_argument);
  CHECK(both(p, {2147483647, 32, 1}, p, {2147483647, 32, 1}) == status::invalid_argument);
  CHECK(both(p, {2000000000, 2147483616, 8}, p, {2000000000, 2147483616, 8}) ==
        status::invalid_argument);  // more blocks than a grid has
  CHECK(both(p, {16, 0, 3}, p, {16, 0, 3}) == status::invalid_argument);
  CHECK(both(p, {16, 33, 3}, p, {16, 33, 3}) == status::invalid_argument);
  CHECK(both(p, {16, 64, 0}, p, {16, 64, 0}) == status::invalid_argument);
  CHECK(both(p, {16, 64, 9}, p, {16, 64, 9}) == status::invalid_argument);
  CHECK(both(p, {17, 64, 3}, p, l) == status::shape_mismatch);
  CHECK(both(p, {16, 32, 3}, p, l) == status::shape_mismatch);
  CHECK(both(p, c, p + 1, l) == status::misaligned);
  const auto* const odd = reinterpret_cast<std::uint32_t*>(reinterpret_cast<std::uintptr_t>(p) + 2);
  CHECK(both(odd, c, p, l) == status::misaligned);
  CHECK(bc::repack_planes(p, {16, 64, 2}, p, l, nullptr) == status::too_few_planes);
  CHECK(bc::unpack_planes(p, l, p, {16, 64, 4}, nullptr) == status::too_few_planes);
}

TEST_CASE("bad arguments to the repack of tables each give their status") {
  alignas(16) fp16_t memory[16] = {};
  fp16_t* const p = memory;
  const packed_table_layout l{16, 1, 3};
  const auto both = [](const fp16_t* canonical, const fp16_t* packed,
                       const packed_table_layout& layout) {
    const status s = bc::repack_tables(canonical, const_cast<fp16_t*>(packed), layout, nullptr);
    CHECK(bc::unpack_tables(packed, layout, const_cast<fp16_t*>(canonical), nullptr) == s);
    return s;
  };
  CHECK(both(nullptr, p, l) == status::invalid_argument);
  CHECK(both(p, nullptr, l) == status::invalid_argument);
  CHECK(both(p, p, {0, 1, 3}) == status::invalid_argument);
  CHECK(both(p, p, {16, 0, 3}) == status::invalid_argument);
  CHECK(both(p, p, {2147483647, 1, 3}) == status::invalid_argument);
  CHECK(both(p, p, {2000000000, 2000000000, 8}) == status::invalid_argument);
  CHECK(both(p, p, {16, 1, 0}) == status::unsupported_bits);
  CHECK(both(p, p, {16, 1, 9}) == status::unsupported_bits);
  CHECK(both(p, p + 4, l) == status::misaligned);
  const auto* const odd = reinterpret_cast<fp16_t*>(reinterpret_cast<std::uintptr_t>(p) + 1);
  CHECK(both(odd, p, l) == status::misaligned);
}

TEST_CASE("bad arguments to upload each give their status") {
  support::random rng(22);
  const bitplane_tensor planes = random_planes(16, 96, 3, rng), ragged(bitplane_layout{16, 100, 3});
  bc::packed_weights w;
  CHECK(w.upload({}, random_tables(16, 1, 2, 3, rng), nullptr) == status::invalid_argument);
  CHECK(w.upload({nullptr, {16, 96, 3}}, random_tables(16, 1, 2, 3, rng), nullptr) ==
        status::invalid_argument);
  CHECK(w.upload({planes.data(), {0, 96, 3}}, random_tables(0, 1, 2, 3, rng), nullptr) ==
        status::invalid_argument);
  CHECK(w.upload({planes.data(), {16, 0, 3}}, random_tables(16, 1, 2, 3, rng), nullptr) ==
        status::invalid_argument);
  CHECK(w.upload({planes.data(), {16, 96, 9}}, random_tables(16, 1, 2, 3, rng), nullptr) ==
        status::invalid_argument);
  CHECK(w.upload(ragged.view(), random_tables(16, 1, 2, 3, rng), nullptr) ==
        status::invalid_argument);
  CHECK(w.upload(planes.view(), codebook_ladder(), nullptr) == status::shape_mismatch);
  CHECK(w.upload(planes.view(), random_tables(15, 1, 2, 3, rng), nullptr) ==
        status::shape_mismatch);
  CHECK(w.upload(planes.view(), random_tables(16, 5, 2, 3, rng), nullptr) ==
        status::shape_mismatch);
  CHECK(w.upload(planes.view(), random_tables(16, 1, 2, 4, rng), nullptr) ==
        status::too_few_planes);
  CHECK(w.view(2).bits == 0);
  CHECK(w.view(2).planes == nullptr);
}

}  // namespace
