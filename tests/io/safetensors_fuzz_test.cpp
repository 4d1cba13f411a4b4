// SPDX-License-Identifier: MIT
// Seeds 1 and 2. Damaged files must either open and agree with themselves or throw
// bitladder::error.
#include <bitladder/io/safetensors.hpp>

#include "io/files.hpp"
#include "support/random.hpp"

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

void mutate(std::string& bytes, support::random& random, const std::string& alphabet) {
  const auto place = [&] {
    return static_cast<std::size_t>(random.below(static_cast<int>(bytes.size())));
  };
  const auto letter = [&] {
    return random.below(4) == 0 ? static_cast<char>(random.next())
                                : alphabet[static_cast<std::size_t>(
                                      random.below(static_cast<int>(alphabet.size())))];
  };
  for (int n = 1 + random.below(3); n > 0 && !bytes.empty(); --n) {
    switch (random.below(6)) {
      case 0: bytes[place()] = letter(); break;
      case 1: {
        char& c = bytes[place()];
        c = static_cast<char>(c ^ 1 << random.below(8));
        break;
      }
      case 2: bytes.insert(place(), 1, letter()); break;
      case 3: bytes.erase(place(), 1); break;
      case 4: bytes.resize(place()); break;
      default: {  // a piece again somewhere else
        const std::string piece =
            bytes.substr(place(), static_cast<std::size_t>(1 + random.below(40)));
        bytes.insert(place(), piece);
      }
    }
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
    mutate(bytes, random, std::string("\0\1\xff", 3));
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
    mutate(changed, random, std::string("{}[]\":,0123456789-.eE \\utF\0", 27));
    try_open(folder / "f", support::safetensors_bytes(changed, data), count);
  }
  CHECK(count.opened > 100);  // changed names
  CHECK(count.refused > 5000);
}
