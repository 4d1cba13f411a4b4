// SPDX-License-Identifier: MIT
// The files beside a model's tensors that are copied wherever it goes. Tested by
// tests/llama/foreign_test.cpp.
#pragma once

#include <filesystem>
#include <system_error>
#include <vector>

namespace llama {

/// Those of them that `folder` has: tokenizer, generation settings, license.
inline std::vector<std::filesystem::path> companion_files(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja",
        "generation_config.json", "LICENSE", "LICENSE.txt"}) {
    std::error_code ignored;
    if (std::filesystem::is_regular_file(folder / name, ignored)) files.push_back(folder / name);
  }
  return files;
}

}  // namespace llama
