// SPDX-License-Identifier: MIT
// Everything that needs neither CUDA nor JSON: core, quantizer, CPU kernels and schedules. For
// users; the library's own headers include what they use, and bitladder::io is included by name.
#pragma once

#include <bitladder/config.hpp>
#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/pack.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cpu/dequantize.hpp>
#include <bitladder/kernels/cpu/gemm.hpp>
#include <bitladder/kernels/cpu/gemv.hpp>
#include <bitladder/quantize/outliers.hpp>
#include <bitladder/quantize/quantize.hpp>
#include <bitladder/quantize/refit_ladder.hpp>
#include <bitladder/schedule/any.hpp>
#include <bitladder/schedule/bit_log.hpp>
#include <bitladder/schedule/confidence.hpp>
#include <bitladder/schedule/parse.hpp>
#include <bitladder/schedule/progressive.hpp>
#include <bitladder/schedule/random_switch.hpp>
#include <bitladder/version.hpp>
