// SPDX-License-Identifier: MIT
// All layers of a step in one launch, against the CPU and against the launches of a batch. Seeds:
// 170 and on.
#include "../model_folder.hpp"
#include "engine_logits.hpp"
#include "quantized_small.hpp"
#include <llama/backend_cpu.hpp>
#include <llama/cuda_engine.hpp>
#include <llama/forward.hpp>
#include <llama/model.hpp>
#include <support/files.hpp>
#include <support/has_device.hpp>
#include <support/random.hpp>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace {

using support::all_rows;
using support::allowed;
using support::apart;
using support::difference;
using support::logits_row;
using support::some_tokens;
using support::within;

/// Whether the card has what a launch for all layers takes: sm_90 and its shared memory.
bool has_room_for_steps() {
  int device = 0, major = 0, shared = 0;
  REQUIRE(cudaGetDevice(&device) == cudaSuccess);
  REQUIRE(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess);
  REQUIRE(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
          cudaSuccess);
  return major >= 9 && shared >= 200 << 10;
}

/// A random model of two layers like the golden one of this name but for its widths, whose norms
/// make one column so much larger than the others.
support::stored_model resized(const std::string& like, int hidden, int intermediate, int heads,
                              int kv_heads, int head_dim, double outlier, std::uint64_t seed) {
  support::stored_model m = support::stored_model::read(support::golden_folder(like));
  m.config["hidden_size"] = hidden;
  m.config["intermediate_size"] = intermediate;
  m.config["num_attention_heads"] = heads;
  m.config["num_key_value_heads"] = kv_heads;
  m.config["head_dim"] = head_dim;
  const std::int64_t vocabulary = m.config["vocab_size"];
  support::random random(seed);
  for (auto& [name, t] : m.tensors) {
    const auto is = [&, &of = name](const char* part) {
      return of.find(part) != std::string::npos;
    };
    const bool is_norm = is("norm");
    std::int64_t rows = hidden, cols = t.shape.size() == 2 ? hidden : 1;
    if (is("embed_tokens") || is("lm_head")) rows = vocabulary;
    if (is("q_proj")) rows = heads * head_dim;
    if (is("k_proj") || is("v_proj")) rows = kv_heads * head_dim;
    if (is("gate_proj") || is("up_proj")) rows = intermediate;
    if (is("o_proj")) cols = heads * head_dim;
    if (is("down_proj")) cols = intermediate;
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    for (float& v : values)
      v = is_norm ? static_cast<float>(1 + 0.1 * random.normal())
                  : static_cast<float>(0.2 * random.normal());
    if (is_norm && rows > 5) values[5] *= static_cast<float>(outlier);
    t = t.shape.size() == 2 ? support::stored_tensor::floats({rows, cols}, values)
                            : support::stored_tensor::floats({rows}, values);
  }
  return m;
}

}  // namespace

TEST_CASE("a lone sequence may take the faster kernels and stays near the CPU" *
          doctest::skip(!support::has_device())) {
  const llama::model m = llama::load(support::quantized_small());
  llama::cpu_backend cpu(m);
  llama::session<llama::cpu_backend> expected(cpu);
  llama::card_options options;
  options.exact_batches = false;
  llama::card_engine engine(m, options);
  llama::session<llama::card_engine> found(engine);
  // Precisions of which some have all layers in one launch; positions that one block of a head
  // sees, and two.
  for (int count : {40, 300}) {
    CAPTURE(count);
    const std::vector<int> tokens = some_tokens(count, m.config().vocabulary, 170);
    const std::vector<int> bits = {2, 3, 4, 2};
    found.truncate(0);
    expected.truncate(0);
    const std::vector<logits_row> rows = all_rows(found, tokens, count - 31, bits);
    const apart d = difference(rows, all_rows(expected, tokens, count - 31, bits));
    MESSAGE(count << " tokens: " << d.worst << ", " << d.all);
    CHECK(within(d, {allowed, 1e-3}));
    found.truncate(0);
    CHECK(all_rows(found, tokens, count - 31, bits) == rows);
  }
}

TEST_CASE("all layers of a step go in one launch, whatever their widths" *
          doctest::skip(!support::has_device())) {
  struct shape {
    const char* like;
    int hidden, intermediate, heads, kv_heads, head_dim;
    double outlier;
  };
  // A head for each key, biases, windows, heads as wide as 16 to 128, widths beside all tiles, more
  // row tiles than blocks; activations that 16 bits do for, and others.
  for (const shape& of :
       {shape{"mha_untied_f16", 64, 96, 4, 4, 16, 1},
        shape{"mha_untied_f16", 256, 2400, 2, 2, 128, 80},
        shape{"gqa_tied_f32", 1056, 672, 8, 2, 64, 80}, shape{"mistral_f16", 96, 1312, 4, 1, 32, 1},
        shape{"qwen2_window_f32", 160, 320, 5, 5, 32, 1}}) {
    CAPTURE(std::string(of.like));
    CAPTURE(of.hidden);
    const support::temporary_folder folder;
    support::write_quantized(resized(of.like, of.hidden, of.intermediate, of.heads, of.kv_heads,
                                     of.head_dim, of.outlier, 178),
                             folder.path() / "model", 2, 4, 1, 179);
    const llama::model m = llama::load(folder.path() / "model");
    const std::vector<int> tokens = some_tokens(90, m.config().vocabulary, 177), bits = {2, 3};
    llama::cpu_backend cpu(m);
    llama::session<llama::cpu_backend> expected(cpu);
    const std::vector<logits_row> want = all_rows(expected, tokens, 2, bits);
    // What fp16 does to such a model is seen in the launches for batches.
    llama::card_engine batches(m);
    llama::session<llama::card_engine> others(batches);
    const apart most = difference(all_rows(others, tokens, 2, bits), want);
    llama::card_options options;
    options.exact_batches = false;
    llama::card_engine engine(m, options);
    llama::session<llama::card_engine> found(engine);
    const std::vector<logits_row> rows = all_rows(found, tokens, 2, bits);
    const apart d = difference(rows, want);
    MESSAGE(std::string(of.like) << " " << of.hidden << ": " << d.worst
                                 << " of a row's largest logit, " << d.all << " of all; in batches "
                                 << most.worst << ", " << most.all);
    CHECK(within(d, {1.5 * most.worst + 1e-3, 1.2 * most.all + 1e-4}));
    found.truncate(0);
    CHECK(all_rows(found, tokens, 2, bits) == rows);
    const int sequence = 0;
    found.truncate(40);
    for (int b : {2, 3, 4}) {
      const auto launches = engine.profile({&sequence, 1}, b, 1);
      const bool one = std::any_of(launches.begin(), launches.end(),
                                   [](const auto& l) { return l.name == "layers"; });
      CHECK(one == (b < 4 && has_room_for_steps()));
    }
  }
}

TEST_CASE("one engine of a card has all layers in one launch, the next when that is gone" *
          doctest::skip(!support::has_device())) {
  const llama::model m = llama::load(support::quantized_small());
  llama::card_options options;
  options.precisions = {2, 3};
  options.exact_batches = false;
  const auto one_launch = [](llama::card_engine& engine) {
    const int sequence = 0;
    const auto launches = engine.profile({&sequence, 1}, 2, 1);
    return std::any_of(launches.begin(), launches.end(),
                       [](const auto& l) { return l.name == "layers"; });
  };
  llama::card_engine second = [&] {
    llama::card_engine first(m, options);
    llama::card_engine at_the_same_time(m, options);
    CHECK(one_launch(first) == has_room_for_steps());
    CHECK(!one_launch(at_the_same_time));
    return at_the_same_time;
  }();
  CHECK(!one_launch(second));
  llama::card_engine third(m, options);
  CHECK(one_launch(third) == has_room_for_steps());
}
