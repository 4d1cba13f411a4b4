#!/usr/bin/env python3
"""Makes unicode_tables.hpp, what Unicode's canonical forms need, and late_characters.hpp, what old
builds of PCRE2 do not know.

    pip install tokenizers==0.23.3
    python3.11 examples/llama/tokenizer/make_unicode_tables.py

The forms are from Python's unicodedata, less the characters that the package leaves as they are:
its tables are those of Unicode 9.0. Unicode promises that older characters never change. The late
characters are those that the package's regular expressions know and Python 3.11 (Unicode 14) does
not.
"""

import pathlib
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

LATE = pathlib.Path(__file__).parent / "late_characters.hpp"
OUT = pathlib.Path(__file__).parent / "unicode_tables.hpp"
nfd = normalizers.NFD().normalize_str
nfc = normalizers.NFC().normalize_str

HEAD = """// SPDX-License-Identifier: MIT
// What Unicode's canonical forms need, made by make_unicode_tables.py out of the Unicode Character
// Database. The version is 9.0, as in the reference implementation: characters that came later
// stay as they are, and none of the others has changed since. Hangul follows a formula and is not
// listed. Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <array>
#include <cstdint>

namespace llama::tokenization {

"""


def points():
    return (c for c in range(0x110000) if not 0xD800 <= c < 0xE000 and not 0xAC00 <= c <= 0xD7A3)


def known(c):
    """Whether the package moves a mark before one of another class, or else knows no mark here."""
    probes = ("a" + chr(c) + "\u0334", "a\u0345" + chr(c))
    return any(nfd(s) != s for s in probes)


def rows(items, width=95):
    line = ""
    for item in items:
        if len(line) + len(item) + 1 > width:
            yield "    " + line + "\n"
            line = ""
        line += item + ","
    yield "    " + line.rstrip(",") + "\n"


def table(comment, type_, name, items):
    items = list(items)
    text = f"/// {comment}\ninline constexpr std::array<{type_}, {len(items)}> {name}{{{{\n"
    return text + "".join(rows(items)) + "}};\n\n"


def main():
    changed = [c for c in points() if nfd(chr(c)) != chr(c)]
    pairs, singles = [], []
    for c in changed:
        parts = [int(x, 16) for x in unicodedata.decomposition(chr(c)).split()]
        if len(parts) == 1:
            singles.append((c, parts[0]))
        else:
            pairs.append((c, *parts, nfc(chr(c)) == chr(c)))
    runs = []
    for c, _ in singles:
        if runs and runs[-1][0] + runs[-1][1] == c:
            runs[-1][1] += 1
        else:
            runs.append([c, 1])
    classes = []
    for c in points():
        value = unicodedata.combining(chr(c))
        if value == 0 or not known(c):
            continue
        if classes and classes[-1][1] == c - 1 and classes[-1][2] == value:
            classes[-1][1] = c
        else:
            classes.append([c, c, value])

    text = HEAD
    text += "/// A character that is two others.\n"
    text += "struct unicode_pair {\n  char32_t whole, first, second;\n};\n"
    text += "/// Characters in a row that are one other each, in the order of unicode_single_targets.\n"
    text += "struct unicode_single_run {\n  char32_t begin;\n  int count;\n};\n"
    text += "/// Characters first .. last of one canonical combining class; of all others it is 0.\n"
    text += "struct unicode_class_run {\n  char32_t first, last;\n  std::uint8_t value;\n};\n\n"
    text += "// clang-format off\n\n"
    text += table("By `whole`.", "unicode_pair", "unicode_pairs",
                  (f"{{0x{a:X},0x{b:X},0x{c:X}}}" for a, b, c, _ in pairs))  # fmt: skip
    text += table("Of unicode_pairs, ascending: the two do not become it again in NFC.", "char32_t",
                  "unicode_not_composed", (f"0x{a:X}" for a, _, _, made in pairs if not made))  # fmt: skip
    text += table("By `begin`.", "unicode_single_run", "unicode_singles",
                  (f"{{0x{a:X},{n}}}" for a, n in runs))  # fmt: skip
    text += table("One for each character of unicode_singles.", "char32_t", "unicode_single_targets",
                  (f"0x{b:X}" for _, b in singles))  # fmt: skip
    text += table("By `first`.", "unicode_class_run", "unicode_classes",
                  (f"{{0x{a:X},0x{b:X},{v}}}" for a, b, v in classes))  # fmt: skip
    text += "// clang-format on\n\n}  // namespace llama::tokenization\n"
    OUT.write_text(text)


LATE_HEAD = """// SPDX-License-Identifier: MIT
// Characters of Unicode 15 to 16, which the reference implementation knows and PCRE2 up to 10.42
// does not, by property. Made by make_unicode_tables.py. Used and tested with regex.hpp.
#pragma once

#include <array>
#include <string_view>

namespace llama::tokenization {

/// The late characters of one property, as the inside of brackets.
struct late_property {
  std::string_view name, characters;
};

// clang-format off
inline constexpr std::array<late_property, COUNT> late_properties{{
"""
PROPERTIES = "L Lu Ll Lm Lo M Mn Mc N Nd Nl No P Pd Po S Sc Sk Sm So Han Latin Cyrillic Arabic".split()


def late(name):
    """The runs of late characters that have a property."""
    text = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    others = pre_tokenizers.Split(Regex(rf"\p{{{name}}}"), "removed").pre_tokenize_str(text)
    left = set().union(*(word for word, _ in others))
    runs = []
    for char in text:
        if char in left or unicodedata.category(char) != "Cn":
            continue
        if runs and runs[-1][1] == ord(char) - 1:
            runs[-1][1] = ord(char)
        else:
            runs.append([ord(char)] * 2)
    return runs


def late_header():
    entries = []
    for name in PROPERTIES:
        pieces = [f"\\x{{{a:x}}}" + (f"-\\x{{{b:x}}}" if b > a else "") for a, b in late(name)]
        lines = [""]
        for piece in pieces:
            if len(lines[-1]) + len(piece) > 84:
                lines.append("")
            lines[-1] += piece
        if pieces:
            quoted = "\n".join(f'     R"({line})"' for line in lines)
            entries.append(f'    {{"{name}",\n{quoted}}},\n')
    body = LATE_HEAD.replace("COUNT", str(len(entries)))
    return body + "".join(entries) + "}};\n// clang-format on\n\n}  // namespace llama::tokenization\n"


main()
LATE.write_text(late_header())
