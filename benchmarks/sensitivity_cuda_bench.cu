// SPDX-License-Identifier: MIT
// How long the squared gradients of all linears of Llama-2-7B's shapes take on the card: bf16
// weights in a file, 100 samples of 512 tokens, fp32 sums in ordinary host memory. `peak_bytes` is
// the most memory of the card that was taken between any two samples of a layer, everything
// counted, `model_bytes` the size of the model's file.
//
// Run: sensitivity_cuda_bench; TMPDIR should be a folder in memory with 14 GB of room.
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>

#include <llama/card_sensitivities.hpp>
#include <llama/family.hpp>
#include <llama/model.hpp>
#include <support/random_model.hpp>

#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr int seq_len = 512;

std::vector<std::string> weight_names(const llama::model& m) {
  std::vector<std::string> names;
  for (int i = 0; i < m.config().layers; ++i)
    for (const std::string& part : llama::linear_names(*m.config().family))
      names.push_back(llama::layer_prefix(*m.config().family, i) + part + ".weight");
  return names;
}

std::size_t free_bytes() {
  std::size_t left = 0, all = 0;
  bitladder::check(bitladder::cuda::call_status(cudaMemGetInfo(&left, &all)));
  return left;
}

void sensitivities(benchmark::State& state) {
  static const bench::random_model files(bench::llama2_7b, bench::model_form::bf16);
  const llama::model m(files.path());
  const std::vector<std::string> names = weight_names(m);
  std::mt19937 rng(1);
  std::vector<std::vector<int>> samples(static_cast<std::size_t>(state.range(0)));
  std::vector<bitladder::vector_view<const int>> views;
  for (std::vector<int>& s : samples) {
    for (int i = 0; i < seq_len; ++i)
      s.push_back(static_cast<int>(rng() % static_cast<unsigned>(m.config().vocabulary)));
    views.emplace_back(s.data(), s.size());
  }
  try {
    const auto measure = llama::on_card();
    for (auto _ : state) {
      const std::size_t before = free_bytes();
      std::size_t least = before;
      std::vector<float> sums;  // of a linear: those of all would be 26 GB
      const auto start = std::chrono::steady_clock::now();
      double loss = 0;
      measure(
          m, names, views, [&](const std::vector<double>& losses) { loss = losses.front(); },
          [&](std::size_t, bitladder::matrix_view<const float> s) {
            sums.resize(static_cast<std::size_t>(s.rows()) * static_cast<std::size_t>(s.cols()));
            std::memcpy(sums.data(), s.data(), sums.size() * sizeof(float));
          },
          [&](std::int64_t, std::int64_t) { least = std::min(least, free_bytes()); });
      const double seconds =
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      state.SetIterationTime(seconds);
      state.counters["seconds"] = seconds;
      state.counters["peak_bytes"] = static_cast<double>(before - least);
      state.counters["model_bytes"] =
          static_cast<double>(std::filesystem::file_size(files.path() / "model.safetensors"));
      state.counters["loss"] = loss;
    }
  } catch (const bitladder::error& e) {
    state.SkipWithError(e.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  bitladder::cuda::device_properties device;
  if (bitladder::cuda::properties(device) != bitladder::status::ok) {
    std::puts("no CUDA device here: nothing was measured");
    return 0;
  }
  benchmark::RegisterBenchmark("sensitivity/model:Llama-2-7B/stage:sensitivity", sensitivities)
      ->ArgName("samples")
      ->Arg(100)
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(benchmark::kSecond);
  benchmark::RunSpecifiedBenchmarks();
}
