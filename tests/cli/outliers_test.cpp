// SPDX-License-Identifier: MIT
// Outliers as a user of the tool meets them, on the bundled model.
#include <bitladder/io/checkpoint.hpp>

#include "tool.hpp"

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <filesystem>
#include <string>

using namespace cli_test;

TEST_CASE("quantize keeps the share of outliers that it is asked for, and every command reads it") {
  const std::string out = (work() / "outliers").string();
  const outcome made = tool("quantize " + small + " --outliers 0.45 -q -o " + out);
  REQUIRE_MESSAGE(made.status == 0, made.text);
  std::int64_t outliers = 0, weights = 0;
  {
    const bitladder::checkpoint c(out);
    for (const auto& l : c.linears()) {
      outliers += l.outliers;
      weights += static_cast<std::int64_t>(l.rows) * l.cols;
      CHECK(std::abs(static_cast<double>(l.outliers) - 0.0045 * l.rows * l.cols) <= 1);
    }
  }
  const fs::path json = work() / "outliers.json";
  const outcome i = tool("inspect " + out + " --check --json " + json.string());
  CHECK_MESSAGE(i.status == 0, i.text);
  CHECK(contains(i.text, "among them " + std::to_string(outliers) + " outliers (0.45% of"));
  CHECK(contains(i.text, "every outlier sound"));
  // Six bytes each, and an offset more than rows for each of 42 linears.
  const double bytes = static_cast<double>(outliers) * 6 + (15360 + 42) * 4;
  for (const auto& r : rows_of(json)) {
    CHECK(r["outlier_bytes"] == bytes);
    CHECK(
        r["bits_per_weight"].get<double>() ==
        doctest::Approx((r["plane_bytes"].get<double>() + r["table_bytes"].get<double>() + bytes) *
                        8 / static_cast<double>(weights)));
  }
  const std::string text =
      " --text " + held_out + " --join-paragraphs --max-windows 2 -q -b 2 --json ";
  const fs::path with = work() / "with.json", without = work() / "without.json";
  CHECK(tool("perplexity " + out + text + with.string()).status == 0);
  CHECK(tool("perplexity " + checkpoint() + text + without.string()).status == 0);
  CHECK(rows_of(with)[0]["perplexity"].get<double>() <
        rows_of(without)[0]["perplexity"].get<double>());
  CHECK(tool("generate " + out + " -b 3 -n 4 -q --prompt 'It was'").status == 0);
  const outcome exported = tool("export " + out + " " + (work() / "no-export").string());
  CHECK(exported.status == 1);
  CHECK_MESSAGE(contains(exported.text, "expected no outliers"), exported.text);
}

TEST_CASE("shares of outliers that contradict each other or are out of range are refused") {
  const std::string run = "quantize " + small + " -q -o " + (work() / "none").string();
  CHECK(contains(tool(run + " --outliers 101").text, "101"));
  CHECK(tool(run + " --outliers 1 --large-outliers 1").status != 0);
  CHECK(tool(run + " --sensitive-outliers -1").status != 0);
  CHECK(!fs::exists(work() / "none"));
}
