// SPDX-License-Identifier: MIT
// Text files made ready for measuring. Tested by tests/evaluate/text_test.cpp.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace evaluate {

/// Joins hard-wrapped lines: white space with one line break in it becomes a space, with several a
/// blank line between paragraphs; none is left at either end. White space is ASCII's.
inline std::string join_paragraphs(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  std::string out;
  std::size_t i = 0;
  while (i < text.size()) {
    if (!is_space(text[i])) {
      out += text[i++];
      continue;
    }
    const std::size_t begin = i;
    int breaks = 0;
    for (; i < text.size() && is_space(text[i]); ++i) {
      const bool pair = text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n';
      if ((text[i] == '\n' || text[i] == '\r') && !pair) ++breaks;
    }
    if (out.empty() || i == text.size()) continue;  // an end of the text
    if (breaks == 0)
      out += text.substr(begin, i - begin);
    else
      out += breaks == 1 ? " " : "\n\n";
  }
  return out;
}

}  // namespace evaluate
