// SPDX-License-Identifier: MIT
// What the tests of the tool share: running it as a user does, a folder for what it writes, and one
// checkpoint of the bundled model.
#pragma once

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <sys/wait.h>
#include <system_error>

namespace cli_test {

namespace fs = std::filesystem;

inline const std::string small = std::string(BL_SOURCE_DIR) + "/examples/models/small";
inline const std::string held_out = std::string(BL_SOURCE_DIR) + "/examples/models/held-out.txt";

/// One folder for the whole program, with one checkpoint that the cases share.
class workplace {
 public:
  workplace() {
    std::string name = (fs::temp_directory_path() / "bitladder-cli-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~workplace() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  fs::path operator/(const std::string& name) const { return path_ / name; }

 private:
  fs::path path_;
};

inline workplace& work() {
  static workplace w;
  return w;
}

struct outcome {
  int status;
  std::string text;  ///< standard output and error
};

inline outcome shell(const std::string& command) {
  FILE* pipe = ::popen(("(" + command + ") 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  outcome o{0, {}};
  char buffer[4096];
  for (std::size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;)
    o.text.append(buffer, n);
  const int status = ::pclose(pipe);
  o.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return o;
}

inline outcome tool(const std::string& arguments) {
  return shell(std::string(BL_TOOL) + " " + arguments);
}

inline const std::string& checkpoint() {
  static const std::string path = [] {
    const std::string out = (work() / "small").string();
    const outcome o = tool("quantize " + small + " -q -o " + out);
    REQUIRE_MESSAGE(o.status == 0, o.text);
    return out;
  }();
  return path;
}

inline nlohmann::json rows_of(const fs::path& file) {
  return nlohmann::json::parse(std::ifstream(file));
}

inline std::string read_all(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace cli_test
