// SPDX-License-Identifier: MIT
// Seeds 1 and 2. Damaged files must either open and agree with themselves or throw
// bitladder::error.
#include <bitladder/io/safetensors.hpp>

#include "io/damage.hpp"
#include "support/random.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

namespace bl = bitladder;

namespace {

struct outcome {
  int opened = 0, refused = 0;
};

/// Opens the bytes as a file; if that succeeds, touches everything that the header promises.
void try_open(const std::filesystem::path& path, const std::string& bytes, outcome& count) {
  support::write_all(path, bytes);
  try {
    const bl::safetensors_file file(path);
    std::uint64_t covered = 0;
    unsigned sum = 0;
    for (const bl::tensor_info& t : file.tensors()) {
      REQUIRE(file.find(t.name) == &t);
      REQUIRE(t.begin == covered);
      REQUIRE(bl::byte_size(t.type, t.shape) == t.bytes());
      covered = t.end;
      for (std::byte b : file.bytes(t)) sum += static_cast<unsigned>(b);
      if (t.type == bl::dtype::f32 || t.type == bl::dtype::f16)
        sum += static_cast<unsigned>(file.read_as_float(t.name).size());
    }
    REQUIRE(file.data_offset() + covered == bytes.size());
    CHECK(sum < ~0u);
    ++count.opened;
  } catch (const bl::error& e) {
    REQUIRE(std::string(e.what()).find(path.string()) == 0);
    ++count.refused;
  }
}

}  // namespace

TEST_CASE("files damaged anywhere never crash the reader") {
  support::temporary_folder folder;
  const std::string good = support::read_all(BL_TEST_DATA "/foreign.safetensors");
  support::random random(1);
  outcome count;
  try_open(folder / "f", good, count);
  REQUIRE(count.opened == 1);
  for (int i = 0; i < 4000; ++i) {
    std::string bytes = good;
    support::damage(bytes, random, std::string("\0\1\xff", 3));
    try_open(folder / "f", bytes, count);
  }
  for (std::size_t size = 0; size < good.size(); ++size)
    try_open(folder / "f", good.substr(0, size), count);
  CHECK(count.opened > 100);  // changes inside the data
  CHECK(count.refused > 1000);
}

TEST_CASE("headers damaged under a right length never crash the reader") {
  support::temporary_folder folder;
  const std::string good = support::read_all(BL_TEST_DATA "/foreign.safetensors");
  const std::size_t data_size = 887;
  const std::string header = good.substr(8, good.size() - 8 - data_size);
  const std::string data = good.substr(good.size() - data_size);
  support::random random(2);
  outcome count;
  try_open(folder / "f", support::safetensors_bytes(header, data), count);
  REQUIRE(count.opened == 1);
  for (int i = 0; i < 12000; ++i) {
    std::string changed = header;
    support::damage(changed, random, std::string("{}[]\":,0123456789-.eE \\utF\0", 27));
    try_open(folder / "f", support::safetensors_bytes(changed, data), count);
  }
  CHECK(count.opened > 100);  // changed names
  CHECK(count.refused > 5000);
}
