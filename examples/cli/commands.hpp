// SPDX-License-Identifier: MIT
// The subcommands of the tool, one file each; and what several of them share.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/atomic_file.hpp>

#include <CLI/CLI.hpp>
#include <cli/table.hpp>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace cli {

void add_quantize(CLI::App& app);
void add_sensitivity(CLI::App& app);
void add_refit(CLI::App& app);
void add_import(CLI::App& app);
void add_export(CLI::App& app);
void add_inspect(CLI::App& app);
void add_generate(CLI::App& app);
void add_perplexity(CLI::App& app);
void add_demo(CLI::App& app);

/// Text of a file, whole.
inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in)
    throw bitladder::error(bitladder::status::io_failed,
                           path.string() + ": cannot be opened for reading");
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// Writes rows as a JSON list, if a file was asked for.
inline void write_rows(const std::string& file, const std::vector<row>& rows) {
  if (!file.empty()) bitladder::write_file_atomically(file, row(rows).dump(1) + "\n");
}

}  // namespace cli
