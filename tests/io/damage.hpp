// SPDX-License-Identifier: MIT
// Small random damage to a file's bytes, for tests that no damage crashes a reader.
#pragma once

#include "support/random.hpp"

#include <algorithm>
#include <cstddef>
#include <string>

namespace support {

/// One to three changes: a byte set, a bit turned, bytes put in, taken out, cut off or doubled.
/// @param alphabet bytes that mean something in the format
/// @param head if not 0, three places of four are among so many first bytes
inline void damage(std::string& bytes, random& r, const std::string& alphabet,
                   std::size_t head = 0) {
  const auto place = [&] {
    const bool first = head != 0 && r.below(4) != 0;
    const std::size_t end = first ? std::min(bytes.size(), head) : bytes.size();
    return static_cast<std::size_t>(r.below(static_cast<int>(end)));
  };
  const auto letter = [&] {
    return r.below(4) == 0
               ? static_cast<char>(r.next())
               : alphabet[static_cast<std::size_t>(r.below(static_cast<int>(alphabet.size())))];
  };
  for (int n = 1 + r.below(3); n > 0 && !bytes.empty(); --n) {
    switch (r.below(7)) {
      case 0:
      case 1: bytes[place()] = letter(); break;
      case 2: {
        char& c = bytes[place()];
        c = static_cast<char>(c ^ 1 << r.below(8));
        break;
      }
      case 3: bytes.insert(place(), 1, letter()); break;
      case 4: bytes.erase(place(), 1); break;
      case 5: bytes.resize(place()); break;
      default:
        bytes.insert(place(), bytes.substr(place(), static_cast<std::size_t>(1 + r.below(40))));
    }
  }
}

}  // namespace support
