// SPDX-License-Identifier: MIT
// Import, export and running in place of other projects' checkpoints. Seeds: 71 and on.
#include <bitladder/io/anyprec_checkpoint.hpp>
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/torch_writer.hpp>

#include "model_folder.hpp"
#include <llama/backend_cpu.hpp>
#include <llama/export_model.hpp>
#include <llama/forward.hpp>
#include <llama/import_model.hpp>
#include <llama/model.hpp>
#include <llama/quantize_model.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

using bitladder::dtype;
using support::error_of;
using support::read_all;
using support::read_folder;
using support::stored_model;
using support::thrown;
using support::write_all;
using workplace = support::temporary_folder;

void add_random(stored_model& m, support::random& random, const std::string& name,
                const std::vector<std::int64_t>& shape) {
  support::stored_tensor t{dtype::f16, shape, {}};
  std::int64_t count = 1;
  for (std::int64_t d : shape) count *= d;
  for (std::int64_t i = 0; i < count; ++i) {
    const bitladder::fp16_t v = bitladder::to_fp16(static_cast<float>(0.2 * random.normal()));
    t.bytes.push_back(static_cast<std::byte>(v.bits & 0xffu));
    t.bytes.push_back(static_cast<std::byte>(v.bits >> 8));
  }
  m.tensors[name] = std::move(t);
}

/// Two layers whose linears have 64 and 96 columns.
stored_model small_llama(bool tied, bool biases) {
  support::random random(71);
  stored_model m;
  m.config = {{"architectures", {"LlamaForCausalLM"}},
              {"model_type", "llama"},
              {"hidden_size", 64},
              {"intermediate_size", 96},
              {"num_attention_heads", 2},
              {"num_key_value_heads", 1},
              {"num_hidden_layers", 2},
              {"vocab_size", 40},
              {"max_position_embeddings", 128},
              {"attention_bias", biases},
              {"tie_word_embeddings", tied}};
  const auto add = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    add_random(m, random, name, shape);
  };
  add("model.embed_tokens.weight", {40, 64});
  if (!tied) add("lm_head.weight", {40, 64});
  add("model.norm.weight", {64});
  for (const char* layer : {"model.layers.0.", "model.layers.1."}) {
    add(layer + std::string("input_layernorm.weight"), {64});
    add(layer + std::string("post_attention_layernorm.weight"), {64});
    for (const auto& [name, rows] : {std::pair<std::string, int>{"q_proj", 64},
                                     {"k_proj", 32},
                                     {"v_proj", 32},
                                     {"o_proj", 64}}) {
      add(layer + ("self_attn." + name) + ".weight", {rows, 64});
      if (biases) add(layer + ("self_attn." + name) + ".bias", {rows});
    }
    add(layer + std::string("mlp.gate_proj.weight"), {96, 64});
    add(layer + std::string("mlp.up_proj.weight"), {96, 64});
    add(layer + std::string("mlp.down_proj.weight"), {64, 96});
  }
  return m;
}

/// Another prefix of layers, other modules, a tied head.
stored_model small_opt() {
  support::random random(72);
  stored_model m;
  m.config = {{"architectures", {"OPTForCausalLM"}},
              {"model_type", "opt"},
              {"hidden_size", 32},
              {"ffn_dim", 64},
              {"num_attention_heads", 2},
              {"num_hidden_layers", 2},
              {"vocab_size", 40},
              {"max_position_embeddings", 100},
              {"do_layer_norm_before", true},
              {"word_embed_proj_dim", 32}};
  const auto add = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    add_random(m, random, "model.decoder." + name + ".weight", shape);
    if (shape.size() == 1 || name.find("layers.") == 0)
      add_random(m, random, "model.decoder." + name + ".bias", {shape[0]});
  };
  add("embed_tokens", {40, 32});
  add("embed_positions", {102, 32});
  add("final_layer_norm", {32});
  for (const std::string layer : {"layers.0.", "layers.1."}) {
    add(layer + "self_attn_layer_norm", {32});
    add(layer + "final_layer_norm", {32});
    for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"})
      add(layer + "self_attn." + name, {32, 32});
    add(layer + "fc1", {64, 32});
    add(layer + "fc2", {32, 64});
  }
  return m;
}

/// A checkpoint of ours of random codes, and a file that is carried along.
void write_ours(const stored_model& m, const fs::path& folder, int min_bits, int max_bits,
                int groups = 1) {
  support::write_quantized(m, folder, min_bits, max_bits, groups, 73);
  write_all(folder / "tokenizer.json", "{\"some\": \"tokenizer\"}");
}

std::vector<float> logits_of(const fs::path& folder, int bits) {
  const llama::model m(folder);
  llama::cpu_backend backend(m, nullptr);
  llama::session<llama::cpu_backend> s(backend);
  const std::vector<int> ids = {1, 7, 39, 0, 12};
  s.forward(ids, bits);
  const auto logits = s.logits(0, 5);
  return {logits.data(), logits.data() + 5 * logits.stride()};
}

/// Every tensor of two of our checkpoints is the same: type, shape and bytes.
void require_same(const fs::path& a, const fs::path& b) {
  const bitladder::checkpoint x(a), y(b);
  CHECK(x.precisions() == y.precisions());
  REQUIRE(x.tensors().tensors().size() == y.tensors().tensors().size());
  for (const bitladder::tensor_info& t : x.tensors().tensors()) {
    CAPTURE(t.name);
    const bitladder::tensor_info* other = y.tensors().find(t.name);
    REQUIRE(other != nullptr);
    CHECK(other->type == t.type);
    REQUIRE(other->shape == t.shape);
    const auto p = x.tensors().bytes(t), q = y.tensors().bytes(*other);
    CHECK(std::memcmp(p.data(), q.data(), p.size()) == 0);
  }
}

/// One precision of a checkpoint of ours as SqueezeLLM would have it, tables in another order,
/// outliers less the entry at their place, and each entry off by `shift` of itself.
void write_squeezellm(const fs::path& ours, const fs::path& folder, int bits, double shift = 0) {
  const bitladder::checkpoint c(ours);
  const std::size_t entries = std::size_t{1} << bits;
  fs::create_directories(folder);
  bitladder::torch_plan plan;
  for (const bitladder::linear_info& l : c.linears()) {
    plan.add(l.name + ".qweight", dtype::i32, {l.cols / 32 * bits, l.rows});
    plan.add(l.name + ".lookup_table", dtype::f32, {l.rows, std::int64_t{1} << bits});
    if (l.outliers == 0) continue;
    plan.add(l.name + ".rows", dtype::i32, {l.rows + 1});
    plan.add(l.name + ".cols", dtype::i32, {l.outliers});
    plan.add(l.name + ".vals", dtype::f32, {l.outliers});
  }
  for (const bitladder::tensor_info& t : c.plain_tensors()) plan.add(t.name, t.type, t.shape);
  bitladder::torch_writer writer(folder / "model.pt", plan);
  for (const bitladder::linear_info& l : c.linears()) {
    const std::size_t rows = static_cast<std::size_t>(l.rows);
    std::vector<std::uint32_t> words(static_cast<std::size_t>(l.cols / 32 * bits) * rows);
    std::vector<float> tables(rows * entries);
    for (int r = 0; r < l.rows; ++r) {
      // 5 is odd, so this is a permutation.
      const auto moved = [&](int code) { return (5 * code + r) % static_cast<int>(entries); };
      for (int i = 0; i < static_cast<int>(entries); ++i) {
        const float value = bitladder::to_float(c.codebook(l.name, bits).table(r)[i]);
        tables[static_cast<std::size_t>(r) * entries + static_cast<std::size_t>(moved(i))] =
            static_cast<float>(value * (1 + shift));
      }
      for (int k = 0; k < l.cols; ++k)
        for (int b = 0; b < bits; ++b) {
          const int at = k * bits + b;
          words[static_cast<std::size_t>(at / 32) * rows + static_cast<std::size_t>(r)] |=
              static_cast<std::uint32_t>(moved(c.planes(l.name).code(r, k, bits)) >> b & 1)
              << (at % 32);
        }
    }
    writer.write(l.name + ".qweight", words.data(), 4 * words.size());
    writer.write(l.name + ".lookup_table", tables.data(), 4 * tables.size());
    if (l.outliers == 0) continue;
    const bitladder::sparse_view o = c.outliers(l.name);
    std::vector<float> values;
    for (int r = 0; r < l.rows; ++r)
      for (int i = o.begin(r); i < o.end(r); ++i)
        values.push_back(
            bitladder::to_float(o.values()[i]) -
            bitladder::to_float(
                c.codebook(l.name, bits).table(r)[c.planes(l.name).code(r, o.columns()[i], bits)]));
    writer.write(l.name + ".rows", o.offsets(), 4 * (rows + 1));
    writer.write(l.name + ".cols", o.columns(), 4 * values.size());
    writer.write(l.name + ".vals", values.data(), 4 * values.size());
  }
  for (const bitladder::tensor_info& t : c.plain_tensors()) {
    const auto bytes = c.tensors().bytes(t);
    writer.write(t.name, bytes.data(), bytes.size());
  }
  writer.commit();
  write_all(folder / "quant_config.json", "{\"wbits\": " + std::to_string(bits) + "}");
  fs::copy(ours / "tokenizer.json", folder / "tokenizer.json");
  nlohmann::json config = support::read_json(ours / "config.json");
  config.erase("bitladder");
  write_all(folder / "config.json", config.dump());
}

llama::import_report import_here(const fs::path& source, const fs::path& out) {
  bitladder::thread_pool pool(2);
  return llama::import_model(source, out, {}, &pool);
}

/// The error of importing, which leaves nothing behind.
thrown import_error(const fs::path& source) {
  const workplace work;
  const thrown e = error_of([&] { import_here(source, work / "out"); });
  CHECK(!fs::exists(work / "out"));
  CHECK(!fs::exists(work / "out.partial"));
  return e;
}

}  // namespace

TEST_CASE("what is exported imports back to the same planes, tables and tensors") {
  const std::vector<std::pair<std::string, stored_model>> models = {
      {"untied", small_llama(false, true)},
      {"tied", small_llama(true, false)},
      {"opt", small_opt()}};
  for (const auto& [name, stored] : models) {
    for (const char* kind : {"torch", "safetensors"}) {
      CAPTURE(name);
      CAPTURE(kind);
      const workplace work;
      write_ours(stored, work / "ours", 3, 8);
      llama::export_options options;
      options.container = std::string(kind) == "torch" ? bitladder::anyprec_container::torch
                                                       : bitladder::anyprec_container::safetensors;
      const llama::export_report sent =
          llama::export_model(work / "ours", work / "theirs", options);
      CHECK(sent.min_bits == 3);
      CHECK(sent.max_bits == 8);
      CHECK(read_all(work / "theirs" / "tokenizer.json") ==
            read_all(work / "ours" / "tokenizer.json"));
      const nlohmann::json config = support::read_json(work / "theirs" / "config.json");
      CHECK(!config.contains("bitladder"));
      CHECK(config["anyprec"]["arch_config"]["model_name"] ==
            (name == "opt" ? "model.decoder" : "model"));
      const bitladder::anyprec_checkpoint theirs(work / "theirs");
      const std::string embedding =
          name == "opt" ? "model.decoder.embed_tokens.weight" : "model.embed_tokens.weight";
      if (name != "untied" && options.container == bitladder::anyprec_container::torch)
        CHECK(theirs.bytes("lm_head.weight").data() == theirs.bytes(embedding).data());
      CHECK(theirs.bytes("lm_head.weight").size() == theirs.bytes(embedding).size());

      const llama::import_report back = import_here(work / "theirs", work / "back");
      CHECK(back.format == "Any-Precision");
      CHECK(back.linears == sent.linears);
      CHECK(back.weights == sent.weights);
      CHECK(back.rounding.largest == 0);
      require_same(work / "ours", work / "back");
      CHECK(read_all(work / "back" / "tokenizer.json") ==
            read_all(work / "ours" / "tokenizer.json"));
      CHECK(!support::read_json(work / "back" / "config.json").contains("anyprec"));
      for (int bits : {3, 5, 8}) {
        const std::vector<float> expected = logits_of(work / "ours", bits);
        CHECK(logits_of(work / "theirs", bits) == expected);
        CHECK(logits_of(work / "back", bits) == expected);
      }
      const llama::model in_place(work / "theirs");
      CHECK(in_place.quantized());
      CHECK(in_place.precisions() == std::vector<int>{3, 4, 5, 6, 7, 8});
      CHECK(in_place.bytes_per_token(4) == llama::model(work / "ours").bytes_per_token(4));
    }
  }
}

TEST_CASE("an export can leave narrow tables out") {
  const workplace work;
  write_ours(small_llama(false, false), work / "ours", 2, 5);
  llama::export_options options;
  options.min_bits = 3;
  llama::export_model(work / "ours", work / "theirs", options);
  const bitladder::anyprec_checkpoint theirs(work / "theirs");
  CHECK(theirs.min_bits() == 3);
  CHECK(theirs.max_bits() == 5);
  CHECK(logits_of(work / "theirs", 3) == logits_of(work / "ours", 3));
}

TEST_CASE("a head that shares the embedding's bytes stays a tensor unless the config ties it") {
  const workplace work;
  write_ours(small_llama(true, false), work / "ours", 3, 4);
  llama::export_model(work / "ours", work / "theirs", {});
  nlohmann::json config = support::read_json(work / "theirs" / "config.json");
  config["tie_word_embeddings"] = false;
  write_all(work / "theirs" / "config.json", config.dump());
  import_here(work / "theirs", work / "back");
  const bitladder::checkpoint back(work / "back");
  CHECK(back.tensors().find("lm_head.weight") != nullptr);
  CHECK(logits_of(work / "back", 4) == logits_of(work / "ours", 4));
}

TEST_CASE("a SqueezeLLM checkpoint imports as one precision and computes the same") {
  for (int bits : {3, 4}) {
    CAPTURE(bits);
    const workplace work;
    write_ours(small_llama(true, true), work / "ours", 3, 6);
    write_squeezellm(work / "ours", work / "theirs", bits);
    const llama::import_report r = import_here(work / "theirs", work / "back");
    CHECK(r.format == "SqueezeLLM");
    CHECK(r.min_bits == bits);
    CHECK(r.max_bits == bits);
    CHECK(r.rounding.largest == 0);
    const std::vector<float> expected = logits_of(work / "ours", bits);
    CHECK(logits_of(work / "back", bits) == expected);
    CHECK(logits_of(work / "theirs", bits) == expected);
    CHECK(llama::model(work / "back").precisions() == std::vector<int>{bits});
    CHECK(fs::exists(work / "back" / "tokenizer.json"));
    bitladder::checkpoint(work / "back").validate();

    // The file alone, with its companions elsewhere.
    fs::rename(work / "theirs" / "config.json", work / "config.json");
    const thrown missing = import_error(work / "theirs" / "model.pt");
    CHECK(missing.code == bitladder::status::not_found);
    CHECK(missing.names("config.json: is not there; name the folder of the model"));
    llama::import_options options;
    options.companions = work / "ours";
    llama::import_model(work / "theirs" / "model.pt", work / "other", options, nullptr);
    require_same(work / "back", work / "other");
  }
}

TEST_CASE("a sparse SqueezeLLM checkpoint imports with its outliers and computes the same") {
  const workplace work;
  fs::create_directory(work / "dense");
  small_llama(true, false).write(work / "dense");
  write_all(work / "dense" / "tokenizer.json", "{}");
  llama::quantize_model_options options;
  options.kmeans.outliers = {0.5, 2};
  options.kmeans.seed_bits = options.kmeans.min_bits = 3;
  options.kmeans.max_bits = 5;
  llama::quantize_model(work / "dense", work / "ours", options, nullptr);
  write_squeezellm(work / "ours", work / "theirs", 4);
  const llama::import_report r = import_here(work / "theirs", work / "back");
  const bitladder::checkpoint ours(work / "ours"), back(work / "back");
  back.validate();
  CHECK(back.tensors().metadata().at("bitladder.version") == "2");
  std::int64_t count = 0;
  for (const bitladder::linear_info& l : ours.linears()) {
    const bitladder::sparse_view a = ours.outliers(l.name), b = back.outliers(l.name);
    REQUIRE(a.count() == b.count());
    CHECK(std::equal(a.offsets(), a.offsets() + l.rows + 1, b.offsets()));
    CHECK(std::equal(a.columns(), a.columns() + a.count(), b.columns()));
    CHECK(std::equal(a.values(), a.values() + a.count(), b.values()));
    count += l.outliers;
  }
  CHECK(r.outliers == count);
  CHECK(count > 100);
  // The code at an outlier is another one, so sums round otherwise.
  const std::vector<float> expected = logits_of(work / "ours", 4);
  const std::vector<float> imported = logits_of(work / "back", 4);
  float size = 0, off = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    size = std::max(size, std::fabs(expected[i]));
    off = std::max(off, std::fabs(expected[i] - imported[i]));
  }
  CHECK(off < 1e-5f * size);
  CHECK(logits_of(work / "theirs", 4) == imported);
}

TEST_CASE("the largest rounding of SqueezeLLM's tables is found and said") {
  const workplace work;
  write_ours(small_llama(false, false), work / "ours", 4, 4);
  write_squeezellm(work / "ours", work / "theirs", 4, 0.0003);
  const llama::import_report r = import_here(work / "theirs", work / "back");
  const bitladder::checkpoint c(work / "ours");
  double largest = 0;
  for (const bitladder::linear_info& l : c.linears())
    for (int row = 0; row < l.rows; ++row)
      for (int i = 0; i < 16; ++i) {
        const float stored = static_cast<float>(
            bitladder::to_float(c.codebook(l.name, 4).table(row)[i]) * (1 + 0.0003));
        const float kept = bitladder::to_float(bitladder::to_fp16(stored));
        largest = std::max(largest, std::fabs(static_cast<double>(kept) - stored));
      }
  CHECK(largest > 0);
  CHECK(r.rounding.largest == largest);
  CHECK(c.is_quantized(r.rounding.linear));
}

TEST_CASE("an interrupted import goes on and ends with the same bytes") {
  const workplace work;
  write_ours(small_llama(true, false), work / "ours", 3, 4);
  llama::export_model(work / "ours", work / "theirs", {});
  import_here(work / "theirs", work / "whole");
  int linears = 0;
  CHECK_THROWS_AS(
      llama::import_model(work / "theirs", work / "out", {}, nullptr,
                          [&](const std::string& linear, std::int64_t, std::int64_t, std::int64_t) {
                            if (!linear.empty() && ++linears == 5) throw std::runtime_error("stop");
                          }),
      std::runtime_error);
  CHECK(!fs::exists(work / "out"));
  std::int64_t resumed = 0;
  llama::import_model(work / "theirs", work / "out", {}, nullptr,
                      [&](const std::string&, std::int64_t, std::int64_t before, std::int64_t) {
                        resumed = before;
                      });
  CHECK(resumed > 0);
  CHECK(read_folder(work / "out") == read_folder(work / "whole"));
}

TEST_CASE("sources that are no foreign checkpoint are refused, saying what was expected") {
  const workplace work;
  write_ours(small_llama(false, false), work / "ours", 3, 3);
  const thrown ours = import_error(work / "ours");
  CHECK(ours.names("expected an Any-Precision checkpoint"));
  CHECK(ours.names((work / "ours").string()));
  CHECK(import_error(work / "ours" / "model.safetensors").names("expected a zip archive"));
  CHECK(import_error(support::golden_folder("gqa_tied_f32")).names("found neither"));
  CHECK(error_of([&] { import_here(work / "nothing", work / "out"); }).names("nothing"));
}

TEST_CASE("a model that the config does not describe is refused before anything is written") {
  const workplace work;
  write_ours(small_llama(false, false), work / "ours", 3, 4);
  const auto error = [&](const std::function<void(nlohmann::json&)>& change) {
    fs::remove_all(work / "theirs");
    llama::export_model(work / "ours", work / "theirs", {});
    nlohmann::json config = support::read_json(work / "theirs" / "config.json");
    change(config);
    write_all(work / "theirs" / "config.json", config.dump());
    const thrown e = import_error(work / "theirs");
    CHECK(e.names((work / "theirs").string()));
    CHECK(error_of([&] { llama::model m(work / "theirs"); }).text == e.text);
    return e;
  };
  using nlohmann::json;
  CHECK(error([](json& c) { c["model_type"] = "mamba"; }).names("found \"mamba\""));
  CHECK(error([](json& c) {
          c["intermediate_size"] = 128;
        }).names("mlp.gate_proj.qweight\": expected [128, 64] codes, found [96, 64]"));
  CHECK(error([](json& c) {
          c["vocab_size"] = 41;
        }).names("model.embed_tokens.weight\": expected shape [41, 64], found [40, 64]"));
  CHECK(error([](json& c) {
          c["attention_bias"] = true;
        }).names("no tensor \"model.layers.0.self_attn.q_proj.bias\""));
  CHECK(error([](json& c) { c["num_hidden_layers"] = 3; }).names("expected 3 quantized layers"));
  CHECK(error([](json& c) { c["anyprec"]["parent_precision"] = 5; }).names("expected I32 [5, "));
}

TEST_CASE("tables that are not finite and ascending are refused with tensor, row and entry") {
  const workplace work;
  write_ours(small_llama(false, false), work / "ours", 3, 3);
  llama::export_model(work / "ours", work / "theirs", {});
  const fs::path file = work / "theirs" / "pytorch_model.bin";
  const std::string tensor = "model.layers.1.mlp.up_proj.lut3";
  std::string bytes = read_all(file);
  bytes[static_cast<std::size_t>(bitladder::torch_file(file).at(tensor).begin) + 2 * 8 + 3] =
      '\x7e';
  write_all(file, bytes);
  const std::string expected = tensor + "\": row 1, group 0, entry 1: expected finite values";
  const thrown e = error_of([&] { import_here(work / "theirs", work / "out"); });
  CHECK(e.names(expected));
  CHECK(e.names(file.string()));
  CHECK(!fs::exists(work / "out"));
  CHECK(error_of([&] { llama::model m(work / "theirs"); }).names(expected));
}

TEST_CASE("checkpoints that the layout cannot hold are not exported") {
  const auto error = [](const stored_model& m, int groups, int min_bits, const std::string& part) {
    const workplace work;
    write_ours(m, work / "ours", 3, 4, groups);
    llama::export_options options;
    options.min_bits = min_bits;
    const thrown e =
        error_of([&] { llama::export_model(work / "ours", work / "theirs", options); });
    CHECK(e.names((work / "ours").string()));
    CHECK_MESSAGE(e.names(part), e.text);
    CHECK(!fs::exists(work / "theirs"));
  };
  error(small_llama(false, false), 2, 0, "expected 1 column group a row");
  error(small_llama(false, false), 1, 5, "5 bits asked for, the checkpoint holds 3 to 4");
  error(small_llama(false, false), 1, 2, "2 bits asked for, the checkpoint holds 3 to 4");
  error(stored_model::read(support::golden_folder("llama3_rope_f16")), 1, 0,
        "_proj\": expected columns in multiples of 32 for the Any-Precision layout, "
        "found 36");

  const workplace work;
  write_ours(small_llama(false, false), work / "ours", 3, 4);
  CHECK(error_of([&] {
          llama::export_model(work / "ours", work / "ours", {});
        }).names("is there already"));
  CHECK(error_of([&] {
          llama::export_model(support::golden_folder("gqa_tied_f32"), work / "theirs", {});
        }).names("not a bitladder checkpoint"));
  std::string bytes = read_all(work / "ours" / "model.safetensors");
  const bitladder::safetensors_set set(work / "ours");
  const bitladder::tensor_info& t = set.at("model.layers.0.mlp.up_proj.lut4");
  const std::size_t begin = static_cast<std::size_t>(set.files()[0].data_offset() + t.begin);
  bytes[begin + 1] = '\x7e';
  write_all(work / "ours" / "model.safetensors", bytes);
  CHECK(error_of([&] {
          llama::export_model(work / "ours", work / "theirs", {});
        }).names("mlp.up_proj.lut4\": row 0, group 0, entry 0"));
  CHECK(!fs::exists(work / "theirs" / "config.json"));
  CHECK(!fs::exists(work / "theirs" / "pytorch_model.bin"));
}
