// SPDX-License-Identifier: MIT
// The steps of a forward pass on a card against plain loops in double over the same inputs. Bounds
// are those of the roundings: results in fp16 carry 2^-11 of themselves, sums in float a few times
// 2^-24 of what they add. Seeds: 171 and on.
#include <bitladder/cuda/buffer.cuh>

#include <llama/cuda/operations.cuh>
#include <support/has_device.hpp>
#include <support/random.hpp>

#include <cuda_bf16.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace {

namespace card = llama::card;
using bitladder::dtype;
using bitladder::status;

/// Device memory with the contents of a vector, and back.
template <class T>
class device {
 public:
  explicit device(const std::vector<T>& v) : size_(v.size()) {
    bitladder::check(b_.allocate(v.size()));
    bitladder::check(b_.upload(v.data(), v.size(), nullptr));
    bitladder::check(bitladder::cuda::call_status(cudaStreamSynchronize(nullptr)));
  }
  explicit device(std::size_t size) : device(std::vector<T>(size)) {}
  T* get() { return b_.data(); }
  std::vector<T> read() {
    std::vector<T> v(size_);
    bitladder::check(b_.download(v.data(), size_, nullptr));
    bitladder::check(bitladder::cuda::call_status(cudaStreamSynchronize(nullptr)));
    return v;
  }

 private:
  bitladder::cuda::buffer<T> b_;
  std::size_t size_;
};

template <class T>
T narrow(double x) {
  return T(static_cast<float>(x));
}
double wide(float x) { return static_cast<double>(x); }
double wide(__half x) { return static_cast<double>(__half2float(x)); }
double wide(__nv_bfloat16 x) { return static_cast<double>(__bfloat162float(x)); }

template <class T>
std::vector<T> normals(std::size_t count, std::uint64_t seed, double scale = 1) {
  support::random random(seed);
  std::vector<T> v;
  v.reserve(count);
  for (std::size_t i = 0; i < count; ++i) v.push_back(narrow<T>(random.normal() * scale));
  return v;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T>
std::vector<T> row_of(const std::vector<T>& v, std::size_t row, std::size_t width) {
  return {v.begin() + static_cast<std::ptrdiff_t>(row * width),
          v.begin() + static_cast<std::ptrdiff_t>((row + 1) * width)};
}

/// Both ways of launching: with and without programmatic dependent launch.
template <class F>
void both(F&& f) {
  for (bool pdl : {false, true}) {
    CAPTURE(pdl);
    f(pdl);
  }
}

/// Largest |a - b| - bound over the elements; negative if all are within.
template <class T>
double beyond(const std::vector<T>& a, const std::vector<double>& b, double relative,
              double absolute) {
  REQUIRE(a.size() == b.size());
  double worst = -1;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double apart = std::fabs(wide(a[i]) - b[i]);
    worst =
        std::max(worst, std::isnan(apart) ? 1e30 : apart - relative * std::fabs(b[i]) - absolute);
  }
  return worst;
}

constexpr double half_step = 0x1p-11;

/// A cache filled with random keys and values up to each slot's length, zeros beyond.
struct test_cache {
  card::cache_view view;
  std::vector<__half> host;

  test_cache(int layers, int slots, int kv_heads, int capacity, int head_dim)
      : view{nullptr, layers, slots, kv_heads, capacity, head_dim}, host(view.size()) {}
  /// Fills positions below `length` of a slot in all layers.
  void fill(int slot, int length, std::uint64_t seed) {
    support::random random(seed);
    for (int l = 0; l < view.layers; ++l)
      for (int h = 0; h < view.kv_heads; ++h)
        for (int p = 0; p < length; ++p)
          for (int c = 0; c < view.head_dim; ++c) {
            at(view.keys(l, slot, h), p, c) = narrow<__half>(random.normal());
            at(view.values(l, slot, h), p, c) = narrow<__half>(random.normal());
          }
  }
  __half& at(const __half* head, int position, int column) {
    return host[static_cast<std::size_t>(head - view.data) +
                static_cast<std::size_t>(position * view.row() + column)];
  }
};

struct test_rope {
  int pairs;
  std::vector<float> cosines, sines;

  test_rope(int positions, int pairs_of_head) : pairs(pairs_of_head) {
    for (int p = 0; p < positions; ++p)
      for (int i = 0; i < pairs; ++i) {
        const double angle = p * std::pow(100.0, -static_cast<double>(i) / std::max(pairs, 1));
        cosines.push_back(static_cast<float>(std::cos(angle)));
        sines.push_back(static_cast<float>(std::sin(angle)));
      }
    cosines.push_back(0);  // never empty
    sines.push_back(0);
  }
  /// One head turned and rounded to fp16, as it is stored.
  std::vector<__half> turned(const __half* x, int head_dim, int position) const {
    std::vector<__half> out(x, x + head_dim);
    for (int i = 0; i < pairs; ++i) {
      const auto at = static_cast<std::size_t>(position * pairs + i);
      const float a = __half2float(x[i]), b = __half2float(x[i + pairs]);
      const float c = cosines[at], s = sines[at];
      out[static_cast<std::size_t>(i)] = __float2half_rn(std::fmaf(a, c, -(b * s)));
      out[static_cast<std::size_t>(i + pairs)] = __float2half_rn(std::fmaf(b, c, a * s));
    }
    return out;
  }
};

/// Attention of one query of head_dim columns over [begin, end) of a head of the cache.
std::vector<double> attend(test_cache& cache, int layer, int slot, int kv_head,
                           const std::vector<__half>& query, int begin, int end, double scale) {
  const int d = cache.view.head_dim;
  std::vector<double> score, out(static_cast<std::size_t>(d));
  double max = -1e300, total = 0;
  for (int p = begin; p < end; ++p) {
    double dot = 0;
    for (int c = 0; c < d; ++c)
      dot += wide(query[static_cast<std::size_t>(c)]) *
             wide(cache.at(cache.view.keys(layer, slot, kv_head), p, c));
    score.push_back(dot * scale);
    max = std::max(max, score.back());
  }
  for (double& s : score) total += s = std::exp(s - max);
  for (int p = begin; p < end; ++p)
    for (int c = 0; c < d; ++c)
      out[static_cast<std::size_t>(c)] +=
          score[static_cast<std::size_t>(p - begin)] / total *
          wide(cache.at(cache.view.values(layer, slot, kv_head), p, c));
  return out;
}

}  // namespace

TEST_CASE("an embedding is a row of the table, and tokens outside it give zeros" *
          doctest::skip(!support::has_device())) {
  const int width = 77, rows = 19;
  const std::vector<int> tokens = {3, 18, 0, 19, -1};
  device<int> t(tokens);
  const auto check_type = [&](auto sample, dtype type) {
    using T = decltype(sample);
    const std::vector<T> table = normals<T>(static_cast<std::size_t>(rows * width), 171);
    device<T> d(table);
    both([&](bool pdl) {
      device<float> x(std::vector<float>(5 * width, 7.f));
      REQUIRE(card::embed(d.get(), type, rows, t.get(), 5, width, x.get(), nullptr, pdl) ==
              status::ok);
      const std::vector<float> got = x.read();
      for (int i = 0; i < 5; ++i)
        for (int c = 0; c < width; ++c) {
          const bool here = tokens[i] >= 0 && tokens[i] < rows;
          const double expected =
              here ? wide(table[static_cast<std::size_t>(tokens[i] * width + c)]) : 0;
          REQUIRE(static_cast<double>(got[static_cast<std::size_t>(i * width + c)]) == expected);
        }
      // As positions, two rows on, they are added.
      REQUIRE(card::add_positions(d.get(), type, rows, t.get(), 2, 5, width, x.get(), nullptr,
                                  pdl) == status::ok);
      const std::vector<float> sum = x.read();
      for (int c = 0; c < width; ++c) {
        const auto at = static_cast<std::size_t>(c);
        REQUIRE(sum[at] == got[at] + static_cast<float>(wide(table[5 * width + at])));
        REQUIRE(sum[at + width] == got[at + width]);
      }
    });
  };
  check_type(float{}, dtype::f32);
  check_type(__half{}, dtype::f16);
  check_type(__nv_bfloat16{}, dtype::bf16);
}

TEST_CASE("norms are those of double, for every width, alone as in a batch" *
          doctest::skip(!support::has_device())) {
  for (int width : {1, 7, 64, 576, 2048, 2052, 4096, 5000, 8192, 8196, 11000}) {
    CAPTURE(width);
    const auto n = static_cast<std::size_t>(width);
    std::vector<float> x = normals<float>(3 * n, 172, 3);
    for (std::size_t i = 0; i < n; ++i) x[n + i] += 50;  // a mean that costs digits
    const std::vector<float> weight = normals<float>(n, 173), bias = normals<float>(n, 174);
    device<float> dx(x), dw(weight), db(bias);
    for (llama::norm_kind kind : {llama::norm_kind::rms, llama::norm_kind::layer}) {
      const bool layer = kind == llama::norm_kind::layer;
      std::vector<double> expected(3 * n);
      for (std::size_t r = 0; r < 3; ++r) {
        double mean = 0, squares = 0;
        if (layer)
          for (std::size_t i = 0; i < n; ++i) mean += wide(x[r * n + i]) / width;
        for (std::size_t i = 0; i < n; ++i) squares += std::pow(wide(x[r * n + i]) - mean, 2);
        const double scale = 1 / std::sqrt(squares / width + 1e-5);
        for (std::size_t i = 0; i < n; ++i)
          expected[r * n + i] =
              (wide(x[r * n + i]) - mean) * scale * wide(weight[i]) + (layer ? wide(bias[i]) : 0);
      }
      both([&](bool pdl) {
        device<__half> y(3 * n);
        device<float> f(3 * n), lone(n);
        const float* b = layer ? db.get() : nullptr;
        REQUIRE(card::norm(kind, dx.get(), dw.get(), b, y.get(), f.get(), 3, width, 1e-5f, nullptr,
                           pdl) == status::ok);
        REQUIRE(card::norm(kind, dx.get(), dw.get(), b, nullptr, lone.get(), 1, width, 1e-5f,
                           nullptr, pdl) == status::ok);
        CHECK(beyond(f.read(), expected, 4e-6, width < 8 ? 2e-3 : 4e-5) <= 0);
        CHECK(beyond(y.read(), expected, half_step * 1.01, width < 8 ? 2e-3 : 4e-5) <= 0);
        CHECK(same_bits(lone.read(), row_of(f.read(), 0, n)));
      });
    }
  }
}

TEST_CASE("activations, products of halves and sums are those of double" *
          doctest::skip(!support::has_device())) {
  const int m = 3, width = 1003;
  const std::size_t n = m * width;
  const std::vector<__half> gate = normals<__half>(n, 175, 4), up = normals<__half>(n, 176);
  const auto silu = [](double x) { return x / (1 + std::exp(-x)); };
  both([&](bool pdl) {
    for (auto f : {llama::activation_kind::silu, llama::activation_kind::relu,
                   llama::activation_kind::gelu_tanh}) {
      std::vector<double> expected;
      for (__half h : gate) {
        const double x = wide(h);
        expected.push_back(
            f == llama::activation_kind::silu ? silu(x)
            : f == llama::activation_kind::relu
                ? std::max(x, 0.0)
                : x / (1 + std::exp(-1.5957691216057308 * (x + 0.044715 * x * x * x))));
      }
      device<__half> x(gate);
      REQUIRE(card::activate(f, x.get(), n, nullptr, pdl) == status::ok);
      CHECK(beyond(x.read(), expected, half_step * 1.02, 1e-6) <= 0);
    }
    // Rows of gate and up side by side, as a linear that makes both leaves them.
    std::vector<__half> fused;
    std::vector<double> expected;
    for (std::size_t r = 0; r < m; ++r)
      for (const auto* part : {&gate, &up})
        for (std::size_t i = 0; i < width; ++i) fused.push_back((*part)[r * width + i]);
    for (std::size_t i = 0; i < n; ++i) expected.push_back(silu(wide(gate[i])) * wide(up[i]));
    device<__half> g(fused), y(n);
    REQUIRE(card::silu_multiply(g.get(), g.get() + width, 2 * width, m, width, y.get(), nullptr,
                                pdl) == status::ok);
    CHECK(beyond(y.read(), expected, half_step * 1.02, 1e-6) <= 0);
    device<float> x(normals<float>(n, 177));
    const std::vector<float> before = x.read();
    device<__half> u(up);
    REQUIRE(card::add(u.get(), x.get(), n, nullptr, pdl) == status::ok);
    const std::vector<float> after = x.read();
    for (std::size_t i = 0; i < n; ++i) REQUIRE(after[i] == before[i] + __half2float(up[i]));
  });
}

TEST_CASE("a prompt's keys are turned and stored where they belong" *
          doctest::skip(!support::has_device())) {
  struct shape {
    int heads, kv_heads, head_dim, pairs;
  };
  for (const shape& s : {shape{4, 2, 16, 8}, shape{6, 2, 64, 16}, shape{2, 2, 128, 64},
                         shape{3, 1, 6, 3}, shape{2, 1, 8, 0}}) {
    CAPTURE(s.head_dim);
    const int m = 5, start = 3, layer = 1, slot = 1, d = s.head_dim;
    test_cache cache(2, 2, s.kv_heads, 9, d);
    const test_rope rope(9, s.pairs);
    // q, k and v as one linear leaves them.
    const int stride = (s.heads + 2 * s.kv_heads) * d;
    const std::vector<__half> fused = normals<__half>(static_cast<std::size_t>(m * stride), 178);
    both([&](bool pdl) {
      device<__half> in(fused), data(cache.host.size()),
          q_out(static_cast<std::size_t>(m * s.heads * d));
      device<float> cosines(rope.cosines), sines(rope.sines);
      card::cache_view view = cache.view;
      view.data = data.get();
      REQUIRE(card::rope_store(in.get(), in.get() + s.heads * d,
                               in.get() + (s.heads + s.kv_heads) * d, stride, stride, m, s.heads,
                               {cosines.get(), sines.get(), s.pairs}, view, layer, slot, start,
                               q_out.get(), nullptr, pdl) == status::ok);
      test_cache expected = cache;
      std::vector<__half> q;
      for (int i = 0; i < m; ++i) {
        const __half* row = fused.data() + static_cast<std::ptrdiff_t>(i * stride);
        for (int h = 0; h < s.heads; ++h)
          for (__half x : rope.turned(row + h * d, d, start + i)) q.push_back(x);
        for (int h = 0; h < s.kv_heads; ++h) {
          const std::vector<__half> k = rope.turned(row + (s.heads + h) * d, d, start + i);
          for (int c = 0; c < d; ++c) {
            expected.at(expected.view.keys(layer, slot, h), start + i, c) =
                k[static_cast<std::size_t>(c)];
            expected.at(expected.view.values(layer, slot, h), start + i, c) =
                row[(s.heads + s.kv_heads + h) * d + c];
          }
        }
      }
      CHECK(same_bits(data.read(), expected.host));
      CHECK(same_bits(q_out.read(), q));
    });
  }
}

TEST_CASE("a token attends as in double, stores its key and value, and is the same in any batch" *
          doctest::skip(!support::has_device())) {
  struct shape {
    int heads, kv_heads, head_dim, pairs, window;
  };
  for (const shape& s :
       {shape{2, 2, 128, 64, 0}, shape{3, 1, 64, 32, 0}, shape{8, 2, 128, 64, 100},
        shape{7, 1, 64, 16, 0}, shape{5, 1, 16, 8, 3}, shape{2, 1, 6, 3, 0},
        shape{4, 2, 80, 0, 700}, shape{3, 1, 256, 128, 0}, shape{1, 1, 200, 100, 0},
        // So many heads that a batch of them has fewer blocks each than a row alone.
        shape{5, 5, 128, 64, 0}, shape{16, 16, 16, 8, 0}, shape{40, 40, 8, 4, 0}}) {
    CAPTURE(s.head_dim);
    CAPTURE(s.heads);
    const int d = s.head_dim, capacity = 1500, layer = 1, m = 8;
    // Row 2 is idle, row 5 beyond the capacity; rows and slots are not in the same order.
    const std::vector<int> positions = {0, 1499, -1, 63, 64, 1500, 700, 129};
    const std::vector<int> slots = {3, 1, 2, 0, 7, 5, 6, 4};
    test_cache cache(2, m, s.kv_heads, capacity, d);
    for (int i = 0; i < m; ++i)
      if (i != 2 && i != 5) cache.fill(slots[i], positions[i], 179 + static_cast<std::uint64_t>(i));
    const test_rope rope(capacity, s.pairs);
    const int stride = (s.heads + 2 * s.kv_heads) * d;
    const std::vector<__half> fused = normals<__half>(static_cast<std::size_t>(m * stride), 190);
    const auto n = static_cast<std::size_t>(s.heads * d);
    const float scale = 1 / std::sqrt(static_cast<float>(d));

    test_cache expected = cache;
    std::vector<double> outputs(m * n);
    for (int i = 0; i < m; ++i) {
      const int p = positions[i];
      if (p < 0 || p >= capacity) continue;
      const __half* row = fused.data() + static_cast<std::ptrdiff_t>(i * stride);
      for (int h = 0; h < s.kv_heads; ++h) {
        const std::vector<__half> k = rope.turned(row + (s.heads + h) * d, d, p);
        for (int c = 0; c < d; ++c) {
          expected.at(expected.view.keys(layer, slots[i], h), p, c) =
              k[static_cast<std::size_t>(c)];
          expected.at(expected.view.values(layer, slots[i], h), p, c) =
              row[(s.heads + s.kv_heads + h) * d + c];
        }
      }
      for (int h = 0; h < s.heads; ++h) {
        const int begin = s.window > 0 ? std::max(0, p + 1 - s.window) : 0;
        const std::vector<double> out =
            attend(expected, layer, slots[i], h / (s.heads / s.kv_heads),
                   rope.turned(row + h * d, d, p), begin, p + 1, wide(scale));
        std::copy(
            out.begin(), out.end(),
            outputs.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(i) * n) + h * d);
      }
    }

    both([&](bool pdl) {
      device<__half> in(fused), data(cache.host), out(std::vector<__half>(m * n, __half(9.f)));
      device<float> cosines(rope.cosines), sines(rope.sines);
      device<int> where(positions), which(slots);
      device<float> scratch(card::decode_attention_scratch_bytes(m, s.heads, d) / sizeof(float));
      card::decode_attention_args a;
      a.q = in.get();
      a.k = in.get() + s.heads * d;
      a.v = in.get() + (s.heads + s.kv_heads) * d;
      a.q_stride = a.kv_stride = stride;
      a.positions = where.get();
      a.slots = which.get();
      a.m = m;
      a.heads = s.heads;
      a.rope = {cosines.get(), sines.get(), s.pairs};
      a.cache = cache.view;
      a.cache.data = data.get();
      a.layer = layer;
      a.window = s.window;
      a.scale = scale;
      a.out = out.get();
      a.scratch = scratch.get();
      REQUIRE(card::decode_attention(a, nullptr, pdl) == status::ok);
      const std::vector<__half> got = out.read();
      CHECK(beyond(got, outputs, half_step * 1.01, 2e-6) <= 0);
      CHECK(same_bits(data.read(), expected.host));
      // Again, each alone: the same bits, and nothing left in the scratch.
      for (int i = 0; i < m; ++i) {
        a.m = 1;
        a.q = in.get() + i * stride;
        a.k = a.q + s.heads * d;
        a.v = a.k + s.kv_heads * d;
        a.positions = where.get() + i;
        a.slots = which.get() + i;
        a.out = out.get();
        REQUIRE(card::decode_attention(a, nullptr, pdl) == status::ok);
        CHECK(same_bits(row_of(out.read(), 0, n), row_of(got, static_cast<std::size_t>(i), n)));
      }
    });
  }
}

TEST_CASE("a prompt attends as in double, however it is cut" *
          doctest::skip(!support::has_device())) {
  struct shape {
    int heads, kv_heads, head_dim, window;
  };
  for (const shape& s :
       {shape{2, 1, 128, 0}, shape{3, 3, 64, 0}, shape{4, 2, 128, 70}, shape{2, 1, 6, 0},
        shape{2, 2, 80, 5}, shape{1, 1, 7, 0}, shape{2, 1, 256, 0}, shape{1, 1, 200, 90}}) {
    CAPTURE(s.head_dim);
    CAPTURE(s.window);
    const int d = s.head_dim, m = 150, start = 75, layer = 0, slot = 1;
    test_cache cache(1, 2, s.kv_heads, 300, d);
    cache.fill(0, 300, 191);
    cache.fill(slot, start + m, 192);
    const auto n = static_cast<std::size_t>(s.heads * d);
    const std::vector<__half> q = normals<__half>(m * n, 193);
    const float scale = 1 / std::sqrt(static_cast<float>(d));
    std::vector<double> expected;
    for (int i = 0; i < m; ++i)
      for (int h = 0; h < s.heads; ++h) {
        const auto at = q.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(i) * n);
        const int begin = s.window > 0 ? std::max(0, start + i + 1 - s.window) : 0;
        const std::vector<double> out = attend(cache, layer, slot, h / (s.heads / s.kv_heads),
                                               std::vector<__half>(at + h * d, at + (h + 1) * d),
                                               begin, start + i + 1, wide(scale));
        expected.insert(expected.end(), out.begin(), out.end());
      }
    both([&](bool pdl) {
      device<__half> dq(q), data(cache.host), out(m * n), parts(m * n);
      card::cache_view view = cache.view;
      view.data = data.get();
      REQUIRE(card::prefill_attention(dq.get(), m, s.heads, view, layer, slot, start, s.window,
                                      scale, out.get(), nullptr, pdl) == status::ok);
      // Weights of the values are rounded to fp16: 2^-11 of sums of magnitudes of about 1.
      CHECK(beyond(out.read(), expected, half_step, 1e-3) <= 0);
      // The pieces begin at multiples of 8 rows, where the pointers are aligned for every width.
      for (int begin : {0, 16, 80}) {
        const int end = begin == 0 ? 16 : begin == 16 ? 80 : m;
        const auto from = static_cast<std::size_t>(begin) * n;
        REQUIRE(card::prefill_attention(dq.get() + from, end - begin, s.heads, view, layer, slot,
                                        start + begin, s.window, scale, parts.get() + from, nullptr,
                                        pdl) == status::ok);
      }
      CHECK(same_bits(out.read(), parts.read()));
    });
  }
}

namespace {

template <class W, class Y>
void check_dense(dtype type, dtype y_type, int rows, int cols, bool swiglu) {
  CAPTURE(rows);
  CAPTURE(cols);
  CAPTURE(swiglu);
  const int m = 16, count = swiglu ? 2 : 3;
  const auto n = static_cast<std::size_t>(cols);
  const std::vector<__half> x = normals<__half>(m * n, 194);
  device<__half> dx(x);
  std::vector<device<W>> weights;
  std::vector<device<Y>> biases;
  std::vector<std::vector<double>> sums;
  std::vector<int> sizes;
  for (int k = 0; k < count; ++k) {
    const int these = swiglu || k == 0 ? rows : rows / (k + 1) + 1;
    const auto r_count = static_cast<std::size_t>(these);
    sizes.push_back(these);
    const auto seed = static_cast<std::uint64_t>(195 + k);
    const std::vector<W> w = normals<W>(r_count * n, seed, 1 / std::sqrt(cols));
    const std::vector<Y> b = normals<Y>(r_count, seed + 10);
    weights.emplace_back(w);
    biases.emplace_back(b);
    std::vector<double> y(m * r_count);
    for (std::size_t t = 0; t < m; ++t)
      for (std::size_t r = 0; r < r_count; ++r) {
        double sum = wide(b[r]);
        for (std::size_t c = 0; c < n; ++c) sum += wide(w[r * n + c]) * wide(x[t * n + c]);
        y[t * r_count + r] = sum;
      }
    sums.push_back(y);
  }
  if (swiglu)
    for (std::size_t i = 0; i < sums[0].size(); ++i)
      sums[0][i] = sums[0][i] / (1 + std::exp(-sums[0][i])) * sums[1][i];
  both([&](bool pdl) {
    std::vector<Y> first;
    for (int tokens : {16, 1, 3, 8, 9}) {
      CAPTURE(tokens);
      card::dense_few_args a;
      a.count = count;
      a.type = type;
      a.y_type = y_type;
      a.cols = cols;
      a.x = dx.get();
      a.m = tokens;
      a.swiglu = swiglu;
      std::vector<device<Y>> results;
      for (int k = 0; k < count; ++k) {
        results.emplace_back(static_cast<std::size_t>(tokens * sizes[static_cast<std::size_t>(k)]));
        const auto at = static_cast<std::size_t>(k);
        a.matrices[k] = {weights[at].get(), sizes[at], results[at].get(), biases[at].get(),
                         nullptr};
      }
      // The first has what is there added to it.
      const std::vector<Y> before = normals<Y>(static_cast<std::size_t>(tokens * rows), 199);
      if (!swiglu) {
        results[0] = device<Y>(before);
        a.matrices[0].y = results[0].get();
        a.matrices[0].residual = results[0].get();
      }
      REQUIRE(card::dense_gemm_few(a, nullptr, pdl) == status::ok);
      const double step = y_type == dtype::f16 ? half_step * 1.05 : 0;
      for (int k = 0; k < (swiglu ? 1 : count); ++k) {
        const auto at = static_cast<std::size_t>(k);
        const auto size = static_cast<std::size_t>(tokens * sizes[at]);
        std::vector<double> expected(sums[at].begin(),
                                     sums[at].begin() + static_cast<std::ptrdiff_t>(size));
        if (k == 0 && !swiglu)
          for (std::size_t i = 0; i < size; ++i) expected[i] += wide(before[i]);
        CHECK(beyond(results[at].read(), expected, step + 2e-6, 3e-5) <= 0);
      }
      const std::vector<Y> got = results[0].read();
      if (tokens == 16)
        first = got;
      else
        CHECK(same_bits(got,
                        std::vector<Y>(first.begin(),
                                       first.begin() + static_cast<std::ptrdiff_t>(got.size()))));
    }
  });
}

}  // namespace

TEST_CASE("products of unquantized weights are those of double, for few tokens as for many" *
          doctest::skip(!support::has_device())) {
  for (bool swiglu : {false, true}) {
    check_dense<__half, float>(dtype::f16, dtype::f32, 33, 4096, swiglu);
    check_dense<__half, __half>(dtype::f16, dtype::f16, 20, 1000, swiglu);
    check_dense<__half, float>(dtype::f16, dtype::f32, 5, 8, swiglu);
    check_dense<__half, float>(dtype::f16, dtype::f32, 17, 77, swiglu);
    check_dense<__nv_bfloat16, float>(dtype::bf16, dtype::f32, 40, 1032, swiglu);
    check_dense<__nv_bfloat16, __half>(dtype::bf16, dtype::f16, 16, 30, swiglu);
    check_dense<float, float>(dtype::f32, dtype::f32, 19, 200, swiglu);
    check_dense<float, __half>(dtype::f32, dtype::f16, 3, 65, swiglu);
  }
}

TEST_CASE("the first of the largest logits is the next token, and the sequences move on" *
          doctest::skip(!support::has_device())) {
  for (int vocabulary : {1, 5, 4096, 32000, 50001}) {
    CAPTURE(vocabulary);
    const int m = 5, stride = vocabulary + 3;
    const auto n = static_cast<std::size_t>(vocabulary);
    std::vector<float> logits = normals<float>(static_cast<std::size_t>(m * stride), 200);
    const auto at = [&](int row, std::size_t i) -> float& {
      return logits[static_cast<std::size_t>(row * stride) + i];
    };
    for (int r = 0; r < m; ++r) at(r, n) = 1e9f;  // between the rows
    std::vector<int> best(m, 0);
    for (std::size_t i = 0; i < n; ++i) {
      at(3, i) = i % 2 == 1 ? -2.f : -std::numeric_limits<float>::infinity();
      at(4, i) = std::nanf("");
    }
    best[3] = vocabulary > 1 ? 1 : 0;
    if (vocabulary > 3) {
      at(1, n - 1) = at(1, n / 2) = 100;  // the first of two
      at(4, 3) = -5;                      // among NaN
      best[4] = 3;
    }
    for (int r : {0, 1})
      best[static_cast<std::size_t>(r)] =
          static_cast<int>(std::max_element(&at(r, 0), &at(r, 0) + vocabulary) - &at(r, 0));
    device<float> l(logits);
    both([&](bool pdl) {
      device<int> tokens(std::vector<int>(m, 77)), positions(std::vector<int>{4, 0, -1, 9, 2});
      device<int> log(std::vector<int>(m * 3, -9)), counts(std::vector<int>{0, 1, 0, 2, 3});
      device<char> scratch(card::argmax_scratch_bytes(m));
      for (int round = 0; round < 2; ++round)
        REQUIRE(card::argmax_advance(l.get(), stride, m, vocabulary, tokens.get(), positions.get(),
                                     log.get(), 3, counts.get(), scratch.get(), nullptr,
                                     pdl) == status::ok);
      CHECK(tokens.read() == std::vector<int>{best[0], best[1], 77, best[3], best[4]});
      CHECK(positions.read() == std::vector<int>{6, 2, -1, 11, 4});
      CHECK(counts.read() == std::vector<int>{2, 3, 0, 4, 5});
      CHECK(log.read() == std::vector<int>{best[0], best[0], -9, -9, best[1], best[1], -9, -9, -9,
                                           -9, -9, best[3], -9, -9, -9});
      for (char c : scratch.read()) REQUIRE(c == 0);
    });
  }
}

TEST_CASE("bad arguments of the card's operations are told before anything is queued") {
  float f = 0;
  __half h{};
  int i = 0;
  CHECK(card::embed(&f, dtype::i8, 1, &i, 1, 1, &f, nullptr, false) == status::invalid_argument);
  CHECK(card::embed(nullptr, dtype::f32, 1, &i, 1, 1, &f, nullptr, false) ==
        status::invalid_argument);
  CHECK(card::norm(llama::norm_kind::rms, &f, &f, nullptr, nullptr, nullptr, 1, 1, 0.f, nullptr,
                   false) == status::invalid_argument);
  CHECK(card::argmax_advance(&f, 2, 1, 3, &i, &i, nullptr, 0, nullptr, &f, nullptr, false) ==
        status::invalid_argument);
  card::cache_view cache{&h, 1, 1, 2, 4, 8};
  CHECK(card::rope_store(&h, &h, &h, 16, 16, 3, 2, {}, cache, 0, 0, 2, &h, nullptr, false) ==
        status::shape_mismatch);
  CHECK(card::prefill_attention(&h, 1, 3, cache, 0, 0, 0, 0, 1.f, &h, nullptr, false) ==
        status::invalid_argument);
  card::decode_attention_args a;
  CHECK(card::decode_attention(a, nullptr, false) == status::invalid_argument);
  card::dense_few_args d;
  CHECK(card::dense_gemm_few(d, nullptr, false) == status::invalid_argument);
  d.x = reinterpret_cast<const __half*>(64);
  d.cols = 8;
  d.matrices[0] = {reinterpret_cast<const void*>(64), 2, &f, nullptr, nullptr};
  d.m = 17;
  CHECK(card::dense_gemm_few(d, nullptr, false) == status::invalid_argument);
  d.m = 1;
  d.swiglu = true;
  CHECK(card::dense_gemm_few(d, nullptr, false) == status::invalid_argument);
  d.swiglu = false;
  d.matrices[0].weights = reinterpret_cast<const void*>(68);
  CHECK(card::dense_gemm_few(d, nullptr, false) == status::misaligned);
}
