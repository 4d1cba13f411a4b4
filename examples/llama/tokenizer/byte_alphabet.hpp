// SPDX-License-Identifier: MIT
// The byte-level alphabet: each byte as one visible character, so that a vocabulary of text can
// hold any bytes. Bytes that print in Latin-1 stand for themselves, the others for U+0100 onwards.
// Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <llama/tokenizer/utf8.hpp>

#include <array>
#include <string>
#include <string_view>

namespace llama::tokenization {

/// The two directions of the alphabet as tables.
class byte_alphabet {
 public:
  constexpr byte_alphabet() {
    for (int& byte : bytes_) byte = -1;
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool prints =
          (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
      const char32_t c = prints ? static_cast<char32_t>(byte) : next++;
      characters_[static_cast<std::size_t>(byte)] = c;
      bytes_[c] = byte;
    }
  }

  /// Every byte as its character.
  void append_encoded(std::string& out, std::string_view bytes) const {
    for (const char byte : bytes)
      append_code_point(out, characters_[static_cast<unsigned char>(byte)]);
  }
  /// The bytes that a token stands for. A token with a character outside the alphabet (an added
  /// token) stands for itself.
  void append_decoded(std::string& out, std::string_view token) const {
    const std::size_t start = out.size();
    for (std::size_t i = 0; i < token.size();) {
      const utf8_step step = next_code_point(token, i);
      const int byte = step.code_point < bytes_.size() ? bytes_[step.code_point] : -1;
      if (byte < 0) {
        out.replace(start, std::string::npos, token);
        return;
      }
      out += static_cast<char>(byte);
      i += step.length;
    }
  }

 private:
  std::array<char32_t, 256> characters_{};
  std::array<int, 0x144> bytes_{};  // by character; -1 where there is none
};

inline constexpr byte_alphabet byte_level_alphabet;

}  // namespace llama::tokenization
