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

// The same for the two steps of AVX-512 that pay: what every server core with AVX-512 has, and the
// byte permutations and bit matrices of the later ones.
#if BL_HAS_AVX2 && !defined(BL_AVX512)
#define BL_AVX512_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#define BL_AVX512 __attribute__((target(BL_AVX512_TARGET)))
#define BL_AVX512_INLINE __attribute__((target(BL_AVX512_TARGET), always_inline)) inline
#define BL_AVX512_VBMI __attribute__((target(BL_AVX512_TARGET ",avx512vbmi,gfni")))
#endif

namespace bitladder {
inline namespace v0_1 {
namespace cpu {

/// Instruction sets that kernels are written for, each with all of those before it.
enum class isa {
  scalar,       ///< plain C++, any machine
  avx2,         ///< x86-64 with AVX2, FMA and F16C
  avx512,       ///< AVX-512 F, BW, DQ and VL: Skylake-X and later
  avx512_vbmi,  ///< and VBMI and GFNI: Ice Lake, Zen 4 and later
};

constexpr const char* to_string(isa i) noexcept {
  switch (i) {
    case isa::scalar: return "scalar";
    case isa::avx2: return "avx2";
    case isa::avx512: return "avx512";
    case isa::avx512_vbmi: return "avx512_vbmi";
  }
  return "?";
}

/// All of them, slowest first, for loops over what this machine has.
inline constexpr isa all_isas[] = {isa::scalar, isa::avx2, isa::avx512, isa::avx512_vbmi};

/// Whether a machine with `have` runs code for `needed`: a kernel that has no form for `have` uses
/// the best one that it includes.
constexpr bool includes(isa have, isa needed) noexcept {
  return static_cast<int>(have) >= static_cast<int>(needed);
}

/// Whether this machine, and this build, can run `i`.
inline bool supported(isa i) noexcept {
  if (i == isa::scalar) return true;
#if BL_HAS_AVX2
  // These ask the processor and, for the wider registers, whether the operating system saves them.
  __builtin_cpu_init();  // a caller may run before this library's own constructors
  // F16C is not asked for: clang before 15 does not know its name, and it is older than AVX2.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (i == isa::avx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (i == isa::avx512) return avx512;
  if (i == isa::avx512_vbmi)
    return avx512 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni");
#endif
  return false;
}

/// The fastest that this machine can run.
inline isa best_isa() noexcept {
  isa best = isa::scalar;
  for (isa i : all_isas)
    if (supported(i)) best = i;
  return best;
}

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
