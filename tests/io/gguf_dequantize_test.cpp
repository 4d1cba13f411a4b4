// SPDX-License-Identifier: MIT
// data/quantized.gguf holds for each type what the Python package `gguf` makes of its bytes
// (make_gguf_golden.py).
#include <bitladder/io/gguf.hpp>
#include <bitladder/io/gguf_dequantize.hpp>

#include "io/gguf_bytes.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <vector>

namespace bl = bitladder;
using support::error_of;
using support::thrown;

namespace {

const std::vector<std::string> types = {"F32",  "F16",  "BF16", "Q8_0",
                                        "Q4_0", "Q4_1", "Q5_0", "Q5_1"};

bool same_bits(const float* a, const float* b, std::size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("every supported type equals the Python package bit for bit") {
  const bl::gguf_file file(BL_TEST_DATA "/quantized.gguf");
  for (const std::string& name : types) {
    CAPTURE(name);
    const bl::gguf_tensor& t = file.at(name);
    CHECK(bl::to_string(t.type) == name);
    CHECK(bl::can_dequantize(t.type));
    const std::vector<float> found = bl::dequantize(file, name);
    const std::vector<float> expected = bl::dequantize(file, name + ".float");
    REQUIRE(t.shape == file.at(name + ".float").shape);
    REQUIRE(found.size() == 192);
    REQUIRE(expected.size() == 192);
    CHECK(same_bits(found.data(), expected.data(), 192));
  }
}

TEST_CASE("any range of rows equals that part of the whole and nothing else is written") {
  const bl::gguf_file file(BL_TEST_DATA "/quantized.gguf");
  for (const std::string& name : types) {
    CAPTURE(name);
    const bl::gguf_tensor& t = file.at(name);
    const std::vector<float> all = bl::dequantize(file, t);
    const auto cols = static_cast<std::size_t>(t.cols());
    CHECK(t.rows() == (name == "Q4_0" ? 6u : 3u));
    for (std::uint64_t first = 0; first <= t.rows(); ++first)
      for (std::uint64_t count = 0; first + count <= t.rows(); ++count) {
        std::vector<float> part(static_cast<std::size_t>(count) * cols + 2, 12345.f);
        bl::dequantize_rows(file, t, first, count, part.data() + 1);
        CHECK(part.front() == 12345.f);
        CHECK(part.back() == 12345.f);
        CHECK(same_bits(part.data() + 1, all.data() + first * cols, part.size() - 2));
      }
  }
}

TEST_CASE("a block by hand: codes of the first half stand in the low halves of the bytes") {
  // Q5_1: scale 2, offset 0.5, high bit of element 0 and of element 17; byte 0 is 0x21.
  support::gguf_bytes block;
  block.put<std::uint16_t>(0x4000).put<std::uint16_t>(0x3800).u32(1u | 1u << 17);
  block.raw("\x21" + std::string(15, '\0'));
  support::temporary_folder folder;
  std::string bytes =
      support::gguf_bytes_of({}, {support::gguf_info("t", {32}, 7, 0)}, 0) + block.str();
  support::write_all(folder / "f", bytes);
  const std::vector<float> x = bl::dequantize(bl::gguf_file(folder / "f"), "t");
  CHECK(x[0] == 2 * (1 + 16) + 0.5f);
  CHECK(x[1] == 0.5f);
  CHECK(x[16] == 2 * 2 + 0.5f);
  CHECK(x[17] == 2 * 16 + 0.5f);
}

TEST_CASE("types that are not supported are named, with those that are") {
  const bl::gguf_file file(BL_TEST_DATA "/quantized.gguf");
  std::vector<float> out(256);
  for (const std::string name : {"Q4_K", "I32"}) {
    CHECK(!bl::can_dequantize(file.at(name).type));
    for (const thrown& e : {error_of([&] { bl::dequantize(file, name); }), error_of([&] {
                              bl::dequantize_rows(file, file.at(name), 0, 1, out.data());
                            })}) {
      CHECK(e.code == bl::status::bad_file);
      CHECK(e.text ==
            BL_TEST_DATA "/quantized.gguf: tensor \"" + name + "\": type " + name +
                " is not supported (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 are)");
    }
  }
}

TEST_CASE("rows that the tensor does not have are refused") {
  const bl::gguf_file file(BL_TEST_DATA "/quantized.gguf");
  float out = 0;
  const auto ask = [&](std::uint64_t first, std::uint64_t count) {
    return error_of([&] { bl::dequantize_rows(file, file.at("Q8_0"), first, count, &out); });
  };
  CHECK(ask(4, 0).code == bl::status::invalid_argument);
  CHECK(ask(0, 4).code == bl::status::invalid_argument);
  CHECK(ask(1, ~std::uint64_t{0}).names("tensor \"Q8_0\": 18446744073709551615 rows from 1 on"));
  CHECK(ask(2, 2).names("2 rows from 2 on asked for, 3 present"));
  CHECK(ask(3, 0).text.empty());
}
