// SPDX-License-Identifier: MIT
// Typed access to the keys of a JSON object in a file: every complaint names the file, the key,
// what was expected and what was found. A null value counts as absent, as in Hugging Face configs.
// Tested by tests/llama/config_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/json.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace llama {

/// A JSON object and where it stands.
class json_reader {
 public:
  /// @throws bitladder::error if the file cannot be read or is not one JSON object
  static json_reader open(const std::filesystem::path& path) {
    return json_reader(path.string(), "", bitladder::read_json(path));
  }

  /// True if `key` is there and not null.
  bool has(const char* key) const {
    const auto it = value_.find(key);
    return it != value_.end() && !it->is_null();
  }

  /// True if `key` is there and null.
  bool is_null(const char* key) const {
    const auto it = value_.find(key);
    return it != value_.end() && it->is_null();
  }

  /// @throws always: file, key, `expected`, and the value found
  [[noreturn]] void fail(const char* key, const std::string& expected) const {
    const auto it = value_.find(key);
    std::string found = it == value_.end() ? "nothing" : dump(*it);
    if (found.size() > 200) found = found.substr(0, 200) + "...";
    throw bitladder::error(
        bitladder::status::bad_file,
        path_ + ": key \"" + prefix_ + key + "\": expected " + expected + ", found " + found);
  }

  json_reader object(const char* key) const {
    if (!has(key) || !value_.at(key).is_object()) fail(key, "an object");
    return json_reader(path_, prefix_ + key + ".", value_.at(key));
  }

  std::string text(const char* key) const {
    if (!has(key) || !value_.at(key).is_string()) fail(key, "a string");
    return value_.at(key).get<std::string>();
  }
  std::string text_or(const char* key, const std::string& otherwise) const {
    return has(key) ? text(key) : otherwise;
  }
  std::vector<std::string> texts(const char* key) const {
    if (!has(key) || !value_.at(key).is_array()) fail(key, "a list of strings");
    std::vector<std::string> out;
    for (const nlohmann::json& v : value_.at(key)) {
      if (!v.is_string()) fail(key, "a list of strings");
      out.push_back(v.get<std::string>());
    }
    return out;
  }

  bool boolean_or(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!value_.at(key).is_boolean()) fail(key, "true or false");
    return value_.at(key).get<bool>();
  }

  double number_or(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    if (!value_.at(key).is_number()) fail(key, "a number");
    return value_.at(key).get<double>();
  }
  double positive_number(const char* key) const {
    const double x = number_or(key, 0);
    if (!(x > 0) || !std::isfinite(x)) fail(key, "a positive number");
    return x;
  }
  double positive_number_or(const char* key, double otherwise) const {
    return has(key) ? positive_number(key) : otherwise;
  }

  int positive_integer(const char* key) const {
    const int x = has(key) ? integer(value_.at(key), key) : 0;
    if (x <= 0) fail(key, "a positive integer");
    return x;
  }
  int positive_integer_or(const char* key, int otherwise) const {
    return has(key) ? positive_integer(key) : otherwise;
  }

  /// 0 or more.
  int natural_or(const char* key, int otherwise) const {
    const int x = has(key) ? integer(value_.at(key), key) : otherwise;
    if (x < 0) fail(key, "0 or more");
    return x;
  }

  /// An integer, a list of integers, or nothing.
  std::vector<int> integers_or_empty(const char* key) const {
    std::vector<int> out;
    if (!has(key)) return out;
    const nlohmann::json& v = value_.at(key);
    if (!v.is_array()) return {integer(v, key)};
    for (const nlohmann::json& item : v) out.push_back(integer(item, key));
    return out;
  }

 private:
  json_reader(std::string path, std::string prefix, nlohmann::json value)
      : path_(std::move(path)), prefix_(std::move(prefix)), value_(std::move(value)) {
    if (!value_.is_object())
      throw bitladder::error(bitladder::status::bad_file,
                             path_ + ": expected a JSON object, found " + value_.type_name());
  }

  static std::string dump(const nlohmann::json& v) {
    return v.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }

  int integer(const nlohmann::json& v, const char* key) const {
    if (!v.is_number_integer()) fail(key, "an integer");
    if (v.is_number_unsigned()) {
      if (v.get<std::uint64_t>() > std::numeric_limits<int>::max()) fail(key, "a 31-bit integer");
      return static_cast<int>(v.get<std::uint64_t>());
    }
    const std::int64_t x = v.get<std::int64_t>();
    if (x < std::numeric_limits<int>::min()) fail(key, "a 31-bit integer");
    return static_cast<int>(x);
  }

  std::string path_;
  std::string prefix_;
  nlohmann::json value_;
};

}  // namespace llama
