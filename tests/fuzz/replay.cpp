// SPDX-License-Identifier: MIT
// main for a fuzz entry without libFuzzer: replay CORPUS [MUTATIONS] runs every file of a folder,
// then so many damaged copies of them: changed, cut, joined. Any crash, abort, sanitizer report or
// foreign exception is a failure; the input of it is left as ./failed-input. Seed: 3.
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#include "io/damage.hpp"
#include "support/random.hpp"

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

std::string current;  // kept for keep_input

/// Leaves the input where it can be looked at.
void keep_input() {
  std::ofstream("failed-input", std::ios::binary)
      .write(current.data(), static_cast<std::streamsize>(current.size()));
}

void run(std::string input) {
  current = std::move(input);
  // A copy of the exact size, so that a read past the end is seen.
  const std::vector<std::uint8_t> bytes(current.begin(), current.end());
  try {
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  } catch (const std::exception& e) {
    keep_input();
    std::fprintf(stderr, "an exception that is no bitladder::error: %s\n", e.what());
    std::exit(1);
  }
}

/// All files of the folder, by name.
std::vector<std::string> read_all(const char* folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.is_regular_file()) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> files;
  for (const std::filesystem::path& path : paths) {
    std::ifstream in(path, std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  return files;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: replay CORPUS [MUTATIONS]\n");
    return 2;
  }
  std::signal(SIGABRT, [](int) { keep_input(); });  // how the entries say that something is wrong
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_set_death_callback(keep_input);
#endif
  const std::vector<std::string> files = read_all(arguments[1]);
  if (files.empty()) {
    std::fprintf(stderr, "%s: no files\n", arguments[1]);
    return 1;
  }
  for (const std::string& file : files) run(file);
  const int mutations = count > 2 ? std::atoi(arguments[2]) : 0;
  support::random random(3);
  const auto pick = [&]() -> const std::string& {
    return files[static_cast<std::size_t>(random.below(static_cast<int>(files.size())))];
  };
  const std::string alphabet("\0\1\x7f\x80\xff{}[]\":,\\019-.aeEnt", 24);
  for (int i = 0; i < mutations; ++i) {
    std::string input = pick();
    if (random.below(4) == 0) {  // the beginning of one and the end of another
      const std::string& other = pick();
      input.resize(static_cast<std::size_t>(random.below(static_cast<int>(input.size()) + 1)));
      input +=
          other.substr(static_cast<std::size_t>(random.below(static_cast<int>(other.size()) + 1)));
    }
    support::damage(input, random, alphabet);
    run(std::move(input));
  }
  std::printf("%zu files and %d mutations\n", files.size(), mutations);
  return 0;
}
