// SPDX-License-Identifier: MIT
// Logits against Hugging Face transformers (golden values of make_llama_golden.py), and against
// itself: chunks, threads, precisions. Seeds: 51 and on.
#include "logits.hpp"
#include "model_folder.hpp"
#include <llama/backend_cpu.hpp>
#include <llama/forward.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

namespace {

using cpu_session = llama::session<llama::cpu_backend>;
using support::all_logits;
using support::stored_model;

double worst_difference(const std::vector<float>& logits, const nlohmann::json& golden) {
  double worst = 0;
  std::size_t i = 0;
  for (const auto& row : golden)
    for (double expected : row)
      worst = std::max(worst, std::abs(static_cast<double>(logits.at(i++)) - expected));
  CHECK(i == logits.size());
  return worst;
}

std::vector<int> some_ids(int count, int vocabulary, std::uint64_t seed) {
  support::random random(seed);
  std::vector<int> ids;
  for (int i = 0; i < count; ++i) ids.push_back(random.below(vocabulary));
  return ids;
}

}  // namespace

TEST_CASE("logits equal those of Hugging Face transformers") {
  for (const std::string& name : support::golden_models) {
    CAPTURE(name);
    const llama::model m = llama::load(support::golden_folder(name));
    const auto golden = support::read_json(support::golden_folder(name) / "golden.json");
    const double worst =
        worst_difference(all_logits(m, golden["ids"], llama::unquantized), golden["logits"]);
    MESSAGE(name << ": largest difference " << worst);
    CHECK(worst < 1e-4);
  }
}

TEST_CASE("the older config spelling gives the same logits") {
  for (const std::string& name : support::golden_models) {
    CAPTURE(name);
    stored_model m = stored_model::read(support::golden_folder(name));
    nlohmann::json rope = m.config["rope_parameters"];
    m.config.erase("rope_parameters");
    m.config["rope_theta"] = rope["rope_theta"];
    rope.erase("rope_theta");
    rope["type"] = rope["rope_type"];
    rope.erase("rope_type");
    m.config["rope_scaling"] = rope["type"] == "default" ? nlohmann::json(nullptr) : rope;
    const support::temporary_folder folder;
    m.write(folder.path());
    const auto golden = support::read_json(support::golden_folder(name) / "golden.json");
    CHECK(worst_difference(all_logits(llama::load(folder.path()), golden["ids"], 0),
                           golden["logits"]) < 1e-4);
  }
}

TEST_CASE("chunks and threads do not change a bit of the logits") {
  for (const std::string& name : support::golden_models) {
    CAPTURE(name);
    const llama::model m = llama::load(support::golden_folder(name));
    const std::vector<int> ids = some_ids(75, m.config().vocabulary, 51);
    const std::vector<float> whole = all_logits(m, ids, 0);
    for (int threads : {1, 2, 3})
      for (int chunk : {0, 1, 2, 5, 32, 33}) {
        CAPTURE(threads);
        CAPTURE(chunk);
        CHECK((all_logits(m, ids, 0, chunk, threads) == whole));
      }
  }
}

TEST_CASE("a prompt longer than an internal chunk is the same token by token") {
  stored_model stored = stored_model::read(support::golden_folder("llama3_rope_f16"));
  stored.config["max_position_embeddings"] = 600;
  const support::temporary_folder folder;
  stored.write(folder.path());
  const llama::model m = llama::load(folder.path());
  const std::vector<int> ids = some_ids(520, m.config().vocabulary, 52);
  CHECK((all_logits(m, ids, 0) == all_logits(m, ids, 0, 1)));
}

TEST_CASE("a quantized model gives exactly what its dequantized weights give, at every precision") {
  const struct {
    const char* name;
    int min_bits, max_bits, groups;
  } cases[] = {
      {"mha_untied_f16", 1, 8, 1}, {"gqa_tied_f32", 2, 6, 4}, {"linear_bias_bf16", 3, 5, 2}};
  for (const auto& c : cases) {
    CAPTURE(c.name);
    const support::temporary_folder folder;
    const auto dense =
        support::write_quantized(stored_model::read(support::golden_folder(c.name)),
                                 folder.path() / "q", c.min_bits, c.max_bits, c.groups, 53);
    const llama::model m = llama::load(folder.path() / "q");
    const std::vector<int> ids = some_ids(20, m.config().vocabulary, 54);
    std::vector<float> before;
    for (int b = c.min_bits; b <= c.max_bits; ++b) {
      CAPTURE(b);
      const auto path = folder.path() / std::to_string(b);
      std::filesystem::create_directories(path);
      dense.at(b).write(path);
      const std::vector<float> logits = all_logits(m, ids, b);
      CHECK((logits == all_logits(llama::load(path), ids, 0)));
      CHECK((logits == all_logits(m, ids, b, 1)));
      CHECK((logits == all_logits(m, ids, b, 7, 2)));
      CHECK(logits != before);
      before = logits;
    }
  }
}

TEST_CASE("a long prompt summed by a BLAS gives nearly the logits of the fixed order") {
  stored_model stored = stored_model::read(support::golden_folder("gqa_tied_f32"));
  stored.config["max_position_embeddings"] = 600;
  const support::temporary_folder folder;
  support::write_quantized(stored, folder.path() / "q", 2, 4, 1, 58);
  const llama::model m = llama::load(folder.path() / "q");
  if (!llama::has_blas()) {
    CHECK_THROWS_AS(llama::cpu_backend(m, nullptr, llama::summation::blas), bitladder::error);
    return;
  }
  const std::vector<int> ids = some_ids(300, m.config().vocabulary, 59);
  bitladder::thread_pool pool(2);
  llama::cpu_backend ours(m, &pool), theirs(m, &pool, llama::summation::blas);
  cpu_session a(ours), b(theirs);
  a.forward(ids, 4);
  b.forward(ids, 4);
  const auto x = a.logits(0, 300), y = b.logits(0, 300);
  double worst = 0;
  bool same = true;
  for (int i = 0; i < x.rows(); ++i)
    for (int j = 0; j < x.cols(); ++j) {
      worst = std::max(worst, std::abs(static_cast<double>(x(i, j)) - y(i, j)));
      same &= x(i, j) == y(i, j);
    }
  CHECK(worst < 1e-3);
  CHECK(!same);  // it was the BLAS
  // A short prompt is not worth a BLAS and keeps its bits.
  a.truncate(0);
  b.truncate(0);
  a.forward({ids.data(), 20}, 4);
  b.forward({ids.data(), 20}, 4);
  const auto p = a.last_logits(), q = b.last_logits();
  CHECK(std::equal(p.begin(), p.end(), q.begin()));
}

TEST_CASE("precision belongs to the call: what is seen keeps the precision it was seen at") {
  const support::temporary_folder folder;
  support::write_quantized(stored_model::read(support::golden_folder("gqa_tied_f32")),
                           folder.path() / "q", 2, 4, 1, 55);
  const llama::model m = llama::load(folder.path() / "q");
  const std::vector<int> ids = some_ids(12, m.config().vocabulary, 56);
  llama::cpu_backend backend(m);
  cpu_session mixed(backend), other(backend);
  mixed.forward({ids.data(), 8}, 4);
  other.forward({ids.data(), 8}, 2);  // another session of the backend does not disturb it
  for (int i = 8; i < 12; ++i) {
    mixed.forward({&ids[static_cast<std::size_t>(i)], 1}, 2);
    other.forward({&ids[static_cast<std::size_t>(i)], 1}, 2);
  }
  const auto a = mixed.last_logits();
  const auto b = other.last_logits();
  CHECK(!std::equal(a.begin(), a.end(), b.begin()));
  // The same mixture again, after going back.
  const std::vector<float> first(a.begin(), a.end());
  mixed.truncate(8);
  mixed.forward({ids.data() + 8, 4}, 2);
  const auto again = mixed.last_logits();
  CHECK(std::equal(again.begin(), again.end(), first.begin()));
}

TEST_CASE("wrong calls are refused and leave what was seen as it was") {
  const llama::model m = llama::load(support::golden_folder("gqa_tied_f32"));
  llama::cpu_backend backend(m);
  cpu_session s(backend, 10);
  const std::vector<int> ids = some_ids(11, 64, 57);
  s.forward({ids.data(), 6}, 0);
  const auto refused = [&](const std::vector<int>& tokens, int bits, const char* text) {
    CAPTURE(text);
    CHECK_THROWS_WITH_AS(s.forward(tokens, bits), text, bitladder::error);
    CHECK(s.length() == 6);
  };
  refused({}, 0, "forward: expected at least one token, found none");
  refused({1, 64}, 0, "forward: expected tokens of 0 to 63, found 64");
  refused({-1}, 0, "forward: expected tokens of 0 to 63, found -1");
  refused(ids, 0, "forward: expected at most 10 tokens, found 11");
  refused({1, 2, 3, 4, 5}, 0, "kv cache: 6 + 5 positions asked for, expected at most 10");
  CHECK_THROWS_AS(s.forward({ids.data(), 1}, 4), bitladder::error);
  CHECK_THROWS_AS(s.logits(0, 7), bitladder::error);
  CHECK_THROWS_AS(s.logits(-1, 1), bitladder::error);
  s.forward({ids.data() + 6, 4}, 0);
  const auto l = s.last_logits();
  const std::vector<float> all = all_logits(m, {ids.begin(), ids.begin() + 10}, 0);
  CHECK(std::equal(l.begin(), l.end(), all.end() - 64));
}
