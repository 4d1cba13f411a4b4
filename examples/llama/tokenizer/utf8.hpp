// SPDX-License-Identifier: MIT
// UTF-8 by hand: one decoding step, repair of damaged text (one U+FFFD for every maximal subpart,
// as Python's errors="replace" and the Unicode standard advise) and the end of the complete part of
// a stream. Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace llama::tokenization {

/// What stands in for bytes that are not UTF-8: U+FFFD.
inline constexpr std::string_view replacement_character = "\xEF\xBF\xBD";

/// One step through text: a code point, or a maximal run of bytes that begins none.
struct utf8_step {
  char32_t code_point = 0xFFFD;
  std::size_t length = 1;  ///< bytes taken, at least 1
  bool valid = false;
  bool cut_short = false;  ///< not valid yet, but more bytes could make it so
};

/// The step that begins at `position`, which is inside `text`.
inline utf8_step next_code_point(std::string_view text, std::size_t position) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[position + i]); };
  const unsigned lead = byte(0);
  utf8_step step;
  if (lead < 0x80) {
    step.code_point = lead;
    step.valid = true;
    return step;
  }
  if (lead < 0xC2 || lead > 0xF4) return step;
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t value = lead & (0x7Fu >> length);
  // The first continuation byte has a narrower range after some leads: it is there that overlong
  // forms, surrogates and values above U+10FFFF show.
  unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (; step.length < length; ++step.length) {
    if (position + step.length >= text.size()) {
      step.cut_short = true;
      return step;
    }
    const unsigned next = byte(step.length);
    if (next < low || next > high) return step;
    value = value << 6 | (next & 0x3Fu);
    low = 0x80;
    high = 0xBF;
  }
  step.code_point = value;
  step.valid = true;
  return step;
}

/// Appends the UTF-8 form of a code point.
inline void append_code_point(std::string& text, char32_t c) {
  const auto put = [&](char32_t byte) { text += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

/// Whether every byte belongs to a whole code point.
inline bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const utf8_step step = next_code_point(text, i);
    if (!step.valid) return false;
    i += step.length;
  }
  return true;
}

/// The text with every damaged part replaced.
/// @param cut when given, a last sequence that more bytes could complete is left out, and `*cut`
///   says where in `text` it begins (text.size() when there is none)
inline std::string repair_utf8(std::string_view text, std::size_t* cut = nullptr) {
  std::string repaired;
  repaired.reserve(text.size());
  if (cut != nullptr) *cut = text.size();
  for (std::size_t i = 0; i < text.size();) {
    const utf8_step step = next_code_point(text, i);
    if (step.cut_short && cut != nullptr) {
      *cut = i;
      break;
    }
    repaired += step.valid ? text.substr(i, step.length) : replacement_character;
    i += step.length;
  }
  return repaired;
}

/// Where the code point that ends before `end` begins; `text` is valid UTF-8 and `end` is not 0.
inline std::size_t previous_code_point(std::string_view text, std::size_t end) {
  do {
    --end;
  } while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  return end;
}

/// Unicode's White_Space.
constexpr bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

}  // namespace llama::tokenization
