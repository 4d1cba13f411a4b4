// SPDX-License-Identifier: MIT
// How long one layer of Llama-2-7B (support/layer_weights.hpp), or one of `part` equal parts of its
// rows, takes to quantize from its seed up to 8 bits, and what error is left at every precision.
// The time is one pass over all; `error_<bits>` is the weighted squared error of the fp16 tables
// over the weighted variance. The whole layer (part:1) is there on machines with 8 threads or more,
// and needs 3 GB.
//
// Run: quantize_bench [--benchmark_filter='part:1/.*seed:3']
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/quantize/quantize.hpp>

#include <support/layer_weights.hpp>

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#ifndef NDEBUG
#error "benchmarks of a debug build mean nothing: configure with CMAKE_BUILD_TYPE=Release"
#endif

namespace {

using namespace bitladder;

/// part, seed, exact, threads, lookahead
template <class Value>
void quantize_layer(benchmark::State& state) {
  static int made_part = 0;
  static std::vector<bench::layer_matrix<Value>> layer;
  const int part = static_cast<int>(state.range(0));
  if (made_part != part) {
    layer.clear();
    layer = bench::make_layer<Value>(part);
    made_part = part;
  }
  kmeans_options options;
  options.seed_bits = static_cast<int>(state.range(1));
  options.method = state.range(2) != 0 ? quantize_method::exact : quantize_method::published;
  thread_pool pool(static_cast<int>(state.range(3)));
  options.lookahead = static_cast<double>(state.range(4));
  double weights = 0;
  quantize_report sum;
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    weights = 0;
    sum = {};
    for (const bench::layer_matrix<Value>& m : layer) {
      const quantized_matrix q = quantize(m.values(), m.sens(), options, &pool);
      weights += static_cast<double>(m.weights.size());
      sum.weighted_variance += q.report().weighted_variance;
      for (std::size_t b = 0; b < sum.weighted_error.size(); ++b)
        sum.weighted_error[b] += q.report().weighted_error[b];
    }
  }
  state.SetLabel(to_string(options.method));
  const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
  state.counters["ns_per_weight_per_thread"] =
      time.count() * pool.size() / (weights * static_cast<double>(state.iterations()));
  for (int b = options.min_bits; b <= options.max_bits; ++b)
    state.counters["error_" + std::to_string(b)] = sum.relative_error(b);
}

void rows_to_print(benchmark::internal::Benchmark* b) {
  const int threads = static_cast<int>(std::thread::hardware_concurrency());
  const int lookahead = static_cast<int>(kmeans_options().lookahead);
  b->ArgNames({"part", "seed", "exact", "threads", "lookahead"});
  b->Unit(benchmark::kSecond)->UseRealTime();
  for (const int part : {16, 1}) {
    if (part == 1 && threads < 8) continue;
    for (const int seed : {2, 3, 4})
      for (const int exact : {1, 0}) b->Args({part, seed, exact, threads, lookahead});
    b->Args({part, 3, 1, threads, 0});
    if (threads > 1 && part > 1) b->Args({part, 3, 1, 1, lookahead});
  }
}

BENCHMARK_TEMPLATE(quantize_layer, float)->Apply(rows_to_print);
BENCHMARK_TEMPLATE(quantize_layer, fp16_t)->Apply(rows_to_print);
BENCHMARK_TEMPLATE(quantize_layer, bf16_t)->Apply(rows_to_print);

}  // namespace

BENCHMARK_MAIN();
