// SPDX-License-Identifier: MIT
// Seed 11. data/foreign.safetensors was written by the Python package (make_safetensors_golden.py).
#include <bitladder/io/safetensors.hpp>

#include "io/golden.hpp"
#include "support/random.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

namespace bl = bitladder;
using support::error_of;
using support::temporary_folder;
using support::thrown;

namespace {

/// The error of opening a file with that header and that many data bytes.
thrown open_error(const std::string& header, std::size_t data) {
  temporary_folder folder;
  support::write_all(folder / "f.safetensors",
                     support::safetensors_bytes(header, std::string(data, '\0')));
  const thrown e = error_of([&] { bl::safetensors_file file(folder / "f.safetensors"); });
  if (!e.text.empty()) {
    CHECK(e.code == bl::status::bad_file);
    CHECK(e.names((folder / "f.safetensors").string()));
  }
  return e;
}

std::string entry(const std::string& name, const std::string& shape, const std::string& offsets,
                  const std::string& type = "F32") {
  return "\"" + name + "\":{\"dtype\":\"" + type + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace

TEST_CASE("a file of the Python package reads back byte for byte") {
  const bl::safetensors_file file(BL_TEST_DATA "/foreign.safetensors");
  CHECK(file.tensors().size() == support::golden_tensors().size());
  CHECK(file.metadata() == support::golden_metadata());
  for (const support::golden_tensor& expected : support::golden_tensors()) {
    CAPTURE(expected.name);
    const bl::tensor_info& t = file.at(expected.name);
    CHECK(t.type == expected.type);
    CHECK(t.shape == expected.shape);
    const auto bytes = file.bytes(t);
    CHECK(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) ==
          expected.bytes());
  }
}

TEST_CASE("floats of every width read as float, from any address and any part") {
  support::random random(11);
  const std::size_t n = 77;
  std::vector<double> f64(n);
  std::vector<float> f32(n);
  std::vector<std::uint16_t> f16(n), bf16(n);
  for (std::size_t i = 0; i < n; ++i) {
    f64[i] = random.normal() * 1e3;
    f32[i] = static_cast<float>(random.normal());
    f16[i] = static_cast<std::uint16_t>(random.next() & 0xbfffu);  // no infinities or NaN
    bf16[i] = static_cast<std::uint16_t>(random.next() & 0xbfffu);
  }
  for (std::size_t shift = 0; shift < 9; ++shift) {
    std::string header = "{" + entry("pad", "[" + std::to_string(shift) + "]",
                                     "[0," + std::to_string(shift) + "]", "U8");
    std::size_t at = shift;
    const auto add = [&](const char* name, std::size_t size) {
      header +=
          "," + entry(name, "[7,11]",
                      "[" + std::to_string(at) + "," + std::to_string(at + n * size) + "]", name);
      at += n * size;
    };
    add("BF16", 2);
    add("F16", 2);
    add("F32", 4);
    add("F64", 8);
    temporary_folder folder;
    support::write_all(
        folder / "f", support::safetensors_bytes(header + "}", std::string(shift, 'p') + raw(bf16) +
                                                                   raw(f16) + raw(f32) + raw(f64)));
    const bl::safetensors_file file(folder / "f");
    CHECK(file.aligned(file.at("F32")) ==
          (reinterpret_cast<std::uintptr_t>(file.bytes("F32").data()) % 4 == 0));
    for (const auto& [first, count] :
         {std::pair<std::size_t, std::size_t>{0, n}, {13, 40}, {n, 0}}) {
      std::vector<float> got(count);
      const auto read = [&](const char* name) {
        file.read_as_float(file.at(name), first, count, got.data());
        return got;
      };
      const std::vector<float> from_bf16 = read("BF16"), from_f16 = read("F16"),
                               from_f32 = read("F32"), from_f64 = read("F64");
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t k = first + i;
        const int e = f16[k] >> 10 & 31, m = f16[k] & 1023;
        const double magnitude = e == 0 ? std::ldexp(m, -24) : std::ldexp(1024 + m, e - 25);
        CHECK(from_f16[i] == (f16[k] >> 15 ? -magnitude : magnitude));
        const int be = bf16[k] >> 7 & 255, bm = bf16[k] & 127;
        const double bmagnitude = be == 0 ? std::ldexp(bm, -133) : std::ldexp(128 + bm, be - 134);
        CHECK(from_bf16[i] == (bf16[k] >> 15 ? -bmagnitude : bmagnitude));
        CHECK(from_f32[i] == f32[k]);
        CHECK(from_f64[i] == static_cast<float>(f64[k]));
      }
    }
    CHECK(file.read_as_float("F32") == f32);
    float unused[1];
    CHECK(error_of([&] { file.read_as_float(file.at("F32"), n, 1, unused); }).code ==
          bl::status::invalid_argument);
    CHECK(error_of([&] { file.read_as_float(file.at("F32"), 1, ~0ull, unused); }).code ==
          bl::status::invalid_argument);
    if (shift > 0) CHECK(error_of([&] { file.read_as_float("pad"); }).names("found U8"));
  }
}

TEST_CASE("a tensor that is not there is answered with what is") {
  const bl::safetensors_file file(BL_TEST_DATA "/foreign.safetensors");
  CHECK(file.find("matrx") == nullptr);
  const thrown e = error_of([&] { file.at("matrx"); });
  CHECK(e.code == bl::status::not_found);
  CHECK(e.names("foreign.safetensors: no tensor \"matrx\"; it holds 12 tensors; closest: matrix"));
}

TEST_CASE("small files that are right open: no tensors, no metadata, spaces, empty tensors") {
  CHECK(open_error("{}", 0).text == "");
  CHECK(open_error("{}      ", 0).text == "");
  CHECK(open_error("{\"__metadata__\":{}}", 0).text == "");
  CHECK(open_error("{" + entry("a", "[0]", "[0,0]") + "," + entry("b", "[]", "[0,4]") + "," +
                       entry("c", "[5,0,9223372036854775807]", "[4,4]") + "}",
                   4)
            .text == "");
  CHECK(open_error("{\"a\":{\"data_offsets\":[0,4],\"shape\":[1],\"dtype\":\"F32\"}}", 4).text ==
        "");
}

TEST_CASE("a file too short for its length, or with a length past its end, is refused") {
  temporary_folder folder;
  const std::string path = folder / "f";
  const auto open = [&](const std::string& bytes) {
    support::write_all(path, bytes);
    return error_of([&] { bl::safetensors_file file(path); });
  };
  CHECK(open("").names("found 0 bytes"));
  CHECK(open("1234567").names("found 7 bytes"));
  const std::string good = support::safetensors_bytes("{}", "");
  CHECK(open(good).text == "");
  CHECK(open(good.substr(0, 9)).names("passes the end"));
  CHECK(open(support::safetensors_bytes("", "")).names("does not begin with {"));
  CHECK(open(std::string(8, '\xff')).names("18446744073709551615 is above the limit"));
  CHECK(open(std::string("\x01\xe1\xf5\x05\0\0\0\0", 8)).names("100000001 is above the limit"));
  CHECK(open(std::string("\x00\xe1\xf5\x05\0\0\0\0", 8)).names("header of 100000000 bytes passes"));
}

TEST_CASE("a header that is not the format's JSON is refused with its reason") {
  CHECK(open_error("[]", 0).names("does not begin with {"));
  CHECK(open_error("\xef\xbb\xbf{}", 0).names("does not begin with {"));
  CHECK(open_error("{", 0).names("not valid JSON"));
  CHECK(open_error("{}x", 0).names("not valid JSON"));
  CHECK(open_error(std::string("{}\0", 3), 0).names("not valid JSON"));
  CHECK(open_error("{\"\xff\":{}}", 0).names("not valid JSON"));
  CHECK(open_error("{\"a\":1}", 0).names("\"a\": expected an object, found a number"));
  CHECK(open_error("{\"a\":null}", 0).names("expected an object, found null"));
  CHECK(open_error("{\"a\":[[[[]]]]}", 0).names("expected an object, found an array"));
  CHECK(open_error("{\"a\":{}}", 0).names("\"a\": has no dtype"));
  CHECK(open_error("{\"a\":{\"dtype\":\"F32\"}}", 0).names("has no shape"));
  CHECK(open_error("{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 4).names("has no data_offsets"));
  CHECK(open_error("{\"a\":{\"extra\":1}}", 0).names("found \"extra\""));
  CHECK(open_error("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F16\"}}", 0).names("there twice"));
  CHECK(open_error("{\"a\":{\"dtype\":4}}", 0).names("dtype: expected text, found a number"));
  CHECK(open_error("{\"a\":{\"shape\":4}}", 0).names("shape: expected an array"));
  CHECK(
      open_error("{\"a\":{\"shape\":[[1]]}}", 0).names("whole numbers from 0 on, found an array"));
  CHECK(open_error("{\"a\":{\"shape\":[true]}}", 0).names("found true or false"));
  CHECK(open_error("{\"a\":{\"shape\":{\"b\":1}}}", 0).names("expected an array, found an object"));
  CHECK(open_error("{\"a\":{\"data_offsets\":[\"0\",4]}}", 0).names("found text"));
  CHECK(
      open_error("{\"__metadata__\":{\"a\":1}}", 0).names("\"a\": expected text, found a number"));
  CHECK(open_error("{\"__metadata__\":{\"a\":{}}}", 0).names("expected text, found an object"));
  CHECK(open_error("{\"__metadata__\":\"a\"}", 0).names("expected an object, found text"));
  CHECK(open_error(std::string("{\"a\":") + std::string(5000000, '['), 0).names("an array"));
}

TEST_CASE("a name or metadata key that is there twice is refused") {
  const std::string a = entry("a", "[1]", "[0,4]");
  CHECK(open_error("{" + a + "," + a + "}", 4).names("\"a\" is in the header twice"));
  CHECK(open_error("{" + a + "," + entry("a", "[1]", "[4,8]") + "}", 8).names("twice"));
  CHECK(open_error("{\"__metadata__\":{},\"__metadata__\":{}}", 0).names("twice"));
  CHECK(
      open_error("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0).names("\"k\" is there twice"));
}

TEST_CASE("an unknown dtype is named with those that are known") {
  CHECK(open_error("{" + entry("a", "[4]", "[0,4]", "F8_E4M3") + "}", 4)
            .names("tensor \"a\": dtype \"F8_E4M3\" is not known (F64, F32"));
}

TEST_CASE("shapes that are negative, fractional, overflowing or endless are refused") {
  CHECK(open_error("{" + entry("a", "[-1]", "[0,4]") + "}", 4).names("negative number -1"));
  CHECK(open_error("{" + entry("a", "[1.0]", "[0,4]") + "}", 4).names("found the number 1.0"));
  CHECK(open_error("{" + entry("a", "[1e0]", "[0,4]") + "}", 4).names("found the number 1e0"));
  CHECK(open_error("{" + entry("a", "[4294967296,4294967296]", "[0,0]") + "}", 0)
            .names("is too large"));
  CHECK(open_error("{" + entry("a", "[4611686018427387905]", "[0,4]") + "}", 4)
            .names("is too large"));
  CHECK(open_error("{" + entry("a", "[9223372036854775808]", "[0,0]") + "}", 0)
            .names("dimension 9223372036854775808 is too large"));
  CHECK(open_error("{" + entry("a", "[99999999999999999999]", "[0,0]") + "}", 0)
            .names("found the number 99999999999999999999"));
  std::string ones = "[1";
  for (int i = 0; i < 64; ++i) ones += ",1";
  CHECK(
      open_error("{" + entry("a", ones + "]", "[0,4]") + "}", 4).names("more than 64 dimensions"));
}

TEST_CASE("offsets that lie are refused: size, end of file, order, overlap, hole, number") {
  CHECK(open_error("{" + entry("a", "[2]", "[0,4]") + "}", 4)
            .names("expected 8 bytes for F32 [2], found data_offsets 0 to 4"));
  CHECK(open_error("{" + entry("a", "[2]", "[0,8]") + "}", 4)
            .names("0 to 8 pass the end of the file's 4 data bytes"));
  CHECK(open_error("{" + entry("a", "[1]", "[18446744073709551612,18446744073709551615]") + "}", 4)
            .code == bl::status::bad_file);
  CHECK(
      open_error("{" + entry("a", "[1]", "[4,0]") + "}", 4).names("end at 0, before their begin"));
  CHECK(open_error("{" + entry("a", "[2]", "[0,8]") + "," + entry("b", "[2]", "[4,12]") + "}", 12)
            .names("tensor \"b\": data_offsets 4 to 12 overlap"));
  CHECK(open_error("{" + entry("a", "[2]", "[0,8]") + "," + entry("b", "[0]", "[4,4]") + "}", 8)
            .names("overlap"));
  CHECK(open_error("{" + entry("a", "[1]", "[0,4]") + "," + entry("b", "[1]", "[8,12]") + "}", 12)
            .names("leave a hole behind byte 4"));
  CHECK(open_error("{" + entry("a", "[1]", "[4,8]") + "}", 8).names("hole behind byte 0"));
  CHECK(open_error("{" + entry("a", "[1]", "[0,4]") + "}", 9)
            .names("tensors end at data byte 4, but the file has 9"));
  CHECK(open_error("{}", 1).names("end at data byte 0"));
  CHECK(open_error("{" + entry("a", "[1]", "[0]") + "}", 4)
            .names("expected 2 data_offsets, found 1"));
  CHECK(
      open_error("{" + entry("a", "[1]", "[0,4,8]") + "}", 4).names("2 data_offsets, found more"));
  CHECK(open_error("{" + entry("a", "[1]", "[-4,0]") + "}", 4).names("negative number -4"));
}
