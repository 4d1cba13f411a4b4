// SPDX-License-Identifier: MIT
// Any bytes as a GGUF file: opened, every value and tensor touched, then taken for a Llama. For
// libFuzzer: -fsanitize=fuzzer,address,undefined.
#include <bitladder/core/status.hpp>
#include <bitladder/io/gguf.hpp>
#include <bitladder/io/gguf_dequantize.hpp>

#include <llama/gguf_tokenizer.hpp>
#include <llama/gguf_weights.hpp>

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <sys/mman.h>

namespace {

/// Lets errors of the library pass, and nothing else.
template <class F>
void attempt(F&& call) {
  try {
    call();
  } catch (const bitladder::error&) {
  }
}

void touch(const bitladder::gguf_value& v) {
  static_cast<void>(v.describe());
  v.for_each(touch);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const int memory = ::memfd_create("gguf", 0);  // a file that no disk sees
  if (memory < 0 || ::write(memory, data, size) != static_cast<ssize_t>(size)) std::abort();
  const std::string path = "/proc/self/fd/" + std::to_string(memory);
  attempt([&] {
    const bitladder::gguf_file file(path);
    for (const auto& entry : file.metadata().entries()) touch(entry.value);
    for (const bitladder::gguf_tensor& t : file.tensors())
      attempt([&] { static_cast<void>(bitladder::dequantize(file, t)); });
    attempt([&] { static_cast<void>(llama::load_gguf_tokenizer(file)); });
  });
  attempt([&] {
    const llama::gguf_weights w(path);
    for (const std::string& name : w.names()) static_cast<void>(w.read(name));
  });
  ::close(memory);
  return 0;
}
