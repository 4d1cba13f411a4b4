// SPDX-License-Identifier: MIT
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/quantize/cuda/quantize.cuh>

#include <llama/card_quantizer.hpp>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <utility>

namespace llama {
namespace {

class card_quantizer final : public linear_quantizer {
 public:
  card_quantizer(int device, int threads) : device_(device), pool_(threads) {
    try {
      bitladder::check(bitladder::cuda::call_status(cudaSetDevice(device)));
      card_ = std::make_unique<bitladder::cuda::quantizer>(&pool_);
    } catch (const bitladder::error& e) {
      throw named(e);
    }
  }

  void quantize(const linear_data& from, const bitladder::kmeans_options& options,
                packed_linear& to) override {
    try {
      switch (from.type) {
        case bitladder::dtype::f16: return quantize_as<bitladder::fp16_t>(from, options, to);
        case bitladder::dtype::bf16: return quantize_as<bitladder::bf16_t>(from, options, to);
        default: return quantize_as<float>(from, options, to);
      }
    } catch (const bitladder::error& e) {
      // What is wrong with weights or options has nothing to do with the card.
      if (e.code() == bitladder::status::invalid_argument) throw;
      throw named(e);
    }
  }

 private:
  template <class T>
  void quantize_as(const linear_data& from, const bitladder::kmeans_options& options,
                   packed_linear& to) {
    const bitladder::matrix_view<const T> w(reinterpret_cast<const T*>(from.elements), from.rows,
                                            from.cols);
    std::uint32_t* const planes = to.resize({from.rows, from.cols, options.max_bits});
    bitladder::cuda::quantized_tables q =
        card_->quantize_packed(w, from.sensitivity, options, planes);
    to.codebooks = std::move(q.codebooks);
    to.outliers = std::move(q.outliers);
    to.report = q.report;
  }

  bitladder::error named(const bitladder::error& e) const {
    return {e.code(), "CUDA device " + std::to_string(device_) + ": " + e.what()};
  }

  int device_;
  bitladder::thread_pool pool_;
  std::unique_ptr<bitladder::cuda::quantizer> card_;
};

}  // namespace

linear_quantizers card_quantizers(int threads) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    static_cast<void>(cudaGetLastError());
    throw bitladder::error(bitladder::status::unsupported_device,
                           "expected a CUDA device, found none");
  }
  constexpr int workers_of_a_card = 2;
  // More copy no faster: the memory's bandwidth is used up.
  constexpr int most_threads = 8;
  const int workers = workers_of_a_card * devices;
  if (threads <= 0) threads = static_cast<int>(std::thread::hardware_concurrency());
  const int each = std::clamp(threads / workers, 1, most_threads);
  return {"cuda", workers, [devices, each](int i) -> std::unique_ptr<linear_quantizer> {
            return std::make_unique<card_quantizer>(i % devices, each);
          }};
}

}  // namespace llama
