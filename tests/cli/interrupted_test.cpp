// SPDX-License-Identifier: MIT
// Long commands that are killed after some layers, or run out of disk, and are then run again.
#include "tool.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <sys/wait.h>
#include <thread>

using namespace cli_test;

namespace {

/// How many linears the journal of unfinished work lists as written.
int linears_done(const fs::path& out) {
  std::ifstream in(out.string() + ".partial.journal");
  int count = 0;
  for (std::string line; std::getline(in, line);) count += contains(line, "_proj\"");
  return count;
}

/// Runs the tool and kills it when that many linears are written.
/// @return whether it was killed, not over before
bool killed_after(const std::string& arguments, const fs::path& out, int linears) {
  const std::string command = std::string("exec ") + BL_TOOL + " " + arguments;
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::execl("/bin/sh", "sh", "-c", command.c_str(), static_cast<char*>(nullptr));
    ::_exit(99);
  }
  int status = 0;
  while (::waitpid(child, &status, WNOHANG) == 0) {
    if (linears_done(out) >= linears) {
      ::kill(child, SIGKILL);
      REQUIRE(::waitpid(child, &status, 0) == child);
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

void check_same(const fs::path& found, const fs::path& expected) {
  for (const auto& entry : fs::directory_iterator(expected)) {
    CAPTURE(entry.path().string());
    CHECK(read_all(entry.path()) == read_all(found / entry.path().filename()));
  }
  CHECK(!fs::exists(found.string() + ".partial"));
  CHECK(!fs::exists(found.string() + ".partial.journal"));
}

/// Kills `arguments` -o OUT after each number of linears, and runs it again.
void check_killed(const std::string& name, const std::string& arguments) {
  const fs::path whole = work() / (name + "-whole"), out = work() / (name + "-killed");
  const outcome o = tool(arguments + " -o " + whole.string());
  REQUIRE_MESSAGE(o.status == 0, o.text);
  for (const int linears : {2, 30}) {
    CAPTURE(linears);
    fs::remove_all(out);
    const std::string run = arguments + " -o " + out.string();
    CHECK(killed_after(run, out, linears));
    CHECK(!fs::exists(out));
    const int kept = linears_done(out);
    CHECK(kept >= linears);
    // A disk without room for what is left: an error, and nothing less than before is kept.
    const auto size = fs::file_size(whole / "model.safetensors");
    const outcome full = shell("trap '' XFSZ; ulimit -f " + std::to_string(size / 1024 / 16) +
                               "; " + BL_TOOL + " " + run);
    CHECK_MESSAGE(full.status == 1, full.text);
    CHECK_MESSAGE(contains(full.text, out.string() + ".partial"), full.text);
    CHECK(!fs::exists(out));
    CHECK(linears_done(out) >= kept);
    const outcome again = tool(run);
    CHECK_MESSAGE(again.status == 0, again.text);
    check_same(out, whole);
  }
}

/// The sensitivities of 3 samples, and the options that measure them.
const std::string few = " --text " + held_out + " --join-paragraphs --num-examples 3 --seq-len 32 ";
const fs::path& few_sensitivities() {
  static const fs::path path = [] {
    const fs::path out = work() / "few.safetensors";
    const outcome o = tool("sensitivity " + small + few + "-q -o " + out.string());
    REQUIRE_MESSAGE(o.status == 0, o.text);
    return out;
  }();
  return path;
}

/// A copy of those with the number of a tensor replaced.
fs::path with_value(const std::string& name, const std::string& tensor, std::size_t i,
                    float value) {
  std::string bytes = read_all(few_sensitivities());
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  const auto json = nlohmann::json::parse(bytes.substr(8, static_cast<std::size_t>(header)));
  const auto begin = json[tensor]["data_offsets"][0].get<std::size_t>();
  const std::size_t at = 8 + static_cast<std::size_t>(header) + begin + i * sizeof value;
  std::memcpy(&bytes[at], &value, sizeof value);
  const fs::path path = work() / name;
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

}  // namespace

TEST_CASE("quantize killed after any layer, then short of disk, ends with the same bytes") {
  check_killed("quantize", "quantize " + small +
                               " -q --max-bits 3 --outliers 0.45 --sensitivities " +
                               few_sensitivities().string());
}

TEST_CASE("refit killed after any layer, then short of disk, ends with the same bytes") {
  const fs::path narrow = work() / "narrow";
  const outcome o = tool("quantize " + small + " -q --max-bits 3 -o " + narrow.string());
  REQUIRE_MESSAGE(o.status == 0, o.text);
  // Less memory than the moments need: a run takes them up linear after linear, in several parts.
  check_killed("refit", "refit " + narrow.string() + " --model " + small + few +
                            "-q --rounds 1 --row-groups 1 --memory 0.006");
}

TEST_CASE("sensitivities that are damaged are named, and no checkpoint comes of them") {
  const std::string tensor = "model.layers.2.mlp.up_proj.weight";
  const fs::path out = work() / "damaged";
  const std::string run = "quantize " + small + " -q --max-bits 3 -o " + out.string();
  // Where quantize keeps those that it measured itself, their checksum tells.
  const fs::path cached = with_value("damaged.sensitivities.safetensors", tensor, 300, 1.f);
  const outcome o = tool(run + few);
  CHECK(o.status == 1);
  CHECK_MESSAGE(contains(o.text, cached.string()), o.text);
  CHECK_MESSAGE(contains(o.text, "checksum"), o.text);
  CHECK(!fs::exists(out.string() + ".partial"));
  // Those of others have none, but each number is looked at.
  const fs::path given = with_value("negative.safetensors", tensor, 300, -1.f);
  const outcome bad = tool(run + " --sensitivities " + given.string());
  CHECK(bad.status == 1);
  for (const std::string& part :
       {tensor, given.string(), std::string("sensitivity at row 1, column 44"),
        std::string("found -1")})
    CHECK_MESSAGE(contains(bad.text, part), bad.text);
  CHECK(!fs::exists(out));
}
