// SPDX-License-Identifier: MIT
// Our own generator, so that test data is the same with every standard library.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace support {

/// splitmix64 (Steele, Lea, Flood 2014).
class random {
 public:
  explicit random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  /// 0 .. bound - 1.
  int below(int bound) { return static_cast<int>(next() % static_cast<std::uint64_t>(bound)); }
  /// [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  /// N(0, 1), by Box and Muller.
  double normal() {
    const double r = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return r * std::cos(6.283185307179586 * uniform());
  }
  /// Student's t with 4 degrees of freedom: heavy tails, as weights have.
  double student_t() {
    double chi = 0;
    for (int i = 0; i < 4; ++i) {
      const double n = normal();
      chi += n * n;
    }
    return normal() / std::sqrt(chi / 4);
  }
  /// Chi-squared with 1 degree of freedom: the shape of squared gradients.
  double chi_squared() {
    const double n = normal();
    return n * n;
  }
  std::vector<float> normals(std::size_t count) {
    std::vector<float> v(count);
    for (float& x : v) x = static_cast<float>(normal());
    return v;
  }

 private:
  std::uint64_t state_;
};

}  // namespace support
