// SPDX-License-Identifier: MIT
// Writing on: a prompt goes in at once, then one token a step, each step at the precision that a
// plan names. Streams tokens, or text through the tokenizer. Tested by
// tests/llama/generate_test.cpp.
#pragma once

#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/schedule/any.hpp>
#include <bitladder/schedule/bit_log.hpp>
#include <bitladder/schedule/observation.hpp>

#include <llama/backend_cpu.hpp>
#include <llama/forward.hpp>
#include <llama/sampler.hpp>
#include <llama/tokenizer.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llama {

/// Precision of every forward pass: a number, a function of the step, or a schedule. Step 0 reads
/// the prompt, step i reads the i-th new token.
using precision_plan = bitladder::schedule::any;

/// When to stop, and how to choose.
struct generate_options {
  int max_new_tokens = 256;
  sampler_options sampling;
  bool stop_at_end_token = true;  ///< any of the config's end tokens
};

/// Why a text ended.
enum class stop_reason {
  end_token,       ///< the model said so; the end token is not among `tokens`
  max_new_tokens,  ///< as many as were asked for
  context_full,    ///< the session has no room for another token
  caller,          ///< the callback returned false
};

constexpr const char* to_string(stop_reason r) noexcept {
  switch (r) {
    case stop_reason::end_token: return "end token";
    case stop_reason::max_new_tokens: return "token limit";
    case stop_reason::context_full: return "context full";
    case stop_reason::caller: return "stopped by the caller";
  }
  return "?";
}

/// What was written, and how fast.
struct generation {
  std::vector<int> tokens;  ///< new ones only
  std::string text;         ///< theirs, if a tokenizer was given
  stop_reason reason = stop_reason::max_new_tokens;
  std::vector<int> bits;  ///< precision of each step run; the first is the prompt's, 0 unquantized
  double prompt_seconds = 0;
  double decode_seconds = 0;

  /// Steps after the prompt, per second; 0 if there was none.
  double tokens_per_second() const {
    const double steps = static_cast<double>(bits.size()) - 1;
    return steps > 0 && decode_seconds > 0 ? steps / decode_seconds : 0;
  }
  /// Mean precision of all steps, the prompt's among them.
  double average_bits() const { return bitladder::schedule::average_bits(bits); }
};

/// The softmax's largest value; NaN if there is none.
inline float top_probability(bitladder::vector_view<const float> logits) {
  float top = logits[0];
  for (float x : logits) top = std::max(top, x);
  double sum = 0;
  for (float x : logits) sum += std::exp(static_cast<double>(x) - static_cast<double>(top));
  return static_cast<float>(1 / sum);
}

/// Continues `prompt` in `s`, after whatever the session has seen.
/// @param on_token called with each new token; false stops
/// @param plan a copy of it is asked, so that every text has a fresh one
/// @throws bitladder::error if the prompt is empty or has no room, or a plan's precision is not
/// there: one that the plan lists before anything is run
template <class Backend>
generation generate(session<Backend>& s, bitladder::vector_view<const int> prompt,
                    const precision_plan& plan, const generate_options& options = {},
                    const std::function<bool(int)>& on_token = {}) {
  if (options.max_new_tokens < 0)
    throw bitladder::error(bitladder::status::invalid_argument,
                           "generate: max_new_tokens: expected 0 or more, found " +
                               std::to_string(options.max_new_tokens));
  using clock = std::chrono::steady_clock;
  const auto seconds_since = [](clock::time_point t) {
    return std::chrono::duration<double>(clock::now() - t).count();
  };
  sampler choose(options.sampling);
  generation out;
  const std::vector<int>& ends = s.model().config().eos;

  precision_plan own = plan;
  for (int bits : own.precisions()) static_cast<void>(s.model().checked_precision(bits));
  bitladder::schedule::observation seen;
  const typename Backend::kv_view last_layer = s.last_layer();
  seen.last_layer = &last_layer;
  const auto next_bits = [&](float probability) {
    seen.step = static_cast<int>(out.bits.size());
    seen.bits = out.bits.empty() ? 0 : out.bits.back();
    seen.top_probability = probability;
    out.bits.push_back(s.model().checked_precision(own(seen)));
    return out.bits.back();
  };

  const auto start = clock::now();
  s.forward(prompt, next_bits(-1.f));
  out.prompt_seconds = seconds_since(start);

  const auto decode_start = clock::now();
  const auto finish = [&](stop_reason reason) {
    out.reason = reason;
    out.decode_seconds = seconds_since(decode_start);
    return out;
  };
  while (static_cast<int>(out.tokens.size()) < options.max_new_tokens) {
    const auto logits = s.last_logits();
    const float probability = own.needs_probability() ? top_probability(logits) : -1.f;
    const int token = choose(logits);
    if (options.stop_at_end_token && std::find(ends.begin(), ends.end(), token) != ends.end())
      return finish(stop_reason::end_token);
    out.tokens.push_back(token);
    if (on_token && !on_token(token)) return finish(stop_reason::caller);
    if (static_cast<int>(out.tokens.size()) == options.max_new_tokens) break;
    if (s.length() == s.capacity()) return finish(stop_reason::context_full);
    s.forward({&token, 1}, next_bits(probability));
  }
  return finish(stop_reason::max_new_tokens);
}

/// The same for text.
/// @param on_text called with each piece of new text, always whole characters
template <class Backend>
generation generate(session<Backend>& s, const tokenizer& words, std::string_view prompt,
                    const precision_plan& plan, const generate_options& options = {},
                    const std::function<void(std::string_view)>& on_text = {}) {
  std::vector<int> ids = words.encode(prompt);
  // Where the tokenizer adds no begin token, an empty prompt starts from the config's.
  if (ids.empty() && s.model().config().bos >= 0) ids.push_back(s.model().config().bos);
  stream_decoder decoder(words);
  std::string text;
  const auto emit = [&](std::string piece) {
    if (piece.empty()) return;
    text += piece;
    if (on_text) on_text(piece);
  };
  generation out = generate(s, ids, plan, options, [&](int token) {
    emit(decoder.push(token));
    return true;
  });
  emit(decoder.flush());
  out.text = std::move(text);
  return out;
}

/// The same on the CPU with all its threads, from a fresh session.
inline generation generate(const model& m, const tokenizer& words, std::string_view prompt,
                           const precision_plan& plan,
                           const std::function<void(std::string_view)>& on_text = {},
                           const generate_options& options = {}) {
  bitladder::thread_pool pool;
  cpu_backend backend(m, &pool);
  session<cpu_backend> s(backend);
  return generate(s, words, prompt, plan, options, on_text);
}

}  // namespace llama
