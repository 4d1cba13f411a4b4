// SPDX-License-Identifier: MIT
// What a precision schedule is told before each forward pass. Plain values; nothing in here knows
// an engine. Tested by tests/schedule/schedule_test.cpp.
#pragma once

#include <bitladder/config.hpp>

namespace bitladder {
inline namespace v0_1 {
namespace schedule {

/// Keys and values that a layer holds, wherever they are; reading may copy them from a device.
class kv_reader {
 public:
  virtual ~kv_reader() = default;
  virtual int tokens() const = 0;
  virtual int kv_heads() const = 0;
  virtual int head_dim() const = 0;
  /// Those of tokens [first, first + count) of a head, each [count, head_dim].
  virtual void read(int head, int first, int count, float* keys, float* values) const = 0;
};

/// What is known before a forward pass.
struct observation {
  /// 0 reads the prompt, i >= 1 reads the i-th new token.
  int step = 0;
  /// Precision of the pass before; 0 before the first.
  int bits = 0;
  /// Largest probability of the pass before, at temperature 1: the softmax's for the likeliest
  /// token. Negative if it was not asked for, and at step 0.
  float top_probability = -1.f;
  /// The last layer's keys and values of all tokens before; null where the engine has none to show.
  const kv_reader* last_layer = nullptr;
};

}  // namespace schedule
}  // namespace v0_1
}  // namespace bitladder
