// SPDX-License-Identifier: MIT
// A thread pool has one owner; others get a pointer.
// fails with: deleted
#include <bitladder/core/parallel.hpp>

void call(bitladder::thread_pool& pool) {
#ifdef BL_MUST_FAIL
  bitladder::thread_pool copy = pool;
#else
  bitladder::thread_pool* copy = &pool;
#endif
  static_cast<void>(copy);
}
