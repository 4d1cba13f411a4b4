// SPDX-License-Identifier: MIT
// Unicode's canonical forms NFC and NFD (Unicode Standard Annex 15), by the tables of
// unicode_tables.hpp. Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <llama/tokenizer/unicode_tables.hpp>
#include <llama/tokenizer/utf8.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace llama::tokenization {

/// The tables in the shape that a text needs. One for the whole program, see `get`.
class canonical_forms {
 public:
  static const canonical_forms& get() {
    static const canonical_forms forms;
    return forms;
  }

  /// @param text valid UTF-8
  std::string composed(std::string_view text) const { return form(text, unstable_composed, true); }
  std::string decomposed(std::string_view text) const {
    return form(text, unstable_decomposed, false);
  }

 private:
  // What a character is, by bits; 0 of most, and of all beyond the table.
  static constexpr std::uint8_t unstable_composed = 1;    // may change, or change its surroundings
  static constexpr std::uint8_t unstable_decomposed = 2;  // the same in NFD
  static constexpr std::size_t table_size = 0x30000;

  struct symbol {
    char32_t character;
    std::uint8_t combining;  // 0: a starter
  };

  canonical_forms() : flags_(table_size), classes_(table_size) {
    constexpr std::uint8_t both = unstable_composed | unstable_decomposed;
    for (const unicode_class_run& run : unicode_classes)
      for (char32_t c = run.first; c <= run.last; ++c) {
        classes_[c] = run.value;
        flags_[c] = both;
      }
    const char32_t* target = unicode_single_targets.data();
    for (const unicode_single_run& run : unicode_singles)
      for (int i = 0; i < run.count; ++i) {
        const char32_t c = run.begin + static_cast<char32_t>(i);
        parts_.emplace(c, parts{*target++, 0});
        flags_[c] = both;
      }
    for (const unicode_pair& pair : unicode_pairs) {
      parts_.emplace(pair.whole, parts{pair.first, pair.second});
      flags_[pair.whole] |= unstable_decomposed;
      if (std::binary_search(unicode_not_composed.begin(), unicode_not_composed.end(),
                             pair.whole)) {
        flags_[pair.whole] = both;
      } else {
        wholes_.emplace(pair_key(pair.first, pair.second), pair.whole);
        flags_[pair.second] |= unstable_composed;  // joins what is before it
      }
    }
    for (char32_t c = hangul; c < hangul + hangul_count; ++c) flags_[c] |= unstable_decomposed;
    for (char32_t c = vowels; c < vowels + vowel_count; ++c) flags_[c] |= unstable_composed;
    for (char32_t c = tails + 1; c < tails + tail_count; ++c) flags_[c] |= unstable_composed;
  }

  /// Stretches without an unstable character are copied. Others are worked on together with the
  /// character before them, which may take them in.
  std::string form(std::string_view text, std::uint8_t unstable, bool compose) const {
    std::string out;
    std::size_t done = 0, last = 0;  // what is in `out`; where the character before begins
    std::vector<symbol> symbols;
    for (std::size_t i = 0; i < text.size();) {
      const utf8_step step = next_code_point(text, i);
      if ((flags(step.code_point) & unstable) == 0) {
        last = i;
        i += step.length;
        continue;
      }
      if (done == 0) out.reserve(text.size() + text.size() / 8);
      out.append(text.substr(done, last - done));
      symbols.clear();
      for (done = last; done < text.size();) {
        const utf8_step next = next_code_point(text, done);
        if (done > i && (flags(next.code_point) & unstable) == 0) break;
        decompose(next.code_point, symbols);
        done += next.length;
      }
      reorder(symbols);
      if (compose) join(symbols);
      for (const symbol& s : symbols) append_code_point(out, s.character);
      last = i = done;
    }
    return out.append(text.substr(done));
  }

  std::uint8_t flags(char32_t c) const { return c < table_size ? flags_[c] : std::uint8_t{0}; }

  void decompose(char32_t c, std::vector<symbol>& out) const {
    if (c >= hangul && c < hangul + hangul_count) {
      const char32_t index = c - hangul;
      out.push_back({leads + index / (vowel_count * tail_count), 0});
      out.push_back({vowels + index % (vowel_count * tail_count) / tail_count, 0});
      if (index % tail_count != 0) out.push_back({tails + index % tail_count, 0});
      return;
    }
    const auto found = parts_.find(c);
    if (found == parts_.end()) {
      out.push_back({c, c < table_size ? classes_[c] : std::uint8_t{0}});
      return;
    }
    decompose(found->second.first, out);
    if (found->second.second != 0) decompose(found->second.second, out);
  }

  /// Between two starters the marks stand by their classes.
  static void reorder(std::vector<symbol>& symbols) {
    for (auto begin = symbols.begin(); begin != symbols.end();) {
      const auto is_starter = [](const symbol& s) { return s.combining == 0; };
      const auto end = std::find_if(begin + 1, symbols.end(), is_starter);
      const auto first = is_starter(*begin) ? begin + 1 : begin;
      std::stable_sort(first, end,
                       [](const symbol& a, const symbol& b) { return a.combining < b.combining; });
      begin = end;
    }
  }

  /// Each character joins the last starter before it if the two are one character and none between
  /// them is of its class or a higher one.
  void join(std::vector<symbol>& symbols) const {
    std::size_t kept = 0, starter = 0;
    bool has_starter = false;
    for (const symbol s : std::vector<symbol>(symbols)) {
      if (has_starter) {
        const bool adjacent = kept == starter + 1;
        const char32_t whole = adjacent || (symbols[kept - 1].combining < s.combining &&
                                            symbols[kept - 1].combining != 0)
                                   ? joined(symbols[starter].character, s.character)
                                   : 0;
        if (whole != 0) {
          symbols[starter].character = whole;
          continue;
        }
      }
      if (s.combining == 0) {
        starter = kept;
        has_starter = true;
      }
      symbols[kept++] = s;
    }
    symbols.resize(kept);
  }

  /// 0 when the two are no character.
  char32_t joined(char32_t first, char32_t second) const {
    if (first >= leads && first < leads + lead_count && second >= vowels &&
        second < vowels + vowel_count)
      return hangul + ((first - leads) * vowel_count + (second - vowels)) * tail_count;
    if (first >= hangul && first < hangul + hangul_count && (first - hangul) % tail_count == 0 &&
        second > tails && second < tails + tail_count)
      return first + (second - tails);
    const auto found = wholes_.find(pair_key(first, second));
    return found == wholes_.end() ? 0 : found->second;
  }

  static std::uint64_t pair_key(char32_t first, char32_t second) {
    return static_cast<std::uint64_t>(first) << 32 | second;
  }

  // Hangul: syllables of a lead, a vowel and perhaps a tail, in the order of their parts.
  static constexpr char32_t hangul = 0xAC00, leads = 0x1100, vowels = 0x1161, tails = 0x11A7;
  static constexpr char32_t lead_count = 19, vowel_count = 21, tail_count = 28;
  static constexpr char32_t hangul_count = lead_count * vowel_count * tail_count;

  struct parts {
    char32_t first, second;  // 0: it is one other character
  };

  std::vector<std::uint8_t> flags_, classes_;
  std::unordered_map<char32_t, parts> parts_;
  std::unordered_map<std::uint64_t, char32_t> wholes_;
};

}  // namespace llama::tokenization
