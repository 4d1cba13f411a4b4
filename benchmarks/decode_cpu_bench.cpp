// SPDX-License-Identifier: MIT
// Decoding on the CPU: tokens per second of a model with SmolLM2-135M's shapes and random weights
// at every precision, and where the time goes. `decode` writes 64 tokens after a context, greedily;
// its counters are shares of all the time: products of the blocks and of the head (gemv_share is
// both), attention with what it stores, norms, and the rest (rope, sums, silu, choosing the token).
// `products` runs a token's products alone, over the same weights: no engine can be faster.
// `prompt` reads many tokens at once, with the library's sums and, where the build has one
// (BL_WITH_BLAS), with a BLAS's.
//
// Run: decode_cpu_bench [--benchmark_filter=decode/bits:4]
#include <bitladder/core/parallel.hpp>

#include "support/random_model.hpp"
#include <llama/backend_cpu.hpp>
#include <llama/forward.hpp>
#include <llama/model.hpp>
#include <llama/multiply.hpp>
#include <llama/sampler.hpp>

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#ifndef NDEBUG
#error "benchmarks of a debug build mean nothing: configure with CMAKE_BUILD_TYPE=Release"
#endif

namespace {

using clock_type = std::chrono::steady_clock;

const llama::model& model_at(int bits) {
  if (bits == llama::unquantized) {
    static const bench::random_model files(bench::smollm2_135m, bench::model_form::f32);
    static const llama::model dense(files.path());
    return dense;
  }
  static const bench::random_model files(bench::smollm2_135m, bench::model_form::planes);
  static const llama::model quantized(files.path());
  return quantized;
}

/// The CPU's backend with a watch: what `session` runs is exactly the engine's code.
class timed_backend : public llama::cpu_backend {
 public:
  struct seconds {
    double blocks = 0, head = 0, attention = 0, norms = 0;
  };

  using cpu_backend::cpu_backend;

  void linear(const llama::linear_weight& w, int bits, const buffer& x, buffer& y) {
    timed(&w == &weights().head ? spent.head : spent.blocks,
          [&] { cpu_backend::linear(w, bits, x, y); });
  }
  void norm(const buffer& x, const llama::norm_weights<std::vector<float>>& w, buffer& y) {
    timed(spent.norms, [&] { cpu_backend::norm(x, w, y); });
  }
  void store(cache& kv, int layer, int position, const buffer& keys, const buffer& values) {
    timed(spent.attention, [&] { cpu_backend::store(kv, layer, position, keys, values); });
  }
  void attention(const cache& kv, int layer, const buffer& queries, int window, buffer& out) {
    timed(spent.attention, [&] { cpu_backend::attention(kv, layer, queries, window, out); });
  }

  seconds spent;

 private:
  template <class F>
  static void timed(double& sum, F&& f) {
    const auto start = clock_type::now();
    f();
    sum += std::chrono::duration<double>(clock_type::now() - start).count();
  }
};

/// bits, threads, context
void decode(benchmark::State& state) {
  constexpr int tokens = 64;
  const int bits = static_cast<int>(state.range(0)), context = static_cast<int>(state.range(2));
  bitladder::thread_pool pool(static_cast<int>(state.range(1)));
  timed_backend backend(model_at(bits), &pool);
  llama::session<timed_backend> session(backend, context + tokens);
  std::vector<int> prompt;
  for (int i = 0; i < context; ++i) prompt.push_back(i * 7919 % bench::smollm2_135m.vocabulary);
  session.forward(prompt, bits);
  llama::sampler choose;
  const auto write = [&] {
    session.truncate(context);
    int token = 1;
    for (int i = 0; i < tokens; ++i) {
      session.forward({&token, 1}, bits);
      token = choose(session.last_logits());
    }
    benchmark::DoNotOptimize(token);
  };
  write();
  backend.spent = {};
  const auto start = clock_type::now();
  for (auto _ : state) write();
  const double total = std::chrono::duration<double>(clock_type::now() - start).count();
  const auto& spent = backend.spent;
  state.counters["tokens_per_second"] = static_cast<double>(state.iterations()) * tokens / total;
  state.counters["gemv_share"] = (spent.blocks + spent.head) / total;
  state.counters["head_share"] = spent.head / total;
  state.counters["attention_share"] = spent.attention / total;
  state.counters["norm_share"] = spent.norms / total;
  state.counters["rest_share"] =
      1 - (spent.blocks + spent.head + spent.attention + spent.norms) / total;
}

/// bits, threads
void products(benchmark::State& state) {
  const int bits = static_cast<int>(state.range(0));
  bitladder::thread_pool pool(static_cast<int>(state.range(1)));
  const llama::host_weights& weights = model_at(bits).weights();
  std::vector<float> x(static_cast<std::size_t>(bench::smollm2_135m.intermediate));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17) * 0.125f - 1.0f;
  std::vector<float> y(static_cast<std::size_t>(bench::smollm2_135m.vocabulary));
  double count = 0;
  const auto multiply = [&](const llama::linear_weight& w) {
    if (w.rows == 0) return;
    llama::multiply(w, bits, {x.data(), 1, w.cols}, {y.data(), 1, w.rows}, &pool);
    benchmark::DoNotOptimize(y.data());
    count += static_cast<double>(w.rows) * w.cols;
  };
  const auto token = [&] {
    for (const auto& layer : weights.layers) layer.for_each_linear(multiply);
    multiply(weights.head);
  };
  token();
  count = 0;
  for (auto _ : state) token();
  state.counters["tokens_per_second"] =
      benchmark::Counter(static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
  state.counters["gweights_per_second"] =
      benchmark::Counter(count * 1e-9, benchmark::Counter::kIsRate);
}

/// bits, threads, tokens, blas
void prompt(benchmark::State& state) {
  const int bits = static_cast<int>(state.range(0)), tokens = static_cast<int>(state.range(2));
  bitladder::thread_pool pool(static_cast<int>(state.range(1)));
  llama::cpu_backend backend(
      model_at(bits), &pool,
      state.range(3) == 0 ? llama::summation::fixed : llama::summation::blas);
  llama::session<llama::cpu_backend> session(backend, tokens);
  std::vector<int> ids;
  for (int i = 0; i < tokens; ++i) ids.push_back(i * 7919 % bench::smollm2_135m.vocabulary);
  session.forward(ids, bits);
  for (auto _ : state) {
    session.truncate(0);
    session.forward(ids, bits);
    benchmark::DoNotOptimize(session.last_logits().data());
  }
  state.counters["tokens_per_second"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * tokens, benchmark::Counter::kIsRate);
}

/// 1, 2 and all.
std::vector<std::int64_t> thread_counts() {
  std::vector<std::int64_t> counts{1};
  const auto all = static_cast<std::int64_t>(std::thread::hardware_concurrency());
  if (all > 1) counts.push_back(2);
  if (all > 2) counts.push_back(all);
  return counts;
}
const std::vector<std::int64_t> threads = thread_counts();
const std::vector<std::int64_t> every_precision{2, 3, 4, 5, 6, 7, 8, llama::unquantized};

const std::vector<std::int64_t> sums =
    llama::has_blas() ? std::vector<std::int64_t>{0, 1} : std::vector<std::int64_t>{0};

BENCHMARK(decode)
    ->ArgNames({"bits", "threads", "context"})
    ->ArgsProduct({every_precision, threads, {64}})
    ->ArgsProduct({{4}, threads, {1024}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK(products)
    ->ArgNames({"bits", "threads"})
    ->ArgsProduct({every_precision, threads})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

BENCHMARK(prompt)
    ->ArgNames({"bits", "threads", "tokens", "blas"})
    ->ArgsProduct({{2, 4, 8, llama::unquantized}, threads, {128, 512}, sums})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
