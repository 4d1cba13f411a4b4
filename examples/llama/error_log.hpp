// SPDX-License-Identifier: MIT
// The weighted errors of quantized linears, kept beside unfinished work so that a resumed run
// reports all of them: a line of JSON per linear, appended before the linear itself is recorded as
// done; a torn last line is ignored. Tested by tests/llama/quantize_model_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/atomic_file.hpp>

#include <nlohmann/json.hpp>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace llama {

/// One linear's weighted squared error at each precision, relative to its weighted variance.
struct linear_errors {
  std::string name;
  int rows = 0, cols = 0;
  std::map<int, double> relative_error;  ///< by bits
};

/// The errors of one checkpoint in the making.
class error_log {
 public:
  /// @param out the checkpoint's folder; the log is in `out`.report until remove()
  /// @param resume keep what an earlier run wrote
  error_log(std::filesystem::path out, bool resume) {
    if (!out.has_filename()) out = out.parent_path();
    folder_ = out += ".report";
    if (!resume) std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    std::ifstream in(folder_ / "errors.jsonl");
    for (std::string line; std::getline(in, line);) {
      const nlohmann::json entry = nlohmann::json::parse(line, nullptr, false);
      if (entry.is_discarded()) continue;
      linear_errors e;
      e.name = entry.at("name");
      e.rows = entry.at("rows");
      e.cols = entry.at("cols");
      for (const auto& [bits, value] : entry.at("relative_error").items())
        e.relative_error[std::stoi(bits)] = value;
      entries_[e.name] = std::move(e);
    }
    in.close();
    append_.open(folder_ / "errors.jsonl", std::ios::app);
    append_ << '\n';  // ends a torn line
    require(append_.flush().good());
  }

  bool has(const std::string& name) const { return entries_.count(name) != 0; }

  void add(linear_errors e) {
    append_ << as_json(e).dump() << '\n';
    require(append_.flush().good());
    entries_[e.name] = std::move(e);
  }

  /// The errors of `names`, in their order; each must be there.
  std::vector<linear_errors> ordered(const std::vector<std::string>& names) const {
    std::vector<linear_errors> all;
    for (const std::string& name : names) all.push_back(entries_.at(name));
    return all;
  }

  /// @return the path of quantization.json, to be copied into the checkpoint
  std::filesystem::path write_report(const std::vector<linear_errors>& errors) const {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const linear_errors& e : errors) list.push_back(as_json(e));
    return write_beside("quantization.json", list.dump(1) + "\n");
  }

  /// @return the path of a text that is to be copied into the checkpoint under `name`
  std::filesystem::path write_beside(const char* name, const std::string& text) const {
    const std::filesystem::path path = folder_ / name;
    bitladder::write_file_atomically(path, text);
    return path;
  }

  void remove() {
    append_.close();
    std::filesystem::remove_all(folder_);
  }

 private:
  static nlohmann::ordered_json as_json(const linear_errors& e) {
    nlohmann::ordered_json errors = nlohmann::ordered_json::object();
    for (const auto& [bits, value] : e.relative_error) errors[std::to_string(bits)] = value;
    return {{"name", e.name}, {"rows", e.rows}, {"cols", e.cols}, {"relative_error", errors}};
  }

  void require(bool good) const {
    if (!good)
      throw bitladder::error(bitladder::status::io_failed,
                             (folder_ / "errors.jsonl").string() + ": cannot be written");
  }

  std::filesystem::path folder_;
  std::ofstream append_;
  std::map<std::string, linear_errors> entries_;
};

}  // namespace llama
