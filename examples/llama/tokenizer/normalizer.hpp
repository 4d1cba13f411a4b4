// SPDX-License-Identifier: MIT
// What is done to text before it is split: Prepend, Replace and Unicode's forms, alone or in a
// Sequence. Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#include <llama/tokenizer/json_node.hpp>
#include <llama/tokenizer/regex.hpp>
#include <llama/tokenizer/unicode_form.hpp>
#include <llama/tokenizer/utf8.hpp>

#include <algorithm>
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

/// NFC and NFD; NFKC and NFKD without their tables: ASCII, which they leave as it is, passes, other
/// text is an error, so that no wrong ids come out.
struct unicode_form {
  std::string name;  ///< "NFC", ...

  void operator()(std::string& s) const {
    const auto ascii = [](char c) { return static_cast<unsigned char>(c) < 0x80; };
    const auto other = std::find_if_not(s.begin(), s.end(), ascii);
    if (other == s.end()) return;
    if (name == "NFC") {
      s = canonical_forms::get().composed(s);
    } else if (name == "NFD") {
      s = canonical_forms::get().decomposed(s);
    } else {
      const auto at = static_cast<std::size_t>(other - s.begin());
      throw bitladder::error(
          bitladder::status::invalid_argument,
          "the tokenizer asks for " + name + " and the text holds \"" +
              s.substr(at, next_code_point(s, at).length) +
              "\", which may change under it; normalize the text before it is encoded");
    }
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
