// SPDX-License-Identifier: MIT
// Any bytes as a GGUF file that a model is made of: its numbers, its tokenizer, which encodes a
// line, and its weights by the names of a Hugging Face model. Start from fuzz/corpus/gguf_model.
#include <bitladder/io/gguf.hpp>

#include "input.hpp"
#include <llama/config_json.hpp>
#include <llama/gguf_config.hpp>
#include <llama/gguf_tokenizer.hpp>
#include <llama/gguf_tokenizer_json.hpp>
#include <llama/gguf_weights.hpp>
#include <llama/tokenizer.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_file bytes(fuzz::text_of(data, size));
  const std::string path = bytes.path();
  fuzz::attempt([&] {
    const bitladder::gguf_file file(path);
    fuzz::attempt([&] { static_cast<void>(llama::config_json(llama::load_config(file))); });
    fuzz::attempt([&] {
      const llama::gguf_tokenizer source = llama::load_gguf_tokenizer(file);
      static_cast<void>(llama::tokenizer_config_json(source));
      const llama::tokenizer t =
          llama::tokenizer::parse(llama::tokenizer_json(source, path), "fuzz");
      const std::vector<int> ids = t.encode(" It's 2024:\tna\u00EFve \u4E16\u754C \xFF</s> x");
      static_cast<void>(t.decode({ids.data(), ids.size()}));
    });
  });
  fuzz::attempt([&] {
    const llama::gguf_weights w(path);
    for (const std::string& name : w.names())
      fuzz::attempt([&] { static_cast<void>(w.read(name)); });
  });
  return 0;
}
