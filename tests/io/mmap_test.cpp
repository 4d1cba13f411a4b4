// SPDX-License-Identifier: MIT
// No random data.
#include <bitladder/io/mmap.hpp>

#include <support/files.hpp>

#include <doctest/doctest.h>

#include <sys/stat.h>
#include <utility>

namespace bl = bitladder;
using support::error_of;
using support::thrown;

TEST_CASE("a mapping shows the file's bytes and keeps its address when moved") {
  support::temporary_folder folder;
  const std::string bytes(10000, 'x');
  support::write_all(folder / "f", bytes);
  bl::mapped_file a(folder / "f");
  const std::byte* address = a.data();
  CHECK(a.text() == bytes);
  bl::mapped_file b(std::move(a));
  CHECK(a.size() == 0);
  CHECK(b.data() == address);
  bl::mapped_file c;
  c = std::move(b);
  CHECK(c.text() == bytes);
}

TEST_CASE("an empty file maps to nothing") {
  support::temporary_folder folder;
  support::write_all(folder / "f", "");
  const bl::mapped_file file(folder / "f");
  CHECK(file.size() == 0);
  CHECK(file.text().empty());
  file.advise(bl::access::will_need);
}

TEST_CASE("what cannot be mapped is named in the error") {
  support::temporary_folder folder;
  const thrown missing = error_of([&] { bl::mapped_file(folder / "absent"); });
  CHECK(missing.code == bl::status::not_found);
  CHECK(missing.names("absent"));
  const thrown directory = error_of([&] { bl::mapped_file(folder.path()); });
  CHECK(directory.code == bl::status::io_failed);
  CHECK(directory.names("found a folder"));
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK(error_of([&] { bl::mapped_file(folder / "pipe"); }).names("regular file"));
}

TEST_CASE("advice never changes contents, whatever its range") {
  support::temporary_folder folder;
  std::string bytes(3 * 4096 + 17, '\0');
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i % 127);
  support::write_all(folder / "f", bytes);
  const bl::mapped_file file(folder / "f");
  for (bl::access use :
       {bl::access::sequential, bl::access::random, bl::access::will_need, bl::access::dont_need})
    for (std::size_t begin : {0u, 1u, 4095u, 4096u, 12288u, 12304u, 12305u, 99999u})
      for (std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{5000}, ~std::size_t{0}})
        file.advise(use, begin, size);
  CHECK(file.text() == bytes);
}
