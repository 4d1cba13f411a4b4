// SPDX-License-Identifier: MIT
#include <bitladder/bitladder.hpp>

#include <cstdint>
#include <vector>

int codes_lost(const std::vector<std::uint8_t>& codes, int cols);

int codes_lost(const std::vector<std::uint8_t>& codes, int cols) {
  const int rows = static_cast<int>(codes.size()) / cols;
  const bitladder::bitplane_tensor planes = bitladder::pack({codes.data(), rows, cols}, 8);
  std::vector<std::uint8_t> back(codes.size());
  bitladder::unpack(planes.view(), 8, {back.data(), rows, cols});
  int lost = 0;
  for (std::size_t i = 0; i < codes.size(); ++i) lost += codes[i] != back[i];
  return lost;
}
