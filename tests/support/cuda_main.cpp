// SPDX-License-Identifier: MIT
// main() of test programs with kernels: says so, and exits with 77, when the cases that need a
// device were skipped and all others passed.
#define DOCTEST_CONFIG_IMPLEMENT
#include <support/has_device.hpp>

#include <doctest/doctest.h>

#include <cstdio>

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const int result = context.run();
  if (result != 0 || context.shouldExit() || support::has_device()) return result;
  std::puts("no CUDA device here: the cases that need one were skipped");
  return 77;
}
