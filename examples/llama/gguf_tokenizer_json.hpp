// SPDX-License-Identifier: MIT
// The tokenizer of a GGUF file as the tokenizer.json that stands for the same: what tokenizer.hpp
// reads, and what is put beside a checkpoint. A GGUF file only names its way of splitting a text,
// so that the patterns are here. Tested by tests/llama/gguf_model_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#include <llama/gguf_tokenizer.hpp>
#include <llama/tokenizer/utf8.hpp>
#include <llama/tokenizer/vocabulary.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llama {
namespace detail {

/// Builds the components one by one.
class gguf_tokenizer_translation {
 public:
  gguf_tokenizer_translation(const gguf_tokenizer& source, std::string where)
      : source_(source), where_(std::move(where)) {}

  nlohmann::json run() {
    read_words();
    nlohmann::json model = {{"type", "BPE"}, {"vocab", vocabulary_json()}};
    nlohmann::json file = {{"version", "1.0"}, {"added_tokens", added_json()}};
    if (source_.model == "gpt2") {
      byte_level(file, model);
    } else if (source_.model == "llama") {
      sentence_pieces(file, model);
    } else {
      fail("tokenizer.ggml.model", "\"gpt2\" or \"llama\"", source_.model);
    }
    file["model"] = std::move(model);
    file["post_processor"] = around_json();
    return file;
  }

 private:
  using json = nlohmann::json;

  [[noreturn]] void fail(const char* key, const std::string& expected,
                         const std::string& found) const {
    throw bitladder::error(bitladder::status::bad_file,
                           where_ + ": metadata \"" + key + "\": expected " + expected +
                               ", found " + bitladder::detail::quoted(found));
  }

  bool is(std::size_t id, gguf_token_type type) const { return source_.types[id] == type; }

  void read_words() {
    if (source_.tokens.size() > static_cast<std::size_t>(tokenization::vocabulary::max_size))
      fail("tokenizer.ggml.tokens",
           "at most " + std::to_string(tokenization::vocabulary::max_size) + " tokens",
           std::to_string(source_.tokens.size()));
    for (std::size_t id = 0; id < source_.tokens.size(); ++id) {
      const std::string& token = source_.tokens[id];
      if (!tokenization::is_utf8(token))
        fail("tokenizer.ggml.tokens", "UTF-8 as token " + std::to_string(id), token);
      const auto [other, is_new] = ids_.emplace(token, static_cast<int>(id));
      if (!is_new)
        fail("tokenizer.ggml.tokens",
             "another text as token " + std::to_string(id) + " than as token " +
                 std::to_string(other->second),
             token);
    }
  }

  json vocabulary_json() const {
    json vocab = json::object();
    for (std::size_t id = 0; id < source_.tokens.size(); ++id) vocab[source_.tokens[id]] = id;
    return vocab;
  }

  json added_json() const {
    json added = json::array();
    for (std::size_t id = 0; id < source_.tokens.size(); ++id) {
      const bool special = is(id, gguf_token_type::control) || is(id, gguf_token_type::unknown);
      if (!special && !is(id, gguf_token_type::user_defined)) continue;
      added.push_back({{"id", id},
                       {"content", source_.tokens[id]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", special}});
    }
    return added;
  }

  static json split(const char* pattern) {
    return {{"type", "Split"},
            {"pattern", {{"Regex", pattern}}},
            {"behavior", "Isolated"},
            {"invert", false}};
  }
  static json byte_level_step(bool splits) {
    return {{"type", "ByteLevel"},
            {"add_prefix_space", false},
            {"trim_offsets", true},
            {"use_regex", splits}};
  }

  void byte_level(json& file, json& model) {
    json steps = json::array();
    const std::string& pre = source_.pre;
    file["normalizer"] = nullptr;
    model["ignore_merges"] = false;
    if (pre == "gpt-2") {
      steps.push_back(byte_level_step(true));
    } else if (pre == "smollm") {
      steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
      steps.push_back(byte_level_step(true));
    } else if (pre == "llama-bpe" || pre == "llama-v3" || pre == "llama3") {
      steps.push_back(split(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
                            R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"));
      steps.push_back(byte_level_step(false));
      model["ignore_merges"] = true;
      begins_by_custom_ = true;
    } else if (pre == "qwen2") {
      steps.push_back(split(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
                            R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"));
      steps.push_back(byte_level_step(false));
      file["normalizer"] = {{"type", "NFC"}};
    } else if (pre == "default" || pre.empty()) {
      for (const char* pattern :
           {R"([\p{P}\$\+<=>\^~\|]+)",
            R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))",
            R"(\p{N}+)", R"([0-9][0-9][0-9])"})
        steps.push_back(split(pattern));
      steps.push_back(byte_level_step(false));
    } else {
      fail("tokenizer.ggml.pre",
           "one of the known ways to split a text (gpt-2, smollm, llama-bpe, llama-v3, llama3, "
           "qwen2, default)",
           pre);
    }
    file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
    file["decoder"] = byte_level_step(true);
    json merges = json::array();
    for (const auto& [left, right] : source_.merges) {
      for (const std::string& piece : {left, right, left + right})
        if (ids_.count(piece) == 0)
          fail("tokenizer.ggml.merges", "pieces that are tokens, and together one", piece);
      merges.push_back({left, right});
    }
    model["merges"] = std::move(merges);
  }

  void sentence_pieces(json& file, json& model) {
    if (source_.remove_extra_spaces.value_or(false))
      fail("tokenizer.ggml.remove_extra_whitespaces", "false", "true");
    if (source_.scores.empty()) fail("tokenizer.ggml.scores", "a score for each token", "none");
    const bool prefix = source_.add_space_prefix.value_or(true);
    begins_by_custom_ = true;
    const json to_mark = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", mark}};
    json normalizers = json::array({to_mark});
    json decoders = {{{"type", "Replace"}, {"pattern", {{"String", mark}}}, {"content", " "}},
                     {{"type", "ByteFallback"}},
                     {{"type", "Fuse"}}};
    if (prefix) {
      normalizers.insert(normalizers.begin(), json{{"type", "Prepend"}, {"prepend", mark}});
      decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    }
    file["normalizer"] = {{"type", "Sequence"}, {"normalizers", normalizers}};
    file["pre_tokenizer"] = nullptr;
    file["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
    model["byte_fallback"] =
        std::count(source_.types.begin(), source_.types.end(), gguf_token_type::byte) != 0;
    model["fuse_unk"] = true;
    if (source_.unknown >= 0)
      model["unk_token"] = source_.tokens[static_cast<std::size_t>(source_.unknown)];
    model["merges"] = merges_of_scores();
  }

  /// The merges that make each piece out of two others, that of the highest score first.
  json merges_of_scores() const {
    struct merge {
      float score;
      int left_length, right_length;  // characters
      int left, right;                // ids
    };
    std::vector<merge> all;
    std::vector<std::size_t> ends;  // of the characters of a piece
    for (std::size_t id = 0; id < source_.tokens.size(); ++id) {
      if (!is(id, gguf_token_type::normal)) continue;
      const std::string_view piece = source_.tokens[id];
      ends.clear();
      for (std::size_t i = 0; i < piece.size();)
        ends.push_back(i += tokenization::next_code_point(piece, i).length);
      // A long piece has as many splits as characters; those of real ones are a few words.
      if (ends.size() > 1024)
        fail("tokenizer.ggml.tokens", "pieces of at most 1024 characters", std::string(piece));
      for (std::size_t n = 0; n + 1 < ends.size(); ++n) {
        const int left = normal_id(piece.substr(0, ends[n]));
        const int right = left < 0 ? -1 : normal_id(piece.substr(ends[n]));
        if (right < 0) continue;
        const int length = static_cast<int>(n) + 1;
        all.push_back(
            {source_.scores[id], length, static_cast<int>(ends.size()) - length, left, right});
      }
    }
    // Among equals the order in which converters of such vocabularies write merges.
    const auto key = [](const merge& m) {
      return std::make_tuple(m.score, m.left_length, m.right_length);
    };
    std::stable_sort(all.begin(), all.end(),
                     [&](const merge& a, const merge& b) { return key(a) > key(b); });
    json merges = json::array();
    for (const merge& m : all)
      merges.push_back({source_.tokens[static_cast<std::size_t>(m.left)],
                        source_.tokens[static_cast<std::size_t>(m.right)]});
    return merges;
  }

  int normal_id(std::string_view piece) const {
    const auto known = ids_.find(piece);
    if (known == ids_.end() ||
        !is(static_cast<std::size_t>(known->second), gguf_token_type::normal))
      return -1;
    return known->second;
  }

  json around_json() const {
    json single = json::array(), tokens = json::object();
    const auto put = [&](const char* key, int id) {
      if (id < 0) fail(key, "a token id, for it is put around a text", "none");
      const std::string& text = source_.tokens[static_cast<std::size_t>(id)];
      single.push_back({{"SpecialToken", {{"id", text}, {"type_id", 0}}}});
      tokens[text] = {{"id", text}, {"ids", json::array({id})}, {"tokens", json::array({text})}};
    };
    if (source_.add_bos.value_or(begins_by_custom_ && source_.bos >= 0))
      put("tokenizer.ggml.bos_token_id", source_.bos);
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    if (source_.add_eos.value_or(false)) put("tokenizer.ggml.eos_token_id", source_.eos);
    if (single.size() == 1) return nullptr;
    json pair = single;
    pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
    return {{"type", "TemplateProcessing"},
            {"single", single},
            {"pair", pair},
            {"special_tokens", tokens}};
  }

  static constexpr const char* mark = "\u2581";  // SentencePiece's space

  const gguf_tokenizer& source_;
  std::string where_;
  std::unordered_map<std::string_view, int> ids_;  // keys point into source_
  bool begins_by_custom_ = false;  // a text begins with bos unless the file says otherwise
};

}  // namespace detail

/// The text of a tokenizer.json: the file's own if it carries one, or made of its vocabulary.
/// @param where what errors call the file
/// @throws bitladder::error naming file and key, what was expected and what was found
inline std::string tokenizer_json(const gguf_tokenizer& t, const std::string& where) {
  if (!t.hugging_face_json.empty()) return t.hugging_face_json;
  return detail::gguf_tokenizer_translation(t, where).run().dump();
}

/// The text of a tokenizer_config.json: special tokens and the chat template.
inline std::string tokenizer_config_json(const gguf_tokenizer& t) {
  nlohmann::ordered_json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}};
  const auto put = [&](const char* key, int id) {
    if (id >= 0) config[key] = t.tokens[static_cast<std::size_t>(id)];
  };
  put("bos_token", t.bos);
  put("eos_token", t.eos);
  put("unk_token", t.unknown);
  put("pad_token", t.padding);
  if (!t.chat_template.empty()) config["chat_template"] = t.chat_template;
  return config.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace llama
