// SPDX-License-Identifier: MIT
// A JSON value that knows where it stands, so that every complaint about a tokenizer.json names the
// file, the component and what was found there. Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llama::tokenization {

/// Text of a file as JSON; damage and nesting beyond `max_depth` are reported under `file`.
inline nlohmann::json parse_json(std::string_view text, const std::string& file) {
  using event = nlohmann::json::parse_event_t;
  // Real files nest about eight deep. The bound keeps the recursion over the components short.
  constexpr int max_depth = 64;
  const auto bounded = [&](int depth, event, nlohmann::json&) {
    if (depth <= max_depth) return true;
    throw bitladder::error(
        bitladder::status::bad_file,
        file + ": JSON nested at most " + std::to_string(max_depth) + " deep expected, found more");
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), bounded);
  } catch (const nlohmann::json::exception& e) {
    throw bitladder::error(bitladder::status::bad_file, file + ": not valid JSON: " + e.what());
  }
}

/// A value, and its place for error texts. Refers to the document, which must outlive it.
class json_node {
 public:
  json_node(const nlohmann::json& value, std::string place)
      : value_(&value), place_(std::move(place)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& place() const { return place_; }

  /// Throws with the place in front of `text`.
  [[noreturn]] void fail(const std::string& text) const {
    throw bitladder::error(bitladder::status::bad_file, place_ + ": " + text);
  }

  /// Whether the value is an object with this key, and not with null.
  bool has(const char* key) const {
    if (!value_->is_object()) fail(expected("an object"));
    const auto found = value_->find(key);
    return found != value_->end() && !found->is_null();
  }
  /// The value under a key that must be there.
  json_node at(const char* key) const {
    if (!has(key)) fail("\"" + std::string(key) + "\" is missing");
    return {value_->at(key), place_ + ": " + key};
  }
  /// The elements of an array.
  std::vector<json_node> elements() const {
    if (!value_->is_array()) fail(expected("an array"));
    std::vector<json_node> nodes;
    for (std::size_t i = 0; i < value_->size(); ++i)
      nodes.emplace_back((*value_)[i], place_ + "[" + std::to_string(i) + "]");
    return nodes;
  }

  std::string text() const {
    if (!value_->is_string()) fail(expected("a string"));
    return value_->get<std::string>();
  }
  bool flag() const {
    if (!value_->is_boolean()) fail(expected("true or false"));
    return value_->get<bool>();
  }
  /// A whole number from 0 to `limit` - 1.
  int integer(int limit) const {
    // Whole numbers without a sign are stored as unsigned; larger ones than that as floating point.
    if (!value_->is_number_unsigned() ||
        value_->get<std::uint64_t>() >= static_cast<std::uint64_t>(limit))
      fail(expected("a whole number from 0 to " + std::to_string(limit - 1)));
    return value_->get<int>();
  }
  bool flag(const char* key, bool fallback) const { return has(key) ? at(key).flag() : fallback; }
  /// What kind of component this object is.
  std::string type() const { return at("type").text(); }

 private:
  std::string expected(const std::string& what) const {
    std::string found = value_->dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    if (found.size() > 60) found = found.substr(0, 60) + "...";
    return what + " expected, found " + found;
  }

  const nlohmann::json* value_;
  std::string place_;
};

}  // namespace llama::tokenization
