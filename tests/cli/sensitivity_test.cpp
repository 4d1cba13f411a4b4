// SPDX-License-Identifier: MIT
// Sensitivities as a user measures them, by the tool's own command and by quantize.
#include "tool.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

using namespace cli_test;

namespace {

/// Options that make six short samples of the held-out text.
const std::string few = " --text " + held_out + " --join-paragraphs --num-examples 6 --seq-len 48 ";

/// What they give, measured once.
const fs::path& sensitivities() {
  static const fs::path path = [] {
    const fs::path out = work() / "s.safetensors";
    const outcome o = tool("sensitivity " + small + few + "-q -o " + out.string());
    REQUIRE_MESSAGE(o.status == 0, o.text);
    return out;
  }();
  return path;
}

}  // namespace

TEST_CASE("sensitivities are measured once, by default into the current folder") {
  const std::string folder = (work() / "here").string();
  fs::create_directories(folder);
  const std::string run = "cd " + folder + " && " + BL_TOOL + " sensitivity " + small + "/" + few;
  const outcome o = shell(run + "--json row.json");
  CHECK_MESSAGE(o.status == 0, o.text);
  CHECK(contains(o.text, "42 linears, 6 samples of 48 tokens (windows of " + held_out));
  const fs::path made = fs::path(folder) / "small.sensitivities.safetensors";
  CHECK(read_all(made) == read_all(sensitivities()));
  const auto rows = rows_of(fs::path(folder) / "row.json");
  CHECK(rows[0]["mean_loss"] > 2);
  CHECK(rows[0]["mean_loss"] < 5);
  CHECK(rows[0]["reused"] == false);
  CHECK(contains(shell(run + "-q --threads 1").text, "is there already, made from the same"));
  const outcome other = shell(run + "-q --random-state 1");
  CHECK(other.status == 1);
  CHECK(contains(other.text, "other options: \"random_state\": expected 1, found 0"));
  CHECK(shell(run + "-q --random-state 1 --overwrite").status == 0);
  CHECK(read_all(made) != read_all(sensitivities()));
}

TEST_CASE("quantize measures sensitivities itself when it is given text, and only once") {
  const fs::path out = work() / "measured", file = work() / "measured.sensitivities.safetensors";
  const std::string narrow = "quantize " + small + " --max-bits 3";  // takes less time
  const std::string run = narrow + few + "-o " + out.string();
  const outcome o = tool(run + "/ -q");
  CHECK_MESSAGE(o.status == 0, o.text);
  CHECK(read_all(file) == read_all(sensitivities()));
  const fs::path given = work() / "given";
  CHECK(tool(narrow + " -q -o " + given.string() + " --sensitivities " + sensitivities().string())
            .status == 0);
  const fs::path alike = work() / "alike";
  CHECK(tool(narrow + " -q -o " + alike.string()).status == 0);
  const std::string bytes = read_all(out / "model.safetensors");
  CHECK(bytes == read_all(given / "model.safetensors"));
  CHECK(bytes != read_all(alike / "model.safetensors"));
  CHECK(contains(tool(run).text, "is there already"));
  const outcome again = tool(run + " --overwrite");
  CHECK(again.status == 0);
  CHECK(contains(again.text, "not measured again"));
  CHECK(read_all(out / "model.safetensors") == bytes);
  CHECK(tool(run + " --sensitivities " + file.string()).status != 0);
  CHECK(tool("quantize " + small + " --seq-len 48 -o " + given.string()).status != 0);
  // Options that the quantizer would refuse are refused before anything is measured.
  const outcome early = tool("quantize " + small + few + "-o " + (work() / "early").string() +
                             " --min-bits 4 --seed-bits 3");
  CHECK(early.status == 1);
  CHECK(!fs::exists(work() / "early.sensitivities.safetensors"));
}

TEST_CASE("killed at any moment and run again, sensitivity ends with the same bytes") {
  const fs::path out = work() / "killed.safetensors";
  const std::string run = std::string(BL_TOOL) + " sensitivity " + small + few +
                          "-q --threads 1 --save-every 0 -o " + out.string();
  int killed = 0;
  for (const char* seconds : {"0.05", "0.3", "0.5", "0.7"}) {
    fs::remove(out);
    if (shell("timeout -s KILL " + std::string(seconds) + " " + run).status != 0) {
      ++killed;
      // Killed on its way out, after the last rename: what is there is whole.
      if (fs::exists(out)) {
        CHECK(read_all(out) == read_all(sensitivities()));
        fs::remove(out.string() + ".progress");
        continue;
      }
      const outcome o = shell(run);
      CHECK_MESSAGE(o.status == 0, o.text);
    }
    CHECK(read_all(out) == read_all(sensitivities()));
    CHECK(!fs::exists(out.string() + ".progress"));
    CHECK(!fs::exists(out.string() + ".partial"));
  }
  CHECK(killed > 0);
}

TEST_CASE("text that makes too few samples, or is damaged, is named") {
  const auto fails = [](const std::string& options, std::vector<std::string> parts) {
    const outcome o =
        tool("sensitivity " + small + " -q -o " + (work() / "none").string() + options);
    CAPTURE(o.text);
    CHECK(o.status == 1);
    for (const std::string& part : parts) CHECK(contains(o.text, part));
    CHECK(!fs::exists(work() / "none"));
  };
  const fs::path lines = work() / "docs.jsonl";
  std::ofstream(lines) << "{\"text\": \"It was a dark night.\"}\n{\"text\": \"It was";
  fails(" --text " + lines.string(), {lines.string(), "line 2", "expected a JSON object"});
  std::ofstream(lines) << "{\"text\": \"It was a dark night.\"}\n";
  fails(" --text " + lines.string(), {lines.string(), "100 samples of 512 tokens, found 0"});
  fails(" --seq-len 2000 --text " + held_out, {small, "at most 1024 tokens, found 2000"});
}
