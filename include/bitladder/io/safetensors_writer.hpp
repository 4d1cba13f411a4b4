// SPDX-License-Identifier: MIT
// Writes a planned safetensors file of any size with tensors in any order: the header goes first,
// all space is reserved at once, so that a full disk is an error before any work is lost, and the
// final name appears only when everything is on disk. Until then the bytes are in PATH.partial.
// Tested by tests/io/safetensors_writer_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/detail/posix.hpp>
#include <bitladder/io/safetensors_plan.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// What becomes of PATH.partial when a writer goes without a commit.
enum class leftover {
  remove,
  keep,  ///< to be resumed
};

/// One file being written. Holds PATH.partial locked: a second writer gets an error.
class safetensors_writer {
 public:
  /// Where the bytes of `path` are until they are committed.
  static std::filesystem::path partial_path(std::filesystem::path path) {
    return path += ".partial";
  }

  /// Starts PATH.partial anew.
  /// @throws error(io_failed) if another process writes it or the disk has no room
  static safetensors_writer create(const std::filesystem::path& path, const safetensors_plan& plan,
                                   leftover rest = leftover::remove) {
    safetensors_writer w(path, plan);
    w.rest_ = rest;
    w.reserve();
    return w;
  }

  /// Goes on with a PATH.partial that was kept; what it holds counts as written only after
  /// `assume_written`.
  /// @throws error(not_found) if there is none, error(bad_file) if its header or size are not the
  /// plan's; the file is left as it is
  static safetensors_writer resume(const std::filesystem::path& path,
                                   const safetensors_plan& plan) {
    std::error_code ignored;
    if (!std::filesystem::exists(partial_path(path), ignored))
      throw error(status::not_found, partial_path(path).string() + ": nothing there to resume");
    safetensors_writer w(path, plan);
    w.rest_ = leftover::keep;
    w.require_same_plan();
    return w;
  }

  safetensors_writer(safetensors_writer&&) = default;
  safetensors_writer& operator=(safetensors_writer&&) = delete;
  ~safetensors_writer() {
    if (file_.valid() && rest_ == leftover::remove) ::unlink(partial_.c_str());
  }

  /// In the order of the file's bytes.
  const std::vector<tensor_info>& tensors() const { return tensors_; }
  /// Where the first tensor begins.
  std::uint64_t data_offset() const { return header_.size(); }

  /// @throws error(not_found) if the plan has no such tensor
  const tensor_info& at(const std::string& name) const { return tensors_[index(name)]; }

  /// Puts bytes into a tensor, `offset` bytes from its start; calls may come in any order.
  /// @throws error(invalid_argument) if they do not fit, error(io_failed) if the system refuses
  void write(const std::string& name, const void* data, std::uint64_t size,
             std::uint64_t offset = 0) {
    const std::size_t i = index(name);
    const std::uint64_t room = tensors_[i].bytes();
    if (offset > room || size > room - offset)
      throw error(status::invalid_argument, partial_.string() + ": tensor \"" + name + "\" has " +
                                                std::to_string(room) + " bytes, asked to write " +
                                                std::to_string(size) + " at " +
                                                std::to_string(offset));
    detail::write_all(file_, partial_, data, static_cast<std::size_t>(size),
                      data_offset() + tensors_[i].begin + offset);
    written_[i] += size;
  }

  /// Counts a tensor as written, after its bytes in a resumed file were found right.
  void assume_written(const std::string& name) {
    const std::size_t i = index(name);
    written_[i] = tensors_[i].bytes();
  }

  /// Writes the header anew, with the metadata of another plan: for what is known only when the
  /// tensors are written.
  /// @throws error(invalid_argument) unless its tensors are the same and its header has the same
  /// number of bytes
  void rewrite_header(const safetensors_plan& plan) {
    const std::string header = plan.header();
    const std::vector<tensor_info> tensors = plan.layout();
    bool same = header.size() == header_.size() && tensors.size() == tensors_.size();
    for (std::size_t i = 0; same && i < tensors.size(); ++i)
      same = tensors[i].name == tensors_[i].name && tensors[i].type == tensors_[i].type &&
             tensors[i].shape == tensors_[i].shape;
    if (!same)
      throw error(status::invalid_argument,
                  partial_.string() + ": expected a header of the same tensors and " +
                      std::to_string(header_.size()) + " bytes, found one of " +
                      std::to_string(header.size()) + " bytes");
    detail::write_all(file_, partial_, header.data(), header.size(), 0);
    header_ = header;
  }

  /// Returns when all bytes so far are on disk.
  void sync() { detail::sync_data(file_, partial_); }

  /// Gives the file its name, replacing what was there.
  /// @throws error(invalid_argument) if a tensor has not been written whole
  void commit() {
    for (std::size_t i = 0; i < tensors_.size(); ++i)
      if (written_[i] < tensors_[i].bytes())
        throw error(status::invalid_argument, partial_.string() + ": tensor \"" + tensors_[i].name +
                                                  "\": " + std::to_string(written_[i]) + " of " +
                                                  std::to_string(tensors_[i].bytes()) +
                                                  " bytes written before the commit");
    detail::sync_all(file_, partial_);
    detail::rename_and_sync(partial_, path_);
    file_.close();
  }

 private:
  safetensors_writer(const std::filesystem::path& path, const safetensors_plan& plan)
      : path_(path),
        partial_(partial_path(path)),
        header_(plan.header()),
        tensors_(plan.layout()),
        written_(tensors_.size()),
        total_(header_.size() + plan.data_size()),
        file_(detail::open_locked(partial_)) {
    for (std::size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
  }

  void reserve() {
    if (::ftruncate(file_.get(), 0) != 0) detail::throw_io(partial_, "empty it", errno);
    int e;
    do {
      e = ::posix_fallocate(file_.get(), 0, static_cast<off_t>(total_));
    } while (e == EINTR);
    if (e != 0) detail::throw_io(partial_, "reserve " + std::to_string(total_) + " bytes", e);
    detail::write_all(file_, partial_, header_.data(), header_.size(), 0);
    detail::sync_all(file_, partial_);
  }

  void require_same_plan() const {
    const std::uint64_t size = static_cast<std::uint64_t>(detail::stat_of(file_, partial_).st_size);
    std::string found(header_.size(), '\0');
    found.resize(detail::read_some(file_, partial_, found.data(), found.size(), 0));
    if (found != header_)
      throw error(status::bad_file, partial_.string() +
                                        ": cannot be resumed: its header lists other tensors, "
                                        "shapes or metadata than are to be written now");
    if (size != total_)
      throw error(status::bad_file, partial_.string() + ": cannot be resumed: expected " +
                                        std::to_string(total_) + " bytes, found " +
                                        std::to_string(size));
  }

  std::size_t index(const std::string& name) const {
    const auto it = index_.find(name);
    if (it == index_.end())
      throw error(status::not_found, path_.string() + ": no tensor \"" + name + "\" is planned; " +
                                         detail::closest_names(name, tensors_));
    return it->second;
  }

  std::filesystem::path path_, partial_;
  std::string header_;
  std::vector<tensor_info> tensors_;
  std::vector<std::uint64_t> written_;  // bytes, per tensor
  std::uint64_t total_;
  leftover rest_ = leftover::keep;
  std::unordered_map<std::string, std::size_t> index_;
  detail::file_descriptor file_;
};

}  // namespace v0_1
}  // namespace bitladder
