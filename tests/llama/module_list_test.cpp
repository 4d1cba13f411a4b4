// SPDX-License-Identifier: MIT
#include <bitladder/core/status.hpp>

#include "model_folder.hpp"
#include <llama/families.hpp>
#include <llama/module_list.hpp>

#include <doctest/doctest.h>

#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace {

using names = std::vector<std::string>;

const llama::family& opt() { return *llama::find_family("opt"); }

}  // namespace

TEST_CASE("names with commas between are taken as they are written") {
  CHECK(llama::read_module_list("fc1").names == names{"fc1"});
  CHECK(llama::read_module_list("fc1,self_attn.q_proj").names == names{"fc1", "self_attn.q_proj"});
  CHECK(llama::read_module_list("fc1, fc2").names == names{"fc1", " fc2"});
  CHECK(llama::read_module_list("fc1").layers.empty());
  for (const char* text : {"", ",", "fc1,", ",fc1", "fc1,,fc2", "/no/such/file.json"}) {
    CAPTURE(text);
    const std::string complaint =
        std::string(
            "modules: expected names of linears with commas between, or a JSON file, "
            "found \"") +
        text + "\"";
    CHECK_THROWS_WITH_AS(llama::read_module_list(text), complaint.c_str(), bitladder::error);
  }
}

TEST_CASE("a JSON file has the keys of Any-Precision LLM's yaml files, or of its config.json") {
  const support::temporary_folder folder;
  const std::string path = (folder.path() / "modules.json").string();
  const auto read = [&](const std::string& json) {
    std::ofstream(path) << json;
    return llama::read_module_list(path);
  };
  CHECK(read(R"({"module_names": ["fc2", "fc1"]})").names == names{"fc2", "fc1"});
  CHECK(read(R"({"module_names": ["fc1"]})").layers.empty());
  const llama::module_list whole = read(
      R"({"architecture": "OPTForCausalLM", "arch_config": {"model_name": "model.decoder",
          "layers_name": "layers", "module_names": ["fc1"]}})");
  CHECK(whole.names == names{"fc1"});
  CHECK(whole.layers == "model.decoder.layers");
  const auto refused = [&](const char* json, const std::string& text) {
    CAPTURE(json);
    CHECK_THROWS_WITH_AS(read(json), (path + text).c_str(), bitladder::error);
  };
  refused("{}", ": key \"module_names\": expected a list of strings, found nothing");
  refused(R"({"module_names": []})",
          ": key \"module_names\": expected the names of linears, found []");
  refused(R"({"module_names": [1]})",
          ": key \"module_names\": expected a list of strings, found [1]");
  refused(R"({"arch_config": 1})", ": key \"arch_config\": expected an object, found 1");
  refused(R"({"module_names": ["fc1"], "layers_name": "layers"})",
          ": key \"model_name\": expected a string, found nothing");
  refused("[]", ": expected a JSON object, found array");
}

TEST_CASE("chosen linears come in the order of the forward pass, all of them if none is named") {
  CHECK(llama::chosen_linears(opt(), {}) == names{"self_attn.q_proj", "self_attn.k_proj",
                                                  "self_attn.v_proj", "self_attn.out_proj", "fc1",
                                                  "fc2"});
  CHECK(llama::chosen_linears(opt(), {{"fc2", "self_attn.k_proj"}, ""}) ==
        names{"self_attn.k_proj", "fc2"});
  CHECK(llama::chosen_linears(opt(), {{"fc1"}, "model.decoder.layers"}) == names{"fc1"});
  CHECK(llama::chosen_linears(*llama::find_family("phi3"), {}) ==
        names{"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"});
  CHECK_THROWS_WITH_AS(
      llama::chosen_linears(opt(), {{"fc1"}, "model.layers"}),
      "modules: expected layers at \"model.decoder.layers\", where a model of type "
      "opt has them, found \"model.layers\"",
      bitladder::error);
  CHECK_THROWS_AS(llama::chosen_linears(opt(), {{"fc3"}, ""}), bitladder::error);
  CHECK_THROWS_AS(llama::chosen_linears(opt(), {{"fc1", "fc2", "fc1"}, ""}), bitladder::error);
}

TEST_CASE("the linears of the published families are those of the published lists") {
  // Any-Precision LLM's yaml files for llama, mistral, opt and phi.
  const names llama_linears = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                               "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                               "mlp.down_proj"};
  for (const char* type : {"llama", "mistral", "qwen2"})
    CHECK(llama::linear_names(*llama::find_family(type)) == llama_linears);
  CHECK(llama::linear_names(*llama::find_family("phi")) ==
        names{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense",
              "mlp.fc1", "mlp.fc2"});
  CHECK(llama::layer_prefix(opt(), 11) == "model.decoder.layers.11.");
  CHECK(llama::find_family("") == nullptr);
  CHECK(llama::find_family("Llama") == nullptr);
  CHECK(llama::family_list() == "llama, mistral, qwen2, opt, phi or phi3");
}

TEST_CASE("every description is whole: what is fused is not apart, and what is needed is named") {
  for (const llama::family& f : llama::known_families) {
    CAPTURE(std::string(f.model_type));
    const llama::layer_names& n = f.layer;
    const bool fused = !n.query_key_value.empty();
    for (std::string_view name : {n.query, n.key, n.value}) CHECK(name.empty() == fused);
    CHECK(n.up.empty() == !n.gate_up.empty());
    CHECK((n.gate.empty() || n.gate_up.empty()));
    for (std::string_view name : {n.output, n.down, n.attention_norm, f.embedding, f.norm, f.head,
                                  f.layers, f.model_type, f.architecture})
      CHECK(!name.empty());
    CHECK(n.mlp_norm.empty() == (f.residual == llama::residual_form::parallel));
    CHECK(f.project_in.empty() == (f.table_width_key == nullptr));
    CHECK(f.project_out.empty() == (f.table_width_key == nullptr));
    CHECK(llama::find_family(f.model_type) == &f);
  }
}
