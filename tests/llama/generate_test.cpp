// SPDX-License-Identifier: MIT
// Continuations against Hugging Face transformers, and the rules of stopping. Seeds: 61 and on.
#include <bitladder/schedule/progressive.hpp>

#include "model_folder.hpp"
#include <llama/generate.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

namespace {

using cpu_session = llama::session<llama::cpu_backend>;
using support::stored_model;

struct golden {
  llama::model model;
  std::vector<int> ids, greedy;
  llama::cpu_backend backend;

  explicit golden(const std::string& name)
      : model(llama::load(support::golden_folder(name))), backend(model) {
    const auto json = support::read_json(support::golden_folder(name) / "golden.json");
    ids = json["ids"].get<std::vector<int>>();
    greedy = json["greedy"].get<std::vector<int>>();
  }
};

llama::generate_options options(int max_new_tokens, bool stop = false) {
  llama::generate_options o;
  o.max_new_tokens = max_new_tokens;
  o.stop_at_end_token = stop;
  return o;
}

/// A tokenizer of one letter a token: ids 0 to 63 are the characters from '0' on.
llama::tokenizer letters() {
  nlohmann::json vocabulary = nlohmann::json::object();
  for (int i = 0; i < 64; ++i) vocabulary[std::string(1, static_cast<char>('0' + i))] = i;
  const nlohmann::json file = {
      {"decoder", {{"type", "Fuse"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", nlohmann::json::array()}}}};
  return llama::tokenizer::parse(file.dump(), "letters");
}

}  // namespace

TEST_CASE("greedy continuations equal those of Hugging Face transformers") {
  for (const std::string& name : support::golden_models) {
    CAPTURE(name);
    golden g(name);
    cpu_session s(g.backend);
    const llama::generation out = llama::generate(s, g.ids, 0, options(20));
    CHECK(out.tokens == g.greedy);
    CHECK(out.reason == llama::stop_reason::max_new_tokens);
    CHECK(out.bits == std::vector<int>(20, 0));
  }
}

TEST_CASE("any of the end tokens ends a text and is not part of it") {
  golden g("mha_untied_f16");
  for (std::size_t at : {0u, 3u, 11u}) {
    stored_model m = stored_model::read(support::golden_folder("mha_untied_f16"));
    m.config["eos_token_id"] = {g.greedy[at], g.greedy[at + 3]};
    const support::temporary_folder folder;
    m.write(folder.path());
    const llama::model model = llama::load(folder.path());
    llama::cpu_backend backend(model);
    cpu_session s(backend), on(backend);
    std::size_t first = 0;  // either may come earlier than at its own place
    while (g.greedy[first] != g.greedy[at] && g.greedy[first] != g.greedy[at + 3]) ++first;
    const llama::generation out = llama::generate(s, g.ids, 0, options(20, true));
    CHECK(out.reason == llama::stop_reason::end_token);
    CHECK(out.tokens == std::vector<int>(g.greedy.begin(),
                                         g.greedy.begin() + static_cast<std::ptrdiff_t>(first)));
    CHECK(llama::generate(on, g.ids, 0, options(20, false)).tokens == g.greedy);
  }
}

TEST_CASE("the context ends a text that would outgrow it") {
  golden g("gqa_tied_f32");
  cpu_session s(g.backend, static_cast<int>(g.ids.size()) + 4);
  const llama::generation out = llama::generate(s, g.ids, 0, options(20));
  CHECK(out.reason == llama::stop_reason::context_full);
  // The last token needs no room: nothing is read after it.
  CHECK(out.tokens == std::vector<int>(g.greedy.begin(), g.greedy.begin() + 5));
  cpu_session small(g.backend, 8);
  CHECK_THROWS_AS(llama::generate(small, g.ids, 0), bitladder::error);
}

TEST_CASE("the caller sees every token and may stop") {
  golden g("gqa_tied_f32");
  cpu_session s(g.backend);
  std::vector<int> seen;
  const llama::generation out = llama::generate(s, g.ids, 0, options(20), [&](int token) {
    seen.push_back(token);
    return seen.size() < 7;
  });
  CHECK(out.reason == llama::stop_reason::caller);
  CHECK(seen == std::vector<int>(g.greedy.begin(), g.greedy.begin() + 7));
  CHECK(out.tokens == seen);
}

TEST_CASE("no new tokens means the prompt is read and nothing written") {
  golden g("gqa_tied_f32");
  cpu_session s(g.backend);
  const llama::generation out = llama::generate(s, g.ids, 0, options(0));
  CHECK(out.tokens.empty());
  CHECK(out.reason == llama::stop_reason::max_new_tokens);
  CHECK(s.length() == static_cast<int>(g.ids.size()));
  CHECK(out.tokens_per_second() == 0);
  CHECK_THROWS_AS(llama::generate(s, g.ids, 0, options(-1)), bitladder::error);
  CHECK_THROWS_AS(llama::generate(s, std::vector<int>{}, 0), bitladder::error);
}

TEST_CASE("a plan names the precision of the prompt and of each step") {
  const support::temporary_folder folder;
  support::write_quantized(stored_model::read(support::golden_folder("gqa_tied_f32")),
                           folder.path() / "q", 2, 4, 1, 61);
  const llama::model m = llama::load(folder.path() / "q");
  llama::cpu_backend backend(m);
  const std::vector<int> prompt = {5, 9, 33, 2};
  std::vector<int> asked;
  const auto plan = [&](int step) {
    asked.push_back(step);
    return step == 0 ? 4 : step < 3 ? 3 : 2;
  };
  cpu_session s(backend);
  const llama::generation out = llama::generate(s, prompt, plan, options(6));
  CHECK(asked == std::vector<int>{0, 1, 2, 3, 4, 5});
  CHECK(out.bits == std::vector<int>{4, 3, 3, 2, 2, 2});

  // The same by hand.
  cpu_session by_hand(backend);
  by_hand.forward(prompt, 4);
  llama::sampler greedy;
  for (std::size_t i = 0; i < 6; ++i) {
    const int token = greedy(by_hand.last_logits());
    CHECK(token == out.tokens[i]);
    by_hand.forward({&token, 1}, i < 2 ? 3 : 2);
  }
  cpu_session t(backend);
  CHECK_THROWS_AS(llama::generate(t, prompt, 5, options(3)), bitladder::error);
}

TEST_CASE("a schedule sees how sure the model is, and the last layer's keys and values") {
  const support::temporary_folder folder;
  support::write_quantized(stored_model::read(support::golden_folder("gqa_tied_f32")),
                           folder.path() / "q", 2, 4, 1, 63);
  const llama::model m = llama::load(folder.path() / "q");
  llama::cpu_backend backend(m);
  const std::vector<int> prompt = {5, 9, 33, 2};
  std::vector<bitladder::schedule::observation> seen;
  std::vector<int> lengths;
  std::vector<float> keys, values;
  const int last = m.config().layers - 1, dim = m.config().head_dim;
  const auto plan = [&](const bitladder::schedule::observation& o) {
    seen.push_back(o);
    lengths.push_back(o.last_layer->tokens());
    if (o.step == 2) {
      keys.resize(static_cast<std::size_t>(3 * dim));
      values.resize(keys.size());
      o.last_layer->read(1, 2, 3, keys.data(), values.data());
      CHECK_THROWS_AS(o.last_layer->read(0, 3, 3, keys.data(), values.data()), bitladder::error);
      CHECK_THROWS_AS(o.last_layer->read(m.config().kv_heads, 0, 1, keys.data(), values.data()),
                      bitladder::error);
    }
    return o.step % 2 == 0 ? 4 : 2;
  };
  cpu_session s(backend);
  const llama::generation out = llama::generate(s, prompt, plan, options(4));
  CHECK(out.bits == std::vector<int>{4, 2, 4, 2});
  CHECK(out.average_bits() == 3);
  CHECK(lengths == std::vector<int>{0, 4, 5, 6});

  // The same by hand.
  cpu_session by_hand(backend);
  by_hand.forward(prompt, 4);
  for (std::size_t i = 1; i < seen.size(); ++i) {
    CHECK(seen[i].step == static_cast<int>(i));
    CHECK(seen[i].bits == out.bits[i - 1]);
    const auto logits = by_hand.last_logits();
    double sum = 0;
    const double top = static_cast<double>(logits[static_cast<std::size_t>(out.tokens[i - 1])]);
    for (float x : logits) sum += std::exp(static_cast<double>(x) - top);
    CHECK(static_cast<double>(seen[i].top_probability) == doctest::Approx(1 / sum).epsilon(1e-6));
    by_hand.forward({&out.tokens[i - 1], 1}, out.bits[i]);
  }
  CHECK(seen[0].top_probability < 0.f);
  // Tokens 2 to 4 of head 1: twice of the prompt, once at 2 bits.
  llama::kv_cache cache(m.config());
  const llama::kv_layer layer = by_hand.last_layer();
  std::vector<float> again_keys(keys.size()), again_values(values.size());
  layer.read(1, 2, 3, again_keys.data(), again_values.data());
  CHECK(again_keys == keys);
  CHECK(again_values == values);
  std::vector<float> k(static_cast<std::size_t>(m.config().kv_heads * dim)), v(k.size());
  for (std::size_t i = 0; i < k.size(); ++i) {
    k[i] = static_cast<float>(i);
    v[i] = -static_cast<float>(i);
  }
  cache.reserve(1);
  cache.store(last, 0, k.data(), v.data());
  cache.advance(1);
  llama::kv_layer(cache, last).read(1, 0, 1, keys.data(), values.data());
  for (int d = 0; d < dim; ++d) {
    CHECK(keys[static_cast<std::size_t>(d)] == static_cast<float>(dim + d));
    CHECK(values[static_cast<std::size_t>(d)] == -static_cast<float>(dim + d));
  }
}

TEST_CASE(
    "a precision that a schedule lists and the model has not is refused before anything runs") {
  golden g("gqa_tied_f32");
  cpu_session s(g.backend);
  CHECK_THROWS_AS(
      llama::generate(s, g.ids, bitladder::schedule::progressive({{1, 16}, {2, 4}}), options(3)),
      bitladder::error);
  CHECK(s.length() == 0);
}

TEST_CASE("sampling repeats with its seed") {
  golden g("llama3_rope_f16");
  const auto text = [&](std::uint64_t seed) {
    llama::generate_options o = options(20);
    o.sampling.temperature = 1.5;
    o.sampling.top_k = 30;
    o.sampling.top_p = 0.95;
    o.sampling.seed = seed;
    cpu_session s(g.backend);
    return llama::generate(s, g.ids, 0, o).tokens;
  };
  CHECK(text(1) == text(1));
  CHECK(text(1) != text(2));
}

TEST_CASE("text comes in pieces that make the whole") {
  golden g("gqa_tied_f32");
  const llama::tokenizer words = letters();
  std::string prompt;
  for (int id : g.ids) prompt += static_cast<char>('0' + id);
  std::string expected, streamed;
  for (int id : g.greedy) expected += static_cast<char>('0' + id);
  cpu_session s(g.backend);
  const llama::generation out = llama::generate(s, words, prompt, 0, options(20),
                                                [&](std::string_view piece) { streamed += piece; });
  CHECK(out.text == expected);
  CHECK(streamed == expected);
  CHECK(out.tokens == g.greedy);
  streamed.clear();
  CHECK(llama::generate(
            g.model, words, prompt, 0, [&](std::string_view piece) { streamed += piece; },
            options(20))
            .text == expected);
  CHECK(streamed == expected);
  // An empty prompt starts from the config's begin token.
  cpu_session a(g.backend), b(g.backend);
  CHECK(llama::generate(a, words, "", 0, options(5)).tokens ==
        llama::generate(b, std::vector<int>{1}, 0, options(5)).tokens);
}
