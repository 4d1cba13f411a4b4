// SPDX-License-Identifier: MIT
// Any bytes as a GGUF file under libFuzzer: either it opens, and every value and tensor can be
// touched, or bitladder::error. Start from fuzz/corpus/gguf.
#include <bitladder/io/gguf.hpp>
#include <bitladder/io/gguf_dequantize.hpp>

#include "input.hpp"

#include <cstddef>
#include <cstdint>

namespace {

void touch(const bitladder::gguf_value& v) {
  static_cast<void>(v.describe());
  v.for_each(touch);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_file bytes(fuzz::text_of(data, size));
  fuzz::attempt([&] {
    const bitladder::gguf_file file(bytes.path());
    for (const auto& entry : file.metadata().entries()) touch(entry.value);
    for (const bitladder::gguf_tensor& t : file.tensors())
      fuzz::attempt([&] { static_cast<void>(bitladder::dequantize(file, t)); });
  });
  return 0;
}
