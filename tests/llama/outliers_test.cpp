// SPDX-License-Identifier: MIT
// Models some of whose weights stay beside the codes, from the quantizer to the logits.
#include <bitladder/core/pack.hpp>
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/safetensors_set.hpp>
#include <bitladder/kernels/cpu/reference.hpp>
#include <bitladder/quantize/quantize.hpp>

#include "model_folder.hpp"
#include <llama/backend_cpu.hpp>
#include <llama/export_model.hpp>
#include <llama/forward.hpp>
#include <llama/quantize_model.hpp>

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <string>
#include <sys/wait.h>
#include <vector>

namespace fs = std::filesystem;

namespace {

using support::error_of;
using support::read_folder;
using support::temporary_folder;

llama::quantize_model_options with_outliers(double sensitive, double large, int groups = 1) {
  llama::quantize_model_options options;
  options.kmeans.outliers = {sensitive, large};
  options.kmeans.groups = groups;
  return options;
}

std::vector<float> logits_of(const fs::path& folder, int bits, bitladder::thread_pool* pool) {
  const llama::model m(folder);
  llama::cpu_backend backend(m, pool);
  llama::session<llama::cpu_backend> s(backend);
  const std::vector<int> ids = {1, 7, 30, 0, 12};
  s.forward(ids, bits);
  const auto logits = s.logits(0, 5);
  return {logits.data(), logits.data() + 5 * logits.stride()};
}

}  // namespace

TEST_CASE("a checkpoint with outliers holds what quantize() makes of every linear") {
  for (const int groups : {1, 2}) {
    const temporary_folder folder;
    const fs::path source = support::golden_folder("gqa_tied_f32"), out = folder / "out";
    const auto options = with_outliers(0.5, 2, groups);
    const auto errors = llama::quantize_model(source, out, options, nullptr);
    const bitladder::safetensors_set tensors(source);
    const bitladder::checkpoint made(out);
    made.validate();
    for (const llama::linear_errors& e : errors) {
      CAPTURE(e.name);
      const std::vector<float> w = tensors.read_as_float(e.name + ".weight");
      const auto q =
          bitladder::quantize(bitladder::matrix_view<const float>(w.data(), e.rows, e.cols),
                              bitladder::sensitivity::uniform(e.rows, e.cols), options.kmeans);
      const bitladder::sparse_view a = made.outliers(e.name), b = q.outliers().view();
      REQUIRE(a.count() == b.count());
      CHECK(a.count() ==
            std::llround(0.005 * e.rows * e.cols) + std::llround(0.02 * e.rows * e.cols));
      CHECK(std::equal(a.offsets(), a.offsets() + e.rows + 1, b.offsets()));
      CHECK(std::equal(a.columns(), a.columns() + a.count(), b.columns()));
      CHECK(std::equal(a.values(), a.values() + a.count(), b.values()));
      for (int bits = 2; bits <= 8; ++bits)
        CHECK(e.relative_error.at(bits) == q.report().relative_error(bits));
      std::vector<std::uint8_t> codes(w.size());
      bitladder::unpack(made.planes(e.name), 8, {codes.data(), e.rows, e.cols});
      CHECK(std::equal(codes.begin(), codes.end(), q.codes().data()));
    }
  }
}

TEST_CASE("a model with outliers computes as the dense model of its weights, at every precision") {
  for (const int groups : {1, 2}) {
    const temporary_folder folder;
    const fs::path source = support::golden_folder("gqa_tied_f32"), out = folder / "out";
    llama::quantize_model(source, out, with_outliers(0.5, 2, groups), nullptr);
    const bitladder::checkpoint made(out);
    bitladder::thread_pool pool(3);
    std::vector<float> before;
    for (const int bits : {2, 4, 8}) {
      support::stored_model dense = support::stored_model::read(source);
      for (const bitladder::linear_info& l : made.linears()) {
        std::vector<float> w(static_cast<std::size_t>(l.rows) * static_cast<std::size_t>(l.cols));
        bitladder::cpu::reference::dequantize(made.planes(l.name), made.codebook(l.name, bits),
                                              made.outliers(l.name), {w.data(), l.rows, l.cols});
        dense.tensors[l.name + ".weight"] =
            support::stored_tensor::floats({l.rows, l.cols}, std::move(w));
      }
      const fs::path plain = folder / ("dense" + std::to_string(bits));
      fs::create_directory(plain);
      dense.write(plain);
      const std::vector<float> expected = logits_of(plain, 0, nullptr);
      const std::vector<float> found = logits_of(out, bits, nullptr);
      REQUIRE(found.size() == expected.size());
      float size = 0, off = 0;
      for (std::size_t i = 0; i < found.size(); ++i) {
        size = std::max(size, std::fabs(expected[i]));
        off = std::max(off, std::fabs(found[i] - expected[i]));
      }
      CHECK(off <= 1e-5f * size);
      CHECK(found != before);
      CHECK(logits_of(out, bits, &pool) == found);
      before = found;
    }
    const llama::model m(out);
    std::size_t outlier_bytes = 0;
    for (const bitladder::linear_info& l : made.linears()) outlier_bytes += l.outlier_bytes();
    llama::quantize_model(source, folder / "plain", with_outliers(0, 0, groups), nullptr);
    CHECK(m.bytes_per_token(3) ==
          llama::model(folder / "plain").bytes_per_token(3) + outlier_bytes);
  }
}

TEST_CASE("no outliers are the bytes that were made before there were any") {
  const temporary_folder folder;
  const fs::path source = support::golden_folder("mha_untied_f16");
  llama::quantize_model(source, folder / "plain", {}, nullptr);
  llama::quantize_model(source, folder / "none", with_outliers(0, 0), nullptr);
  CHECK(read_folder(folder / "plain") == read_folder(folder / "none"));
  CHECK(bitladder::checkpoint(folder / "plain").tensors().metadata().at("bitladder.version") ==
        "1");
}

TEST_CASE("killed and started again, a run with outliers ends with the same bytes") {
  const temporary_folder folder;
  const fs::path source = support::golden_folder("mha_untied_f16");
  const auto options = with_outliers(0.5, 1);
  bitladder::thread_pool pool(2);
  const auto errors = llama::quantize_model(source, folder / "whole", options, &pool);
  const auto whole = read_folder(folder / "whole");
  for (std::size_t kill_after = 1; kill_after <= errors.size(); kill_after += 4) {
    CAPTURE(kill_after);
    const fs::path out = folder / ("killed" + std::to_string(kill_after));
    const int status = support::in_child([&] {
      std::size_t calls = 0;
      llama::quantize_model(source, out, options, nullptr,
                            [&](const std::string&, std::int64_t, std::int64_t, std::int64_t) {
                              if (calls++ == kill_after) ::raise(SIGKILL);
                            });
    });
    REQUIRE(WIFSIGNALED(status));
    CHECK(!fs::exists(out));
    llama::quantize_model(source, out, options, nullptr);
    CHECK(read_folder(out) == whole);
  }
}

TEST_CASE("unfinished work with other outliers is not gone on with") {
  const temporary_folder folder;
  const fs::path source = support::golden_folder("mha_untied_f16"), out = folder / "out";
  struct stop {};
  const auto interrupt = [](const std::string& linear, std::int64_t, std::int64_t, std::int64_t) {
    if (!linear.empty()) throw stop();
  };
  CHECK_THROWS_AS(llama::quantize_model(source, out, with_outliers(1, 2), nullptr, interrupt),
                  stop);
  for (const auto& other : {with_outliers(0, 0), with_outliers(2, 1), with_outliers(1, 2.5)})
    CHECK(error_of([&] {
            llama::quantize_model(source, out, other, nullptr);
          }).names("unfinished work"));
  CHECK_NOTHROW(llama::quantize_model(source, out, with_outliers(1, 2), nullptr));
}

TEST_CASE("shares out of range are refused, and so is an export, which has no place for outliers") {
  const temporary_folder folder;
  const fs::path source = support::golden_folder("mha_untied_f16");
  CHECK(error_of([&] {
          llama::quantize_model(source, folder / "out", with_outliers(-1, 0), nullptr);
        }).names("0 to 100 percent of sensitive weights, found -1"));
  CHECK(!fs::exists(folder / "out"));
  llama::quantize_model(source, folder / "out", with_outliers(0.1, 0.4), nullptr);
  const auto e = error_of([&] { llama::export_model(folder / "out", folder / "theirs", {}); });
  CHECK(e.code == bitladder::status::invalid_argument);
  CHECK(e.names("expected no outliers, for which the Any-Precision layout has no place, found"));
  CHECK(e.names((folder / "out").string()));
  CHECK(!fs::exists(folder / "theirs"));
}

TEST_CASE("a file whose outliers would lead a kernel astray is refused when it is opened") {
  const temporary_folder folder;
  const fs::path source = support::golden_folder("mha_untied_f16"), out = folder / "out";
  llama::quantize_model(source, out, with_outliers(0, 1), nullptr);
  const fs::path path = out / "model.safetensors";
  std::string bytes = support::read_all(path);
  std::string name;
  {
    const bitladder::checkpoint c(out);
    name = c.linears()[3].name;
    const bitladder::safetensors_file file(path);
    bytes[file.data_offset() + file.at(name + ".outliers.columns").begin + 3] = '\x7f';
  }
  support::write_all(path, bytes);
  const auto e = error_of([&] { llama::model m(out); });
  CHECK(e.code == bitladder::status::bad_file);
  CHECK(e.names("outliers of \"" + name + "\""));
}
