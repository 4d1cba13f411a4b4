// SPDX-License-Identifier: MIT
// Tokens that are found in the text before anything else is done to it, the longest first: the
// special ones and what a model's author added. Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <llama/tokenizer/json_node.hpp>
#include <llama/tokenizer/normalizer.hpp>
#include <llama/tokenizer/pre_tokenizer.hpp>
#include <llama/tokenizer/regex.hpp>
#include <llama/tokenizer/utf8.hpp>
#include <llama/tokenizer/vocabulary.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llama::tokenization {

/// One entry of "added_tokens".
struct added_token {
  int id = -1;
  std::string content;
  bool single_word = false;  ///< not inside a word
  bool lstrip = false;       ///< takes the white space before it
  bool rstrip = false;       ///< takes the white space after it
  bool normalized = false;   ///< is looked for after the normalizer
  bool special = false;      ///< is left out of decoded text on demand

  static added_token read(const json_node& node) {
    added_token t;
    t.id = node.at("id").integer(vocabulary::max_size);
    t.content = node.at("content").text();
    t.single_word = node.flag("single_word", false);
    t.lstrip = node.flag("lstrip", false);
    t.rstrip = node.flag("rstrip", false);
    t.special = node.flag("special", false);
    t.normalized = node.flag("normalized", !t.special);
    return t;
  }
};

/// A set of texts, of which the longest that begins at a place is found in one walk.
class text_set {
 public:
  /// The first of two equal texts counts. An empty text is in no set.
  void add(std::string_view text, int value) {
    if (text.empty()) return;
    leads_[static_cast<unsigned char>(text.front())] = true;
    std::uint32_t node = 0;
    for (const char c : text) {
      const auto next = static_cast<std::uint32_t>(values_.size());
      const auto [edge, is_new] = edges_.try_emplace(key(node, c), next);
      if (is_new) values_.push_back(-1);
      node = edge->second;
    }
    if (values_[node] < 0) values_[node] = value;
  }

  struct found {
    int value = -1;  ///< -1: none
    std::size_t length = 0;
  };
  found longest(std::string_view text, std::size_t position) const {
    found best;
    if (!leads_[static_cast<unsigned char>(text[position])]) return best;
    std::uint32_t node = 0;
    for (std::size_t i = position; i < text.size(); ++i) {
      const auto edge = edges_.find(key(node, text[i]));
      if (edge == edges_.end()) break;
      node = edge->second;
      if (values_[node] >= 0) best = {values_[node], i + 1 - position};
    }
    return best;
  }

 private:
  static std::uint64_t key(std::uint32_t node, char c) {
    return static_cast<std::uint64_t>(node) << 8 | static_cast<unsigned char>(c);
  }

  std::unordered_map<std::uint64_t, std::uint32_t> edges_;  // (node, byte) -> node; 0 is the root
  std::vector<int> values_{-1};
  std::array<bool, 256> leads_{};
};

/// All added tokens of a tokenizer.
class added_tokens {
 public:
  added_tokens() = default;
  added_tokens(std::vector<added_token> tokens, const normalizer& normalize)
      : tokens_(std::move(tokens)) {
    // Where two look the same after the normalizer a special one is found.
    std::stable_partition(tokens_.begin(), tokens_.end(),
                          [](const added_token& t) { return t.special; });
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      const added_token& t = tokens_[i];
      if (t.normalized) {
        normalized_.add(normalize(t.content), static_cast<int>(i));
      } else {
        raw_.add(t.content, static_cast<int>(i));
      }
    }
  }

  /// Calls `plain(span)` and `token(id)` for what `text` consists of, from left to right.
  /// @param normalized whether `text` has passed the normalizer: other tokens are looked for then
  template <class Plain, class Token>
  void split(std::string_view text, bool normalized, Plain&& plain, Token&& token) const {
    const text_set& set = normalized ? normalized_ : raw_;
    std::size_t done = 0;
    for (std::size_t i = 0; i < text.size();) {
      const text_set::found match = set.longest(text, i);
      if (match.value < 0) {
        ++i;
        continue;
      }
      const added_token& t = tokens_[static_cast<std::size_t>(match.value)];
      span where{i, i + match.length};
      i = where.end;
      if (t.single_word &&
          (ends_with_word(text.substr(0, where.begin)) || begins_with_word(text.substr(where.end))))
        continue;
      if (t.lstrip) where.begin = std::max(done, without_space_at_end(text, where.begin));
      if (t.rstrip) where.end = after_space(text, where.end);
      if (done < where.begin) plain(span{done, where.begin});
      token(t.id);
      done = where.end;
    }
    if (done < text.size()) plain(span{done, text.size()});
  }

 private:
  static bool begins_with_word(std::string_view text) {
    static const regex word =
        regex::from_pattern("\\A[" + unicode_word() + "\\x{200c}\\x{200d}]", "word");
    if (text.empty()) return false;
    bool found = false;
    word.for_each_match(text.substr(0, next_code_point(text, 0).length),
                        [&](std::size_t, std::size_t) { found = true; });
    return found;
  }
  static bool ends_with_word(std::string_view text) {
    return !text.empty() && begins_with_word(text.substr(previous_code_point(text, text.size())));
  }
  static std::size_t without_space_at_end(std::string_view text, std::size_t end) {
    while (end > 0) {
      const std::size_t previous = previous_code_point(text, end);
      if (!is_space(next_code_point(text, previous).code_point)) break;
      end = previous;
    }
    return end;
  }
  static std::size_t after_space(std::string_view text, std::size_t begin) {
    while (begin < text.size()) {
      const utf8_step step = next_code_point(text, begin);
      if (!is_space(step.code_point)) break;
      begin += step.length;
    }
    return begin;
  }

  std::vector<added_token> tokens_;
  text_set raw_, normalized_;
};

}  // namespace llama::tokenization
