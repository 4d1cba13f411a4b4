// SPDX-License-Identifier: MIT
// The tokenizer inside a GGUF file as plain data, checked but not interpreted: which pieces there
// are, how they merge, and which ids mean something. Tested by tests/llama/gguf_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/gguf.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llama {

/// What a token is for, by the number that stands in the file.
enum class gguf_token_type : int {
  undefined = 0,
  normal = 1,
  unknown = 2,       ///< stands for what has no token
  control = 3,       ///< special: never the result of splitting plain text
  user_defined = 4,  ///< added: matched in a text before it is split
  unused = 5,
  byte = 6,  ///< one byte of fallback, "<0x0A>"
};

/// Everything under "tokenizer." in a GGUF file.
struct gguf_tokenizer {
  /// "gpt2" (byte-level BPE) or "llama" (SentencePiece); others are handed out as they are.
  std::string model;
  /// Which pattern splits a text before merging ("smollm", "llama-bpe", "qwen2"); "" if not said.
  std::string pre;
  std::vector<std::string> tokens;     ///< by id, spelled as in the file: "Ġthe", "▁the"
  std::vector<gguf_token_type> types;  ///< by id; all normal if the file has none
  std::vector<float> scores;           ///< by id; empty if the file has none
  std::vector<std::pair<std::string, std::string>> merges;  ///< earliest first; may be empty

  /// Ids of special tokens; -1 if not said.
  int bos = -1, eos = -1, eot = -1, unknown = -1, separator = -1, padding = -1;
  /// What to put around a text; nothing if not said: the model's custom decides.
  std::optional<bool> add_bos, add_eos, add_space_prefix, remove_extra_spaces;
  /// Jinja; "" if none.
  std::string chat_template;
  /// A whole tokenizer.json, where the file carries one; mostly "".
  std::string hugging_face_json;
};

namespace detail {

inline std::vector<gguf_token_type> read_gguf_token_types(const bitladder::gguf_metadata& m,
                                                          std::size_t tokens) {
  const char* key = "tokenizer.ggml.token_type";
  std::vector<gguf_token_type> types(tokens, gguf_token_type::normal);
  if (!m.has(key)) return types;
  const std::vector<std::int64_t> numbers = m.integers(key);
  if (numbers.size() != tokens) m.fail(key, std::to_string(tokens) + " types, one for each token");
  for (std::size_t i = 0; i < tokens; ++i) {
    if (numbers[i] < 0 || numbers[i] > 6)
      m.fail(key, "types of 0 to 6, not " + std::to_string(numbers[i]) + " of token " +
                      std::to_string(i));
    types[i] = static_cast<gguf_token_type>(numbers[i]);
  }
  return types;
}

inline std::vector<std::pair<std::string, std::string>> read_gguf_merges(
    const bitladder::gguf_metadata& m) {
  const char* key = "tokenizer.ggml.merges";
  std::vector<std::pair<std::string, std::string>> merges;
  if (!m.has(key)) return merges;
  for (std::string_view line : m.texts(key)) {
    // A piece may begin with a space, but none is empty.
    const std::size_t space = line.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == line.size())
      m.fail(key, "two pieces with a space between, not " + bitladder::detail::quoted(line) +
                      " as merge " + std::to_string(merges.size()));
    merges.emplace_back(line.substr(0, space), line.substr(space + 1));
  }
  return merges;
}

}  // namespace detail

/// Reads "tokenizer.*".
/// @throws bitladder::error naming file and key, what was expected and what was found
inline gguf_tokenizer load_gguf_tokenizer(const bitladder::gguf_file& file) {
  const bitladder::gguf_metadata& m = file.metadata();
  gguf_tokenizer t;
  t.model = m.text("tokenizer.ggml.model");
  t.pre = m.text_or("tokenizer.ggml.pre", "");
  const std::vector<std::string_view> tokens = m.texts("tokenizer.ggml.tokens");
  if (tokens.empty() || tokens.size() > std::size_t{1} << 30)
    m.fail("tokenizer.ggml.tokens", "1 to 2^30 tokens");
  t.tokens.assign(tokens.begin(), tokens.end());
  t.types = detail::read_gguf_token_types(m, tokens.size());
  if (m.has("tokenizer.ggml.scores")) {
    for (double x : m.numbers("tokenizer.ggml.scores")) t.scores.push_back(static_cast<float>(x));
    if (t.scores.size() != tokens.size())
      m.fail("tokenizer.ggml.scores",
             std::to_string(tokens.size()) + " scores, one for each token");
  }
  t.merges = detail::read_gguf_merges(m);

  const auto id = [&](const char* key, int& to) {
    if (!m.has(key)) return;
    const std::int64_t x = m.integer(key);
    if (x < 0 || x >= static_cast<std::int64_t>(tokens.size()))
      m.fail(key, "a token id of 0 to " + std::to_string(tokens.size() - 1));
    to = static_cast<int>(x);
  };
  id("tokenizer.ggml.bos_token_id", t.bos);
  id("tokenizer.ggml.eos_token_id", t.eos);
  id("tokenizer.ggml.eot_token_id", t.eot);
  id("tokenizer.ggml.unknown_token_id", t.unknown);
  id("tokenizer.ggml.seperator_token_id", t.separator);  // the format's own spelling
  id("tokenizer.ggml.padding_token_id", t.padding);

  const auto flag = [&](const char* key, std::optional<bool>& to) {
    if (m.has(key)) to = m.boolean(key);
  };
  flag("tokenizer.ggml.add_bos_token", t.add_bos);
  flag("tokenizer.ggml.add_eos_token", t.add_eos);
  flag("tokenizer.ggml.add_space_prefix", t.add_space_prefix);
  flag("tokenizer.ggml.remove_extra_whitespaces", t.remove_extra_spaces);
  t.chat_template = m.text_or("tokenizer.chat_template", "");
  t.hugging_face_json = m.text_or("tokenizer.huggingface.json", "");
  return t;
}

}  // namespace llama
