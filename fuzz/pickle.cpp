// SPDX-License-Identifier: MIT
// The pickle reader under libFuzzer: any bytes either read, without a cycle and within the limits,
// or throw bitladder::error. Start from fuzz/corpus/pickle.
#include <bitladder/io/pickle.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace bl = bitladder;

namespace {

/// Walks all values; a cycle would pass the depth.
void walk(const bl::pickle_value& v, int depth, int& budget) {
  if (depth > bl::pickle_limits{}.depth) std::abort();
  if (--budget < 0) return;  // shared values may make a small pickle a large tree
  if (v.is(bl::pickle_kind::tensor) && v.as_tensor().shape.size() != v.as_tensor().stride.size())
    std::abort();
  for (std::size_t i = 0; i < v.size(); ++i) {
    if (v.is(bl::pickle_kind::dict)) walk(v.key(i), depth + 1, budget);
    walk(v[i], depth + 1, budget);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const bl::pickle_document document =
        bl::read_pickle({reinterpret_cast<const char*>(data), size}, "fuzz");
    int budget = 10000;
    walk(document.root(), 0, budget);
  } catch (const bl::error&) {
  }
  return 0;
}
