// SPDX-License-Identifier: MIT
// The engine of a card against that of the CPU, which forward_test.cpp and family_test.cpp compare
// with transformers. Seeds: 151 and on.
#include <bitladder/core/status.hpp>
#include <bitladder/schedule/observation.hpp>

#include "../model_folder.hpp"
#include "engine_logits.hpp"
#include "quantized_small.hpp"
#include <llama/backend_cpu.hpp>
#include <llama/cuda_engine.hpp>
#include <llama/forward.hpp>
#include <llama/generate.hpp>
#include <llama/model.hpp>
#include <support/files.hpp>
#include <support/has_device.hpp>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace {

using support::all_rows;
using support::allowed;
using support::allowed_of_tiny;
using support::apart;
using support::compare;
using support::difference;
using support::logits_row;
using support::some_tokens;
using support::within;

int likeliest(const float* logits, int count) {
  return static_cast<int>(std::max_element(logits, logits + count) - logits);
}

bool runs_here(const llama::model& m) { return m.config().embedding_width() == m.config().hidden; }

}  // namespace

TEST_CASE("unquantized logits of every family are those of the CPU" *
          doctest::skip(!support::has_device())) {
  std::vector<std::string> models = support::golden_models;
  models.insert(models.end(), support::family_models.begin(), support::family_models.end());
  for (const std::string& name : models) {
    CAPTURE(name);
    const llama::model m = llama::load(support::golden_folder(name));
    if (!runs_here(m)) {
      CHECK_THROWS_AS(llama::card_engine{m}, bitladder::error);
      continue;
    }
    const apart d = compare(m, 60, 45, {llama::unquantized}, 152);
    MESSAGE(name << ": " << d.worst << " of a row's largest logit, " << d.all << " of all");
    CHECK(within(d, allowed_of_tiny));
  }
}

TEST_CASE("quantized logits of every family are those of the CPU at every precision" *
          doctest::skip(!support::has_device())) {
  std::vector<std::string> models = support::golden_models;
  models.insert(models.end(), support::family_models.begin(), support::family_models.end());
  for (const std::string& name : models) {
    CAPTURE(name);
    const support::temporary_folder folder;
    support::write_quantized(support::stored_model::read(support::golden_folder(name)),
                             folder.path() / "model", 2, 8, 1, 153);
    const llama::model m = llama::load(folder.path() / "model");
    if (!runs_here(m)) continue;
    const apart d = compare(m, 40, 19, {8, 2, 3, 4, 5, 6, 7}, 154);
    MESSAGE(name << ": " << d.worst << " of a row's largest logit, " << d.all << " of all");
    CHECK(within(d, allowed_of_tiny));
  }
}

TEST_CASE("logits of the bundled model are those of the CPU" *
          doctest::skip(!support::has_device())) {
  const llama::model dense = llama::load(support::small_model());
  const apart unquantized = compare(dense, 80, 64, {16}, 155);
  MESSAGE("unquantized: " << unquantized.worst << ", " << unquantized.all);
  CHECK(within(unquantized, {allowed, 1e-3}));
  const llama::model m = llama::load(support::quantized_small());
  for (int bits = 2; bits <= 8; ++bits) {
    CAPTURE(bits);
    const apart d = compare(m, 48, 33, {bits}, 156);
    MESSAGE(bits << " bits: " << d.worst << ", " << d.all);
    CHECK(within(d, {allowed, 1e-3}));
  }
  // Ten times the logits have a larger largest difference.
  const apart longer = compare(dense, 701, 700, {16}, 157);
  MESSAGE("of 701 tokens: " << longer.worst << ", " << longer.all);
  CHECK(within(longer, {1.5 * allowed, 1e-3}));
}

TEST_CASE("long prompts, cut or not, have the CPU's logits whichever products they take" *
          doctest::skip(!support::has_device())) {
  const llama::model m = llama::load(support::quantized_small());
  const int count = 2400;  // a chunk of 2048 goes by slabs, the rest does not
  const std::vector<int> tokens = some_tokens(count, m.config().vocabulary, 174);
  llama::card_options options;
  options.precisions = {3, 4, 5, 6, 7, 8};
  options.context = count;
  llama::card_engine engine(m, options);
  llama::session<llama::card_engine> found(engine);
  llama::cpu_backend cpu(m);
  llama::session<llama::cpu_backend> expected(cpu, count);
  const int begin = 1990;  // rows of both chunks
  const auto rows = [&](auto& s, int first, int last) {
    const auto l = s.logits(first, last - first);
    std::vector<logits_row> out;
    for (int r = 0; r < l.rows(); ++r) out.emplace_back(l.row(r), l.row(r) + l.cols());
    return out;
  };
  for (int bits : {3, 8}) {
    CAPTURE(bits);
    expected.truncate(0);
    expected.forward(tokens, bits);
    const std::vector<logits_row> want = rows(expected, begin, count);
    found.truncate(0);
    found.forward(tokens, bits);
    const std::vector<logits_row> once = rows(found, begin, count);
    const apart d = difference(once, want);
    MESSAGE(bits << " bits: " << d.worst << ", " << d.all);
    CHECK(within(d, {2 * allowed, 1e-3}));
    found.truncate(0);
    found.forward(tokens, bits);
    CHECK(rows(found, begin, count) == once);
    found.truncate(0);
    for (int i = 0; i < begin; i += 398) found.forward({tokens.data() + i, std::size_t{398}}, bits);
    found.forward({tokens.data() + begin, static_cast<std::size_t>(count - begin)}, bits);
    CHECK(within(difference(rows(found, 0, count - begin), want), {2 * allowed, 1e-3}));
  }
}

TEST_CASE("outliers count in steps and in short and long prompts" *
          doctest::skip(!support::has_device())) {
  const llama::model m = llama::load(support::quantized_small_with_outliers());
  for (int bits : {2, 3, 4, 5, 8}) {
    CAPTURE(bits);
    CHECK(within(compare(m, 48, 33, {bits}, 175), {allowed, 1e-3}));
    CHECK(within(compare(m, 1024, 1024, {bits}, 176), {2 * allowed, 1e-3}));
  }
}

TEST_CASE("a precision for every token gives the CPU's logits, in steps and in one go" *
          doctest::skip(!support::has_device())) {
  const llama::model m = llama::load(support::quantized_small());
  const std::vector<int> bits = {4, 8, 3, 2, 6, 5, 7, 2};
  CHECK(compare(m, 60, 20, bits, 158).worst < allowed);

  const std::vector<int> prompt = some_tokens(20, m.config().vocabulary, 159);
  const int count = 40, vocabulary = m.config().vocabulary;
  const auto plan = [&](int step) { return bits[static_cast<std::size_t>(step) % bits.size()]; };
  llama::card_engine engine(m);
  llama::session<llama::card_engine> s(engine);
  s.forward(prompt, 4);
  int token = likeliest(s.last_logits().data(), vocabulary);
  const int first = token;
  std::vector<int> stepwise;
  for (int i = 0; i < count; ++i) {
    s.forward({&token, 1}, plan(i));
    stepwise.push_back(token = likeliest(s.last_logits().data(), vocabulary));
  }
  s.truncate(20);
  const int sequence = 0;
  CHECK(engine.decode({&sequence, 1}, {&first, 1}, plan, count) == stepwise);
  CHECK(s.length() == 20 + count);

  // What the card chose is what the CPU would, but for near ties.
  llama::cpu_backend cpu(m);
  llama::session<llama::cpu_backend> expected(cpu);
  expected.forward(prompt, 4);
  token = first;
  for (int i = 0; i < count; ++i) {
    expected.forward({&token, 1}, plan(i));
    const auto l = expected.last_logits();
    const float largest = l.data()[likeliest(l.data(), vocabulary)];
    token = stepwise[static_cast<std::size_t>(i)];
    CHECK(l.data()[token] >= largest - 2 * static_cast<float>(allowed) * std::fabs(largest));
  }
}

TEST_CASE("a sequence has the same bits alone, in a batch of eight, and again" *
          doctest::skip(!support::has_device())) {
  for (const std::filesystem::path& path : {support::quantized_small(), support::small_model()}) {
    CAPTURE(path.string());
    const llama::model m = llama::load(path);
    const int bits = m.quantized() ? 4 : 16, count = 24, vocabulary = m.config().vocabulary;
    llama::card_options options;
    options.batch = 8;
    options.context = 256;
    llama::card_engine engine(m, options);
    const std::vector<int> all = {3, 0, 7, 5, 1, 2, 6, 4};
    std::vector<int> first(8);
    const auto prompts = [&] {
      for (int s = 0; s < 8; ++s) {
        engine.truncate(s, 0);
        engine.forward(s, some_tokens(3 + 17 * s, vocabulary, 160 + static_cast<std::uint64_t>(s)),
                       bits);
        first[static_cast<std::size_t>(s)] =
            likeliest(engine.logits(engine.rows() - 1, 1).data(), vocabulary);
      }
    };
    const auto tokens_of = [&] {
      std::vector<int> t;
      for (int s : all) t.push_back(first[static_cast<std::size_t>(s)]);
      return t;
    };
    prompts();
    const std::vector<int> first_time = first;
    const std::vector<int> together = engine.decode(all, tokens_of(), bits, count);
    const auto l = engine.logits(0, 8);
    const std::vector<float> logits(l.data(), l.data() + 8 * static_cast<std::size_t>(vocabulary));

    prompts();
    CHECK(first == first_time);
    CHECK(engine.decode(all, tokens_of(), bits, count) == together);
    const auto again = engine.logits(0, 8);
    CHECK(std::equal(logits.begin(), logits.end(), again.data()));

    prompts();
    for (std::size_t i = 0; i < all.size(); ++i) {
      const int s = all[i];
      CAPTURE(s);
      const std::vector<int> alone =
          engine.decode({&s, 1}, {&first[static_cast<std::size_t>(s)], 1}, bits, count);
      for (int t = 0; t < count; ++t)
        CHECK(alone[static_cast<std::size_t>(t)] == together[static_cast<std::size_t>(t) * 8 + i]);
      const auto row = engine.logits(0, 1);
      CHECK(std::equal(row.data(), row.data() + vocabulary,
                       logits.data() + i * static_cast<std::size_t>(vocabulary)));
    }
  }
}

TEST_CASE("generate writes with a card as with the CPU" * doctest::skip(!support::has_device())) {
  const llama::model m = llama::load(support::small_model());
  const llama::tokenizer words = llama::tokenizer::of_model(support::small_model());
  llama::generate_options options;
  options.max_new_tokens = 24;
  llama::cpu_backend cpu(m);
  llama::session<llama::cpu_backend> expected(cpu);
  llama::card_engine engine(m);
  llama::session<llama::card_engine> found(engine);
  const auto by_cpu = llama::generate(expected, words, "Once upon a time there was", 16, options);
  const auto by_card = llama::generate(found, words, "Once upon a time there was", 16, options);
  CHECK(by_card.text == by_cpu.text);
  CHECK(by_card.tokens == by_cpu.tokens);
}

TEST_CASE("schedules see the last layer of a card as that of the CPU" *
          doctest::skip(!support::has_device())) {
  const llama::model m = llama::load(support::quantized_small());
  const int count = 37, width = m.config().head_dim;
  const std::vector<int> tokens = some_tokens(count, m.config().vocabulary, 172);
  llama::cpu_backend cpu(m);
  llama::session<llama::cpu_backend> expected(cpu);
  llama::card_engine engine(m);
  llama::session<llama::card_engine> found(engine);
  expected.forward(tokens, 5);
  found.forward(tokens, 5);
  const auto by_cpu = expected.last_layer();
  const auto by_card = found.last_layer();
  REQUIRE(by_card.tokens() == by_cpu.tokens());
  REQUIRE(by_card.kv_heads() == by_cpu.kv_heads());
  REQUIRE(by_card.head_dim() == by_cpu.head_dim());
  const int first = 5, rows = count - first;
  const std::size_t size = static_cast<std::size_t>(rows) * static_cast<std::size_t>(width);
  for (int head = 0; head < by_cpu.kv_heads(); ++head) {
    std::vector<float> k0(size), v0(size), k1(size), v1(size);
    by_cpu.read(head, first, rows, k0.data(), v0.data());
    by_card.read(head, first, rows, k1.data(), v1.data());
    CHECK(difference({k1, v1}, {k0, v0}).worst < 4e-3);
  }
  std::vector<float> none(size);
  CHECK_THROWS_AS(by_card.read(0, first, count, none.data(), none.data()), bitladder::error);
}

TEST_CASE("a schedule that asks for probabilities writes as one that lists their outcome" *
          doctest::skip(!support::has_device())) {
  const llama::model m = llama::load(support::quantized_small());
  const std::vector<int> prompt = some_tokens(12, m.config().vocabulary, 173);
  llama::generate_options options;
  options.max_new_tokens = 30;
  options.stop_at_end_token = false;
  llama::card_engine engine(m);
  llama::session<llama::card_engine> s(engine);
  const auto by_probability = llama::generate(
      s, prompt,
      [](const bitladder::schedule::observation& o) { return o.top_probability > 0.3f ? 3 : 6; },
      options);
  s.truncate(0);
  const auto by_step = llama::generate(
      s, prompt, [&](int step) { return by_probability.bits.at(static_cast<std::size_t>(step)); },
      options);
  CHECK(by_step.tokens == by_probability.tokens);
  CHECK(by_step.bits == by_probability.bits);
  CHECK(by_step.tokens.size() == 30);
  CHECK(s.length() == 12 + 29);
}

TEST_CASE("memory is what was predicted" * doctest::skip(!support::has_device())) {
  const llama::model m = llama::load(support::quantized_small());
  { const llama::card_engine once(m); }  // what the runtime takes for itself, it has now
  std::size_t before = 0, after = 0, all = 0;
  REQUIRE(cudaMemGetInfo(&before, &all) == cudaSuccess);
  llama::card_options options;
  options.batch = 4;
  options.context = 65536;
  const llama::card_engine engine(m, options);
  REQUIRE(cudaMemGetInfo(&after, &all) == cudaSuccess);
  const llama::card_memory use = engine.memory();
  CHECK(use.total() == llama::predict_card_memory(m, options).total());
  // Two halves, layers, sequences, heads, positions, columns, bytes.
  CHECK(use.cache == std::size_t{2} * 6 * 4 * 4 * 65536 * 32 * 2);
  const double used = static_cast<double>(before - after);
  MESSAGE("predicted " << use.total() << ", used " << used);
  CHECK(std::fabs(used - static_cast<double>(use.total())) <
        0.03 * static_cast<double>(use.total()) + (96 << 20));  // the runtime's own
}

TEST_CASE("too little memory says what is needed and what would fit" *
          doctest::skip(!support::has_device())) {
  const llama::model m = llama::load(support::quantized_small());
  llama::card_options some;
  some.precisions = {2, 5};
  llama::card_options all;
  all.memory_limit = llama::predict_card_memory(m, some).total();
  const std::string needed = std::to_string(llama::predict_card_memory(m, all).total());
  try {
    const llama::card_engine engine(m, all);
    FAIL("an engine without memory");
  } catch (const bitladder::error& e) {
    const std::string text = e.what();
    CHECK(text.find(needed) != std::string::npos);
    CHECK(text.find("2 to 5 bits would fit") != std::string::npos);
  }
  all.memory_limit = 1000;
  CHECK_THROWS_WITH_AS(llama::card_engine(m, all),
                       doctest::Contains("too little for any precision"), bitladder::error);
}

TEST_CASE("what cannot be run is refused and changes nothing" *
          doctest::skip(!support::has_device())) {
  const llama::model m = llama::load(support::quantized_small());
  llama::card_options options;
  options.precisions = {3, 4};
  options.batch = 2;
  options.context = 30;
  llama::card_engine engine(m, options);
  const std::vector<int> tokens = some_tokens(31, m.config().vocabulary, 171);
  const bitladder::vector_view<const int> fit(tokens.data(), 30);
  const auto says = [](const char* text) { return doctest::Contains(text); };
  CHECK_THROWS_WITH_AS(engine.forward(0, tokens, 4), says("0 + 31 tokens"), bitladder::error);
  CHECK_THROWS_WITH_AS(engine.forward(0, fit, 8), says("3 bits, 4 bits"), bitladder::error);
  CHECK_THROWS_WITH_AS(engine.forward(0, fit, 16), says("unquantized asked for"), bitladder::error);
  CHECK_THROWS_WITH_AS(engine.forward(2, fit, 4), says("0 to 1"), bitladder::error);
  CHECK_THROWS_AS(engine.forward(0, {tokens.data(), std::size_t{0}}, 4), bitladder::error);
  const std::vector<int> outside = {1, m.config().vocabulary};
  CHECK_THROWS_WITH_AS(engine.forward(0, outside, 4), says("expected tokens"), bitladder::error);
  CHECK(engine.length(0) == 0);
  engine.forward(0, fit, 4);
  CHECK(engine.length(0) == 30);
  CHECK_THROWS_WITH_AS(engine.forward(0, {tokens.data(), std::size_t{1}}, 4), says("30 + 1"),
                       bitladder::error);
  CHECK_THROWS_AS(engine.logits(0, 31), bitladder::error);
  CHECK_THROWS_AS(engine.truncate(0, 31), bitladder::error);
  engine.truncate(0, 28);
  const std::vector<int> twice = {0, 0}, both = {0, 1}, two = {5, 6};
  CHECK_THROWS_WITH_AS(engine.step(twice, two, 4), says("twice"), bitladder::error);
  CHECK_THROWS_AS(engine.decode(both, two, 4, 3), bitladder::error);
  CHECK_THROWS_AS(engine.decode(
                      both, two, [](int i) { return i == 1 ? 7 : 4; }, 2),
                  bitladder::error);
  CHECK(engine.length(0) == 28);
  CHECK(engine.decode(both, two, 4, 2).size() == 4);
  CHECK(engine.length(0) == 30);
  CHECK(engine.length(1) == 2);

  llama::card_options wrong;
  wrong.batch = 17;
  CHECK_THROWS_WITH_AS(llama::card_engine(m, wrong), says("1 to 16"), bitladder::error);
  wrong.batch = 1;
  wrong.precisions = {9};
  CHECK_THROWS_AS(llama::card_engine(m, wrong), bitladder::error);
}
