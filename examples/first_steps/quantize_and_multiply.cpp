// SPDX-License-Identifier: MIT
// The program that README shows: a matrix stored once, multiplied at every precision.
#include <bitladder/bitladder.hpp>

#include <cstdint>
#include <cstdio>
#include <vector>

int main() {
  const int rows = 64, cols = 256;
  std::vector<float> w(rows * cols), y(rows);
  for (std::uint32_t i = 0; i < w.size(); ++i)
    w[i] = static_cast<float>(i * 2654435761u >> 16) / 65536 - 0.5f;
  std::vector<float> x(w.begin(), w.begin() + cols);  // the first row: y[0] nears its square

  bitladder::matrix_view<const float> matrix(w.data(), rows, cols);
  auto q = bitladder::quantize(matrix, bitladder::sensitivity::uniform(rows, cols), {});
  auto planes = bitladder::pack(q.codes(), q.max_bits());
  for (int bits = 2; bits <= 8; ++bits) {
    bitladder::cpu::gemv(bits, planes.view(), q.codebook(bits), x, y);
    std::printf("%d bits: y[0] = %.4f\n", bits, y[0]);
  }
}
