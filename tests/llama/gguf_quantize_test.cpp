// SPDX-License-Identifier: MIT
// A checkpoint made of a GGUF file. data/*.gguf were written by make_gguf_golden.py.
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <llama/config_json.hpp>
#include <llama/float_tensors.hpp>
#include <llama/model.hpp>
#include <llama/quantize_model.hpp>
#include <llama/tokenizer.hpp>
#include <support/files.hpp>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

namespace {

using nlohmann::json;
using support::contains;
using support::error_of;
using support::temporary_folder;

const std::filesystem::path data = std::filesystem::path(BL_SOURCE_DIR) / "tests/llama/data";

}  // namespace

TEST_CASE("a checkpoint made of a GGUF file holds its numbers, config and tokenizer") {
  for (const char* file : {"biased.gguf", "tied.gguf"}) {
    CAPTURE(file);
    temporary_folder folder;
    llama::quantize_model_options options;
    options.rest = llama::rest_type::f32;  // the values of blocks as they are
    const auto errors = llama::quantize_model(data / file, folder / "out", options, nullptr);
    const llama::model source(data / file), made(folder / "out");
    CHECK(!source.quantized());
    CHECK(made.quantized());
    CHECK(errors.size() == static_cast<std::size_t>(source.config().layers) * 7);
    CHECK(llama::config_json(made.config()) == llama::config_json(source.config()));
    CHECK(made.weights().norm.weight == source.weights().norm.weight);
    CHECK(made.weights().layers[0].query.bias == source.weights().layers[0].query.bias);
    const bitladder::checkpoint checkpoint(folder / "out");
    const llama::float_tensors tensors(data / file);
    const bitladder::tensor_info& table = tensors.at("model.embed_tokens.weight");
    std::vector<float> values(table.elements());
    tensors.read_as_float(table, values.data());
    CHECK(checkpoint.tensors().read_as_float(table.name) == values);
    // So few values in a row that 8 bits hold each.
    for (const auto& e : errors) CHECK(e.relative_error.at(8) < 1e-12);
    const llama::tokenizer a = llama::tokenizer::of_model(data / file),
                           b = llama::tokenizer::of_model(folder / "out");
    CHECK(a.vocabulary_size() == source.config().vocabulary);
    CHECK(a.encode("ab a b") == b.encode("ab a b"));
    CHECK(!a.encode("ab a b").empty());
    CHECK(support::read_all(folder / "out" / "tokenizer_config.json").size() > 10);
  }
  const auto tied = json::parse([&] {
    temporary_folder folder;
    llama::quantize_model(data / "tied.gguf", folder / "out", {}, nullptr);
    return support::read_all(folder / "out" / "tokenizer_config.json");
  }());
  CHECK(tied.at("chat_template") == "{{ messages }}");
  CHECK(tied.at("bos_token") == "<|end|>");
}

TEST_CASE("a GGUF file whose tokenizer is not understood is refused before any work") {
  temporary_folder folder;
  std::string bytes = support::read_all(data / "tied.gguf");
  bytes.replace(bytes.find("smollm"), 6, "martin");
  support::write_all(folder / "m.gguf", bytes);
  const auto e =
      error_of([&] { llama::quantize_model(folder / "m.gguf", folder / "out", {}, nullptr); });
  CHECK(contains(e.text, "m.gguf: metadata \"tokenizer.ggml.pre\""));
  CHECK(contains(e.text, "found \"martin\""));
  CHECK(!std::filesystem::exists(folder / "out"));
  CHECK(!std::filesystem::exists(folder / "out.partial"));
}
