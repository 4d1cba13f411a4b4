// SPDX-License-Identifier: MIT
// The macros that the whole library shares; a header that needs one of its own defines it there.
// None changes a result or a layout, so translation units that define BL_ENABLE_ASSERTS and ones
// that do not can be linked together.
#pragma once

#ifdef BL_ENABLE_ASSERTS
#include <cassert>
#endif

/// Marks functions that kernels call too: a plain constexpr function would need the consumer to
/// pass
/// --expt-relaxed-constexpr.
#ifdef __CUDACC__
#define BL_HOST_DEVICE __host__ __device__
#else
#define BL_HOST_DEVICE
#endif

/// Declares a kernel, which must be a template: nvcc ignores inline on others, and two translation
/// units would each define it. Hidden, because nvcc before 13 emits weak host stubs: two shared
/// objects built for different architectures would share one of them and the launch would fail
/// silently.
#ifdef __CUDACC__
#define BL_KERNEL __attribute__((visibility("hidden"))) __global__ void
#else
#define BL_KERNEL
#endif

/// Checks for the library's own mistakes, never for a caller's: off unless BL_ENABLE_ASSERTS is
/// defined.
#ifdef BL_ENABLE_ASSERTS
#define BL_ASSERT(condition) assert(condition)
#else
#define BL_ASSERT(condition) static_cast<void>(0)
#endif

// Unrolls the loop that follows fully, for loops over registers: GCC does that by itself at -O3
// only. nvcc does not know the pragma, in code for the host either.
#if defined(__GNUC__) && !defined(__CUDACC__)
#define BL_UNROLL_TEXT(text) _Pragma(#text)
#define BL_UNROLL(count) BL_UNROLL_TEXT(GCC unroll count)
#else
#define BL_UNROLL(count)
#endif
