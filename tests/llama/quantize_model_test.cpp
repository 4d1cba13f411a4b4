// SPDX-License-Identifier: MIT
#include <bitladder/core/pack.hpp>
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/safetensors_set.hpp>
#include <bitladder/quantize/quantize.hpp>

#include "model_folder.hpp"
#include <llama/backend_cpu.hpp>
#include <llama/forward.hpp>
#include <llama/quantize_model.hpp>

#include <doctest/doctest.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <sys/wait.h>
#include <vector>

namespace fs = std::filesystem;

namespace {

using support::contains;
using support::error_of;

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  return names;
}

/// A sensitivity for every projection of `m`: a small model file of its own.
void write_sensitivities(const support::stored_model& m, const fs::path& file) {
  support::random random(21);
  bitladder::safetensors_plan plan;
  std::map<std::string, std::vector<float>> values;
  for (const auto& [name, t] : m.tensors) {
    if (support::linear_name(name).empty()) continue;
    plan.add(name, bitladder::dtype::f32, t.shape);
    std::vector<float>& v = values[name];
    v.resize(static_cast<std::size_t>(t.shape[0] * t.shape[1]));
    for (float& x : v) x = static_cast<float>(random.chi_squared());
  }
  auto out = bitladder::safetensors_writer::create(file, plan);
  for (const auto& [name, v] : values) out.write(name, v.data(), v.size() * sizeof(float));
  out.commit();
}

}  // namespace

TEST_CASE(
    "every linear of the checkpoint is what quantize() makes of it, and the rest is as it was") {
  for (const std::string& name : support::golden_models) {
    CAPTURE(name);
    support::temporary_folder folder;
    const fs::path out = folder.path() / "out";
    const auto errors = llama::quantize_model(support::golden_folder(name), out, {}, nullptr);
    const bitladder::safetensors_set source(support::golden_folder(name));
    const bitladder::checkpoint made(out);
    CHECK(made.precisions() == std::vector<int>{2, 3, 4, 5, 6, 7, 8});
    CHECK(errors.size() == made.linears().size());
    for (std::size_t i = 0; i < errors.size(); ++i) {
      const auto& e = errors[i];
      const std::vector<float> w = source.read_as_float(e.name + ".weight");
      const auto q =
          bitladder::quantize(bitladder::matrix_view<const float>(w.data(), e.rows, e.cols),
                              bitladder::sensitivity::uniform(e.rows, e.cols), {});
      for (int bits = 2; bits <= 8; ++bits) {
        CHECK(e.relative_error.at(bits) == q.report().relative_error(bits));
        const auto table = made.codebook(e.name, bits);
        for (std::size_t k = 0; k < table.size(); ++k)
          REQUIRE(table.data()[k] == q.codebook(bits).data()[k]);
      }
      std::vector<std::uint8_t> codes(w.size());
      bitladder::unpack(made.planes(e.name), 8, {codes.data(), e.rows, e.cols});
      for (int r = 0; r < e.rows; ++r)
        for (int c = 0; c < e.cols; ++c)
          REQUIRE(codes[static_cast<std::size_t>(r * e.cols + c)] == q.codes()(r, c));
    }
    for (const auto& t : made.plain_tensors()) {
      const auto a = made.tensors().bytes(t), b = source.bytes(t.name);
      CHECK(std::vector<std::byte>(a.begin(), a.end()) ==
            std::vector<std::byte>(b.begin(), b.end()));
    }
    CHECK(support::read_json(out / "config.json").contains("bitladder"));
    CHECK(support::read_json(out / "quantization.json").size() == errors.size());
    CHECK(names_in(folder.path()) == std::vector<std::string>{"out"});
    const llama::model runs(out);
    CHECK(runs.quantized());
  }
}

TEST_CASE("the bytes do not depend on the number of threads") {
  support::temporary_folder folder;
  const fs::path source = support::golden_folder("gqa_tied_f32");
  llama::quantize_model(source, folder.path() / "alone", {}, nullptr);
  for (int threads : {1, 2, 5}) {
    bitladder::thread_pool pool(threads);
    const fs::path out = folder.path() / std::to_string(threads);
    llama::quantize_model(source, out, {}, &pool);
    CHECK(support::read_folder(out) == support::read_folder(folder.path() / "alone"));
  }
}

TEST_CASE("killed after any linear and started again, it ends with the same bytes") {
  support::temporary_folder folder;
  const fs::path source = support::golden_folder("mha_untied_f16");
  const auto errors = llama::quantize_model(source, folder.path() / "whole", {}, nullptr);
  const auto whole = support::read_folder(folder.path() / "whole");
  for (std::size_t kill_after = 0; kill_after <= errors.size(); kill_after += 3) {
    CAPTURE(kill_after);
    const fs::path out = folder.path() / ("killed" + std::to_string(kill_after));
    const pid_t child = ::fork();
    if (child == 0) {
      std::size_t calls = 0;  // the first call comes before any linear
      llama::quantize_model(source, out, {}, nullptr,
                            [&](const std::string&, std::int64_t, std::int64_t, std::int64_t) {
                              if (calls++ == kill_after) ::raise(SIGKILL);
                            });
      ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    CHECK(!fs::exists(out));
    std::int64_t resumed = -1;
    llama::quantize_model(source, out, {}, nullptr,
                          [&](const std::string&, std::int64_t, std::int64_t skipped,
                              std::int64_t) { resumed = skipped; });
    // The last linear before the kill may still have been on its way to the disk.
    if (kill_after > 2) CHECK(resumed > 0);
    CHECK(support::read_folder(out) == whole);
    CHECK(!fs::exists(out.string() + ".partial"));
    CHECK(!fs::exists(out.string() + ".report"));
  }
}

TEST_CASE("unfinished work of other options is not mixed in, nor thrown away unasked") {
  support::temporary_folder folder;
  const fs::path source = support::golden_folder("mha_untied_f16"), out = folder.path() / "out";
  struct stop {};
  const auto interrupt = [](const std::string& linear, std::int64_t, std::int64_t, std::int64_t) {
    if (!linear.empty()) throw stop();
  };
  CHECK_THROWS_AS(llama::quantize_model(source, out, {}, nullptr, interrupt), stop);
  llama::quantize_model_options other;
  other.kmeans.seed_bits = 4;
  CHECK(contains(error_of([&] { llama::quantize_model(source, out, other, nullptr); }).text,
                 "unfinished work"));
  other.overwrite = true;
  llama::quantize_model(source, out, other, nullptr);
  CHECK(bitladder::checkpoint(out).seed_bits() == 4);
  CHECK(contains(error_of([&] { llama::quantize_model(source, out, {}, nullptr); }).text,
                 "is there already"));
}

TEST_CASE("sensitivities change the result, and must match the weights") {
  support::temporary_folder folder;
  const fs::path source = support::golden_folder("gqa_tied_f32");
  support::stored_model m = support::stored_model::read(source);
  llama::quantize_model_options options;
  options.sensitivities = folder.path() / "s.safetensors";
  write_sensitivities(m, options.sensitivities);
  const auto weighted = llama::quantize_model(source, folder.path() / "weighted", options, nullptr);
  const auto uniform = llama::quantize_model(source, folder.path() / "uniform", {}, nullptr);
  CHECK(support::read_folder(folder.path() / "weighted").at("model.safetensors") !=
        support::read_folder(folder.path() / "uniform").at("model.safetensors"));

  support::stored_model wrong = m;
  const std::string victim = "model.layers.1.mlp.up_proj.weight";
  std::swap(wrong.tensors.at(victim).shape[0], wrong.tensors.at(victim).shape[1]);
  write_sensitivities(wrong, options.sensitivities);
  std::string text =
      error_of([&] { llama::quantize_model(source, folder.path() / "x", options, nullptr); }).text;
  CHECK(contains(text, victim));
  CHECK(contains(text, "s.safetensors"));
  wrong.tensors.erase(victim);
  write_sensitivities(wrong, options.sensitivities);
  text =
      error_of([&] { llama::quantize_model(source, folder.path() / "x", options, nullptr); }).text;
  CHECK(contains(text, victim));
  CHECK(!fs::exists(folder.path() / "x"));
  CHECK(!fs::exists(folder.path() / "x.partial"));
}

TEST_CASE("bad weights and options are refused by name, and leave no checkpoint") {
  support::temporary_folder folder;
  const fs::path bad = folder.path() / "bad", out = folder.path() / "out";
  fs::create_directories(bad);
  support::stored_model m = support::stored_model::read(support::golden_folder("gqa_tied_f32"));
  const std::string victim = "model.layers.1.self_attn.o_proj.weight";
  auto& bytes = m.tensors.at(victim).bytes;
  const float nan = std::nanf("");
  std::memcpy(bytes.data() + 4 * (m.tensors.at(victim).shape[1] + 2), &nan, 4);
  m.write(bad);
  std::string text = error_of([&] { llama::quantize_model(bad, out, {}, nullptr); }).text;
  CHECK(contains(text, victim));
  CHECK(contains(text, "row 1, column 2"));
  CHECK(contains(text, bad.string()));
  CHECK(!fs::exists(out));

  llama::quantize_model_options options;
  options.kmeans.groups = 7;
  text = error_of([&] {
           llama::quantize_model(support::golden_folder("gqa_tied_f32"), folder.path() / "groups",
                                 options, nullptr);
         }).text;
  CHECK(contains(text, "groups"));
  CHECK(contains(text, "q_proj"));

  const fs::path done = folder.path() / "done";
  llama::quantize_model(support::golden_folder("gqa_tied_f32"), done, {}, nullptr);
  text = error_of([&] { llama::quantize_model(done, folder.path() / "again", {}, nullptr); }).text;
  CHECK(contains(text, "quantized already"));
}
