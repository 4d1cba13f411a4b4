// SPDX-License-Identifier: MIT
// A GGUF file in place of a model's folder: tensors, config and tokenizer. data/*.gguf were written
// by make_gguf_golden.py, data/tokenizer by make_tokenizer_golden.py.
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/gguf.hpp>
#include <bitladder/io/safetensors_set.hpp>

#include "io/gguf_bytes.hpp"
#include <llama/backend_cpu.hpp>
#include <llama/config_json.hpp>
#include <llama/float_tensors.hpp>
#include <llama/forward.hpp>
#include <llama/gguf_names.hpp>
#include <llama/gguf_tokenizer.hpp>
#include <llama/gguf_tokenizer_json.hpp>
#include <llama/gguf_weights.hpp>
#include <llama/model.hpp>
#include <llama/tokenizer.hpp>
#include <support/files.hpp>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace {

using nlohmann::json;
using support::contains;
using support::error_of;
using support::temporary_folder;
using type = llama::gguf_token_type;

const std::filesystem::path data = std::filesystem::path(BL_SOURCE_DIR) / "tests/llama/data";

json read(const std::string& name) {
  return json::parse(std::ifstream(data / "tokenizer" / (name + ".json")));
}

std::vector<std::string> texts() {
  std::vector<std::string> lines;
  for (const std::string hex : read("texts")) {
    std::string bytes;
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
      bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    lines.push_back(bytes);
  }
  return lines;
}

/// tokenizer.json of a golden case.
json document(const std::string& name) {
  const json golden = read(name);
  json file = read(golden.at("base"));
  file.merge_patch(golden.at("patch"));
  return file;
}

/// What a converter writes of a tokenizer.json.
llama::gguf_tokenizer converted(const json& file, const std::string& model,
                                const std::string& pre) {
  llama::gguf_tokenizer t;
  t.model = model;
  t.pre = pre;
  std::map<int, std::string> words;
  for (const auto& [token, id] : file["model"]["vocab"].items()) words[id] = token;
  for (const auto& a : file["added_tokens"]) words[a["id"]] = a["content"];
  for (const auto& [id, token] : words) {
    REQUIRE(static_cast<std::size_t>(id) == t.tokens.size());
    t.tokens.push_back(token);
    const bool byte = model == "llama" && token.size() == 6 && token.substr(0, 3) == "<0x";
    t.types.push_back(byte ? type::byte : type::normal);
  }
  for (const auto& a : file["added_tokens"])
    t.types[a["id"]] = a["special"] ? type::control : type::user_defined;
  for (const auto& m : file["model"]["merges"]) {
    const std::string line = m.is_string() ? m.get<std::string>() : "";
    const std::size_t space = line.find(' ');
    if (m.is_string())
      t.merges.emplace_back(line.substr(0, space), line.substr(space + 1));
    else
      t.merges.emplace_back(m[0], m[1]);
  }
  return t;
}

llama::tokenizer made_of(const llama::gguf_tokenizer& t) {
  return llama::tokenizer::parse(llama::tokenizer_json(t, "m.gguf"), "m.gguf");
}

void check_equal(const llama::tokenizer& a, const llama::tokenizer& b) {
  REQUIRE(a.vocabulary_size() == b.vocabulary_size());
  CHECK(a.special_ids() == b.special_ids());
  for (const std::string& text : texts()) {
    CAPTURE(text);
    std::vector<int> ids;
    try {
      ids = b.encode(text);
    } catch (const bitladder::error&) {  // what a Unicode form may change
      CHECK_THROWS_AS(a.encode(text), bitladder::error);
      continue;
    }
    CHECK(a.encode(text) == ids);
    CHECK(a.decode(ids) == b.decode(ids));
    CHECK(a.decode(ids, false) == b.decode(ids, false));
  }
}

std::string complaint(const llama::gguf_tokenizer& t) {
  return error_of([&] { llama::tokenizer_json(t, "m.gguf"); }).text;
}

/// A golden folder as the GGUF file that a converter makes of it, without a tokenizer.
std::string gguf_of(const std::filesystem::path& folder) {
  const llama::config c = llama::load_config(folder);
  REQUIRE(c.rope.type == llama::rope_type::standard);
  const std::string family(c.family->gguf);
  const auto u32 = [&](const char* key, int x) {
    return support::gguf_key(family + key, 4,
                             support::gguf_bytes().u32(static_cast<std::uint32_t>(x)).str());
  };
  const auto f32 = [&](const char* key, double x) {
    return support::gguf_key(family + key, 6,
                             support::gguf_bytes().put(static_cast<float>(x)).str());
  };
  const std::vector<std::string> keys = {
      support::gguf_key("general.architecture", 8, support::gguf_bytes().text(family).str()),
      u32(".context_length", c.context),
      u32(".embedding_length", c.hidden),
      u32(".block_count", c.layers),
      u32(".feed_forward_length", c.intermediate),
      u32(".attention.head_count", c.heads),
      u32(".attention.head_count_kv", c.kv_heads),
      u32(".attention.key_length", c.head_dim),
      f32(".attention.layer_norm_rms_epsilon", static_cast<double>(c.norm_epsilon)),
      f32(".rope.freq_base", c.rope.theta)};
  const std::map<bitladder::dtype, std::uint32_t> types = {
      {bitladder::dtype::f32, 0}, {bitladder::dtype::f16, 1}, {bitladder::dtype::bf16, 30}};
  std::vector<std::string> infos;
  std::string values;
  const bitladder::safetensors_set set(folder);
  for (const bitladder::tensor_info& t : set.tensors()) {
    if (c.tied_embeddings && t.name == "lm_head.weight") continue;
    const std::string name = *llama::gguf_name(t.name);
    const auto bytes = set.bytes(t);
    std::string stored(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (family == "llama" && llama::has_rope_rows(name)) {
      const auto rows = static_cast<std::size_t>(t.shape[0]), size = stored.size() / rows;
      for (std::size_t r = 0; r < rows; ++r)
        std::memcpy(&stored[llama::gguf_rope_row(r, static_cast<std::uint64_t>(c.head_dim)) * size],
                    bytes.data() + r * size, size);
    }
    std::vector<std::uint64_t> dimensions(t.shape.rbegin(), t.shape.rend());
    infos.push_back(support::gguf_info(name, dimensions, types.at(t.type), values.size()));
    values += stored + std::string((32 - stored.size() % 32) % 32, '\0');
  }
  std::string file = support::gguf_bytes_of(keys, infos, 0);
  return file + values;
}

std::vector<float> logits_of(const std::filesystem::path& path, const std::vector<int>& ids) {
  const llama::model m(path);
  llama::cpu_backend backend(m, nullptr);
  llama::session<llama::cpu_backend> s(backend, 32);
  s.forward(ids, llama::unquantized);
  const auto rows = s.logits(0, static_cast<int>(ids.size()));
  std::vector<float> all;
  for (int r = 0; r < rows.rows(); ++r)
    all.insert(all.end(), rows.row(r), rows.row(r) + rows.cols());
  return all;
}

}  // namespace

TEST_CASE("a GGUF file has the logits of the folder that it was made of, to the bit") {
  for (const char* name : {"gqa_tied_f32", "mha_untied_f16", "qwen2_bf16"}) {
    CAPTURE(name);
    temporary_folder folder;
    support::write_all(folder / "m.gguf", gguf_of(data / name));
    const std::vector<int> ids = {3, 1, 4, 1, 5, 9, 2, 6};
    CHECK(logits_of(folder / "m.gguf", ids) == logits_of(data / name, ids));
    const llama::config c = llama::load_config(bitladder::gguf_file(folder / "m.gguf"));
    support::write_all(folder / "config.json", llama::config_json(c));
    CHECK(llama::config_json(llama::load_config(folder / "")) == llama::config_json(c));
    CHECK(c.family == llama::load_config(data / name).family);
  }
}

TEST_CASE("byte-level vocabularies give the ids of the tokenizer.json that they come from") {
  const std::map<std::string, std::string> pre = {
      {"gpt2", "gpt-2"}, {"digits", "smollm"}, {"llama3", "llama-bpe"}, {"qwen2", "qwen2"}};
  for (const auto& [name, split] : pre) {
    CAPTURE(name);
    const json file = document(name);
    const llama::tokenizer original = llama::tokenizer::parse(file.dump(), "t.json");
    llama::gguf_tokenizer t = converted(file, "gpt2", split);
    if (!original.prefix_ids().empty()) t.bos = original.prefix_ids()[0];
    check_equal(made_of(t), original);
    t.add_bos = false;
    CHECK(made_of(t).prefix_ids().empty());
    t.bos = t.eos = 0;
    t.add_bos = t.add_eos = true;
    CHECK(made_of(t).prefix_ids() == std::vector<int>{0});
    CHECK(made_of(t).suffix_ids() == std::vector<int>{0});
  }
}

TEST_CASE("the way to split of files that name none cuts punctuation and three digits off") {
  json file = document("gpt2");
  for (const char* name : {"default", ""}) {
    const llama::tokenizer t = made_of(converted(file, "gpt2", name));
    // By another route: the words one by one.
    const llama::tokenizer words = made_of(converted(file, "gpt2", "gpt-2"));
    std::vector<int> expected;
    for (const char* word : {"It", "'", "s", " a", " $", "5", "!", "  ", " then", " ", "123", "45"})
      for (int id : words.encode(word)) expected.push_back(id);
    CHECK(t.encode("It's a $5!   then 12345") == expected);
  }
}

TEST_CASE("scores give the merges that a SentencePiece vocabulary's converter writes") {
  // Each piece is scored by its first merge, as training gives them; a file may have several merges
  // of one piece, which scores cannot order otherwise.
  json file = document("llama2");
  llama::gguf_tokenizer t = converted(file, "llama", "");
  t.scores.assign(t.tokens.size(), -1e6f);
  std::map<std::string, std::size_t> ids;
  for (std::size_t id = 0; id < t.tokens.size(); ++id) ids[t.tokens[id]] = id;
  float score = 0;
  for (const auto& [left, right] : t.merges) {
    float& to = t.scores[ids.at(left + right)];
    if (to == -1e6f) to = --score;
  }
  t.unknown = 0;
  t.types[0] = type::unknown;
  t.bos = 1;
  t.merges.clear();
  check_equal(made_of(t), llama::tokenizer::parse(file.dump(), "t.json"));

  t.add_space_prefix = false;
  const llama::tokenizer bare = made_of(t);
  CHECK(bare.decode(bare.encode(" the man")) == " the man");
  CHECK(bare.decode(bare.encode("the man")) == "the man");
  CHECK(bare.encode("the man") != made_of(converted(file, "gpt2", "gpt-2")).encode("the man"));
}

TEST_CASE("merges of scores: the highest first, then the longer left piece, characters not bytes") {
  llama::gguf_tokenizer t;
  t.model = "llama";
  t.tokens = {"a", "b", "ab", "abb", "bb", "\u00e9", "a\u00e9", "<s>", "a<s>"};
  t.scores = {-9, -9, -1, -2, -1, -9, -3, 0, 0};
  t.types.assign(9, type::normal);
  t.types[7] = type::control;
  const json merges = json::parse(llama::tokenizer_json(t, "m")).at("model").at("merges");
  CHECK(merges == json::parse(R"([["a","b"],["b","b"],["ab","b"],["a","bb"],["a","\u00e9"]])"));
}

TEST_CASE("a tokenizer that is not understood is refused by name") {
  llama::gguf_tokenizer t = converted(document("gpt2"), "gpt2", "tekken");
  CHECK(complaint(t) ==
        "m.gguf: metadata \"tokenizer.ggml.pre\": expected one of the known ways to split a text "
        "(gpt-2, smollm, llama-bpe, llama-v3, llama3, qwen2, default), found \"tekken\"");
  t.model = "bert";
  CHECK(complaint(t) ==
        "m.gguf: metadata \"tokenizer.ggml.model\": expected \"gpt2\" or \"llama\", found "
        "\"bert\"");
  t.model = "llama";
  CHECK(contains(complaint(t), "\"tokenizer.ggml.scores\": expected a score for each token"));
  t.scores.assign(t.tokens.size(), 0.f);
  CHECK(complaint(t) == "");
  t.remove_extra_spaces = true;
  CHECK(contains(complaint(t), "\"tokenizer.ggml.remove_extra_whitespaces\": expected false"));
  t = converted(document("gpt2"), "gpt2", "gpt-2");
  t.add_bos = true;
  CHECK(contains(complaint(t), "\"tokenizer.ggml.bos_token_id\": expected a token id"));
  t.add_bos.reset();
  t.merges.emplace_back("a", "no such");
  CHECK(contains(complaint(t), "\"tokenizer.ggml.merges\": expected pieces that are tokens"));
  t.merges.pop_back();
  t.tokens[5] = t.tokens[4];
  CHECK(contains(complaint(t), "another text as token 5 than as token 4"));
  t.tokens[5] = "\xff";
  CHECK(contains(complaint(t), "expected UTF-8 as token 5"));
  t.hugging_face_json = "{}";  // the file's own wins, whatever the rest says
  CHECK(llama::tokenizer_json(t, "m.gguf") == "{}");
}

TEST_CASE("the config that is written beside a checkpoint reads back as it was") {
  for (const char* file : {"biased.gguf", "tied.gguf"}) {
    const llama::config c = llama::load_config(bitladder::gguf_file(data / file));
    temporary_folder folder;
    support::write_all(folder / "config.json", llama::config_json(c));
    const llama::config d = llama::load_config(folder / "");
    CHECK(llama::config_json(d) == llama::config_json(c));
    CHECK(d.norm_epsilon == c.norm_epsilon);
    CHECK(d.rope.type == c.rope.type);
    CHECK(d.rope.factor == c.rope.factor);
    CHECK(d.rope.original_context == c.rope.original_context);
    CHECK(d.eos == c.eos);
    CHECK(d.bos == c.bos);
    CHECK(contains(llama::config_json(c), "\"rms_norm_eps\": 1e-05"));
  }
}

TEST_CASE("tensors come in place where the file has them as wanted, else as copies") {
  for (const char* file : {"biased.gguf", "tied.gguf"}) {
    CAPTURE(file);
    const llama::float_tensors tensors(data / file);
    const llama::gguf_weights& source = *tensors.gguf();
    REQUIRE(tensors.tensors().size() == source.names().size());
    for (const bitladder::tensor_info& t : tensors.tensors()) {
      CAPTURE(t.name);
      std::vector<std::byte> copy;
      const std::byte* bytes = tensors.bytes(t, copy);
      const bool blocks = source.at(t.name).type == bitladder::gguf_type::q8_0;
      CHECK(copy.empty() == !(blocks || source.is_reordered(t.name)));
      const std::vector<float> expected = source.read(t.name);
      REQUIRE(t.elements() == expected.size());
      std::vector<float> widened(expected.size());
      tensors.read_as_float(t, widened.data());
      CHECK(widened == expected);
      for (std::size_t i = 0; i < expected.size(); ++i)
        if (t.type == bitladder::dtype::f16)
          REQUIRE(bitladder::to_float(reinterpret_cast<const bitladder::fp16_t*>(bytes)[i]) ==
                  expected[i]);
        else
          REQUIRE(reinterpret_cast<const float*>(bytes)[i] == expected[i]);
    }
    CHECK(contains(error_of([&] { static_cast<void>(tensors.at("model.x.weight")); }).text,
                   "no tensor \"model.x.weight\""));
  }
  temporary_folder folder;
  support::write_all(folder / "m.txt", "not a model");
  CHECK(contains(error_of([&] { llama::model m(folder / "m.txt"); }).text, "m.txt"));
}
