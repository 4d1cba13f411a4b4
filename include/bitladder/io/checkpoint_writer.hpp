// SPDX-License-Identifier: MIT
// Writes a checkpoint one linear at a time, so that no more than that is in memory, and survives
// being killed: work goes to OUT.partial, OUT.partial.journal lists what is on disk, and a writer
// made again with the same plan and fingerprint goes on from there. OUT itself appears by one
// rename, complete, with the same bytes however often the work was interrupted.
// Tested by tests/io/checkpoint_writer_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/atomic_file.hpp>
#include <bitladder/io/checkpoint_format.hpp>
#include <bitladder/io/checksum.hpp>
#include <bitladder/io/journal.hpp>
#include <bitladder/io/json.hpp>
#include <bitladder/io/mmap.hpp>
#include <bitladder/io/safetensors_writer.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

struct checkpoint_writer_options {
  /// Replace a checkpoint of the same name at the end, and throw away unfinished work under that
  /// name that was begun from something else. Unfinished work of the same fingerprint is resumed
  /// all the same.
  bool overwrite = false;
};

/// One checkpoint being written; a second writer of the same destination gets an error. Without
/// `finish` the work stays, to be resumed. Not for several threads at once.
class checkpoint_writer {
 public:
  /// Begins OUT.partial, or goes on with it. Folders above OUT are made.
  /// @param destination OUT, the checkpoint's folder
  /// @param fingerprint names source and options: whatever changes the bytes must change it
  /// @throws error(invalid_argument) for a plan that makes no checkpoint; error(io_failed) if OUT
  /// is there, the unfinished work is another's, another process writes it, or the disk has no room
  checkpoint_writer(const std::filesystem::path& destination, checkpoint_plan plan,
                    const std::string& fingerprint, checkpoint_writer_options options = {})
      : plan_(std::move(plan)),
        file_plan_(detail::file_plan(plan_)),
        options_(options),
        final_(without_trailing_slash(destination)),
        partial_(with_suffix(final_, ".partial")),
        model_(partial_ / "model.safetensors") {
    for (const checkpoint_plan::linear& l : plan_.linears) {
      std::vector<std::string>& tensors = parts_[l.name];
      tensors.push_back(detail::qweight_name(l.name));
      for (int b = plan_.min_bits; b <= plan_.max_bits; ++b)
        tensors.push_back(detail::lut_name(l.name, b));
      if (l.outliers > 0) {
        const detail::outlier_names names(l.name);
        tensors.insert(tensors.end(), {names.offsets, names.columns, names.values});
      }
    }
    for (const checkpoint_plan::tensor& t : plan_.tensors)
      if (!parts_.emplace(t.name, std::vector<std::string>{t.name}).second)
        throw error(status::invalid_argument,
                    "checkpoint: \"" + t.name + "\" is a linear and a tensor");
    require_replaceable();
    make_folders(detail::folder_of(final_));
    journal_.emplace(with_suffix(partial_, ".journal"));
    const std::string header = file_plan_.header();
    begin(nlohmann::json{{"fingerprint", fingerprint},
                         {"plan", std::to_string(checksum(header.data(), header.size()))}});
  }

  /// Whether a linear or tensor is written, now or by a run before this one.
  bool done(const std::string& name) const { return done_.count(name) != 0; }
  /// How many linears and tensors are written, and how many there are.
  std::size_t parts_done() const { return done_.size(); }
  std::size_t parts() const { return parts_.size(); }

  /// Returns when the linear is on disk and in the journal.
  /// @param outliers as many as planned, all of a row and column group with one code in the planes
  /// @throws error(shape_mismatch) unless sizes and precisions are the plan's, error(bad_file) for
  /// tables that are not finite and ascending, padding bits that are set or unsound outliers,
  /// error(io_failed)
  void write_linear(const std::string& name, bitplane_view planes, const codebook_ladder& tables,
                    sparse_view outliers = {}) {
    const checkpoint_plan::linear& planned = plan_of(name);
    const bitplane_layout expected{planned.rows, planned.cols, plan_.max_bits};
    if (!(planes.layout() == expected) || tables.rows() != expected.rows ||
        tables.groups() != plan_.groups || tables.min_bits() != plan_.min_bits ||
        tables.max_bits() != plan_.max_bits)
      throw error(
          status::shape_mismatch,
          "linear \"" + name + "\": expected " +
              describe(expected, expected.rows, plan_.groups, plan_.min_bits, plan_.max_bits) +
              ", found " +
              describe(planes.layout(), tables.rows(), tables.groups(), tables.min_bits(),
                       tables.max_bits()));
    require_outliers(planned, outliers, planes);
    detail::require_clear_padding(planes, "linear \"" + name + "\"");
    for (int b = plan_.min_bits; b <= plan_.max_bits; ++b)
      detail::require_sound_tables(tables[b],
                                   "linear \"" + name + "\", " + std::to_string(b) + " bits");
    std::uint64_t sum = put(detail::qweight_name(name), planes.data(),
                            expected.total_words() * sizeof(std::uint32_t), 0);
    for (int b = plan_.min_bits; b <= plan_.max_bits; ++b)
      sum =
          put(detail::lut_name(name, b), tables[b].data(), tables[b].size() * sizeof(fp16_t), sum);
    if (planned.outliers > 0) {
      const detail::outlier_names names(name);
      const std::size_t count = static_cast<std::size_t>(planned.outliers);
      sum = put(names.offsets, outliers.offsets(),
                (static_cast<std::size_t>(planned.rows) + 1) * sizeof(std::int32_t), sum);
      sum = put(names.columns, outliers.columns(), count * sizeof(std::int32_t), sum);
      sum = put(names.values, outliers.values(), count * sizeof(fp16_t), sum);
    }
    mark_done(name, sum);
  }

  /// Returns when the tensor is on disk and in the journal.
  /// @param size must be the planned tensor's
  void write_tensor(const std::string& name, const void* data, std::size_t size) {
    const tensor_info& t = file_->at(name);
    if (parts_.count(name) == 0)
      throw error(status::invalid_argument, "\"" + name + "\" is part of a linear");
    if (size != t.bytes())
      throw error(status::shape_mismatch, "tensor \"" + name + "\": expected " +
                                              std::to_string(t.bytes()) + " bytes for " +
                                              to_string(t.type) + " " + to_string(t.shape) +
                                              ", found " + std::to_string(size));
    mark_done(name, put(name, data, size, 0));
  }

  /// Completes the folder and gives it its name. The writer is not to be used after that.
  /// @param config the original config.json; gains a "bitladder" object
  /// @param files copied beside it under their own names (tokenizer.json and so on)
  /// @throws error(invalid_argument) if something is not written yet; the work stays
  void finish(std::string_view config, const std::vector<std::filesystem::path>& files = {}) {
    for (const auto& part : parts_)
      if (!done(part.first))
        throw error(status::invalid_argument,
                    partial_.string() + ": " + std::to_string(parts() - parts_done()) + " of " +
                        std::to_string(parts()) + " parts are not written yet, among them \"" +
                        part.first + "\"");
    nlohmann::ordered_json merged = parse_json<nlohmann::ordered_json>(config, "config.json");
    if (!merged.is_object()) throw error(status::bad_file, "config.json: expected an object");
    merged["bitladder"] = detail::config_entry(plan_);
    std::set<std::filesystem::path> names = {"model.safetensors", "config.json"};
    for (const std::filesystem::path& file : files)
      if (!names.insert(file.filename()).second)
        throw error(status::invalid_argument, file.string() + ": the checkpoint has a file " +
                                                  file.filename().string() + " already");

    file_->commit();
    write_file_atomically(partial_ / "config.json", to_json_text(merged, 2) + "\n");
    for (const std::filesystem::path& file : files)
      copy_file_atomically(file, partial_ / file.filename());
    try {
      // What an earlier, interrupted finish left behind.
      for (const auto& entry : std::filesystem::directory_iterator(partial_))
        if (names.count(entry.path().filename()) == 0) std::filesystem::remove_all(entry.path());
      detail::sync_folder(partial_);
      publish();
    } catch (const std::filesystem::filesystem_error& e) {
      throw error(status::io_failed, e.what());
    }
  }

 private:
  static std::filesystem::path without_trailing_slash(std::filesystem::path path) {
    if (!path.has_filename()) path = path.parent_path();
    if (!path.has_filename() || path.filename() == "." || path.filename() == "..")
      throw error(status::invalid_argument,
                  "\"" + path.string() + "\": expected a name for the checkpoint's folder");
    return path;
  }

  static std::filesystem::path with_suffix(std::filesystem::path path, const char* suffix) {
    return path += suffix;
  }

  static void make_folders(const std::filesystem::path& path) {
    std::error_code e;
    std::filesystem::create_directories(path, e);
    if (e) detail::throw_io(path, "create this folder", e.value());
  }

  static std::string describe(const bitplane_layout& l, int table_rows, int groups, int min_bits,
                              int max_bits) {
    return std::to_string(l.rows) + " x " + std::to_string(l.cols) + " in " +
           std::to_string(l.planes) + " planes with tables of " + std::to_string(table_rows) +
           " rows, " + std::to_string(groups) + " groups, " + std::to_string(min_bits) + " to " +
           std::to_string(max_bits) + " bits";
  }

  const checkpoint_plan::linear& plan_of(const std::string& name) const {
    for (const checkpoint_plan::linear& l : plan_.linears)
      if (l.name == name) return l;
    throw error(status::not_found, "linear \"" + name + "\" is not in the checkpoint's plan");
  }

  void require_outliers(const checkpoint_plan::linear& l, const sparse_view& outliers,
                        bitplane_view planes) const {
    if (l.outliers == 0 && outliers.empty()) return;
    const std::string where = "linear \"" + l.name + "\"";
    if (outliers.count() != l.outliers || outliers.rows() != l.rows || outliers.cols() != l.cols)
      throw error(status::shape_mismatch,
                  where + ": expected " + std::to_string(l.outliers) + " outliers of " +
                      std::to_string(l.rows) + " x " + std::to_string(l.cols) + ", found " +
                      std::to_string(outliers.count()) + " of " + std::to_string(outliers.rows()) +
                      " x " + std::to_string(outliers.cols()));
    detail::require_sound_outliers(outliers, l.outliers, where + ", outliers");
    detail::require_shared_codes(outliers, planes, plan_.groups, where + ", outliers");
  }

  /// Only a checkpoint or an empty folder, and only if the caller said so.
  void require_replaceable() const {
    std::error_code ignored;
    if (!std::filesystem::exists(final_, ignored)) return;
    if (!options_.overwrite)
      throw error(status::io_failed,
                  final_.string() + ": is there already; choose another name or allow overwriting");
    if (!std::filesystem::is_directory(final_, ignored) ||
        (!std::filesystem::is_empty(final_, ignored) &&
         !std::filesystem::exists(final_ / "model.safetensors", ignored)))
      throw error(status::io_failed,
                  final_.string() + ": is there and holds no model, so it is not replaced");
  }

  void begin(const nlohmann::json& job) {
    const std::string text = to_json_text(job);
    std::error_code ignored;
    if (journal_->started() && journal_->job() == text) {
      if (resume()) return;
    } else if (!options_.overwrite) {
      if (journal_->started())
        throw error(status::io_failed,
                    partial_.string() +
                        ": holds unfinished work from another model or with other options; go on "
                        "with those, or allow overwriting to start over (found " +
                        journal_->job() + ", expected " + text + ")");
      if (std::filesystem::exists(partial_, ignored) &&
          !std::filesystem::is_empty(partial_, ignored)) {
        journal_->remove();
        throw error(status::io_failed,
                    partial_.string() +
                        ": is there without a journal, so it cannot be resumed; move it away, or "
                        "allow overwriting");
      }
    }
    // The journal first: whatever is in the folder from here on is known to be ours.
    journal_->start(text);
    try {
      std::filesystem::remove_all(partial_, ignored);
      make_folders(partial_);
      file_.emplace(safetensors_writer::create(model_, file_plan_, leftover::keep));
    } catch (...) {  // nothing was done yet, so leave nothing behind
      file_.reset();
      std::filesystem::remove_all(partial_, ignored);
      journal_->remove();
      throw;
    }
  }

  /// @return false if the file is not there or not as it was planned, so that all is to be redone
  bool resume() {
    const std::filesystem::path being_written = safetensors_writer::partial_path(model_);
    std::error_code ignored;
    if (std::filesystem::exists(model_, ignored))  // killed inside finish, behind its commit
      detail::rename_and_sync(model_, being_written);
    try {
      file_.emplace(safetensors_writer::resume(model_, file_plan_));
    } catch (const error& e) {
      if (e.code() != status::not_found && e.code() != status::bad_file) throw;
      return false;
    }
    const mapped_file bytes(being_written);
    for (const auto& [name, sum] : journal_->parts()) {
      const auto part = parts_.find(name);
      if (part == parts_.end()) continue;
      std::uint64_t found = 0;
      for (const std::string& tensor : part->second) {
        const tensor_info& t = file_->at(tensor);
        const std::size_t begin = static_cast<std::size_t>(file_->data_offset() + t.begin);
        bytes.advise(access::will_need, begin, static_cast<std::size_t>(t.bytes()));
        found = checksum(bytes.data() + begin, static_cast<std::size_t>(t.bytes()), found);
      }
      if (found != sum) continue;  // lost in a power cut, or damaged since: to be redone
      for (const std::string& tensor : part->second) file_->assume_written(tensor);
      done_.insert(name);
    }
    return true;
  }

  std::uint64_t put(const std::string& tensor, const void* data, std::size_t size,
                    std::uint64_t sum) {
    file_->write(tensor, data, size);
    return checksum(data, size, sum);
  }

  void mark_done(const std::string& name, std::uint64_t sum) {
    file_->sync();
    journal_->add(name, sum);
    done_.insert(name);
  }

  void publish() {
    require_replaceable();
    std::error_code ignored;
    if (!std::filesystem::exists(final_, ignored)) {
      detail::rename_and_sync(partial_, final_);
      journal_->remove();
      return;
    }
    // Old and new change names in one step where the file system can, else there is a moment with
    // neither, from which the complete OUT.partial is resumed.
#ifdef RENAME_EXCHANGE
    if (::renameat2(AT_FDCWD, partial_.c_str(), AT_FDCWD, final_.c_str(), RENAME_EXCHANGE) == 0) {
      detail::sync_folder(detail::folder_of(final_));
      journal_->remove();
      std::filesystem::remove_all(partial_);
      return;
    }
    if (errno != EINVAL && errno != ENOSYS)
      detail::throw_io(partial_, "change names with " + final_.string(), errno);
#endif
    std::filesystem::remove_all(final_);
    detail::rename_and_sync(partial_, final_);
    journal_->remove();
  }

  checkpoint_plan plan_;
  safetensors_plan file_plan_;
  checkpoint_writer_options options_;
  std::filesystem::path final_, partial_, model_;
  std::map<std::string, std::vector<std::string>> parts_;  // linear or tensor -> its tensors
  std::set<std::string> done_;
  std::optional<journal> journal_;
  std::optional<safetensors_writer> file_;
};

}  // namespace v0_1
}  // namespace bitladder
