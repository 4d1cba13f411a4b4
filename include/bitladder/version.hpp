// SPDX-License-Identifier: MIT
// The library's version, written once: CMake reads these three lines, and the inline namespace
// v<major>_<minor> that every header opens carries it into symbol names, so that two shared objects
// built from different versions never mix their inline functions. Tested by
// tests/core/version_test.cpp.
#pragma once

#define BL_VERSION_MAJOR 0
#define BL_VERSION_MINOR 1
#define BL_VERSION_PATCH 0

/// One comparable integer, major * 1'000'000 + minor * 1'000 + patch.
#define BL_VERSION (BL_VERSION_MAJOR * 1000000 + BL_VERSION_MINOR * 1000 + BL_VERSION_PATCH)
