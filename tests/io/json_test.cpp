// SPDX-License-Identifier: MIT
// No random data.
#include <bitladder/io/json.hpp>

#include <support/files.hpp>

#include <doctest/doctest.h>

namespace bl = bitladder;
using support::error_of;
using support::thrown;

TEST_CASE("plain JSON comes through, in the order of the file if asked") {
  const std::string text = R"({"z": [1, 2.5, {"a": null}], "a": {"z": true, "a": "x"}})";
  CHECK(bl::parse_json(text, "t") == nlohmann::json::parse(text));
  CHECK(bl::parse_json<nlohmann::ordered_json>(text, "t").dump() ==
        R"({"z":[1,2.5,{"a":null}],"a":{"z":true,"a":"x"}})");
}

TEST_CASE("a key that is there twice is an error; the same key in two objects is not") {
  CHECK(error_of([] { bl::parse_json(R"({"a": 1, "b": {"a": 2}, "c": [{"a": 3}]})", "t"); }).text ==
        "");
  const thrown e = error_of([] { bl::parse_json(R"({"x": {"a": 1, "b": {}, "a": 2}})", "file"); });
  CHECK(e.code == bl::status::bad_file);
  CHECK(e.text == "file: key \"a\" is there twice");
}

TEST_CASE("nesting is read to the limit and no further") {
  const auto nested = [](std::size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  CHECK(error_of([&] { bl::parse_json(nested(64), "t"); }).text == "");
  CHECK(error_of([&] { bl::parse_json(nested(65), "t"); }).names("deeper than 64"));
  CHECK(error_of([&] { bl::parse_json(std::string(10000000, '['), "t"); }).names("deeper"));
}

TEST_CASE("what is not JSON is an error of bounded length that names the place") {
  for (const char* text :
       {"", "{", "{\"a\": }", "[1,]", "{} x", "\xff", "\"\xff\"", "nan", "[\"a]"}) {
    const thrown e = error_of([&] { bl::parse_json(text, "some/file"); });
    CHECK(e.code == bl::status::bad_file);
    CHECK(e.names("some/file: not valid JSON"));
  }
  CHECK(error_of([] { bl::parse_json(std::string("{}\0{}", 5), "t"); }).names("byte 2 is zero"));
  const thrown e = error_of([] { bl::parse_json("\"" + std::string(1000000, 'x'), "t"); });
  CHECK(e.text.size() < 400);
}

TEST_CASE("text that is not UTF-8 cannot be written") {
  CHECK(error_of([] { bl::to_json_text(nlohmann::json("\xff")); }).code ==
        bl::status::invalid_argument);
}
