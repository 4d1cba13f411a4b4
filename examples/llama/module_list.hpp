// SPDX-License-Identifier: MIT
// Which linears of a layer are quantized, as a user says it: names with commas between, or a JSON
// file with the keys that Any-Precision LLM's yaml files have. Tested by
// tests/llama/module_list_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#include <llama/family.hpp>
#include <llama/json_reader.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <set>
#include <string>
#include <system_error>
#include <vector>

namespace llama {

/// A choice of linears, the same in every layer.
struct module_list {
  std::vector<std::string> names;  ///< "self_attn.q_proj"; empty: all that the family has
  std::string layers;              ///< "model.layers", if the user says where they are
};

/// "self_attn.q_proj,mlp.down_proj", or the path of a file
/// {"module_names": ["self_attn.q_proj", "mlp.down_proj"]}; "model_name" and "layers_name" may
/// stand there too, and all of it in an object "arch_config".
/// @throws bitladder::error naming file and key, or the text, what was expected and what was found
inline module_list read_module_list(const std::string& text) {
  module_list list;
  std::error_code ignored;
  if (std::filesystem::is_regular_file(text, ignored)) {
    const json_reader file = json_reader::open(text);
    const json_reader where = file.has("arch_config") ? file.object("arch_config") : file;
    list.names = where.texts("module_names");
    if (list.names.empty()) where.fail("module_names", "the names of linears");
    if (where.has("model_name") || where.has("layers_name"))
      list.layers = where.text("model_name") + "." + where.text("layers_name");
    return list;
  }
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    list.names.push_back(text.substr(begin, end - begin));
    if (list.names.back().empty() || list.names.back().find('/') != std::string::npos)
      throw bitladder::error(bitladder::status::invalid_argument,
                             "modules: expected names of linears with commas between, or a JSON "
                             "file, found \"" +
                                 text + "\"");
    begin = end + 1;
  }
  return list;
}

/// The linears of a layer that `wanted` names, in the order of the forward pass.
/// @throws bitladder::error naming the first that the family does not have, and what it has
inline std::vector<std::string> chosen_linears(const family& f, const module_list& wanted) {
  if (!wanted.layers.empty() && wanted.layers != f.layers)
    throw bitladder::error(bitladder::status::not_found,
                           "modules: expected layers at \"" + std::string(f.layers) +
                               "\", where a model of type " + std::string(f.model_type) +
                               " has them, found \"" + wanted.layers + "\"");
  std::vector<std::string> names = linear_names(f);
  if (wanted.names.empty()) return names;
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  std::set<std::string> chosen;
  for (const std::string& name : wanted.names) {
    if (std::find(names.begin(), names.end(), name) == names.end())
      throw bitladder::error(bitladder::status::not_found,
                             "modules: expected linears of a model of type " +
                                 std::string(f.model_type) + ", which are " + all + ", found \"" +
                                 name + "\"");
    if (!chosen.insert(name).second)
      throw bitladder::error(bitladder::status::invalid_argument,
                             "modules: expected each linear once, found \"" + name + "\" again");
  }
  names.erase(std::remove_if(names.begin(), names.end(),
                             [&](const std::string& name) { return chosen.count(name) == 0; }),
              names.end());
  return names;
}

}  // namespace llama
