// SPDX-License-Identifier: MIT
// A list on disk of the parts of a long job that are done, so that a killed job can go on. One JSON
// object per line; the first names the job. A line is added only after its part is on disk, and a
// last line that was cut short is dropped. Tested by tests/io/journal_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/detail/posix.hpp>
#include <bitladder/io/json.hpp>

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

namespace bitladder {
inline namespace v0_1 {

/// Holds its file locked: a second process gets an error.
class journal {
 public:
  /// Opens or creates the file.
  /// @throws error(io_failed) if another process holds it, error(bad_file) if it is something else
  explicit journal(const std::filesystem::path& path)
      : path_(path), file_(detail::open_locked(path)) {
    std::string text(static_cast<std::size_t>(detail::stat_of(file_, path_).st_size), '\0');
    text.resize(detail::read_some(file_, path_, text.data(), text.size(), 0));
    std::string_view rest = text;
    while (true) {
      const std::size_t length = rest.find('\n');
      if (length == std::string_view::npos || !take_line(rest.substr(0, length))) break;
      end_ += length + 1;
      rest.remove_prefix(length + 1);
    }
    if (end_ < text.size() && end_ > 0) cut(end_);
  }

  /// Whether it names a job.
  bool started() const { return end_ > 0; }
  /// The job, as given to `start`.
  const std::string& job() const { return job_; }
  /// Parts that are done, with the checksum of their bytes.
  const std::map<std::string, std::uint64_t>& parts() const { return parts_; }

  /// Forgets everything and names a new job.
  void start(const std::string& job) {
    cut(0);
    parts_.clear();
    append({{"journal", version}, {"job", job}});
    job_ = job;
    detail::sync_all(file_, path_);
    detail::sync_folder(detail::folder_of(path_));
  }

  /// To be called when the part's bytes are on disk.
  void add(const std::string& part, std::uint64_t sum) {
    char hex[16];
    const std::to_chars_result r = std::to_chars(hex, hex + sizeof hex, sum, 16);
    append({{"done", part}, {"checksum", std::string(hex, r.ptr)}});
    parts_[part] = sum;
  }

  /// Deletes the file; the journal is not to be used any more.
  void remove() {
    ::unlink(path_.c_str());
    file_.close();
  }

 private:
  static constexpr int version = 1;

  bool take_line(std::string_view line) {
    nlohmann::json value;
    try {
      value = parse_json(line, path_.string());
    } catch (const error&) {
      if (end_ == 0) throw_foreign();
      return false;
    }
    const auto text = [&value](const char* key) {
      return value.is_object() && value.contains(key) && value[key].is_string()
                 ? value[key].get_ref<const std::string&>()
                 : std::string();
    };
    if (end_ == 0) {
      if (!value.is_object() || value.value("journal", nlohmann::json()) != version)
        throw_foreign();
      job_ = text("job");
      return true;
    }
    const std::string hex = text("checksum");
    std::uint64_t sum = 0;
    const std::from_chars_result r = std::from_chars(hex.data(), hex.data() + hex.size(), sum, 16);
    if (hex.empty() || r.ec != std::errc() || r.ptr != hex.data() + hex.size()) return false;
    parts_[text("done")] = sum;
    return true;
  }

  [[noreturn]] void throw_foreign() const {
    throw error(status::bad_file, path_.string() +
                                      ": expected a journal of unfinished work (version " +
                                      std::to_string(version) + "), found something else");
  }

  void append(const nlohmann::json& value) {
    const std::string line = to_json_text(value) + "\n";
    detail::write_all(file_, path_, line.data(), line.size(), end_);
    end_ += line.size();
  }

  void cut(std::uint64_t size) {
    if (::ftruncate(file_.get(), static_cast<off_t>(size)) != 0)
      detail::throw_io(path_, "shorten", errno);
    end_ = size;
  }

  std::filesystem::path path_;
  detail::file_descriptor file_;
  std::uint64_t end_ = 0;  // of the last whole line
  std::string job_;
  std::map<std::string, std::uint64_t> parts_;
};

}  // namespace v0_1
}  // namespace bitladder
