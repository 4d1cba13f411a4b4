// SPDX-License-Identifier: MIT
// The documents of text files, of files with a JSON object on every line, and of folders of both.
// They are found at once and read one by one: of a large collection only what is drawn is read.
// Tested by tests/llama/calibration_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/json.hpp>
#include <bitladder/io/mmap.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace llama {

/// Where texts to draw samples from are.
class calibration_text {
 public:
  /// A *.jsonl file has a document on every line that is not blank; any other file is one document;
  /// of a folder, its *.txt and *.jsonl files count, in the order of their names.
  /// @param field the key of a line's object that holds the text
  /// @throws bitladder::error naming the file, and the line that is no JSON object
  calibration_text(const std::vector<std::filesystem::path>& paths, std::string field)
      : field_(std::move(field)) {
    for (const std::filesystem::path& path : paths) {
      name_ += (name_.empty() ? "" : ", ") + path.string();
      std::error_code ignored;
      if (std::filesystem::is_directory(path, ignored))
        add_folder(path);
      else
        add_file(path);
    }
  }

  /// What errors call it.
  const std::string& name() const { return name_; }
  /// How many documents there are.
  std::size_t size() const { return documents_.size(); }

  /// A document's text.
  /// @throws bitladder::error naming file, and line where it has lines
  std::string operator[](std::size_t i) const {
    const document& d = documents_[i];
    const source& s = sources_[d.source];
    if (d.line == 0) return std::string(bitladder::mapped_file(s.path).text());
    const std::string where = place(s, d.line);
    const nlohmann::json value =
        bitladder::parse_json(s.lines.text().substr(d.begin, d.size), where);
    const auto text = value.find(field_);
    if (text == value.end() || !text->is_string())
      throw bitladder::error(bitladder::status::bad_file,
                             where + ": key \"" + field_ + "\": expected a string, found " +
                                 (text == value.end() ? "nothing" : text->type_name()));
    return text->get<std::string>();
  }

 private:
  struct source {
    std::filesystem::path path;
    bitladder::mapped_file lines;  ///< of a file without lines: nothing, it is mapped when read
  };
  struct document {
    std::size_t source = 0;
    std::uint64_t line = 0;  ///< from 1; 0: the whole file
    std::size_t begin = 0, size = 0;
  };

  static std::string place(const source& s, std::uint64_t line) {
    return s.path.string() + ": line " + std::to_string(line);
  }

  static bool has_lines(const std::filesystem::path& path) { return path.extension() == ".jsonl"; }

  void add_folder(const std::filesystem::path& folder) {
    std::vector<std::filesystem::path> files;
    std::error_code failed;
    for (std::filesystem::directory_iterator i(folder, failed), end; !failed && i != end;
         i.increment(failed))
      if (i->path().extension() == ".txt" || has_lines(i->path())) files.push_back(i->path());
    if (failed)
      throw bitladder::error(bitladder::status::io_failed,
                             folder.string() + ": could not be listed: " + failed.message());
    if (files.empty())
      throw bitladder::error(bitladder::status::not_found,
                             folder.string() + ": expected *.txt or *.jsonl files, found none");
    std::sort(files.begin(), files.end());
    for (const std::filesystem::path& file : files) add_file(file);
  }

  void add_file(const std::filesystem::path& path) {
    bitladder::mapped_file file(path);  // says so if it cannot be read
    if (!has_lines(path)) {
      documents_.push_back({sources_.size(), 0, 0, 0});
      sources_.push_back({path, {}});
      return;
    }
    sources_.push_back({path, std::move(file)});
    add_lines(sources_.size() - 1);
  }

  /// A line is parsed when it is drawn; that it begins and ends as an object does is checked of
  /// all, since a file of another kind or one that was cut short should not depend on luck.
  void add_lines(std::size_t index) {
    const source& s = sources_[index];
    const std::string_view text = s.lines.text();
    constexpr std::string_view blank = " \t\r";
    std::uint64_t number = 0;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      const std::string_view line = text.substr(begin, end - begin);
      ++number;
      const std::size_t first = line.find_first_not_of(blank);
      if (first != std::string_view::npos) {
        const std::size_t last = line.find_last_not_of(blank);
        if (line[first] != '{' || line[last] != '}')
          throw bitladder::error(bitladder::status::bad_file,
                                 place(s, number) + ": expected a JSON object, found " +
                                     quoted(line.substr(first, last + 1 - first)));
        documents_.push_back({index, number, begin + first, last + 1 - first});
      }
      begin = end + 1;
    }
  }

  /// The ends of a line, with nothing in it that could upset a terminal.
  static std::string quoted(std::string_view line) {
    constexpr std::size_t most = 30;
    std::string text(line.size() <= 2 * most ? std::string(line)
                                             : std::string(line.substr(0, most)) + "..." +
                                                   std::string(line.substr(line.size() - most)));
    for (char& c : text)
      if (c < ' ' || c == '\x7f') c = '?';
    return '"' + text + '"';
  }

  std::string name_, field_;
  std::vector<source> sources_;
  std::vector<document> documents_;
};

}  // namespace llama
