// SPDX-License-Identifier: MIT
// A model's tensors, whether they lie in one safetensors file or in shards listed by an index,
// under the same lookup functions as one file. Tested by tests/io/safetensors_set_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/json.hpp>
#include <bitladder/io/safetensors.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// All tensors of a model. Move-only; views stay valid while it lives, moved or not.
class safetensors_set {
 public:
  /// @param path a .safetensors file, an .index.json file, or a folder with model.safetensors or
  /// model.safetensors.index.json (the first is taken if both are there, as elsewhere)
  /// @throws error if the path holds neither, a shard is missing or outside the folder, or index
  /// and shards do not name the same tensors
  explicit safetensors_set(const std::filesystem::path& path) : path_(path.string()) {
    namespace fs = std::filesystem;
    std::error_code ignored;
    fs::path file = path;
    if (fs::is_directory(path, ignored)) {
      file = path / "model.safetensors";
      if (!fs::exists(file, ignored)) file += ".index.json";
      if (!fs::exists(file, ignored))
        throw error(status::not_found, path_ +
                                           ": expected model.safetensors or "
                                           "model.safetensors.index.json in this folder");
    }
    if (file.extension() == ".json") {
      open_shards(file);
    } else {
      files_.emplace_back(file);
      for (const tensor_info& t : files_[0].tensors()) add(t, 0);
    }
  }

  /// As given to the constructor.
  const std::string& path() const { return path_; }
  const std::vector<safetensors_file>& files() const { return files_; }
  /// File after file, each in the order of its bytes.
  const std::vector<tensor_info>& tensors() const { return tensors_; }
  /// Of the first file; shards of one model repeat it.
  const std::map<std::string, std::string>& metadata() const { return files_[0].metadata(); }

  /// Null if there is none of that name.
  const tensor_info* find(const std::string& name) const {
    const auto it = index_.find(name);
    return it == index_.end() ? nullptr : &tensors_[it->second.tensor];
  }
  /// @throws error(not_found) naming the model and the closest names
  const tensor_info& at(const std::string& name) const {
    if (const tensor_info* t = find(name)) return *t;
    throw error(status::not_found,
                path_ + ": no tensor \"" + name + "\"; " + detail::closest_names(name, tensors_));
  }
  /// The file that holds the tensor.
  const safetensors_file& file_of(const tensor_info& t) const {
    static_cast<void>(at(t.name));  // says what is there if this one is not
    return files_[index_.find(t.name)->second.file];
  }

  vector_view<const std::byte> bytes(const tensor_info& t) const { return file_of(t).bytes(t); }
  vector_view<const std::byte> bytes(const std::string& name) const { return bytes(at(name)); }
  bool aligned(const tensor_info& t) const { return file_of(t).aligned(t); }
  bool aligned(const tensor_info& t, std::size_t alignment) const {
    return file_of(t).aligned(t, alignment);
  }
  void read_as_float(const tensor_info& t, float* destination) const {
    file_of(t).read_as_float(t, destination);
  }
  void read_as_float(const tensor_info& t, std::uint64_t first, std::uint64_t count,
                     float* destination) const {
    file_of(t).read_as_float(t, first, count, destination);
  }
  std::vector<float> read_as_float(const std::string& name) const {
    return file_of(at(name)).read_as_float(name);
  }

 private:
  struct position {
    std::size_t file;
    std::size_t tensor;
  };

  void add(const tensor_info& t, std::size_t file) {
    index_.emplace(t.name, position{file, tensors_.size()});
    tensors_.push_back(t);
  }

  void open_shards(const std::filesystem::path& index_path) {
    const std::string where = index_path.string();
    const nlohmann::json index = read_json(index_path);
    const auto fail = [&where](const std::string& what) {
      throw error(status::bad_file, where + ": " + what);
    };
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
      fail("expected an object with \"weight_map\": {tensor: file}");
    std::map<std::string, std::vector<std::string>> shards;  // sorted, so errors are repeatable
    for (const auto& [tensor, shard] : index["weight_map"].items()) {
      if (!shard.is_string()) fail("tensor \"" + tensor + "\": expected a file name");
      const std::string name = shard.template get<std::string>();
      if (name.empty() || name == "." || name == ".." || name.find('\0') != std::string::npos ||
          name.find_first_of("/\\") != std::string::npos)
        fail("tensor \"" + tensor + "\": expected the name of a file in the same folder, found \"" +
             name + "\"");
      shards[name].push_back(tensor);
    }
    if (shards.empty()) fail("names no tensors");
    for (const auto& [name, tensors] : shards) {
      const std::filesystem::path shard = detail::folder_of(index_path) / name;
      std::error_code ignored;
      if (!std::filesystem::exists(shard, ignored))
        fail("shard " + name + " is missing, with " + std::to_string(tensors.size()) +
             " tensors, among them \"" + tensors[0] + "\"");
      files_.emplace_back(shard);
      const safetensors_file& file = files_.back();
      for (const std::string& tensor : tensors)
        if (file.find(tensor) == nullptr)
          fail("tensor \"" + tensor + "\" should be in " + name + ", but is not");
      for (const tensor_info& t : file.tensors()) {
        if (!index["weight_map"].contains(t.name) || index["weight_map"][t.name] != name)
          fail("shard " + name + " holds tensor \"" + t.name + "\", which the index " +
               (index["weight_map"].contains(t.name) ? "puts elsewhere" : "does not name"));
        add(t, files_.size() - 1);
      }
    }
  }

  std::string path_;
  std::vector<safetensors_file> files_;
  std::vector<tensor_info> tensors_;
  std::unordered_map<std::string, position> index_;
};

}  // namespace v0_1
}  // namespace bitladder
