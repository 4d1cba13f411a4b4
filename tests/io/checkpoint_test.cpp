// SPDX-License-Identifier: MIT
// Seeds 31 to 39.
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/safetensors_writer.hpp>

#include "io/small_checkpoint.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

#include <csignal>
#include <limits>
#include <sys/mman.h>

namespace bl = bitladder;
namespace fs = std::filesystem;
using support::error_of;
using support::small_checkpoint;
using support::temporary_folder;
using support::thrown;

namespace {

/// A checkpoint's file with one thing changed: a hand-made header over honest tensors.
struct file_maker {
  std::map<std::string, std::string> metadata = {{"format", "bitladder"},
                                                 {"bitladder.version", "1"},
                                                 {"bitladder.layout", bl::checkpoint_layout},
                                                 {"bitladder.seed_bits", "2"},
                                                 {"bitladder.min_bits", "1"},
                                                 {"bitladder.max_bits", "2"},
                                                 {"bitladder.groups", "1"},
                                                 {"bitladder.cols", "{\"x\":40}"}};
  std::vector<bl::checkpoint_plan::tensor> tensors = {{"x.qweight", bl::dtype::i32, {2, 3, 2}},
                                                      {"x.lut1", bl::dtype::f16, {3, 2}},
                                                      {"x.lut2", bl::dtype::f16, {3, 4}},
                                                      {"norm", bl::dtype::f16, {4}}};

  thrown open_error() const {
    temporary_folder folder;
    bl::safetensors_plan plan;
    for (const auto& t : tensors) plan.add(t.name, t.type, t.shape);
    for (const auto& [key, value] : metadata) plan.set_metadata(key, value);
    bl::safetensors_writer w = bl::safetensors_writer::create(folder / "model.safetensors", plan);
    for (const bl::tensor_info& t : w.tensors()) {
      const std::string zeros(t.bytes(), '\0');
      w.write(t.name, zeros.data(), zeros.size());
    }
    w.commit();
    const thrown e = error_of([&] { bl::checkpoint c(folder.path()); });
    if (!e.text.empty()) CHECK(e.names(folder.path().string()));
    return e;
  }
};

thrown with_metadata(const std::string& key, const std::string& value) {
  file_maker m;
  m.metadata[key] = value;
  return m.open_error();
}

thrown with_tensor(std::size_t i, const bl::checkpoint_plan::tensor& t) {
  file_maker m;
  m.tensors[i] = t;
  return m.open_error();
}

/// Makes the whole pages inside a part of a mapping unreadable.
/// @return how many
std::size_t forbid(const void* data, std::size_t size) {
  const std::uintptr_t page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = (address + page - 1) / page * page;
  const std::uintptr_t end = (address + size) / page * page;
  if (begin >= end) return 0;
  REQUIRE(::mprotect(reinterpret_cast<void*>(begin), end - begin, PROT_NONE) == 0);
  return (end - begin) / page;
}

}  // namespace

TEST_CASE("what was written is read back, for odd shapes, groups and precision ranges") {
  int seed = 31;
  for (const auto& [min_bits, max_bits, groups] :
       {std::tuple<int, int, int>{1, 8, 1}, {2, 4, 1}, {3, 3, 2}, {8, 8, 1}, {1, 1, 3}}) {
    std::vector<std::pair<int, int>> shapes;
    for (int cols : {1, 31, 32, 33, 100, 0}) shapes.emplace_back(1 + cols % 5, cols * groups);
    shapes.emplace_back(0, 6);
    const small_checkpoint small(static_cast<std::uint64_t>(seed++), shapes, min_bits, max_bits,
                                 groups);
    temporary_folder folder;
    small.write(folder / "out");
    for (const fs::path& path : {folder / "out", folder / "out/model.safetensors"}) {
      bl::checkpoint opened(path);
      const bl::checkpoint c(std::move(opened));
      CHECK(c.linears().size() == shapes.size());
      CHECK(c.seed_bits() == small.plan.seed_bits);
      CHECK(c.groups() == groups);
      CHECK(c.precisions().front() == min_bits);
      CHECK(c.precisions().size() == static_cast<std::size_t>(max_bits - min_bits + 1));
      for (const support::small_linear& l : small.linears) {
        CAPTURE(l.name);
        CHECK(c.is_quantized(l.name));
        const bl::linear_info& info = c.linear(l.name);
        const bl::bitplane_view planes = c.planes(l.name);
        REQUIRE(planes.layout() == l.planes.layout());
        CHECK(info.layout() == l.planes.layout());
        CHECK(info.plane_bytes() * info.planes == c.tensors().at(l.name + ".qweight").bytes());
        for (int r = 0; r < planes.rows(); ++r)
          for (int k = 0; k < planes.cols(); ++k)
            REQUIRE(planes.code(r, k, max_bits) ==
                    l.codes[static_cast<std::size_t>(r * planes.cols() + k)]);
        for (int b : c.precisions()) {
          const bl::codebook_view expected = l.tables[b], found = c.codebook(l.name, b);
          REQUIRE(found.size() == expected.size());
          CHECK(found.groups() == groups);
          CHECK(info.table_bytes(b) == expected.size() * 2);
          CHECK(info.bytes(b) == info.plane_bytes() * b + expected.size() * 2);
          for (std::size_t i = 0; i < expected.size(); ++i)
            REQUIRE(found.data()[i] == expected.data()[i]);
        }
      }
      CHECK(c.plain_tensors().size() == small.tensors.size());
      for (std::size_t i = 0; i < small.tensors.size(); ++i) {
        const bl::tensor_info& t = c.tensors().at(small.plan.tensors[i].name);
        CHECK(t.type == small.plan.tensors[i].type);
        CHECK(t.shape == small.plan.tensors[i].shape);
        const auto bytes = c.tensors().bytes(t);
        CHECK(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) ==
              small.tensors[i]);
      }
      CHECK_FALSE(c.is_quantized("model.embed_tokens"));
      c.validate();
      for (int b : c.precisions()) c.prefetch(b);
    }
  }
}

TEST_CASE("the bit of a code stands in the file where the format says") {
  const small_checkpoint small(36, {{3, 70}}, 2, 5);
  temporary_folder folder;
  small.write(folder / "out");
  const bl::safetensors_file file(folder / "out/model.safetensors");
  const auto bytes = file.bytes("model.layers.0.proj.qweight");
  CHECK(file.at("model.layers.0.proj.qweight").shape == std::vector<std::int64_t>{5, 3, 3});
  CHECK(file.at("model.layers.0.proj.lut4").shape == std::vector<std::int64_t>{3, 16});
  CHECK(file.find("model.layers.0.proj.lut1") == nullptr);
  for (int plane = 0; plane < 5; ++plane)
    for (int row = 0; row < 3; ++row)
      for (int col = 0; col < 96; ++col) {
        const int byte = ((plane * 3 + row) * 3 + col / 32) * 4 + col % 32 / 8;
        const int bit = static_cast<int>(bytes[static_cast<std::size_t>(byte)]) >> col % 8 & 1;
        const int code =
            col < 70 ? small.linears[0].codes[static_cast<std::size_t>(row * 70 + col)] : 0;
        CHECK(bit == (code >> (4 - plane) & 1));
      }
}

TEST_CASE("config.json keeps what it had and gains an object that describes the ladder") {
  const small_checkpoint small(37, {{2, 5}, {3, 64}}, 2, 4);
  temporary_folder folder;
  small.write(folder / "out");
  const nlohmann::ordered_json config =
      bl::read_json<nlohmann::ordered_json>(folder / "out/config.json");
  CHECK(config.dump() ==
        R"({"model_type":"llama","hidden_size":9,"bitladder":{"format_version":1,)"
        R"("layout":"planes-msb-first.columns-lsb-first","seed_bits":3,"min_bits":2,"max_bits":4,)"
        R"("groups":1,"modules":["model.layers.0.proj","model.layers.1.proj"]}})");
}

TEST_CASE("reading b bits touches the b top planes and the b-bit tables, nothing else") {
  // 64 KiB per plane; tables of 2048 rows from 16 KiB on. All other pages are made unreadable.
  const small_checkpoint small(38, {{2048, 256}}, 2, 6);
  temporary_folder folder;
  small.write(folder / "out");
  const std::string name = small.linears[0].name;
  const int bits = 3;
  const auto read = [&](const bl::checkpoint& c, int at) {
    double sum = 0, expected = 0;
    const bl::bitplane_view planes = c.planes(name).top(at);
    const bl::codebook_view tables = c.codebook(name, at);
    for (int r = 0; r < planes.rows(); ++r)
      for (int k = 0; k < planes.cols(); ++k) {
        sum += bl::to_float(tables.table(r)[planes.code(r, k, at)]);
        const int code = small.linears[0].codes[static_cast<std::size_t>(r * 256 + k)] >> (6 - at);
        expected += bl::to_float(small.linears[0].tables[at].table(r)[code]);
      }
    return sum == expected;
  };
  const auto guarded = [&](int at) {
    return support::in_child([&] {
      const bl::checkpoint c(folder / "out");
      const bl::linear_info& l = c.linear(name);
      const char* planes = reinterpret_cast<const char*>(c.planes(name).data());
      std::size_t pages =
          forbid(planes + bits * l.plane_bytes(), (l.planes - bits) * l.plane_bytes());
      for (int b : c.precisions())
        if (b != bits) pages += forbid(c.codebook(name, b).data(), l.table_bytes(b));
      if (pages < 48 + 4 + 16 + 32 + 64 - 8) ::_exit(8);  // planes, tables, less some at their ends
      ::_exit(read(c, at) ? 7 : 9);
    });
  };
  const int result = guarded(bits);
  CHECK(WIFEXITED(result));
  CHECK(WEXITSTATUS(result) == 7);
  const int control = guarded(bits + 1);  // the guard does bite
  CHECK(WIFSIGNALED(control));
  CHECK(WTERMSIG(control) == SIGSEGV);
}

TEST_CASE("a precision or linear that is not in the file is named with what is") {
  const small_checkpoint small(39, {{2, 5}}, 3, 6);
  temporary_folder folder;
  small.write(folder / "out");
  const bl::checkpoint c(folder / "out");
  for (int bits : {-1, 0, 2, 7, 8, 99}) {
    const thrown e = error_of([&] { c.codebook(small.linears[0].name, bits); });
    CHECK(e.code == bl::status::not_found);
    CHECK(e.text == (folder / "out").string() + ": " + std::to_string(bits) +
                        " bits asked for, the checkpoint holds 3 to 6");
  }
  CHECK(error_of([&] { c.prefetch(2); }).code == bl::status::not_found);
  const thrown e = error_of([&] { c.planes("model.layers.9.proj"); });
  CHECK(e.code == bl::status::not_found);
  CHECK(e.names("closest: model.layers.0.proj.qweight"));
}

TEST_CASE("a file of another kind, version or layout is refused, never misread") {
  CHECK(file_maker().open_error().text == "");
  file_maker plain;
  plain.metadata = {{"format", "pt"}};
  CHECK(plain.open_error().names("not a bitladder checkpoint"));
  plain.metadata = {};
  CHECK(plain.open_error().names("must be converted"));
  CHECK(with_metadata("bitladder.version", "3").names("version \"3\" is not known"));
  CHECK(
      with_metadata("bitladder.layout", "any-precision").names("layout \"any-precision\" is not"));
  for (const char* key : {"bitladder.version", "bitladder.layout", "bitladder.cols",
                          "bitladder.min_bits", "bitladder.groups"}) {
    file_maker m;
    m.metadata.erase(key);
    CHECK(m.open_error().names("metadata has no \"" + std::string(key) + "\""));
  }
}

TEST_CASE("metadata that contradicts itself or the tensors is refused") {
  CHECK(with_metadata("bitladder.max_bits", "9").names("a number from 1 to 8, found \"9\""));
  CHECK(with_metadata("bitladder.max_bits", "2 ").names("found \"2 \""));
  CHECK(with_metadata("bitladder.max_bits", "").names("found \"\""));
  CHECK(with_metadata("bitladder.min_bits", "3").names("from 1 to 2"));
  CHECK(with_metadata("bitladder.seed_bits", "3").names("from 1 to 2"));
  CHECK(with_metadata("bitladder.groups", "0").names("groups"));
  CHECK(with_metadata("bitladder.groups", "3").names("40 columns do not make 3 equal groups"));
  CHECK(with_metadata("bitladder.groups", "2").names("expected F16 [3, 2, 2], found F16 [3, 2]"));
  CHECK(with_metadata("bitladder.max_bits", "1").names("expected a number from 1 to 1"));
  CHECK(with_metadata("bitladder.cols", "{}").names("does not name \"x\""));
  CHECK(with_metadata("bitladder.cols", "[]").names("expected {linear: columns}"));
  CHECK(with_metadata("bitladder.cols", "{\"x\":65}").names("expected I32 [2, 3, 3]"));
  CHECK(with_metadata("bitladder.cols", "{\"x\":32}").names("expected I32 [2, 3, 1]"));
  CHECK(with_metadata("bitladder.cols", "{\"x\":-1}").names("found -1"));
  CHECK(with_metadata("bitladder.cols", "{\"x\":4294967336}").names("31 bits"));
  CHECK(with_metadata("bitladder.cols", "{\"x\":40,\"x\":40}").names("there twice"));
  CHECK(with_metadata("bitladder.cols", "{\"x\":40,\"y\":8}").names("\"y\" (8 columns)"));
  CHECK(with_tensor(0, {"x.qweight", bl::dtype::f32, {2, 3, 2}}).names("expected I32"));
  CHECK(with_tensor(0, {"x.qweight", bl::dtype::i32, {3, 3, 2}}).names("found I32 [3, 3, 2]"));
  CHECK(with_tensor(0, {"x.qweight", bl::dtype::i32, {12}}).names("[planes, rows, words]"));
  CHECK(with_tensor(1, {"y.lut1", bl::dtype::f16, {3, 2}}).names("no tensor \"x.lut1\""));
  CHECK(with_tensor(2, {"x.lut2", bl::dtype::f16, {3, 8}}).names("expected F16 [3, 4]"));
  CHECK(with_tensor(3, {"x.weight", bl::dtype::f16, {3, 40}}).names("is there twice"));
}

TEST_CASE("planes that are not aligned are refused, since they are read in place") {
  const std::string header =
      R"({"__metadata__":{"format":"bitladder","bitladder.version":"1","bitladder.layout":")" +
      std::string(bl::checkpoint_layout) +
      R"(","bitladder.seed_bits":"1","bitladder.min_bits":"1","bitladder.max_bits":"1",)"
      R"("bitladder.groups":"1","bitladder.cols":"{\"x\":1}"},)"
      R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
      R"("x.qweight":{"dtype":"I32","shape":[1,1,1],"data_offsets":[1,5]},)"
      R"("x.lut1":{"dtype":"F16","shape":[1,2],"data_offsets":[5,9]}})";
  temporary_folder folder;
  support::write_all(folder / "f", support::safetensors_bytes(
                                       header + std::string((8 - header.size() % 8) % 8, ' '),
                                       std::string(9, '\0')));
  CHECK(error_of([&] {
          bl::checkpoint c(folder / "f");
        }).names("not a multiple of its element size"));
}

TEST_CASE("validate finds set padding bits and tables that fall or are not finite") {
  const small_checkpoint small(39, {{3, 40}}, 2, 3);
  temporary_folder folder;
  small.write(folder / "out");
  const std::string path = folder / "out/model.safetensors";
  const std::string good = support::read_all(path);
  const auto damaged = [&](const char* tensor, std::size_t at, std::uint16_t value) {
    std::string bytes = good;
    {
      const bl::safetensors_file file(path);
      const std::size_t begin =
          file.data_offset() + file.at("model.layers.0.proj." + std::string(tensor)).begin;
      std::memcpy(&bytes[begin + at], &value, 2);
    }
    support::write_all(path, bytes);
    const thrown e = error_of([&] { bl::checkpoint(folder / "out").validate(); });
    support::write_all(path, good);
    CHECK(e.code == bl::status::bad_file);
    return e;
  };
  CHECK(error_of([&] { bl::checkpoint(folder / "out").validate(); }).text == "");
  // Plane 1, row 2, word 1: byte ((1 * 3 + 2) * 2 + 1) * 4; column 40 is bit 8.
  CHECK(damaged("qweight", 44, 0x0100).names("qweight\": plane 1, row 2: bits past column 40"));
  CHECK(damaged("lut2", 8, 0x7e00).names("lut2\": row 1, group 0, entry 0"));   // NaN
  CHECK(damaged("lut2", 0, 0xfc00).names("lut2\": row 0, group 0, entry 0"));   // -infinity
  CHECK(damaged("lut3", 46, 0x7c00).names("lut3\": row 2, group 0, entry 7"));  // infinity
  CHECK(damaged("lut3", 18, 0xfbff).names("entry 1: expected finite values that never fall"));
}
