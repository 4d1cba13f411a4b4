// SPDX-License-Identifier: MIT
// Y = X W^T for hundreds of tokens and more: a slab of rows at a time is dequantized to fp16 and
// multiplied by cuBLAS with float sums. Apart from gemm.cuh because only its users link cuBLAS.
// Tested by tests/kernels/cuda/gemm_cublas_test.cu.
#pragma once

#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/dequantize.cuh>
#include <bitladder/kernels/cuda/detail/finish_sums_kernel.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/large_batch.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cublas_v2.h>

namespace bitladder {
inline namespace v0_1 {
namespace cuda {

namespace detail {

/// What a cuBLAS status means to a caller of the library.
[[nodiscard]] constexpr status cublas_status(cublasStatus_t s) noexcept {
  switch (s) {
    case CUBLAS_STATUS_SUCCESS: return status::ok;
    case CUBLAS_STATUS_NOT_INITIALIZED:
    case CUBLAS_STATUS_INVALID_VALUE: return status::invalid_argument;
    case CUBLAS_STATUS_ALLOC_FAILED: return status::out_of_memory;
    case CUBLAS_STATUS_ARCH_MISMATCH:
    case CUBLAS_STATUS_NOT_SUPPORTED: return status::unsupported_device;
    default: return status::launch_failed;
  }
}

/// Where the parts of the scratch are.
struct cublas_scratch {
  /// More than the second-level cache holds: the product has tiles for the whole card then, which
  /// counts for more (a 7B's prompts of 512 and of 2048 tokens at 8 bits on an H200: slabs of 24 MB
  /// 23.8 and 64.2 ms, 48 MB 21.0 and 61.6, 96 MB 19.5 and 60.4, 192 MB 19.8 and 59.8).
  static constexpr std::size_t slab_bytes = std::size_t{96} << 20;
  static constexpr int tokens_at_once = 2048;  ///< of sums that are finished by a kernel of ours

  int slab_rows = 0;
  int tokens = 0;                                               ///< at once
  bool finish = false;                                          ///< sums go through memory
  bool convert = false;                                         ///< x is bfloat16
  std::size_t x = 0, unscale = 0, sums = 0, up = 0, bytes = 0;  ///< offsets; the slab comes first

  explicit cublas_scratch(const gemm_args& a) noexcept {
    const auto align = [](std::size_t n) { return (n + 255) / 256 * 256; };
    const auto cols = static_cast<std::size_t>(a.matrices[0].w.layout.cols);
    const bool swiglu = a.epilogue == gemm_epilogue::swiglu;
    int rows = 0;
    convert = a.x_type == dtype::bf16;
    // cuBLAS writes what it sums as fp16 or float, and adds nothing but what is in its place.
    finish = convert || swiglu || a.y_type == dtype::bf16;
    for (int i = 0; i < a.count; ++i) {
      const gemm_matrix& m = a.matrices[i];
      rows = std::max(rows, m.w.layout.rows);
      finish = finish || m.bias != nullptr || (m.residual != nullptr && m.residual != m.y);
    }
    const std::size_t fit = std::max<std::size_t>(slab_bytes / (cols * 2) / 16 * 16, 16);
    slab_rows = static_cast<int>(
        std::min(fit, static_cast<std::size_t>((static_cast<std::int64_t>(rows) + 15) / 16 * 16)));
    tokens = finish ? std::min(a.m, tokens_at_once) : a.m;
    const auto m = static_cast<std::size_t>(a.m);
    const std::size_t sum_bytes =
        static_cast<std::size_t>(tokens) * static_cast<std::size_t>(slab_rows) * sizeof(float);
    x = align(static_cast<std::size_t>(slab_rows) * cols * 2);
    unscale = x + (convert ? align(m * cols * 2) : 0);
    sums = unscale + (convert ? align(m * sizeof(float)) : 0);
    up = sums + (finish ? align(sum_bytes) : 0);
    bytes = up + (swiglu ? align(sum_bytes) : 0);
  }
};

/// Lends a handle our stream and settings, and gives the caller's back.
class cublas_settings {
 public:
  cublas_settings(cublasHandle_t handle, cudaStream_t stream) noexcept : handle_(handle) {
    result_ = cublasGetStream(handle, &stream_);
    if (result_ == CUBLAS_STATUS_SUCCESS) result_ = cublasGetPointerMode(handle, &pointers_);
    if (result_ == CUBLAS_STATUS_SUCCESS) result_ = cublasGetMathMode(handle, &math_);
    if (result_ != CUBLAS_STATUS_SUCCESS) return;
    got_ = true;
    // Setting a stream drops a workspace that the caller may have set.
    other_stream_ = stream != stream_;
    if (other_stream_) result_ = cublasSetStream(handle, stream);
    if (result_ == CUBLAS_STATUS_SUCCESS)
      result_ = cublasSetPointerMode(handle, CUBLAS_POINTER_MODE_HOST);
    // Parts of sums are never added in fp16.
    if (result_ == CUBLAS_STATUS_SUCCESS)
      result_ = cublasSetMathMode(
          handle, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                            CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));
  }
  cublas_settings(const cublas_settings&) = delete;
  cublas_settings& operator=(const cublas_settings&) = delete;
  ~cublas_settings() {
    if (!got_) return;
    static_cast<void>(cublasSetMathMode(handle_, math_));
    static_cast<void>(cublasSetPointerMode(handle_, pointers_));
    if (other_stream_) static_cast<void>(cublasSetStream(handle_, stream_));
  }
  cublasStatus_t result() const noexcept { return result_; }

 private:
  cublasHandle_t handle_;
  cublasStatus_t result_;
  cudaStream_t stream_ = nullptr;
  cublasPointerMode_t pointers_ = CUBLAS_POINTER_MODE_HOST;
  cublasMath_t math_ = CUBLAS_DEFAULT_MATH;
  bool got_ = false, other_stream_ = false;
};

}  // namespace detail

/// Scratch of gemm_cublas for these arguments.
[[nodiscard]] inline std::size_t gemm_cublas_workspace_bytes(const gemm_args& args) noexcept {
  if (args.count < 1 || args.count > gemm_args::max_matrices || args.m < 1 ||
      args.matrices[0].w.layout.cols < 1)
    return 0;
  return detail::cublas_scratch(args).bytes;
}

/// Y = X W^T for each matrix of `args`, queued on `stream`. Products are cuBLAS's: fp16 operands,
/// float sums in its order. bfloat16 x is first scaled by a power of two per token and rounded to
/// fp16 (exact but for values below 2^-28 of the token's largest); its sums, bfloat16 y, bias, a
/// residual that is not y itself and SwiGLU pass through memory as floats. Column groups are
/// allowed.
/// @param scratch gemm_cublas_workspace_bytes(args) bytes, 16-byte aligned, any content;
///        args.workspace is not used
/// @param handle of the current device. Its stream, pointer and math modes are changed and put
///        back; if its stream is not `stream`, a workspace set by the caller is lost
///        (cublasSetStream). cuBLAS may need a workspace of its own to be captured in a graph.
/// @return as large_batch, out_of_memory, or what cuBLAS reports. A failure after the checks may
///         leave part of the work queued.
template <int Bits>
[[nodiscard]] status gemm_cublas(const gemm_args& args, void* scratch, std::size_t scratch_bytes,
                                 cublasHandle_t handle, cudaStream_t stream) noexcept {
  status s = detail::check_gemm(Bits, args);
  if (s != status::ok) return s;
  const int cols = args.matrices[0].w.layout.cols;
  if (args.m > 1 << 22 || cols > 1 << 22) return status::invalid_argument;
  const std::int64_t x_stride = args.x_stride != 0 ? args.x_stride : cols;
  if (handle == nullptr || scratch == nullptr) return status::invalid_argument;
  if (args.y_stride > INT_MAX || x_stride > INT_MAX) return status::invalid_argument;
  for (int i = 0; i < args.count; ++i) {
    const packed_view& w = args.matrices[i].w;
    if (w.groups < 1 || cols % w.groups != 0 || (w.groups > 1 && cols / w.groups % 32 != 0))
      return status::shape_mismatch;
  }
  const detail::cublas_scratch part(args);
  if (scratch_bytes < part.bytes) return status::invalid_argument;
  if (!detail::is_aligned(scratch, 16)) return status::misaligned;
  const detail::cublas_settings settings(handle, stream);
  if (settings.result() != CUBLAS_STATUS_SUCCESS) return detail::cublas_status(settings.result());

  auto* bytes = static_cast<unsigned char*>(scratch);
  const bool swiglu = args.epilogue == gemm_epilogue::swiglu;
  float* unscale = part.convert ? reinterpret_cast<float*>(bytes + part.unscale) : nullptr;
  const void* x = args.x;
  if (part.convert) {
    s = detail::launch_convert_x(args, 0, bytes + part.x, unscale, false, stream);
    x = bytes + part.x;
  }
  const std::int64_t x_rows = part.convert ? cols : x_stride;
  const float one = 1.f;
  // cuBLAS counts columns first: the slab is a [cols, rows] matrix to it, transposed.
  const auto multiply = [&](int rows, int first, int count, float old, void* y, cudaDataType_t type,
                            std::int64_t y_rows) {
    return detail::cublas_status(cublasGemmEx(
        handle, CUBLAS_OP_T, CUBLAS_OP_N, rows, count, cols, &one, scratch, CUDA_R_16F, cols,
        static_cast<const std::uint16_t*>(x) + first * x_rows, CUDA_R_16F, static_cast<int>(x_rows),
        &old, y, type, static_cast<int>(y_rows), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  };
  const auto results = [&](int i) {
    const gemm_matrix& m = args.matrices[i];
    const int rows = m.w.layout.rows;
    return detail::output_row_params{m.y, m.bias, m.residual,
                                     args.y_stride != 0 ? args.y_stride : rows, rows};
  };
  for (int i = 0; i < (swiglu ? 1 : args.count); ++i) {
    const detail::output_row_params to = results(i);
    for (int row = 0; row < to.rows && s == status::ok; row += part.slab_rows) {
      const int rows = std::min(part.slab_rows, to.rows - row);
      if (!part.finish) {
        s = dequantize<Bits>(args.matrices[i].w, scratch, dtype::f16, row, rows, 0, stream);
        if (s == status::ok)
          s = multiply(rows, 0, args.m, to.residual != nullptr ? 1.f : 0.f,
                       static_cast<unsigned char*>(to.y) +
                           static_cast<std::size_t>(row) * size_of(args.y_type),
                       args.y_type == dtype::f16 ? CUDA_R_16F : CUDA_R_32F, to.stride);
        continue;
      }
      for (int first = 0; first < args.m && s == status::ok; first += part.tokens) {
        const int count = std::min(part.tokens, args.m - first);
        // The slab of one matrix serves all tokens; with two it alternates.
        for (int k = 0; k < (swiglu ? 2 : 1) && s == status::ok; ++k) {
          if (first == 0 || swiglu)
            s = dequantize<Bits>(args.matrices[i + k].w, scratch, dtype::f16, row, rows, 0, stream);
          if (s == status::ok)
            s = multiply(rows, first, count, 0.f, bytes + (k == 0 ? part.sums : part.up),
                         CUDA_R_32F, rows);
        }
        if (s != status::ok) break;
        detail::finish_sums_params f{};
        f.sums = reinterpret_cast<const float*>(bytes + part.sums);
        f.up = swiglu ? reinterpret_cast<const float*>(bytes + part.up) : nullptr;
        f.unscale = unscale;
        f.to = to;
        if (swiglu) f.up_to = results(1);
        f.out = {args.y_type};
        f.first_token = first;
        f.first_row = row;
        f.rows = rows;
        const dim3 grid(static_cast<unsigned>(count),
                        static_cast<unsigned>((rows + detail::finish_sums_threads - 1) /
                                              detail::finish_sums_threads));
        if (swiglu)
          detail::finish_sums_kernel<true><<<grid, detail::finish_sums_threads, 0, stream>>>(f);
        else
          detail::finish_sums_kernel<false><<<grid, detail::finish_sums_threads, 0, stream>>>(f);
        s = launch_status();
      }
    }
  }
  return s;
}

/// The same for a precision known at run time. A template, so that who does not call it compiles
/// none of its kernels.
template <class = void>
[[nodiscard]] status gemm_cublas(int bits, const gemm_args& args, void* scratch,
                                 std::size_t scratch_bytes, cublasHandle_t handle,
                                 cudaStream_t stream) noexcept {
  return dispatch_bits(bits, all_bits{}, [&](auto b) {
    return gemm_cublas<decltype(b)::value>(args, scratch, scratch_bytes, handle, stream);
  });
}

}  // namespace cuda
}  // namespace v0_1
}  // namespace bitladder
