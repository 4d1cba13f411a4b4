// SPDX-License-Identifier: MIT
// Logits of a card beside those of the CPU: how to make them, how far they are apart, and how far
// they may be.
#pragma once

#include <llama/backend_cpu.hpp>
#include <llama/cuda_engine.hpp>
#include <llama/forward.hpp>
#include <llama/model.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace support {

using logits_row = std::vector<float>;

inline std::vector<int> some_tokens(int count, int vocabulary, std::uint64_t seed) {
  random random(seed);
  std::vector<int> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(random.below(vocabulary));
  return tokens;
}

/// Every row of logits of `tokens`: the first `prompt` at once, the others one by one, token i at
/// bits[i % bits.size()], a prompt at bits[0].
template <class Session>
std::vector<logits_row> all_rows(Session& s, const std::vector<int>& tokens, int prompt,
                                 const std::vector<int>& bits) {
  std::vector<logits_row> rows;
  const auto take = [&](int count) {
    const auto l = s.logits(0, count);
    for (int r = 0; r < count; ++r) rows.emplace_back(l.row(r), l.row(r) + l.cols());
  };
  s.forward({tokens.data(), static_cast<std::size_t>(prompt)}, bits[0]);
  take(prompt);
  for (std::size_t i = static_cast<std::size_t>(prompt); i < tokens.size(); ++i) {
    s.forward({&tokens[i], 1}, bits[i % bits.size()]);
    take(1);
  }
  return rows;
}

/// How far logits are apart.
struct apart {
  double worst = 0;  ///< largest difference relative to its row's largest logit
  double all = 0;    ///< of all rows together, in the Euclidean norm
};

inline apart difference(const std::vector<logits_row>& a, const std::vector<logits_row>& b) {
  REQUIRE(a.size() == b.size());
  apart d;
  double squares = 0, of = 0;
  for (std::size_t r = 0; r < a.size(); ++r) {
    REQUIRE(a[r].size() == b[r].size());
    double largest = 0, most = 0;
    for (std::size_t i = 0; i < a[r].size(); ++i) {
      const double x = static_cast<double>(a[r][i]), y = static_cast<double>(b[r][i]);
      largest = std::max(largest, std::fabs(y));
      // Not std::max: a NaN has to show.
      if (!(std::fabs(x - y) <= most)) most = std::fabs(x - y);
      squares += (x - y) * (x - y);
      of += y * y;
    }
    if (!(most / largest <= d.worst)) d.worst = most / largest;
  }
  d.all = std::sqrt(squares / of);
  return d;
}

inline apart compare(const llama::model& m, int count, int prompt, const std::vector<int>& bits,
                     std::uint64_t seed) {
  const std::vector<int> tokens = some_tokens(count, m.config().vocabulary, seed);
  llama::cpu_backend cpu(m);
  llama::session<llama::cpu_backend> expected(cpu);
  llama::card_engine engine(m);
  llama::session<llama::card_engine> found(engine);
  return difference(all_rows(found, tokens, prompt, bits),
                    all_rows(expected, tokens, prompt, bits));
}

// What a card feeds to products and keeps in the cache is fp16, the CPU's all fp32. In widths of 24
// to 40 those roundings even out less than in a real model: emulated in double (fp16_roundings.py)
// they move logits of the tiny models by a median of 5e-3 to 6e-3 of a row's largest over 40 texts,
// at most 2e-2 (of the norm 1.6e-3 to 2.1e-3, at most 3e-3). For the text of the first case they
// give what an H200 gave: qwen2_bf16 9.35e-3 and 2.94e-3 (H200 9.35e-3 and 2.89e-3), mha_untied_f16
// 4.19e-3 and 1.71e-3 (4.22e-3 and 1.73e-3), gqa_tied_f32 4.42e-3 and 1.54e-3 (4.42e-3 and
// 1.53e-3). Logits of the bundled model are within 1.2e-3 (4e-4).
constexpr double allowed = 2e-3;
constexpr apart allowed_of_tiny{1.2e-2, 3e-3};

inline bool within(const apart& found, const apart& most) {
  return found.worst < most.worst && found.all < most.all;
}

}  // namespace support
