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

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <utility>
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

/// Does on the CPU what a card does elsewhere.
class stand_in final : public llama::linear_quantizer {
 public:
  explicit stand_in(std::function<void()> before) : before_(std::move(before)) {}
  void quantize(const llama::linear_data& from, const bitladder::kmeans_options& options,
                llama::packed_linear& to) override {
    before_();
    switch (from.type) {
      case bitladder::dtype::f16: return quantize_as<bitladder::fp16_t>(from, options, to);
      case bitladder::dtype::bf16: return quantize_as<bitladder::bf16_t>(from, options, to);
      default: return quantize_as<float>(from, options, to);
    }
  }

 private:
  template <class T>
  static void quantize_as(const llama::linear_data& from, const bitladder::kmeans_options& options,
                          llama::packed_linear& to) {
    const bitladder::matrix_view<const T> w(reinterpret_cast<const T*>(from.elements), from.rows,
                                            from.cols);
    const auto q = bitladder::quantize(w, from.sensitivity, options);
    const auto planes = bitladder::pack(q.codes(), q.max_bits());
    std::copy_n(planes.data(), planes.layout().total_words(), to.resize(planes.layout()));
    to.codebooks = q.codebooks();
    to.outliers = q.outliers();
    to.report = q.report();
  }

  std::function<void()> before_;
};

llama::linear_quantizers stand_ins(int count, const std::function<void()>& before) {
  return {"stand-ins", count, [before](int) { return std::make_unique<stand_in>(before); }};
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

TEST_CASE("workers elsewhere write the checkpoint of the CPU, however many they are") {
  for (const char* const name : {"gqa_tied_f32", "mha_untied_f16", "linear_bias_bf16"}) {
    const support::temporary_folder folder;
    const fs::path source = support::golden_folder(name);
    llama::quantize_model_options options;
    options.sensitivities = folder.path() / "s.safetensors";
    write_sensitivities(support::stored_model::read(source), options.sensitivities);
    options.kmeans.outliers = {0.5, 2};
    const auto errors = llama::quantize_model(source, folder.path() / "cpu", options, nullptr);
    for (const int workers : {1, 2, 5}) {
      CAPTURE(workers);
      const fs::path out = folder.path() / std::to_string(workers);
      options.on = stand_ins(workers, [] {});
      const std::thread::id here = std::this_thread::get_id();
      std::int64_t last = -1;
      const auto found = llama::quantize_model(
          source, out, options, nullptr,
          [&](const std::string&, std::int64_t done, std::int64_t, std::int64_t all) {
            CHECK(std::this_thread::get_id() == here);
            CHECK(done > last);
            CHECK(done <= all);
            last = done;
          });
      REQUIRE(found.size() == errors.size());
      for (std::size_t i = 0; i < errors.size(); ++i) {
        CHECK(found[i].name == errors[i].name);
        CHECK(found[i].relative_error == errors[i].relative_error);
      }
      CHECK(support::read_folder(out) == support::read_folder(folder.path() / "cpu"));
    }
  }
}

TEST_CASE("a worker that fails is told of, and what was done before is not done again") {
  const support::temporary_folder folder;
  const fs::path source = support::golden_folder("gqa_tied_f32"), out = folder.path() / "out";
  llama::quantize_model(source, folder.path() / "cpu", {}, nullptr);
  for (const int workers : {1, 3}) {
    CAPTURE(workers);
    std::atomic<int> begun{0};
    llama::quantize_model_options options;
    options.on = stand_ins(workers, [&] {
      if (++begun == 6)
        throw bitladder::error(bitladder::status::out_of_memory, "device 7: out of memory");
    });
    std::int64_t kept = 0, resumed = -1;
    int written = -1;  // told of none at first
    const std::string text = error_of([&] {
                               llama::quantize_model(source, out, options, nullptr,
                                                     [&](const std::string&, std::int64_t done,
                                                         std::int64_t, std::int64_t) {
                                                       kept = done;
                                                       ++written;
                                                     });
                             }).text;
    CHECK(written >= 5);  // another may have been begun before the failure was known
    CHECK(contains(text, "device 7: out of memory"));
    CHECK(contains(text, source.string() + ": tensor \"model.layers."));
    CHECK(!fs::exists(out));
    // The CPU's bytes may differ in ties: it says so rather than go on.
    CHECK(contains(error_of([&] { llama::quantize_model(source, out, {}, nullptr); }).text,
                   "on stand-ins"));
    llama::quantize_model(
        source, out, options, nullptr,
        [&](const std::string& linear, std::int64_t, std::int64_t before, std::int64_t) {
          if (linear.empty()) resumed = before;
        });
    CHECK(resumed == kept);
    CHECK(support::read_folder(out) == support::read_folder(folder.path() / "cpu"));
    fs::remove_all(out);
  }
}

TEST_CASE("workers stop when the caller does, and when they cannot begin") {
  const support::temporary_folder folder;
  const fs::path source = support::golden_folder("gqa_tied_f32"), out = folder.path() / "out";
  llama::quantize_model_options options;
  options.on = stand_ins(2, [] {});
  struct stop {};
  const auto interrupt = [](const std::string& linear, std::int64_t, std::int64_t, std::int64_t) {
    if (!linear.empty()) throw stop();
  };
  CHECK_THROWS_AS(llama::quantize_model(source, out, options, nullptr, interrupt), stop);
  options.on.make = [](int) -> std::unique_ptr<llama::linear_quantizer> {
    throw bitladder::error(bitladder::status::unsupported_device, "device 7: is lost");
  };
  CHECK(contains(error_of([&] { llama::quantize_model(source, out, options, nullptr); }).text,
                 "device 7: is lost"));
  options.kmeans.method = bitladder::quantize_method::published;
  CHECK(contains(error_of([&] { llama::quantize_model(source, out, options, nullptr); }).text,
                 "quantize on stand-ins: expected method exact, found published"));
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
