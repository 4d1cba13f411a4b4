// SPDX-License-Identifier: MIT
// Small files written whole or not at all: the bytes go to a temporary name in the same folder, are
// flushed, and take the final name by one rename. Tested by tests/io/atomic_file_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/detail/posix.hpp>
#include <bitladder/io/mmap.hpp>

#include <atomic>
#include <filesystem>
#include <string>
#include <string_view>

namespace bitladder {
inline namespace v0_1 {

/// Replaces or creates `path`; readers see the old file or the new one, never a part.
/// @throws error(io_failed); the temporary file is then gone and `path` is as it was
inline void write_file_atomically(const std::filesystem::path& path, std::string_view bytes) {
  // The process id and a counter keep writers of the same path out of each other's way.
  static std::atomic<unsigned> counter{0};
  std::filesystem::path temporary = path;
  temporary += ".tmp" + std::to_string(::getpid()) + "." + std::to_string(counter++);
  detail::file_descriptor file = detail::open_file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
  try {
    detail::write_all(file, temporary, bytes.data(), bytes.size(), 0);
    detail::sync_all(file, temporary);
    file.close();
    detail::rename_and_sync(temporary, path);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

/// Copies a file's bytes the same way.
/// @throws error(not_found) or error(io_failed)
inline void copy_file_atomically(const std::filesystem::path& from,
                                 const std::filesystem::path& to) {
  const mapped_file source(from);
  source.advise(access::sequential);
  write_file_atomically(to, source.text());
}

}  // namespace v0_1
}  // namespace bitladder
