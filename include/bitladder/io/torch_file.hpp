// SPDX-License-Identifier: MIT
// A file of torch.save that holds a dict of tensors, such as pytorch_model.bin, without PyTorch:
// a zip archive of stored entries, data.pkl the pickle and data/KEY the storages. Tensors are
// ranges of the mapped file; several may share one (tied weights). All is checked on opening, and
// nothing in the file is ever run. Tested by tests/io/torch_file_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/pickle.hpp>
#include <bitladder/io/safetensors.hpp>
#include <bitladder/io/tensor_info.hpp>
#include <bitladder/io/zip_archive.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// One tensor of a file of torch.save. `begin` counts from the start of the file, and [begin, end)
/// are its bytes if it is contiguous.
struct torch_tensor : tensor_info {
  std::vector<std::int64_t> stride;  ///< in elements
  std::string storage;               ///< the archive's name of the bytes that it shares

  /// Row-major without gaps; strides of dimensions of size 1 do not matter.
  bool contiguous() const {
    std::int64_t expected = 1;
    for (std::size_t i = shape.size(); i-- > 0;) {
      if (shape[i] == 0) return true;
      if (shape[i] != 1 && stride[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }
};

/// What a file of torch.save lists.
struct torch_contents {
  std::vector<torch_tensor> tensors;  ///< in the order of the dict
  std::vector<std::string> others;    ///< keys whose values are not tensors
};

namespace detail {

/// One past the last element of the storage that the tensor touches, or nothing if it cannot be in
/// it. The storage's size must be known to be the file's.
inline std::optional<std::int64_t> torch_extent(const pickle_tensor& t) {
  if (t.offset > t.storage.elements) return std::nullopt;
  std::int64_t last = t.offset;
  for (std::size_t i = 0; i < t.shape.size(); ++i) {
    if (t.shape[i] == 0) return t.offset;
    const std::int64_t room = std::numeric_limits<std::int64_t>::max() - 1 - last;
    const std::int64_t steps = t.shape[i] - 1;
    if (steps != 0 && t.stride[i] > room / steps) return std::nullopt;
    last += steps * t.stride[i];
  }
  return last + 1;
}

/// One value of the dict against the archive.
/// @param folder of the archive, "archive/"
inline torch_tensor read_torch_tensor(const zip_view& archive, const std::string& folder,
                                      const std::string& name, const pickle_tensor& p) {
  const auto fail = [&](const std::string& what) {
    throw error(status::bad_file, archive.where() + ": tensor \"" + name + "\": " + what);
  };
  const dtype type = p.storage.type;
  torch_tensor t;
  t.name = name;
  t.type = type;
  t.shape = p.shape;
  t.stride = p.stride;
  t.storage = folder + "data/" + std::string(p.storage.key);
  const zip_entry* entry = archive.find(t.storage);
  if (entry == nullptr) fail("its storage \"" + t.storage + "\" is not in the archive");
  const std::uint64_t size = size_of(type),
                      elements = static_cast<std::uint64_t>(p.storage.elements);
  if (entry->size % size != 0 || entry->size / size != elements)
    fail("expected a storage of " + std::to_string(elements) + " " + to_string(type) + ", found " +
         std::to_string(entry->size) + " bytes in \"" + t.storage + "\"");
  const std::optional<std::uint64_t> bytes = byte_size(type, p.shape);
  if (!bytes) fail("shape " + to_string(p.shape) + " is too large");
  const std::optional<std::int64_t> extent = torch_extent(p);
  if (!extent || *extent > p.storage.elements)
    fail("shape " + to_string(p.shape) + " with strides " + to_string(p.stride) + " from element " +
         std::to_string(p.offset) + " on passes the end of its storage's " +
         std::to_string(elements) + " elements");
  t.begin = entry->begin + static_cast<std::uint64_t>(p.offset) * size;
  t.end = t.begin + *bytes;
  return t;
}

/// Why a file that is no archive is none, for those that people have.
inline void require_zip(std::string_view file, const std::string& where) {
  if (file.substr(0, 4) == "PK\3\4") return;
  const std::string_view legacy("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14);
  if (file.substr(0, legacy.size()) == legacy)
    throw error(status::bad_file,
                where +
                    ": written by torch.save before PyTorch 1.6; load it and save it again, as "
                    "that format cannot be read in place");
  throw error(status::bad_file,
              where + ": expected a zip archive as torch.save writes it, found other bytes");
}

/// Opens data.pkl and checks all that it says against the archive.
inline torch_contents read_torch_contents(const zip_view& archive) {
  const auto fail = [&archive](const std::string& what) {
    throw error(status::bad_file, archive.where() + ": " + what);
  };
  const std::string pickle_name = "/data.pkl";
  const zip_entry* pickle = nullptr;
  for (const zip_entry& e : archive.entries()) {
    // The folder is named for the file; no deeper one counts.
    if (e.name.find('/') != e.name.size() - pickle_name.size() ||
        e.name.size() <= pickle_name.size() ||
        e.name.compare(e.name.size() - pickle_name.size(), pickle_name.size(), pickle_name) != 0)
      continue;
    if (pickle != nullptr) fail("\"" + e.name + "\" and \"" + pickle->name + "\" are both there");
    pickle = &e;
  }
  if (pickle == nullptr) fail("expected an archive of torch.save, found none with a data.pkl");
  const std::string folder = pickle->name.substr(0, pickle->name.size() - pickle_name.size()) + "/";
  if (const zip_entry* order = archive.find(folder + "byteorder"))
    if (archive.bytes(*order) != "little")
      fail("expected tensors in little-endian order, found \"" +
           std::string(archive.bytes(*order).substr(0, 16)) + "\"");
  if (archive.find(folder + "constants.pkl") != nullptr)
    fail("is a TorchScript program; expected a dict of tensors from torch.save");

  const pickle_document document =
      read_pickle(archive.bytes(*pickle), archive.where() + ": " + pickle->name);
  const pickle_value root = document.root();
  if (!root.is(pickle_kind::dict))
    fail(std::string("expected a dict of tensors, found ") + to_string(root.kind()));
  torch_contents out;
  std::unordered_map<std::string, std::size_t> names;
  for (std::size_t i = 0; i < root.size(); ++i) {
    if (!root.key(i).is(pickle_kind::text))
      fail(std::string("expected a dict with names for keys, found ") +
           to_string(root.key(i).kind()) + " for entry " + std::to_string(i));
    const std::string name(root.key(i).as_text());
    if (!names.emplace(name, i).second) fail("key \"" + name + "\" is there twice");
    if (root[i].is(pickle_kind::tensor))
      out.tensors.push_back(read_torch_tensor(archive, folder, name, root[i].as_tensor()));
    else
      out.others.push_back(name);
  }
  return out;
}

}  // namespace detail

/// One file of torch.save, mapped. Move-only; views stay valid while it lives, moved or not.
class torch_file {
 public:
  /// @throws error(not_found), error(io_failed), or error(bad_file) naming file, tensor, what was
  /// expected and what was found
  explicit torch_file(const std::filesystem::path& path)
      : path_(path.string()), archive_(open(path)) {
    contents_ = detail::read_torch_contents(archive_.view());
    index_.reserve(tensors().size());
    for (std::size_t i = 0; i < tensors().size(); ++i) index_.emplace(tensors()[i].name, i);
  }

  const std::string& path() const { return path_; }
  /// In the order of the dict.
  const std::vector<torch_tensor>& tensors() const { return contents_.tensors; }
  /// Keys whose values are not tensors.
  const std::vector<std::string>& others() const { return contents_.others; }
  const mapped_file& mapping() const { return archive_.mapping(); }
  const zip_archive& archive() const { return archive_; }

  /// Null if there is none of that name.
  const torch_tensor* find(const std::string& name) const {
    const auto it = index_.find(name);
    return it == index_.end() ? nullptr : &tensors()[it->second];
  }
  /// @throws error(not_found) naming the file and the closest names
  const torch_tensor& at(const std::string& name) const {
    if (const torch_tensor* t = find(name)) return *t;
    throw error(status::not_found,
                path_ + ": no tensor \"" + name + "\"; " +
                    detail::closest_names(
                        name, std::vector<tensor_info>(tensors().begin(), tensors().end())));
  }

  /// The tensor's bytes in the mapping, row-major. Touches nothing.
  /// @param t one of tensors()
  /// @throws error(bad_file) naming the tensor unless it is contiguous
  vector_view<const std::byte> bytes(const torch_tensor& t) const {
    if (!t.contiguous())
      throw error(status::bad_file,
                  path_ + ": tensor \"" + t.name + "\": expected rows without gaps, found shape " +
                      to_string(t.shape) + " with strides " + to_string(t.stride) +
                      "; save a copy made by .contiguous()");
    return {mapping().data() + t.begin, static_cast<std::size_t>(t.bytes())};
  }
  vector_view<const std::byte> bytes(const std::string& name) const { return bytes(at(name)); }

  /// Whether the bytes may be read in place as elements of that size; torch.save aligns storages
  /// to 64 bytes, other writers need not.
  bool aligned(const torch_tensor& t, std::size_t alignment) const {
    return reinterpret_cast<std::uintptr_t>(mapping().data() + t.begin) % alignment == 0;
  }
  bool aligned(const torch_tensor& t) const { return aligned(t, size_of(t.type)); }

  /// All elements as floats, exactly (F16, BF16, F32) or rounded (F64).
  /// @param destination t.elements() floats
  /// @throws error(bad_file) if the tensor holds integers or is not contiguous
  void read_as_float(const torch_tensor& t, float* destination) const {
    const std::byte* source = bytes(t).data();
    switch (t.type) {
      case dtype::f32: detail::widen<float>(source, t.elements(), destination); return;
      case dtype::f16: detail::widen<fp16_t>(source, t.elements(), destination); return;
      case dtype::bf16: detail::widen<bf16_t>(source, t.elements(), destination); return;
      case dtype::f64: detail::widen<double>(source, t.elements(), destination); return;
      default:
        throw error(status::bad_file, path_ + ": tensor \"" + t.name +
                                          "\": expected F32, F16, BF16 or F64, found " +
                                          to_string(t.type));
    }
  }
  std::vector<float> read_as_float(const std::string& name) const {
    const torch_tensor& t = at(name);
    static_cast<void>(bytes(t));  // strides of 0 could claim more elements than the file holds
    std::vector<float> values(static_cast<std::size_t>(t.elements()));
    read_as_float(t, values.data());
    return values;
  }

 private:
  static zip_archive open(const std::filesystem::path& path) {
    {
      const mapped_file file(path);
      detail::require_zip(file.text(), path.string());
    }
    return zip_archive(path);
  }

  std::string path_;
  zip_archive archive_;
  torch_contents contents_;
  std::unordered_map<std::string, std::size_t> index_;
};

}  // namespace v0_1
}  // namespace bitladder
