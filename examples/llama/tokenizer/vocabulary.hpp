// SPDX-License-Identifier: MIT
// Tokens and their ids, both ways. Ids may have holes; a token has one id and an id one token.
// Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llama::tokenization {

/// Grows by `add`; the texts that it hands out live as long as it does, wherever it is moved.
class vocabulary {
 public:
  /// Ids are below this. The tables are dense, so that a lying file must not choose their size;
  /// the largest vocabularies in use are a tenth of it.
  static constexpr int max_size = 1 << 22;

  vocabulary() = default;
  vocabulary(vocabulary&&) = default;
  vocabulary& operator=(vocabulary&&) = default;
  vocabulary(const vocabulary&) = delete;  // the keys of ids_ point into texts_
  vocabulary& operator=(const vocabulary&) = delete;

  /// @param id 0 .. max_size - 1
  /// @return whether the pair is now there; false leaves all as it was, because the token has
  ///   another id or the id another token
  bool add(std::string_view token, int id) {
    const auto known = ids_.find(token);
    if (known != ids_.end()) return known->second == id;
    if (id >= size()) tokens_.resize(static_cast<std::size_t>(id) + 1, nullptr);
    const std::string*& slot = tokens_[static_cast<std::size_t>(id)];
    if (slot != nullptr) return false;
    texts_.emplace_back(token);
    slot = &texts_.back();
    ids_.emplace(*slot, id);
    return true;
  }

  /// One more than the highest id.
  int size() const { return static_cast<int>(tokens_.size()); }
  /// -1 when there is no such token.
  int find(std::string_view token) const {
    const auto known = ids_.find(token);
    return known == ids_.end() ? -1 : known->second;
  }
  /// Null when the id is a hole or out of range.
  const std::string* token(int id) const {
    return id < 0 || id >= size() ? nullptr : tokens_[static_cast<std::size_t>(id)];
  }

 private:
  std::deque<std::string> texts_;  // a deque: its elements stay where they are
  std::vector<const std::string*> tokens_;
  std::unordered_map<std::string_view, int> ids_;
};

}  // namespace llama::tokenization
