// SPDX-License-Identifier: MIT
// The reader of torch.save files, archive and pickle, under libFuzzer: any bytes either open, with
// every contiguous tensor inside the file, or throw bitladder::error. Start from
// fuzz/corpus/torch_file.
#include <bitladder/io/torch_file.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace bl = bitladder;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const bl::zip_view archive({reinterpret_cast<const char*>(data), size}, "fuzz");
    for (const bl::zip_entry& e : archive.entries()) {
      if (archive.bytes(e).size() != e.size) std::abort();
      static_cast<void>(archive.intact(e));
    }
    for (const bl::torch_tensor& t : bl::detail::read_torch_contents(archive).tensors)
      if (t.contiguous() && (t.begin > size || t.bytes() > size - t.begin)) std::abort();
  } catch (const bl::error&) {
  }
  return 0;
}
