// SPDX-License-Identifier: MIT
// Schedules from text, as a command line gives them. Tested by tests/schedule/schedule_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/schedule/any.hpp>
#include <bitladder/schedule/confidence.hpp>
#include <bitladder/schedule/observation.hpp>
#include <bitladder/schedule/progressive.hpp>
#include <bitladder/schedule/random_switch.hpp>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace schedule {

namespace detail {

/// Reads one schedule; every error shows the whole text.
class schedule_parser {
 public:
  schedule_parser(std::string_view text, int max_new_tokens, std::uint64_t seed)
      : text_(text), max_new_tokens_(max_new_tokens), seed_(seed) {}

  any parse() const {
    const std::size_t slash = text_.find('/');
    if (slash == std::string_view::npos) return decode(text_);
    const int prefill = number(text_.substr(0, slash));
    // A schedule behind one type is a schedule too.
    return any(phase_aware<any>(prefill, decode(text_.substr(slash + 1))));
  }

 private:
  any decode(std::string_view part) const {
    const auto after = [&](std::string_view name) {
      if (part.substr(0, name.size()) != name) return false;
      part.remove_prefix(name.size());
      return true;
    };
    if (after("confidence:")) return confidence(numbers(part));
    if (after("random:")) {
      const std::vector<int> bits = numbers(part);
      if (bits.size() != 2) fail("two precisions after \"random:\"");
      return random_switch(bits[0], bits[1], max_new_tokens_, seed_);
    }
    std::vector<progressive::change> changes;
    for (std::string_view item : split(part)) {
      const std::size_t at = item.find('@');
      if (at == std::string_view::npos && !changes.empty())
        fail("BITS@STEP after the first precision");
      changes.push_back({at == std::string_view::npos ? 1 : number(item.substr(at + 1)),
                         number(item.substr(0, at))});
    }
    return progressive(changes);
  }

  std::vector<std::string_view> split(std::string_view list) const {
    std::vector<std::string_view> items;
    for (;;) {
      const std::size_t comma = list.find(',');
      items.push_back(list.substr(0, comma));
      if (comma == std::string_view::npos) return items;
      list.remove_prefix(comma + 1);
    }
  }
  std::vector<int> numbers(std::string_view list) const {
    std::vector<int> all;
    for (std::string_view item : split(list)) all.push_back(number(item));
    return all;
  }
  int number(std::string_view item) const {
    int value = 0;
    const char* end = item.data() + item.size();
    const std::from_chars_result r = std::from_chars(item.data(), end, value);
    if (r.ec != std::errc() || r.ptr != end || value < 0)
      fail("a number, found \"" + std::string(item) + '"');
    return value;
  }
  [[noreturn]] void fail(const std::string& expected) const {
    throw error(status::invalid_argument,
                "schedule \"" + std::string(text_) + "\": expected " + expected);
  }

  std::string_view text_;
  int max_new_tokens_;
  std::uint64_t seed_;
};

}  // namespace detail

/// "4": one precision. "4,3@86,2@171": 4 bits, 3 from the 86th new token on, 2 from the 171st.
/// "confidence:4,3,2" and "random:4,2": the schedules of these names. "8/" before any of them: the
/// prompt at 8 bits.
/// @param max_new_tokens which a random switch is a share of
/// @throws error(invalid_argument) that shows the text, what was expected and what was found
inline any parse(std::string_view text, int max_new_tokens = 256, std::uint64_t seed = 0) {
  return detail::schedule_parser(text, max_new_tokens, seed).parse();
}

}  // namespace schedule
}  // namespace v0_1
}  // namespace bitladder
