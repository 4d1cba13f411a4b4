// SPDX-License-Identifier: MIT
// No random data.
#include <bitladder/io/detail/posix.hpp>

#include <support/files.hpp>

#include <doctest/doctest.h>

#include <csignal>

namespace bl = bitladder;
using support::error_of;
using support::thrown;

TEST_CASE("a write to a full device names the path and the system's reason") {
  const bl::detail::file_descriptor file = bl::detail::open_file("/dev/full", O_WRONLY);
  const thrown e = error_of([&] { bl::detail::write_all(file, "/dev/full", "abc", 3, 0); });
  CHECK(e.code == bl::status::io_failed);
  CHECK(e.text == "/dev/full: could not write 3 bytes: No space left on device");
}

TEST_CASE("a missing file is not_found and says so") {
  support::temporary_folder folder;
  const thrown e = error_of([&] { bl::detail::open_file(folder / "absent", O_RDONLY); });
  CHECK(e.code == bl::status::not_found);
  CHECK(e.names((folder / "absent").string()));
}

TEST_CASE("a read past the end returns what there is") {
  support::temporary_folder folder;
  support::write_all(folder / "f", "hello");
  const bl::detail::file_descriptor file = bl::detail::open_file(folder / "f", O_RDONLY);
  char buffer[16] = {};
  CHECK(bl::detail::read_some(file, "f", buffer, 16, 2) == 3);
  CHECK(std::string(buffer) == "llo");
  CHECK(bl::detail::read_some(file, "f", buffer, 16, 50) == 0);
}

TEST_CASE("a moved descriptor is closed once, by its last holder") {
  support::temporary_folder folder;
  bl::detail::file_descriptor a = bl::detail::open_file(folder / "f", O_RDWR | O_CREAT);
  const int number = a.get();
  {
    bl::detail::file_descriptor b(std::move(a));
    CHECK_FALSE(a.valid());
    CHECK(b.get() == number);
  }
  CHECK(::fcntl(number, F_GETFD) == -1);
}

TEST_CASE("a locked file is refused to a second holder until the first lets go") {
  support::temporary_folder folder;
  bl::detail::file_descriptor first = bl::detail::open_locked(folder / "f");
  const thrown e = error_of([&] { bl::detail::open_locked(folder / "f"); });
  CHECK(e.code == bl::status::io_failed);
  CHECK(e.names("another process"));
  first.close();
  CHECK(bl::detail::open_locked(folder / "f").valid());
}

TEST_CASE("the lock of a process that was killed is free") {
  support::temporary_folder folder;
  const int result = support::in_child([&] {
    const bl::detail::file_descriptor held = bl::detail::open_locked(folder / "f");
    ::kill(::getpid(), SIGKILL);
  });
  CHECK(WIFSIGNALED(result));
  CHECK(bl::detail::open_locked(folder / "f").valid());
}
