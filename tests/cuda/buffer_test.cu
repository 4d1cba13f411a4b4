// SPDX-License-Identifier: MIT
// Seed 11.
#include <bitladder/cuda/buffer.cuh>

#include <support/has_device.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using bitladder::status;
using bitladder::cuda::buffer;

static_assert(!std::is_copy_constructible<buffer<float>>::value, "one owner");
static_assert(std::is_nothrow_move_constructible<buffer<float>>::value, "");
static_assert(std::is_nothrow_move_assignable<buffer<float>>::value, "");

TEST_CASE("an empty buffer takes empty copies and refuses others") {
  buffer<int> b;
  int x = 0;
  CHECK(b.empty());
  CHECK(b.allocate(0) == status::ok);
  CHECK(b.upload(nullptr, 0, nullptr) == status::ok);
  CHECK(b.download(nullptr, 0, nullptr) == status::ok);
  CHECK(b.clear(nullptr) == status::ok);
  CHECK(b.upload(&x, 1, nullptr) == status::invalid_argument);
  CHECK(b.download(&x, 1, nullptr) == status::invalid_argument);
}

TEST_CASE("a size whose bytes overflow is out of memory") {
  buffer<double> b;
  CHECK(b.allocate(SIZE_MAX / 4) == status::out_of_memory);
  CHECK(b.data() == nullptr);
}

TEST_CASE("what is uploaded comes back" * doctest::skip(!support::has_device())) {
  support::random random(11);
  for (const int count : {1, 31, 4096, 1000003}) {
    std::vector<std::uint32_t> in(static_cast<std::size_t>(count)), out(in.size(), 0);
    for (std::uint32_t& v : in) v = static_cast<std::uint32_t>(random.next());
    cudaStream_t stream;
    REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
    buffer<std::uint32_t> a;
    REQUIRE(a.allocate(in.size()) == status::ok);
    REQUIRE(a.upload(in.data(), in.size(), stream) == status::ok);
    buffer<std::uint32_t> b = std::move(a);
    CHECK(a.empty());
    CHECK(b.size() == in.size());
    REQUIRE(b.download(out.data(), out.size(), stream) == status::ok);
    REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(in == out);
    REQUIRE(b.clear(stream) == status::ok);
    REQUIRE(b.download(out.data(), out.size(), stream) == status::ok);
    REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(std::all_of(out.begin(), out.end(), [](std::uint32_t v) { return v == 0; }));
    CHECK(b.upload(in.data(), in.size() + 1, stream) == status::invalid_argument);
    CHECK(b.upload(nullptr, 1, stream) == status::invalid_argument);
    REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
  }
}

TEST_CASE("more memory than the card has is an error that does not stay behind" *
          doctest::skip(!support::has_device())) {
  buffer<std::uint8_t> b;
  REQUIRE(b.allocate(1) == status::ok);
  CHECK(b.allocate(std::size_t{1} << 50) == status::out_of_memory);
  CHECK(b.empty());
  CHECK(cudaPeekAtLastError() == cudaSuccess);
}

}  // namespace
