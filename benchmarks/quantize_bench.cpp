// SPDX-License-Identifier: MIT
// How long one layer of Llama-2-7B takes to quantize from its seed up to 8 bits, and what error is
// left at every precision: four matrices of 4096 x 4096, two of 11008 x 4096 and one of 4096 x
// 11008, 202 million weights, or one of `part` equal parts of their rows. Weights follow Student's
// t with 4 degrees of freedom, sensitivities chi-squared with 1. The time is one pass over all;
// `error_<bits>` is the weighted squared error of the fp16 tables over the weighted variance. The
// whole layer (part:1) is there on machines with 8 threads or more, and needs 3 GB.
//
// Run: quantize_bench [--benchmark_filter='part:1/.*seed:3']
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/quantize/quantize.hpp>

#include <benchmark/benchmark.h>

#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#ifndef NDEBUG
#error "benchmarks of a debug build mean nothing: configure with CMAKE_BUILD_TYPE=Release"
#endif

namespace {

using namespace bitladder;

struct shape {
  int rows, cols;
};

constexpr shape layer_shapes[] = {{4096, 4096},  {4096, 4096},  {4096, 4096}, {4096, 4096},
                                  {11008, 4096}, {11008, 4096}, {4096, 11008}};

/// Numbers of one row, the same whichever thread makes them.
class row_random {
 public:
  explicit row_random(std::uint64_t row) : state_(row << 32) {}
  double normal() {
    const double radius = std::sqrt(-2 * std::log(uniform()));
    return radius * std::cos(6.283185307179586 * uniform());
  }
  double student_t() {  // chi-squared of 4 is twice the sum of two exponentials
    return normal() / std::sqrt(-0.5 * std::log(uniform() * uniform()));
  }

 private:
  double uniform() {  // (0, 1], splitmix64
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<double>(((z ^ z >> 31) >> 11) + 1) * 0x1p-53;
  }

  std::uint64_t state_;
};

float as(float, double x) { return static_cast<float>(x); }
fp16_t as(fp16_t, double x) { return to_fp16(static_cast<float>(x)); }
bf16_t as(bf16_t, double x) { return to_bf16(static_cast<float>(x)); }

template <class Value>
struct matrix {
  int rows, cols;
  std::vector<Value> weights;
  std::vector<float> sensitivities;
};

template <class Value>
std::vector<matrix<Value>> make_layer(int part) {
  std::vector<matrix<Value>> layer;
  thread_pool pool;
  std::uint64_t first_row = 1;
  for (const shape& s : layer_shapes) {
    matrix<Value> m{s.rows / part, s.cols, {}, {}};
    const std::size_t cols = static_cast<std::size_t>(m.cols);
    m.weights.resize(static_cast<std::size_t>(m.rows) * cols);
    m.sensitivities.resize(m.weights.size());
    pool.run(m.rows, 8, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        row_random random(first_row + static_cast<std::uint64_t>(r));
        for (std::size_t i = static_cast<std::size_t>(r) * cols;
             i < static_cast<std::size_t>(r + 1) * cols; ++i) {
          m.weights[i] = as(Value{}, 0.02 * random.student_t());
          const double n = random.normal();
          m.sensitivities[i] = static_cast<float>(n * n);
        }
      }
    });
    first_row += static_cast<std::uint64_t>(m.rows);
    layer.push_back(std::move(m));
  }
  return layer;
}

/// part, seed, exact, threads, lookahead
template <class Value>
void quantize_layer(benchmark::State& state) {
  static int made_part = 0;
  static std::vector<matrix<Value>> layer;
  const int part = static_cast<int>(state.range(0));
  if (made_part != part) {
    layer.clear();
    layer = make_layer<Value>(part);
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
    for (const matrix<Value>& m : layer) {
      const quantized_matrix q = quantize(
          matrix_view<const Value>(m.weights.data(), m.rows, m.cols),
          sensitivity::from_values({m.sensitivities.data(), m.rows, m.cols}), options, &pool);
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
