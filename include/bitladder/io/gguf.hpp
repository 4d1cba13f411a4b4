// SPDX-License-Identifier: MIT
// Reads GGUF files, versions 2 and 3, little-endian: metadata, tensor infos, and the tensors' bytes
// in place. The file is mapped and everything before the tensors checked completely on opening;
// after that every gguf_tensor can be trusted. Numbers out of the bytes: gguf_dequantize.hpp.
// Tested by tests/io/gguf_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/detail/gguf_header.hpp>
#include <bitladder/io/gguf_metadata.hpp>
#include <bitladder/io/gguf_tensor.hpp>
#include <bitladder/io/mmap.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// One GGUF file, mapped. Moves keep all views valid.
class gguf_file {
 public:
  /// @throws error(not_found), error(io_failed), or error(bad_file) naming file, key or tensor,
  /// what was expected and what was found
  explicit gguf_file(const std::filesystem::path& path)
      : path_(path.string()),
        file_(path),
        header_(detail::parse_gguf_header(file_.data(), file_.size(), path_)) {}

  const std::string& path() const { return path_; }
  /// 2 or 3.
  int version() const { return static_cast<int>(header_.version); }
  const gguf_metadata& metadata() const { return header_.metadata; }
  /// In the order of the file's list.
  const std::vector<gguf_tensor>& tensors() const { return header_.tensors; }
  const mapped_file& mapping() const { return file_; }
  /// Where tensors' bytes begin: add gguf_tensor::begin for a position in the file.
  std::uint64_t data_offset() const { return header_.data_offset; }
  /// Every tensor begins on a multiple of it.
  std::uint64_t alignment() const { return header_.alignment; }

  /// Null if there is none of that name.
  const gguf_tensor* find(const std::string& name) const {
    const auto it = header_.index.find(name);
    return it == header_.index.end() ? nullptr : &header_.tensors[it->second];
  }
  /// @throws error(not_found) naming the file and the closest names
  const gguf_tensor& at(const std::string& name) const {
    if (const gguf_tensor* t = find(name)) return *t;
    std::vector<tensor_info> names(tensors().size());
    for (std::size_t i = 0; i < names.size(); ++i) names[i].name = tensors()[i].name;
    throw error(status::not_found,
                path_ + ": no tensor \"" + name + "\"; " + detail::closest_names(name, names));
  }

  /// The tensor's bytes in the mapping. Touches nothing.
  /// @param t one of tensors()
  vector_view<const std::byte> bytes(const gguf_tensor& t) const {
    if (t.bytes() == 0) return {};  // may lie beyond a file without any data
    return {file_.data() + header_.data_offset + t.begin, static_cast<std::size_t>(t.bytes())};
  }
  vector_view<const std::byte> bytes(const std::string& name) const { return bytes(at(name)); }

 private:
  std::string path_;
  mapped_file file_;
  detail::gguf_header header_;
};

}  // namespace v0_1
}  // namespace bitladder
