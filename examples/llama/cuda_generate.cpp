// SPDX-License-Identifier: MIT
#include <bitladder/core/status.hpp>
#include <bitladder/schedule/observation.hpp>

#include <llama/cuda_engine.hpp>
#include <llama/generate.hpp>
#include <llama/sampler.hpp>

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

namespace llama {
namespace {

/// Greedy steps that are queued at once: what is written after an end token is for nothing.
constexpr int steps_at_once = 16;

}  // namespace

generation generate(session<card_engine>& s, bitladder::vector_view<const int> prompt,
                    const precision_plan& plan, const generate_options& options,
                    const std::function<bool(int)>& on_token) {
  if ((options.sampling.temperature > 0 && options.sampling.top_k != 1) || plan.needs_probability())
    return generate<card_engine>(s, prompt, plan, options, on_token);
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
  for (int bits : own.precisions()) static_cast<void>(s.backend().checked_precision(bits));
  bitladder::schedule::observation seen;
  const auto next_bits = [&](int step) {
    seen.step = step;
    return seen.bits = s.backend().checked_precision(own(seen));
  };

  s.backend().warm_up();
  const auto start = clock::now();
  out.bits.push_back(next_bits(0));
  s.forward(prompt, out.bits.back());
  // Looks at the logits once, so that a broken model is told as it is elsewhere.
  std::vector<int> ready;  // chosen, not yet taken
  if (options.max_new_tokens > 0) ready.push_back(choose(s.last_logits()));
  out.prompt_seconds = seconds_since(start);

  const auto decode_start = clock::now();
  const auto finish = [&](stop_reason reason) {
    out.reason = reason;
    out.decode_seconds = seconds_since(decode_start);
    return out;
  };
  int begin = s.length();         // before the steps that chose `ready`
  std::vector<int> bits_of_step;  // theirs
  while (static_cast<int>(out.tokens.size()) < options.max_new_tokens) {
    for (std::size_t i = 0; i < ready.size(); ++i) {
      const int token = ready[i];
      if (i < bits_of_step.size()) {
        out.bits.push_back(bits_of_step[i]);
        ++begin;
      }
      const bool end =
          options.stop_at_end_token && std::find(ends.begin(), ends.end(), token) != ends.end();
      if (!end) out.tokens.push_back(token);
      if (end || (on_token && !on_token(token))) {
        s.truncate(begin);
        return finish(end ? stop_reason::end_token : stop_reason::caller);
      }
    }
    const int written = static_cast<int>(out.tokens.size());
    if (written == options.max_new_tokens) break;
    if (s.length() == s.capacity()) return finish(stop_reason::context_full);
    const int count =
        std::min({steps_at_once, options.max_new_tokens - written, s.capacity() - s.length()});
    bits_of_step.clear();
    for (int i = 0; i < count; ++i) bits_of_step.push_back(next_bits(written + i));
    begin = s.length();
    const int sequence = s.sequence(), token = out.tokens.back();
    ready = s.backend().decode(
        {&sequence, 1}, {&token, 1},
        [&](int step) { return bits_of_step[static_cast<std::size_t>(step)]; }, count);
  }
  return finish(stop_reason::max_new_tokens);
}

}  // namespace llama
