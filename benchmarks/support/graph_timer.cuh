// SPDX-License-Identifier: MIT
// How long a launch takes in a chain of its like: many launches over rotating buffers captured in
// one CUDA graph, the graph replayed, the median replay divided by the launches. The gaps between
// launches count, the host does not.
#pragma once

#include "cuda_check.cuh"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace bench {

/// How much of the card's time a measurement may take.
struct time_budget {
  double milliseconds = 12;   ///< of replays, if the fewest fit
  int fewest = 5, most = 20;  ///< replays
};

struct timing {
  double us = 0;      ///< one launch, median over the replays
  double spread = 0;  ///< (90th percentile - 10th) / median
  int launches = 0;   ///< in the graph
  int replays = 0;
};

/// Launches that a graph should hold: 64, or 512 at most where that makes it last a millisecond (so
/// that starting it does not count), or fewer where 64 take more than 8 ms; whole rounds of the
/// rotation.
/// @param expected_us a rough idea of one launch
inline int launches_for(double expected_us, int rotation) {
  double launches = std::min(std::max(64.0, 1000.0 / expected_us), 512.0);
  launches = std::max(4.0, std::min(launches, 8000.0 / expected_us));
  return static_cast<int>(std::ceil(launches / rotation)) * rotation;
}

/// Times chains of launches on a stream of its own.
class graph_timer {
 public:
  graph_timer() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  graph_timer(const graph_timer&) = delete;
  graph_timer& operator=(const graph_timer&) = delete;
  ~graph_timer() {
    for (cudaEvent_t e : events_) static_cast<void>(cudaEventDestroy(e));
    static_cast<void>(cudaStreamDestroy(stream_));
  }

  cudaStream_t stream() const { return stream_; }

  /// @param launch launch(i, stream) queues launch i (0 .. launches - 1) and throws on failure
  template <class Launch>
  timing measure(int launches, const time_budget& budget, Launch&& launch) {
    launch(0, stream_);  // loads the code, and shows what is wrong where it can be seen
    check(cudaStreamSynchronize(stream_), "launch");
    graph_exec graph(stream_, launches, launch);
    // The first replay warms up and says how many fit the budget.
    need_events(static_cast<std::size_t>(budget.most) + 1);
    replay(graph.exec, 1);
    replay(graph.exec, 1);
    const double first_ms = milliseconds(0);
    const double fitting = budget.milliseconds / std::max(first_ms, 1e-3);
    timing t;
    t.launches = launches;
    t.replays =
        static_cast<int>(std::min<double>(std::max<double>(fitting, budget.fewest), budget.most));
    replay(graph.exec, t.replays);
    std::vector<double> times;
    for (int i = 0; i < t.replays; ++i) times.push_back(milliseconds(i) * 1e3 / launches);
    std::sort(times.begin(), times.end());
    t.us = quantile(times, 0.5);
    t.spread = (quantile(times, 0.9) - quantile(times, 0.1)) / t.us;
    return t;
  }

 private:
  struct graph_exec {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;

    template <class Launch>
    graph_exec(cudaStream_t stream, int launches, Launch& launch) {
      check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
      try {
        for (int i = 0; i < launches; ++i) launch(i, stream);
      } catch (...) {
        static_cast<void>(cudaStreamEndCapture(stream, &graph));
        static_cast<void>(cudaGetLastError());
        if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
        throw;
      }
      check(cudaStreamEndCapture(stream, &graph), "end capture");
      const cudaError_t e = cudaGraphInstantiate(&exec, graph, 0);
      if (e != cudaSuccess) static_cast<void>(cudaGraphDestroy(graph));
      check(e, "cudaGraphInstantiate");
      static_cast<void>(cudaGraphUpload(exec, stream));
    }
    graph_exec(const graph_exec&) = delete;
    graph_exec& operator=(const graph_exec&) = delete;
    ~graph_exec() {
      static_cast<void>(cudaGraphExecDestroy(exec));
      static_cast<void>(cudaGraphDestroy(graph));
    }
  };

  void need_events(std::size_t count) {
    while (events_.size() < count) {
      cudaEvent_t e = nullptr;
      check(cudaEventCreate(&e), "cudaEventCreate");
      events_.push_back(e);
    }
  }
  void replay(cudaGraphExec_t exec, int times) {
    check(cudaEventRecord(events_[0], stream_), "cudaEventRecord");
    for (int i = 0; i < times; ++i) {
      check(cudaGraphLaunch(exec, stream_), "cudaGraphLaunch");
      check(cudaEventRecord(events_[static_cast<std::size_t>(i) + 1], stream_), "cudaEventRecord");
    }
    check(cudaStreamSynchronize(stream_), "replay");
  }
  /// Of replay i.
  double milliseconds(int i) const {
    float ms = 0;
    const auto at = static_cast<std::size_t>(i);
    check(cudaEventElapsedTime(&ms, events_[at], events_[at + 1]), "cudaEventElapsedTime");
    return ms;
  }
  static double quantile(const std::vector<double>& sorted, double q) {
    return sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1) + 0.5)];
  }

  cudaStream_t stream_ = nullptr;
  std::vector<cudaEvent_t> events_;
};

}  // namespace bench
