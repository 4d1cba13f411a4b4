// SPDX-License-Identifier: MIT
#include <evaluate/text.hpp>

#include <doctest/doctest.h>

#include <string>

using evaluate::join_paragraphs;

TEST_CASE("hard-wrapped lines are joined and paragraphs kept apart") {
  CHECK(join_paragraphs("One\ntwo\nthree.\n\nFour\n  five.\n") == "One two three.\n\nFour five.");
  CHECK(join_paragraphs("a \n b") == "a b");
  CHECK(join_paragraphs("a \n \t\n\n  b") == "a\n\nb");
}

TEST_CASE("spaces inside a line stay") { CHECK(join_paragraphs("a  b\tc") == "a  b\tc"); }

TEST_CASE("nothing is left at the ends") {
  CHECK(join_paragraphs("\n\n  a b  \n\n") == "a b");
  CHECK(join_paragraphs("  a") == "a");
  CHECK(join_paragraphs("") == "");
  CHECK(join_paragraphs(" \n\n ") == "");
}

TEST_CASE("line ends of other systems count as one") {
  CHECK(join_paragraphs("a\r\nb\r\n\r\nc\rd\r\re") == "a b\n\nc d\n\ne");
}
