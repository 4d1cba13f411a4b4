// SPDX-License-Identifier: MIT
// How text is cut into the words that byte-pair encoding then works on, each alone: ByteLevel,
// Split, Digits and Metaspace, alone or in a Sequence. Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <llama/tokenizer/byte_alphabet.hpp>
#include <llama/tokenizer/json_node.hpp>
#include <llama/tokenizer/normalizer.hpp>
#include <llama/tokenizer/regex.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace llama::tokenization {

/// A part of a text, [begin, end) in bytes.
struct span {
  std::size_t begin = 0, end = 0;
};

/// A text and the words that it is cut into, from left to right; no word is empty.
struct word_list {
  std::string text;
  std::vector<span> words;
  bool opens_input = false;  ///< whether `text` is the beginning of what the user gave

  std::string_view word(span s) const {
    return std::string_view(text).substr(s.begin, s.end - s.begin);
  }
  /// Whether a word is the beginning of what the user gave.
  bool opens(span s) const { return opens_input && s.begin == 0; }

  /// Writes each word anew: `write(out, word, opens)` appends to `out`.
  template <class Write>
  void rewrite(Write&& write) {
    std::string out;
    out.reserve(text.size() * 2);
    const bool still_opens = !words.empty() && opens(words.front());
    for (span& s : words) {
      const std::size_t begin = out.size();
      write(out, word(s), opens(s));
      s = {begin, out.size()};
    }
    text = std::move(out);
    opens_input = still_opens;
  }
};

/// What becomes of the matches of a split, and of the text between them.
enum class split_behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

/// Cuts every word at the matches of a pattern.
struct split {
  regex pattern;
  split_behavior behavior = split_behavior::isolated;
  bool invert = false;  ///< the pattern tells the words, not what is between them

  static split read(const json_node& node) {
    split s{read_pattern(node.at("pattern"))};
    const json_node behavior = node.at("behavior");
    const std::string name = behavior.text();
    if (name == "Removed") {
      s.behavior = split_behavior::removed;
    } else if (name == "Isolated") {
      s.behavior = split_behavior::isolated;
    } else if (name == "MergedWithPrevious") {
      s.behavior = split_behavior::merged_with_previous;
    } else if (name == "MergedWithNext") {
      s.behavior = split_behavior::merged_with_next;
    } else if (name == "Contiguous") {
      s.behavior = split_behavior::contiguous;
    } else {
      behavior.fail("\"" + name + "\" is not a behavior");
    }
    s.invert = node.flag("invert", false);
    return s;
  }

  void operator()(word_list& list) const {
    std::vector<span> words;
    std::vector<piece> pieces;
    for (const span s : list.words) {
      pieces.clear();
      cut(list.word(s), pieces);
      const std::size_t first = words.size();
      // A match that sticks to its neighbour extends the piece before it; from right to left the
      // same rule makes it stick to the next one.
      bool previous = false;
      const auto take = [&](const piece& p) {
        if (behavior == split_behavior::removed && p.match) return;
        const bool joins = behavior == split_behavior::contiguous ? p.match == previous
                           : behavior == split_behavior::merged_with_previous ||
                                   behavior == split_behavior::merged_with_next
                               ? p.match && !previous
                               : false;
        previous = p.match;
        const span here{s.begin + p.where.begin, s.begin + p.where.end};
        if (!joins || words.size() == first) {
          words.push_back(here);
        } else if (behavior == split_behavior::merged_with_next) {
          words.back().begin = here.begin;
        } else {
          words.back().end = here.end;
        }
      };
      if (behavior == split_behavior::merged_with_next) {
        for (auto p = pieces.rbegin(); p != pieces.rend(); ++p) take(*p);
        std::reverse(words.begin() + static_cast<std::ptrdiff_t>(first), words.end());
      } else {
        for (const piece& p : pieces) take(p);
      }
    }
    list.words = std::move(words);
  }

 private:
  struct piece {
    span where;
    bool match;
  };

  /// The matches and what is between them, which together are the whole word.
  void cut(std::string_view word, std::vector<piece>& pieces) const {
    std::size_t done = 0;
    pattern.for_each_match(word, [&](std::size_t begin, std::size_t end) {
      if (begin > done) pieces.push_back({{done, begin}, invert});
      pieces.push_back({{begin, end}, !invert});
      done = end;
    });
    if (done < word.size()) pieces.push_back({{done, word.size()}, invert});
  }
};

/// Writes each word in the byte-level alphabet.
struct byte_level {
  void operator()(word_list& list) const {
    list.rewrite([](std::string& out, std::string_view word, bool) {
      byte_level_alphabet.append_encoded(out, word);
    });
  }
};

/// Puts a space before each word that has none.
struct prefix_space {
  void operator()(word_list& list) const {
    list.rewrite([](std::string& out, std::string_view word, bool) {
      if (word.front() != ' ') out += ' ';
      out += word;
    });
  }
};

/// When a word gets the mark of a leading space that it does not have.
enum class prepend_scheme { first, always, never };

/// SentencePiece's spaces: each becomes a visible mark, and one may be put in front.
struct metaspace {
  std::string mark;
  prepend_scheme scheme = prepend_scheme::always;

  static metaspace read(const json_node& node) {
    metaspace m{node.at("replacement").text()};
    if (next_code_point(m.mark + " ", 0).length != m.mark.size())
      node.fail("a replacement of one character expected, found \"" + m.mark + "\"");
    const std::string name =
        node.has("prepend_scheme") ? node.at("prepend_scheme").text() : "always";
    if (name == "first") {
      m.scheme = prepend_scheme::first;
    } else if (name == "never" || !node.flag("add_prefix_space", true)) {
      m.scheme = prepend_scheme::never;  // older files have only add_prefix_space
    } else if (name != "always") {
      node.at("prepend_scheme").fail("first, always or never expected, found \"" + name + "\"");
    }
    return m;
  }

  void operator()(word_list& list) const {
    list.rewrite([this](std::string& out, std::string_view word, bool opens) {
      const bool marked = word.front() == ' ' || word.substr(0, mark.size()) == mark;
      const bool wanted =
          scheme == prepend_scheme::always || (scheme == prepend_scheme::first && opens);
      if (wanted && !marked) out += mark;
      for (const char c : word) {
        if (c == ' ') {
          out += mark;
        } else {
          out += c;
        }
      }
    });
  }
};

/// The "pre_tokenizer" component.
class pre_tokenizer {
 public:
  pre_tokenizer() = default;
  explicit pre_tokenizer(const json_node& node) { add(node); }

  /// Cuts the words further, each on its own.
  void operator()(word_list& list) const {
    for (const step& one : steps_) std::visit([&](const auto& f) { f(list); }, one);
  }

 private:
  using step = std::variant<split, byte_level, prefix_space, metaspace>;

  void add(const json_node& node) {
    const std::string type = node.type();
    if (type == "Sequence") {
      for (const json_node& part : node.at("pretokenizers").elements()) add(part);
    } else if (type == "Split") {
      steps_.emplace_back(split::read(node));
    } else if (type == "ByteLevel") {
      if (node.flag("add_prefix_space", true)) steps_.emplace_back(prefix_space{});
      // The pattern of GPT-2.
      if (node.flag("use_regex", true))
        steps_.emplace_back(split{regex::from_pattern(
            R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
            node.place())});
      steps_.emplace_back(byte_level{});
    } else if (type == "Digits") {
      const bool individual = node.flag("individual_digits", false);
      steps_.emplace_back(
          split{regex::from_pattern(individual ? R"(\p{N})" : R"(\p{N}+)", node.place())});
    } else if (type == "Metaspace") {
      const metaspace m = metaspace::read(node);
      steps_.emplace_back(m);
      if (node.flag("split", true))
        steps_.emplace_back(
            split{regex::from_text(m.mark, node.place()), split_behavior::merged_with_next});
    } else {
      node.fail("a pre-tokenizer of type \"" + type +
                "\" is not supported (Sequence, Split, ByteLevel, Digits, Metaspace are)");
    }
  }

  std::vector<step> steps_;
};

}  // namespace llama::tokenization
