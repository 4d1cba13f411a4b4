// SPDX-License-Identifier: MIT
// Seed 21. data/*.gguf were written by the Python package `gguf` (make_gguf_golden.py).
#include <bitladder/io/gguf.hpp>
#include <bitladder/io/gguf_dequantize.hpp>

#include "io/damage.hpp"
#include "io/gguf_bytes.hpp"
#include "support/random.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace bl = bitladder;
using support::error_of;
using support::gguf_bytes;
using support::gguf_bytes_of;
using support::gguf_info;
using support::gguf_key;
using support::temporary_folder;
using support::thrown;

namespace {

/// What opening those bytes as a file complains about, after the file's name; "" if nothing.
std::string complaint(const std::string& bytes) {
  temporary_folder folder;
  support::write_all(folder / "f.gguf", bytes);
  const thrown e = error_of([&] { bl::gguf_file file(folder / "f.gguf"); });
  if (e.text.empty()) return "";
  const std::string path = (folder / "f.gguf").string();
  CHECK(e.code == bl::status::bad_file);
  REQUIRE(e.text.substr(0, path.size() + 2) == path + ": ");
  return e.text.substr(path.size() + 2);
}

std::string key_complaint(const std::string& key) { return complaint(gguf_bytes_of({key}, {}, 0)); }

std::string tensor_complaint(const std::string& info, std::size_t data = 4096) {
  return complaint(gguf_bytes_of({}, {info}, data));
}

std::string u32(std::uint32_t x) { return gguf_bytes().u32(x).str(); }

/// An array's head.
std::string array(std::uint32_t type, std::uint64_t count) {
  return gguf_bytes().u32(type).u64(count).str();
}

}  // namespace

TEST_CASE("metadata of every type reads back as the Python package wrote it") {
  const bl::gguf_file file(BL_TEST_DATA "/metadata.gguf");
  const bl::gguf_metadata& m = file.metadata();
  CHECK(file.version() == 3);
  CHECK(m.entries().size() == 23);
  CHECK(m.entries()[1].key == "u8");
  CHECK(m.text("general.architecture") == "test");
  CHECK(m.integer("u8") == 255);
  CHECK(m.integer("i8") == -128);
  CHECK(m.integer("u16") == 65535);
  CHECK(m.integer("i16") == -32768);
  CHECK(m.integer("u32") == 4294967295);
  CHECK(m.integer("i32") == -2147483648ll);
  CHECK(m.integer("i64") == std::numeric_limits<std::int64_t>::min());
  CHECK(m.number("u64") == 0x1p64);
  CHECK(m.number("f32") == static_cast<double>(0.1f));
  CHECK(m.number("f64") == 0.1);
  CHECK(m.number("i16") == -32768);
  CHECK(m.boolean("yes"));
  CHECK(!m.boolean("no"));
  CHECK(m.text("text") == "wei\xc3\x9f \"x\"\n");
  CHECK(m.text("empty text").empty());
  CHECK(m.texts("texts") == std::vector<std::string_view>{"a", "", "\xc4\xa0the"});
  CHECK(m.integers("integers") == std::vector<std::int64_t>{-1, 0, 7});
  CHECK(m.integers("bytes") == std::vector<std::int64_t>{0, 128, 255});
  CHECK(m.numbers("numbers") == std::vector<double>{0.5, -2});
  CHECK(m.numbers("integers") == std::vector<double>{-1, 0, 7});
  CHECK(m.at("truths").size() == 3);
  CHECK(m.at("truths").elements()[1].boolean() == false);
}

TEST_CASE("arrays in arrays read back") {
  const bl::gguf_file file(BL_TEST_DATA "/metadata.gguf");
  const auto outer = file.metadata().at("nested").elements();
  REQUIRE(outer.size() == 2);
  CHECK(outer[0].size() == 2);
  CHECK(outer[0].elements()[1].integer() == 2);
  CHECK(outer[1].elements()[0].integer() == 3);
  const auto deep = file.metadata().at("deep").elements().at(0).elements();
  REQUIRE(deep.size() == 2);
  CHECK(deep[1].elements()[1].text() == "z");
}

TEST_CASE("tensors read back with their shapes outermost first and on the file's alignment") {
  const bl::gguf_file file(BL_TEST_DATA "/metadata.gguf");
  CHECK(file.alignment() == 64);
  CHECK(file.data_offset() % 64 == 0);
  REQUIRE(file.tensors().size() == 4);
  const bl::gguf_tensor& matrix = file.at("matrix");
  CHECK(matrix.type == bl::gguf_type::f32);
  CHECK(matrix.shape == std::vector<std::int64_t>{2, 3});
  CHECK(matrix.rows() == 2);
  CHECK(matrix.cols() == 3);
  CHECK(bl::dequantize(file, matrix) == std::vector<float>{0, 1, 2, 3, 4, 5});
  CHECK(file.at("half").shape == std::vector<std::int64_t>{5});
  CHECK(file.at("half").rows() == 1);
  CHECK(bl::dequantize(file, "half") == std::vector<float>{0, 1, 2, 3, 4});
  const bl::gguf_tensor& cube = file.at("cube");
  CHECK(cube.type == bl::gguf_type::i8);
  CHECK(cube.shape == std::vector<std::int64_t>{2, 3, 4});
  CHECK(cube.rows() == 6);
  CHECK(cube.begin % 64 == 0);
  const auto bytes = file.bytes(cube);
  REQUIRE(bytes.size() == 24);
  for (std::size_t i = 0; i < 24; ++i) CHECK(bytes[i] == static_cast<std::byte>(i));
  CHECK(file.find("absent") == nullptr);
  const thrown e = error_of([&] { static_cast<void>(file.at("halv")); });
  CHECK(e.code == bl::status::not_found);
  CHECK(e.names("metadata.gguf: no tensor \"halv\"; it holds 4 tensors; closest: half"));
}

TEST_CASE("version 2 reads as version 3 does") {
  temporary_folder folder;
  std::string bytes = support::read_all(BL_TEST_DATA "/metadata.gguf");
  bytes[4] = 2;
  support::write_all(folder / "f.gguf", bytes);
  bl::gguf_file first(folder / "f.gguf");
  const bl::gguf_file file = std::move(first);  // values stay valid over a move
  CHECK(file.version() == 2);
  CHECK(file.metadata().texts("texts").size() == 3);
  CHECK(bl::dequantize(file, "matrix")[5] == 5.f);
}

TEST_CASE("metadata asked for as another type names key, expected and found") {
  const bl::gguf_file file(BL_TEST_DATA "/metadata.gguf");
  const bl::gguf_metadata& m = file.metadata();
  const auto text_of = [&](auto&& call) {
    const thrown e = error_of(call);
    CHECK(e.code == bl::status::bad_file);
    const std::string prefix = BL_TEST_DATA "/metadata.gguf: metadata ";
    REQUIRE(e.names(prefix));
    return e.text.substr(prefix.size());
  };
  CHECK(text_of([&] { m.text("u8"); }) == "\"u8\": expected STRING, found UINT8 255");
  CHECK(text_of([&] { m.boolean("u8"); }) == "\"u8\": expected BOOL, found UINT8 255");
  CHECK(text_of([&] { m.boolean_or("text", true); }) ==
        "\"text\": expected BOOL, found STRING \"wei\xc3\x9f \"x\"?\"");
  CHECK(text_of([&] { m.integer("u64"); }) ==
        "\"u64\": expected an integer type with a value below 2^63, found UINT64 "
        "18446744073709551615");
  CHECK(text_of([&] { m.integer("f32"); }).find("found FLOAT32 0.1") != std::string::npos);
  CHECK(text_of([&] { m.integer("yes"); }).find("found BOOL true") != std::string::npos);
  CHECK(text_of([&] { m.number("texts"); }) ==
        "\"texts\": expected a float or integer type, found ARRAY of 3 STRING");
  CHECK(text_of([&] { m.texts("text"); }).find("expected an ARRAY of STRING, found STRING") !=
        std::string::npos);
  CHECK(text_of([&] { m.texts("integers"); }) ==
        "\"integers\": expected an ARRAY of STRING, found ARRAY of 3 INT32, element 0: INT32 -1");
  CHECK(text_of([&] { m.integers("numbers"); }).find("element 0: FLOAT32 0.5") !=
        std::string::npos);
  CHECK(text_of([&] { m.numbers("nested"); }).find("found ARRAY of 2 ARRAY") != std::string::npos);
}

TEST_CASE("absent keys are an error or the caller's default") {
  const bl::gguf_file file(BL_TEST_DATA "/metadata.gguf");
  const bl::gguf_metadata& m = file.metadata();
  const thrown e = error_of([&] { m.integer("llama.block_count"); });
  CHECK(e.code == bl::status::not_found);
  CHECK(e.names("metadata.gguf: metadata \"llama.block_count\": expected an integer type"));
  CHECK(e.names("found no such key among the 23"));
  CHECK(m.integer_or("none", -1) == -1);
  CHECK(m.integer_or("u8", -1) == 255);
  CHECK(m.number_or("none", 0.5) == 0.5);
  CHECK(m.text_or("none", "x") == "x");
  CHECK(m.boolean_or("none", true));
  CHECK(!m.has("none"));
}

TEST_CASE("a file without tensors may end at its header") {
  CHECK(complaint(gguf_bytes_of({gguf_key("a", 4, u32(1))}, {}, 0)) == "");
  const std::string bytes = gguf_bytes_of({gguf_key("a", 4, u32(1))}, {}, 0);
  CHECK(complaint(bytes.substr(0, 24 + 17)) == "");
  CHECK(complaint(gguf_bytes_of({}, {gguf_info("e", {0, 3}, 0, 64)}, 0)) != "");
  CHECK(complaint(gguf_bytes_of({}, {gguf_info("e", {0, 3}, 0, 0)}, 0)) == "");
}

TEST_CASE("what is no GGUF file is refused") {
  CHECK(complaint("") == "expected a GGUF file, found 0 bytes, too few for its head");
  CHECK(complaint("GGUF") == "expected a GGUF file, found 4 bytes, too few for its head");
  CHECK(complaint(std::string(64, 'x')) ==
        "expected a GGUF file, found \"xxxx\" in its first 4 bytes");
}

TEST_CASE("other versions are refused") {
  for (std::uint32_t version : {0u, 1u, 4u, 70000u})
    CHECK(complaint(gguf_bytes().raw("GGUF").u32(version).u64(0).u64(0).str()) ==
          "expected version 2 or 3, found " + std::to_string(version));
}

TEST_CASE("a big-endian file is refused by that name") {
  CHECK(complaint(support::read_all(BL_TEST_DATA "/big_endian.gguf")) ==
        "expected a little-endian file, found a big-endian one");
}

TEST_CASE("counts beyond the file are refused before anything is kept") {
  const std::string head = "GGUF" + u32(3);
  for (std::uint64_t count : {std::uint64_t{5}, std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
    CHECK(complaint(head + gguf_bytes().u64(0).u64(count).raw(std::string(30, '\0')).str())
              .find("metadata at byte 24: expected " + std::to_string(count) + " times 14") == 0);
    CHECK(complaint(head + gguf_bytes().u64(count).u64(0).raw(std::string(30, '\0')).str())
              .find("tensor infos at byte 24: expected " + std::to_string(count)) == 0);
  }
}

TEST_CASE("keys that are empty, too long or there twice are refused") {
  CHECK(key_complaint(gguf_key("", 4, u32(1))) ==
        "metadata key 0: expected a key of 1 to 65535 bytes, found 0");
  CHECK(key_complaint(gguf_key(std::string(65536, 'k'), 4, u32(1))) ==
        "metadata key 0: expected a key of 1 to 65535 bytes, found 65536");
  const std::string a = gguf_key("a", 4, u32(1));
  CHECK(complaint(gguf_bytes_of({a, a}, {}, 0)) == "metadata \"a\": is there twice");
}

TEST_CASE("types that do not exist are refused") {
  CHECK(key_complaint(gguf_key("a", 13, u32(1))) ==
        "metadata \"a\": type: expected a number of 0 to 12, found 13");
  CHECK(key_complaint(gguf_key("a", 9, array(13, 0))) ==
        "metadata \"a\": type of an array's elements: expected a number of 0 to 12, found 13");
}

TEST_CASE("texts and arrays that pass the end are refused") {
  for (std::uint64_t length : {std::uint64_t{1000}, ~std::uint64_t{0}, std::uint64_t{1} << 63}) {
    const std::string n = std::to_string(length);
    CHECK(key_complaint(gguf_key("a", 8, gguf_bytes().u64(length).str()))
              .find("metadata \"a\": text at byte 45: expected " + n + " times 1 byte, found") ==
          0);
    CHECK(key_complaint(gguf_key("a", 9, array(10, length)))
              .find("metadata \"a\": UINT64 at byte 49: expected " + n + " times 8 bytes") == 0);
    CHECK(key_complaint(gguf_key("a", 9, array(8, length)))
              .find("metadata \"a\": elements of an array at byte 49: expected " + n) == 0);
    CHECK(key_complaint(gguf_key("a", 9, array(9, length)))
              .find("metadata \"a\": elements of an array at byte 49: expected " + n) == 0);
  }
  CHECK(key_complaint(gguf_key("a", 9, array(8, 1) + gguf_bytes().u64(99).str()))
            .find("metadata \"a\": text at byte 57: expected 99 times 1 byte") == 0);
}

TEST_CASE("truth values other than 0 and 1 are refused") {
  CHECK(key_complaint(gguf_key("a", 7, "\2")) ==
        "metadata \"a\": BOOL at byte 37: expected 0 or 1, found 2");
  CHECK(key_complaint(gguf_key("a", 9, array(7, 3) + std::string("\1\0\xff", 3))) ==
        "metadata \"a\": BOOL at byte 51: expected 0 or 1, found 255");
}

TEST_CASE("arrays may nest eight deep and no deeper") {
  const auto nested = [](int depth) {
    std::string s;
    for (int i = 1; i < depth; ++i) s += array(9, 1);
    return gguf_key("a", 9, s + array(0, 1) + "x");
  };
  CHECK(key_complaint(nested(8)) == "");
  CHECK(key_complaint(nested(9)) == "metadata \"a\": expected arrays at most 8 deep, found more");
  CHECK(key_complaint(nested(5000)) ==
        "metadata \"a\": expected arrays at most 8 deep, found more");
}

TEST_CASE("alignments that are no power of two are refused") {
  for (std::uint32_t n : {0u, 3u, 48u})
    CHECK(
        key_complaint(gguf_key("general.alignment", 4, u32(n))) ==
        "metadata \"general.alignment\": expected an UINT32 that is a power of two, found UINT32 " +
            std::to_string(n));
  CHECK(key_complaint(gguf_key("general.alignment", 10, gguf_bytes().u64(32).str()))
            .find("found UINT64 32") != std::string::npos);
  for (std::uint32_t n : {1u, 8u, 4096u, 1u << 31})
    CHECK(key_complaint(gguf_key("general.alignment", 4, u32(n))) == "");
}

TEST_CASE("tensor names that are empty or there twice are refused") {
  CHECK(tensor_complaint(gguf_info("", {4}, 0, 0)) ==
        "tensor 0 of the list: expected a name, found an empty one");
  CHECK(complaint(gguf_bytes_of({}, {gguf_info("t", {4}, 0, 0), gguf_info("t", {4}, 0, 32)}, 64)) ==
        "tensor \"t\": is there twice");
}

TEST_CASE("shapes that cannot be are refused") {
  const std::uint64_t big = std::uint64_t{1} << 62;
  CHECK(tensor_complaint(gguf_info("t", {1, 1, 1, 1, 1}, 0, 0)) ==
        "tensor \"t\": expected at most 4 dimensions, found 5");
  CHECK(tensor_complaint(gguf_info("t", {big * 2}, 0, 0)) ==
        "tensor \"t\": dimension 9223372036854775808 is too large");
  CHECK(tensor_complaint(gguf_info("t", {big, 4}, 0, 0)) ==
        "tensor \"t\": F32 [4, 4611686018427387904] is too large");
  CHECK(tensor_complaint(gguf_info("t", {big}, 0, 0)) ==
        "tensor \"t\": F32 [4611686018427387904] is too large");
  CHECK(tensor_complaint(gguf_info("t", {33, 2}, 8, 0)) ==
        "tensor \"t\": Q8_0 [2, 33]: expected rows of a multiple of 32 elements, found 33");
  CHECK(tensor_complaint(gguf_info("t", {}, 8, 0)) ==
        "tensor \"t\": Q8_0 []: expected rows of a multiple of 32 elements, found 1");
  CHECK(tensor_complaint(gguf_info("t", {}, 0, 0)) == "");
}

TEST_CASE("tensor types that are not known are refused") {
  for (std::uint32_t type : {4u, 31u, 42u, ~0u})
    CHECK(tensor_complaint(gguf_info("t", {256}, type, 0)) ==
          "tensor \"t\": type " + std::to_string(type) +
              " is not known, so its size cannot be checked");
}

TEST_CASE("tensors off the alignment or outside the file are refused") {
  CHECK(tensor_complaint(gguf_info("t", {4}, 0, 8)) ==
        "tensor \"t\": expected an offset on a multiple of 32, found 8");
  CHECK(tensor_complaint(gguf_info("t", {8}, 0, 4064)) == "");
  CHECK(tensor_complaint(gguf_info("t", {9}, 0, 4064)) ==
        "tensor \"t\": F32 [9] at bytes 4064 to 4100 of the data passes its end at 4096");
  CHECK(tensor_complaint(gguf_info("t", {4}, 0, 1u << 20)).find("passes its end") !=
        std::string::npos);
  CHECK(tensor_complaint(gguf_info("t", {4}, 0, ~std::uint64_t{31})).find("passes its end") !=
        std::string::npos);
  CHECK(tensor_complaint(gguf_info("t", {64}, 0, ~std::uint64_t{31})) ==
        "tensor \"t\": F32 [64] at offset 18446744073709551584 is too large");
}

TEST_CASE("tensors that overlap are refused") {
  CHECK(complaint(gguf_bytes_of({}, {gguf_info("b", {9}, 0, 32), gguf_info("a", {9}, 0, 0)}, 99)) ==
        "tensor \"b\": bytes 32 to 68 of the data overlap tensor \"a\", which ends at 36");
  CHECK(complaint(
            gguf_bytes_of({}, {gguf_info("b", {9}, 0, 64), gguf_info("a", {9}, 0, 0)}, 100)) == "");
}

TEST_CASE("names in errors are cut and stay on one line") {
  const std::string text = tensor_complaint(gguf_info(std::string(500, '\n'), {9}, 77, 0));
  CHECK(text.find("tensor \"" + std::string(120, '?') + "...\": type 77") == 0);
}

namespace {

struct outcome {
  int opened = 0, refused = 0;
};

/// Opens the bytes as a file; if that succeeds, touches everything that it promises.
void try_open(const std::filesystem::path& path, const std::string& bytes, outcome& count) {
  support::write_all(path, bytes);
  try {
    const bl::gguf_file file(path);
    unsigned sum = 0;
    for (const auto& e : file.metadata().entries()) {
      REQUIRE(file.metadata().find(e.key) == &e.value);
      sum += static_cast<unsigned>(e.value.describe().size());
      e.value.for_each(
          [&](const bl::gguf_value& v) { sum += static_cast<unsigned>(v.describe().size()); });
    }
    for (const bl::gguf_tensor& t : file.tensors()) {
      REQUIRE(file.find(t.name) == &t);
      REQUIRE(file.data_offset() + t.end <= std::max(bytes.size(), file.data_offset() + t.begin));
      for (std::byte b : file.bytes(t)) sum += static_cast<unsigned>(b);
      if (bl::can_dequantize(t.type)) sum += static_cast<unsigned>(bl::dequantize(file, t).size());
    }
    CHECK(sum < ~0u);
    ++count.opened;
  } catch (const bl::error& e) {
    REQUIRE(std::string(e.what()).find(path.string()) == 0);
    ++count.refused;
  }
}

/// Mostly in the header, where a change says something.
void mutate(std::string& bytes, support::random& random) {
  static const std::string alphabet("\0\0\0\1\2\3\4\5\6\7\10\11\12\13\14\15\40\177\200\377", 20);
  support::damage(bytes, random, alphabet, 1000);
}

}  // namespace

TEST_CASE("GGUF files damaged anywhere never crash the reader") {
  temporary_folder folder;
  support::random random(21);
  for (const char* name : {"/metadata.gguf", "/quantized.gguf"}) {
    const std::string good = support::read_all(BL_TEST_DATA + std::string(name));
    outcome count;
    try_open(folder / "f", good, count);
    REQUIRE(count.opened == 1);
    for (int i = 0; i < 6000; ++i) {
      std::string bytes = good;
      mutate(bytes, random);
      try_open(folder / "f", bytes, count);
    }
    CHECK(count.opened > 100);  // changes inside data and texts
    CHECK(count.refused > 1000);
  }
}

TEST_CASE("GGUF files cut anywhere are refused") {
  temporary_folder folder;
  const std::string good = support::read_all(BL_TEST_DATA "/metadata.gguf");
  const std::size_t end = 8 + [&] {
    const bl::gguf_file file(BL_TEST_DATA "/metadata.gguf");
    return static_cast<std::size_t>(file.data_offset() + file.at("long").begin);
  }();
  outcome count;
  for (std::size_t size = 0; size < end; ++size)
    try_open(folder / "f", good.substr(0, size), count);
  CHECK(count.opened == 0);
  CHECK(count.refused == static_cast<int>(end));
}
