// SPDX-License-Identifier: MIT
// No random data.
#include <bitladder/io/atomic_file.hpp>

#include <support/files.hpp>

#include <doctest/doctest.h>

#include <csignal>
#include <sys/resource.h>

namespace bl = bitladder;
using support::error_of;

TEST_CASE("a file is created and replaced whole, with nothing left beside it") {
  support::temporary_folder folder;
  bl::write_file_atomically(folder / "f", "first");
  bl::write_file_atomically(folder / "f", "");
  CHECK(support::read_all(folder / "f").empty());
  bl::write_file_atomically(folder / "f", std::string("a\0b", 3));
  bl::copy_file_atomically(folder / "f", folder / "g");
  CHECK(support::read_folder(folder.path()) ==
        std::map<std::string, std::string>{{"f", std::string("a\0b", 3)},
                                           {"g", std::string("a\0b", 3)}});
}

TEST_CASE("a write that fails half way leaves the old file and no other") {
  support::temporary_folder folder;
  support::write_all(folder / "f", "old");
  const int result = support::in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{4096, 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const support::thrown e =
        error_of([&] { bl::write_file_atomically(folder / "f", std::string(10000, 'x')); });
    ::_exit(e.code == bl::status::io_failed && e.names("File too large") ? 7 : 8);
  });
  CHECK(WEXITSTATUS(result) == 7);
  CHECK(support::read_folder(folder.path()) == std::map<std::string, std::string>{{"f", "old"}});
}

TEST_CASE("a missing folder or source is named") {
  support::temporary_folder folder;
  CHECK(error_of([&] { bl::write_file_atomically(folder / "no/f", "x"); }).names("no/f"));
  CHECK(error_of([&] { bl::copy_file_atomically(folder / "a", folder / "b"); }).code ==
        bl::status::not_found);
}
