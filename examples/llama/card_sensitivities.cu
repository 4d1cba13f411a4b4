// SPDX-License-Identifier: MIT
#include <bitladder/core/status.hpp>

#include <llama/backward_cuda.cuh>
#include <llama/card_sensitivities.hpp>
#include <llama/layerwise_gradients.hpp>
#include <llama/squared_gradients.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace llama {

measure_at_once on_card(std::size_t held_bytes) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    static_cast<void>(cudaGetLastError());
    throw bitladder::error(bitladder::status::unsupported_device,
                           "expected a CUDA device, found none");
  }
  return [held_bytes](
             const model& m, const std::vector<std::string>& names,
             const std::vector<bitladder::vector_view<const int>>& samples,
             const std::function<void(const std::vector<double>&)>& losses,
             const std::function<void(std::size_t, bitladder::matrix_view<const float>)>& sums,
             const std::function<void(std::int64_t, std::int64_t)>& progress) {
    // The CPU's checks of names and samples, and its words for what is wrong.
    for (std::size_t i = 0; i < samples.size(); ++i)
      check_gradient_sample(m, samples[i], static_cast<int>(i) + 1);
    std::unordered_map<const linear_weight*, std::size_t> number;
    std::unordered_set<const linear_weight*> wanted;
    const std::vector<const linear_weight*> linears = linears_of(m, names);
    for (std::size_t i = 0; i < linears.size(); ++i) {
      number.emplace(linears[i], i);
      wanted.insert(linears[i]);
    }
    cuda_backward_backend backend(m);
    layerwise_gradients<cuda_backward_backend>(backend, held_bytes)
        .run(
            samples, wanted, losses,
            [&](const linear_weight& w, const cuda_matrix& s) {
              sums(number.at(&w), backend.read(s));
            },
            progress);
  };
}

}  // namespace llama
