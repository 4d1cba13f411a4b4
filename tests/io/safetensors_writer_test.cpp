// SPDX-License-Identifier: MIT
// Seed 21. data/ours.safetensors was laid out by make_safetensors_golden.py and read back there by
// the Python package.
#include <bitladder/io/safetensors.hpp>
#include <bitladder/io/safetensors_plan.hpp>
#include <bitladder/io/safetensors_writer.hpp>

#include "io/golden.hpp"
#include "support/random.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

#include <csignal>
#include <sys/resource.h>

namespace bl = bitladder;
namespace fs = std::filesystem;
using support::contains;
using support::error_of;
using support::temporary_folder;
using support::thrown;

namespace {

bl::safetensors_plan golden_plan() {
  bl::safetensors_plan plan;
  for (const support::golden_tensor& t : support::golden_tensors())
    plan.add(t.name, t.type, t.shape);
  for (const auto& [key, value] : support::golden_metadata()) plan.set_metadata(key, value);
  return plan;
}

}  // namespace

TEST_CASE("a written file equals the one that was laid out in Python, byte for byte") {
  temporary_folder folder;
  bl::safetensors_writer w = bl::safetensors_writer::create(folder / "f", golden_plan());
  auto tensors = support::golden_tensors();
  std::reverse(tensors.begin(), tensors.end());  // the order of writes does not matter
  for (const support::golden_tensor& t : tensors)
    w.write(t.name, t.bytes().data(), t.bytes().size());
  CHECK_FALSE(fs::exists(folder / "f"));
  w.commit();
  CHECK(support::read_folder(folder.path()) ==
        std::map<std::string, std::string>{
            {"f", support::read_all(BL_TEST_DATA "/ours.safetensors")}});
}

TEST_CASE("plans of odd sizes write, in pieces, what the reader then finds") {
  support::random random(21);
  for (int round = 0; round < 30; ++round) {
    temporary_folder folder;
    bl::safetensors_plan plan;
    std::map<std::string, std::string> expected;
    for (int i = random.below(12); i > 0; --i) {
      const std::string name = "t" + std::to_string(i);
      const bl::dtype type = static_cast<bl::dtype>(random.below(10));
      std::vector<std::int64_t> shape;
      for (int d = random.below(4); d > 0; --d)
        shape.push_back(random.below(3) ? random.below(20) : 32);
      plan.add(name, type, shape);
      std::string bytes(*bl::byte_size(type, shape), '\0');
      for (char& c : bytes) c = static_cast<char>(random.next());
      expected[name] = bytes;
    }
    bl::safetensors_writer w = bl::safetensors_writer::create(folder / "f", plan);
    for (const auto& [name, bytes] : expected) {
      const std::size_t half = bytes.size() / 2;
      w.write(name, bytes.data() + half, bytes.size() - half, half);
      w.write(name, bytes.data(), half);
    }
    w.commit();
    const bl::safetensors_file file(folder / "f");
    CHECK(file.data_offset() % 64 == 0);
    CHECK(file.tensors().size() == expected.size());
    for (const auto& [name, bytes] : expected) {
      const bl::tensor_info& t = file.at(name);
      const auto got = file.bytes(t);
      CHECK(std::string(reinterpret_cast<const char*>(got.data()), got.size()) == bytes);
      CHECK(file.aligned(t));
      if (t.bytes() % 64 == 0) CHECK(file.aligned(t, 64));
    }
  }
}

TEST_CASE("a plan refuses what no file can hold") {
  bl::safetensors_plan plan;
  plan.add("a", bl::dtype::f32, {2});
  CHECK(error_of([&] { plan.add("a", bl::dtype::f32, {2}); }).names("added twice"));
  CHECK(error_of([&] { plan.add("__metadata__", bl::dtype::f32, {2}); }).names("reserved"));
  CHECK(error_of([&] { plan.add("b", bl::dtype::f32, {-2}); }).names("[-2] is negative"));
  const std::int64_t huge = std::int64_t{1} << 60;
  plan.add("c", bl::dtype::f16, {huge});
  CHECK(error_of([&] { plan.add("d", bl::dtype::f16, {huge}); }).names("too large"));
  bl::safetensors_plan bad;
  bad.add("\xff", bl::dtype::f32, {});
  CHECK(error_of([&] { bad.header(); }).code == bl::status::invalid_argument);
}

TEST_CASE("writes outside a tensor, or of one that is not planned, are refused") {
  temporary_folder folder;
  bl::safetensors_plan plan;
  plan.add("a", bl::dtype::u8, {4});
  bl::safetensors_writer w = bl::safetensors_writer::create(folder / "f", plan);
  CHECK(error_of([&] { w.write("a", "12345", 5); }).names("has 4 bytes, asked to write 5 at 0"));
  CHECK(error_of([&] { w.write("a", "1", 1, 4); }).code == bl::status::invalid_argument);
  CHECK(error_of([&] { w.write("a", "1", 1, ~0ull); }).code == bl::status::invalid_argument);
  CHECK(error_of([&] { w.write("b", "1", 1); }).names("no tensor \"b\" is planned"));
  w.write("a", "123", 3);
  CHECK(error_of([&] { w.commit(); }).names("3 of 4 bytes written"));
}

TEST_CASE("without a commit the final name stays as it was and the partial file goes") {
  temporary_folder folder;
  support::write_all(folder / "f", "old");
  {
    bl::safetensors_writer w = bl::safetensors_writer::create(folder / "f", golden_plan());
    CHECK(fs::exists(folder / "f.partial"));
  }
  CHECK(support::read_folder(folder.path()) == std::map<std::string, std::string>{{"f", "old"}});
}

TEST_CASE("a kept partial file is resumed under the same plan only") {
  temporary_folder folder;
  const auto tensors = support::golden_tensors();
  {
    bl::safetensors_writer w =
        bl::safetensors_writer::create(folder / "f", golden_plan(), bl::leftover::keep);
    for (std::size_t i = 0; i < 5; ++i)
      w.write(tensors[i].name, tensors[i].bytes().data(), tensors[i].bytes().size());
  }
  bl::safetensors_plan other = golden_plan();
  other.set_metadata("note", "another");
  const thrown e = error_of([&] { bl::safetensors_writer::resume(folder / "f", other); });
  CHECK(e.code == bl::status::bad_file);
  CHECK(e.names("cannot be resumed"));
  CHECK(fs::exists(folder / "f.partial"));
  {
    bl::safetensors_writer w = bl::safetensors_writer::resume(folder / "f", golden_plan());
    for (std::size_t i = 0; i < tensors.size(); ++i)
      if (i < 5)
        w.assume_written(tensors[i].name);
      else
        w.write(tensors[i].name, tensors[i].bytes().data(), tensors[i].bytes().size());
    w.commit();
  }
  CHECK(support::read_all(folder / "f") == support::read_all(BL_TEST_DATA "/ours.safetensors"));
  CHECK(error_of([&] { bl::safetensors_writer::resume(folder / "f", golden_plan()); }).code ==
        bl::status::not_found);
  fs::rename(folder / "f", folder / "f.partial");
  fs::resize_file(folder / "f.partial", 1500);
  CHECK(error_of([&] {
          bl::safetensors_writer::resume(folder / "f", golden_plan());
        }).names("found 1500"));
}

TEST_CASE("two writers of one file: the second gets an error and the first is not disturbed") {
  temporary_folder folder;
  bl::safetensors_writer w = bl::safetensors_writer::create(folder / "f", golden_plan());
  CHECK(error_of([&] {
          bl::safetensors_writer::create(folder / "f", golden_plan());
        }).names("another process"));
  for (const support::golden_tensor& t : support::golden_tensors())
    w.write(t.name, t.bytes().data(), t.bytes().size());
  w.commit();
  CHECK(support::read_all(folder / "f") == support::read_all(BL_TEST_DATA "/ours.safetensors"));
}

TEST_CASE("a disk without room is an error before anything is written, and nothing is left") {
  temporary_folder folder;
  const int result = support::in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1 << 20, 1 << 20};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    bl::safetensors_plan plan;
    plan.add("a", bl::dtype::u8, {2 << 20});
    const thrown e = error_of([&] { bl::safetensors_writer::create(folder / "f", plan); });
    ::_exit(e.code == bl::status::io_failed && e.names("could not reserve 2097280 bytes") ? 7 : 8);
  });
  CHECK(WEXITSTATUS(result) == 7);
  CHECK(support::read_folder(folder.path()).empty());
}

TEST_CASE(
    "a header is written anew with other metadata of the same length, and with nothing else") {
  temporary_folder folder;
  const auto plan = [](const std::string& value, std::int64_t cols = 3) {
    bl::safetensors_plan p;
    p.add("a", bl::dtype::f32, {2, cols});
    p.set_metadata("sum", value);
    return p;
  };
  const float values[6] = {1, 2, 3, 4, 5, 6};
  bl::safetensors_writer w = bl::safetensors_writer::create(folder / "f", plan("0000"));
  w.write("a", values, sizeof values);
  CHECK(contains(error_of([&] { w.rewrite_header(plan(std::string(5000, '1'))); }).text,
                 "expected a header of the same tensors"));
  CHECK(contains(error_of([&] { w.rewrite_header(plan("1234", 2)); }).text,
                 "expected a header of the same tensors"));
  w.rewrite_header(plan("1234"));
  w.commit();
  bl::safetensors_writer other = bl::safetensors_writer::create(folder / "g", plan("1234"));
  other.write("a", values, sizeof values);
  other.commit();
  CHECK(support::read_all(folder / "f") == support::read_all(folder / "g"));
}
