// SPDX-License-Identifier: MIT
// A tokenizer.json and a text, with a zero byte between, under libFuzzer: either the text is
// encoded and decoded, whole and as a stream, or bitladder::error. Start from
// fuzz/corpus/tokenizer.
#include "input.hpp"
#include <llama/tokenizer.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input = fuzz::text_of(data, size);
  const std::string_view json = input.substr(0, input.find('\0'));
  const std::string_view text =
      json.size() == input.size() ? std::string_view() : input.substr(json.size() + 1);
  fuzz::attempt([&] {
    const llama::tokenizer t = llama::tokenizer::parse(json, "fuzz");
    std::vector<int> ids;
    fuzz::attempt([&] { ids = t.encode(text); });
    for (const int id : ids)
      fuzz::require(id >= 0 && id < t.vocabulary_size() && t.id_to_token(id).has_value());
    for (const unsigned char byte : text) ids.push_back(byte);  // ids that no text gives
    for (const bool skip_special : {false, true}) {
      std::string whole, streamed;
      fuzz::attempt([&] {
        whole = t.decode({ids.data(), ids.size()}, skip_special);
        llama::stream_decoder stream(t, skip_special);
        for (const int id : ids) streamed += stream.push(id);
        streamed += stream.flush();
        fuzz::require(llama::tokenization::is_utf8(whole) && whole == streamed);
      });
    }
  });
  return 0;
}
