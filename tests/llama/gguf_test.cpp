// SPDX-License-Identifier: MIT
// Seed 22. data/*.gguf were written by make_gguf_golden.py with the Python package `gguf`.
#include <bitladder/io/gguf.hpp>

#include "io/gguf_bytes.hpp"
#include "support/random.hpp"
#include <llama/gguf_config.hpp>
#include <llama/gguf_names.hpp>
#include <llama/gguf_tokenizer.hpp>
#include <llama/gguf_weights.hpp>
#include <llama/rope.hpp>
#include <support/files.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace {

using support::error_of;
using support::temporary_folder;
using support::thrown;

std::filesystem::path golden(const char* name) {
  return std::filesystem::path(BL_SOURCE_DIR) / "tests" / "llama" / "data" / name;
}

/// The golden tensors in Hugging Face's order, by the same rule as make_gguf_golden.py.
std::vector<float> expected_values(const std::string& name, std::size_t count) {
  std::vector<float> v(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto x = static_cast<int>((37 * i + 11 * name.size() + 5) % 255) - 127;
    v[i] = static_cast<float>(i % 32 == 0 ? 127 : x);
  }
  return v;
}

/// Overwrites what stands `skip` bytes behind the first `after`.
template <class T>
std::string with(std::string bytes, const std::string& after, std::size_t skip, T value) {
  const std::size_t at = bytes.find(after);
  REQUIRE(at != std::string::npos);
  std::memcpy(&bytes[at + after.size() + skip], &value, sizeof value);
  return bytes;
}

/// Another value for a key; its type, 4 bytes, stays.
template <class T>
std::string with_value(const std::string& bytes, const std::string& key, T value) {
  return with(bytes, key, 4, value);
}

std::string renamed(std::string bytes, const std::string& from, const std::string& to) {
  REQUIRE(from.size() == to.size());
  const std::size_t at = bytes.find(from);
  REQUIRE(at != std::string::npos);
  return bytes.replace(at, to.size(), to);
}

/// The file with one more key, of that type and value.
std::string with_key(std::string bytes, const std::string& key, std::uint32_t type,
                     const std::string& value) {
  std::string added = support::gguf_key(key, type, value);
  // A text beside it fills up to the alignment, so that the tensors stay where they should.
  const std::size_t fill = (64 - (added.size() + 16 + 8) % 32) % 32;
  added += support::gguf_key("fill", 8, support::gguf_bytes().text(std::string(fill, ' ')).str());
  REQUIRE(added.size() % 32 == 0);
  bytes[16] = static_cast<char>(bytes[16] + 2);
  return bytes.insert(24, added);
}
std::string with_key(const std::string& bytes, const std::string& key, std::uint32_t value) {
  return with_key(bytes, key, 4, support::gguf_bytes().u32(value).str());
}

/// What opening those bytes complains about, after the file's name; "" if nothing.
template <class F>
std::string complaint(const std::string& bytes, F&& open) {
  temporary_folder folder;
  const std::filesystem::path path = folder / "m.gguf";
  support::write_all(path, bytes);
  const thrown e = error_of([&] { open(path); });
  if (e.text.empty()) return "";
  REQUIRE(e.text.substr(0, path.string().size() + 2) == path.string() + ": ");
  return e.text.substr(path.string().size() + 2);
}

std::string model_complaint(const std::string& bytes) {
  return complaint(bytes, [](const auto& path) { llama::gguf_weights w(path); });
}

std::string tokenizer_complaint(const std::string& bytes) {
  return complaint(
      bytes, [](const auto& path) { llama::load_gguf_tokenizer(bitladder::gguf_file(path)); });
}

}  // namespace

TEST_CASE("names map both ways, and foreign ones map to nothing") {
  CHECK(llama::hugging_face_name("blk.12.ffn_up.weight") == "model.layers.12.mlp.up_proj.weight");
  CHECK(llama::hugging_face_name("output.weight") == "lm_head.weight");
  CHECK(llama::gguf_name("model.layers.0.self_attn.o_proj.bias") == "blk.0.attn_output.bias");
  CHECK(llama::gguf_name("model.norm.weight") == "output_norm.weight");
  for (const auto& pair : llama::detail::gguf_layer_names) {
    const std::string name = "blk.7." + std::string(pair.gguf);
    CHECK(llama::gguf_name(*llama::hugging_face_name(name)) == name);
  }
  for (const char* name : {"", "blk.", "blk..ffn_up.weight", "blk.x.ffn_up.weight", "blk.1",
                           "blk.01.ffn_up.weight", "blk.1234567.ffn_up.weight",
                           "blk.0.ffn_up_exps.weight", "rope_freqs.weight", "model.norm.weight"})
    CHECK(!llama::hugging_face_name(name));
  CHECK(!llama::gguf_name("model.layers.0.mlp.router.weight"));
}

TEST_CASE("rope rows: the pairs of a head stand side by side in the file") {
  // A head of 6: rows 0 and 3, 1 and 4, 2 and 5 turn together.
  const std::vector<std::uint64_t> expected = {0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11};
  for (std::uint64_t r = 0; r < 12; ++r) CHECK(llama::gguf_rope_row(r, 6) == expected[r]);
  CHECK(llama::has_rope_rows("blk.3.attn_q.weight"));
  CHECK(llama::has_rope_rows("blk.3.attn_k.bias"));
  CHECK(!llama::has_rope_rows("blk.3.attn_v.weight"));
  CHECK(!llama::has_rope_rows("attn_q.weight"));
}

TEST_CASE("every tensor reads back in Hugging Face's name, shape and order") {
  for (const char* file : {"biased.gguf", "tied.gguf"}) {
    CAPTURE(file);
    const llama::gguf_weights w(golden(file));
    const std::vector<std::string> names = w.names();
    CHECK(names.size() == (std::string(file) == "tied.gguf" ? 11 : 35));
    for (const std::string& name : names) {
      CAPTURE(name);
      const bitladder::gguf_tensor& t = w.at(name);
      const std::vector<float> all = expected_values(name, t.elements());
      CHECK(w.read(name) == all);
      CHECK(w.is_reordered(name) ==
            (name.find("q_proj") != std::string::npos || name.find("k_proj") != std::string::npos));
      for (std::uint64_t first = 0; first < t.rows(); first += 3) {
        const std::uint64_t count = std::min<std::uint64_t>(t.rows() - first, 5);
        std::vector<float> part(count * t.cols());
        w.read_rows(name, first, count, part.data());
        CHECK(std::equal(part.begin(), part.end(),
                         all.begin() + static_cast<std::ptrdiff_t>(first * t.cols())));
      }
    }
    CHECK(w.find("model.layers.9.mlp.up_proj.weight") == nullptr);
  }
  const llama::gguf_weights w(golden("tied.gguf"));
  CHECK(w.at("model.layers.0.self_attn.k_proj.weight").shape == std::vector<std::int64_t>{16, 32});
  const thrown e = error_of([&] { w.read("model.layers.0.mlp.up_proj.bias"); });
  CHECK(e.code == bitladder::status::not_found);
  CHECK(e.names("no tensor \"model.layers.0.mlp.up_proj.bias\" (\"blk.0.ffn_up.bias\")"));
  float x = 0;
  CHECK(error_of([&] { w.read_rows("model.layers.0.self_attn.q_proj.weight", 32, 1, &x); }).code ==
        bitladder::status::invalid_argument);
}

TEST_CASE("the config of a file with biases, its own head and linear rope") {
  const llama::config c = llama::gguf_weights(golden("biased.gguf")).shape();
  CHECK(c.vocabulary == 10);
  CHECK(c.hidden == 8);
  CHECK(c.intermediate == 12);
  CHECK(c.layers == 2);
  CHECK(c.heads == 2);
  CHECK(c.kv_heads == 1);
  CHECK(c.head_dim == 4);
  CHECK(c.context == 128);
  CHECK(c.norm_epsilon == 1e-5f);
  CHECK(!c.tied_embeddings);
  CHECK(c.qkv_bias);
  CHECK(c.output_bias);
  CHECK(c.mlp_bias);
  CHECK(c.rope.type == llama::rope_type::linear);
  CHECK(c.rope.theta == 500);
  CHECK(c.rope.factor == 4);
  CHECK(c.bos == 1);
  CHECK(c.eos == std::vector<int>{2});
}

TEST_CASE("the config of a tied file finds llama3 rope behind its factors") {
  const llama::config c = llama::gguf_weights(golden("tied.gguf")).shape();
  CHECK(c.tied_embeddings);
  CHECK(!c.qkv_bias);
  CHECK(!c.output_bias);
  CHECK(!c.mlp_bias);
  CHECK(c.rope.type == llama::rope_type::llama3);
  CHECK(c.rope.factor == 8);
  CHECK(c.rope.low_freq_factor == 1);
  CHECK(c.rope.high_freq_factor == 4);
  CHECK(c.rope.original_context == 64);
  CHECK(c.eos == std::vector<int>{0, 1});
  const std::string bytes = support::read_all(golden("tied.gguf"));
  // Factors of 1 are plain rope; others than llama3's are refused.
  const bitladder::gguf_file file(golden("tied.gguf"));
  const bitladder::gguf_tensor& t = file.at("rope_freqs.weight");
  const auto at = static_cast<std::ptrdiff_t>(file.data_offset() + t.begin);
  std::string plain = bytes, odd = bytes;
  for (std::ptrdiff_t i = 0; i < 4; ++i) {
    const float one = 1;
    std::memcpy(plain.data() + at + 4 * i, &one, 4);
  }
  temporary_folder folder;
  support::write_all(folder / "plain", plain);
  CHECK(llama::gguf_weights(folder / "plain").shape().rope.type == llama::rope_type::standard);
  for (float bad : {2.f, 0.f, -1.f, std::nanf("")}) {
    std::memcpy(odd.data() + at, &bad, 4);
    CHECK(model_complaint(odd).find(
              "tensor \"rope_freqs.weight\": expected the factors of llama3") == 0);
  }
}

TEST_CASE("metadata that contradicts itself or the tensors is refused") {
  const std::string good = support::read_all(golden("biased.gguf"));
  const auto u32 = [&](const char* key, std::uint32_t x) {
    const std::string text = model_complaint(with_value(good, key, x));
    const std::string prefix = std::string("metadata \"") + key + "\": expected ";
    REQUIRE(text.substr(0, prefix.size()) == prefix);
    return text.substr(prefix.size());
  };
  CHECK(model_complaint(good) == "");
  CHECK(
      model_complaint(with(good, "general.architecture", 12, 'x')) ==
      "metadata \"general.architecture\": expected \"llama\" or \"qwen2\", found STRING \"xlama\"");
  CHECK(u32("llama.vocab_size", 11).find("10, the rows of tensor \"token_embd.weight\"") == 0);
  CHECK(u32("llama.embedding_length", 0) == "a number of 1 to 2147483647, found UINT32 0");
  CHECK(u32("llama.block_count", 1u << 31).find("a number of 1 to") == 0);
  CHECK(u32("llama.attention.head_count", 3) ==
        "a divisor of embedding_length = 8, or an explicit key_length, found UINT32 3");
  CHECK(u32("llama.attention.head_count", 8).find("heads of an even width") == 0);
  CHECK(u32("llama.attention.head_count_kv", 3).find("a divisor of head_count = 2") == 0);
  CHECK(u32("llama.rope.dimension_count", 2).find("4, the width of a head") == 0);
  CHECK(u32("tokenizer.ggml.bos_token_id", 10) == "a token id of 0 to 9, found UINT32 10");
  CHECK(u32("tokenizer.ggml.eos_token_id", ~0u).find("a token id of 0 to 9") == 0);
  for (float x : {0.f, -1.f, std::nanf(""), INFINITY})
    for (const char* key : {"llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base",
                            "llama.rope.scaling.factor"})
      CHECK(model_complaint(with_value(good, key, x)).find("expected a finite number above 0") !=
            std::string::npos);
  CHECK(
      model_complaint(renamed(good, "linear", "longer")).find("expected \"none\" or \"linear\"") !=
      std::string::npos);
  CHECK(model_complaint(renamed(good, "llama.context_length", "llama.context_lengtx")) ==
        "metadata \"llama.context_length\": expected an integer type with a value below 2^63, "
        "found no such key among the 23");
}

TEST_CASE("keys that would change the model and are not understood are refused") {
  const std::string good = support::read_all(golden("biased.gguf"));
  CHECK(model_complaint(with_key(good, "llama.expert_count", 0)) == "");
  CHECK(model_complaint(with_key(good, "llama.expert_count", 8)) ==
        "metadata \"llama.expert_count\": expected no experts, found UINT32 8");
  CHECK(model_complaint(with_key(good, "split.count", 1)) == "");
  CHECK(model_complaint(with_key(good, "split.count", 2)) ==
        "metadata \"split.count\": expected a model in one file (1), found UINT32 2");
  CHECK(model_complaint(with_key(good, "llama.attention.sliding_window", 128)) == "");
  CHECK(
      model_complaint(with_key(good, "llama.attention.sliding_window", 127)) ==
      "metadata \"llama.attention.sliding_window\": expected no sliding window, found UINT32 127");
  CHECK(model_complaint(with_key(good, "llama.attention.value_length", 2))
            .find("expected 4, the width of a head, found UINT32 2") != std::string::npos);
}

TEST_CASE("a head's width may be given, and numbers may be given for each layer") {
  const std::string good = support::read_all(golden("biased.gguf"));
  CHECK(model_complaint(with_key(good, "llama.attention.key_length", 4)) == "");
  CHECK(model_complaint(renamed(with_key(good, "llama.attention.key_length", 6),
                                "llama.rope.dimension_count", "llama.rope.dimension_counx")) ==
        "tensor \"blk.0.attn_q.weight\": expected shape [12, 8], found [8, 8]");
  const std::string without =
      renamed(good, "llama.feed_forward_length", "llama.feed_forward_lengtx");
  const auto per_layer = [&](std::uint32_t first, std::uint32_t second) {
    return model_complaint(
        with_key(without, "llama.feed_forward_length", 9,
                 support::gguf_bytes().u32(4).u64(2).u32(first).u32(second).str()));
  };
  CHECK(per_layer(12, 12) == "");
  CHECK(per_layer(12, 16) ==
        "metadata \"llama.feed_forward_length\": expected the same number for all layers, found "
        "ARRAY of 2 UINT32");
  CHECK(model_complaint(with_key(without, "llama.feed_forward_length", 9,
                                 support::gguf_bytes().u32(4).u64(0).str()))
            .find("expected a number of 1 to 2147483647, found ARRAY of 0 UINT32") !=
        std::string::npos);
}

TEST_CASE("tensors that are missing, unknown or of another shape are refused") {
  const std::string good = support::read_all(golden("biased.gguf"));
  CHECK(model_complaint(with_value(good, "llama.block_count", 3u))
            .find("no tensor \"blk.2.attn_norm.weight\"; it holds 35 tensors; closest: ") == 0);
  CHECK(model_complaint(with_value(good, "llama.block_count", 1u)) ==
        "tensor \"blk.1.attn_norm.weight\": is not one of a llama model of 1 layers");
  CHECK(model_complaint(renamed(good, "blk.1.ffn_up.weight", "blk.1.ffn_ux.weight")) ==
        "tensor \"blk.1.ffn_ux.weight\": is not one of a llama model of 2 layers");
  CHECK(model_complaint(with_value(good, "llama.feed_forward_length", 16u))
            .find("tensor \"blk.0.ffn_gate.weight\": expected shape [16, 8], found [12, 8]") == 0);
  CHECK(model_complaint(renamed(good, "token_embd.weight", "token_embx.weight"))
            .find("no tensor \"token_embd.weight\"") == 0);
  // The type of a tensor stands behind its name, the number of dimensions and two dimensions.
  const std::string tied = support::read_all(golden("tied.gguf"));
  const std::string up = with(tied, "blk.0.ffn_up.weight", 20, std::uint32_t{20});
  CHECK(model_complaint(up).find("tensor \"blk.0.ffn_up.weight\": type IQ4_NL is not supported") ==
        0);
}

TEST_CASE("a SentencePiece vocabulary comes out as plain data") {
  const bitladder::gguf_file file(golden("biased.gguf"));
  const llama::gguf_tokenizer t = llama::load_gguf_tokenizer(file);
  CHECK(t.model == "llama");
  CHECK(t.pre.empty());
  REQUIRE(t.tokens.size() == 10);
  CHECK(t.tokens[7] ==
        "\xe2\x96\x81"
        "a");
  using type = llama::gguf_token_type;
  CHECK(t.types == std::vector<type>{type::unknown, type::control, type::control, type::byte,
                                     type::normal, type::normal, type::normal, type::normal,
                                     type::normal, type::user_defined});
  CHECK(t.scores == std::vector<float>{0, 0, 0, 0, -1, -2, -3, -4.5f, -5, -1000});
  CHECK(t.merges.empty());
  CHECK(t.bos == 1);
  CHECK(t.eos == 2);
  CHECK(t.unknown == 0);
  CHECK(t.padding == -1);
  CHECK(t.add_bos == true);
  CHECK(t.add_eos == false);
  CHECK(t.add_space_prefix == true);
  CHECK(!t.remove_extra_spaces.has_value());
  CHECK(t.chat_template.empty());
}

TEST_CASE("a byte-level vocabulary comes out as plain data") {
  const bitladder::gguf_file file(golden("tied.gguf"));
  const llama::gguf_tokenizer t = llama::load_gguf_tokenizer(file);
  CHECK(t.model == "gpt2");
  CHECK(t.pre == "smollm");
  CHECK(t.tokens.size() == 8);
  CHECK(t.scores.empty());
  CHECK(t.merges == std::vector<std::pair<std::string, std::string>>{{"\xc4\xa0", "a"},
                                                                     {"a", "b"},
                                                                     {"\xc4\xa0"
                                                                      "a",
                                                                      "b"}});
  CHECK(t.bos == 0);
  CHECK(t.eot == 1);
  CHECK(t.padding == 1);
  CHECK(!t.add_bos.has_value());
  CHECK(t.chat_template == "{{ messages }}");
}

TEST_CASE("vocabularies that contradict themselves are refused") {
  const std::string biased = support::read_all(golden("biased.gguf"));
  const std::string tied = support::read_all(golden("tied.gguf"));
  CHECK(tokenizer_complaint(renamed(biased, "tokenizer.ggml.model", "tokenizer.ggml.modem")) ==
        "metadata \"tokenizer.ggml.model\": expected STRING, found no such key among the 23");
  CHECK(tokenizer_complaint(with_value(biased, "tokenizer.ggml.unknown_token_id", 10u)) ==
        "metadata \"tokenizer.ggml.unknown_token_id\": expected a token id of 0 to 9, found UINT32 "
        "10");
  // An array: the key's type, the elements' type, their number, the elements.
  CHECK(tokenizer_complaint(with(biased, "tokenizer.ggml.token_type", 16, 7)) ==
        "metadata \"tokenizer.ggml.token_type\": expected types of 0 to 6, not 7 of token 0, found "
        "ARRAY of 10 INT32");
  CHECK(tokenizer_complaint(with(biased, "tokenizer.ggml.token_type", 4, 6)) ==
        "metadata \"tokenizer.ggml.token_type\": expected an ARRAY of an integer type with values "
        "below 2^63, found ARRAY of 10 FLOAT32, element 0: FLOAT32 0.000000");
  for (const char* bad : {"a_b", " ab", "ab "})
    CHECK(
        tokenizer_complaint(renamed(tied, "a b", bad))
            .find("metadata \"tokenizer.ggml.merges\": expected two pieces with a space between") ==
        0);
  const std::string one = support::gguf_bytes().u32(5).u64(1).u32(1).str();
  CHECK(tokenizer_complaint(
            with_key(renamed(biased, "tokenizer.ggml.token_type", "tokenizer.ggml.token_typo"),
                     "tokenizer.ggml.token_type", 9, one)) ==
        "metadata \"tokenizer.ggml.token_type\": expected 10 types, one for each token, found "
        "ARRAY of 1 INT32");
  CHECK(tokenizer_complaint(with_key(tied, "tokenizer.ggml.scores", 9, one)) ==
        "metadata \"tokenizer.ggml.scores\": expected 8 scores, one for each token, found ARRAY of "
        "1 INT32");
  CHECK(tokenizer_complaint(
            with_key(renamed(tied, "tokenizer.ggml.tokens", "tokenizer.ggml.tokenx"),
                     "tokenizer.ggml.tokens", 9, support::gguf_bytes().u32(8).u64(0).str())) ==
        "metadata \"tokenizer.ggml.tokens\": expected 1 to 2^30 tokens, found ARRAY of 0 STRING");
  // More tokens than rows of the table: the model would look them up outside of it.
  const std::string more = support::gguf_bytes().u32(0).u64(9).raw("123456789").str();
  CHECK(model_complaint(with_key(renamed(tied, "tokenizer.ggml.tokens", "tokenizer.ggml.tokenx"),
                                 "tokenizer.ggml.tokens", 9, more))
            .find("expected at most 8 tokens, the rows of tensor") != std::string::npos);
}

TEST_CASE("GGUF models damaged anywhere never crash the loader") {
  temporary_folder folder;
  support::random random(22);
  int opened = 0, refused = 0;
  for (const char* file : {"biased.gguf", "tied.gguf"}) {
    const std::string good = support::read_all(golden(file));
    for (int i = 0; i < 6000; ++i) {
      std::string bytes = good;
      for (int n = 1 + random.below(3); n > 0; --n) {
        const auto at = static_cast<std::size_t>(random.below(static_cast<int>(bytes.size())));
        switch (random.below(8)) {
          case 0: bytes.resize(at + 1); break;
          case 1: bytes.insert(at, 1, static_cast<char>(random.next())); break;
          case 2: bytes.erase(at, 1); break;
          case 3: bytes[at] = static_cast<char>(bytes[at] ^ 1 << random.below(8)); break;
          default: bytes[at] = static_cast<char>(random.below(40));
        }
        if (bytes.empty()) bytes = "G";
      }
      support::write_all(folder / "m", bytes);
      const thrown e = error_of([&] {
        const llama::gguf_weights w(folder / "m");
        for (const std::string& name : w.names())
          REQUIRE(w.read(name).size() == w.at(name).elements());
        const llama::gguf_tokenizer t = llama::load_gguf_tokenizer(w.file());
        REQUIRE(t.types.size() == t.tokens.size());
      });
      if (e.text.empty())
        ++opened;
      else
        ++refused;
      REQUIRE((e.text.empty() || e.text.find((folder / "m").string() + ": ") == 0));
    }
  }
  CHECK(opened > 500);
  CHECK(refused > 3000);
}
