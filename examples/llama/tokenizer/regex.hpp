// SPDX-License-Identifier: MIT
// Regular expressions of tokenizer.json over PCRE2. The format's patterns are written for Oniguruma
// with Ruby syntax; where the two read a pattern differently it is rewritten, or refused when it
// cannot be. Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <llama/tokenizer/late_characters.hpp>

#include <pcre2.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

namespace llama::tokenization {

/// What this build of PCRE2 lacks of a property, as the inside of brackets; mostly nothing.
inline std::string_view late_characters(std::string_view property) {
  static const bool is_old = [] {
    std::array<char, 64> version{};
    const int size = pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, nullptr);
    if (size <= 0 || size > static_cast<int>(version.size())) return false;
    pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, version.data());
    return std::atoi(version.data()) < 16;
  }();
  if (is_old)
    for (const late_property& late : late_properties)
      if (late.name == property) return late.characters;
  return {};
}

/// Unicode's word characters, as the inside of brackets, from properties that every PCRE2 knows.
inline const std::string& unicode_word() {
  static const std::string word = [] {
    std::string all =
        R"(\p{Pc}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";
    for (const char* property : {"L", "M", "Nd", "Nl"})
      all.append("\\p{").append(property).append("}").append(late_characters(property));
    return all;
  }();
  return word;
}

/// Whether this build of PCRE2 accepts a pattern.
inline bool compiles(const std::string& pattern) {
  int failure = 0;
  std::size_t offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF, &failure, &offset, nullptr);
  pcre2_code_free(code);
  return code != nullptr;
}

/// Rewrites an Oniguruma pattern as one that PCRE2 reads the same way.
/// @param place where the pattern stands, for error texts
inline std::string to_pcre2(std::string_view pattern, const std::string& place) {
  // PCRE2's own \s holds U+180E, which is no white space, its \w lacks marks and connectors, and
  // from 10.40 on \p{Han} takes in the characters that the script shares with others.
  constexpr std::string_view space = R"(\t-\r \x{85}\p{Z})";
  // Oniguruma's \w has six numbers of Latin-1 that Unicode does not count as word characters.
  const std::string word = unicode_word() + R"(\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})";
  const std::string digit = "\\p{Nd}" + std::string(late_characters("Nd"));
  constexpr std::string_view hex = "0-9A-Fa-f";
  const auto refuse = [&](const std::string& what) {
    throw bitladder::error(
        bitladder::status::bad_file,
        place + ": " + what + " is not supported in the pattern " + std::string(pattern));
  };

  std::string out;
  bool in_class = false;
  std::size_t class_begin = 0;  // first character after "[" or "[^": there "]" is a plain one
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    const std::string_view rest = pattern.substr(i);
    const auto begins = [&](std::string_view s) { return rest.substr(0, s.size()) == s; };
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      const std::string_view content = escaped == 's' || escaped == 'S'   ? space
                                       : escaped == 'w' || escaped == 'W' ? std::string_view(word)
                                       : escaped == 'd' || escaped == 'D' ? std::string_view(digit)
                                       : escaped == 'h' || escaped == 'H' ? hex
                                                                          : std::string_view{};
      const bool negated = escaped >= 'A' && escaped <= 'Z';
      const std::size_t close =
          i + 1 < pattern.size() && pattern[i + 1] == '{' ? pattern.find('}', i) : 0;
      if (close != 0 && close != std::string_view::npos && std::strchr("pPxku", escaped)) {
        const std::string name(pattern.substr(i + 2, close - i - 2));
        const bool is_property = escaped == 'p' || escaped == 'P';
        const bool is_script = is_property && compiles("\\p{sc:" + name + "}");
        const std::string body = (is_script ? "{sc:" : "{") + name + "}";
        const std::string_view late = is_property ? late_characters(name) : std::string_view();
        // Within a class \P keeps what PCRE2 knows: a class cannot take single characters out.
        if (late.empty() || (in_class && escaped == 'P')) {
          out.append({c, escaped}).append(body);
        } else if (in_class) {
          out.append("\\p").append(body).append(late);
        } else {
          out.append(escaped == 'p' ? "[\\p" : "[^\\p").append(body).append(late).append("]");
        }
        i = close;
      } else if (content.empty()) {
        out.append({c, escaped});
      } else if (!in_class) {
        out.append(negated ? "[^" : "[").append(content).append("]");
      } else if (!negated) {
        out.append(content);
      } else {
        refuse("a negated \\" + std::string(1, escaped) + " inside brackets");
      }
    } else if (in_class) {
      if (c == '[' && !begins("[:")) refuse("a bracket inside brackets");
      if (begins("&&")) refuse("an intersection (&&)");
      if (begins("[:")) {
        const std::size_t end = pattern.find(":]", i);
        if (end == std::string_view::npos) refuse("an open [:");
        out.append(pattern.substr(i, end + 2 - i));
        i = end + 1;
        continue;
      }
      if (c == ']' && i != class_begin) in_class = false;
      out += c;
    } else if (c == '[') {
      in_class = true;
      out += c;
      if (rest.size() > 1 && rest[1] == '^') {
        out += '^';
        ++i;
      }
      class_begin = i + 1;
    } else if (c == '{' && rest.size() > 1 && rest[1] == ',') {
      out += "{0";
    } else if (c == '}' && rest.size() > 1 && rest[1] == '+') {
      refuse("{...}+, greedy there and possessive here,");
    } else if (begins("(?") && rest.size() > 2 && rest[2] != ':' && rest[2] != '=' &&
               rest[2] != '!' && rest[2] != '<' && rest[2] != '>' && !begins("(?i:") &&
               !(begins("(?i)") && i == 0)) {
      refuse("the group " + std::string(rest.substr(0, 4)));
    } else {
      out += c;
    }
  }
  return out;
}

/// A compiled pattern. Copies share it; matching is const and may run on several threads.
class regex {
 public:
  /// A pattern of the file, in Oniguruma's syntax.
  static regex from_pattern(std::string_view pattern, const std::string& place) {
    return regex(to_pcre2(pattern, place), PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, place);
  }
  /// A pattern that stands for itself.
  static regex from_text(std::string_view text, const std::string& place) {
    return regex(text, PCRE2_UTF | PCRE2_LITERAL, place);
  }

  /// Calls `found(begin, end)` for each match from left to right; empty matches are left out.
  /// @param text valid UTF-8
  template <class Found>
  void for_each_match(std::string_view text, Found&& found) const {
    const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr), &pcre2_match_data_free);
    if (data == nullptr)
      throw bitladder::error(bitladder::status::out_of_memory, "no memory to match a pattern");
    std::size_t at = 0;
    while (at < text.size()) {
      const int result = match(text, at, data.get());
      if (result == PCRE2_ERROR_NOMATCH) return;
      if (result < 0)
        throw bitladder::error(bitladder::status::invalid_argument,
                               "cannot split the text: " + message(result));
      const std::size_t* range = pcre2_get_ovector_pointer(data.get());
      if (range[1] > range[0]) {
        found(range[0], range[1]);
        at = range[1];
      } else {
        at = range[0] + 1;  // to the next code point
        while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) ++at;
      }
    }
  }

 private:
  regex(std::string_view pattern, std::uint32_t options, const std::string& place) {
    // The line feed alone ends a line in Oniguruma; PCRE2's default depends on how it was built.
    const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
        pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
    if (context != nullptr) pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int failure = 0;
    std::size_t offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options,
                              &failure, &offset, context.get()),
                &pcre2_code_free);
    if (code_ == nullptr)
      throw bitladder::error(bitladder::status::bad_file,
                             place + ": cannot compile the pattern " + std::string(pattern) +
                                 " (character " + std::to_string(offset) +
                                 "): " + message(failure));
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // an interpreter is there when it fails
  }

  int match(std::string_view text, std::size_t at, pcre2_match_data* data) const {
    const auto run = [&](std::uint32_t options) {
      return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                         options, data, nullptr);
    };
    const int result = run(PCRE2_NO_UTF_CHECK);
    return result == PCRE2_ERROR_JIT_STACKLIMIT ? run(PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT) : result;
  }

  static std::string message(int failure) {
    std::array<PCRE2_UCHAR, 256> text{};
    pcre2_get_error_message(failure, text.data(), text.size());
    return reinterpret_cast<const char*>(text.data());
  }

  std::shared_ptr<pcre2_code> code_;
};

/// `text` with every match replaced by `content`.
inline std::string replace_all(const regex& pattern, std::string_view text,
                               std::string_view content) {
  std::string out;
  std::size_t done = 0;
  pattern.for_each_match(text, [&](std::size_t begin, std::size_t end) {
    out.append(text.substr(done, begin - done)).append(content);
    done = end;
  });
  return out.append(text.substr(done));
}

}  // namespace llama::tokenization
