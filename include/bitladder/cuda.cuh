// SPDX-License-Identifier: MIT
// Everything, CUDA included, for .cu files. For users; the library's own headers include what they
// use.
#pragma once

#include <bitladder/bitladder.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/cuda/runtime.cuh>
