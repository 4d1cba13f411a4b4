// SPDX-License-Identifier: MIT
// All logits of a text, however it is cut: what the tests of the forward pass compare.
#pragma once

#include <llama/backend_cpu.hpp>
#include <llama/forward.hpp>

#include <algorithm>
#include <cstddef>
#include <vector>

namespace support {

/// Logits of all `ids`, forwarded `chunk` at a time.
inline std::vector<float> all_logits(const llama::model& m, const std::vector<int>& ids, int bits,
                                     int chunk = 0, int threads = 1) {
  bitladder::thread_pool pool(threads);
  llama::cpu_backend backend(m, threads > 1 ? &pool : nullptr);
  llama::session<llama::cpu_backend> s(backend);
  std::vector<float> out;
  const int count = static_cast<int>(ids.size());
  for (int begin = 0; begin < count;) {
    const int rows = std::min(chunk > 0 ? chunk : count, count - begin);
    s.forward({ids.data() + begin, static_cast<std::size_t>(rows)}, bits);
    const auto logits = s.logits(0, rows);
    out.insert(out.end(), logits.data(),
               logits.data() + static_cast<std::size_t>(rows) * logits.stride());
    begin += rows;
  }
  return out;
}

}  // namespace support
