// SPDX-License-Identifier: MIT
// Reads safetensors files: [u64 header length][JSON header][tensor bytes]. The file is mapped and
// its header checked completely on opening; after that every tensor_info can be trusted. Foreign
// files need not align tensors to their element size: copy, or ask `aligned` first.
// Tested by tests/io/safetensors_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/detail/safetensors_header.hpp>
#include <bitladder/io/mmap.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "tensors are read in place and files are little-endian");

namespace detail {

/// Element by element through memcpy, because the source may stand at any address.
template <class Source>
void widen(const std::byte* source, std::uint64_t count, float* destination) {
  for (std::uint64_t i = 0; i < count; ++i) {
    Source x;
    std::memcpy(&x, source + i * sizeof x, sizeof x);
    if constexpr (std::is_same<Source, double>::value)
      destination[i] = static_cast<float>(x);
    else
      destination[i] = to_float(x);
  }
}

}  // namespace detail

/// One safetensors file, mapped.
class safetensors_file {
 public:
  /// Largest header read; the format's own limit.
  static constexpr std::uint64_t max_header = 100000000;

  /// @throws error(not_found), error(io_failed), or error(bad_file) naming file, tensor, what was
  /// expected and what was found
  explicit safetensors_file(const std::filesystem::path& path) : path_(path.string()), file_(path) {
    const auto fail = [this](const std::string& what) {
      throw error(status::bad_file, path_ + ": " + what);
    };
    if (file_.size() < 8)
      fail("expected a safetensors file, found " + std::to_string(file_.size()) +
           " bytes, too few for the header's length");
    std::uint64_t length;
    std::memcpy(&length, file_.data(), 8);
    if (length > max_header)
      fail("header length " + std::to_string(length) + " is above the limit of " +
           std::to_string(max_header) + "; is this a safetensors file?");
    if (length > file_.size() - 8)
      fail("header of " + std::to_string(length) + " bytes passes the end of the file's " +
           std::to_string(file_.size()));
    const std::string_view json = file_.text().substr(8, static_cast<std::size_t>(length));
    if (json.empty() || json[0] != '{') fail("header does not begin with {");
    data_ = 8 + static_cast<std::size_t>(length);
    detail::safetensors_header header =
        detail::parse_safetensors_header(json, file_.size() - data_, path_);
    tensors_ = std::move(header.tensors);
    metadata_ = std::move(header.metadata);
    index_.reserve(tensors_.size());
    for (std::size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
  }

  const std::string& path() const { return path_; }
  /// In the order of the file's bytes.
  const std::vector<tensor_info>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const mapped_file& mapping() const { return file_; }
  /// Where the first tensor begins: add tensor_info::begin for a position in the file.
  std::uint64_t data_offset() const { return data_; }

  /// Null if there is none of that name.
  const tensor_info* find(const std::string& name) const {
    const auto it = index_.find(name);
    return it == index_.end() ? nullptr : &tensors_[it->second];
  }
  /// @throws error(not_found) naming the file and the closest names
  const tensor_info& at(const std::string& name) const {
    if (const tensor_info* t = find(name)) return *t;
    throw error(status::not_found,
                path_ + ": no tensor \"" + name + "\"; " + detail::closest_names(name, tensors_));
  }

  /// The tensor's bytes in the mapping. Touches nothing.
  /// @param t one of tensors()
  vector_view<const std::byte> bytes(const tensor_info& t) const {
    return {file_.data() + data_ + t.begin, static_cast<std::size_t>(t.bytes())};
  }
  vector_view<const std::byte> bytes(const std::string& name) const { return bytes(at(name)); }

  /// Whether the bytes may be read in place as elements of that size.
  bool aligned(const tensor_info& t, std::size_t alignment) const {
    return reinterpret_cast<std::uintptr_t>(bytes(t).data()) % alignment == 0;
  }
  bool aligned(const tensor_info& t) const { return aligned(t, size_of(t.type)); }

  /// Elements [first, first + count) as floats, exactly (F16, BF16, F32) or rounded (F64).
  /// @throws error(bad_file) if the tensor holds integers, error(invalid_argument) if the range
  /// leaves it
  void read_as_float(const tensor_info& t, std::uint64_t first, std::uint64_t count,
                     float* destination) const {
    if (first > t.elements() || count > t.elements() - first)
      throw error(status::invalid_argument, path_ + ": tensor \"" + t.name +
                                                "\": " + std::to_string(count) + " elements from " +
                                                std::to_string(first) + " on asked for, " +
                                                std::to_string(t.elements()) + " present");
    if (count == 0) return;
    const std::byte* source = bytes(t).data() + first * size_of(t.type);
    switch (t.type) {
      case dtype::f32: std::memcpy(destination, source, count * sizeof(float)); return;
      case dtype::f16: detail::widen<fp16_t>(source, count, destination); return;
      case dtype::bf16: detail::widen<bf16_t>(source, count, destination); return;
      case dtype::f64: detail::widen<double>(source, count, destination); return;
      default:
        throw error(status::bad_file, path_ + ": tensor \"" + t.name +
                                          "\": expected F32, F16, BF16 or F64, found " +
                                          to_string(t.type));
    }
  }
  void read_as_float(const tensor_info& t, float* destination) const {
    read_as_float(t, 0, t.elements(), destination);
  }
  std::vector<float> read_as_float(const std::string& name) const {
    const tensor_info& t = at(name);
    std::vector<float> values(static_cast<std::size_t>(t.elements()));
    read_as_float(t, values.data());
    return values;
  }

 private:
  std::string path_;
  mapped_file file_;
  std::size_t data_ = 0;
  std::vector<tensor_info> tensors_;
  std::map<std::string, std::string> metadata_;
  std::unordered_map<std::string, std::size_t> index_;
};

}  // namespace v0_1
}  // namespace bitladder
