// SPDX-License-Identifier: MIT
// The tool with --device cuda, against itself on the CPU.
#include "tool.hpp"
#include <support/has_device.hpp>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

using namespace cli_test;

namespace {

/// The row that `generate` writes.
nlohmann::json generated(const std::string& arguments) {
  const fs::path json = work() / "generated.json";
  const outcome o = tool("generate " + arguments + " --ignore-end -q --json " + json.string());
  REQUIRE_MESSAGE(o.status == 0, o.text);
  return rows_of(json)[0];
}

/// The same text on both devices, at the same precisions. A text whose likeliest tokens are nearly
/// as likely as others may differ; these do not come near.
void check_same(const std::string& arguments) {
  CAPTURE(arguments);
  const nlohmann::json card = generated(arguments + " --device cuda"), cpu = generated(arguments);
  CHECK(card["text"] == cpu["text"]);
  CHECK(card.value("bits_of_steps", nlohmann::json()) ==
        cpu.value("bits_of_steps", nlohmann::json()));
}

/// Fails in the words of `expected`.
void check_refused(const std::string& arguments, const std::string& expected) {
  CAPTURE(arguments);
  const outcome o = tool(arguments + " --device cuda");
  CHECK(o.status == 1);
  CHECK_MESSAGE(contains(o.text, expected), o.text);
}

}  // namespace

TEST_CASE("a card writes what the CPU writes, at every precision and by schedules" *
          doctest::skip(!support::has_device())) {
  const std::string king = " --prompt 'The king of the country' -n 48";
  for (int bits = 2; bits <= 8; ++bits)
    check_same(checkpoint() + king + " --bits " + std::to_string(bits));
  check_same(small + king + " --bits 16");
  const std::string giant = " --prompt 'Then the giant' -n 48 --seed 5 --schedule ";
  for (const char* schedule : {"8/4,3@16,2@32", "confidence:4,3,2", "random:4,2"})
    check_same(checkpoint() + giant + schedule);
  check_same(checkpoint() + " -n 4 --prompt ''");
  check_same(checkpoint() + king + " --bits 6 --temperature 0.8 --top-k 40 --seed 3");
}

TEST_CASE("a card writes on from a long prompt to the end of the context" *
          doctest::skip(!support::has_device())) {
  std::ifstream in(held_out);
  std::string text(3000, ' ');
  REQUIRE(in.read(text.data(), static_cast<std::streamsize>(text.size())));
  const fs::path prompt = work() / "long.txt";
  std::ofstream(prompt) << text;
  check_same(checkpoint() + " --bits 8 -n 2000 --prompt-file " + prompt.string());
}

TEST_CASE("perplexities on a card are those of the CPU" * doctest::skip(!support::has_device())) {
  const auto rows = [](const std::string& arguments) {
    const fs::path json = work() / "card.json";
    const outcome o =
        tool("perplexity " + checkpoint() + " --unquantized " + small + " --text " + held_out +
             " --join-paragraphs --max-windows 4 -q --json " + json.string() + arguments);
    REQUIRE_MESSAGE(o.status == 0, o.text);
    return rows_of(json);
  };
  const auto cpu = rows("");
  // Of 1024 tokens, the context, so that slabs and cuBLAS take part.
  const auto longer = rows(" --window 1024"), on_card = rows(" --device cuda"),
             longer_on_card = rows(" --window 1024 --device cuda");
  REQUIRE(on_card.size() == 8);
  for (std::size_t i = 0; i < 8; ++i) {
    CAPTURE(i);
    CHECK(on_card[i]["perplexity"].get<double>() ==
          doctest::Approx(cpu[i]["perplexity"].get<double>()).epsilon(3e-4));
    CHECK(longer_on_card[i]["perplexity"].get<double>() ==
          doctest::Approx(longer[i]["perplexity"].get<double>()).epsilon(3e-4));
  }
}

TEST_CASE("the demo runs on a card" * doctest::skip(!support::has_device())) {
  const fs::path json = work() / "demo.json";
  const outcome o =
      tool("demo " + checkpoint() + " --unquantized " + small + " --text " + held_out +
           " --max-windows 1 -n 8 -q --device cuda --json " + json.string());
  CHECK_MESSAGE(o.status == 0, o.text);
  const auto rows = rows_of(json);
  REQUIRE(rows.size() == 8);
  for (const auto& r : rows) CHECK(r["tokens_per_second"].get<double>() > 0);
}

TEST_CASE("what a card cannot run is refused in words" * doctest::skip(!support::has_device())) {
  const std::string some = (work() / "some").string();
  REQUIRE(tool("quantize " + small + " -q -o " + some + " --min-bits 3 --max-bits 5").status == 0);
  const std::string a = " -n 4 --prompt A";
  check_refused("generate " + checkpoint() + " -n 4 --prompt-file " + held_out, "at most 1024");
  check_refused("generate " + some + " --bits 8" + a, "3 bits, 4 bits, 5 bits");
  check_refused("generate " + some + " --schedule 5/4,2@3" + a, "3 bits, 4 bits, 5 bits");
  check_refused("generate " + checkpoint() + " --bits 16" + a, "unquantized asked for");
  check_refused("generate " + small + " --bits 4" + a, "present: unquantized");
  // Keys and values of this many tokens take 3 kB each.
  check_refused("perplexity " + checkpoint() + " --window 100000000 --text " + held_out,
                "bytes of the card's memory");
  const outcome none = shell("CUDA_VISIBLE_DEVICES= " + std::string(BL_TOOL) + " generate " +
                             checkpoint() + a + " --device cuda");
  CHECK(none.status == 1);
  CHECK_MESSAGE(contains(none.text, "expected a CUDA device, found none"), none.text);
}
