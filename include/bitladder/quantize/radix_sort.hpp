// SPDX-License-Identifier: MIT
// Sorting a row's values, with each value's column carried along: floats become integer keys of the
// same order, key and column share one word, and a few counting passes sort the words by key. Equal
// values keep column order. Tested by tests/quantize/radix_sort_test.cpp.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/dtype.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace bitladder {
inline namespace v0_1 {
namespace kmeans {

/// An integer that orders as the value does; -0 and +0 share one.
BL_HOST_DEVICE inline std::uint32_t sort_key(float x) {
  const std::uint32_t u = detail::bits_of(x + 0.f);  // -0 + 0 is +0
  return u ^ (static_cast<std::uint32_t>(static_cast<std::int32_t>(u) >> 31) | 0x80000000u);
}
BL_HOST_DEVICE inline std::uint32_t sort_key_16(std::uint16_t u) {
  if (u == 0x8000u) u = 0;
  return (u ^ (u & 0x8000u ? 0xffffu : 0x8000u)) & 0xffffu;
}
BL_HOST_DEVICE inline std::uint32_t sort_key(fp16_t x) { return sort_key_16(x.bits); }
BL_HOST_DEVICE inline std::uint32_t sort_key(bf16_t x) { return sort_key_16(x.bits); }

/// The value of a key.
BL_HOST_DEVICE inline float key_value(std::uint32_t key, float) {
  return detail::float_of(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}
template <class Half>
BL_HOST_DEVICE float key_value(std::uint32_t key, Half) {
  const std::uint32_t u = key & 0x8000u ? key ^ 0x8000u : ~key;
  return to_float(Half{static_cast<std::uint16_t>(u)});
}

/// Sorts `words` by the `key_bits` bits above bit `shift`; words that agree there keep their order.
/// @param scratch as many words
/// @return where the sorted words lie: `words` or `scratch`
template <int DigitBits, class Word>
Word* radix_sort(Word* words, Word* scratch, int count, int shift, int key_bits) {
  constexpr int max_passes = 4;
  constexpr std::uint32_t digits = 1u << DigitBits;
  static_assert(max_passes * DigitBits >= 32, "a key has up to 32 bits");
  if (count < 128) {  // clearing the histograms would cost more; columns make all words different
    std::sort(words, words + count);
    return words;
  }
  const int passes = (key_bits + DigitBits - 1) / DigitBits;
  std::uint32_t histogram[max_passes][digits];
  std::fill(histogram[0], histogram[0] + passes * static_cast<int>(digits), 0u);
  for (int i = 0; i < count; ++i) {
    Word key = words[i] >> shift;
    for (int p = 0; p < passes; ++p) {
      ++histogram[p][static_cast<std::size_t>(key & (digits - 1))];
      key >>= DigitBits;
    }
  }
  for (int p = 0; p < passes; ++p) {
    const int at = shift + p * DigitBits;
    std::uint32_t* const first = histogram[p];
    if (first[static_cast<std::size_t>(words[0] >> at & (digits - 1))] ==
        static_cast<std::uint32_t>(count))
      continue;  // all words share this digit
    std::uint32_t sum = 0;
    for (std::uint32_t d = 0; d < digits; ++d) {
      const std::uint32_t here = first[d];
      first[d] = sum;
      sum += here;
    }
    for (int i = 0; i < count; ++i)
      scratch[first[static_cast<std::size_t>(words[i] >> at & (digits - 1))]++] = words[i];
    std::swap(words, scratch);
  }
  return words;
}

}  // namespace kmeans
}  // namespace v0_1
}  // namespace bitladder
