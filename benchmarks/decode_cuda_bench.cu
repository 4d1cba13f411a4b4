// SPDX-License-Identifier: MIT
// Tokens per second of Llama-2-7B's shapes with random weights on a card, greedily, at every
// precision and unquantized (bits 16): `decode` writes 256 tokens of each of `batch` sequences
// after `context` of them, `schedule` the same at 4, then 3, then 2 bits, `prompt` reads many
// tokens at once. bytes_per_token is what a step reads for one sequence, its keys and values among
// it; roofline is the part of 4.3 TB/s at which a step reads (an H200 copies at that speed).
// `exact` says whether a lone sequence has the bits that it has in a batch.
//
// Run: decode_cuda_bench [--profile=BITS,BATCH,CONTEXT]; TMPDIR should be a folder in memory with
// 21 GB of room. With --profile only: what each kind of launch takes of a step, against its bytes
// and the time that they take at 4.3 TB/s.
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>

#include <llama/cuda_engine.hpp>
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
#include <memory>
#include <numeric>
#include <string>
#include <vector>

namespace {

constexpr double copy_bytes_per_second = 4.3e12;
constexpr int most_batch = 8, written = 256, longest = 4096;
constexpr const char* model_name = "Llama-2-7B";

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// A model with its engine; one at a time is on the card.
class bench_engine {
 public:
  static bench_engine& of(bool quantized, bool exact) {
    std::unique_ptr<bench_engine>& held = slot();
    if (held == nullptr || held->quantized_ != quantized || held->exact_ != exact) {
      held.reset();
      held = std::make_unique<bench_engine>(quantized, exact);
    }
    return *held;
  }

  /// Gives the card's memory back.
  static void release() { slot().reset(); }

  bench_engine(bool quantized, bool exact)
      : quantized_(quantized), exact_(exact), model_(files(quantized).path()) {
    llama::card_options options;
    options.batch = most_batch;
    options.context = longest + written;
    options.exact_batches = exact;
    const double start = now();
    std::size_t before = 0, after = 0, all = 0;
    static_cast<void>(cudaMemGetInfo(&before, &all));
    engine_ = std::make_unique<llama::card_engine>(model_, options);
    static_cast<void>(cudaMemGetInfo(&after, &all));
    const llama::card_memory use = engine_->memory();
    std::fprintf(stderr,
                 "%s: on the card in %.1f s; predicted %.3f GB (planes %.3f, tables %.3f, rest "
                 "%.3f, keys and values %.3f, scratch %.3f), taken %.3f GB\n",
                 quantized ? "2 to 8 bits" : "unquantized", now() - start,
                 static_cast<double>(use.total()) * 1e-9, static_cast<double>(use.planes) * 1e-9,
                 static_cast<double>(use.tables) * 1e-9, static_cast<double>(use.rest) * 1e-9,
                 static_cast<double>(use.cache) * 1e-9, static_cast<double>(use.scratch) * 1e-9,
                 static_cast<double>(before - after) * 1e-9);
  }

  llama::card_engine& engine() { return *engine_; }
  const llama::model& model() const { return model_; }

  /// Sequences 0 .. batch - 1 have seen `context` tokens.
  void fill(int batch, int context) {
    for (int s = 0; s < batch; ++s) {
      const int seen = engine_->length(s);
      if (seen >= context) {
        engine_->truncate(s, context);
        continue;
      }
      std::vector<int> tokens;
      for (int i = seen; i < context; ++i) tokens.push_back(i * 7919 % model_.config().vocabulary);
      engine_->forward(s, tokens, engine_->precisions().back());
    }
    engine_->synchronize();
  }

  /// Bytes of keys and values that one sequence reads in a step, at the middle of what is written.
  double cache_bytes(int context) const {
    const llama::config& c = model_.config();
    return (context + written / 2.0) * c.layers * c.kv_width() * 2 * 2;
  }

 private:
  static std::unique_ptr<bench_engine>& slot() {
    static std::unique_ptr<bench_engine> one;
    return one;
  }

  static const bench::random_model& files(bool quantized) {
    if (quantized) {
      static const bench::random_model planes(bench::llama2_7b, bench::model_form::planes);
      return planes;
    }
    static const bench::random_model dense(bench::llama2_7b, bench::model_form::bf16);
    return dense;
  }

  bool quantized_, exact_;
  llama::model model_;
  std::unique_ptr<llama::card_engine> engine_;
};

std::vector<int> first(int count) {
  std::vector<int> v(static_cast<std::size_t>(count));
  std::iota(v.begin(), v.end(), 0);
  return v;
}

void count_step(benchmark::State& state, double seconds, double weights, double cache, int batch) {
  state.SetIterationTime(seconds);
  state.counters["tokens_per_second"] = batch * written / seconds;
  state.counters["bytes_per_token"] = weights + cache;
  state.counters["roofline"] =
      (weights + batch * cache) * written / seconds / copy_bytes_per_second;
}

void decode(benchmark::State& state, int bits, int batch, int context, bool exact) {
  try {
    bench_engine& b = bench_engine::of(bits != 16, exact);
    const std::vector<int> sequences = first(batch), tokens(static_cast<std::size_t>(batch), 1);
    b.fill(batch, context);
    static_cast<void>(b.engine().decode(sequences, tokens, bits, 16));
    for (auto _ : state) {
      b.fill(batch, context);
      const double start = now();
      static_cast<void>(b.engine().decode(sequences, tokens, bits, written));
      count_step(state, now() - start, static_cast<double>(b.model().bytes_per_token(bits)),
                 b.cache_bytes(context), batch);
    }
    state.counters["exact"] = exact ? 1 : 0;
  } catch (const bitladder::error& e) {
    state.SkipWithError(e.what());
  }
}

/// `by_bytes` is the speed that follows from the bytes of each step and its precision's own speed.
void schedule(benchmark::State& state, int context) {
  try {
    bench_engine& b = bench_engine::of(true, false);
    const std::vector<int> sequence = {0}, token = {1};
    const auto plan = [](int step) {
      return step < written / 3 ? 4 : step < 2 * written / 3 ? 3 : 2;
    };
    const auto run = [&](const llama::precision_plan& p) {
      b.fill(1, context);
      const double start = now();
      static_cast<void>(b.engine().decode(sequence, token, p, written));
      return now() - start;
    };
    double weights = 0, constant = 0;
    std::vector<double> of(9, 0);
    for (int bits : {4, 3, 2}) {
      run(bits);
      of[static_cast<std::size_t>(bits)] = run(bits) / written;
    }
    for (int i = 0; i < written; ++i) {
      weights += static_cast<double>(b.model().bytes_per_token(plan(i))) / written;
      constant += of[static_cast<std::size_t>(plan(i))];
    }
    run(plan);
    for (auto _ : state) count_step(state, run(plan), weights, b.cache_bytes(context), 1);
    state.counters["of_constant_runs"] = written / constant;
  } catch (const bitladder::error& e) {
    state.SkipWithError(e.what());
  }
}

void prompt(benchmark::State& state, int bits, int count) {
  try {
    bench_engine& b = bench_engine::of(bits != 16, false);
    std::vector<int> tokens;
    for (int i = 0; i < count; ++i) tokens.push_back(i * 7919 % b.model().config().vocabulary);
    const auto read = [&] {
      b.engine().truncate(0, 0);
      b.engine().synchronize();
      const double start = now();
      b.engine().forward(0, tokens, bits);
      b.engine().synchronize();
      return now() - start;
    };
    read();
    for (auto _ : state) {
      const double seconds = read();
      state.SetIterationTime(seconds);
      state.counters["tokens_per_second"] = count / seconds;
    }
  } catch (const bitladder::error& e) {
    state.SkipWithError(e.what());
  }
}

void profile(int bits, int batch, int context) {
  bench_engine& b = bench_engine::of(bits != 16, false);
  b.fill(batch, context);
  std::printf("%s, bits %d, batch %d, context %d\n%-26s %8s %10s %12s %10s %8s\n", model_name, bits,
              batch, context, "launches of", "number", "us", "MB", "floor us", "floor/us");
  double sum = 0;
  for (const auto& l : b.engine().profile(first(batch), bits)) {
    const double floor = static_cast<double>(l.bytes) / copy_bytes_per_second * 1e6;
    std::printf("%-26s %8d %10.2f %12.3f %10.2f %8.2f\n", l.name.c_str(), l.launches, l.us,
                static_cast<double>(l.bytes) * 1e-6, floor, floor / l.us);
    if (l.name != "step" && l.name[0] != '-') sum += l.us;
  }
  std::printf("sum of the parts %.2f us\n", sum);
}

template <class F>
void add(const std::string& name, int iterations, F&& f) {
  benchmark::RegisterBenchmark(name.c_str(), f)
      ->Iterations(iterations)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  bitladder::cuda::device_properties device;
  if (bitladder::cuda::properties(device) != bitladder::status::ok) {
    std::puts("no CUDA device here: nothing was measured");
    return 0;
  }
  bool profiled = false;
  for (int i = 1; i < argc; ++i) {
    int bits = 4, batch = 1, context = 128;
    if (std::strncmp(argv[i], "--profile", 9) != 0) {
      std::fprintf(stderr, "expected --profile=BITS,BATCH,CONTEXT, found %s\n", argv[i]);
      return 1;
    }
    static_cast<void>(std::sscanf(argv[i], "--profile=%d,%d,%d", &bits, &batch, &context));
    try {
      profile(bits, batch, context);
    } catch (const bitladder::error& e) {
      std::fprintf(stderr, "%s\n", e.what());
      return 1;
    }
    profiled = true;
  }
  if (profiled) {
    bench_engine::release();
    return 0;
  }
  const std::string model = std::string("/model:") + model_name;
  const auto named = [&](const char* what, int bits, int batch, int context) {
    return what + model + "/bits:" + std::to_string(bits) + "/batch:" + std::to_string(batch) +
           "/context:" + std::to_string(context);
  };
  // By engine, so that each is made once.
  const std::vector<int> precisions = {2, 3, 4, 5, 6, 7, 8};
  for (bool quantized : {true, false}) {
    const std::vector<int> all = quantized ? precisions : std::vector<int>{16};
    for (int batch : {1, most_batch})
      for (int context : {128, longest})
        for (int bits : all)
          add(named("decode", bits, batch, context), 2,
              [=](benchmark::State& s) { decode(s, bits, batch, context, false); });
    if (quantized)
      add("schedule" + model + "/context:128", 2, [](benchmark::State& s) { schedule(s, 128); });
    for (int bits : all)
      for (int count : {512, 2048})
        add("prompt" + model + "/bits:" + std::to_string(bits) + "/tokens:" + std::to_string(count),
            2, [=](benchmark::State& s) { prompt(s, bits, count); });
  }
  for (int bits : precisions)
    add(named("decode_exact", bits, 1, 128), 2,
        [=](benchmark::State& s) { decode(s, bits, 1, 128, true); });
  benchmark::RunSpecifiedBenchmarks();
  bench_engine::release();
}
