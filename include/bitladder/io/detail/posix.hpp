// SPDX-License-Identifier: MIT
// The few operating system calls that the file headers share, with errors that name the path and
// the system's own text: an owned descriptor, whole writes and reads at an offset, an exclusive
// lock, and making a folder's entries durable. Tested by tests/io/posix_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <sys/file.h>
#include <sys/stat.h>
#include <system_error>
#include <utility>

namespace bitladder {
inline namespace v0_1 {
namespace detail {

/// "PATH: could not WHAT: TEXT OF ERRNO".
[[noreturn]] inline void throw_io(const std::filesystem::path& path, const std::string& what,
                                  int error_number) {
  throw error(status::io_failed, path.string() + ": could not " + what + ": " +
                                     std::generic_category().message(error_number));
}

/// Closes its descriptor when it goes.
class file_descriptor {
 public:
  file_descriptor() = default;
  explicit file_descriptor(int fd) : fd_(fd) {}
  file_descriptor(file_descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  file_descriptor& operator=(file_descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~file_descriptor() { close(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

 private:
  int fd_ = -1;
};

/// @throws error(io_failed), or error(not_found) where nothing has that path
inline file_descriptor open_file(const std::filesystem::path& path, int flags) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0 && errno == ENOENT)
    throw error(status::not_found, path.string() + ": no such file or folder");
  if (fd < 0) throw_io(path, "open", errno);
  return file_descriptor(fd);
}

inline struct stat stat_of(const file_descriptor& file, const std::filesystem::path& path) {
  struct stat s;
  if (::fstat(file.get(), &s) != 0) throw_io(path, "read the size", errno);
  return s;
}

/// Writes all of it, however often the system stops short.
inline void write_all(const file_descriptor& file, const std::filesystem::path& path,
                      const void* data, std::size_t size, std::uint64_t offset) {
  const char* p = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n = ::pwrite(file.get(), p, size, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_io(path, "write " + std::to_string(size) + " bytes", errno);
    if (n == 0) throw_io(path, "write " + std::to_string(size) + " bytes", ENOSPC);
    p += n;
    size -= static_cast<std::size_t>(n);
    offset += static_cast<std::uint64_t>(n);
  }
}

/// Reads `size` bytes, or fewer where the file ends.
/// @return how many
inline std::size_t read_some(const file_descriptor& file, const std::filesystem::path& path,
                             void* data, std::size_t size, std::uint64_t offset) {
  char* p = static_cast<char*>(data);
  std::size_t done = 0;
  while (done < size) {
    const ssize_t n = ::pread(file.get(), p + done, size - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_io(path, "read", errno);
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  return done;
}

/// Contents and whatever metadata is needed to read them back.
inline void sync_data(const file_descriptor& file, const std::filesystem::path& path) {
  while (::fdatasync(file.get()) != 0)
    if (errno != EINTR) throw_io(path, "flush to disk", errno);
}

inline void sync_all(const file_descriptor& file, const std::filesystem::path& path) {
  while (::fsync(file.get()) != 0)
    if (errno != EINTR) throw_io(path, "flush to disk", errno);
}

/// The folder that holds `path`; "." for a bare name.
inline std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

/// Makes renames and new names inside a folder survive a power cut.
inline void sync_folder(const std::filesystem::path& folder) {
  const file_descriptor file = open_file(folder, O_RDONLY | O_DIRECTORY);
  // Some network and FUSE file systems cannot sync a folder and say EINVAL: nothing to be done.
  if (::fsync(file.get()) != 0 && errno != EINVAL) throw_io(folder, "flush to disk", errno);
}

/// Durable rename within one file system.
inline void rename_and_sync(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_io(from, "rename to " + to.string(), errno);
  sync_folder(folder_of(to));
}

/// Opens or creates `path` for reading and writing and holds it exclusively until closed, so that
/// of two processes one gets the error.
inline file_descriptor open_locked(const std::filesystem::path& path) {
  for (;;) {
    file_descriptor file = open_file(path, O_RDWR | O_CREAT);
    if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EINTR) continue;
      if (errno == EWOULDBLOCK)
        throw error(status::io_failed,
                    path.string() + ": another process is writing it; wait for it to end");
      throw_io(path, "lock", errno);
    }
    // Its last holder may have renamed or removed the file between our open and our lock; then we
    // hold a file that nobody else can find.
    const struct stat held = stat_of(file, path);
    struct stat named;
    if (::stat(path.c_str(), &named) == 0 && named.st_ino == held.st_ino &&
        named.st_dev == held.st_dev)
      return file;
  }
}

}  // namespace detail
}  // namespace v0_1
}  // namespace bitladder
