// SPDX-License-Identifier: MIT
// How long all 32 layers of Llama-2-7B's shapes take to quantize on the card, bf16 weights and fp32
// sensitivities, seed to 8 bits. Stages: `compute`, the kernels alone, on data that is there;
// `all`, from weights and sensitivities in ordinary host memory to packed planes and tables there.
// One layer's numbers (support/layer_weights.hpp) are taken 32 times: all of a model's would be 40
// GB.
//
// Run: quantize_cuda_bench [--benchmark_filter=stage:all]
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/quantize/cuda/quantize.cuh>

#include <support/layer_weights.hpp>

#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

using bitladder::bf16_t;
using bitladder::check;
namespace bc = bitladder::cuda;
using layer_type = std::vector<bench::layer_matrix<bf16_t>>;
using bytes = bc::detail::quantize_buffers;

constexpr int layers = 32;

bitladder::kmeans_options from_seed(int seed_bits) {
  bitladder::kmeans_options o;
  o.seed_bits = o.min_bits = seed_bits;
  return o;
}

/// Seconds of the kernels of one matrix, by events around rows that are there.
double kernel_seconds(const bench::layer_matrix<bf16_t>& m, const bitladder::kmeans_options& o) {
  const bc::detail::quantize_plan plan = bc::detail::plan_quantize<bf16_t>(m.rows, m.cols, o);
  const bitladder::bitplane_layout layout{m.rows, m.cols, o.max_bits};
  bytes b;
  bc::detail::allocate<bf16_t>(b, plan, o, true, &layout);
  check(b.bad.clear(nullptr));
  cudaEvent_t begin = nullptr, end = nullptr;
  check(bc::call_status(cudaEventCreate(&begin)));
  check(bc::call_status(cudaEventCreate(&end)));
  double sum = 0;
  for (int row = 0; row < m.rows; row += plan.rows_at_once) {
    const int rows = std::min(plan.rows_at_once, m.rows - row);
    const std::size_t first = static_cast<std::size_t>(row) * static_cast<std::size_t>(m.cols);
    const std::size_t cols = static_cast<std::size_t>(m.cols);
    bc::detail::copy_rows_in(b.values, m.weights.data() + first, cols, rows, m.cols, nullptr);
    bc::detail::copy_rows_in(b.sensitivities, m.sensitivities.data() + first, cols, rows, m.cols,
                             nullptr);
    check(bc::call_status(cudaEventRecord(begin)));
    bc::detail::queue_quantize<bf16_t>(b, plan, o, true, rows, nullptr);
    bc::detail::queue_pack_codes(bytes::at<const std::uint8_t>(b.codes),
                                 bytes::at<std::uint32_t>(b.planes), rows, m.cols, o.max_bits,
                                 nullptr);
    check(bc::call_status(cudaEventRecord(end)));
    check(bc::call_status(cudaEventSynchronize(end)));
    float ms = 0;
    check(bc::call_status(cudaEventElapsedTime(&ms, begin, end)));
    sum += static_cast<double>(ms) * 1e-3;
  }
  check(bc::call_status(cudaEventDestroy(begin)));
  check(bc::call_status(cudaEventDestroy(end)));
  return sum;
}

double compute_seconds(const layer_type& layer, const bitladder::kmeans_options& o) {
  double sum = 0;
  for (const auto& m : layer) sum += kernel_seconds(m, o);
  return layers * sum;
}

double all_seconds(const layer_type& layer, const bitladder::kmeans_options& o) {
  bc::quantizer card;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < layers; ++i)
    for (const auto& m : layer) {
      const bc::packed_matrix q = card.quantize_packed(m.values(), m.sens(), o);
      benchmark::DoNotOptimize(q.planes.data());
    }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void quantize_model(benchmark::State& state,
                    double (*seconds)(const layer_type&, const bitladder::kmeans_options&)) {
  static const layer_type layer = bench::make_layer<bf16_t>(1);
  const bitladder::kmeans_options o = from_seed(static_cast<int>(state.range(0)));
  try {
    seconds({layer.front()}, o);  // loads the code
    for (auto _ : state) {
      const double s = seconds(layer, o);
      state.SetIterationTime(s);
      state.counters["seconds"] = s;
    }
  } catch (const bitladder::error& e) {
    state.SkipWithError(e.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  bc::device_properties device;
  if (bc::properties(device) != bitladder::status::ok) {
    std::puts("no CUDA device here: nothing was measured");
    return 0;
  }
  for (const int stage : {0, 1})
    benchmark::RegisterBenchmark(stage == 0 ? "quantize/model:Llama-2-7B/stage:compute"
                                            : "quantize/model:Llama-2-7B/stage:all",
                                 quantize_model, stage == 0 ? compute_seconds : all_seconds)
        ->ArgName("seed")
        ->Arg(3)
        ->Arg(2)
        ->Iterations(1)
        ->UseManualTime()
        ->Unit(benchmark::kSecond);
  benchmark::RunSpecifiedBenchmarks();
}
