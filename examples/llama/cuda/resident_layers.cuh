// SPDX-License-Identifier: MIT
// All layers of a step of one sequence as one launch (resident_step_kernel.cuh), where model and
// card allow it. Tested by tests/llama/cuda/resident_layers_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/kernels/cuda/resident_step.cuh>
#include <bitladder/kernels/cuda/tagged_pairs.cuh>

#include <llama/config.hpp>
#include <llama/cuda/device_model.cuh>
#include <llama/cuda/resident_attention.cuh>
#include <llama/cuda/workspace.cuh>

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <vector>

namespace llama {
namespace card {

/// The precisions that have a resident kernel.
constexpr int resident_least_bits = 2, resident_most_bits = 3;

/// Its blocks wait for each other, so two such launches that share a card's multiprocessors would
/// wait forever: one object of a process has them on a card, others have none.
class resident_layers {
 public:
  resident_layers() = default;
  resident_layers(const resident_layers&) = delete;
  resident_layers& operator=(const resident_layers&) = delete;
  ~resident_layers();

  /// Bytes of device memory that precisions of `bits` take.
  static std::size_t predict(const config& c, const bits_range& bits);

  /// Describes the layers to the card, for every precision of `bits` that runs this way: rotary
  /// pre-norm layers with gated SiLU, all linears in planes without outliers, on sm_90 and later,
  /// if no other object has the card.
  /// @param weights,room stay where they are
  void prepare(const config& c, const device_model& weights, workspace& room,
               const bits_range& bits, cudaStream_t stream);

  bool has(int bits) const {
    return bits >= resident_least_bits && bits <= resident_most_bits && plans_[index(bits)].ready;
  }

  /// Queues the layers of a step of one sequence: room.x from embeddings to hidden states.
  /// Programmatic dependent launch, as the other launches of a step.
  /// @param trace [blocks][steps][resident_marks] clocks, or null
  [[nodiscard]] bitladder::status launch(int bits, bool pdl, cudaStream_t stream,
                                         unsigned long long* trace = nullptr) const;

  /// Where the time of a launch goes: for each step of a layer and each stage of it microseconds of
  /// all layers, of the blocks that take part. Runs as `launch` would; a sequence must be set up.
  struct stage_time {
    const char *step, *stage;
    double least, mean, most;
  };
  std::vector<stage_time> stages(int bits, cudaStream_t stream) const;

 private:
  struct plan {
    bitladder::cuda::buffer<bitladder::cuda::resident_step> steps;
    bitladder::cuda::resident_memory memory{};
    bool ready = false;
  };
  static std::size_t index(int bits) {
    return static_cast<std::size_t>(bits - resident_least_bits);
  }

  std::array<plan, resident_most_bits - resident_least_bits + 1> plans_;
  bitladder::cuda::buffer<float> scratch_;
  bitladder::cuda::buffer<bitladder::cuda::tagged_pair> pairs_;
  bitladder::cuda::buffer<unsigned> counters_;  // state, then meetings
  resident_attention_params attention_{};
  const float* x_ = nullptr;
  bitladder::cuda::tagged_pair* first_ = nullptr;
  unsigned* state_ = nullptr;
  int count_ = 0, blocks_ = 0;
  int device_ = -1;  // whose only one this is
};

}  // namespace card
}  // namespace llama
