// SPDX-License-Identifier: MIT
// Seed 5 for tokens.
#include <bitladder/core/parallel.hpp>
#include <bitladder/io/checkpoint.hpp>

#include "model_folder.hpp"
#include <llama/model.hpp>
#include <llama/quantize_model.hpp>
#include <llama/refit_model.hpp>
#include <support/files.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

using support::contains;
using support::error_of;
using support::read_all;

/// A golden model, its checkpoint, and options to refit on random tokens.
struct prepared {
  support::temporary_folder folder;
  fs::path model, checkpoint;
  llama::refit_model_options options;

  explicit prepared(const std::string& name)
      : model(support::golden_folder(name)), checkpoint(folder / "checkpoint") {
    llama::quantize_model(model, checkpoint, {}, nullptr);
    support::random random(5);
    const int vocabulary = llama::model(model).config().vocabulary;
    std::vector<std::int32_t> ids;
    for (int i = 0; i < 6 * 12; ++i) ids.push_back(random.below(vocabulary));
    support::write_all(folder / "t.bin",
                       {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof ids[0]});
    options.texts = {folder / "t.bin"};
    options.calibration.samples = 6;
    options.calibration.seq_len = 12;
  }
};

}  // namespace

TEST_CASE("a refit checkpoint is sound, smaller in its errors and the same in all else") {
  for (const std::string name : {"gqa_tied_f32", "phi3_f16"}) {
    CAPTURE(name);
    prepared p(name);
    const fs::path out = p.folder / "out";
    const auto r = llama::refit_model(p.checkpoint, p.model, out, p.options, nullptr);
    const bitladder::checkpoint before(p.checkpoint), after(out);
    after.validate();
    CHECK(r.linears == before.linears().size());
    CHECK(r.refit == r.linears);
    CHECK(r.moved > 0);
    CHECK(r.error_ratio[2] < 0.9);
    CHECK(r.error_ratio[3] < 1.0);
    for (const auto& t : before.plain_tensors()) {
      const auto a = before.tensors().bytes(t);
      const auto b = after.tensors().bytes(after.tensors().at(t.name));
      CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
    }
    const llama::model m(out);
    CHECK(m.precisions() == std::vector<int>{2, 3, 4, 5, 6, 7, 8});
  }
}

TEST_CASE("planes stay if they are to, and threads and memory make no difference") {
  prepared p("gqa_tied_f32");
  p.options.refit.move_codes = false;
  llama::refit_model(p.checkpoint, p.model, p.folder / "tables", p.options, nullptr);
  const bitladder::checkpoint before(p.checkpoint), after(p.folder / "tables");
  for (const auto& l : before.linears()) {
    const auto a = before.planes(l.name), b = after.planes(l.name);
    CHECK(std::equal(a.data(), a.data() + l.layout().total_words(), b.data()));
  }
  p.options.refit.move_codes = true;
  llama::refit_model(p.checkpoint, p.model, p.folder / "one", p.options, nullptr);
  bitladder::thread_pool pool(3);
  p.options.moment_bytes = 0;  // a linear at a time
  llama::refit_model(p.checkpoint, p.model, p.folder / "many", p.options, &pool);
  CHECK(read_all(p.folder / "one" / "model.safetensors") ==
        read_all(p.folder / "many" / "model.safetensors"));
}

TEST_CASE("a run that was stopped goes on and ends with the same bytes") {
  prepared p("gqa_tied_f32");
  llama::refit_model(p.checkpoint, p.model, p.folder / "whole", p.options, nullptr);
  struct stop {};
  p.options.moment_bytes = 0;
  int calls = 0;
  CHECK_THROWS_AS(llama::refit_model(p.checkpoint, p.model, p.folder / "parts", p.options, nullptr,
                                     [&](const std::string& what, auto, auto, auto) {
                                       if (what == "refit" && ++calls == 3) throw stop();
                                     }),
                  stop);
  const auto r = llama::refit_model(p.checkpoint, p.model, p.folder / "parts", p.options, nullptr);
  CHECK(r.refit == r.linears - 3);
  CHECK(read_all(p.folder / "whole" / "model.safetensors") ==
        read_all(p.folder / "parts" / "model.safetensors"));
}

TEST_CASE("what does not go together is said") {
  prepared p("gqa_tied_f32");
  const auto refit = [&](const fs::path& checkpoint, const fs::path& model) {
    return error_of(
               [&] { llama::refit_model(checkpoint, model, p.folder / "out", p.options, nullptr); })
        .text;
  };
  CHECK(contains(refit(p.model, p.model), "not a bitladder checkpoint"));
  CHECK(contains(refit(p.checkpoint, support::golden_folder("mha_untied_f16")), "expected ["));
  CHECK(contains(refit(p.checkpoint, p.checkpoint), ".weight"));
  p.options.row_groups = 0;
  CHECK(contains(refit(p.checkpoint, p.model), "groups of rows, found 0"));
  p.options.row_groups = 4;
  p.options.refit.top_bits = 1;
  CHECK(contains(refit(p.checkpoint, p.model), "top_bits"));
}
