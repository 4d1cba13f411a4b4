// SPDX-License-Identifier: MIT
// Reads zip archives whose entries are stored as they are, which is what torch.save writes: each
// entry is then a range of the mapped file. ZIP64 is understood; compression, encryption and
// archives of several parts are refused. The whole directory and every local header are checked
// on opening. Tested by tests/io/zip_archive_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/detail/crc32.hpp>
#include <bitladder/io/detail/zip_records.hpp>
#include <bitladder/io/mmap.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// One entry of an archive.
struct zip_entry {
  std::string name;
  std::uint64_t begin = 0;  ///< first data byte, counted from the start of the file
  std::uint64_t size = 0;   ///< bytes of data
  std::uint32_t crc32 = 0;  ///< the sum that the archive claims
};

/// An archive in memory that someone else owns.
class zip_view {
 public:
  /// @param where named in errors: a path
  /// @throws error(bad_file) naming the entry or the place, what was expected and what was found
  zip_view(std::string_view bytes, std::string where) : bytes_(bytes), where_(std::move(where)) {
    read_directory(find_end());
    require_apart();
  }

  const std::string& where() const { return where_; }
  /// In the order of the directory.
  const std::vector<zip_entry>& entries() const { return entries_; }
  /// Null if there is none of that name.
  const zip_entry* find(const std::string& name) const {
    const auto it = index_.find(name);
    return it == index_.end() ? nullptr : &entries_[it->second];
  }
  /// @throws error(bad_file): what is looked for in an archive is what makes it whole
  const zip_entry& at(const std::string& name) const {
    if (const zip_entry* e = find(name)) return *e;
    fail("no entry \"" + name + "\" among the " + std::to_string(entries_.size()));
  }
  /// Touches nothing.
  std::string_view bytes(const zip_entry& e) const {
    return bytes_.substr(static_cast<std::size_t>(e.begin), static_cast<std::size_t>(e.size));
  }
  /// Whether the bytes have the sum that the archive claims. Reads them all. PyTorch can be told to
  /// leave sums out, so opening does not insist on them.
  bool intact(const zip_entry& e) const {
    const std::string_view b = bytes(e);
    return detail::crc32(b.data(), b.size()) == e.crc32;
  }

 private:
  struct directory {
    std::uint64_t begin = 0, end = 0, count = 0;
  };

  [[noreturn]] void fail(const std::string& what) const {
    throw error(status::bad_file, where_ + ": " + what);
  }
  template <class T>
  T number(std::uint64_t at) const {
    return detail::load_number<T>(bytes_, at);
  }

  /// The end record stands last, behind it only the archive's comment.
  directory find_end() const {
    const std::uint64_t size = bytes_.size();
    if (size < detail::zip_end_size)
      fail("expected a zip archive, found " + std::to_string(size) + " bytes");
    const std::uint64_t last = size - detail::zip_end_size;
    const std::uint64_t first = last > 0xffff ? last - 0xffff : 0;
    std::uint64_t end = last + 1;
    while (end > first) {
      --end;
      if (number<std::uint32_t>(end) == detail::zip_end_signature &&
          number<std::uint16_t>(end + 20) == last - end)
        return read_end(end);
    }
    fail("expected a zip archive, found no end of its directory in the last " +
         std::to_string(size - first) + " bytes");
  }

  directory read_end(std::uint64_t end) const {
    directory d;
    d.end = end;
    d.count = number<std::uint16_t>(end + 10);
    std::uint64_t size = number<std::uint32_t>(end + 12);
    d.begin = number<std::uint32_t>(end + 16);
    if (number<std::uint32_t>(end + 4) != 0 || number<std::uint16_t>(end + 8) != d.count)
      fail("archive of several parts; expected one file");
    const bool wide =
        end >= detail::zip64_locator_size &&
        number<std::uint32_t>(end - detail::zip64_locator_size) == detail::zip64_locator_signature;
    if (wide) {
      const std::uint64_t locator = end - detail::zip64_locator_size;
      const std::uint64_t at = number<std::uint64_t>(locator + 8);
      if (number<std::uint32_t>(locator + 4) != 0 || number<std::uint32_t>(locator + 16) != 1)
        fail("archive of several parts; expected one file");
      if (at > locator || locator - at < detail::zip64_end_size ||
          number<std::uint32_t>(at) != detail::zip64_end_signature ||
          number<std::uint64_t>(at + 4) != locator - at - 12)
        fail("expected the ZIP64 end record at byte " + std::to_string(at) + ", right before " +
             std::to_string(locator) + "; it is not there");
      const std::uint64_t count = number<std::uint64_t>(at + 32);
      const std::uint64_t wide_size = number<std::uint64_t>(at + 40);
      const std::uint64_t begin = number<std::uint64_t>(at + 48);
      if (number<std::uint64_t>(at + 16) != 0 || number<std::uint64_t>(at + 24) != count)
        fail("archive of several parts; expected one file");
      if ((d.count != 0xffff && d.count != count) ||
          (size != detail::zip_see_zip64 && size != wide_size) ||
          (d.begin != detail::zip_see_zip64 && d.begin != begin))
        fail("the two end records disagree about the directory");
      d = {begin, at, count};
      size = wide_size;
    }
    if (d.begin > d.end || d.end - d.begin != size)
      fail("directory: expected " + std::to_string(size) + " bytes from byte " +
           std::to_string(d.begin) + " to its end record at " + std::to_string(d.end));
    if (d.count > size / detail::zip_central_size)
      fail("directory: " + std::to_string(d.count) + " entries cannot stand in its " +
           std::to_string(size) + " bytes");
    return d;
  }

  void read_directory(const directory& d) {
    entries_.reserve(static_cast<std::size_t>(d.count));
    std::uint64_t at = d.begin;
    for (std::uint64_t i = 0; i < d.count; ++i) {
      const std::string place =
          "directory entry " + std::to_string(i) + " at byte " + std::to_string(at);
      if (d.end - at < detail::zip_central_size ||
          number<std::uint32_t>(at) != detail::zip_central_signature)
        fail(place + ": not a directory entry");
      const std::uint64_t name_size = number<std::uint16_t>(at + 28);
      const std::uint64_t extra_size = number<std::uint16_t>(at + 30);
      const std::uint64_t all =
          detail::zip_central_size + name_size + extra_size + number<std::uint16_t>(at + 32);
      if (d.end - at < all) fail(place + ": passes the end of the directory");
      zip_entry e;
      e.name = bytes_.substr(static_cast<std::size_t>(at + detail::zip_central_size),
                             static_cast<std::size_t>(name_size));
      e.crc32 = number<std::uint32_t>(at + 16);
      const std::uint64_t extra = at + detail::zip_central_size + name_size;
      std::uint64_t fields[3] = {number<std::uint32_t>(at + 24), number<std::uint32_t>(at + 20),
                                 number<std::uint32_t>(at + 42)};
      require_plain(e.name, number<std::uint16_t>(at + 8), number<std::uint16_t>(at + 10));
      read_wide(e.name, extra, extra_size, fields, 3);
      if (fields[0] != fields[1])
        fail_entry(e.name, "stored, but " + std::to_string(fields[0]) + " bytes take " +
                               std::to_string(fields[1]));
      if (number<std::uint16_t>(at + 34) != 0) fail_entry(e.name, "is in another part");
      e.size = fields[0];
      e.begin = read_local_header(e, fields[2], d.begin);
      headers_.push_back(fields[2]);
      if (!index_.emplace(e.name, entries_.size()).second)
        fail_entry(e.name, "is in the archive twice");
      entries_.push_back(std::move(e));
      at += all;
    }
    if (at != d.end)
      fail("directory: " + std::to_string(d.count) + " entries end at byte " + std::to_string(at) +
           ", expected its end record there, which is at " + std::to_string(d.end));
  }

  [[noreturn]] void fail_entry(const std::string& name, const std::string& what) const {
    fail("entry \"" + name + "\": " + what);
  }

  void require_plain(const std::string& name, std::uint16_t flags, std::uint16_t method) const {
    if ((flags & 1u) != 0) fail_entry(name, "is encrypted");
    if (method != 0)
      fail_entry(name, "is compressed (method " + std::to_string(method) +
                           "); expected stored bytes, as torch.save writes them");
  }

  /// Replaces fields that refer to the ZIP64 field by what stands there, in order.
  void read_wide(const std::string& name, std::uint64_t at, std::uint64_t size,
                 std::uint64_t* fields, int count) const {
    const std::uint64_t end = at + size;
    const auto refers = [](std::uint64_t f) { return f == detail::zip_see_zip64; };
    while (at < end) {
      if (end - at < 4 || end - at - 4 < number<std::uint16_t>(at + 2))
        fail_entry(name, "extra field at byte " + std::to_string(at) + " is cut short");
      const std::uint64_t next = at + 4 + number<std::uint16_t>(at + 2);
      if (number<std::uint16_t>(at) == detail::zip64_extra) {
        at += 4;
        for (int i = 0; i < count; ++i) {
          if (!refers(fields[i])) continue;
          if (next - at < 8)
            fail_entry(name, "ZIP64 field at byte " + std::to_string(at) + " is cut short");
          fields[i] = number<std::uint64_t>(at);
          at += 8;
        }
        return;
      }
      at = next;
    }
    if (std::any_of(fields, fields + count, refers))
      fail_entry(name, "refers to a ZIP64 field that is not there");
  }

  /// @return where the data begins
  std::uint64_t read_local_header(const zip_entry& e, std::uint64_t at, std::uint64_t end) const {
    const std::string place = "local header at byte " + std::to_string(at);
    if (at > end || end - at < detail::zip_local_size ||
        number<std::uint32_t>(at) != detail::zip_local_signature)
      fail_entry(e.name, "expected its " + place + ", it is not there");
    const std::uint64_t name_size = number<std::uint16_t>(at + 26);
    const std::uint64_t extra_size = number<std::uint16_t>(at + 28);
    if (end - at - detail::zip_local_size < name_size + extra_size)
      fail_entry(e.name, place + " passes the start of the directory");
    const std::uint64_t name = at + detail::zip_local_size;
    if (bytes_.substr(static_cast<std::size_t>(name), static_cast<std::size_t>(name_size)) !=
        e.name)
      fail_entry(e.name, place + " has another name");
    const std::uint16_t flags = number<std::uint16_t>(at + 6);
    require_plain(e.name, flags, number<std::uint16_t>(at + 8));
    if ((flags & 1u << 3) == 0) {  // else sizes were not known yet when the header was written
      std::uint64_t fields[2] = {number<std::uint32_t>(at + 22), number<std::uint32_t>(at + 18)};
      read_wide(e.name, name + name_size, extra_size, fields, 2);
      if (fields[0] != e.size || fields[1] != e.size)
        fail_entry(e.name, place + " says " + std::to_string(fields[0]) + " bytes, the directory " +
                               std::to_string(e.size));
    }
    const std::uint64_t begin = name + name_size + extra_size;
    if (e.size > end - begin)
      fail_entry(e.name, std::to_string(e.size) + " bytes from byte " + std::to_string(begin) +
                             " on pass the start of the directory at " + std::to_string(end));
    return begin;
  }

  /// Entries that share bytes would let one checked range change its meaning by another's.
  void require_apart() {
    std::vector<std::size_t> order(entries_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(),
              [this](std::size_t a, std::size_t b) { return headers_[a] < headers_[b]; });
    for (std::size_t i = 1; i < order.size(); ++i) {
      const zip_entry& before = entries_[order[i - 1]];
      if (headers_[order[i]] < before.begin + before.size)
        fail_entry(entries_[order[i]].name, "overlaps entry \"" + before.name + "\"");
    }
    headers_ = {};
  }

  std::string_view bytes_;
  std::string where_;
  std::vector<zip_entry> entries_;
  std::vector<std::uint64_t> headers_;  // where each entry's local header is, while checking
  std::unordered_map<std::string, std::size_t> index_;
};

/// An archive file, mapped. Move-only; bytes stay valid while it lives, moved or not.
class zip_archive {
 public:
  /// @throws error(not_found), error(io_failed), or error(bad_file) naming the file
  explicit zip_archive(const std::filesystem::path& path)
      : file_(path), view_(file_.text(), path.string()) {}

  const zip_view& view() const { return view_; }
  const std::vector<zip_entry>& entries() const { return view_.entries(); }
  const zip_entry* find(const std::string& name) const { return view_.find(name); }
  const zip_entry& at(const std::string& name) const { return view_.at(name); }
  std::string_view bytes(const zip_entry& e) const { return view_.bytes(e); }
  bool intact(const zip_entry& e) const { return view_.intact(e); }
  const mapped_file& mapping() const { return file_; }

 private:
  mapped_file file_;
  zip_view view_;
};

}  // namespace v0_1
}  // namespace bitladder
