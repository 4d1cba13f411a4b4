// SPDX-License-Identifier: MIT
// No random data.
#include <bitladder/io/safetensors_set.hpp>

#include <support/files.hpp>

#include <doctest/doctest.h>

namespace bl = bitladder;
namespace fs = std::filesystem;
using support::error_of;
using support::temporary_folder;
using support::thrown;

namespace {

/// Scalars of the given names and values.
std::string scalars(const std::map<std::string, float>& values) {
  std::string header = "{\"__metadata__\":{\"format\":\"pt\"}", data;
  for (const auto& [name, value] : values) {
    header += ",\"" + name + "\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[" +
              std::to_string(data.size()) + "," + std::to_string(data.size() + 4) + "]}";
    data.append(reinterpret_cast<const char*>(&value), 4);
  }
  return support::safetensors_bytes(header + "}", data);
}

void write_sharded(const fs::path& folder, const std::string& weight_map) {
  support::write_all(folder / "s-1.safetensors", scalars({{"a", 1}, {"b", 2}}));
  support::write_all(folder / "s-2.safetensors", scalars({{"c", 3}}));
  support::write_all(folder / "model.safetensors.index.json",
                     "{\"metadata\":{\"total_size\":12},\"weight_map\":" + weight_map + "}");
}

const char* const right_map =
    R"({"c":"s-2.safetensors","a":"s-1.safetensors","b":"s-1.safetensors"})";

thrown map_error(const std::string& weight_map) {
  temporary_folder folder;
  write_sharded(folder.path(), weight_map);
  const thrown e = error_of([&] { bl::safetensors_set set(folder.path()); });
  CHECK(e.code == bl::status::bad_file);
  CHECK(e.names("model.safetensors.index.json"));
  return e;
}

}  // namespace

TEST_CASE("a file, its folder and shards with an index are read the same way") {
  temporary_folder whole, sharded;
  support::write_all(whole / "model.safetensors", scalars({{"a", 1}, {"b", 2}, {"c", 3}}));
  write_sharded(sharded.path(), right_map);
  for (const fs::path& path : {whole.path(), whole / "model.safetensors", sharded.path(),
                               sharded / "model.safetensors.index.json"}) {
    CAPTURE(path);
    bl::safetensors_set first(path);
    const bl::safetensors_set set(std::move(first));
    CHECK(set.tensors().size() == 3);
    CHECK(set.metadata().at("format") == "pt");
    float value = 0;
    for (const auto& [name, expected] :
         std::map<std::string, float>{{"a", 1}, {"b", 2}, {"c", 3}}) {
      CHECK(set.read_as_float(name) == std::vector<float>{expected});
      set.read_as_float(set.at(name), &value);
      CHECK(value == expected);
      set.read_as_float(set.at(name), 0, 1, &value);
      CHECK(value == expected);
      CHECK(set.bytes(name).size() == 4);
      CHECK(set.file_of(set.at(name)).find(name) != nullptr);
    }
    CHECK(set.find("d") == nullptr);
    const thrown e = error_of([&] { set.at("d"); });
    CHECK(e.names(path.string() + ": no tensor \"d\"; it holds 3 tensors; closest: a, b, c"));
  }
}

TEST_CASE("one file is taken before an index beside it, and links to shards are followed") {
  temporary_folder folder, store;
  write_sharded(folder.path(), right_map);
  fs::rename(folder / "s-2.safetensors", store / "blob");
  fs::create_symlink(store / "blob", folder / "s-2.safetensors");
  CHECK(bl::safetensors_set(folder.path()).files().size() == 2);
  support::write_all(folder / "model.safetensors", scalars({{"x", 1}}));
  CHECK(bl::safetensors_set(folder.path()).files().size() == 1);
}

TEST_CASE("a folder without a model says what it should hold") {
  temporary_folder folder;
  const thrown e = error_of([&] { bl::safetensors_set set(folder.path()); });
  CHECK(e.code == bl::status::not_found);
  CHECK(e.names("expected model.safetensors or model.safetensors.index.json"));
  CHECK(error_of([&] { bl::safetensors_set set(folder / "absent"); }).code ==
        bl::status::not_found);
}

TEST_CASE("a missing shard is named with what it should hold") {
  CHECK(map_error(R"({"a":"s-1.safetensors","b":"s-1.safetensors","c":"s-3.safetensors"})")
            .names("shard s-3.safetensors is missing, with 1 tensors, among them \"c\""));
}

TEST_CASE("an index may not point outside its folder") {
  for (const char* name : {"../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "",
                           "..\\\\x", "a\\u0000b"})
    CHECK(map_error("{\"a\":\"" + std::string(name) + "\"}").names("file in the same folder"));
}

TEST_CASE("index and shards must name the same tensors") {
  CHECK(map_error(R"({"a":"s-1.safetensors","b":"s-1.safetensors","c":"s-1.safetensors"})")
            .names("tensor \"c\" should be in s-1.safetensors, but is not"));
  CHECK(map_error(R"({"a":"s-1.safetensors","c":"s-2.safetensors"})")
            .names("holds tensor \"b\", which the index does not name"));
  temporary_folder folder;
  write_sharded(folder.path(), right_map);
  support::write_all(folder / "s-2.safetensors", scalars({{"a", 9}, {"c", 3}}));
  CHECK(
      error_of([&] { bl::safetensors_set set(folder.path()); }).names("the index puts elsewhere"));
}

TEST_CASE("an index of another shape is refused") {
  CHECK(map_error("[]").names("expected an object with \"weight_map\""));
  CHECK(map_error("{}").names("names no tensors"));
  CHECK(map_error("{\"a\":1}").names("expected a file name"));
  CHECK(map_error("{\"a\":\"x\",\"a\":\"y\"}").names("there twice"));
  CHECK(map_error("{").names("not valid JSON"));
}
