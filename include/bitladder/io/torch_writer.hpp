// SPDX-License-Identifier: MIT
// Writes a dict of tensors as torch.save does, for torch.load(weights_only=True): a zip archive of
// stored entries, data aligned to 64 bytes, ZIP64 where needed. Tensors come in any order, each
// from front to back; the final name appears only when everything is on disk. Until then the bytes
// are in PATH.partial. The same input gives the same file. Tested by tests/io/torch_file_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/detail/crc32.hpp>
#include <bitladder/io/detail/posix.hpp>
#include <bitladder/io/detail/zip_records.hpp>
#include <bitladder/io/tensor_info.hpp>

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

/// Names, types and shapes, in the order of the dict.
class torch_plan {
 public:
  struct entry {
    tensor_info info;     ///< `end - begin` is its size; the places are the writer's affair
    std::size_t storage;  ///< its own place in the plan, or that of the tensor whose bytes it is
  };

  /// @throws error(invalid_argument) for a name given twice, a negative dimension, or a size past
  /// 62 bits
  void add(const std::string& name, dtype type, std::vector<std::int64_t> shape) {
    const std::optional<std::uint64_t> size = byte_size(type, shape);
    if (!size || *size > limit - total_)
      fail(name, "shape " + to_string(shape) + " is negative or too large");
    add_name(name);
    total_ += *size;
    entries_.push_back({{name, type, std::move(shape), 0, *size}, entries_.size()});
  }

  /// A second name for the bytes of a tensor added before: tied weights.
  /// @throws error(invalid_argument) if the name is taken or there is no such tensor
  void add_tied(const std::string& name, const std::string& same_as) {
    const auto it = index_.find(same_as);
    if (it == index_.end()) fail(name, "tied to \"" + same_as + "\", which was not added before");
    entry e = entries_[it->second];
    add_name(name);
    e.info.name = name;
    entries_.push_back(std::move(e));
  }

  const std::vector<entry>& entries() const { return entries_; }

 private:
  static constexpr std::uint64_t limit = std::numeric_limits<std::int64_t>::max() / 2;

  [[noreturn]] static void fail(const std::string& name, const std::string& what) {
    throw error(status::invalid_argument, "tensor \"" + name + "\": " + what);
  }
  void add_name(const std::string& name) {
    if (name.size() > std::numeric_limits<std::uint32_t>::max()) fail(name, "the name is too long");
    if (!index_.emplace(name, entries_.size()).second) fail(name, "added twice");
  }

  std::vector<entry> entries_;
  std::unordered_map<std::string, std::size_t> index_;
  std::uint64_t total_ = 0;
};

namespace detail {

/// The name of PyTorch's class for storages of that type.
constexpr const char* torch_storage_class(dtype t) noexcept {
  switch (t) {
    case dtype::f64: return "DoubleStorage";
    case dtype::f32: return "FloatStorage";
    case dtype::f16: return "HalfStorage";
    case dtype::bf16: return "BFloat16Storage";
    case dtype::i64: return "LongStorage";
    case dtype::i32: return "IntStorage";
    case dtype::i16: return "ShortStorage";
    case dtype::i8: return "CharStorage";
    case dtype::u8: return "ByteStorage";
    case dtype::boolean: return "BoolStorage";
  }
  return "?";
}

inline void pickle_text(std::string& out, std::string_view text) {
  out += 'X';
  append_number(out, static_cast<std::uint32_t>(text.size()));
  out += text;
}
inline void pickle_int(std::string& out, std::int64_t value) {
  if (value >= std::numeric_limits<std::int32_t>::min() &&
      value <= std::numeric_limits<std::int32_t>::max()) {
    out += 'J';
    append_number(out, static_cast<std::int32_t>(value));
  } else {
    out += "\x8a\x08";
    append_number(out, value);
  }
}
inline void pickle_ints(std::string& out, const std::vector<std::int64_t>& values) {
  out += '(';
  for (std::int64_t v : values) pickle_int(out, v);
  out += 't';
}

/// data.pkl, protocol 2, without a memo: {name: tensor}.
inline std::string torch_pickle(const torch_plan& plan) {
  std::string out = "\x80\x02}(";
  for (const torch_plan::entry& e : plan.entries()) {
    const tensor_info& t = e.info;
    std::vector<std::int64_t> stride(t.shape.size());
    std::int64_t step = 1;
    for (std::size_t i = stride.size(); i-- > 0;) {
      stride[i] = step;
      step *= t.shape[i] > 0 ? t.shape[i] : 1;
    }
    pickle_text(out, t.name);
    out += "ctorch._utils\n_rebuild_tensor_v2\n((";
    pickle_text(out, "storage");
    out += std::string("ctorch\n") + torch_storage_class(t.type) + "\n";
    pickle_text(out, std::to_string(e.storage));
    pickle_text(out, "cpu");
    pickle_int(out, static_cast<std::int64_t>(t.elements()));
    out += "tQ";
    pickle_int(out, 0);
    pickle_ints(out, t.shape);
    pickle_ints(out, stride);
    out +=
        "\x89"
        "ccollections\nOrderedDict\n)RtR";  // no gradient, no hooks
  }
  return out + "u.";
}

}  // namespace detail

/// One file being written. Holds PATH.partial locked: a second writer gets an error.
class torch_writer {
 public:
  /// Where the bytes of `path` are until they are committed.
  static std::filesystem::path partial_path(std::filesystem::path path) {
    return path += ".partial";
  }

  /// Starts PATH.partial anew and reserves its space.
  /// @param zip64_from values from here on go to ZIP64 fields; below the real limit only in tests
  /// @throws error(io_failed) if another process writes it or the disk has no room
  torch_writer(const std::filesystem::path& path, const torch_plan& plan,
               std::uint64_t zip64_from = detail::zip_see_zip64)
      : path_(path),
        partial_(partial_path(path)),
        plan_(plan),
        zip64_from_(zip64_from),
        folder_(path.stem().string()) {
    // The folder's name is for people; a name that a zip field cannot hold says nothing to them.
    if (folder_.empty() || folder_.size() > 1000) folder_ = "archive";
    lay_out();
    file_ = detail::open_locked(partial_);
    try {
      reserve();
    } catch (...) {
      ::unlink(partial_.c_str());
      throw;
    }
  }
  torch_writer(torch_writer&&) = default;
  torch_writer& operator=(torch_writer&&) = delete;
  ~torch_writer() {
    if (file_.valid()) ::unlink(partial_.c_str());
  }

  /// Puts the next bytes of a tensor behind those it has; a tied tensor has none of its own.
  /// @throws error(not_found) if none of that name is planned, error(invalid_argument) if the bytes
  /// do not fit, error(io_failed) if the system refuses
  void write(const std::string& name, const void* data, std::uint64_t size) {
    const auto it = parts_of_.find(name);
    if (it == parts_of_.end())
      throw error(status::not_found,
                  path_.string() + ": no tensor \"" + name + "\" is planned with bytes of its own");
    part& p = parts_[it->second];
    if (size > p.record.size - p.written)
      throw error(status::invalid_argument, partial_.string() + ": tensor \"" + name + "\" has " +
                                                std::to_string(p.record.size) +
                                                " bytes, asked to write " + std::to_string(size) +
                                                " behind " + std::to_string(p.written));
    put(p, data, size);
  }

  /// Gives the file its name, replacing what was there.
  /// @throws error(invalid_argument) if a tensor has not been written whole
  void commit() {
    std::vector<detail::zip_record> records;
    for (const part& p : parts_) {
      if (p.written < p.record.size)
        throw error(status::invalid_argument, partial_.string() + ": \"" + p.record.name +
                                                  "\": " + std::to_string(p.written) + " of " +
                                                  std::to_string(p.record.size) +
                                                  " bytes written before the commit");
      // Only now, because the header holds the sum of what follows it.
      const std::string header = detail::zip_local_header(p.record, alignment, zip64_from_);
      detail::write_all(file_, partial_, header.data(), header.size(), p.record.header);
      records.push_back(p.record);
    }
    const std::string directory = detail::zip_directory(records, end_, zip64_from_);
    detail::write_all(file_, partial_, directory.data(), directory.size(), end_);
    detail::sync_all(file_, partial_);
    detail::rename_and_sync(partial_, path_);
    file_.close();
  }

 private:
  static constexpr std::uint64_t alignment = 64;

  struct part {
    detail::zip_record record;
    std::uint64_t begin = 0;
    std::uint64_t written = 0;
  };

  std::size_t add_part(const std::string& name, std::uint64_t size) {
    part p;
    p.record = {folder_ + "/" + name, size, 0, end_};
    p.begin = end_ + detail::zip_local_header(p.record, alignment, zip64_from_).size();
    end_ = p.begin + size;
    parts_.push_back(std::move(p));
    return parts_.size() - 1;
  }

  void put(part& p, const void* data, std::uint64_t size) {
    detail::write_all(file_, partial_, data, static_cast<std::size_t>(size), p.begin + p.written);
    p.record.crc = detail::crc32(data, static_cast<std::size_t>(size), p.record.crc);
    p.written += size;
  }

  void lay_out() {
    pickle_ = detail::torch_pickle(plan_);
    add_part("data.pkl", pickle_.size());
    add_part("byteorder", byteorder.size());
    for (std::size_t i = 0; i < plan_.entries().size(); ++i) {
      const torch_plan::entry& e = plan_.entries()[i];
      if (e.storage == i)
        parts_of_.emplace(e.info.name, add_part("data/" + std::to_string(i), e.info.bytes()));
    }
    add_part("version", version.size());
  }

  void reserve() {
    if (::ftruncate(file_.get(), 0) != 0) detail::throw_io(partial_, "empty it", errno);
    int e;
    do {
      e = ::posix_fallocate(file_.get(), 0, static_cast<off_t>(end_));
    } while (e == EINTR);
    if (e != 0) detail::throw_io(partial_, "reserve " + std::to_string(end_) + " bytes", e);
    put(parts_[0], pickle_.data(), pickle_.size());
    put(parts_[1], byteorder.data(), byteorder.size());
    put(parts_.back(), version.data(), version.size());
  }

  static constexpr std::string_view byteorder = "little";
  static constexpr std::string_view version = "3\n";  // of PyTorch's archives

  std::filesystem::path path_, partial_;
  torch_plan plan_;
  std::uint64_t zip64_from_;
  std::string folder_, pickle_;
  std::uint64_t end_ = 0;  // where the next part, at last the directory, begins
  std::vector<part> parts_;
  std::unordered_map<std::string, std::size_t> parts_of_;
  detail::file_descriptor file_;
};

}  // namespace v0_1
}  // namespace bitladder
