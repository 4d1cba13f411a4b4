// SPDX-License-Identifier: MIT
// One step of decoding as a CUDA graph: what changes from step to step lies on the device, so that
// the same graph is launched for every token. Tested by tests/llama/cuda/engine_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>

#include <llama/cuda/layer_steps.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <vector>

namespace llama {
namespace card {

class decode_graph {
 public:
  /// Captures layer_steps::step. The code of its kernels should be loaded already.
  decode_graph(layer_steps& steps, int m, int bits, cudaStream_t stream) {
    call(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    cudaGraph_t graph = nullptr;
    try {
      steps.step(m, bits);
    } catch (...) {
      static_cast<void>(bitladder::cuda::call_status(cudaStreamEndCapture(stream, &graph)));
      if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
      throw;
    }
    call(cudaStreamEndCapture(stream, &graph));
    const bitladder::status s =
        bitladder::cuda::call_status(cudaGraphInstantiate(&executable_, graph, 0));
    static_cast<void>(cudaGraphDestroy(graph));
    bitladder::check(s, "the card: a step as a graph");
    call(cudaGraphUpload(executable_, stream));
  }
  decode_graph(const decode_graph&) = delete;
  decode_graph& operator=(const decode_graph&) = delete;
  ~decode_graph() {
    if (executable_ != nullptr)
      static_cast<void>(bitladder::cuda::call_status(cudaGraphExecDestroy(executable_)));
  }

  cudaGraphExec_t executable() const { return executable_; }

  /// One launch: the median of `replays` groups of ten, each after `prepare`.
  template <class F>
  double microseconds(int replays, cudaStream_t stream, F&& prepare) const {
    constexpr int group = 10;
    cudaEvent_t begin = nullptr, end = nullptr;
    call(cudaEventCreate(&begin));
    call(cudaEventCreate(&end));
    std::vector<float> times;
    for (int r = 0; r < std::max(1, replays) + 1; ++r) {
      prepare();
      call(cudaGraphLaunch(executable_, stream));  // fills the queue, so that the host is ahead
      call(cudaEventRecord(begin, stream));
      for (int i = 0; i < group; ++i) call(cudaGraphLaunch(executable_, stream));
      call(cudaEventRecord(end, stream));
      call(cudaStreamSynchronize(stream));
      float ms = 0;
      call(cudaEventElapsedTime(&ms, begin, end));
      if (r > 0) times.push_back(ms);
    }
    static_cast<void>(cudaEventDestroy(begin));
    static_cast<void>(cudaEventDestroy(end));
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                     times.end());
    return static_cast<double>(times[times.size() / 2]) * 1e3 / group;
  }

 private:
  static void call(cudaError_t e) {
    bitladder::check(bitladder::cuda::call_status(e), "the card: a step as a graph");
  }

  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace card
}  // namespace llama
