// SPDX-License-Identifier: MIT
// Against Hugging Face transformers on the golden models of tests/llama. Seeds: 71 and on.
#include "../llama/model_folder.hpp"
#include <evaluate/perplexity.hpp>
#include <llama/backend_cpu.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

namespace {

using cpu_session = llama::session<llama::cpu_backend>;
using support::stored_model;

evaluate::perplexity_options options(int window, int bits = 0, int max_windows = 0) {
  evaluate::perplexity_options o;
  o.window = window;
  o.bits = bits;
  o.max_windows = max_windows;
  return o;
}

}  // namespace

TEST_CASE("perplexity equals that of Hugging Face transformers by the same recipe") {
  for (const std::string& name : support::golden_models) {
    CAPTURE(name);
    const auto golden = support::read_json(support::golden_folder(name) / "golden.json");
    const std::vector<int> text = golden["text"];
    const llama::model m = llama::load(support::golden_folder(name));
    bitladder::thread_pool pool(2);
    llama::cpu_backend backend(m, &pool);
    cpu_session s(backend);
    const auto r = evaluate::perplexity(s, text, options(golden["window"]));
    CHECK(r.perplexity ==
          doctest::Approx(golden["perplexity"].get<double>()).epsilon(1e-5).scale(0));
    CHECK(r.windows == 5);  // the tail of 7 is dropped
    CHECK(r.loss == doctest::Approx(std::log(r.perplexity)));
    CHECK(r.tokens_per_second > 0);
  }
}

TEST_CASE("a window is measured alone: what the session had seen does not matter") {
  const llama::model m = llama::load(support::golden_folder("gqa_tied_f32"));
  llama::cpu_backend backend(m);
  support::random random(71);
  std::vector<int> text;
  for (int i = 0; i < 100; ++i) text.push_back(random.below(64));
  cpu_session fresh(backend, 40), used(backend);
  used.forward({text.data(), 30}, 0);
  const auto a = evaluate::perplexity(fresh, text, options(40));
  const auto b = evaluate::perplexity(used, text, options(40));
  CHECK(a.perplexity == b.perplexity);
  CHECK(a.windows == 2);
}

TEST_CASE("progress is told and max_windows kept to") {
  const llama::model m = llama::load(support::golden_folder("gqa_tied_f32"));
  llama::cpu_backend backend(m);
  cpu_session s(backend);
  const std::vector<int> text(95, 3);
  std::vector<int> done;
  double last = 0;
  auto o = options(10, 0, 4);
  o.progress = [&](int d, int total, double perplexity) {
    CHECK(total == 4);
    done.push_back(d);
    last = perplexity;
  };
  const auto r = evaluate::perplexity(s, text, o);
  CHECK(done == std::vector<int>{1, 2, 3, 4});
  CHECK(last == r.perplexity);
  CHECK(evaluate::perplexity(s, text, options(10, 0, 99)).windows == 9);
}

TEST_CASE("a large vocabulary is summed in blocks") {
  std::vector<float> logits(5000);
  support::random random(72);
  double sum = 0;
  for (float& l : logits) {
    l = static_cast<float>(3 * random.normal());
    sum += std::exp(static_cast<double>(l));
  }
  for (int target : {0, 1023, 1024, 4999})
    CHECK(evaluate::detail::token_loss(logits, target) ==
          doctest::Approx(std::log(sum) -
                          static_cast<double>(logits[static_cast<std::size_t>(target)]))
              .epsilon(1e-6));
  logits[7] = 500;  // a target that is nearly impossible still has its own loss
  logits[8] = -500;
  CHECK(evaluate::detail::token_loss(logits, 8) == doctest::Approx(1000));
}

TEST_CASE("precisions of a quantized model are measured one by one") {
  const support::temporary_folder folder;
  const auto dense = support::write_quantized(
      stored_model::read(support::golden_folder("gqa_tied_f32")), folder.path() / "q", 2, 3, 1, 73);
  dense.at(3).write(folder.path());
  const llama::model m = llama::load(folder.path() / "q"), d = llama::load(folder.path());
  llama::cpu_backend quantized(m), plain(d);
  cpu_session s(quantized), t(plain);
  std::vector<int> text;
  support::random random(74);
  for (int i = 0; i < 60; ++i) text.push_back(random.below(64));
  CHECK(evaluate::perplexity(s, text, options(20, 3)).perplexity ==
        evaluate::perplexity(t, text, options(20)).perplexity);
  CHECK(evaluate::perplexity(s, text, options(20, 2)).perplexity !=
        evaluate::perplexity(t, text, options(20)).perplexity);
  CHECK_THROWS_AS(evaluate::perplexity(s, text, options(20)), bitladder::error);
}

TEST_CASE("what cannot be measured is refused") {
  const llama::model m = llama::load(support::golden_folder("gqa_tied_f32"));
  llama::cpu_backend backend(m);
  cpu_session s(backend, 50);
  const std::vector<int> text(30, 1);
  CHECK_THROWS_WITH_AS(evaluate::perplexity(s, text, options(40)),
                       "perplexity: expected a text of at least one window, 40 tokens, found 30",
                       bitladder::error);
  CHECK_THROWS_WITH_AS(evaluate::perplexity(s, text, options(51)),
                       "perplexity: window: expected 2 to 50 tokens, found 51", bitladder::error);
  CHECK_THROWS_AS(evaluate::perplexity(s, text, options(1)), bitladder::error);
  CHECK_THROWS_AS(evaluate::perplexity(s, text, options(20, 0, -1)), bitladder::error);

  stored_model broken = stored_model::read(support::golden_folder("gqa_tied_f32"));
  std::vector<float> nans(32, std::numeric_limits<float>::quiet_NaN());
  broken.tensors["model.norm.weight"] = support::stored_tensor::floats({32}, nans);
  const support::temporary_folder folder;
  broken.write(folder.path());
  const llama::model b = llama::load(folder.path());
  llama::cpu_backend broken_backend(b);
  cpu_session t(broken_backend);
  CHECK_THROWS_WITH_AS(evaluate::perplexity(t, text, options(20)),
                       "perplexity: expected a finite loss, found nan in window 0",
                       bitladder::error);
}
