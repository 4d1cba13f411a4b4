// SPDX-License-Identifier: MIT
// How fast the CPU kernels read weights: gemv at every precision and with every instruction set
// that the machine has, beside dense float and fp16 rows, OpenBLAS's sgemv where it was found
// (BL_BENCH_HAS_CBLAS), and plain memory reads and copies; gemv with outliers beside the codes;
// gemm at a prompt's batch, and dequantize. Weights rotate over more memory than any last-level
// cache holds, as a model's layers do; gemm repeats one matrix, as its weights are used many times.
// `gweights_per_second` counts weights, `bytes_per_second` the least traffic there can be: the
// planes read, their tables, x and y.
//
// Run: gemv_cpu_bench [--benchmark_filter=gemv.*bits:4]
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/kernels/cpu/dequantize.hpp>
#include <bitladder/kernels/cpu/gemm.hpp>
#include <bitladder/kernels/cpu/gemv.hpp>
#include <bitladder/kernels/cpu/reference.hpp>

#include <benchmark/benchmark.h>

#if defined(BL_BENCH_HAS_CBLAS)
#include <cblas.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#ifndef NDEBUG
#error "benchmarks of a debug build mean nothing: configure with CMAKE_BUILD_TYPE=Release"
#endif

namespace {

using namespace bitladder;

// Past the last-level caches of one-socket machines (32 MB on the one these were tuned on).
constexpr std::size_t rotation_bytes = std::size_t{192} << 20;

/// Random planes and tables; their values do not matter for speed.
struct layer {
  bitplane_tensor planes;
  codebook_ladder tables;

  layer(int rows, int cols, int bits)
      : planes(bitplane_layout{rows, cols, bits}), tables(rows, 1, bits, bits) {
    std::mt19937 rng(1);
    for (std::size_t i = 0; i < planes.layout().total_words(); ++i)
      planes.data()[i] = static_cast<std::uint32_t>(rng());
    for (std::size_t i = 0; i < tables[bits].size(); ++i)
      tables.data(bits)[i] = to_fp16(static_cast<float>(i % 31) * 0.01f - 0.15f);
  }
};

std::vector<float> ramp(std::size_t count) {
  std::vector<float> v(count);
  for (std::size_t i = 0; i < count; ++i) v[i] = static_cast<float>(i % 17) * 0.125f - 1.0f;
  return v;
}

std::vector<layer> rotation(int rows, int cols, int bits) {
  const std::size_t bytes = bitplane_layout{rows, cols, bits}.total_words() * 4;
  std::vector<layer> layers;
  layers.emplace_back(rows, cols, bits);
  while (layers.size() * bytes < rotation_bytes) layers.push_back(layers.front());
  return layers;
}

void count_weights(benchmark::State& state, double weights, double bytes) {
  const double calls = static_cast<double>(state.iterations());
  state.counters["gweights_per_second"] =
      benchmark::Counter(weights * calls * 1e-9, benchmark::Counter::kIsRate);
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes * calls));
}

void count_flops(benchmark::State& state, double flops) {
  state.counters["gflops"] = benchmark::Counter(
      flops * static_cast<double>(state.iterations()) * 1e-9, benchmark::Counter::kIsRate);
}

template <int Bits>
void gemv_bitplanes(benchmark::State& state, int rows, int cols, thread_pool& pool, cpu::isa use) {
  const auto layers = rotation(rows, cols, Bits);
  const auto x = ramp(static_cast<std::size_t>(cols));
  std::vector<float> y(static_cast<std::size_t>(rows)), expected(y.size());
  cpu::gemv<Bits>(layers[0].planes.view(), layers[0].tables[Bits], x, y, &pool, use);
  cpu::reference::gemv(layers[0].planes.view(), layers[0].tables[Bits], x, expected);
  if (y != expected) return state.SkipWithError("wrong result");
  std::size_t next = 0;
  for (auto _ : state) {
    const layer& l = layers[next++ % layers.size()];
    cpu::gemv<Bits>(l.planes.view(), l.tables[Bits], x, y, &pool, use);
    benchmark::DoNotOptimize(y.data());
  }
  const layer& l = layers[0];
  count_weights(state, static_cast<double>(rows) * cols,
                static_cast<double>(l.planes.layout().total_words() * 4 +
                                    l.tables[Bits].size() * sizeof(fp16_t) +
                                    (x.size() + y.size()) * sizeof(float)));
}

/// rows, cols, bits, threads, isa (its number in cpu::isa; the label has the name)
void gemv(benchmark::State& state) {
  const auto use = static_cast<cpu::isa>(state.range(4));
  if (!supported(use)) return state.SkipWithError("this machine lacks the instruction set");
  state.SetLabel(to_string(use));
  thread_pool pool(static_cast<int>(state.range(3)));
  check(dispatch_bits(static_cast<int>(state.range(2)), all_bits{}, [&](auto bits) {
    gemv_bitplanes<decltype(bits)::value>(state, static_cast<int>(state.range(0)),
                                          static_cast<int>(state.range(1)), pool, use);
    return status::ok;
  }));
}

/// 0.45% of the weights, half of them in every hundredth row; their codes become one in each row.
sparse_matrix crowded_outliers(layer& l) {
  const bitplane_layout& layout = l.planes.layout();
  std::mt19937 rng(2);
  std::vector<std::int32_t> offsets{0}, columns;
  for (int r = 0; r < layout.rows; ++r) {
    const double share = r % 100 == 0 ? 0.225 : 0.00225;
    std::int32_t first = -1;
    for (int c = 0; c < layout.cols; ++c) {
      if (static_cast<double>(rng()) >= share * 4294967296.0) continue;
      columns.push_back(c);
      if (first < 0) first = c;
      for (int p = 0; p < layout.planes; ++p) {
        const std::uint32_t bit = l.planes.data()[layout.word(p, r, first / 32)] >> first % 32 & 1u;
        std::uint32_t& word = l.planes.data()[layout.word(p, r, c / 32)];
        word = (word & ~(1u << c % 32)) | bit << c % 32;
      }
    }
    offsets.push_back(static_cast<std::int32_t>(columns.size()));
  }
  std::vector<fp16_t> values(columns.size(), to_fp16(0.75f));
  return {layout.rows, layout.cols, std::move(offsets), std::move(columns), std::move(values)};
}

/// Dense and sparse, and in turn with it the same without outliers. rows, cols, bits, threads
/// `over_dense`: the time with outliers by that without.
void gemv_outliers(benchmark::State& state) {
  const int rows = static_cast<int>(state.range(0)), cols = static_cast<int>(state.range(1)),
            bits = static_cast<int>(state.range(2));
  thread_pool pool(static_cast<int>(state.range(3)));
  auto layers = rotation(rows, cols, bits);
  const sparse_matrix outliers = crowded_outliers(layers[0]);
  std::fill(layers.begin() + 1, layers.end(), layers[0]);
  const std::vector<sparse_matrix> copies(layers.size(), outliers);
  const auto x = ramp(static_cast<std::size_t>(cols));
  std::vector<float> y(static_cast<std::size_t>(rows)), expected(y.size());
  const auto multiply = [&](std::size_t i, bool sparse) {
    cpu::gemv(bits, layers[i].planes.view(), layers[i].tables[bits],
              sparse ? copies[i].view() : sparse_view(), x, y, &pool);
    benchmark::DoNotOptimize(y.data());
  };
  multiply(0, true);
  cpu::reference::gemm(layers[0].planes.view(), layers[0].tables[bits], outliers.view(),
                       matrix_view<const float>(x.data(), 1, cols),
                       matrix_view<float>(expected.data(), 1, rows));
  if (y != expected) return state.SkipWithError("wrong result");
  const auto seconds = [&](std::size_t i, bool sparse) {
    const auto start = std::chrono::steady_clock::now();
    multiply(i % layers.size(), sparse);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  std::size_t next = 0;
  double dense = 0, both = 0;
  for (auto _ : state) {
    const double here = seconds(next++, true);
    state.SetIterationTime(here);
    both += here;
    dense += seconds(next++, false);
  }
  state.counters["over_dense"] = both / dense;
  state.counters["outliers"] = outliers.count();
  count_weights(
      state, static_cast<double>(rows) * cols,
      static_cast<double>(layers[0].planes.layout().total_words() * 4 +
                          layers[0].tables[bits].size() * sizeof(fp16_t) + outliers.view().bytes() +
                          (x.size() + y.size()) * sizeof(float)));
}

/// rows, cols, threads
template <class T>
void gemv_dense(benchmark::State& state) {
  const int rows = static_cast<int>(state.range(0)), cols = static_cast<int>(state.range(1));
  thread_pool pool(static_cast<int>(state.range(2)));
  const std::size_t count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols);
  const std::size_t copies = rotation_bytes / (count * sizeof(T)) + 1;
  const std::vector<T> weights(count * copies);
  const auto x = ramp(static_cast<std::size_t>(cols));
  std::vector<float> y(static_cast<std::size_t>(rows));
  std::size_t next = 0;
  for (auto _ : state) {
    cpu::gemv(matrix_view<const T>(weights.data() + next++ % copies * count, rows, cols), x, y,
              &pool);
    benchmark::DoNotOptimize(y.data());
  }
  count_weights(state, static_cast<double>(count),
                static_cast<double>(count * sizeof(T) + (x.size() + y.size()) * sizeof(float)));
}

#if defined(BL_BENCH_HAS_CBLAS)
/// What a user has without this library: the same matrix as floats. rows, cols, threads
void sgemv(benchmark::State& state) {
  const int rows = static_cast<int>(state.range(0)), cols = static_cast<int>(state.range(1));
#if defined(OPENBLAS_VERSION)
  openblas_set_num_threads(static_cast<int>(state.range(2)));
  state.SetLabel(openblas_get_corename());
#else
  if (state.range(2) != 1) return state.SkipWithError("this BLAS has no known control of threads");
#endif
  const std::size_t count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols);
  const std::size_t copies = rotation_bytes / (count * sizeof(float)) + 1;
  const std::vector<float> weights(count * copies);
  const auto x = ramp(static_cast<std::size_t>(cols));
  std::vector<float> y(static_cast<std::size_t>(rows));
  std::size_t next = 0;
  for (auto _ : state) {
    cblas_sgemv(CblasRowMajor, CblasNoTrans, rows, cols, 1.0f,
                weights.data() + next++ % copies * count, cols, x.data(), 1, 0.0f, y.data(), 1);
    benchmark::DoNotOptimize(y.data());
  }
  count_weights(state, static_cast<double>(count),
                static_cast<double>(count * sizeof(float) + (x.size() + y.size()) * sizeof(float)));
}
#endif

/// What the memory gives to a reader: a sum over more than the caches hold. threads
void read_memory(benchmark::State& state) {
  thread_pool pool(static_cast<int>(state.range(0)));
  const std::vector<std::uint64_t> from(rotation_bytes / sizeof(std::uint64_t), 1);
  constexpr std::size_t piece = (std::size_t{1} << 20) / sizeof(std::uint64_t);
  std::atomic<std::uint64_t> total{0};
  for (auto _ : state) {
    pool.run(static_cast<std::int64_t>(from.size() / piece), 1,
             [&](std::int64_t begin, std::int64_t end) {
               std::uint64_t sum[16] = {};
               for (auto i = static_cast<std::size_t>(begin) * piece;
                    i < static_cast<std::size_t>(end) * piece; i += 16)
                 for (std::size_t k = 0; k < 16; ++k) sum[k] += from[i + k];
               for (std::uint64_t s : sum) total += s;
             });
    benchmark::DoNotOptimize(total.load());
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(rotation_bytes) *
                          static_cast<std::int64_t>(state.iterations()));
}

/// The same with as many bytes written, read and written counted. threads
void copy(benchmark::State& state) {
  thread_pool pool(static_cast<int>(state.range(0)));
  const std::vector<char> from(rotation_bytes, 1);
  std::vector<char> to(rotation_bytes);
  constexpr std::size_t piece = std::size_t{1} << 20;
  for (auto _ : state)
    pool.run(static_cast<std::int64_t>(rotation_bytes / piece), 1,
             [&](std::int64_t begin, std::int64_t end) {
               const std::size_t at = static_cast<std::size_t>(begin) * piece;
               std::memcpy(to.data() + at, from.data() + at,
                           static_cast<std::size_t>(end - begin) * piece);
             });
  state.SetBytesProcessed(static_cast<std::int64_t>(2 * rotation_bytes) *
                          static_cast<std::int64_t>(state.iterations()));
}

/// m, rows, cols, bits, threads; 0 bits are dense floats, 16 dense fp16
void gemm(benchmark::State& state) {
  const int m = static_cast<int>(state.range(0)), rows = static_cast<int>(state.range(1)),
            cols = static_cast<int>(state.range(2)), bits = static_cast<int>(state.range(3));
  thread_pool pool(static_cast<int>(state.range(4)));
  const auto x = ramp(static_cast<std::size_t>(m) * static_cast<std::size_t>(cols));
  std::vector<float> y(static_cast<std::size_t>(m) * static_cast<std::size_t>(rows));
  const matrix_view<const float> xs(x.data(), m, cols);
  const matrix_view<float> ys(y.data(), m, rows);
  if (bits == 0 || bits == 16) {
    const auto w = ramp(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols));
    std::vector<fp16_t> half(w.size());
    for (std::size_t i = 0; i < w.size(); ++i) half[i] = to_fp16(w[i]);
    for (auto _ : state) {
      if (bits == 0)
        cpu::gemm(matrix_view<const float>(w.data(), rows, cols), xs, ys, &pool);
      else
        cpu::gemm(matrix_view<const fp16_t>(half.data(), rows, cols), xs, ys, &pool);
      benchmark::DoNotOptimize(y.data());
    }
  } else {
    const layer l(rows, cols, bits);
    for (auto _ : state) {
      cpu::gemm(bits, l.planes.view(), l.tables[bits], xs, ys, &pool);
      benchmark::DoNotOptimize(y.data());
    }
  }
  count_flops(state, 2.0 * m * rows * cols);
}

/// rows, cols, bits
void dequantize(benchmark::State& state) {
  const int rows = static_cast<int>(state.range(0)), cols = static_cast<int>(state.range(1)),
            bits = static_cast<int>(state.range(2));
  const layer l(rows, cols, bits);
  std::vector<float> out(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols));
  for (auto _ : state) {
    cpu::dequantize(bits, l.planes.view(), l.tables[bits],
                    matrix_view<float>(out.data(), rows, cols));
    benchmark::DoNotOptimize(out.data());
  }
  count_weights(
      state, static_cast<double>(out.size()),
      static_cast<double>(l.planes.layout().total_words() * 4 +
                          l.tables[bits].size() * sizeof(fp16_t) + out.size() * sizeof(float)));
}

constexpr std::int64_t scalar = static_cast<std::int64_t>(cpu::isa::scalar);

/// All that the machine has, without plain code, which takes too long.
std::vector<std::int64_t> simd_here() {
  std::vector<std::int64_t> here;
  for (cpu::isa i : cpu::all_isas)
    if (i != cpu::isa::scalar && supported(i)) here.push_back(static_cast<std::int64_t>(i));
  return here;
}
const std::vector<std::int64_t> simd = simd_here();
const std::vector<std::int64_t> every_precision{1, 2, 3, 4, 5, 6, 7, 8};

/// 1, 2, 4 ... as far as the machine goes.
std::vector<std::int64_t> thread_counts() {
  std::vector<std::int64_t> counts{1};
  while (counts.back() * 2 <= static_cast<std::int64_t>(std::thread::hardware_concurrency()))
    counts.push_back(counts.back() * 2);
  return counts;
}
const std::vector<std::int64_t> threads = thread_counts();

// The shapes of Llama-2-7B, and of a small model whose layers stay in the cache.
BENCHMARK(gemv)
    ->ArgNames({"rows", "cols", "bits", "threads", "isa"})
    ->ArgsProduct({{4096}, {4096}, every_precision, threads, simd})
    ->ArgsProduct({{4096}, {11008}, every_precision, threads, simd})
    ->ArgsProduct({{11008}, {4096}, {2, 3, 4, 8}, threads, simd})
    ->ArgsProduct({{768}, {256}, every_precision, {1}, simd})
    ->ArgsProduct({{1024}, {1024}, {4}, {1}, {scalar}})
    ->UseRealTime();
BENCHMARK(gemv_outliers)
    ->ArgNames({"rows", "cols", "bits", "threads"})
    ->ArgsProduct({{4096}, {4096, 11008}, {2, 3, 4, 8}, threads})
    ->UseManualTime();
BENCHMARK_TEMPLATE(gemv_dense, float)
    ->ArgNames({"rows", "cols", "threads"})
    ->ArgsProduct({{4096}, {4096, 11008}, threads})
    ->UseRealTime();
BENCHMARK_TEMPLATE(gemv_dense, fp16_t)
    ->ArgNames({"rows", "cols", "threads"})
    ->ArgsProduct({{4096}, {4096}, threads})
    ->UseRealTime();
#if defined(BL_BENCH_HAS_CBLAS)
BENCHMARK(sgemv)
    ->ArgNames({"rows", "cols", "threads"})
    ->ArgsProduct({{4096}, {4096, 11008}, threads})
    ->UseRealTime();
#endif
BENCHMARK(read_memory)->ArgName("threads")->ArgsProduct({threads})->UseRealTime();
BENCHMARK(copy)->ArgName("threads")->ArgsProduct({threads})->UseRealTime();
BENCHMARK(gemm)
    ->ArgNames({"m", "rows", "cols", "bits", "threads"})
    ->ArgsProduct({{512}, {768}, {256}, {0, 2, 4, 8, 16}, threads})
    ->ArgsProduct({{512}, {256}, {768}, {0, 2, 4, 8, 16}, threads})
    ->ArgsProduct({{512}, {1024}, {4096}, {0, 2, 4, 8, 16}, {1}})
    ->ArgsProduct({{2, 4, 8}, {4096}, {4096}, {2, 4, 8}, {1}})
    ->UseRealTime();
BENCHMARK(dequantize)
    ->ArgNames({"rows", "cols", "bits"})
    ->ArgsProduct({{1024}, {1024}, every_precision});

}  // namespace

BENCHMARK_MAIN();
