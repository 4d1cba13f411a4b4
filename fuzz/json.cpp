// SPDX-License-Identifier: MIT
// JSON files of a model under libFuzzer: any bytes as config.json, as generation_config.json and as
// the index of shards either read or throw bitladder::error. Start from fuzz/corpus/json.
#include <bitladder/io/anyprec_checkpoint.hpp>
#include <bitladder/io/json.hpp>
#include <bitladder/io/safetensors_set.hpp>

#include "input.hpp"
#include <llama/config.hpp>
#include <llama/config_json.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace bl = bitladder;

namespace {

/// A file of two tensors, "a" and "b", of one byte each.
std::string shard() {
  const std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})";
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size());
  return file + header + "xy";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::folder model;
  const std::string_view text = fuzz::text_of(data, size);
  fuzz::attempt([&] {
    const nlohmann::json value = bl::parse_json(text, "fuzz");
    fuzz::attempt([&] { static_cast<void>(bl::to_json_text(value)); });
  });
  model.write("config.json", text);
  model.write("model.safetensors.index.json", text);
  model.write("s", shard());
  fuzz::attempt([&] {
    const llama::config c = llama::load_config(model.path());
    model.write("config.json", llama::config_json(c));
    const llama::config again = llama::load_config(model.path());
    fuzz::require(again.hidden == c.hidden && again.rope.theta == c.rope.theta);
    model.write("generation_config.json", text);
    fuzz::attempt([&] { static_cast<void>(llama::load_config(model.path())); });
    std::filesystem::remove(model.path() / "generation_config.json");
  });
  fuzz::attempt([&] {
    const bl::safetensors_set set(model.path());
    for (const bl::tensor_info& t : set.tensors()) static_cast<void>(set.bytes(t));
  });
  fuzz::attempt([&] { static_cast<void>(bl::anyprec_checkpoint::is_anyprec(model.path())); });
  return 0;
}
