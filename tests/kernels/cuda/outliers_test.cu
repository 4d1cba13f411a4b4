// SPDX-License-Identifier: MIT
// Products and weights with outliers on the card, against double sums over the host's codes, tables
// and outliers: every precision and number of tokens, rows with none to all of their weights, and
// bits that depend on nothing but the row and the token. Seeds 871 to 879.
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/pack.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/buffer.cuh>
#include <bitladder/kernels/cuda/dequantize.cuh>
#include <bitladder/kernels/cuda/gemm_args.cuh>
#include <bitladder/kernels/cuda/packed_outliers.hpp>
#include <bitladder/kernels/cuda/packed_weights.cuh>

#include <support/has_device.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <kernels/cpu/fixture.hpp>
#include <kernels/cuda/gemm_cases.cuh>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace gemm_cases;
using bitladder::sparse_matrix;
using bitladder::sparse_view;

/// Most rows without, some with a few, few with nearly all.
double skewed(int row) { return row % 7 == 3 ? 0.9 : row % 3 == 0 ? 0.02 : 0; }
/// As models have them.
double even(int) { return 0.0045; }
double everywhere(int) { return 2; }
double nowhere(int) { return 0; }
using share_of_row = double (*)(int);

struct mixed_weights {
  int rows, cols, groups;
  support::quantized host;
  sparse_matrix outliers;
  bc::packed_weights device;

  mixed_weights(int row_count, int col_count, int group_count, share_of_row share,
                support::random& rng)
      : rows(row_count),
        cols(col_count),
        groups(group_count),
        host(row_count, col_count, 8, group_count, rng) {
    std::vector<std::int32_t> offsets = {0}, columns;
    std::vector<bitladder::fp16_t> values;
    for (int r = 0; r < rows; ++r) {
      int code = -1;
      for (int c = 0; c < cols; ++c) {
        if (c % (cols / groups) == 0) code = -1;
        if (rng.uniform() >= share(r)) continue;
        std::uint8_t& here = host.codes[at(r, c)];
        if (code < 0) code = here;
        here = static_cast<std::uint8_t>(code);
        columns.push_back(c);
        values.push_back(bitladder::to_fp16(static_cast<float>(0.3 * rng.normal())));
      }
      offsets.push_back(static_cast<std::int32_t>(columns.size()));
    }
    host.planes = bitladder::pack(
        bitladder::matrix_view<const std::uint8_t>(host.codes.data(), rows, cols), 8);
    outliers = {rows, cols, std::move(offsets), std::move(columns), std::move(values)};
    REQUIRE(device.upload(host.planes.view(), host.tables, outliers.view(), nullptr) == status::ok);
  }
  std::size_t at(int r, int c) const { return size(r) * size(cols) + size(c); }
  /// What codes and tables give.
  double quantized(int bits, int r, int c) const {
    return to_float(
        host.tables[bits].table(r, c / (cols / groups))[host.codes[at(r, c)] >> (8 - bits)]);
  }
};

/// Exact products, and what a product may be off by: as without outliers, measured against |x|
/// times a row's rms quantized weight, and a rounding for each step of the outliers' sums.
struct wanted {
  int rows;
  std::vector<double> sum, room;  ///< [m, rows]

  /// @param counts as of large_batch_cases::expected
  wanted(const numbers& x, int m, const mixed_weights& w, int bits, bool counts = false)
      : rows(w.rows) {
    std::vector<double> row(size(w.cols)), change(size(w.cols));
    sum.resize(size(m) * size(rows)), room.resize(sum.size());
    for (int r = 0; r < rows; ++r) {
      double square = 0;
      for (int c = 0; c < w.cols; ++c) {
        row[size(c)] = w.quantized(bits, r, c);
        change[size(c)] = 0;
        square += row[size(c)] * row[size(c)];
      }
      const sparse_view o = w.outliers.view();
      for (int i = o.begin(r); i < o.end(r); ++i)
        change[size(o.columns()[i])] = to_float(o.values()[i]) - row[size(o.columns()[i])];
      const double steps = (o.end(r) - o.begin(r)) / 32.0 + 16;
      for (int t = 0; t < m; ++t) {
        double s = 0, norm = 0, changed = 0;
        for (int c = 0; c < w.cols; ++c) {
          const double v = x.at(t, c);
          s += v * (row[size(c)] + change[size(c)]);
          norm += v * v;
          changed += std::fabs(v * change[size(c)]);
        }
        sum[size(t) * size(rows) + size(r)] = s;
        room[size(t) * size(rows) + size(r)] =
            large_batch_cases::bound * std::sqrt(norm * square / w.cols) +
            steps * changed * 0x1p-24 + (std::fabs(s) + changed) * 0x1p-22;
        if (counts && m == 1 && bits == 4) {
          std::vector<double> token;
          for (int c = 0; c < w.cols; ++c) token.push_back(x.at(t, c));
          room[size(r)] += large_batch_cases::counting_changes(token, row.data());
        }
      }
    }
  }
};

bc::gemm_args product(const numbers& x, int m, const mixed_weights& w, int bits, results& y) {
  bc::gemm_args a = arguments(x, m, y.type, y.stride);
  a.matrices[0].w = w.device.view(bits);
  a.matrices[0].y = y.data();
  return a;
}

/// The float results of a call for tokens first .. first + m - 1.
std::vector<float> run(int bits, const numbers& x, int first, int m, const mixed_weights& w,
                       bool invariant = true) {
  support::random rng(1);
  results y(dtype::f32, m, w.rows, 0, rng);
  bc::gemm_args a = product(x, m, w, bits, y);
  a.x = x.device.data() + size(first) * size(x.stride) * 2;
  a.batch_invariant = invariant;
  call(bits, a);
  return y.now();
}

struct shape {
  int rows, cols, groups;
};

}  // namespace

TEST_CASE("products with outliers are those of the weights with outliers in place" *
          doctest::skip(!support::has_device())) {
  support::random rng(871);
  constexpr shape shapes[] = {{1, 32, 1},   {19, 96, 3},    {33, 288, 1},  {16, 256, 1},
                              {9, 4128, 1}, {100, 1056, 1}, {7, 16416, 1}, {40, 320, 5}};
  constexpr dtype types[] = {dtype::f32, dtype::f16, dtype::bf16};
  int turn = 0;
  for (const shape s : shapes) {
    const share_of_row share = s.rows == 1 || s.cols == 256 ? everywhere : skewed;
    const mixed_weights w(s.rows, s.cols, s.groups, share, rng);
    for (int bits = 1; bits <= 8; ++bits)
      for (const int m : {1, 1, 2, 3, 8, 16, 17, 64}) {
        const numbers x(turn % 2 == 0 ? dtype::f16 : dtype::bf16, m, s.cols, s.cols + turn % 3 * 8,
                        rng);
        results y(types[turn % 3], m, s.rows, turn % 4, rng);
        bc::gemm_args a = product(x, m, w, bits, y);
        a.batch_invariant = ++turn % 2 == 0;
        const wanted want(x, m, w, bits, !a.batch_invariant);
        call(bits, a);
        CAPTURE(s.rows);
        CAPTURE(s.cols);
        CAPTURE(s.groups);
        CAPTURE(bits);
        CAPTURE(m);
        CAPTURE(a.batch_invariant);
        REQUIRE(faults(
                    y, [&](int t, int r) { return want.sum[size(t) * size(s.rows) + size(r)]; },
                    [&](int t, int r) { return want.room[size(t) * size(s.rows) + size(r)]; }) ==
                "");
      }
  }
}

TEST_CASE("rows full of outliers, more than a block has room for at once" *
          doctest::skip(!support::has_device())) {
  support::random rng(872);
  for (const shape s : {shape{5200, 64, 1}, shape{33, 4096, 1}, shape{17, 131168, 1}}) {
    const mixed_weights w(s.rows, s.cols, 1, s.cols > 65536 ? skewed : everywhere, rng);
    for (const int bits : {3, 4})
      for (const int m : {1, 1, 3, 16, 17}) {
        const numbers x(dtype::f16, m, s.cols, s.cols, rng);
        results y(dtype::f32, m, s.rows, 0, rng);
        bc::gemm_args a = product(x, m, w, bits, y);
        for (const bool invariant : {false, true}) {
          const wanted want(x, m, w, bits, !invariant);
          a.batch_invariant = invariant;
          call(bits, a);
          CAPTURE(s.rows);
          CAPTURE(bits);
          CAPTURE(m);
          CAPTURE(invariant);
          REQUIRE(faults(
                      y, [&](int t, int r) { return want.sum[size(t) * size(s.rows) + size(r)]; },
                      [&](int t, int r) { return want.room[size(t) * size(s.rows) + size(r)]; }) ==
                  "");
        }
      }
  }
}

TEST_CASE("with outliers a token has the same bits in every batch of up to 16 and every run" *
          doctest::skip(!support::has_device())) {
  support::random rng(873);
  for (const shape s : {shape{600, 1056, 1}, shape{48, 4128, 1}, shape{33, 96, 3}}) {
    const mixed_weights w(s.rows, s.cols, s.groups, skewed, rng);
    const numbers x(dtype::f16, 33, s.cols, s.cols, rng);
    for (int bits = 2; bits <= 8; ++bits) {
      CAPTURE(s.rows);
      CAPTURE(bits);
      const std::vector<float> all = run(bits, x, 0, 16, w);
      CHECK(support::same_bits(run(bits, x, 0, 16, w), all));
      for (const int m : {1, 2, 8, 9}) {
        CAPTURE(m);
        const std::vector<float> some = run(bits, x, 16 - m, m, w);
        CHECK(support::same_bits(some, {all.end() - m * s.rows, all.end()}));
      }
      for (const int m : {1, 17, 33})
        CHECK(support::same_bits(run(bits, x, 0, m, w, false), run(bits, x, 0, m, w, false)));
    }
  }
}

TEST_CASE("without outliers nothing changes" * doctest::skip(!support::has_device())) {
  support::random rng(874);
  const mixed_weights none(40, 1056, 1, nowhere, rng);
  CHECK(none.device.view(4).outliers.empty());
  mixed_weights plain(40, 1056, 1, nowhere, rng);
  REQUIRE(plain.device.upload(none.host.planes.view(), none.host.tables, nullptr) == status::ok);
  CHECK(plain.device.view(4).touched_bytes() == none.device.view(4).touched_bytes());
  const numbers x(dtype::f16, 33, 1056, 1056, rng);
  for (int bits = 1; bits <= 8; ++bits)
    for (const int m : {1, 8, 16, 33})
      CHECK(support::same_bits(run(bits, x, 0, m, none, false), run(bits, x, 0, m, plain, false)));
}

TEST_CASE("matrices with and without outliers share a launch" *
          doctest::skip(!support::has_device())) {
  support::random rng(875);
  const mixed_weights q(1000, 544, 1, skewed, rng), k(70, 544, 1, nowhere, rng),
      v(17, 544, 1, even, rng);
  const numbers x(dtype::f16, 33, 544, 544, rng);
  for (const int bits : {2, 4, 5, 8})
    for (const int m : {1, 5, 16, 33})
      for (const bool invariant : {true, false}) {
        results yq(dtype::f32, m, q.rows, 0, rng), yk(dtype::f32, m, k.rows, 0, rng),
            yv(dtype::f32, m, v.rows, 0, rng);
        bc::gemm_args a = product(x, m, k, bits, yk);
        a.matrices[1] = {q.device.view(bits), yq.data()};
        a.matrices[2] = {v.device.view(bits), yv.data()};
        a.count = 3;
        a.y_stride = 0;
        a.batch_invariant = invariant;
        call(bits, a);
        CAPTURE(bits);
        CAPTURE(m);
        CAPTURE(invariant);
        if (m <= 16 && invariant) {
          CHECK(support::same_bits(yq.now(), run(bits, x, 0, m, q)));
          CHECK(support::same_bits(yk.now(), run(bits, x, 0, m, k)));
          CHECK(support::same_bits(yv.now(), run(bits, x, 0, m, v)));
        }
        const mixed_weights* const all[] = {&q, &k, &v};
        results* const got[] = {&yq, &yk, &yv};
        for (int i = 0; i < 3; ++i) {
          const wanted want(x, m, *all[i], bits, !invariant);
          const int rows = all[i]->rows;
          REQUIRE(
              faults(
                  *got[i], [&](int t, int r) { return want.sum[size(t) * size(rows) + size(r)]; },
                  [&](int t, int r) { return want.room[size(t) * size(rows) + size(r)]; }) == "");
        }
      }
}

TEST_CASE("gate and up with outliers make one result" * doctest::skip(!support::has_device())) {
  support::random rng(876);
  const int rows = 2500, cols = 288;
  const mixed_weights gate(rows, cols, 1, even, rng), up(rows, cols, 1, skewed, rng);
  const numbers x(dtype::bf16, 40, cols, cols, rng);
  for (const int bits : {3, 4, 6})
    for (const int m : {1, 2, 16, 40})
      for (const bool invariant : {true, false}) {
        results y(dtype::f32, m, rows, 0, rng);
        bc::gemm_args a = product(x, m, gate, bits, y);
        a.matrices[1].w = up.device.view(bits);
        a.count = 2;
        a.epilogue = bc::gemm_epilogue::swiglu;
        a.batch_invariant = invariant;
        call(bits, a);
        const wanted g(x, m, gate, bits, !invariant), u(x, m, up, bits, !invariant);
        const auto silu = [](double v) { return v / (1 + std::exp(-v)); };
        CAPTURE(bits);
        CAPTURE(m);
        CAPTURE(invariant);
        REQUIRE(faults(
                    y,
                    [&](int t, int r) {
                      const std::size_t i = size(t) * size(rows) + size(r);
                      return silu(g.sum[i]) * u.sum[i];
                    },
                    [&](int t, int r) {
                      const std::size_t i = size(t) * size(rows) + size(r);
                      // The slope of silu is below 1.1.
                      return 1.1 * g.room[i] * (std::fabs(u.sum[i]) + u.room[i]) +
                             std::fabs(g.sum[i]) * u.room[i] +
                             std::fabs(g.sum[i] * u.sum[i]) * 0x1p-20;
                    }) == "");
      }
}

TEST_CASE("hundreds of tokens with outliers" * doctest::skip(!support::has_device())) {
  support::random rng(877);
  const mixed_weights w(50, 288, 1, skewed, rng);
  for (const int m : {65, 130, 600}) {
    const numbers x(dtype::bf16, m, 288, 296, rng);
    results y(dtype::f16, m, w.rows, 6, rng);
    const wanted want(x, m, w, 4);
    bc::gemm_args a = product(x, m, w, 4, y);
    call(4, a);
    CAPTURE(m);
    CHECK(faults(
              y, [&](int t, int r) { return want.sum[size(t) * size(w.rows) + size(r)]; },
              [&](int t, int r) { return want.room[size(t) * size(w.rows) + size(r)]; }) == "");
  }
}

TEST_CASE("gemv adds outliers without scratch" * doctest::skip(!support::has_device())) {
  support::random rng(878);
  const mixed_weights w(2200, 544, 1, skewed, rng);
  const numbers x(dtype::f16, 1, 544, 544, rng);
  results y(dtype::f32, 1, w.rows, 0, rng);
  const auto* in = reinterpret_cast<const __half*>(x.device.data());
  const auto check = [&](int bits) {
    const wanted want(x, 1, w, bits, true);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CAPTURE(bits);
    CHECK(faults(
              y, [&](int, int r) { return want.sum[size(r)]; },
              [&](int, int r) { return want.room[size(r)]; }) == "");
  };
  auto* out = reinterpret_cast<float*>(y.data());
  REQUIRE(gemv_at<4>(w.device.view(4), in, out, nullptr) == status::ok);
  check(4);
  REQUIRE(gemv_at<7>(w.device.view(7), in, out, nullptr) == status::ok);
  check(7);
}

TEST_CASE("weights come back with outliers in place" * doctest::skip(!support::has_device())) {
  support::random rng(879);
  for (const shape s : {shape{17, 96, 3}, shape{40, 1056, 1}, shape{16, 16416, 1}}) {
    const mixed_weights w(s.rows, s.cols, s.groups, skewed, rng);
    const sparse_view o = w.outliers.view();
    for (const int bits : {2, 5})
      for (const dtype type : {dtype::f16, dtype::bf16, dtype::f32})
        for (const int begin : {0, 16}) {
          const int count = begin == 0 ? std::min(s.rows, 21) : s.rows - 16;
          if (count < 1) continue;
          numbers out(type, count, s.cols, s.cols);
          out.upload();
          const auto view = w.device.view(bits);
          const status done =
              bits == 2
                  ? bc::dequantize<2>(view, out.device.data(), type, begin, count, 0, nullptr)
                  : bc::dequantize<5>(view, out.device.data(), type, begin, count, 0, nullptr);
          REQUIRE(done == status::ok);
          const std::vector<float> got = out.download();
          int wrong = 0;
          for (int r = 0; r < count; ++r) {
            std::vector<float> want(size(s.cols));
            for (int c = 0; c < s.cols; ++c)
              want[size(c)] = static_cast<float>(w.quantized(bits, begin + r, c));
            for (int i = o.begin(begin + r); i < o.end(begin + r); ++i)
              want[size(o.columns()[i])] = to_float(o.values()[i]);
            for (int c = 0; c < s.cols; ++c)
              wrong += !support::same_bits(got[size(r) * size(s.cols) + size(c)],
                                           numbers::rounded(type, want[size(c)]));
          }
          CAPTURE(s.cols);
          CAPTURE(bits);
          CAPTURE(begin);
          CHECK(wrong == 0);
        }
  }
}

TEST_CASE("packed outliers are runs of one row, group and span with what kernels need of each") {
  support::random rng(880);
  const support::quantized host(18, 131072, 3, 2, rng);
  std::vector<std::int32_t> offsets(19, 0), columns;
  std::vector<bitladder::fp16_t> values;
  for (int c = 65500; c < 65570; ++c) columns.push_back(c);
  for (int c = 0; c < 70; ++c) values.push_back(bitladder::to_fp16(static_cast<float>(c)));
  for (int r = 17; r <= 18; ++r) offsets[size(r)] = r == 17 ? 0 : 70;
  const sparse_matrix outliers(18, 131072, offsets, columns, values);
  const bc::packed_outliers p = bc::pack_outliers(outliers.view(), host.planes.view(), host.tables);
  // 65500 .. 65531, .. 65535 where group and span end, .. 65567, .. 65569.
  REQUIRE(p.entries.size() == 4 * 32);
  REQUIRE(p.offsets.size() == 33);
  CHECK(p.offsets[17] == 0);
  CHECK(p.offsets[18] == 4);
  CHECK(p.offsets[32] == 4);
  const int first[] = {65500, 65532, 65536, 65568}, count[] = {32, 4, 32, 2};
  for (int i = 0; i < 4; ++i) {
    CAPTURE(i);
    for (int bits = 1; bits <= 3; ++bits) {
      const auto& heads = p.heads[size(bits - 1)];
      REQUIRE(heads.size() == 4);
      CHECK((heads[size(i)] & 31) + 1 == static_cast<std::uint32_t>(count[i]));
      CHECK((heads[size(i)] >> 5 & 2047) == static_cast<std::uint32_t>(first[i] / 65536));
      const auto base =
          host.tables[bits].table(17, i / 2)[host.planes.view().code(17, first[i], bits)];
      CHECK((heads[size(i)] >> 16) == base.bits);
    }
    CHECK(p.heads[3].empty());
    for (int k = 0; k < 32; ++k) {
      const int col = first[i] + k;
      const std::uint32_t want =
          k < count[i] ? static_cast<std::uint32_t>(values[size(col - 65500)].bits) << 16 |
                             static_cast<std::uint32_t>(col % 65536)
                       : 0;
      CHECK(p.entries[size(32 * i + k)] == want);
    }
  }
}

TEST_CASE("outliers that do not belong to the planes are refused" *
          doctest::skip(!support::has_device())) {
  support::random rng(881);
  const support::quantized host(4, 64, 8, 1, rng);
  bc::packed_weights w;
  const auto upload = [&](const sparse_view& o) {
    return w.upload(host.planes.view(), host.tables, o, nullptr);
  };
  const bitladder::fp16_t value = bitladder::to_fp16(1.f);
  CHECK(upload(sparse_matrix(4, 96, {0, 1, 1, 1, 1}, {5}, {value}).view()) ==
        status::shape_mismatch);
  CHECK(upload(sparse_matrix(3, 64, {0, 1, 1, 1}, {5}, {value}).view()) == status::shape_mismatch);
  const std::int32_t offsets[] = {0, 1, 1, 1, 1}, outside = 64;
  CHECK(upload({offsets, &outside, &value, 4, 64}) == status::bad_file);
  int other = 1;  // a column with another code
  while (host.codes[size(other)] == host.codes[0]) ++other;
  CHECK(upload(sparse_matrix(4, 64, {0, 2, 2, 2, 2}, {0, other}, {value, value}).view()) ==
        status::bad_file);
  CHECK(upload(sparse_matrix(4, 64, {0, 1, 1, 1, 1}, {63}, {value}).view()) == status::ok);
  CHECK(w.view(3).outliers.runs == 1);
  CHECK(w.view(3).touched_bytes() == 4 * (64 * 3 / 8 + 8 * 2) + 128 + 4 + 5 * 4);
  CHECK(upload(sparse_view()) == status::ok);
  CHECK(w.view(3).outliers.empty());
}
