// SPDX-License-Identifier: MIT
// No random data.
#include <bitladder/io/journal.hpp>

#include <support/files.hpp>

#include <doctest/doctest.h>

namespace bl = bitladder;
using support::error_of;
using parts = std::map<std::string, std::uint64_t>;

TEST_CASE("a journal opened again has the job and every part") {
  support::temporary_folder folder;
  const parts expected = {{"a.b", 0}, {"odd \"name\"\n", 0xffffffffffffffffu}, {"c", 1}};
  {
    bl::journal j(folder / "j");
    CHECK_FALSE(j.started());
    j.start("a job \"with\" quotes");
    for (const auto& [name, sum] : expected) j.add(name, sum);
    j.add("c", 2);
    j.add("c", 1);
    CHECK(j.parts() == expected);
  }
  bl::journal j(folder / "j");
  CHECK(j.started());
  CHECK(j.job() == "a job \"with\" quotes");
  CHECK(j.parts() == expected);
  j.start("another");
  CHECK(j.parts().empty());
  j.remove();
  CHECK(support::read_folder(folder.path()).empty());
}

TEST_CASE("cut at any byte, a journal has a first part of its lines and takes new ones") {
  support::temporary_folder folder;
  {
    bl::journal j(folder / "j");
    j.start("job");
    for (int i = 0; i < 4; ++i) j.add("part" + std::to_string(i), 1000u + i);
  }
  const std::string whole = support::read_all(folder / "j");
  std::size_t most = 0;
  for (std::size_t size = 0; size <= whole.size(); ++size) {
    support::write_all(folder / "j", whole.substr(0, size));
    std::size_t found = 0;
    {
      bl::journal j(folder / "j");
      CHECK(j.started() == (size > whole.find('\n')));
      found = j.parts().size();
      CHECK(found >= most);
      most = found;
      if (!j.started()) continue;
      j.add("new", 7);
    }
    bl::journal j(folder / "j");
    CHECK(j.parts().size() == found + 1);
    CHECK(j.parts().at("new") == 7);
  }
  CHECK(most == 4);
}

TEST_CASE("zeros that a power cut left at the end are dropped") {
  support::temporary_folder folder;
  {
    bl::journal j(folder / "j");
    j.start("job");
    j.add("a", 1);
  }
  support::write_all(folder / "j", support::read_all(folder / "j") + std::string(60, '\0') + "\n");
  CHECK(bl::journal(folder / "j").parts() == parts{{"a", 1}});
}

TEST_CASE("a file that is no journal is refused and left alone") {
  support::temporary_folder folder;
  for (const char* text : {"my notes\n", "{}\n", "{\"journal\":2,\"job\":\"x\"}\n", "[1]\n"}) {
    support::write_all(folder / "j", text);
    CHECK(error_of([&] { bl::journal j(folder / "j"); }).code == bl::status::bad_file);
    CHECK(support::read_all(folder / "j") == text);
  }
}

TEST_CASE("two at once: the second gets an error") {
  support::temporary_folder folder;
  bl::journal first(folder / "j");
  CHECK(error_of([&] { bl::journal second(folder / "j"); }).names("another process"));
}
