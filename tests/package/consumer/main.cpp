// SPDX-License-Identifier: MIT
// Uses the library from two translation units; nothing else of the repository is in reach.
#include <bitladder/bitladder.hpp>

#include <cstdint>
#include <string>
#include <vector>

#ifdef WITH_CUDA
int first_unit();
int second_unit();
#endif

int codes_lost(const std::vector<std::uint8_t>& codes, int cols);  // other.cpp

int main() {
  const std::string version = std::to_string(BL_VERSION_MAJOR) + "." +
                              std::to_string(BL_VERSION_MINOR) + "." +
                              std::to_string(BL_VERSION_PATCH);
  if (version != BITLADDER_EXPECTED) return 1;

  std::vector<std::uint8_t> codes;
  for (int i = 0; i < 3 * 77; ++i) codes.push_back(static_cast<std::uint8_t>(i * 37));
  const bitladder::bitplane_tensor planes = bitladder::pack({codes.data(), 3, 77}, 8);
  if (planes.view().code(1, 5, 3) != codes[77 + 5] >> 5) return 2;
  if (codes_lost(codes, 77) != 0) return 3;
#ifdef WITH_CUDA
  if (first_unit() != second_unit()) return 4;
#endif
  return 0;
}
