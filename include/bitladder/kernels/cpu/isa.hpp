// SPDX-License-Identifier: MIT
// Which instruction set a CPU kernel runs with. It is chosen at run time, so that a program built
// for any x86-64 still uses what its machine has, and it never changes a result. Tested by
// tests/kernels/cpu/isa_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>

#include <string>

// Marks a function whose body uses AVX2, FMA and F16C: the translation unit itself is compiled for
// any x86-64. Helpers are forced inline because a register passed between functions would not stay
// in one. (A lambda does not inherit the target, so SIMD code has none.)
#if (defined(__x86_64__) || defined(__amd64__)) && (defined(__GNUC__) || defined(__clang__))
#define BL_HAS_AVX2 1
#define BL_AVX2 __attribute__((target("avx2,fma,f16c")))
#define BL_AVX2_INLINE __attribute__((target("avx2,fma,f16c"), always_inline)) inline
#else
#define BL_HAS_AVX2 0
#endif

namespace bitladder {
inline namespace v0_1 {
namespace cpu {

/// Instruction sets that kernels are written for.
enum class isa {
  scalar,  ///< plain C++, any machine
  avx2,    ///< x86-64 with AVX2, FMA and F16C
};

constexpr const char* to_string(isa i) noexcept {
  switch (i) {
    case isa::scalar: return "scalar";
    case isa::avx2: return "avx2";
  }
  return "?";
}

/// All of them, for loops over what this machine has.
inline constexpr isa all_isas[] = {isa::scalar, isa::avx2};

/// Whether this machine, and this build, can run `i`.
inline bool supported(isa i) noexcept {
  switch (i) {
    case isa::scalar: return true;
    case isa::avx2:
#if BL_HAS_AVX2
      __builtin_cpu_init();  // a caller may run before this library's own constructors
      // F16C is not asked for: clang before 15 does not know its name, and it is older than AVX2.
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
      return false;
#endif
  }
  return false;
}

/// The fastest that this machine can run.
inline isa best_isa() noexcept { return supported(isa::avx2) ? isa::avx2 : isa::scalar; }

namespace detail {

inline void require_supported(isa i, const char* what) {
  if (!supported(i))
    throw error(status::unsupported_device, std::string(what) + ": this machine cannot run " +
                                                to_string(i) + ", the fastest it can is " +
                                                to_string(best_isa()));
}

}  // namespace detail
}  // namespace cpu
}  // namespace v0_1
}  // namespace bitladder
