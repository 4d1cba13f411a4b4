// SPDX-License-Identifier: MIT
// Byte-pair encoding of one word: characters become tokens, then neighbours merge, the lowest rank
// first and the leftmost among equals. O(n log n) in the length of the word.
// Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#include <llama/tokenizer/json_node.hpp>
#include <llama/tokenizer/pre_tokenizer.hpp>
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

/// The "model" component, less its vocabulary, which the caller keeps.
class bpe {
 public:
  /// Memory that is used again from word to word. One per thread.
  class scratch {
    friend class bpe;
    struct symbol {
      int id;          // -1: merged into the one before it
      int prev, next;  // neighbours in the word, -1 at its ends
    };
    struct candidate {
      int rank;
      int position;  // of the left one
      int id;        // what the two become
      /// Heap order: the top is the lowest rank, then the leftmost.
      bool operator<(const candidate& other) const {
        return rank != other.rank ? rank > other.rank : position > other.position;
      }
    };
    std::vector<symbol> symbols;
    std::vector<candidate> candidates;
  };

  bpe() = default;
  /// @param node "model", whose vocabulary is already in `words`
  bpe(const json_node& node, const vocabulary& words) {
    if (node.has("dropout") && node.at("dropout").value() != 0)
      node.at("dropout").fail("merges left out at random are not supported");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (node.has(key) && !node.at(key).text().empty())
        node.at(key).fail("not supported, an empty one expected, found \"" + node.at(key).text() +
                          "\"");
    ignore_merges_ = node.flag("ignore_merges", false);
    fuse_unknown_ = node.flag("fuse_unk", false);
    if (node.has("unk_token")) unknown_ = known_token(node.at("unk_token"), words);
    bytes_.fill(-1);
    if (node.flag("byte_fallback", false)) read_byte_tokens(words);
    for (char32_t c = 0; c < characters_.size(); ++c) {
      std::string text;
      append_code_point(text, c);
      characters_[c] = words.find(text);
    }
    // Without an unknown token a character can vanish, and what stood on both sides meets.
    marks_begin_words_ = !ignore_merges_ && unknown_ >= 0 && words.find(mark) >= 0;
    read_merges(node.at("merges"), words);
  }

  /// Cuts words before each run of SentencePiece's marks of a space (U+2581) when no merge reaches
  /// over such a place: the ids are the same, and come from a few short words again and again in
  /// place of one long one. These tokenizers often do not cut a text at all.
  void cut_at_marks(word_list& list) const {
    if (!marks_begin_words_) return;
    std::vector<span> words;
    for (const span s : list.words) {
      const std::string_view word = list.word(s);
      std::size_t begin = 0;
      for (std::size_t at = word.find(mark, 1); at != std::string_view::npos;) {
        if (!is_mark(word, at - std::min(at, mark.size()))) {
          words.push_back({s.begin + begin, s.begin + at});
          begin = at;
        }
        at = word.find(mark, at + mark.size());
      }
      words.push_back({s.begin + begin, s.end});
    }
    list.words = std::move(words);
  }

  /// Appends the ids of one word.
  void encode(std::string_view word, const vocabulary& words, scratch& memory,
              std::vector<int>& ids) const {
    if (ignore_merges_) {
      const int whole = words.find(word);
      if (whole >= 0) {
        ids.push_back(whole);
        return;
      }
    }
    read_characters(word, words, memory.symbols);
    merge_all(memory);
    // The first symbol never merges into another, so that the list starts there.
    for (int i = memory.symbols.empty() ? -1 : 0; i >= 0;) {
      const scratch::symbol& s = memory.symbols[static_cast<std::size_t>(i)];
      ids.push_back(s.id);
      i = s.next;
    }
  }

 private:
  struct merge {
    int rank;
    int id;
  };

  static constexpr std::string_view mark = "\u2581";
  static bool is_mark(std::string_view text, std::size_t at) {
    return text.substr(at, mark.size()) == mark;
  }
  static bool only_marks(std::string_view text) {
    while (is_mark(text, 0)) text.remove_prefix(mark.size());
    return text.empty();
  }

  static std::uint64_t pair_key(int left, int right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
           static_cast<std::uint32_t>(right);
  }

  static int known_token(const json_node& node, const vocabulary& words) {
    const int id = words.find(node.text());
    if (id < 0) node.fail("\"" + node.text() + "\" is not in the vocabulary");
    return id;
  }

  void read_byte_tokens(const vocabulary& words) {
    constexpr std::string_view digits = "0123456789ABCDEF";
    for (std::size_t byte = 0; byte < bytes_.size(); ++byte)
      bytes_[byte] = words.find(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
  }

  void read_merges(const json_node& node, const vocabulary& words) {
    const nlohmann::json& list = node.value();
    if (!list.is_array()) node.fail("an array expected");
    merges_.reserve(list.size());
    std::string both;
    for (std::size_t i = 0; i < list.size(); ++i) {
      const auto here = [&] {
        return json_node(list[i], node.place() + "[" + std::to_string(i) + "]");
      };
      std::string_view left, right;
      if (list[i].is_array() && list[i].size() == 2 && list[i][0].is_string() &&
          list[i][1].is_string()) {
        left = list[i][0].get_ref<const std::string&>();
        right = list[i][1].get_ref<const std::string&>();
      } else if (list[i].is_string()) {
        const std::string_view line = list[i].get_ref<const std::string&>();
        if (line.substr(0, 8) == "#version") continue;
        const std::size_t space = line.find(' ');
        if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos)
          here().fail("two tokens with a space between expected, found \"" + std::string(line) +
                      "\"");
        left = line.substr(0, space);
        right = line.substr(space + 1);
      } else {
        here().fail("\"left right\" or [\"left\", \"right\"] expected");
      }
      both.assign(left).append(right);
      for (const std::string_view token : {left, right, std::string_view(both)})
        if (words.find(token) < 0)
          here().fail("the merge of \"" + std::string(left) + "\" and \"" + std::string(right) +
                      "\" needs \"" + std::string(token) + "\", which is not in the vocabulary");
      if (is_mark(right, 0) && !only_marks(left)) marks_begin_words_ = false;
      // The later of two equal merges counts, as in the reference implementation.
      merges_[pair_key(words.find(left), words.find(right))] = {static_cast<int>(i),
                                                                words.find(both)};
    }
  }

  /// One symbol per character; several bytes or the unknown token for one that has no token.
  void read_characters(std::string_view word, const vocabulary& words,
                       std::vector<scratch::symbol>& symbols) const {
    symbols.clear();
    const auto add = [&](int id) {
      const int here = static_cast<int>(symbols.size());
      if (here > 0) symbols.back().next = here;
      symbols.push_back({id, here - 1, -1});
    };
    bool pending = false;  // an unknown token is due, and may still take in the next character
    for (std::size_t i = 0; i < word.size();) {
      const utf8_step step = next_code_point(word, i);
      const std::string_view character = word.substr(i, step.length);
      i += step.length;
      const int id = step.code_point < characters_.size() ? characters_[step.code_point]
                                                          : words.find(character);
      if (id >= 0) {
        if (pending) add(unknown_);
        pending = false;
        add(id);
      } else if (std::all_of(character.begin(), character.end(),
                             [&](char c) { return byte_token(c) >= 0; })) {
        for (const char c : character) add(byte_token(c));
      } else if (unknown_ >= 0) {
        if (pending && !fuse_unknown_) add(unknown_);
        pending = true;
      }  // else: no token can tell this character, and it is left out
    }
    if (pending) add(unknown_);
  }

  void merge_all(scratch& memory) const {
    std::vector<scratch::symbol>& symbols = memory.symbols;
    std::vector<scratch::candidate>& heap = memory.candidates;
    const auto at = [&](int i) -> scratch::symbol& { return symbols[static_cast<std::size_t>(i)]; };
    /// The merge of a symbol with the next one, null when there is none.
    const auto find = [&](int left) -> const merge* {
      const int right = at(left).next;
      if (right < 0) return nullptr;
      const auto found = merges_.find(pair_key(at(left).id, at(right).id));
      return found == merges_.end() ? nullptr : &found->second;
    };

    heap.clear();
    for (int i = 0; i + 1 < static_cast<int>(symbols.size()); ++i)
      if (const merge* m = find(i)) heap.push_back({m->rank, i, m->id});
    std::make_heap(heap.begin(), heap.end());
    while (!heap.empty()) {
      const scratch::candidate top = heap.front();
      std::pop_heap(heap.begin(), heap.end());
      heap.pop_back();
      // Entries are not taken out when their symbols change: what no longer fits is skipped here.
      if (at(top.position).id < 0) continue;
      const merge* due = find(top.position);
      if (due == nullptr || due->id != top.id) continue;

      scratch::symbol& left = at(top.position);
      scratch::symbol& right = at(left.next);
      left.id = top.id;
      right.id = -1;
      left.next = right.next;
      if (left.next >= 0) at(left.next).prev = top.position;
      for (const int position : {left.prev, top.position}) {
        if (position < 0) continue;
        if (const merge* m = find(position)) {
          heap.push_back({m->rank, position, m->id});
          std::push_heap(heap.begin(), heap.end());
        }
      }
    }
  }

  int byte_token(char c) const { return bytes_[static_cast<unsigned char>(c)]; }

  std::unordered_map<std::uint64_t, merge> merges_;
  std::array<int, 0x400> characters_{};  // ids of the first characters, -1: no such token
  std::array<int, 256> bytes_{};         // ids of <0x00> .. <0xFF>, -1 without fallback
  int unknown_ = -1;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;
  bool marks_begin_words_ = false;  // no merge joins a mark to something else before it
};

}  // namespace llama::tokenization
