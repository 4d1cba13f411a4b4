// SPDX-License-Identifier: MIT
// What an engine is going to be, before a byte of it is on the card: its precisions, sequences and
// memory, checked; and the stream that it queues on. Tested by tests/llama/cuda/engine_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>

#include <llama/config.hpp>
#include <llama/cuda/device_linear.cuh>
#include <llama/cuda/device_model.cuh>
#include <llama/cuda/products.cuh>
#include <llama/cuda/resident_layers.cuh>
#include <llama/cuda/workspace.cuh>
#include <llama/cuda_engine.hpp>
#include <llama/model.hpp>

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cublas_v2.h>
#include <iterator>
#include <string>
#include <vector>

namespace llama {
namespace card {

[[noreturn]] inline void refuse(bitladder::status s, const std::string& text) {
  throw bitladder::error(s, text);
}

/// Throws with the runtime's own words: after a kernel that failed they say how.
inline void check_cuda(cudaError_t e, const char* what) {
  if (e != cudaSuccess)
    refuse(bitladder::cuda::call_status(e),
           std::string("the card: ") + what + ": " + cudaGetErrorString(e));
}

inline std::string bits_text(const bits_range& bits) {
  if (!bits.quantized()) return "unquantized";
  return bits.least == bits.most
             ? std::to_string(bits.most) + " bits"
             : std::to_string(bits.least) + " to " + std::to_string(bits.most) + " bits";
}

/// Options with what was left open filled in.
struct engine_plan {
  bits_range bits;
  std::vector<int> precisions;
  int batch = 1, capacity = 0;
  bool exact = true;

  engine_plan(const model& m, const card_options& o) {
    const config& c = m.config();
    check_runs_here(m);
    exact = o.exact_batches;
    batch = o.batch;
    if (batch < 1 || batch > card_engine::max_batch)
      refuse(bitladder::status::invalid_argument, "card: batch: expected 1 to " +
                                                      std::to_string(card_engine::max_batch) +
                                                      " sequences, found " + std::to_string(batch));
    if (o.context < 0)
      refuse(bitladder::status::invalid_argument,
             "card: context: expected 0 or more, found " + std::to_string(o.context));
    capacity = o.context > 0 ? o.context : c.context;
    if (!c.family->rotary() && capacity > c.context)
      refuse(bitladder::status::invalid_argument,
             m.folder().string() + ": has a table of " + std::to_string(c.context) +
                 " positions, " + std::to_string(capacity) + " tokens asked for");
    if (!m.quantized()) {
      for (int b : o.precisions) static_cast<void>(m.checked_precision(b));
      precisions = {unquantized};
      return;
    }
    const std::vector<int> all = m.precisions();
    std::vector<int> asked = o.precisions;
    if (asked.empty())
      std::copy_if(all.begin(), all.end(), std::back_inserter(asked),
                   [](int b) { return b >= min_bits; });
    for (int& b : asked) {
      b = m.checked_precision(b);
      if (b < min_bits || b > max_bits)
        refuse(bitladder::status::unsupported_bits,
               m.folder().string() + ": expected " + std::to_string(min_bits) + " to " +
                   std::to_string(max_bits) + " bits on a card, found " + std::to_string(b));
    }
    if (asked.empty())
      refuse(bitladder::status::unsupported_bits,
             m.folder().string() + ": has no precision that a card runs");
    bits.least = *std::min_element(asked.begin(), asked.end());
    bits.most = *std::max_element(asked.begin(), asked.end());
    for (int b = bits.least; b <= bits.most; ++b) precisions.push_back(m.checked_precision(b));
  }

  card_memory memory(const model& m, const bits_range& range) const {
    card_memory use = device_model::predict(m, range, capacity);
    const auto sizes = workspace::plan(m, range, batch, capacity);
    use.cache = sizes.cache.size() * sizeof(__half);
    use.scratch = workspace::bytes(m.config(), sizes);
    if (!exact) use.scratch += resident_layers::predict(m.config(), range);
    return use;
  }

  /// Refuses what the card has no memory for.
  void check_fits(const model& m, const card_memory& use, std::size_t limit) const {
    std::size_t left = 0, all = 0;
    check_cuda(cudaMemGetInfo(&left, &all), "its memory");
    if (limit > 0) left = std::min(left, limit);
    if (use.total() <= left) return;
    std::string fits = ", too little for any precision";
    for (bits_range r = bits; r.most > bits.least;) {
      --r.most;
      if (memory(m, r).total() > left) continue;
      fits = "; " + bits_text(r) + " would fit";
      break;
    }
    if (!bits.quantized()) fits.clear();
    refuse(bitladder::status::out_of_memory,
           m.folder().string() + ": " + bits_text(bits) + ", " + std::to_string(batch) +
               (batch == 1 ? " sequence" : " sequences") + " of " + std::to_string(capacity) +
               " tokens: expected " + std::to_string(use.total()) +
               " bytes of the card's memory (weights " +
               std::to_string(use.planes + use.tables + use.outliers + use.rest) +
               ", keys and values " + std::to_string(use.cache) + "), found " +
               std::to_string(left) + fits);
  }
};

/// A stream and a cuBLAS handle of its own.
class engine_queue {
 public:
  engine_queue() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
  }
  engine_queue(const engine_queue&) = delete;
  engine_queue& operator=(const engine_queue&) = delete;
  ~engine_queue() {
    if (blas_ != nullptr) static_cast<void>(cublasDestroy(blas_));
    static_cast<void>(bitladder::cuda::call_status(cudaStreamSynchronize(stream_)));
    static_cast<void>(bitladder::cuda::call_status(cudaStreamDestroy(stream_)));
  }
  /// @param room cuBLAS's own
  void start_blas(void* room, std::size_t bytes) {
    if (cublasCreate(&blas_) != CUBLAS_STATUS_SUCCESS ||
        cublasSetStream(blas_, stream_) != CUBLAS_STATUS_SUCCESS ||
        cublasSetWorkspace(blas_, room, bytes) != CUBLAS_STATUS_SUCCESS ||
        cublasSetMathMode(
            blas_, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                             CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)) !=
            CUBLAS_STATUS_SUCCESS)
      refuse(bitladder::status::launch_failed, "cuBLAS does not start");
  }
  cudaStream_t stream() const { return stream_; }
  cublasHandle_t blas() const { return blas_; }

 private:
  cudaStream_t stream_ = nullptr;
  cublasHandle_t blas_ = nullptr;
};

inline void require_device() {
  int count = 0;
  if (bitladder::cuda::call_status(cudaGetDeviceCount(&count)) != bitladder::status::ok ||
      count == 0)
    refuse(bitladder::status::unsupported_device, "expected a CUDA device, found none");
  bitladder::cuda::device_properties p;
  bitladder::check(bitladder::cuda::properties(p));
  if (p.compute_capability < 80)
    refuse(bitladder::status::unsupported_device,
           "expected a CUDA device of compute capability 8.0 or later, found " +
               std::to_string(p.compute_capability / 10) + "." +
               std::to_string(p.compute_capability % 10));
}

}  // namespace card
}  // namespace llama
