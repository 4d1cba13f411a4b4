// SPDX-License-Identifier: MIT
// What tests that read and write files share: a folder that goes away, whole files as strings,
// child processes, and the error that a call throws.
#pragma once

#include <bitladder/core/status.hpp>

#include <doctest/doctest.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <sys/wait.h>

namespace support {

/// A new folder under the system's temporary one, removed with all it holds.
class temporary_folder {
 public:
  temporary_folder() {
    std::string name = (std::filesystem::temp_directory_path() / "bitladder-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  temporary_folder(const temporary_folder&) = delete;
  temporary_folder& operator=(const temporary_folder&) = delete;
  ~temporary_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline std::string read_all(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE_MESSAGE(in.good(), path.string());
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void write_all(const std::filesystem::path& path, const std::string& bytes) {
  // A new file, not the old one cut: ext4 flushes the latter to disk, which fuzzing cannot wait
  // for.
  std::filesystem::remove(path);
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  REQUIRE_MESSAGE(out.good(), path.string());
}

/// Every file of a folder by name.
inline std::map<std::string, std::string> read_folder(const std::filesystem::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    files[entry.path().filename().string()] = read_all(entry.path());
  return files;
}

/// The text of a safetensors file with that header and data.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  std::string out(8, '\0');
  for (std::size_t i = 0; i < 8; ++i)
    out[i] = static_cast<char>(static_cast<std::uint64_t>(header.size()) >> (8 * i) & 0xffu);
  return out + header + data;
}

/// What a call threw: its status and text; status::ok and "" if nothing.
struct thrown {
  bitladder::status code = bitladder::status::ok;
  std::string text;
  bool names(const std::string& part) const { return text.find(part) != std::string::npos; }
};

template <class F>
thrown error_of(F&& call) {
  try {
    call();
  } catch (const bitladder::error& e) {
    return {e.code(), e.what()};
  }
  return {};
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Runs `body` in a child process.
/// @return its wait status
template <class F>
int in_child(F&& body) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::signal(SIGSEGV, SIG_DFL);  // a wanted crash is for the parent to report, not the test runner
    try {
      body();
    } catch (...) {
      ::_exit(99);
    }
    ::_exit(0);
  }
  int result = 0;
  REQUIRE(::waitpid(child, &result, 0) == child);
  return result;
}

}  // namespace support
