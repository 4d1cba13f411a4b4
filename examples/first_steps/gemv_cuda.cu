// SPDX-License-Identifier: MIT
// The CUDA program that README shows: a matrix on the card once, multiplied at every precision.
#include <bitladder/cuda.cuh>

#include <cstdint>
#include <cstdio>
#include <vector>

int main() {
  if (cudaFree(nullptr) != cudaSuccess) return 77;  // no card
  const int rows = 64, cols = 256;
  std::vector<float> w(rows * cols), y(rows);
  for (std::uint32_t i = 0; i < w.size(); ++i)
    w[i] = static_cast<float>(i * 2654435761u >> 16) / 65536 - 0.5f;
  std::vector<bitladder::fp16_t> x(cols);
  for (int c = 0; c < cols; ++c) x[c] = bitladder::to_fp16(w[c]);

  bitladder::matrix_view<const float> matrix(w.data(), rows, cols);
  auto q = bitladder::quantize(matrix, bitladder::sensitivity::uniform(rows, cols), {});
  auto planes = bitladder::pack(q.codes(), q.max_bits());

  bitladder::cuda::packed_weights weights;
  bitladder::cuda::buffer<bitladder::fp16_t> x_there;
  bitladder::cuda::buffer<float> y_there;
  cudaStream_t stream = nullptr;
  check(weights.upload(planes.view(), q.codebooks(), stream));
  check(x_there.allocate(x.size()));
  check(x_there.upload(x.data(), x.size(), stream));
  check(y_there.allocate(y.size()));
  for (int bits = 2; bits <= 8; ++bits) {
    check(bitladder::cuda::gemv(weights.view(bits), x_there.data(), y_there.data(), stream));
    check(y_there.download(y.data(), y.size(), stream));
    cudaStreamSynchronize(stream);
    std::printf("%d bits: y[0] = %.2f\n", bits, y[0]);
  }
}
