// SPDX-License-Identifier: MIT
// Seed 43. data/torch*.bin are from torch.save (make_torch_golden.py); that PyTorch reads what
// torch_writer writes is checked by the same script.
#include <bitladder/io/torch_file.hpp>
#include <bitladder/io/torch_writer.hpp>

#include "io/damage.hpp"
#include "io/golden.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

namespace bl = bitladder;
namespace detail = bitladder::detail;
using bl::dtype;
using support::error_of;
using support::temporary_folder;
using support::thrown;

namespace {

std::string text(const bl::vector_view<const std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// An archive of those entries, in order.
std::string archive(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string out;
  std::vector<detail::zip_record> records;
  for (const auto& [name, bytes] : entries) {
    const detail::zip_record r{name, bytes.size(), detail::crc32(bytes.data(), bytes.size()),
                               out.size()};
    out += detail::zip_local_header(r, 64) + bytes;
    records.push_back(r);
  }
  return out + detail::zip_directory(records, out.size());
}

std::string pickled(const std::string& s) {
  std::string out;
  detail::pickle_text(out, s);
  return out;
}

/// A pickled tensor over storage "0".
std::string tensor(const std::string& type, std::int64_t elements, std::int64_t offset,
                   const std::vector<std::int64_t>& shape,
                   const std::vector<std::int64_t>& stride) {
  std::string out = "ctorch._utils\n_rebuild_tensor_v2\n((" + pickled("storage") + "ctorch\n" +
                    type + "\n" + pickled("0") + pickled("cpu");
  detail::pickle_int(out, elements);
  out += "tQ";
  detail::pickle_int(out, offset);
  detail::pickle_ints(out, shape);
  detail::pickle_ints(out, stride);
  return out + "\x89" + "ccollections\nOrderedDict\n)RtR";
}

std::string dict(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string out = "\x80\x02}(";
  for (const auto& [name, value] : entries) out += pickled(name) + value;
  return out + "u.";
}

thrown open_error(const std::string& bytes) {
  temporary_folder folder;
  support::write_all(folder / "f.bin", bytes);
  const thrown e = error_of([&] { bl::torch_file file(folder / "f.bin"); });
  CHECK(e.code == bl::status::bad_file);
  CHECK(e.text.find((folder / "f.bin").string() + ": ") == 0);
  return e;
}

/// The error of a file whose tensor "w" is that, over 48 zero bytes.
thrown tensor_error(const std::string& value) {
  return open_error(
      archive({{"f/data.pkl", dict({{"w", value}})}, {"f/data/0", std::string(48, '\0')}}));
}

/// A file as torch_writer writes it: a matrix, an empty tensor, a scalar, and the matrix again.
void write_small(const std::filesystem::path& path,
                 std::uint64_t zip64_from = detail::zip_see_zip64) {
  bl::torch_plan plan;
  plan.add("matrix", dtype::i16, {3, 5});
  plan.add("empty", dtype::bf16, {2, 0, 3});
  plan.add("scalar", dtype::f64, {});
  plan.add_tied("tied", "matrix");
  bl::torch_writer writer(path, plan, zip64_from);
  const double pi = 3.25;
  writer.write("scalar", &pi, 8);
  const std::string bytes = "abcdefghijklmnopqrstuvwxyz0123";
  writer.write("matrix", bytes.data(), 10);
  writer.write("matrix", bytes.data() + 10, 20);
  writer.commit();
}

}  // namespace

TEST_CASE("files of torch.save read back byte for byte, whatever the pickle protocol") {
  for (const char* name : {"/torch2.bin", "/torch4.bin", "/torch5.bin"}) {
    CAPTURE(name);
    const bl::torch_file file(std::string(BL_TEST_DATA) + name);
    const std::vector<support::golden_tensor> golden = support::golden_tensors();
    REQUIRE(file.tensors().size() == golden.size() + 4);
    CHECK(file.others() == std::vector<std::string>{"epoch", "history"});
    for (std::size_t i = 0; i < golden.size(); ++i) {
      CAPTURE(golden[i].name);
      const bl::torch_tensor& t = file.at(golden[i].name);
      CHECK(&t == &file.tensors()[i]);
      CHECK(t.type == golden[i].type);
      CHECK(t.shape == golden[i].shape);
      CHECK(t.contiguous());
      CHECK(text(file.bytes(t)) == golden[i].bytes());
      CHECK(file.aligned(t, 64));
    }
    for (const bl::zip_entry& e : file.archive().entries()) CHECK(file.archive().intact(e));
    CHECK(file.read_as_float("parameter") == std::vector<float>{0, 1, 2});
    CHECK(error_of([&] { static_cast<void>(file.at("matrux")); }).names("closest: matrix"));
    CHECK(error_of([&] { file.read_as_float("int"); }).names("tensor \"int\": expected F32"));
  }
}

TEST_CASE("tensors that share a storage are views of the same bytes") {
  const bl::torch_file file(BL_TEST_DATA "/torch2.bin");
  CHECK(file.bytes("tied").data() == file.bytes("matrix").data());
  CHECK(file.at("tied").storage == file.at("matrix").storage);
  CHECK(file.at("part").shape == std::vector<std::int64_t>{2, 64});
  CHECK(file.bytes("part").data() == file.bytes("matrix").data() + 128);
  CHECK(file.bytes("part").size() == 256);
}

TEST_CASE("a tensor with gaps or turned axes is listed, but its bytes are an error naming it") {
  const bl::torch_file file(BL_TEST_DATA "/torch2.bin");
  const bl::torch_tensor& t = file.at("turned");
  CHECK(t.shape == std::vector<std::int64_t>{64, 5});
  CHECK(t.stride == std::vector<std::int64_t>{1, 64});
  CHECK_FALSE(t.contiguous());
  const thrown e = error_of([&] { file.bytes(t); });
  CHECK(e.code == bl::status::bad_file);
  CHECK(
      e.names("tensor \"turned\": expected rows without gaps, found shape [64, 5] with strides "
              "[1, 64]"));
  CHECK(error_of([&] { file.read_as_float("turned"); }).names("without gaps"));
}

TEST_CASE("strides of dimensions of size 1 or of empty tensors do not matter") {
  temporary_folder folder;
  support::write_all(
      folder / "f.bin",
      archive({{"f/data.pkl", dict({{"a", tensor("FloatStorage", 12, 0, {1, 12, 1}, {7, 1, 9})},
                                    {"b", tensor("FloatStorage", 12, 12, {5, 0}, {1, 1})},
                                    {"c", tensor("FloatStorage", 12, 11, {}, {})},
                                    {"d", tensor("FloatStorage", 12, 0, {1 << 20}, {0})}})},
               {"f/data/0", std::string(48, '\1')}}));
  const bl::torch_file file(folder / "f.bin");
  CHECK(file.bytes("a").size() == 48);
  CHECK(file.bytes("b").size() == 0);
  CHECK(file.bytes("c").size() == 4);
  CHECK(error_of([&] { file.read_as_float("d"); }).names("tensor \"d\": expected rows"));
}

TEST_CASE("files that are no dict of tensors are refused, with a reason where there is one") {
  CHECK(open_error("").names("expected a zip archive"));
  CHECK(open_error(std::string(1000, 'x')).names("expected a zip archive as torch.save writes"));
  CHECK(
      open_error("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" + std::string(99, 'x'))
          .names("before PyTorch 1.6"));
  CHECK(open_error(archive({{"f/version", "3\n"}})).names("found none with a data.pkl"));
  CHECK(open_error(archive({{"data.pkl", "x"}})).names("found none with a data.pkl"));
  CHECK(open_error(archive({{"f/g/data.pkl", "x"}})).names("found none with a data.pkl"));
  CHECK(open_error(archive({{"f/data.pkl", "x"}, {"g/data.pkl", "x"}})).names("both there"));
  CHECK(open_error(archive({{"f/data.pkl", dict({})}, {"f/byteorder", "big"}}))
            .names("little-endian order, found \"big\""));
  CHECK(open_error(archive({{"f/data.pkl", dict({})}, {"f/constants.pkl", "x"}}))
            .names("TorchScript"));
  CHECK(
      open_error(archive({{"f/data.pkl", "\x80\x02]."}})).names("a dict of tensors, found a list"));
  CHECK(open_error(archive({{"f/data.pkl", "\x80\x02}K\1Ns."}}))
            .names("names for keys, found an int"));
  CHECK(open_error(archive({{"f/data.pkl", dict({{"a", "N"}, {"a", "N"}})}}))
            .names("key \"a\" is there twice"));
  CHECK(open_error(archive({{"f/data.pkl",
                             "\x80\x02"
                             "cos\nsystem\n."}}))
            .names("f/data.pkl: byte 2: names os.system"));
}

TEST_CASE("lies about a tensor are found and name it") {
  CHECK(open_error(archive({{"f/data.pkl", dict({{"w", tensor("FloatStorage", 1, 0, {1}, {1})}})}}))
            .names("tensor \"w\": its storage \"f/data/0\" is not in the archive"));
  CHECK(tensor_error(tensor("FloatStorage", 13, 0, {1}, {1}))
            .names("expected a storage of 13 F32, found 48 bytes"));
  CHECK(tensor_error(tensor("FloatStorage", 11, 0, {1}, {1})).names("expected a storage of 11"));
  CHECK(tensor_error(tensor("DoubleStorage", 12, 0, {1}, {1})).names("expected a storage of 12"));
  CHECK(
      tensor_error(tensor("FloatStorage", std::int64_t{1} << 62, 0, {1}, {1})).names("storage of"));
  CHECK(tensor_error(tensor("FloatStorage", 12, 0, {13}, {1})).names("passes the end"));
  CHECK(tensor_error(tensor("FloatStorage", 12, 1, {3, 4}, {4, 1})).names("from element 1 on"));
  CHECK(tensor_error(tensor("FloatStorage", 12, 13, {0}, {1})).names("passes the end"));
  CHECK(tensor_error(tensor("FloatStorage", 12, INT64_MAX, {}, {})).names("passes the end"));
  CHECK(tensor_error(tensor("FloatStorage", 12, 0, {2}, {12})).names("passes the end"));
  CHECK(tensor_error(tensor("FloatStorage", 12, 0, {3}, {INT64_MAX})).names("passes the end"));
  CHECK(tensor_error(tensor("FloatStorage", 12, 0, {2, 2}, {INT64_MAX, INT64_MAX}))
            .names("passes the end"));
  CHECK(tensor_error(tensor("FloatStorage", 12, 0, {INT64_MAX, INT64_MAX}, {0, 0}))
            .names("is too large"));
}

TEST_CASE("what the writer writes reads back, ZIP64 or not, and is the same each time") {
  for (std::uint64_t from :
       {std::uint64_t{detail::zip_see_zip64}, std::uint64_t{20}, std::uint64_t{0}}) {
    CAPTURE(from);
    temporary_folder folder;
    write_small(folder / "f.bin", from);
    {
      const bl::torch_file file(folder / "f.bin");
      REQUIRE(file.tensors().size() == 4);
      CHECK(text(file.bytes("matrix")) == "abcdefghijklmnopqrstuvwxyz0123");
      CHECK(file.at("matrix").shape == std::vector<std::int64_t>{3, 5});
      CHECK(file.bytes("tied").data() == file.bytes("matrix").data());
      CHECK(file.at("empty").shape == std::vector<std::int64_t>{2, 0, 3});
      CHECK(file.read_as_float("scalar") == std::vector<float>{3.25f});
      for (const bl::torch_tensor& t : file.tensors()) CHECK(file.aligned(t, 64));
      for (const bl::zip_entry& e : file.archive().entries()) CHECK(file.archive().intact(e));
    }
    const std::string first = support::read_all(folder / "f.bin");
    write_small(folder / "f.bin", from);
    CHECK(support::read_all(folder / "f.bin") == first);
    CHECK(support::read_folder(folder.path()).size() == 1);
  }
}

TEST_CASE("the writer refuses plans and bytes that do not fit, and leaves nothing behind") {
  temporary_folder folder;
  bl::torch_plan plan;
  plan.add("a", dtype::u8, {4});
  CHECK(error_of([&] { plan.add("a", dtype::u8, {4}); }).names("tensor \"a\": added twice"));
  CHECK(error_of([&] { plan.add("b", dtype::u8, {-1}); }).names("is negative or too large"));
  CHECK(error_of([&] { plan.add("b", dtype::f32, {INT64_MAX}); }).names("too large"));
  CHECK(error_of([&] { plan.add_tied("b", "c"); }).names("tied to \"c\""));
  plan.add_tied("b", "a");
  {
    bl::torch_writer writer(folder / "f.bin", plan);
    CHECK(error_of([&] {
            bl::torch_writer second(folder / "f.bin", plan);
          }).names("another process is writing it"));
    CHECK(error_of([&] { writer.write("c", "xxxx", 4); }).names("no tensor \"c\""));
    CHECK(error_of([&] { writer.write("b", "xxxx", 4); }).names("no tensor \"b\""));
    writer.write("a", "xxx", 3);
    CHECK(error_of([&] { writer.write("a", "xx", 2); }).names("asked to write 2 behind 3"));
    CHECK(error_of([&] { writer.commit(); }).names("3 of 4 bytes written before the commit"));
  }
  CHECK(support::read_folder(folder.path()).empty());
}

TEST_CASE("files of torch.save damaged anywhere never crash the reader") {
  support::random random(43);
  temporary_folder folder;
  write_small(folder / "f.bin");
  int opened = 0, refused = 0;
  const auto try_open = [&](const std::string& bytes) {
    try {
      const bl::zip_view view(bytes, "f.bin");
      const bl::torch_contents contents = detail::read_torch_contents(view);
      for (const bl::torch_tensor& t : contents.tensors) {
        REQUIRE(t.begin <= bytes.size());
        if (t.contiguous()) REQUIRE(t.end <= bytes.size());
      }
      ++opened;
    } catch (const bl::error& e) {
      REQUIRE(std::string(e.what()).find("f.bin: ") == 0);
      ++refused;
    }
  };
  for (const std::string& good :
       {support::read_all(folder / "f.bin"), support::read_all(BL_TEST_DATA "/torch2.bin"),
        support::read_all(BL_TEST_DATA "/torch4.bin")}) {
    const std::size_t opened_before = opened;
    try_open(good);
    REQUIRE(opened == opened_before + 1);
    for (int i = 0; i < 4000; ++i) {
      std::string bytes = good;
      support::damage(bytes, random, std::string("\0\1\xff(tR}]usQK", 13));
      try_open(bytes);
      // Only bytes changed, so that the archive stays one and the pickle is reached.
      bytes = good;
      for (int n = 1 + random.below(3); n > 0; --n)
        bytes[static_cast<std::size_t>(random.below(static_cast<int>(bytes.size() / 2)))] =
            static_cast<char>(random.below(2) ? random.next() : '\1' + random.below(8));
      try_open(bytes);
    }
    for (std::size_t size = 0; size < good.size(); size += 3) try_open(good.substr(0, size));
  }
  CHECK(opened > 500);
  CHECK(refused > 5000);
}
