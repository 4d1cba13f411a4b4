// SPDX-License-Identifier: MIT
// What the fuzz entries share: bytes as a file that no disk sees, a folder for formats that are
// one, and the rule that a parser may throw bitladder::error and nothing else.
#pragma once

#include <bitladder/core/status.hpp>

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <sys/mman.h>

namespace fuzz {

/// The bytes of one input.
inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// Ends the run as a finding.
inline void require(bool holds) {
  if (!holds) std::abort();
}

/// Lets errors of the library pass, and nothing else.
template <class F>
void attempt(F&& call) {
  try {
    call();
  } catch (const bitladder::error&) {
  }
}

/// Bytes with a path, in memory.
class memory_file {
 public:
  explicit memory_file(std::string_view bytes) : file_(::memfd_create("fuzz", 0)) {
    require(file_ >= 0 &&
            ::write(file_, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  }
  memory_file(const memory_file&) = delete;
  memory_file& operator=(const memory_file&) = delete;
  ~memory_file() { ::close(file_); }

  std::string path() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  int file_;
};

/// A folder of this process, gone when it ends; in memory where the system has a place for that.
class folder {
 public:
  folder() : path_(place() / ("bitladder-fuzz-" + std::to_string(::getpid()))) {
    path_ += "-" + std::to_string(reinterpret_cast<std::uintptr_t>(this));
    std::filesystem::create_directories(path_);
  }
  folder(const folder&) = delete;
  folder& operator=(const folder&) = delete;
  ~folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }
  void write(const char* name, std::string_view bytes) const {
    std::ofstream(path_ / name, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

 private:
  static std::filesystem::path place() {
    std::error_code ignored;
    const std::filesystem::path memory = "/dev/shm";
    return std::filesystem::is_directory(memory, ignored) ? memory
                                                          : std::filesystem::temp_directory_path();
  }

  std::filesystem::path path_;
};

}  // namespace fuzz
