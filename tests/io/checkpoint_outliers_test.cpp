// SPDX-License-Identifier: MIT
// Outliers in checkpoints. Seeds 45 to 49.
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/checkpoint_writer.hpp>
#include <bitladder/io/safetensors_writer.hpp>

#include "io/small_checkpoint.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <limits>

namespace bl = bitladder;
namespace fs = std::filesystem;
using support::error_of;
using support::small_checkpoint;
using support::temporary_folder;
using support::thrown;

namespace {

const small_checkpoint& small() {
  static const small_checkpoint made(45, {{5, 70}, {64, 64}, {3, 34}, {16, 128}}, 2, 5, 2, 0.05);
  return made;
}

bool same(const bl::sparse_view& a, const bl::sparse_view& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() && a.count() == b.count() &&
         std::equal(a.offsets(), a.offsets() + a.rows() + 1, b.offsets()) &&
         std::equal(a.columns(), a.columns() + a.count(), b.columns()) &&
         std::equal(a.values(), a.values() + a.count(), b.values());
}

/// The first linear's file with some bytes of one of its tensors replaced, opened and used.
struct damaged {
  temporary_folder folder;
  std::string good;
  damaged() {
    small().write(folder / "out");
    good = support::read_all(folder / "out/model.safetensors");
  }
  template <class Value>
  thrown error(const char* tensor, std::size_t index, Value value, bool validate = false) {
    const fs::path path = folder / "out/model.safetensors";
    std::string bytes = good;
    {
      const bl::safetensors_file file(path);
      const bl::tensor_info& t = file.at(small().linears[0].name + tensor);
      std::memcpy(&bytes[file.data_offset() + t.begin + index * sizeof value], &value,
                  sizeof value);
    }
    support::write_all(path, bytes);
    const thrown e = error_of([&] {
      const bl::checkpoint c(folder / "out");
      if (validate)
        c.validate();
      else
        static_cast<void>(c.outliers(small().linears[0].name));
    });
    support::write_all(path, good);
    return e;
  }
};

}  // namespace

TEST_CASE("outliers are read back as they were written, in a file that says it is version 2") {
  temporary_folder folder;
  small().write(folder / "out");
  const bl::checkpoint c(folder / "out");
  CHECK(c.tensors().metadata().at("bitladder.version") == "2");
  std::int64_t all = 0;
  for (const support::small_linear& l : small().linears) {
    CAPTURE(l.name);
    const bl::linear_info& info = c.linear(l.name);
    all += l.outliers.count();
    CHECK(info.outliers == l.outliers.count());
    CHECK(info.outliers > 0);
    CHECK(same(c.outliers(l.name), l.outliers.view()));
    CHECK(info.outlier_bytes() == static_cast<std::size_t>(info.rows + 1) * 4 +
                                      static_cast<std::size_t>(info.outliers) * 6);
    CHECK(info.bytes(3) == 3 * info.plane_bytes() + info.table_bytes(3) + info.outlier_bytes());
  }
  CHECK(c.plain_tensors().size() == small().tensors.size());
  c.validate();
  c.prefetch(4);
  const nlohmann::json config = bl::read_json(folder / "out/config.json");
  CHECK(config["bitladder"]["format_version"] == 2);
  CHECK(config["bitladder"]["outliers"] == all);
}

TEST_CASE("a file without outliers says that it is version 1") {
  temporary_folder folder;
  const small_checkpoint plain(46, {{5, 70}}, 2, 5), none(46, {{5, 70}}, 2, 5, 1, 1e-300);
  plain.write(folder / "plain");
  const bl::checkpoint c(folder / "plain");
  CHECK(c.tensors().metadata().at("bitladder.version") == "1");
  CHECK(c.outliers(plain.linears[0].name).empty());
  CHECK(c.linear(plain.linears[0].name).outlier_bytes() == 0);
  CHECK(none.plan.version() == 1);
}

TEST_CASE("one linear with outliers is enough, and others have no tensors for them") {
  small_checkpoint some(47, {{4, 40}, {4, 40}}, 2, 3, 1, 0.2);
  some.linears[0].outliers = bl::sparse_matrix(4, 40);
  some.plan.linears[0].outliers = 0;
  temporary_folder folder;
  some.write(folder / "out");
  const bl::checkpoint c(folder / "out");
  CHECK(c.outliers(some.linears[0].name).empty());
  CHECK(c.tensors().find(some.linears[0].name + ".outliers.offsets") == nullptr);
  CHECK(same(c.outliers(some.linears[1].name), some.linears[1].outliers.view()));
}

TEST_CASE("killed after any part, outliers or not, the work ends with the same bytes") {
  temporary_folder folder;
  small().write(folder / "whole");
  const auto whole = support::read_folder(folder / "whole");
  for (std::size_t stop = 0; stop <= small().parts(); ++stop) {
    const fs::path out = folder / ("killed" + std::to_string(stop));
    const int result = support::in_child([&] {
      bl::checkpoint_writer w(out, small().plan, "test");
      for (std::size_t i = 0; i < stop; ++i) small().write_part(w, i);
      ::kill(::getpid(), SIGKILL);
    });
    CHECK(WIFSIGNALED(result));
    bl::checkpoint_writer w(out, small().plan, "test");
    CHECK(w.parts_done() == stop);
    small().write_rest(w);
    w.finish(small().config());
    CHECK(support::read_folder(out) == whole);
  }
}

TEST_CASE("outliers damaged on disk make their linear be written again") {
  temporary_folder folder;
  const fs::path out = folder / "out";
  {
    bl::checkpoint_writer w(out, small().plan, "test");
    small().write_rest(w);
  }
  const fs::path model = folder / "out.partial/model.safetensors.partial";
  std::string bytes = support::read_all(model);
  const std::string values(
      reinterpret_cast<const char*>(small().linears[1].outliers.view().values()),
      static_cast<std::size_t>(small().linears[1].outliers.count()) * 2);
  const std::size_t at = bytes.find(values);
  REQUIRE(at != std::string::npos);
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  support::write_all(model, bytes);
  bl::checkpoint_writer w(out, small().plan, "test");
  CHECK(w.parts_done() == small().parts() - 1);
  CHECK_FALSE(w.done(small().linears[1].name));
}

TEST_CASE("the writer refuses outliers that are not as planned, not sound, or of several codes") {
  temporary_folder folder;
  bl::checkpoint_writer w(folder / "out", small().plan, "test");
  const support::small_linear& l = small().linears[0];
  const auto error = [&](const bl::sparse_view& outliers) {
    return error_of([&] { w.write_linear(l.name, l.planes.view(), l.tables, outliers); });
  };
  const std::string count = std::to_string(l.outliers.count());
  CHECK(error({}).names("linear \"" + l.name + "\": expected " + count + " outliers of 5 x 70"));
  CHECK(error(small().linears[1].outliers.view()).code == bl::status::shape_mismatch);
  const bl::sparse_view good = l.outliers.view();
  CHECK(error({good.offsets(), good.columns(), good.values(), 5, 69})
            .names("found " + count + " of 5 x 69"));
  std::vector<std::int32_t> columns(good.columns(), good.columns() + good.count());
  columns[0] = 70;
  CHECK(error({good.offsets(), columns.data(), good.values(), 5, 70}).names("below 70, found 70"));
  // Another column, whose code is another one.
  const int row = static_cast<int>(
      std::find_if(good.offsets(), good.offsets() + 6, [](int o) { return o > 1; }) -
      good.offsets() - 1);
  REQUIRE(good.end(row) - good.begin(row) > 1);
  std::string text;
  for (int c = 0; c < 35 && text.empty(); ++c) {
    columns.assign(good.columns(), good.columns() + good.count());
    std::int32_t& changed = columns[static_cast<std::size_t>(good.begin(row))];
    if (changed > 34 || columns[static_cast<std::size_t>(good.begin(row)) + 1] > 34) break;
    if (c >= columns[static_cast<std::size_t>(good.begin(row)) + 1]) break;
    changed = c;
    text = error({good.offsets(), columns.data(), good.values(), 5, 70}).text;
  }
  CHECK_MESSAGE(support::contains(text, ": expected code "), text);
  CHECK(w.parts_done() == 0);
  bl::checkpoint_plan plan = small().plan;
  for (const std::int64_t bad : {std::int64_t{-1}, std::int64_t{351}}) {
    plan.linears[0].outliers = bad;
    CHECK(error_of([&] {
            bl::checkpoint_writer(folder / "other", plan, "test");
          }).names("expected 0 to 350 outliers, found " + std::to_string(bad)));
  }
}

TEST_CASE("lies in the outliers of a file are found before a kernel trusts them") {
  damaged d;
  const int count = small().linears[0].outliers.count();
  CHECK(d.error(".outliers.columns", 0, std::int32_t{70}).names("outliers of \"model.layers.0"));
  CHECK(d.error(".outliers.columns", 0, std::int32_t{-1}).code == bl::status::bad_file);
  CHECK(d.error(".outliers.offsets", 0, std::int32_t{-1}).names("row 0: expected offset 0"));
  CHECK(d.error(".outliers.offsets", 2, std::numeric_limits<std::int32_t>::max()).names("row 1"));
  CHECK(d.error(".outliers.offsets", 5, std::int32_t{count - 1}).code == bl::status::bad_file);
  CHECK(d.error(".outliers.values", 0, std::uint16_t{0x7c00}).names("expected a finite value"));
  CHECK(d.error(".outliers.values", 0, std::uint16_t{0x3c00}).text.empty());
  // Codes of outliers only when all is read.
  const auto flipped = [&](bool validate) {
    const bl::sparse_view o = small().linears[0].outliers.view();
    int row = 0;
    while (o.end(row) - o.begin(row) < 2 ||
           o.columns()[o.begin(row)] / 35 != o.columns()[o.begin(row) + 1] / 35)
      ++row;
    const int col = o.columns()[o.begin(row)];
    const std::size_t word = small().linears[0].planes.layout().word(0, row, col / 32);
    return d.error(".qweight", word, small().linears[0].planes.data()[word] ^ 1u << (col % 32),
                   validate);
  };
  CHECK(flipped(false).text.empty());
  CHECK(flipped(true).names(": expected code "));
}

TEST_CASE("outlier tensors of the wrong type or shape, or one without the others, are refused") {
  const auto open_error = [](const std::string& version,
                             const std::vector<bl::checkpoint_plan::tensor>& outliers) {
    temporary_folder folder;
    bl::safetensors_plan plan;
    plan.add("x.qweight", bl::dtype::i32, {1, 3, 2});
    plan.add("x.lut1", bl::dtype::f16, {3, 2});
    for (const auto& t : outliers) plan.add("x.outliers." + t.name, t.type, t.shape);
    for (const auto& [key, value] :
         std::map<std::string, std::string>{{"version", version},
                                            {"layout", bl::checkpoint_layout},
                                            {"seed_bits", "1"},
                                            {"min_bits", "1"},
                                            {"max_bits", "1"},
                                            {"groups", "1"},
                                            {"cols", "{\"x\":40}"}})
      plan.set_metadata("bitladder." + key, value);
    plan.set_metadata("format", "bitladder");
    bl::safetensors_writer w = bl::safetensors_writer::create(folder / "model.safetensors", plan);
    for (const bl::tensor_info& t : w.tensors()) {
      const std::string zeros(t.bytes(), '\0');
      w.write(t.name, zeros.data(), zeros.size());
    }
    w.commit();
    return error_of([&] { bl::checkpoint c(folder.path()); });
  };
  using bl::dtype;
  const bl::checkpoint_plan::tensor offsets{"offsets", dtype::i32, {4}},
      columns{"columns", dtype::i32, {2}}, values{"values", dtype::f16, {2}};
  CHECK(open_error("2", {offsets, columns, values}).text.empty());
  CHECK(open_error("2", {}).text.empty());
  CHECK(open_error("1", {offsets, columns, values}).text.empty());  // any tensors, to version 1
  CHECK(open_error("2", {offsets, columns}).names("no tensor \"x.outliers.values\""));
  CHECK(open_error("2", {columns, values}).names("no tensor \"x.outliers.offsets\""));
  CHECK(open_error("2", {offsets}).names("has no \"x.outliers.columns\" beside it"));
  CHECK(open_error("2", {values}).names("has no \"x.outliers.columns\" beside it"));
  CHECK(open_error("2", {{"offsets", dtype::i32, {3}}, columns, values}).names("expected I32 [4]"));
  CHECK(open_error("2", {{"offsets", dtype::f32, {4}}, columns, values}).names("found F32 [4]"));
  CHECK(open_error("2", {offsets, {"columns", dtype::i32, {3}}, values}).names("expected F16 [3]"));
  CHECK(open_error("2", {offsets, {"columns", dtype::i32, {2, 1}}, values})
            .names("expected I32 [1 to 2^31 - 1], found I32 [2, 1]"));
  CHECK(open_error("2", {offsets, {"columns", dtype::i32, {0}}, values}).names("found I32 [0]"));
  CHECK(open_error("2", {offsets, {"columns", dtype::f32, {2}}, values}).names("expected I32 [2]"));
}
