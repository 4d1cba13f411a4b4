// SPDX-License-Identifier: MIT
// Seed 41. data/*.zip are from Python's zipfile (make_torch_golden.py).
#include <bitladder/io/zip_archive.hpp>

#include "io/damage.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

#include <functional>

namespace bl = bitladder;
namespace detail = bitladder::detail;
using support::error_of;
using support::thrown;

namespace {

/// An archive of two entries, "a/x" with "hello" and "a/y" with 100 bytes of 'y'.
struct small_archive {
  std::vector<detail::zip_record> records;
  std::string data, directory;

  explicit small_archive(std::uint64_t zip64_from = detail::zip_see_zip64) {
    add("a/x", "hello", zip64_from);
    add("a/y", std::string(100, 'y'), zip64_from);
    directory = detail::zip_directory(records, data.size(), zip64_from);
  }
  void add(const std::string& name, const std::string& bytes, std::uint64_t zip64_from) {
    detail::zip_record r{name, bytes.size(), detail::crc32(bytes.data(), bytes.size()),
                         data.size()};
    data += detail::zip_local_header(r, 64, zip64_from) + bytes;
    records.push_back(r);
  }
  std::string bytes() const { return data + directory; }
};

/// The error of reading a small archive after a change at byte `at` of its data or directory.
template <class T>
thrown changed(std::string small_archive::*part, std::size_t at, T value,
               std::uint64_t zip64_from = detail::zip_see_zip64) {
  small_archive a(zip64_from);
  REQUIRE(at + sizeof value <= (a.*part).size());
  std::memcpy((a.*part).data() + at, &value, sizeof value);
  const std::string bytes = a.bytes();
  const thrown e = error_of([&] { bl::zip_view view(bytes, "f.zip"); });
  CHECK(e.text.find("f.zip: ") == 0);
  CHECK(e.code == bl::status::bad_file);
  return e;
}
thrown changed16(std::string small_archive::*part, std::size_t at, int value) {
  return changed(part, at, static_cast<std::uint16_t>(value));
}
thrown changed32(std::string small_archive::*part, std::size_t at, std::uint32_t value) {
  return changed(part, at, value);
}

constexpr auto data = &small_archive::data;
constexpr auto directory = &small_archive::directory;
// Within the directory: two entries of 46 + 3 bytes, then the three end records.
constexpr std::size_t second = 49, end64 = 98, locator = end64 + 56, end = locator + 20;

}  // namespace

TEST_CASE("the CRC-32 of zip archives is the standard one, whole or in pieces") {
  const std::string text = "123456789";
  CHECK(detail::crc32(text.data(), text.size()) == 0xcbf43926u);
  CHECK(detail::crc32(text.data(), 0) == 0);
  support::random random(41);
  std::string bytes(1000, '\0');
  for (char& c : bytes) c = static_cast<char>(random.next());
  const std::uint32_t whole = detail::crc32(bytes.data(), bytes.size());
  for (std::size_t cut = 0; cut < bytes.size(); cut += 7)
    CHECK(detail::crc32(bytes.data() + cut, bytes.size() - cut, detail::crc32(bytes.data(), cut)) ==
          whole);
}

TEST_CASE("archives of Python's zipfile read back, with ZIP64 fields or sizes behind the data") {
  for (const char* name : {"/zip64.zip", "/streamed.zip"}) {
    CAPTURE(name);
    const bl::zip_archive archive(std::string(BL_TEST_DATA) + name);
    REQUIRE(archive.entries().size() == 3);
    CHECK(archive.bytes(archive.at("a/one")) ==
          "first first first first first first first first first ");
    CHECK(archive.bytes(archive.at("a/none")).empty());
    CHECK(archive.bytes(archive.at("two")) == std::string("\0second", 7));
    for (const bl::zip_entry& e : archive.entries()) CHECK(archive.intact(e));
    CHECK(archive.find("one") == nullptr);
    CHECK(error_of([&] { static_cast<void>(archive.at("one")); }).names("no entry \"one\""));
  }
}

TEST_CASE("a compressed entry is an error that says so") {
  const thrown e = error_of([] { bl::zip_archive archive(BL_TEST_DATA "/compressed.zip"); });
  CHECK(e.code == bl::status::bad_file);
  CHECK(e.names("compressed.zip: entry \"a/squeezed\": is compressed (method 8)"));
}

TEST_CASE("what our records say reads back at 64-byte places, ZIP64 or not") {
  for (std::uint64_t from : {std::uint64_t{detail::zip_see_zip64}, std::uint64_t{50},
                             std::uint64_t{1}, std::uint64_t{0}}) {
    CAPTURE(from);
    const small_archive a(from);
    const std::string bytes = a.bytes();
    const bl::zip_view view(bytes, "f.zip");
    REQUIRE(view.entries().size() == 2);
    CHECK(view.bytes(view.at("a/x")) == "hello");
    CHECK(view.bytes(view.at("a/y")) == std::string(100, 'y'));
    for (const bl::zip_entry& e : view.entries()) {
      CHECK(e.begin % 64 == 0);
      CHECK(view.intact(e));
    }
  }
  small_archive damaged;
  damaged.data.back() = 'z';
  const std::string bytes = damaged.bytes();
  const bl::zip_view view(bytes, "f.zip");
  CHECK(view.intact(view.entries()[0]));
  CHECK_FALSE(view.intact(view.entries()[1]));
}

TEST_CASE("an empty archive has no entries") {
  const std::string bytes = detail::zip_directory({}, 0);
  CHECK(bl::zip_view(bytes, "f.zip").entries().empty());
}

TEST_CASE("files that are no archives are refused") {
  for (std::size_t size : {0, 1, 21, 22, 500, 70000}) {
    const std::string zeros(size, '\0');
    const thrown e = error_of([&] { bl::zip_view view(zeros, "f.zip"); });
    CHECK(e.names("f.zip: expected a zip archive"));
  }
}

TEST_CASE("lies of the end records are found") {
  CHECK(changed16(directory, end + 4, 1).names("several parts"));
  CHECK(changed16(directory, end + 8, 1).names("several parts"));
  CHECK(changed32(directory, end + 12, 97).names("disagree"));
  CHECK(changed32(directory, end + 16, 3).names("disagree"));
  CHECK(changed16(directory, end + 20, 1).names("found no end of its directory"));
  CHECK(changed32(directory, locator + 16, 2).names("several parts"));
  CHECK(changed(directory, locator + 8, std::uint64_t{1} << 63).names("expected the ZIP64 end"));
  CHECK(changed(directory, locator + 8, ~std::uint64_t{0}).names("expected the ZIP64 end"));
  CHECK(changed(directory, locator + 8, std::uint64_t{0}).names("expected the ZIP64 end"));
  CHECK(changed(directory, end64 + 4, std::uint64_t{45}).names("expected the ZIP64 end"));
  CHECK(changed(directory, end64 + 32, std::uint64_t{3}).names("several parts"));
  // With ZIP64 alone to say it, nothing disagrees.
  const std::size_t wide_end = 2 * (46 + 3 + 4 + 24);
  for (std::uint64_t size : {std::uint64_t{97}, ~std::uint64_t{0}, std::uint64_t{0}})
    CHECK(changed(directory, wide_end + 40, size, 0).names("directory: expected"));
  CHECK(changed(directory, wide_end + 48, ~std::uint64_t{0}, 0).names("directory: expected"));
}

TEST_CASE("lies of the directory are found") {
  CHECK(changed32(directory, 0, 7).names("entry 0 at byte"));
  CHECK(changed32(directory, second, 7).names("directory entry 1"));
  CHECK(changed16(directory, 28, 4).names("has another name"));
  CHECK(changed16(directory, second + 28, 60000).names("passes the end of the directory"));
  CHECK(changed16(directory, second + 32, 60000).names("passes the end of the directory"));
  CHECK(changed16(directory, 8, 1).names("entry \"a/x\": is encrypted"));
  CHECK(changed16(directory, 10, 8).names("entry \"a/x\": is compressed (method 8)"));
  CHECK(changed32(directory, 20, 6).names("stored, but 5 bytes take 6"));
  CHECK(changed16(directory, 34, 1).names("is in another part"));
  CHECK(changed32(directory, 42, 1).names("expected its local header at byte 1"));
  CHECK(changed32(directory, 42, 0xfffffff0u).names("expected its local header"));
  CHECK(changed32(directory, 42, 0xffffffffu).names("refers to a ZIP64 field that is not there"));
  CHECK(changed(directory, 46, 'b').names("has another name"));
  CHECK(changed(directory, second + 48, 'x').names("has another name"));
  CHECK(changed(directory, 46 + 3 + 2, std::uint16_t{25}, 0).names("is cut short"));
  CHECK(changed(directory, 46 + 3 + 2, std::uint16_t{16}, 0).names("is cut short"));
  CHECK(changed(directory, 46 + 3, std::uint16_t{9}, 0).names("ZIP64 field that is not there"));
  CHECK(changed(directory, 46 + 3 + 4, ~std::uint64_t{0}, 0).names("bytes take"));
}

TEST_CASE("lies of local headers are found") {
  CHECK(changed32(data, 0, 7).names("entry \"a/x\": expected its local header"));
  CHECK(changed16(data, 8, 8).names("is compressed"));
  CHECK(changed32(data, 18, 4).names("says 5 bytes, the directory 5"));
  CHECK(changed32(data, 22, 4).names("says 4 bytes, the directory 5"));
  CHECK(changed16(data, 26, 2).names("has another name"));
  CHECK(changed16(data, 28, 60000).names("passes the start of the directory"));
}

TEST_CASE("entries twice, overlapping or past the directory are refused") {
  const auto error = [](const std::function<void(small_archive&)>& change) {
    small_archive a;
    change(a);
    a.directory = detail::zip_directory(a.records, a.data.size());
    const std::string bytes = a.bytes();
    return error_of([&] { bl::zip_view view(bytes, "f.zip"); });
  };
  CHECK(error([](small_archive& a) {
          a.records.push_back(a.records[0]);
        }).names("entry \"a/x\": is in the archive twice"));
  CHECK(error([](small_archive& a) {
          std::uint32_t size = 80;  // in both places, so that only the neighbour contradicts
          a.records[0].size = size;
          std::memcpy(a.data.data() + 18, &size, 4);
          std::memcpy(a.data.data() + 22, &size, 4);
        }).names("entry \"a/y\": overlaps entry \"a/x\""));
  CHECK(error([](small_archive& a) {
          std::uint32_t size = 101;
          a.records[1].size = size;
          std::memcpy(a.data.data() + a.records[1].header + 18, &size, 4);
          std::memcpy(a.data.data() + a.records[1].header + 22, &size, 4);
        }).names("pass the start of the directory"));
}

TEST_CASE("archives damaged anywhere never crash the reader") {
  support::random random(41);
  int opened = 0, refused = 0;
  const auto try_open = [&](const std::string& bytes) {
    try {
      const bl::zip_view view(bytes, "f.zip");
      for (const bl::zip_entry& e : view.entries()) {
        REQUIRE(view.bytes(e).size() == e.size);
        static_cast<void>(view.intact(e));
      }
      ++opened;
    } catch (const bl::error&) {
      ++refused;
    }
  };
  for (const std::string& good : {small_archive().bytes(), small_archive(0).bytes(),
                                  support::read_all(BL_TEST_DATA "/zip64.zip"),
                                  support::read_all(BL_TEST_DATA "/streamed.zip")}) {
    for (int i = 0; i < 5000; ++i) {
      std::string bytes = good;
      support::damage(bytes, random, std::string("\0\1\xffPK\5\6\7", 8));
      try_open(bytes);
    }
    for (std::size_t size = 0; size < good.size(); ++size) try_open(good.substr(0, size));
  }
  CHECK(opened > 500);  // changes inside the data
  CHECK(refused > 5000);
}
