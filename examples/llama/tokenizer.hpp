// SPDX-License-Identifier: MIT
// Text to token ids and back, as a model's tokenizer.json (the Hugging Face `tokenizers` format)
// says: byte-level BPE (GPT-2, Llama 3, Qwen 2) and SentencePiece-style BPE with byte fallback
// (Llama 2, Mistral). The components are in llama/tokenizer/; one that is not known is an error.
// What is long to compile is in tokenizer.cpp. Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>

#include <llama/tokenizer/added_tokens.hpp>
#include <llama/tokenizer/bpe.hpp>
#include <llama/tokenizer/decoder.hpp>
#include <llama/tokenizer/json_node.hpp>
#include <llama/tokenizer/normalizer.hpp>
#include <llama/tokenizer/post_processor.hpp>
#include <llama/tokenizer/pre_tokenizer.hpp>
#include <llama/tokenizer/utf8.hpp>
#include <llama/tokenizer/vocabulary.hpp>

#include <deque>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llama {

/// A loaded tokenizer.json. It does not change any more: all its functions may run on several
/// threads at once, and copies share it.
/// @note "truncation" and "padding" of the file are not applied: how long a text may be is the
///   caller's matter.
class tokenizer {
 public:
  /// @param file tokenizer.json
  static tokenizer load(const std::filesystem::path& file);
  /// Of a model: the tokenizer.json of a folder, or what a GGUF file holds.
  static tokenizer of_model(const std::filesystem::path& model);
  /// @param json contents of a tokenizer.json
  /// @param name what errors call it
  static tokenizer parse(std::string_view json, const std::string& name);

  /// The ids of a text. Bytes that are not UTF-8 count as U+FFFD, one for each maximal subpart.
  /// @param text at most 512 MiB
  /// @param add_special whether prefix_ids() and suffix_ids() are put around it
  std::vector<int> encode(std::string_view text, bool add_special = true) const;

  /// The text of ids, always valid UTF-8. An id without a token (a hole, or beyond the vocabulary:
  /// models are often padded) has no text.
  /// @param skip_special whether special tokens are left out
  std::string decode(bitladder::vector_view<const int> ids, bool skip_special = true) const;

  /// One more than the highest id.
  int vocabulary_size() const { return parts_->words.size(); }
  /// Nothing when there is no such token.
  std::optional<int> token_to_id(std::string_view token) const {
    const int id = parts_->words.find(token);
    return id < 0 ? std::nullopt : std::optional<int>(id);
  }
  /// The token as the file spells it ("Ġthe", "<0x0A>"); nothing for an id without one. Valid as
  /// long as the tokenizer or a copy.
  std::optional<std::string_view> id_to_token(int id) const {
    const std::string* token = parts_->words.token(id);
    return token == nullptr ? std::nullopt : std::optional<std::string_view>(*token);
  }
  bool is_special(int id) const {
    return id >= 0 && id < vocabulary_size() && parts_->special[static_cast<std::size_t>(id)];
  }
  /// The ids of all special tokens, ascending.
  std::vector<int> special_ids() const {
    std::vector<int> ids;
    for (int id = 0; id < vocabulary_size(); ++id)
      if (is_special(id)) ids.push_back(id);
    return ids;
  }
  /// What the post_processor puts before a text ...
  const std::vector<int>& prefix_ids() const { return parts_->around.prefix(); }
  /// ... and after it.
  const std::vector<int>& suffix_ids() const { return parts_->around.suffix(); }

 private:
  friend class stream_decoder;

  struct parts {
    tokenization::vocabulary words;
    tokenization::normalizer normalize;
    tokenization::added_tokens added;
    tokenization::pre_tokenizer cut;
    tokenization::bpe model;
    tokenization::post_processor around;
    tokenization::decoder decode;
    std::vector<bool> special;                       // by id
    std::unordered_map<int, std::string> spellings;  // of tokens that are not written as they read

    explicit parts(const tokenization::json_node& file) {
      const tokenization::json_node model_node = file.at("model");
      // The oldest files name no type; they are BPE when they have merges.
      if (model_node.has("type") && model_node.type() != "BPE")
        model_node.fail("a model of type \"" + model_node.type() + "\" is not supported (BPE is)");
      read_vocabulary(model_node.at("vocab"));
      model = tokenization::bpe(model_node, words);
      if (file.has("normalizer")) normalize = tokenization::normalizer(file.at("normalizer"));
      read_added_tokens(file);
      if (file.has("pre_tokenizer")) cut = tokenization::pre_tokenizer(file.at("pre_tokenizer"));
      if (file.has("post_processor"))
        around = tokenization::post_processor(file.at("post_processor"), words);
      if (file.has("decoder")) decode = tokenization::decoder(file.at("decoder"));
    }

    void read_vocabulary(const tokenization::json_node& node) {
      if (!node.value().is_object()) node.fail("an object of tokens and their ids expected");
      for (const auto& [token, id] : node.value().items()) {
        const tokenization::json_node here(id, node.place() + ": \"" + token + "\"");
        add_word(here, token, here.integer(tokenization::vocabulary::max_size));
      }
    }

    void read_added_tokens(const tokenization::json_node& file) {
      std::vector<tokenization::added_token> tokens;
      if (file.has("added_tokens")) {
        for (const tokenization::json_node& one : file.at("added_tokens").elements()) {
          tokens.push_back(tokenization::added_token::read(one));
          add_word(one, tokens.back().content, tokens.back().id);
        }
      }
      special.resize(static_cast<std::size_t>(words.size()));
      for (const tokenization::added_token& t : tokens) {
        if (t.special) special[static_cast<std::size_t>(t.id)] = true;
        // Such a token took in what the normalizer put before the word; its text has it again.
        if (t.normalized) spellings.emplace(t.id, normalize(t.content));
      }
      added = tokenization::added_tokens(std::move(tokens), normalize);
    }

    void add_word(const tokenization::json_node& node, const std::string& token, int id) {
      if (words.add(token, id)) return;
      const std::string* other = words.token(id);
      node.fail("\"" + token + "\" cannot have the id " + std::to_string(id) +
                (other == nullptr || *other == token
                     ? ": it has the id " + std::to_string(words.find(token))
                     : ", which is that of \"" + *other + "\""));
    }
  };

  /// Encodes stretches of one text, and remembers the words that it has seen in it.
  class word_encoder {
   public:
    word_encoder(const parts& p, std::vector<int>& ids) : parts_(p), ids_(ids) {}

    void encode(std::string text, bool opens_input) {
      // The texts are kept, for the keys of `seen_` point into them.
      tokenization::word_list& list = lists_.emplace_back();
      list.text = std::move(text);
      list.words.push_back({0, list.text.size()});
      list.opens_input = opens_input;
      parts_.cut(list);
      parts_.model.cut_at_marks(list);
      for (const tokenization::span s : list.words) {
        const std::string_view word = list.word(s);
        const std::size_t begin = ids_.size();
        const auto [entry, is_new] = seen_.try_emplace(word, tokenization::span{begin, begin});
        if (is_new) {
          parts_.model.encode(word, parts_.words, scratch_, ids_);
          entry->second.end = ids_.size();
        } else {
          for (std::size_t i = entry->second.begin; i < entry->second.end; ++i) {
            const int id = ids_[i];
            ids_.push_back(id);
          }
        }
      }
      list.words.clear();
    }

   private:
    const parts& parts_;
    std::vector<int>& ids_;
    std::deque<tokenization::word_list> lists_;
    std::unordered_map<std::string_view, tokenization::span> seen_;  // where in ids_ its ids are
    tokenization::bpe::scratch scratch_;
  };

  explicit tokenizer(std::shared_ptr<const parts> p) : parts_(std::move(p)) {}

  /// What the decoder gets for an id; null for nothing.
  const std::string* shown_token(int id, bool skip_special) const {
    if (skip_special && is_special(id)) return nullptr;
    const auto spelling = parts_->spellings.find(id);
    return spelling == parts_->spellings.end() ? parts_->words.token(id) : &spelling->second;
  }

  std::shared_ptr<const parts> parts_;
};

/// Decodes ids one by one as a model makes them. All that push and flush return, put together, is
/// what `decode` gives for the same ids; each of them is valid UTF-8.
class stream_decoder {
 public:
  explicit stream_decoder(tokenizer source, bool skip_special = true)
      : source_(std::move(source)), skip_special_(skip_special), steps_(source_.parts_->decode) {}

  /// The text that is certain after one more id; it may be empty.
  std::string push(int id) {
    std::string text;
    if (const std::string* token = source_.shown_token(id, skip_special_))
      steps_.push(*token, text);
    return text;
  }
  /// The text that was kept back. The next push begins a new text.
  std::string flush() {
    std::string text;
    steps_.finish(text);
    steps_ = source_.parts_->decode;
    return text;
  }

 private:
  tokenizer source_;
  bool skip_special_;
  tokenization::decoder steps_;
};

}  // namespace llama
