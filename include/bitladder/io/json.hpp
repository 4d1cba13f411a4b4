// SPDX-License-Identifier: MIT
// JSON from files that nobody vouches for: duplicate keys, deep nesting and text after the value
// are errors here, where the parser alone would keep the last key and go on.
// Tested by tests/io/json_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/mmap.hpp>

#include <nlohmann/json.hpp>

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// Deepest nesting of objects and arrays that is read.
inline constexpr int max_json_depth = 64;

namespace detail {

/// The parser takes a zero byte for the end of its input and would ignore what follows.
inline void require_no_zero_byte(std::string_view json, const std::string& where) {
  const std::size_t at = json.find('\0');
  if (at != std::string_view::npos)
    throw error(status::bad_file,
                where + ": not valid JSON: byte " + std::to_string(at) + " is zero");
}

/// A parser's message; it quotes what it read last, which may be a whole file.
inline std::string shortened(std::string text) {
  constexpr std::size_t most = 300;
  if (text.size() > most) text = text.substr(0, most) + "...";
  return text;
}

}  // namespace detail

/// Parses one value.
/// @tparam Json nlohmann::json, or nlohmann::ordered_json to keep the order of keys (slower with
/// thousands of keys in one object)
/// @param where named in errors: a path, or a path and a part of it
/// @throws error(bad_file)
template <class Json = nlohmann::json>
Json parse_json(std::string_view text, const std::string& where) {
  int depth = 0;
  std::vector<std::unordered_set<std::string>> keys;  // of the objects that are open
  const auto watch = [&](int, typename Json::parse_event_t event, Json& parsed) {
    using kind = typename Json::parse_event_t;
    switch (event) {
      case kind::object_start: keys.emplace_back(); [[fallthrough]];
      case kind::array_start:
        if (++depth > max_json_depth)
          throw error(status::bad_file, where + ": JSON nested deeper than " +
                                            std::to_string(max_json_depth) + " levels");
        break;
      case kind::object_end: keys.pop_back(); [[fallthrough]];
      case kind::array_end: --depth; break;
      case kind::key: {
        const std::string& name = parsed.template get_ref<const std::string&>();
        if (!keys.back().insert(name).second)
          throw error(status::bad_file, where + ": key \"" + name + "\" is there twice");
        break;
      }
      case kind::value: break;
    }
    return true;
  };
  detail::require_no_zero_byte(text, where);
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const typename Json::exception& e) {
    throw error(status::bad_file, where + ": not valid JSON: " + detail::shortened(e.what()));
  }
}

/// Parses a whole file.
/// @throws error(not_found), error(io_failed) or error(bad_file), all naming the path
template <class Json = nlohmann::json>
Json read_json(const std::filesystem::path& path) {
  const mapped_file file(path);
  return parse_json<Json>(file.text(), path.string());
}

/// The value as JSON text on one line, or indented.
/// @throws error(invalid_argument) if a string in it is not UTF-8
template <class Json>
std::string to_json_text(const Json& value, int indent = -1) {
  try {
    return value.dump(indent);
  } catch (const typename Json::exception& e) {
    throw error(status::invalid_argument, std::string("cannot be written as JSON: ") + e.what());
  }
}

}  // namespace v0_1
}  // namespace bitladder
