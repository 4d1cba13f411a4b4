// SPDX-License-Identifier: MIT
#include <bitladder/core/dtype.hpp>
#include <bitladder/io/safetensors_plan.hpp>
#include <bitladder/io/safetensors_writer.hpp>

#include <llama/calibration.hpp>
#include <llama/tokenizer.hpp>
#include <support/files.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

using support::contains;
using support::error_of;
using support::write_all;

constexpr int vocabulary = 4096;

const llama::tokenizer& words() {
  static const llama::tokenizer t =
      llama::tokenizer::load(std::string(BL_SOURCE_DIR) + "/examples/models/small/tokenizer.json");
  return t;
}

llama::calibration_options ask(int samples, int seq_len, llama::draw how = llama::draw::automatic,
                               std::uint64_t random_state = 0) {
  llama::calibration_options o;
  o.samples = samples;
  o.seq_len = seq_len;
  o.how = how;
  o.random_state = random_state;
  return o;
}

llama::calibration read(const fs::path& path, const llama::calibration_options& o) {
  return llama::read_calibration({path}, &words(), vocabulary, o);
}

std::string refused(const fs::path& path, const llama::calibration_options& o) {
  return error_of([&] { read(path, o); }).text;
}

std::vector<int> row(const llama::calibration& c, int i) {
  const auto s = c.sample(i);
  return {s.begin(), s.end()};
}

/// A text of `count` words that no other number gives.
std::string story(int number, int count) {
  std::string text;
  for (int i = 0; i < count; ++i)
    text += "chapter " + std::to_string(number) + " of the " + std::to_string(i) + " ways. ";
  return text;
}

/// Numbers as the bytes of a file.
template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

fs::path write_tokens(const fs::path& path, bitladder::dtype type,
                      const std::vector<std::int64_t>& shape, const std::string& bytes) {
  bitladder::safetensors_plan plan;
  plan.add("tokens", type, shape);
  auto out = bitladder::safetensors_writer::create(path, plan);
  out.write("tokens", bytes.data(), bytes.size());
  out.commit();
  return path;
}

}  // namespace

TEST_CASE("a random order has each number once, and is the same everywhere") {
  const auto order = [](std::size_t count, std::uint64_t random_state) {
    std::vector<std::size_t> all;
    for (llama::random_order o(count, random_state); !o.empty();) all.push_back(o.next());
    return all;
  };
  // Made by the same rules in Python.
  CHECK(order(10, 0) == std::vector<std::size_t>{5, 0, 7, 4, 1, 8, 9, 2, 3, 6});
  CHECK(order(10, 42) == std::vector<std::size_t>{3, 1, 2, 7, 4, 6, 8, 5, 9, 0});
  CHECK(order(7, ~std::uint64_t{0}) == std::vector<std::size_t>{0, 3, 1, 2, 6, 4, 5});
  CHECK(order(0, 1).empty());
  for (std::size_t count : {1, 2, 1000}) {
    std::vector<std::size_t> all = order(count, 3);
    std::sort(all.begin(), all.end());
    for (std::size_t i = 0; i < count; ++i) REQUIRE(all[i] == i);
    CHECK(all.size() == count);
  }
}

TEST_CASE("documents: the first tokens of each that is long enough, in random order, each once") {
  const support::temporary_folder folder;
  std::vector<std::vector<int>> documents;
  for (int i = 0; i < 12; ++i) {
    // Every third is too short for 40 tokens, and one has exactly as many as are asked for.
    const std::string text = story(i, i % 3 == 0 ? 2 : 8 + i);
    write_all(folder / ("doc" + std::to_string(10 + i) + ".txt"), text);
    documents.push_back(words().encode(text));
  }
  const llama::calibration c = read(folder.path(), ask(8, 40, llama::draw::documents));
  CHECK(c.drawn == "documents");
  CHECK(c.samples == 8);
  CHECK(c.tokens.size() == 8 * 40);
  llama::random_order order(12, 0);
  for (int i = 0; i < 8; ++i) {
    std::size_t d = order.next();
    while (documents[d].size() < 40) d = order.next();
    CHECK(row(c, i) == std::vector<int>(documents[d].begin(), documents[d].begin() + 40));
  }
  const std::string text = refused(folder.path(), ask(9, 40, llama::draw::documents));
  CHECK(contains(text, folder.path().string()));
  CHECK(contains(text, "9 samples of 40 tokens, found 8 (documents that are long enough, of 12)"));

  const auto longest =
      std::max_element(documents.begin(), documents.end(),
                       [](const auto& a, const auto& b) { return a.size() < b.size(); });
  const int exactly = static_cast<int>(longest->size());
  CHECK(row(read(folder.path(), ask(1, exactly, llama::draw::documents)), 0) == *longest);
  CHECK(refused(folder.path(), ask(1, exactly + 1, llama::draw::documents)) != "");
}

TEST_CASE("windows: cut from all documents one after another, in random order, each once") {
  const support::temporary_folder folder;
  std::vector<int> all;
  std::vector<fs::path> paths;
  for (int i = 0; i < 3; ++i) {
    const std::string text = story(i, 20 + 3 * i);
    paths.push_back(folder / (std::to_string(i) + ".text"));
    write_all(paths.back(), text);
    const std::vector<int> ids = words().encode(text);
    all.insert(all.end(), ids.begin(), ids.end());
  }
  const int size = 37, most = static_cast<int>(all.size()) / size;
  REQUIRE(most > 4);
  const auto o = ask(most, size, llama::draw::windows, 7);
  const llama::calibration c = llama::read_calibration(paths, &words(), vocabulary, o);
  CHECK(c.drawn == "windows");
  llama::random_order order(static_cast<std::size_t>(most), 7);
  for (int i = 0; i < most; ++i) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(order.next()) * size;
    CHECK(row(c, i) == std::vector<int>(begin, begin + size));
  }
  const std::string text = error_of([&] {
                             llama::read_calibration(paths, &words(), vocabulary,
                                                     ask(most + 1, size, llama::draw::windows));
                           }).text;
  for (const fs::path& p : paths) CHECK(contains(text, p.string()));
  CHECK(contains(text, "found " + std::to_string(most) + " (windows of " +
                           std::to_string(all.size()) + " tokens in 3 documents)"));
}

TEST_CASE("left to itself it takes documents if there are enough, else windows") {
  const support::temporary_folder folder;
  for (int i = 0; i < 4; ++i)
    write_all(folder / (std::to_string(i) + ".txt"), story(i, i == 0 ? 1 : 40));
  CHECK(read(folder.path(), ask(3, 32)).drawn == "documents");
  CHECK(read(folder.path(), ask(4, 32)).drawn == "windows");  // one document is too short
  CHECK(read(folder.path(), ask(5, 32)).drawn == "windows");
  CHECK(read(folder / "1.txt", ask(3, 32)).drawn == "windows");
  CHECK(read(folder / "1.txt", ask(1, 32)).drawn == "documents");
}

TEST_CASE("the random state decides the samples, and the checksum tells them apart") {
  const support::temporary_folder folder;
  write_all(folder / "a.txt", story(1, 200));
  const llama::calibration a = read(folder / "a.txt", ask(5, 32)),
                           b = read(folder / "a.txt", ask(5, 32)),
                           c = read(folder / "a.txt", ask(5, 32, llama::draw::automatic, 1));
  CHECK(a.tokens == b.tokens);
  CHECK(a.checksum() == b.checksum());
  CHECK(a.tokens != c.tokens);
  CHECK(a.checksum() != c.checksum());
  const llama::calibration reshaped{10, 16, a.tokens, a.drawn};
  CHECK(a.checksum() != reshaped.checksum());
}

TEST_CASE("what a caller does to texts is done before they are tokenized") {
  const support::temporary_folder folder;
  write_all(folder / "a.txt", "one\ntwo\nthree four five six seven");
  auto o = ask(1, 4, llama::draw::documents);
  o.prepare = [](const std::string& text) {
    std::string joined = text;
    std::replace(joined.begin(), joined.end(), '\n', ' ');
    return joined;
  };
  const std::vector<int> ids = words().encode("one two three four five six seven");
  CHECK(row(read(folder / "a.txt", o), 0) == std::vector<int>(ids.begin(), ids.begin() + 4));
}

TEST_CASE("a .jsonl file has a document on every line that is not blank") {
  const support::temporary_folder folder;
  const fs::path path = folder / "docs.jsonl";
  write_all(path, "{\"text\": \"" + story(1, 9) + "\", \"id\": 1}\n\n  {\"text\": \"" +
                      story(2, 9) + "\"} \r\n{\"body\": \"other\", \"text\": \"" + story(3, 9) +
                      "\"}");
  llama::calibration c = read(path, ask(3, 24, llama::draw::documents));
  std::set<std::vector<int>> expected, found;
  for (int i = 0; i < 3; ++i) {
    const std::vector<int> ids = words().encode(story(i + 1, 9));
    expected.insert({ids.begin(), ids.begin() + 24});
    found.insert(row(c, i));
  }
  CHECK(found == expected);

  // Of a folder, the .txt and .jsonl files count, in the order of their names.
  write_all(folder / "a.txt", story(4, 9));
  write_all(folder / "notes.md", "{");
  c = read(folder.path(), ask(4, 24, llama::draw::documents));
  std::vector<int> first = words().encode(story(4, 9));
  first.resize(24);
  llama::random_order order(4, 0);
  for (int i = 0; i < 4; ++i) CHECK((row(c, i) == first) == (order.next() == 0));

  write_all(path, "{\"body\": \"" + story(5, 9) + "\"}\n");
  auto o = ask(1, 24);
  o.field = "body";
  CHECK(read(path, o).samples == 1);
}

TEST_CASE("a line that is no object with a text is named with its file and number") {
  const support::temporary_folder folder;
  const fs::path path = folder / "docs.jsonl";
  const std::string good = "{\"text\": \"" + story(1, 9) + "\"}\n";
  const auto fails = [&](const std::string& bytes, std::vector<std::string> parts) {
    write_all(path, bytes);
    const std::string text = refused(path, ask(1, 8, llama::draw::windows));
    CAPTURE(text);
    CHECK(contains(text, path.string()));
    for (const std::string& part : parts) CHECK(contains(text, part));
  };
  fails(good + "\n\"text\"\n", {"line 3", "expected a JSON object", "found \"\"text\"\""});
  fails(good + good + "{\"text\": \"cut sho", {"line 3", "expected a JSON object", "cut sho"});
  fails(good + "{\"text\": }\n", {"line 2", "not valid JSON"});
  fails(good + "{\"text\": 5}\n", {"line 2", "\"text\"", "expected a string", "number"});
  fails(good + "{\"body\": \"x\"}\n", {"line 2", "\"text\"", "expected a string", "nothing"});
  fails("{\"text\": \"a\", \"text\": \"b\"}\n", {"line 1", "twice"});
  fails(std::string("{\"text\": \"\0\"}\n", 14), {"line 1", "zero"});
  fails("\x1b[2J" + good, {"line 1", "found \"?[2J{"});
  fails("", {"found 0 (windows of 0 tokens in 0 documents)"});
}

TEST_CASE("a path that is no text is named") {
  const support::temporary_folder folder;
  CHECK(contains(refused(folder.path(), ask(1, 8)), "expected *.txt or *.jsonl files, found none"));
  CHECK(contains(refused(folder / "none.txt", ask(1, 8)), (folder / "none.txt").string()));
  write_all(folder / "a.txt", story(1, 9));
  CHECK(contains(refused(folder / "a.txt", ask(0, 8)), "samples: expected 1 or more, found 0"));
  CHECK(contains(refused(folder / "a.txt", ask(1, 1)), "expected 2 or more, found 1"));
  const std::string text =
      error_of([&] {
        llama::read_calibration({folder / "a.txt"}, nullptr, vocabulary, ask(1, 8));
      }).text;
  CHECK(contains(text, "there is no tokenizer"));
  CHECK(error_of([&] { llama::read_calibration({}, &words(), vocabulary, ask(1, 8)); }).text != "");
  // A tokenizer with more ids than the model has rows.
  CHECK(contains(
      error_of([&] { llama::read_calibration({folder / "a.txt"}, &words(), 50, ask(1, 8)); }).text,
      "expected an id from 0 to 49"));
}

TEST_CASE("a file of tokens gives its first samples as they are") {
  const support::temporary_folder folder;
  std::vector<std::int32_t> narrow;
  for (int i = 0; i < 5 * 6; ++i) narrow.push_back(i * 131 % vocabulary);
  const std::vector<std::int64_t> wide(narrow.begin(), narrow.end());
  std::vector<fs::path> files = {folder / "t.bin", folder / "t.i32"};
  for (const fs::path& f : files) write_all(f, bytes_of(narrow));
  files.push_back(
      write_tokens(folder / "narrow.safetensors", bitladder::dtype::i32, {5, 6}, bytes_of(narrow)));
  files.push_back(
      write_tokens(folder / "wide.safetensors", bitladder::dtype::i64, {5, 6}, bytes_of(wide)));
  for (const fs::path& f : files) {
    CAPTURE(f.string());
    const auto c = llama::read_calibration({f}, nullptr, vocabulary, ask(4, 6));
    CHECK(c.drawn == "tokens");
    CHECK(c.tokens == std::vector<int>(narrow.begin(), narrow.begin() + 24));
    const std::string text = refused(f, ask(6, 6));
    CHECK(contains(text, f.string()));
    CHECK(contains(text, "6 samples of 6 tokens, found 5"));
    CHECK(contains(refused(f, ask(1, 7)), f.string()));
    CHECK(error_of([&] {
            llama::read_calibration({f, folder / "a.txt"}, &words(), vocabulary, ask(1, 6));
          }).names("alone"));
  }
}

TEST_CASE("a file of tokens that lies is refused by name") {
  const support::temporary_folder folder;
  const auto fails = [](const fs::path& path, std::vector<std::string> parts) {
    const std::string text = refused(path, ask(2, 3));
    CAPTURE(text);
    CHECK(contains(text, path.string()));
    for (const std::string& part : parts) CHECK(contains(text, part));
  };
  using ints = std::vector<std::int32_t>;
  using longs = std::vector<std::int64_t>;
  const fs::path raw = folder / "t.bin", st = folder / "t.safetensors";
  write_all(raw, "");
  fails(raw, {"samples of 3, 12 bytes each, found 0 bytes"});
  write_all(raw, std::string(25, '\0'));
  fails(raw, {"found 25 bytes"});
  write_all(raw, bytes_of(ints{1, 2, 3, 4, vocabulary, 6}));
  fails(raw, {"sample 1, token 1", "expected an id from 0 to 4095, found 4096"});
  write_all(raw, bytes_of(ints{1, 2, -3, 4, 5, 6}));
  fails(raw, {"sample 0, token 2", "one outside"});
  write_tokens(st, bitladder::dtype::i64, {2, 3},
               bytes_of(longs{1, 2, 3, 4, 5, (std::int64_t{1} << 32) + 6}));
  fails(st, {"sample 1, token 2", "one outside"});
  write_tokens(st, bitladder::dtype::f32, {2, 3}, std::string(24, '\0'));
  fails(st, {"\"tokens\"", "expected one tensor of I32 or I64 [samples, 3], found F32 [2, 3]"});
  write_tokens(st, bitladder::dtype::i32, {6}, std::string(24, '\0'));
  fails(st, {"found I32 [6]"});
  write_tokens(st, bitladder::dtype::i32, {3, 2}, std::string(24, '\0'));
  fails(st, {"found I32 [3, 2]"});
  write_all(st, support::safetensors_bytes("{}", ""));
  fails(st, {"found 0 tensors"});
  write_all(st, "no safetensors");
  fails(st, {});
}
