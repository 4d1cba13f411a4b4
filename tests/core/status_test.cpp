// SPDX-License-Identifier: MIT
#include <bitladder/core/status.hpp>

#include <doctest/doctest.h>

#include <cstring>
#include <set>
#include <string>

using bitladder::status;

TEST_CASE("every status has its own text") {
  std::set<std::string> texts;
  for (int s = 0; s <= static_cast<int>(status::not_found); ++s)
    texts.insert(bitladder::to_string(static_cast<status>(s)));
  CHECK(texts.size() == static_cast<std::size_t>(status::not_found) + 1);
  CHECK(texts.count("unknown status") == 0);
  CHECK(std::strcmp(bitladder::to_string(static_cast<status>(99)), "unknown status") == 0);
}

TEST_CASE("check lets ok pass and throws the rest with what was being done") {
  CHECK_NOTHROW(bitladder::check(status::ok, "gemv"));
  CHECK_THROWS_WITH_AS(bitladder::check(status::misaligned, "gemv"),
                       "gemv: pointer not aligned as required", bitladder::error);
  CHECK_THROWS_WITH_AS(bitladder::check(status::not_found), "not found", bitladder::error);
  try {
    bitladder::check(status::launch_failed);
  } catch (const bitladder::error& e) {
    CHECK(e.code() == status::launch_failed);
  }
}
