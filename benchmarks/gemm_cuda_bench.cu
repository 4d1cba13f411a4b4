// SPDX-License-Identifier: MIT
// How fast the CUDA kernels are on the matrices of Llama models, at every precision and for one
// token to 2048, beside what bounds them and what they replace, all measured in this process: a
// copy on the device, a chain of kernels that only read the same bytes, and cuBLAS in fp16.
//
// Weights are stored once with all 8 planes, as they are in use, and rotate over more bytes than
// any second-level cache holds; so do x and y, as far as they are small. A row is the median replay
// of a graph of many such products, divided by their number; everything that the call does to x is
// inside. `gbytes_per_s` and the fractions count the planes that are read and one fp16 table;
// `xy_bytes`, which are not in them, are the rest of the least traffic there can be. Before it is
// timed, each row is compared with sums in double.
//
// Run: gemm_cuda_bench [--min_ms=12] [--benchmark_filter=^gemm/.*bits:4]; rows are
// gemm/rows:R/cols:C/m:M/bits:B/pdl:P/invariant:I (pdl: launches may overlap; invariant: one token
// is summed as it would be in a batch), dequantize/rows:R/cols:C/bits:B, and
// outliers/rows:R/cols:C/m:M/bits:B/crowded:K: the same product with 0.45% of the weights kept
// apart (crowded: half of them in every hundredth row), `cost` being what that adds to the time of
// the one without, which is measured beside it.
#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include "support/ceilings.cuh"
#include "support/cublas_gemm.cuh"
#include "support/cuda_check.cuh"
#include "support/graph_timer.cuh"
#include "support/host_check.cuh"
#include "support/llama_shapes.hpp"
#include "support/product.cuh"
#include "support/product_chain.cuh"
#include "support/random_fill.cuh"
#include "support/weight_pool.cuh"

#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <tuple>

#ifndef NDEBUG
#error "benchmarks of a debug build mean nothing: configure with CMAKE_BUILD_TYPE=Release"
#endif

namespace {

using namespace bitladder;
using bench::timing;

// --- What all rows share -------------------------------------------------------------------------

double min_ms = 12;  // --min_ms: replays of one row, if the fewest fit

/// Made for the first row and kept: buffers, the timer, and measurements that several rows need.
class session {
 public:
  session() {
    bench::check(cuda::properties(device_), "device properties");
    if (device_.compute_capability < 80) bench::check(status::unsupported_device, "device");
    copy_ = bench::copy_bytes_per_second(timer.stream());
    std::fprintf(stderr, "copy: %.0f GB/s (read + write)\n", copy_ * 1e-9);
  }

  bench::graph_timer timer;
  bench::product_chain products{timer};

  double copy_bytes_per_second() const { return copy_; }
  bench::time_budget budget() const { return {min_ms, 5, 20}; }

  const timing& floor(int rows, int cols, int bits) {
    const auto found = floors_.emplace(std::make_tuple(rows, cols, bits), timing{});
    if (found.second) {
      bench::weight_pool& pool = products.weights;
      const std::size_t bytes = pool.view(rows, cols, bits, 0).touched_bytes();
      found.first->second = bench::streaming_floor(
          timer, pool.planes(), pool.bytes(), bytes / 16 * 16, bench::weight_pool::rotation(bytes),
          out_.data(), device_, {min_ms / 3, 5, 20});
    }
    return found.first->second;
  }

  const timing& cublas(int rows, int cols, int m) {
    const auto found = baselines_.emplace(std::make_tuple(rows, cols, m), timing{});
    if (found.second) {
      const std::size_t size = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols);
      const int rotation = bench::weight_pool::rotation(size * sizeof(fp16_t));
      if (half_.size() == 0) {
        half_.resize(half_elements);
        bench::fill_normal(half_.data(), half_.size(), 0.02f, 12, timer.stream());
      }
      if (!cublas_) cublas_ = std::make_unique<bench::cublas_baseline>();
      found.first->second = cublas_->measure(
          timer, rows, cols, m, rotation,
          [&](int i) { return half_.data() + static_cast<std::size_t>(i % rotation) * size; },
          [&](int i) { return products.x(i, m, cols); },
          [&](int i) { return products.y(i, m, rows); }, budget());
    }
    return found.first->second;
  }

  /// Room for one whole matrix, several times if it is small.
  fp16_t* dense(int i, std::size_t elements) {
    if (dense_.size() == 0) dense_.resize(half_elements);
    return dense_.data() + static_cast<std::size_t>(i) % (half_elements / elements) * elements;
  }

 private:
  // The largest matrix twice.
  static constexpr std::size_t half_elements = std::size_t{57344} * 8192 * 2;

  cuda::device_properties device_;
  double copy_ = 0;
  std::map<std::tuple<int, int, int>, timing> floors_, baselines_;
  std::unique_ptr<bench::cublas_baseline> cublas_;
  bench::device_array<fp16_t> half_, dense_;
  bench::device_array<std::uint32_t> out_{16};
};

session& shared() {
  static session s;
  return s;
}

// Relative to |x| times the row's rms weight, beyond the rounding of y to fp16.
constexpr double error_limit = 3e-4;

// --- Rows ----------------------------------------------------------------------------------------

struct cell {
  int rows, cols, m, bits, pdl, invariant;
  bool operator<(const cell& o) const {
    return std::tie(rows, cols, m, bits, pdl, invariant) <
           std::tie(o.rows, o.cols, o.m, o.bits, o.pdl, o.invariant);
  }
};
struct result {
  double us, copy_fraction, cublas_ratio;
};
std::map<cell, result> results;
std::map<cell, double> dequantize_results;  // fraction of the copy bandwidth; m and pdl are 0

void gemm_row(benchmark::State& state, const cell& c) {
  session& s = shared();
  const bench::product_shape shape{c.rows, c.cols, c.m, c.bits, c.pdl != 0, c.invariant != 0};
  constexpr auto engine = bench::engine::chosen;
  s.products.run_once(engine, shape);
  const cuda::packed_view w = s.products.weights.view(c.rows, c.cols, c.bits, 0);
  const double error =
      bench::largest_error(w, s.products.x(0, c.m, c.cols), s.products.y(0, c.m, c.rows), c.m);
  if (!(error <= error_limit)) {
    char text[64];
    std::snprintf(text, sizeof text, "wrong result: error %.2e", error);
    return state.SkipWithError(text);
  }
  const timing t = s.products.measure(engine, shape, s.budget());
  const timing& floor = s.floor(c.rows, c.cols, c.bits);
  const timing& cublas = s.cublas(c.rows, c.cols, c.m);

  for (auto _ : state) state.SetIterationTime(t.us * 1e-6);
  const double weights = static_cast<double>(c.rows) * c.cols;
  const double bytes = static_cast<double>(w.touched_bytes());
  const double copy = s.copy_bytes_per_second();
  const double speed = bytes / (t.us * 1e-6);
  state.counters["us"] = t.us;
  state.counters["spread"] = t.spread;
  state.counters["gbytes_per_s"] = speed * 1e-9;
  state.counters["copy_fraction"] = speed / copy;
  state.counters["floor_us"] = floor.us;
  state.counters["floor_fraction"] = floor.us / t.us;
  state.counters["cublas_fp16_us"] = cublas.us;
  state.counters["cublas_ratio"] = cublas.us / t.us;
  state.counters["tflops"] = 2e-6 * weights * c.m / t.us;
  state.counters["bytes"] = bytes;
  state.counters["xy_bytes"] = 2.0 * c.m * (static_cast<double>(c.rows) + c.cols);
  state.counters["copy_gbytes_per_s"] = copy * 1e-9;
  state.counters["error"] = error;
  if (c.m >= bench::cublas_min_m) state.SetLabel("slabs, cuBLAS");
  results[c] = {t.us, speed / copy, cublas.us / t.us};
}

void outlier_row(benchmark::State& state, const cell& c, bool crowded) {
  session& s = shared();
  constexpr auto engine = bench::engine::chosen;
  bench::product_shape shape{c.rows, c.cols, c.m, c.bits};
  const timing plain = s.products.measure(engine, shape, s.budget());
  shape.outliers = crowded ? bench::outlier_kind::crowded : bench::outlier_kind::even;
  s.products.run_once(engine, shape);
  const cuda::packed_view w = s.products.matrix(shape, 0);
  const double error =
      bench::largest_error(w, s.products.x(0, c.m, c.cols), s.products.y(0, c.m, c.rows), c.m);
  if (!(error <= error_limit)) {
    char text[64];
    std::snprintf(text, sizeof text, "wrong result: error %.2e", error);
    return state.SkipWithError(text);
  }
  const timing t = s.products.measure(engine, shape, s.budget());
  for (auto _ : state) state.SetIterationTime(t.us * 1e-6);
  const double bytes = static_cast<double>(w.touched_bytes());
  state.counters["us"] = t.us;
  state.counters["spread"] = t.spread;
  state.counters["plain_us"] = plain.us;
  state.counters["cost"] = t.us / plain.us - 1;
  state.counters["gbytes_per_s"] = bytes / (t.us * 1e-6) * 1e-9;
  state.counters["copy_fraction"] = bytes / (t.us * 1e-6) / s.copy_bytes_per_second();
  state.counters["bytes"] = bytes;
  state.counters["outlier_bytes"] = static_cast<double>(w.outliers.bytes(c.rows));
  state.counters["copy_gbytes_per_s"] = s.copy_bytes_per_second() * 1e-9;
  state.counters["error"] = error;
}

void dequantize_row(benchmark::State& state, const cell& c) {
  session& s = shared();
  const std::size_t elements = static_cast<std::size_t>(c.rows) * static_cast<std::size_t>(c.cols);
  bench::weight_pool& pool = s.products.weights;
  const int rotation =
      bench::weight_pool::rotation(pool.view(c.rows, c.cols, c.bits, 0).touched_bytes());
  // Planes read and fp16 written; tables are not counted.
  const double counted = static_cast<double>(elements) * (c.bits / 8.0 + 2);
  const double expected_us = counted * 1e-6 / 3.5 + 1;
  const timing t = s.timer.measure(
      bench::launches_for(expected_us, rotation), s.budget(), [&](int i, cudaStream_t stream) {
        bench::check(bench::dequantize(pool.view(c.rows, c.cols, c.bits, i % rotation),
                                       s.dense(i, elements), stream),
                     "dequantize");
      });
  for (auto _ : state) state.SetIterationTime(t.us * 1e-6);
  const double speed = counted / (t.us * 1e-6);
  state.counters["us"] = t.us;
  state.counters["spread"] = t.spread;
  state.counters["gbytes_per_s"] = speed * 1e-9;
  state.counters["copy_fraction"] = speed / s.copy_bytes_per_second();
  state.counters["bytes"] = counted;
  state.counters["copy_gbytes_per_s"] = s.copy_bytes_per_second() * 1e-9;
  dequantize_results[c] = speed / s.copy_bytes_per_second();
}

/// A row that fails says so and the others go on, unless the device is lost.
template <class Row>
void guarded(benchmark::State& state, const cell& c, Row&& row) {
  try {
    row(state, c);
  } catch (const std::exception& e) {
    if (cudaDeviceSynchronize() != cudaSuccess) {
      std::fprintf(stderr, "rows %d, cols %d, m %d, bits %d: %s\n", c.rows, c.cols, c.m, c.bits,
                   e.what());
      std::_Exit(2);
    }
    state.SkipWithError(e.what());
  }
}

int argument(const benchmark::State& state, std::size_t i) {
  return static_cast<int>(state.range(i));
}

void gemm_benchmark(benchmark::State& state) {
  guarded(state,
          {argument(state, 0), argument(state, 1), argument(state, 2), argument(state, 3),
           argument(state, 4), argument(state, 5)},
          gemm_row);
}

void outlier_benchmark(benchmark::State& state) {
  const bool crowded = argument(state, 4) != 0;
  guarded(state,
          {argument(state, 0), argument(state, 1), argument(state, 2), argument(state, 3), 1, 0},
          [&](benchmark::State& row, const cell& c) { outlier_row(row, c, crowded); });
}

void dequantize_benchmark(benchmark::State& state) {
  guarded(state, {argument(state, 0), argument(state, 1), 0, argument(state, 2), 0, 0},
          dequantize_row);
}

/// Whether one token is also timed with launches that wait for each other.
bool also_alone(const bench::shape& s) {
  return s.cols == 8192 ? s.rows == 57344 : s.cols == 4096 && (s.rows == 4096 || s.rows == 22016);
}

void register_rows() {
  // The baseline, then all precisions, for one number of tokens after the other.
  for (const bench::shape& s : bench::llama_shapes)
    for (const int m : bench::token_counts) {
      auto* rows = benchmark::RegisterBenchmark("gemm", gemm_benchmark)
                       ->ArgNames({"rows", "cols", "m", "bits", "pdl", "invariant"});
      for (int bits = 2; bits <= 8; ++bits) {
        rows->Args({s.rows, s.cols, m, bits, 1, 0});
        if (m == 1 && also_alone(s)) rows->Args({s.rows, s.cols, m, bits, 0, 0});
        if (m == 1 && bits <= 4) rows->Args({s.rows, s.cols, m, bits, 1, 1});
      }
      rows->Iterations(1)->UseManualTime()->Unit(benchmark::kMicrosecond);
    }
  for (const bench::shape& s : bench::llama_shapes) {
    auto* rows = benchmark::RegisterBenchmark("dequantize", dequantize_benchmark)
                     ->ArgNames({"rows", "cols", "bits"});
    for (int bits = 2; bits <= 8; ++bits) rows->Args({s.rows, s.cols, bits});
    rows->Iterations(1)->UseManualTime()->Unit(benchmark::kMicrosecond);
  }
}

void register_outlier_rows() {
  constexpr int shapes[][2] = {{4096, 4096},  {12288, 4096}, {22016, 4096},
                               {4096, 11008}, {4096, 14336}, {57344, 8192}};
  auto* rows = benchmark::RegisterBenchmark("outliers", outlier_benchmark)
                   ->ArgNames({"rows", "cols", "m", "bits", "crowded"});
  for (const auto& s : shapes)
    for (int bits = 2; bits <= 8; ++bits)
      for (const int m : {1, 2, 8, 16, 64, 512})
        for (const int crowded : {0, 1})
          if (m == 1 || crowded == 0) rows->Args({s[0], s[1], m, bits, crowded});
  rows->Iterations(1)->UseManualTime()->Unit(benchmark::kMicrosecond);
}

// --- What it comes to ----------------------------------------------------------------------------

/// A measured number beside the two that it should reach on an H200.
struct goal {
  double accept, aim;
};
struct goals {
  int bits;
  goal large_1, large_8, large_16;  ///< 57344 x 8192, fraction of the copy bandwidth
  goal medium_us, small_us;         ///< one token: 22016 x 4096 and 4096 x 4096
  goal medium_ratio;                ///< cuBLAS fp16's time over ours, 22016 x 4096, one token
};
constexpr goals h200_goals[] = {
    {2, {.85, .94}, {.58, .72}, {.50, .62}, {7.8, 6.8}, {2.6, 1.9}, {5.5, 7}},
    {3, {.88, .95}, {.72, .82}, {.60, .72}, {11.0, 9.7}, {3.0, 2.3}, {4.2, 5}},
    {4, {.85, .94}, {.68, .80}, {.62, .74}, {14.4, 12.7}, {3.6, 2.8}, {3.3, 3.8}},
    {5, {.75, .88}, {.72, .80}, {.70, .78}, {19.7, 16.8}, {4.4, 3.5}, {2.4, 2.8}},
    {6, {.82, .90}, {.78, .86}, {.75, .84}, {21.6, 19.5}, {4.8, 4.0}, {2.2, 2.4}},
    {7, {.85, .92}, {.82, .88}, {.80, .86}, {25.5, 23.0}, {5.4, 4.5}, {1.9, 2.1}},
    {8, {.87, .93}, {.85, .91}, {.82, .90}, {29.5, 26.8}, {6.0, 5.2}, {1.6, 1.8}},
};

/// "measured accept/aim": each ratio at least 1 where the goal is met.
std::string against(double measured, const goal& g, bool less_is_better) {
  if (measured <= 0) return "-";
  const double accept = less_is_better ? g.accept / measured : measured / g.accept;
  const double aim = less_is_better ? g.aim / measured : measured / g.aim;
  char text[64];
  std::snprintf(text, sizeof text, less_is_better ? "%.2f %.2f/%.2f%s" : "%.3f %.2f/%.2f%s",
                measured, accept, aim, accept >= 1 ? "" : " *");
  return text;
}

/// The smallest of some number over the rows, and where.
template <class Select, class Value>
void print_worst(const char* what, double wanted, Select&& select, Value&& value) {
  const cell* worst = nullptr;
  double least = 0;
  int rows = 0, short_of = 0;
  for (const auto& r : results) {
    if (r.first.pdl == 0 || r.first.invariant != 0 || !select(r.first)) continue;
    ++rows;
    const double v = value(r.second);
    short_of += v < wanted;
    if (worst == nullptr || v < least) worst = &r.first, least = v;
  }
  if (worst != nullptr)
    std::fprintf(stderr, "%s: %d of %d rows below %.2f; least %.2f (%dx%d, m %d, %d bits)\n", what,
                 short_of, rows, wanted, least, worst->rows, worst->cols, worst->m, worst->bits);
}

void print_summary() {
  if (!results.empty()) {
    std::fprintf(stderr,
                 "\nmeasured, over accept / over aim (* misses accept), goals of an H200:\n"
                 "bits | 57344x8192 m=1: of copy | m=8               | m=16              | "
                 "22016x4096 m=1: us | 4096x4096 m=1: us  | 22016x4096: x cuBLAS\n");
    for (const goals& g : h200_goals) {
      const auto at = [&](int rows, int cols, int m) {
        const auto found = results.find({rows, cols, m, g.bits, 1, 0});
        return found == results.end() ? result{0, 0, 0} : found->second;
      };
      std::fprintf(stderr, "%4d | %-23s | %-17s | %-17s | %-18s | %-18s | %s\n", g.bits,
                   against(at(57344, 8192, 1).copy_fraction, g.large_1, false).c_str(),
                   against(at(57344, 8192, 8).copy_fraction, g.large_8, false).c_str(),
                   against(at(57344, 8192, 16).copy_fraction, g.large_16, false).c_str(),
                   against(at(22016, 4096, 1).us, g.medium_us, true).c_str(),
                   against(at(4096, 4096, 1).us, g.small_us, true).c_str(),
                   against(at(22016, 4096, 1).cublas_ratio, g.medium_ratio, false).c_str());
    }
    const auto ratio = [](const result& r) { return r.cublas_ratio; };
    print_worst(
        "times as fast as cuBLAS, m 1 to 64", 1, [](const cell& c) { return c.m <= 64; }, ratio);
    print_worst(
        "of cuBLAS, m 65 to 1023", .6, [](const cell& c) { return c.m > 64 && c.m < 1024; }, ratio);
    print_worst(
        "of cuBLAS, m 1024 and more", .85, [](const cell& c) { return c.m >= 1024; }, ratio);
  }
  for (const auto& r : dequantize_results)
    if (r.second < .8)
      std::fprintf(stderr, "dequantize %dx%d, %d bits: %.2f of the copy bandwidth\n", r.first.rows,
                   r.first.cols, r.first.bits, r.second);
}

/// Takes our own option out of the arguments.
void parse_own(int& argc, char** argv) {
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--min_ms=", 9) == 0)
      min_ms = std::atof(argv[i] + 9);
    else
      argv[kept++] = argv[i];
  }
  argc = kept;
}

}  // namespace

int main(int argc, char** argv) {
  parse_own(argc, argv);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  register_rows();
  register_outlier_rows();
  benchmark::RunSpecifiedBenchmarks();
  print_summary();
  benchmark::Shutdown();
}
