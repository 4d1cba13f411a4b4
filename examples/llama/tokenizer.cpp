// SPDX-License-Identifier: MIT
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/gguf.hpp>

#include <llama/float_tensors.hpp>
#include <llama/gguf_tokenizer.hpp>
#include <llama/gguf_tokenizer_json.hpp>
#include <llama/tokenizer.hpp>

#include <nlohmann/json.hpp>

#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace llama {

tokenizer tokenizer::load(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::ostringstream text;
  if (!(text << in.rdbuf()))
    throw bitladder::error(bitladder::status::io_failed,
                           file.string() + ": cannot be read, or is empty");
  return parse(text.str(), file.string());
}

tokenizer tokenizer::of_model(const std::filesystem::path& model) {
  if (!is_gguf_path(model)) return load(model / "tokenizer.json");
  const bitladder::gguf_file file(model);
  return parse(tokenizer_json(load_gguf_tokenizer(file), file.path()), file.path() + ": tokenizer");
}

tokenizer tokenizer::parse(std::string_view json, const std::string& name) {
  const nlohmann::json document = tokenization::parse_json(json, name);
  return tokenizer(std::make_shared<const parts>(tokenization::json_node(document, name)));
}

std::vector<int> tokenizer::encode(std::string_view text, bool add_special) const {
  using tokenization::span;
  constexpr std::size_t max_text = std::size_t{1} << 29;  // a character's place fits an int
  if (text.size() > max_text)
    throw bitladder::error(
        bitladder::status::invalid_argument,
        "a text of at most 512 MiB expected, found " + std::to_string(text.size()) + " bytes");
  std::vector<int> ids;
  if (add_special) ids = prefix_ids();
  word_encoder words(*parts_, ids);
  const std::string repaired = tokenization::repair_utf8(text);
  const std::string_view all = repaired;
  const auto token = [&](int id) { ids.push_back(id); };
  parts_->added.split(
      all, false,
      [&](span outer) {
        const std::string normalized =
            parts_->normalize(all.substr(outer.begin, outer.end - outer.begin));
        parts_->added.split(
            normalized, true,
            [&](span inner) {
              words.encode(normalized.substr(inner.begin, inner.end - inner.begin),
                           outer.begin == 0 && inner.begin == 0);
            },
            token);
      },
      token);
  if (add_special) ids.insert(ids.end(), suffix_ids().begin(), suffix_ids().end());
  return ids;
}

std::string tokenizer::decode(bitladder::vector_view<const int> ids, bool skip_special) const {
  std::string text;
  tokenization::decoder steps = parts_->decode;
  for (const int id : ids)
    if (const std::string* token = shown_token(id, skip_special)) steps.push(*token, text);
  steps.finish(text);
  return text;
}

}  // namespace llama
