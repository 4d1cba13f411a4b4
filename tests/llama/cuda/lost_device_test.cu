// SPDX-License-Identifier: MIT
// What an engine does once a kernel has failed: the process has lost the card for good, so this is
// a program of its own, of one case.
#include <bitladder/core/status.hpp>

#include <llama/cuda_engine.hpp>
#include <llama/generate.hpp>
#include <llama/model.hpp>
#include <support/has_device.hpp>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

__global__ void trap_kernel() { asm volatile("trap;"); }

/// What `f` throws says.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const bitladder::error& e) {
    CHECK(e.code() != bitladder::status::ok);
    return e.what();
  }
  return {};
}

}  // namespace

TEST_CASE("when a kernel has failed every call says so, and nothing hangs or ends the process" *
          doctest::skip(!support::has_device())) {
  using clock = std::chrono::steady_clock;
  const llama::model m =
      llama::load(std::filesystem::path(BL_SOURCE_DIR) / "examples" / "models" / "small");
  llama::card_options options;
  options.batch = 2;
  options.context = 64;
  auto engine = std::make_unique<llama::card_engine>(m, options);
  const std::vector<int> prompt = {5, 6, 7}, sequences = {0, 1}, tokens = {8, 9};
  engine->forward(0, prompt, 16);
  engine->forward(1, prompt, 16);
  REQUIRE(engine->decode(sequences, tokens, 16, 3).size() == 6);

  // In the middle of what is queued: the engine's stream waits for nobody, so the trap may come
  // before, between or after its kernels.
  engine->step(sequences, tokens, 16);
  trap_kernel<<<1, 1>>>();
  static_cast<void>(cudaGetLastError());
  const clock::time_point start = clock::now();
  const std::string lost = error_of([&] {
    for (int i = 0; i < 40; ++i) engine->step(sequences, tokens, 16);
    engine->synchronize();
    REQUIRE(cudaDeviceSynchronize() != cudaSuccess);
    engine->synchronize();
  });
  CHECK(lost != "");
  MESSAGE(lost);

  const int seen = engine->length(0);
  const auto fails = [&](const std::string& name, auto&& f) {
    CAPTURE(name);
    const std::string text = error_of(f);
    CHECK(text != "");
    MESSAGE(name << ": " << text);
  };
  fails("forward", [&] { engine->forward(0, prompt, 16); });
  fails("step", [&] { engine->step(sequences, tokens, 16); });
  fails("decode", [&] { engine->decode(sequences, tokens, 16, 3); });
  fails("logits", [&] { engine->logits(0, 1); });
  std::vector<float> keys(32), values(32);
  fails("read_cache", [&] { engine->read_cache(0, 0, 0, 0, 1, keys.data(), values.data()); });
  fails("warm_up", [&] { engine->warm_up(1); });
  fails("profile", [&] { engine->profile(sequences, 16, 1); });
  fails("synchronize", [&] { engine->synchronize(); });
  fails("another engine", [&] { const llama::card_engine another(m, options); });
  fails("generate", [&] {
    llama::session<llama::card_engine> s(*engine, 1);
    llama::generate(s, prompt, 16, llama::generate_options{});
  });
  CHECK(engine->length(0) == seen);  // what failed was not seen
  CHECK(engine->model().config().vocabulary > 0);

  llama::card_engine moved(std::move(*engine));
  engine.reset();
  fails("an engine that was moved", [&] { moved.synchronize(); });
  CHECK(std::chrono::duration<double>(clock::now() - start).count() < 20);
}
