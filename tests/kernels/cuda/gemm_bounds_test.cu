// SPDX-License-Identifier: MIT
// Products on the card of numbers that are hard to sum, within bounds that are computed from the
// numbers and the order of summation, and what becomes of infinities and not-a-numbers. Seeds 831
// to 833.
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/detail/decode.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/packed_layout.hpp>
#include <bitladder/kernels/cuda/policy.cuh>

#include <support/has_device.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <kernels/cuda/gemm_cases.cuh>
#include <limits>
#include <string>
#include <vector>

namespace {

using namespace gemm_cases;

/// One row at a precision: its codes and their values.
struct row_weights {
  std::vector<int> code;
  std::vector<double> table, value;

  row_weights(const weights& w, int row, int bits) {
    const bitladder::codebook_view tables = w.host.tables[bits];
    for (int i = 0; i < 1 << bits; ++i) table.push_back(to_float(tables.table(row)[i]));
    for (int c = 0; c < w.cols; ++c) {
      code.push_back(w.host.planes.view().code(row, c, bits));
      value.push_back(table[size(code.back())]);
    }
  }
};

double dot(const std::vector<double>& x, const std::vector<double>& w) {
  double sum = 0;
  for (std::size_t c = 0; c < x.size(); ++c) sum += x[c] * w[c];
  return sum;
}

/// What a sum by the lookup kernels may be off by. A column tile is a chain of 16 steps; a step
/// adds 16 exact products to the sum so far, as two times 8 on the oldest cards. Before they are
/// added, the 9 numbers are cut where the largest has its last bit, and so is their sum: at most 10
/// units of 2^-23 of what the largest can be, twice. The tree over the 16 tiles of a group is 4
/// roundings, and each group one more.
double chain_bound(const std::vector<double>& x, const std::vector<double>& w, dtype x_type) {
  const int cols = static_cast<int>(x.size()), tile_cols = bc::packed_layout::tile_cols;
  double bound = 0, tiles = 0;
  for (int tile = 0; tile < cols; tile += tile_cols) {
    double sum = 0, largest = 0, all_weights = 0;
    for (int step = 0; step < 16; ++step) {
      double products = 0, next = sum;
      for (int i = 0; i < 16; ++i) {
        const int pair = 2 * (step % 8) + i / 2 % 2;
        const int c = tile + 128 * (step / 8) + 32 * (i / 4) + bc::detail::pair_column(pair, i % 2);
        if (c >= cols) continue;
        next += x[size(c)] * w[size(c)];
        products += std::fabs(x[size(c)] * w[size(c)]);
        largest = std::max(largest, std::fabs(x[size(c)]));
        all_weights += std::fabs(w[size(c)]);
      }
      bound += 20 * 0x1p-23 * (std::fabs(sum) + products);
      sum = next;
    }
    tiles += std::fabs(sum);
    // bfloat16 becomes fp16 with the tile's largest just below 2^15; the last bit is 2^-24.
    if (x_type == dtype::bf16) bound += 0x1p-39 * largest * all_weights;
  }
  const int groups = (cols + 16 * tile_cols - 1) / (16 * tile_cols);
  return (bound + (4 + groups) * 0x1p-24 * tiles) * 1.01;
}

/// The same for the kernel that counts bits. Activations become integers of 24 or 16 bits. In a
/// slice of 1024 columns, for every product of code bits and each of four lanes (two bits of every
/// byte of the integers), an exact count becomes a float, is multiplied by a coefficient and added
/// to the others; lanes, slices and the share of no bits follow. Nothing is negative but the lane
/// with the sign, so the terms may be far larger than their sum; here they are summed as they are.
double count_bound(const std::vector<double>& x, const row_weights& w, int bits) {
  const int cols = static_cast<int>(x.size()), sets = 1 << bits;
  double largest = 0;
  for (const double v : x) largest = std::max(largest, std::fabs(v));
  if (largest == 0) return 0;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(largest), -100) - 22);
  // Coefficients: differences of values over sets of planes, the first plane the lowest bit.
  std::vector<double> coefficient(size(sets)), sum_of_values(size(sets));
  for (int f = 0; f < sets; ++f) {
    coefficient[size(f)] = w.table[size(bc::packed_table_layout::reverse(f, bits))];
    sum_of_values[size(f)] = std::fabs(coefficient[size(f)]);
  }
  for (int j = 0; j < bits; ++j)
    for (int f = 0; f < sets; ++f)
      if ((f >> j & 1) != 0) {
        coefficient[size(f)] -= coefficient[size(f ^ 1 << j)];
        sum_of_values[size(f)] += sum_of_values[size(f ^ 1 << j)];
      }
  double bound = 0, whole = 0, quantized = 0, rounded = 0;
  const std::vector<double> counted = large_batch_cases::as_counted(x);
  for (int c = 0; c < cols && bits == 4; ++c)
    rounded += std::fabs(w.value[size(c)] * (counted[size(c)] - x[size(c)]));
  const int slices = (cols + 1023) / 1024;
  for (int slice = 0; slice < slices; ++slice) {
    std::vector<double> counts(size(4 * sets), 0.0);
    for (int c = 1024 * slice; c < std::min(cols, 1024 * (slice + 1)); ++c) {
      const auto integer = static_cast<std::uint32_t>(std::llrint(x[size(c)] / unit));
      const int field = bc::packed_table_layout::reverse(w.code[size(c)], bits);
      whole += x[size(c)] / unit;
      quantized += 0.5 * std::fabs(w.value[size(c)]);
      for (int lane = 0; lane < 4; ++lane) {
        double share = 0;
        for (int i = 0; i < 6; ++i) {
          const int bit = 8 * (i / 2) + 2 * lane + i % 2;
          if ((integer >> bit & 1) != 0) share += std::ldexp(bit == 23 ? -1.0 : 1.0, bit);
        }
        for (int s = 1; s < sets; ++s)
          if ((s & field) == s) counts[size(4 * s + lane)] += share;
      }
    }
    for (int s = 1; s < sets; ++s)
      for (int lane = 0; lane < 4; ++lane)
        bound +=
            0x1p-24 * std::fabs(counts[size(4 * s + lane)]) *
            (std::fabs(coefficient[size(s)]) * (sets + 4 + slices) + bits * sum_of_values[size(s)]);
  }
  bound += 2 * 0x1p-24 * std::fabs(coefficient[0] * whole);
  return unit * (bound + quantized) * 1.01 + rounded;
}

enum class kind { heavy_tails, outlier, subnormal, all_equal, cancelling };
constexpr kind all_kinds[] = {kind::heavy_tails, kind::outlier, kind::subnormal, kind::all_equal,
                              kind::cancelling};
constexpr const char* names[] = {"heavy tails", "outlier", "subnormal", "all equal", "cancelling"};

void fill(numbers& x, kind k, support::random& rng) {
  for (int i = 0; i < x.rows; ++i) {
    for (int c = 0; c < x.stride; ++c) {
      double v = k == kind::heavy_tails ? rng.student_t() : rng.normal();
      if (k == kind::subnormal) v = rng.normal() * (x.type == dtype::f16 ? 0x1p-16 : 0x1p-129);
      if (k == kind::all_equal) v = 1.25;
      if (k == kind::cancelling) v = c % 2 == 0 ? 1000 * rng.normal() : -x.at(i, c - 1);
      x.at(i, c) = numbers::rounded(x.type, static_cast<float>(v));
    }
    if (k == kind::outlier) x.at(i, rng.below(x.cols)) = rng.below(2) == 0 ? 1000.f : -1000.f;
  }
  x.upload();
}

/// Weights with heavy tails; neighbouring columns have the same code if they are to cancel.
void fill(weights& w, kind k, support::random& rng) {
  if (k == kind::cancelling) {
    for (std::size_t c = 1; c < w.host.codes.size(); c += 2) w.host.codes[c] = w.host.codes[c - 1];
    w.host.planes = bitladder::pack(
        bitladder::matrix_view<const std::uint8_t>(w.host.codes.data(), w.rows, w.cols), 8);
  }
  for (int bits = 1; bits <= 8; ++bits) {
    for (int r = 0; r < w.rows; ++r) {
      std::vector<float> values(size(1 << bits));
      for (float& v : values) v = static_cast<float>(0.05 * rng.student_t());
      std::sort(values.begin(), values.end());
      for (std::size_t i = 0; i < values.size(); ++i)
        w.host.tables.data(bits)[(size(r) << bits) + i] = bitladder::to_fp16(values[i]);
    }
  }
  REQUIRE(w.device.upload(w.host.planes.view(), w.host.tables, nullptr) == status::ok);
}

/// Whether one token that may take the kernel that counts bits does so here.
bool counts_bits(int bits) {
  bc::device_properties device;
  REQUIRE(bc::properties(device) == status::ok);
  bool counts = false;
  REQUIRE(bitladder::dispatch_bits(bits, bitladder::all_bits{}, [&](auto b) {
            using policy = bc::gemv_policy<decltype(b)::value>;
            counts = policy::bit_serial && policy::has_binary_mma(device);
            return status::ok;
          }) == status::ok);
  return counts;
}

TEST_CASE("sums of hostile numbers stay within what the order of summation can lose" *
          doctest::skip(!support::has_device())) {
  support::random rng(831);
  for (const kind k : all_kinds) {
    for (const int cols : {96, 1056, 8224}) {
      const int rows = cols > 4096 ? 5 : 17;  // the host's part takes its time
      weights w(rows, cols, 8, rng);
      fill(w, k, rng);
      for (int bits = 1; bits <= 8; ++bits) {
        std::vector<row_weights> row;
        for (int r = 0; r < rows; ++r) row.emplace_back(w, r, bits);
        for (const int m : {-1, 1, 3, 11}) {  // -1: one token by the fastest kernel
          const int tokens = std::abs(m);
          numbers x(bits % 2 == 0 ? dtype::f16 : dtype::bf16, tokens, cols, cols);
          fill(x, k, rng);
          results y(dtype::f32, tokens, rows, 1, rng);
          bc::gemm_args a = arguments(x, tokens, y.type, y.stride);
          a.batch_invariant = m != -1;
          a.matrices[0] = {w.device.view(bits), y.data()};
          call(bits, a);
          const bool counts = m == -1 && counts_bits(bits);
          std::vector<double> want, allowed;
          for (int i = 0; i < tokens; ++i) {
            std::vector<double> token;
            for (int c = 0; c < cols; ++c) token.push_back(x.at(i, c));
            for (const row_weights& r : row) {
              want.push_back(dot(token, r.value));
              // Results below float's normal range have steps of 2^-149.
              allowed.push_back(
                  (counts ? count_bound(token, r, bits) : chain_bound(token, r.value, x.type)) +
                  64 * 0x1p-149);
            }
          }
          CAPTURE(names[static_cast<int>(k)]);
          CAPTURE(cols);
          CAPTURE(bits);
          CAPTURE(m);
          CAPTURE(to_string(x.type));
          CHECK(faults(
                    y, [&](int i, int r) { return want[size(i * rows + r)]; },
                    [&](int i, int r) { return allowed[size(i * rows + r)]; }) == "");
        }
      }
    }
  }
}

TEST_CASE("what is not finite stays in its token and is what a plain loop makes of it" *
          doctest::skip(!support::has_device())) {
  support::random rng(832);
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const int rows = 33, cols = 1056;
  const weights w(rows, cols, 8, rng);
  for (int bits = 1; bits <= 8; ++bits) {
    for (const dtype type : {dtype::f16, dtype::bf16}) {
      for (const int m : {1, 8, 12, 40}) {
        for (int shift = 0; shift < (m == 1 ? 5 : 1); ++shift) {
          numbers x(type, m, cols, cols, rng);
          for (int i = 0; i < m; ++i) {
            switch ((i + shift) % 5) {
              case 0: break;  // finite
              case 1: x.at(i, rng.below(cols)) = nan; break;
              case 2: x.at(i, rng.below(cols)) = inf; break;
              case 3: x.at(i, rng.below(cols)) = -inf; break;
              default: x.at(i, 0) = inf, x.at(i, cols - 1) = inf;  // may cancel to NaN
            }
          }
          x.upload();
          const std::vector<double> values = w.values(bits);
          for (const bool invariant : {true, false}) {
            if (m > 1 && !invariant) continue;
            results y(dtype::f32, m, rows, 0, rng);
            bc::gemm_args a = arguments(x, m, y.type, y.stride);
            a.batch_invariant = invariant;
            a.matrices[0] = {w.device.view(bits), y.data()};
            call(bits, a);
            const std::vector<float> got = y.now();
            int wrong = 0;
            for (int i = 0; i < m; ++i) {
              for (int r = 0; r < rows; ++r) {
                double want = 0;
                for (int c = 0; c < cols; ++c)
                  want += x.at(i, c) * values[size(r) * size(cols) + size(c)];
                const float is = got[size(i * rows + r)];
                bool right = std::isfinite(want) ? std::fabs(is - want) < 1e-3
                             : std::isinf(want)  ? is == static_cast<float>(want)
                                                 : std::isnan(is);
                // The kernel that counts bits makes every result of such a token a NaN.
                if (!invariant && !std::isfinite(want)) right = right || std::isnan(is);
                wrong += !right;
              }
            }
            CAPTURE(bits);
            CAPTURE(to_string(type));
            CAPTURE(m);
            CAPTURE(shift);
            CAPTURE(invariant);
            CHECK(wrong == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("a result that its type cannot hold becomes an infinity" *
          doctest::skip(!support::has_device())) {
  support::random rng(833);
  const int rows = 100, cols = 4096, m = 3;
  const weights w(rows, cols, 8, rng);
  numbers x(dtype::f16, m, cols, cols);
  for (float& v : x.values) v = 60000;
  x.upload();
  for (int bits = 1; bits <= 8; ++bits) {
    results y(dtype::f16, m, rows, 0, rng);
    bc::gemm_args a = arguments(x, m, y.type, y.stride);
    a.matrices[0] = {w.device.view(bits), y.data()};
    call(bits, a);
    const expected want(x, w, bits);
    const std::vector<float> got = y.now();
    int wrong = 0, infinite = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double v = want.sum[i];
      if (std::fabs(v) > 65600) {
        wrong += !(std::isinf(got[i]) && std::signbit(got[i]) == std::signbit(v));
        ++infinite;
      } else if (std::fabs(v) < 65400) {
        wrong += !(std::fabs(got[i] - v) <= half_step(dtype::f16, v) + 1e-5 * want.unit[i] + 1);
      }
    }
    CAPTURE(bits);
    CHECK(wrong == 0);
    CHECK(infinite > 0);
  }
}

}  // namespace
