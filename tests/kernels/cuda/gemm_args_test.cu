// SPDX-License-Identifier: MIT
// What gemm.cuh refuses, and that a refused call launches nothing. Most cases need no device:
// arguments are checked before the card is asked.
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include <support/has_device.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <kernels/cuda/gemm_cases.cuh>
#include <vector>

namespace {

using namespace gemm_cases;

alignas(16) std::uint8_t memory[64];  // addresses that nobody follows

/// Three bits of four planes, two matrices, one token: all of it right.
bc::gemm_args good() {
  bc::packed_view w;
  w.planes = reinterpret_cast<const std::uint32_t*>(memory);
  w.tables = reinterpret_cast<const bitladder::fp16_t*>(memory);
  w.layout = {40, 64, 4};
  w.bits = 3;
  bc::gemm_args a;
  a.count = 2;
  for (int i = 0; i < 2; ++i) a.matrices[i] = {w, memory, memory, memory};
  a.x = memory;
  return a;
}

/// The answer to the good call with one thing changed.
template <class Change>
status answer(Change&& change) {
  bc::gemm_args a = good();
  change(a);
  return gemm_at(3, a, nullptr);
}
/// The same with the change made to the second matrix.
template <class Change>
status answer_second(Change&& change) {
  return answer([&](bc::gemm_args& a) { change(a.matrices[1]); });
}

TEST_CASE("a null pointer is an invalid argument") {
  CHECK(answer([](auto& a) { a.x = nullptr; }) == status::invalid_argument);
  CHECK(answer_second([](auto& m) { m.w.planes = nullptr; }) == status::invalid_argument);
  CHECK(answer_second([](auto& m) { m.w.tables = nullptr; }) == status::invalid_argument);
  CHECK(answer_second([](auto& m) { m.y = nullptr; }) == status::invalid_argument);
  // Of a SwiGLU only the first matrix has results.
  CHECK(answer([](auto& a) {
          a.epilogue = bc::gemm_epilogue::swiglu;
          a.matrices[0].y = nullptr;
        }) == status::invalid_argument);
}

TEST_CASE("there are one to four matrices, and two for a SwiGLU") {
  for (const int count : {-1, 0, 5})
    CHECK(answer([&](auto& a) { a.count = count; }) == status::invalid_argument);
  for (const int count : {1, 3, 4})
    CHECK(answer([&](auto& a) {
            a.epilogue = bc::gemm_epilogue::swiglu;
            a.count = count;
          }) == status::invalid_argument);
}

TEST_CASE("there is a token, a row and a column") {
  for (const int m : {0, -1, 1 << 30})
    CHECK(answer([&](auto& a) { a.m = m; }) == status::invalid_argument);
  for (const int rows : {0, -16})
    CHECK(answer([&](auto& a) { a.matrices[0].w.layout.rows = rows; }) == status::invalid_argument);
  for (const int cols : {0, -32, 16, 63, 1 << 30})
    CHECK(answer([&](auto& a) {
            for (auto& m : a.matrices) m.w.layout.cols = cols;
          }) == status::invalid_argument);
}

TEST_CASE("only the types that kernels read and write are taken") {
  for (const dtype type : {dtype::f32, dtype::i8})
    CHECK(answer([&](auto& a) { a.x_type = type; }) == status::invalid_argument);
  CHECK(answer([](auto& a) { a.y_type = dtype::i8; }) == status::invalid_argument);
}

TEST_CASE("a view must be of the precision asked for, and have its planes") {
  for (int bits = 1; bits <= 8; ++bits) {
    bc::gemm_args a = good();
    for (auto& m : a.matrices) m.w.layout.planes = 8;
    for (auto& m : a.matrices) m.w.bits = bits % 8 + 1;
    CHECK(gemm_at(bits, a, nullptr) == status::unsupported_bits);
    for (auto& m : a.matrices) m.w.bits = bits;
    a.matrices[1].w.bits = 0;  // what packed_weights::view gives for a precision that it lacks
    CHECK(gemm_at(bits, a, nullptr) == status::unsupported_bits);
    for (auto& m : a.matrices) m.w.bits = bits;
    a.matrices[1].w.layout.planes = bits - 1;
    a.matrices[0].w.layout.planes = bits;
    CHECK(gemm_at(bits, a, nullptr) == status::too_few_planes);
    a.matrices[1].w.layout.planes = 9;
    CHECK(gemm_at(bits, a, nullptr) == status::invalid_argument);
  }
  for (const int bits : {-1, 0, 9})
    CHECK(gemm_at(bits, good(), nullptr) == status::unsupported_bits);
}

TEST_CASE("shapes and strides must fit together") {
  CHECK(answer_second([](auto& m) { m.w.layout.cols = 96; }) == status::shape_mismatch);
  CHECK(answer([](auto& a) {
          a.epilogue = bc::gemm_epilogue::swiglu;
          a.matrices[1].w.layout.rows = 56;
        }) == status::shape_mismatch);
  CHECK(answer_second([](auto& m) { m.w.groups = 0; }) == status::shape_mismatch);
  CHECK(answer_second([](auto& m) { m.w.groups = 3; }) == status::shape_mismatch);
  for (const int stride : {39, -40})
    CHECK(answer([&](auto& a) { a.y_stride = stride; }) == status::shape_mismatch);
  for (const int stride : {56, -64})
    CHECK(answer([&](auto& a) { a.x_stride = stride; }) == status::shape_mismatch);
}

TEST_CASE("pointers and strides must be aligned as stated") {
  CHECK(answer([](auto& a) { a.x = memory + 8; }) == status::misaligned);
  CHECK(answer([](auto& a) { a.x_stride = 68; }) == status::misaligned);
  CHECK(answer([](auto& a) { a.workspace = memory + 8; }) == status::misaligned);
  CHECK(answer_second([](auto& m) { m.w.planes += 2; }) == status::misaligned);
  CHECK(answer_second([](auto& m) { m.w.tables += 4; }) == status::misaligned);
  for (const dtype type : {dtype::f16, dtype::bf16, dtype::f32}) {
    const std::size_t off = size_of(type) / 2;
    CHECK(answer([&](auto& a) { a.y_type = type, a.matrices[1].y = memory + off; }) ==
          status::misaligned);
    CHECK(answer([&](auto& a) { a.y_type = type, a.matrices[1].bias = memory + off; }) ==
          status::misaligned);
    CHECK(answer([&](auto& a) { a.y_type = type, a.matrices[1].residual = memory + off; }) ==
          status::misaligned);
  }
}

TEST_CASE("without a device a right call says so" * doctest::skip(support::has_device())) {
  CHECK(gemm_at(3, good(), nullptr) == status::unsupported_device);
}

TEST_CASE("scratch is asked for where columns are more than a block holds, and only there") {
  bc::gemm_args a = good();
  for (const int m : {1, 5, 16}) {
    a.m = m;
    for (auto& matrix : a.matrices) matrix.w.layout.cols = 4096;
    CHECK(bc::gemm_workspace_bytes(a) == 0);
  }
  for (auto& matrix : a.matrices) matrix.w.layout.cols = 4128;
  CHECK(bc::gemm_workspace_bytes(a) > 0);
}

TEST_CASE("too little scratch is refused and nothing is launched" *
          doctest::skip(!support::has_device())) {
  support::random rng(801);
  const int rows = 20, cols = 8448;  // 33 column tiles: two passes or more on every card
  const weights w(rows, cols, 3, rng);
  cudaStream_t stream;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  for (const int m : {2, 8, 9, 16, 40}) {
    const numbers x(dtype::f16, m, cols, cols, rng);
    results y(dtype::f32, m, rows, 0, rng);
    bc::gemm_args a = arguments(x, m, y.type, y.stride);
    a.matrices[0] = {w.device.view(3), y.data()};
    bc::buffer<std::uint8_t> scratch;
    const std::size_t bytes = bc::gemm_workspace_bytes(a);
    REQUIRE(bytes > 0);
    REQUIRE(scratch.allocate(bytes) == status::ok);
    for (const bool there : {false, true}) {
      CAPTURE(m);
      CAPTURE(there);
      a.workspace = there ? scratch.data() : nullptr;
      a.workspace_bytes = there ? 15 : bytes;
      // What a call queues on a stream that is captured becomes nodes of a graph.
      REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
      CHECK(gemm_at(3, a, stream) == status::invalid_argument);
      cudaGraph_t graph = nullptr;
      REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
      std::size_t nodes = 1;
      REQUIRE(cudaGraphGetNodes(graph, nullptr, &nodes) == cudaSuccess);
      CHECK(nodes == 0);
      REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
    }
  }
  // One token needs none up to 16384 columns.
  const numbers x(dtype::f16, 1, cols, cols, rng);
  results y(dtype::f32, 1, rows, 0, rng);
  bc::gemm_args a = arguments(x, 1, y.type, y.stride);
  a.matrices[0] = {w.device.view(3), y.data()};
  CHECK(gemm_at(3, a, stream) == status::ok);
  CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
  REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
}

}  // namespace
