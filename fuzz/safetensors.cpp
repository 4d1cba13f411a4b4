// SPDX-License-Identifier: MIT
// Any bytes as a safetensors file: either it opens, and its tensors are the rest of the file
// without a gap, or bitladder::error. Start from fuzz/corpus/safetensors.
#include <bitladder/core/dtype.hpp>
#include <bitladder/io/safetensors.hpp>

#include "input.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace bl = bitladder;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_file bytes(fuzz::text_of(data, size));
  fuzz::attempt([&] {
    const bl::safetensors_file file(bytes.path());
    std::uint64_t covered = 0;
    unsigned sum = 0;
    for (const bl::tensor_info& t : file.tensors()) {
      fuzz::require(file.find(t.name) == &t && t.begin == covered);
      fuzz::require(bl::byte_size(t.type, t.shape) == t.bytes());
      covered = t.end;
      for (const std::byte b : file.bytes(t)) sum += static_cast<unsigned>(b);
      fuzz::attempt([&] { sum += static_cast<unsigned>(file.read_as_float(t.name).size()); });
    }
    fuzz::require(file.data_offset() + covered == size);
    fuzz::attempt([&] { static_cast<void>(file.at("model.norm.weight")); });
  });
  return 0;
}
