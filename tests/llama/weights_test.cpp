// SPDX-License-Identifier: MIT
// Seed: 31.
#include <bitladder/io/safetensors_set.hpp>

#include "model_folder.hpp"
#include <llama/model.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>

namespace {

using support::stored_model;
using support::stored_tensor;

stored_model golden(const char* name) { return stored_model::read(support::golden_folder(name)); }

/// What loading `m` complains about, after the folder's name.
std::string complaint(const stored_model& m) {
  const support::temporary_folder folder;
  m.write(folder.path());
  try {
    llama::load(folder.path());
  } catch (const bitladder::error& e) {
    const std::string text = e.what(), prefix = folder.path().string();
    CHECK(text.substr(0, prefix.size()) == prefix);
    return text.substr(prefix.size());
  }
  return "";
}

const std::string up = "model.layers.1.mlp.up_proj.weight";

}  // namespace

TEST_CASE("weights stay in the file's type, as views") {
  const llama::model m = llama::load(support::golden_folder("linear_bias_bf16"));
  const llama::host_weights& w = m.weights();
  CHECK(w.layers.size() == 2);
  CHECK(w.layers[1].up.dense.type == bitladder::dtype::bf16);
  CHECK(w.layers[1].up.rows == 68);
  CHECK(w.layers[1].up.cols == 40);
  CHECK(w.layers[1].up.bias.size() == 68);
  CHECK(w.layers[0].query.bias.size() == 40);
  CHECK(!w.head.quantized());
  CHECK(w.head.dense.data != w.embedding.data);
  CHECK(!m.quantized());
  const llama::model tied = llama::load(support::golden_folder("gqa_tied_f32"));
  CHECK(tied.weights().head.dense.data == tied.weights().embedding.data);
}

TEST_CASE("a missing tensor is named") {
  for (const char* name :
       {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
        "model.layers.0.input_layernorm.weight", "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.down_proj.weight"}) {
    stored_model m = golden("mha_untied_f16");
    m.tensors.erase(name);
    CHECK(complaint(m).find(std::string(": no tensor \"") + name + "\"") == 0);
  }
  stored_model m = golden("linear_bias_bf16");
  m.tensors.erase("model.layers.0.self_attn.o_proj.bias");
  CHECK(complaint(m).find("self_attn.o_proj.bias") != std::string::npos);
}

TEST_CASE("more layers than the file has are missing tensors, however many") {
  stored_model m = golden("mha_untied_f16");
  m.config["num_hidden_layers"] = 2147483647;
  CHECK(complaint(m).find(": no tensor \"model.layers.2.") == 0);
}

TEST_CASE("a tensor of another shape or type is refused with both") {
  stored_model m = golden("mha_untied_f16");
  m.tensors[up].shape = {40, 60};
  CHECK(complaint(m) == ": tensor \"" + up + "\": expected shape [60, 40], found [40, 60]");
  m.tensors[up].shape = {2400};
  CHECK(complaint(m).find("found [2400]") != std::string::npos);
  m = golden("mha_untied_f16");
  m.tensors[up].type = bitladder::dtype::i16;
  CHECK(complaint(m) == ": tensor \"" + up + "\": expected F32, F16 or BF16, found I16");
  m = golden("mha_untied_f16");
  m.config["hidden_size"] = 44;
  m.config["head_dim"] = 10;
  CHECK(complaint(m).find("expected shape [72, 44], found [72, 40]") != std::string::npos);
}

TEST_CASE("a bias that the config does not know is refused, not left out") {
  stored_model m = golden("linear_bias_bf16");
  m.config["mlp_bias"] = false;
  CHECK(complaint(m) ==
        ": tensor \"model.layers.0.mlp.gate_proj.bias\": expected no bias, as config.json says, "
        "found one");
}

TEST_CASE("layers may differ in type") {
  stored_model m = golden("mha_untied_f16");
  const bitladder::safetensors_set set(support::golden_folder("mha_untied_f16"));
  m.tensors[up] = stored_tensor::floats({60, 40}, set.read_as_float(up));
  CHECK(complaint(m).empty());
}

TEST_CASE("tensors that start at odd bytes are copied and read the same") {
  // safetensors headers of foreign writers need not be a multiple of anything: make ours one
  // longer.
  const support::temporary_folder folder;
  const stored_model m = golden("mha_untied_f16");
  m.write(folder.path());
  const auto path = folder.path() / "model.safetensors";
  std::ifstream in(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(in), {}};
  std::uint64_t header;
  std::memcpy(&header, bytes.data(), sizeof header);
  bytes.insert(8 + header, " ");
  ++header;
  std::memcpy(bytes.data(), &header, sizeof header);
  std::ofstream(path, std::ios::binary) << bytes;

  const llama::model odd = llama::load(folder.path());
  const llama::dense_matrix& w = odd.weights().layers[1].up.dense;
  CHECK(reinterpret_cast<std::uintptr_t>(w.data) % 2 == 0);
  CHECK(std::memcmp(w.data, m.tensors.at(up).bytes.data(), w.bytes()) == 0);
}

TEST_CASE("a quantized checkpoint of other sizes than the config's is refused") {
  const support::temporary_folder folder;
  support::write_quantized(golden("gqa_tied_f32"), folder.path() / "q", 2, 4, 1, 31);
  nlohmann::json config = support::read_json(folder.path() / "q" / "config.json");
  config["intermediate_size"] = 52;
  std::ofstream(folder.path() / "q" / "config.json") << config;
  try {
    llama::load(folder.path() / "q");
    FAIL("loaded");
  } catch (const bitladder::error& e) {
    const std::string text = e.what();
    CHECK(text.find("tensor \"model.layers.0.mlp.gate_proj.qweight\": expected [52, 32] codes, "
                    "found [48, 32]") != std::string::npos);
  }
}
