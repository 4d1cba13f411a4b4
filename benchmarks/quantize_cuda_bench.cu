// SPDX-License-Identifier: MIT
// How long models of given shapes take to quantize on the card, bf16 weights and fp32
// sensitivities, seed to 8 bits. Stages, for all 32 layers of Llama-2-7B's shapes:
//   compute   the kernels alone, on data that is there
//   all       from weights and sensitivities in ordinary host memory to packed planes and tables
//             there, all of which are kept
//   outliers  the same with 0.45% outliers
// One layer's numbers (support/layer_weights.hpp) are taken 32 times: all of a model's would be 40
// GB. `choose`, `in`, `wait` and `out` are where the host's threads, one for each worker, spent
// their seconds: see quantizer_times.
//   file      a model folder and a file of sensitivities to a checkpoint folder, through
//             quantize_model, fewer layers. `anonymous_bytes` is the most memory that the process
//             had at any moment besides files (RssAnon), the CUDA runtime's included;
//             `anonymous_bytes_before` the same before the call.
//
// Run: quantize_cuda_bench [--benchmark_filter=stage:all]; TMPDIR should be a folder in memory with
// 16 GB of room for stage file.
#include <bitladder/core/parallel.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/io/safetensors_plan.hpp>
#include <bitladder/io/safetensors_set.hpp>
#include <bitladder/io/safetensors_writer.hpp>
#include <bitladder/quantize/cuda/quantize.cuh>

#include <llama/card_quantizer.hpp>
#include <llama/quantize_model.hpp>
#include <support/layer_weights.hpp>
#include <support/random_model.hpp>

#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace {

using bitladder::bf16_t;
using bitladder::check;
namespace bc = bitladder::cuda;
namespace fs = std::filesystem;
using layer_type = std::vector<bench::layer_matrix<bf16_t>>;

constexpr int layers = 32;

/// A 70B's, but for the number of its layers.
constexpr bench::model_shape two_layers_of_70b{2, 8192, 28672, 64, 8, 128, 32000, 4096};

bitladder::kmeans_options from_seed(int seed_bits) {
  bitladder::kmeans_options o;
  o.seed_bits = o.min_bits = seed_bits;
  return o;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

const layer_type& one_layer() {
  static const layer_type layer = bench::make_layer<bf16_t>(1);
  return layer;
}

/// Seconds of the kernels of one matrix, by events around rows that are there.
double kernel_seconds(const bench::layer_matrix<bf16_t>& m, const bitladder::kmeans_options& o) {
  const bc::detail::quantize_plan plan =
      bc::detail::plan_quantize<bf16_t>(m.rows, m.cols, o, true, true);
  bc::detail::quantize_buffers b;
  bc::detail::allocate<bf16_t>(b, plan, o);
  cudaEvent_t begin = nullptr, end = nullptr;
  check(bc::call_status(cudaEventCreate(&begin)));
  check(bc::call_status(cudaEventCreate(&end)));
  double sum = 0;
  using at = bc::detail::quantize_buffers;
  const std::size_t cols = static_cast<std::size_t>(m.cols);
  for (int row = 0; row < m.rows; row += plan.rows_at_once) {
    const int rows = std::min(plan.rows_at_once, m.rows - row);
    const std::size_t first = static_cast<std::size_t>(row) * cols;
    const std::size_t count = static_cast<std::size_t>(rows) * cols;
    check(b.values.upload(reinterpret_cast<const unsigned char*>(m.weights.data() + first),
                          count * sizeof(bf16_t), nullptr));
    check(b.sensitivities.upload(
        reinterpret_cast<const unsigned char*>(m.sensitivities.data() + first),
        count * sizeof(float), nullptr));
    check(bc::call_status(cudaEventRecord(begin)));
    bc::detail::queue_quantize(b, plan, o, at::at<const bf16_t>(b.values),
                               at::at<const float>(b.sensitivities), rows, nullptr);
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

void compute(benchmark::State& state) {
  const bitladder::kmeans_options o = from_seed(static_cast<int>(state.range(0)));
  try {
    kernel_seconds(one_layer().front(), o);  // loads the code
    for (auto _ : state) {
      double sum = 0;
      for (const auto& m : one_layer()) sum += layers * kernel_seconds(m, o);
      state.SetIterationTime(sum);
      state.counters["seconds"] = sum;
    }
  } catch (const bitladder::error& e) {
    state.SkipWithError(e.what());
  }
}

/// One worker of stages all and outliers.
class worker {
 public:
  explicit worker(int threads) : pool_(threads), card_(&pool_) {}

  void quantize(const bench::layer_matrix<bf16_t>& m, const bitladder::kmeans_options& o,
                llama::packed_linear& to) {
    bc::quantized_tables q =
        card_.quantize_packed(m.values(), m.sens(), o, to.resize({m.rows, m.cols, o.max_bits}));
    to.codebooks = std::move(q.codebooks);
    to.outliers = std::move(q.outliers);
    to.report = q.report;
  }
  const bc::quantizer_times& times() const { return card_.times(); }

 private:
  bitladder::thread_pool pool_;
  bc::quantizer card_;
};

void from_memory(benchmark::State& state, bool outliers) {
  bitladder::kmeans_options o = from_seed(static_cast<int>(state.range(0)));
  if (outliers) {
    o.outliers.sensitive = 0.05;
    o.outliers.large = 0.4;
  }
  const int count = static_cast<int>(state.range(1));
  const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / count);
  const layer_type& layer = one_layer();
  try {
    for (auto _ : state) {
      std::vector<std::unique_ptr<worker>> workers;
      for (int i = 0; i < count; ++i) {
        workers.push_back(std::make_unique<worker>(std::min(threads, 8)));
        llama::packed_linear first;
        workers.back()->quantize(layer.front(), o, first);  // loads the code, takes the memory
      }
      std::vector<bc::quantizer_times> before;
      for (const auto& w : workers) before.push_back(w->times());
      std::vector<llama::packed_linear> made(layers * layer.size());
      std::atomic<std::size_t> next{0};
      std::exception_ptr failure;
      std::mutex mutex;
      const auto start = std::chrono::steady_clock::now();
      std::vector<std::thread> running;
      for (const auto& w : workers)
        running.emplace_back([&, by = w.get()] {
          try {
            for (std::size_t i = next++; i < made.size(); i = next++)
              by->quantize(layer[i % layer.size()], o, made[i]);
          } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            failure = std::current_exception();
          }
        });
      for (std::thread& t : running) t.join();
      const double seconds = seconds_since(start);
      if (failure) std::rethrow_exception(failure);
      state.SetIterationTime(seconds);
      state.counters["seconds"] = seconds;
      const auto sum = [&](double bc::quantizer_times::*part) {
        double all = 0;
        for (std::size_t i = 0; i < workers.size(); ++i)
          all += workers[i]->times().*part - before[i].*part;
        return all;
      };
      state.counters["choose"] = sum(&bc::quantizer_times::choose);
      state.counters["in"] = sum(&bc::quantizer_times::in);
      state.counters["wait"] = sum(&bc::quantizer_times::wait);
      state.counters["out"] = sum(&bc::quantizer_times::out);
    }
  } catch (const bitladder::error& e) {
    state.SkipWithError(e.what());
  }
}

/// The process's memory besides files and what it shares.
double anonymous_bytes() {
  std::ifstream in("/proc/self/status");
  for (std::string word; in >> word;)
    if (word == "RssAnon:") {
      double kilobytes = 0;
      in >> kilobytes;
      return kilobytes * 1024;
    }
  return 0;
}

/// Looks every few milliseconds.
class peak_watch {
 public:
  peak_watch()
      : thread_([this] {
          while (!ended_.load()) {
            peak_ = std::max(peak_, anonymous_bytes());
            std::this_thread::sleep_for(std::chrono::milliseconds(3));
          }
        }) {}
  double stop() {
    ended_.store(true);
    thread_.join();
    return peak_;
  }

 private:
  double peak_ = 0;
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

/// Random ones for every linear of the model in `folder`.
void write_sensitivities(const fs::path& folder, const fs::path& file) {
  const bitladder::safetensors_set model(folder);
  bitladder::safetensors_plan plan;
  std::vector<const bitladder::tensor_info*> linears;
  for (const bitladder::tensor_info& t : model.tensors())
    if (t.name.find("_proj.weight") != std::string::npos) {
      plan.add(t.name, bitladder::dtype::f32, t.shape);
      linears.push_back(&t);
    }
  std::vector<float> values(std::size_t{1} << 22);
  bench::row_random random(1);
  for (float& v : values) {
    const double n = random.normal();
    v = static_cast<float>(n * n);
  }
  auto out = bitladder::safetensors_writer::create(file, plan);
  for (const bitladder::tensor_info* t : linears) {
    const std::size_t size = static_cast<std::size_t>(t->elements()) * sizeof(float);
    for (std::size_t at = 0; at < size; at += values.size() * sizeof(float))
      out.write(t->name, values.data(), std::min(values.size() * sizeof(float), size - at), at);
  }
  out.commit();
}

void from_file(benchmark::State& state, const bench::model_shape& whole) {
  bench::model_shape shape = whole;
  shape.layers = std::min(whole.layers, static_cast<int>(state.range(1)));
  try {
    const bench::random_model model(shape, bench::model_form::bf16);
    fs::path out = model.path(), sensitivities = model.path();
    out += "-quantized";
    sensitivities += ".sensitivities.safetensors";
    write_sensitivities(model.path(), sensitivities);
    llama::quantize_model_options options;
    options.kmeans = from_seed(static_cast<int>(state.range(0)));
    options.sensitivities = sensitivities;
    for (auto _ : state) {
      options.on = llama::card_quantizers();
      const double before = anonymous_bytes();
      peak_watch watch;
      const auto start = std::chrono::steady_clock::now();
      std::exception_ptr failure;
      try {
        llama::quantize_model(model.path(), out, options, nullptr);
      } catch (...) {
        failure = std::current_exception();
      }
      const double seconds = seconds_since(start);
      state.counters["anonymous_bytes"] = watch.stop();
      state.counters["anonymous_bytes_before"] = before;
      state.counters["seconds"] = seconds;
      state.SetIterationTime(seconds);
      std::error_code ignored;
      for (const char* suffix : {"", ".partial", ".partial.journal", ".report"})
        fs::remove_all(fs::path(out) += suffix, ignored);
      fs::remove(sensitivities, ignored);
      if (failure) std::rethrow_exception(failure);
    }
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  cudaDeviceProp device;
  int current = 0;
  if (cudaGetDevice(&current) != cudaSuccess ||
      cudaGetDeviceProperties(&device, current) != cudaSuccess) {
    std::puts("no CUDA device here: nothing was measured");
    return 0;
  }
  const auto add = [&](const char* model, const char* stage, const std::vector<std::string>& names,
                       const std::vector<std::vector<std::int64_t>>& rows, const auto& run) {
    benchmark::internal::Benchmark* const b = benchmark::RegisterBenchmark(
        (std::string("quantize/model:") + model + "/stage:" + stage + "/device:" + device.name)
            .c_str(),
        run);
    b->ArgNames(names)->Iterations(1)->UseManualTime()->Unit(benchmark::kSecond);
    for (const std::vector<std::int64_t>& row : rows) b->Args(row);
  };
  using benchmark::State;
  // Files first, while nothing else is in memory.
  add("Llama-2-70B", "file", {"seed", "layers"}, {{3, 2}},
      [](State& s) { from_file(s, two_layers_of_70b); });
  add("Llama-2-7B", "file", {"seed", "layers"}, {{3, 8}},
      [](State& s) { from_file(s, bench::llama2_7b); });
  add("Llama-2-7B", "compute", {"seed"}, {{3}, {2}}, compute);
  add("Llama-2-7B", "all", {"seed", "workers"}, {{3, 2}, {2, 2}, {3, 1}},
      [](State& s) { from_memory(s, false); });
  add("Llama-2-7B", "outliers", {"seed", "workers"}, {{3, 2}, {2, 2}},
      [](State& s) { from_memory(s, true); });
  benchmark::RunSpecifiedBenchmarks();
}
