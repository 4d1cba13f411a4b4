// SPDX-License-Identifier: MIT
// The special tokens that are put around a text: TemplateProcessing of a single sequence. ByteLevel
// is accepted, for it moves offsets alone. Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <llama/tokenizer/json_node.hpp>
#include <llama/tokenizer/vocabulary.hpp>

#include <string>
#include <vector>

namespace llama::tokenization {

/// The "post_processor" component.
class post_processor {
 public:
  post_processor() = default;
  post_processor(const json_node& node, const vocabulary& words) { add(node, words); }

  const std::vector<int>& prefix() const { return prefix_; }
  const std::vector<int>& suffix() const { return suffix_; }

 private:
  void add(const json_node& node, const vocabulary& words) {
    const std::string type = node.type();
    if (type == "Sequence") {
      for (const json_node& part : node.at("processors").elements()) add(part, words);
    } else if (type == "TemplateProcessing") {
      add_template(node, words);
    } else if (type != "ByteLevel") {
      node.fail("a post-processor of type \"" + type +
                "\" is not supported (Sequence, TemplateProcessing, ByteLevel are)");
    }
  }

  void add_template(const json_node& node, const vocabulary& words) {
    std::vector<int> before, after;
    int sequences = 0;
    for (const json_node& piece : node.at("single").elements()) {
      if (piece.has("Sequence")) {
        if (piece.at("Sequence").at("id").text() != "A")
          piece.fail("a single template has no sequence but A");
        ++sequences;
        continue;
      }
      const std::string name = piece.at("SpecialToken").at("id").text();
      const json_node ids = node.at("special_tokens").at(name.c_str()).at("ids");
      for (const json_node& id : ids.elements()) {
        const int value = id.integer(vocabulary::max_size);
        if (words.token(value) == nullptr) id.fail("no token has the id " + std::to_string(value));
        (sequences == 0 ? before : after).push_back(value);
      }
    }
    if (sequences != 1) node.at("single").fail("one sequence A expected");
    // A second template goes around the first.
    prefix_.insert(prefix_.begin(), before.begin(), before.end());
    suffix_.insert(suffix_.end(), after.begin(), after.end());
  }

  std::vector<int> prefix_, suffix_;
};

}  // namespace llama::tokenization
