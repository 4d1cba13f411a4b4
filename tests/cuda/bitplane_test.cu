// SPDX-License-Identifier: MIT
// The address arithmetic of core/bitplane.hpp, as a kernel sees it. Seed 12.
#include <bitladder/config.hpp>
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/pack.hpp>
#include <bitladder/cuda/buffer.cuh>

#include <support/has_device.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

// Not in the unnamed namespace, where a kernel cannot be hidden: it is local already.
namespace bitplane_test {

/// codes: [rows, cols], by code_at for the columns of a word, one thread per word.
template <int Bits>
BL_KERNEL read_codes_kernel(bitladder::bitplane_view planes, std::uint8_t* codes) {
  const int word = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int row = static_cast<int>(blockIdx.y);
  if (word >= planes.layout().words()) return;
  std::uint32_t top[Bits];
  for (int p = 0; p < Bits; ++p) top[p] = planes.row(p, row)[word];
  for (int lane = 0; lane < 32 && word * 32 + lane < planes.cols(); ++lane)
    codes[static_cast<std::size_t>(row) * static_cast<std::size_t>(planes.cols()) + word * 32 +
          lane] = static_cast<std::uint8_t>(bitladder::code_at(top, lane));
}

}  // namespace bitplane_test

namespace {

using bitladder::status;

template <int Bits>
using bits = std::integral_constant<int, Bits>;

TEST_CASE_TEMPLATE("a kernel reads the same codes as the host", Bits, bits<1>, bits<2>, bits<3>,
                   bits<4>, bits<5>, bits<6>, bits<7>, bits<8>) {
  if (!support::has_device()) return;  // TEST_CASE_TEMPLATE takes no skip()
  support::random random(12);
  for (const int rows : {1, 7}) {
    for (const int cols : {1, 31, 32, 33, 100, 4099}) {
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * cols));
      for (std::uint8_t& c : codes) c = static_cast<std::uint8_t>(random.below(256));
      const bitladder::bitplane_tensor planes =
          bitladder::pack({codes.data(), rows, cols}, 8);  // wider than most reads
      bitladder::cuda::buffer<std::uint32_t> words;
      bitladder::cuda::buffer<std::uint8_t> read;
      REQUIRE(words.allocate(planes.layout().total_words()) == status::ok);
      REQUIRE(words.upload(planes.data(), planes.layout().total_words(), nullptr) == status::ok);
      REQUIRE(read.allocate(codes.size()) == status::ok);
      const dim3 grid((static_cast<unsigned>(planes.layout().words()) + 63) / 64,
                      static_cast<unsigned>(rows));
      bitplane_test::read_codes_kernel<Bits::value>
          <<<grid, 64>>>({words.data(), planes.layout()}, read.data());
      REQUIRE(bitladder::cuda::launch_status() == status::ok);
      std::vector<std::uint8_t> out(codes.size());
      REQUIRE(read.download(out.data(), out.size(), nullptr) == status::ok);
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
      int wrong = 0;
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < cols; ++c)
          wrong +=
              out[static_cast<std::size_t>(r * cols + c)] != planes.view().code(r, c, Bits::value);
      CHECK(wrong == 0);
    }
  }
}

}  // namespace
