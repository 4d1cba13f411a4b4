// SPDX-License-Identifier: MIT
// A whole file as read-only memory: pages come in when they are touched, so an unread tensor costs
// nothing. A file that another process shortens while it is mapped raises SIGBUS on the lost pages,
// as every mapping does. Tested by tests/io/mmap_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/detail/posix.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string_view>
#include <sys/mman.h>
#include <utility>

namespace bitladder {
inline namespace v0_1 {

/// What a range of a mapping is about to be used for.
enum class access {
  sequential,  ///< read from front to back: read far ahead
  random,      ///< here and there: do not read ahead
  will_need,   ///< soon: start reading now
  dont_need,   ///< done with it: its pages may go (they come back when touched)
};

/// Read-only mapping of one regular file. Moves keep the address.
class mapped_file {
 public:
  /// Nothing mapped.
  mapped_file() = default;

  /// @throws error(not_found), or error(io_failed) naming the path and the system's reason
  explicit mapped_file(const std::filesystem::path& path) {
    // O_NONBLOCK: opening a named pipe would otherwise wait for a writer.
    const detail::file_descriptor file = detail::open_file(path, O_RDONLY | O_NONBLOCK);
    const struct stat s = detail::stat_of(file, path);
    if (!S_ISREG(s.st_mode))
      throw error(status::io_failed, path.string() + ": expected a regular file, found " +
                                         (S_ISDIR(s.st_mode) ? "a folder" : "something else"));
    if (static_cast<std::uint64_t>(s.st_size) > std::numeric_limits<std::size_t>::max())
      throw error(status::io_failed, path.string() + ": too large to map");
    size_ = static_cast<std::size_t>(s.st_size);
    if (size_ == 0) return;  // mmap refuses empty ranges
    void* p = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.get(), 0);
    if (p == MAP_FAILED) detail::throw_io(path, "map", errno);
    data_ = static_cast<const std::byte*>(p);
  }
  mapped_file(mapped_file&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  mapped_file& operator=(mapped_file&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~mapped_file() {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  }

  /// Page-aligned; null for an empty file.
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }

  /// A hint for bytes [offset, offset + size): changes speed, never contents.
  void advise(access use, std::size_t offset, std::size_t size) const noexcept {
    if (offset >= size_ || size == 0) return;
    const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    std::size_t begin = offset / page * page;
    std::size_t end = offset + std::min(size, size_ - offset);
    if (use == access::dont_need) {  // only pages that lie inside: neighbours keep theirs
      begin = (offset + page - 1) / page * page;
      if (end != size_) end = end / page * page;
    }
    if (begin < end)
      static_cast<void>(::madvise(const_cast<std::byte*>(data_) + begin, end - begin, flag(use)));
  }
  void advise(access use) const noexcept { advise(use, 0, size_); }

 private:
  static int flag(access use) noexcept {
    switch (use) {
      case access::sequential: return MADV_SEQUENTIAL;
      case access::random: return MADV_RANDOM;
      case access::will_need: return MADV_WILLNEED;
      case access::dont_need: return MADV_DONTNEED;
    }
    return MADV_NORMAL;
  }

  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace v0_1
}  // namespace bitladder
