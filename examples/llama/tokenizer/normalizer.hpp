// SPDX-License-Identifier: MIT
// What is done to text before it is split: Prepend and Replace, alone or in a Sequence, and the
// Unicode forms for text that they leave as it is. Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#include <llama/tokenizer/json_node.hpp>
#include <llama/tokenizer/regex.hpp>
#include <llama/tokenizer/utf8.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace llama::tokenization {

/// A pattern component: {"String": text} or {"Regex": pattern}.
inline regex read_pattern(const json_node& node) {
  if (node.has("Regex")) return regex::from_pattern(node.at("Regex").text(), node.place());
  return regex::from_text(node.at("String").text(), node.place());
}

/// Puts a text in front, unless there is nothing to put it in front of.
struct prepend {
  std::string text;

  void operator()(std::string& s) const {
    if (!s.empty()) s.insert(0, text);
  }
};

/// Replaces every match. Serves as a step of decoders as well.
struct replace {
  regex pattern;
  std::string content;

  static replace read(const json_node& node) {
    return {read_pattern(node.at("pattern")), node.at("content").text()};
  }
  void operator()(std::string& s) const { s = replace_all(pattern, s, content); }
};

/// NFC, NFD, NFKC and NFKD without their tables: text that surely stays as it is passes, other
/// text is an error, so that no wrong ids come out. Surely the same in every form is ASCII; in NFC
/// so are the blocks listed here, which hold no combining mark and nothing that composes with one
/// before it.
struct unicode_form {
  std::string name;  ///< "NFC", ...

  void operator()(std::string& s) const {
    for (std::size_t i = 0; i < s.size();) {
      const utf8_step step = next_code_point(s, i);
      if (!stays(step.code_point))
        throw bitladder::error(
            bitladder::status::invalid_argument,
            "the tokenizer asks for " + name + " and the text holds \"" + s.substr(i, step.length) +
                "\", which may change under it; normalize the text before it is encoded");
      i += step.length;
    }
  }

 private:
  bool stays(char32_t c) const {
    if (c < 0x80 || name != "NFC") return c < 0x80;
    struct range {
      char32_t first, last;
    };
    static constexpr std::array<range, 23> same_in_nfc{{
        {0x80, 0x2FF},       // Latin
        {0x370, 0x373},      // Greek, without the signs that have another form
        {0x388, 0x482},      // Greek and Cyrillic
        {0x48A, 0x590},      // Cyrillic, Armenian
        {0x5D0, 0x60F},      // Hebrew and Arabic letters
        {0x61B, 0x64A},      // Arabic
        {0x660, 0x66F},      // Arabic digits
        {0x671, 0x6D5},      // Arabic
        {0xE01, 0xE37},      // Thai
        {0xE3F, 0xE47},      // Thai
        {0x1E00, 0x1EFF},    // Latin with marks
        {0x2002, 0x20CF},    // punctuation and currency
        {0x2100, 0x2125},    // letterlike
        {0x212C, 0x2328},    // letterlike, numbers, arrows, mathematics
        {0x232B, 0x2ADB},    // technical to dingbats to mathematics
        {0x3000, 0x3029},    // Chinese and Japanese punctuation
        {0x3030, 0x3098},    // hiragana
        {0x309B, 0x3105},    // katakana
        {0x3106, 0x9FFF},    // Chinese, Japanese and Korean
        {0xAC00, 0xD7A3},    // hangul
        {0xFE00, 0xFE0F},    // variation selectors
        {0xFF01, 0xFFFD},    // full and half width
        {0x1F000, 0x1FBFF},  // emoji and pictures
    }};
    return std::any_of(same_in_nfc.begin(), same_in_nfc.end(),
                       [c](range r) { return c >= r.first && c <= r.last; });
  }
};

/// The "normalizer" component.
class normalizer {
 public:
  normalizer() = default;
  explicit normalizer(const json_node& node) { add(node); }

  std::string operator()(std::string_view text) const {
    std::string s(text);
    for (const step& one : steps_) std::visit([&](const auto& f) { f(s); }, one);
    return s;
  }

 private:
  using step = std::variant<prepend, replace, unicode_form>;

  void add(const json_node& node) {
    const std::string type = node.type();
    if (type == "Sequence") {
      for (const json_node& part : node.at("normalizers").elements()) add(part);
    } else if (type == "Prepend") {
      steps_.emplace_back(prepend{node.at("prepend").text()});
    } else if (type == "Replace") {
      steps_.emplace_back(replace::read(node));
    } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
      steps_.emplace_back(unicode_form{type});
    } else {
      node.fail("a normalizer of type \"" + type +
                "\" is not supported (Sequence, Prepend, Replace, NFC, NFD, NFKC, NFKD are)");
    }
  }

  std::vector<step> steps_;
};

}  // namespace llama::tokenization
