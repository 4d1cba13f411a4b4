// SPDX-License-Identifier: MIT
// The matrices of Llama-2-7B, Llama-3-8B and Llama-2-70B, as they are run: alone, and stacked where
// they share their input (q, k and v; gate and up). Each shape once.
#pragma once

namespace bench {

struct shape {
  int rows, cols;
  const char* what;  ///< where it comes from
};

constexpr shape llama_shapes[] = {
    {4096, 4096, "7B q, k, v, o; 8B q, o"},
    {11008, 4096, "7B gate, up"},
    {12288, 4096, "7B qkv"},
    {22016, 4096, "7B gate+up"},
    {32000, 4096, "7B head"},
    {4096, 11008, "7B down"},
    {1024, 4096, "8B k, v"},
    {6144, 4096, "8B qkv"},
    {14336, 4096, "8B gate, up"},
    {28672, 4096, "8B gate+up"},
    {4096, 14336, "8B down"},
    {1024, 8192, "70B k, v"},
    {8192, 8192, "70B q, o"},
    {10240, 8192, "70B qkv"},
    {28672, 8192, "70B gate, up"},
    {57344, 8192, "70B gate+up"},
    {8192, 28672, "70B down"},
};

/// Tokens at once: a step of one to many sequences, and prompts.
constexpr int token_counts[] = {1, 2, 4, 8, 16, 32, 64, 256, 512, 2048};

}  // namespace bench
