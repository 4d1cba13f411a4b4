// SPDX-License-Identifier: MIT
// The pieces of a backward pass: products against plain sums, row gradients against central
// differences of the same functions in doubles, both instruction sets bit for bit. Seeds: 101 and
// on.
#include <llama/attention_backward.hpp>
#include <llama/backward_math.hpp>
#include <llama/backward_products.hpp>
#include <llama/layer_math.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <vector>

namespace {

using llama::isa;

std::vector<isa> sets() {
  std::vector<isa> all;
  for (isa i : bitladder::cpu::all_isas)
    if (bitladder::cpu::supported(i)) all.push_back(i);
  return all;
}

/// All of a product, however it is cut.
template <class T>
std::vector<float> whole(int rows, int cols, int depth, const llama::factor<float>& a,
                         const llama::factor<T>& b, int threads, isa which) {
  bitladder::thread_pool pool(threads);
  llama::product_room room;
  std::vector<float> c(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols), -1.f);
  llama::product(rows, cols, depth, a, b, room, &pool, which,
                 [&](int row, int col, const float* values, int count) {
                   std::copy_n(values, count, c.data() + row * cols + col);
                 });
  return c;
}

template <class T>
void check_products(const std::function<T(float)>& narrow) {
  support::random random(101);
  const int sizes[][3] = {{1, 1, 1},    {6, 16, 256},  {7, 17, 257},  {48, 256, 100},
                          {49, 259, 3}, {5, 300, 513}, {100, 31, 70}, {13, 15, 1000}};
  for (const auto& size : sizes)
    for (bool left : {false, true})
      for (bool right : {false, true}) {
        const int rows = size[0], cols = size[1], depth = size[2];
        CAPTURE(rows);
        CAPTURE(cols);
        CAPTURE(depth);
        CAPTURE(left);
        CAPTURE(right);
        // Rows of both lie in wider ones.
        const int a_stride = (left ? rows : depth) + 3, b_stride = (right ? depth : cols) + 5;
        const auto a = random.normals(static_cast<std::size_t>((left ? depth : rows) * a_stride));
        const auto wide =
            random.normals(static_cast<std::size_t>((right ? cols : depth) * b_stride));
        std::vector<T> b;
        for (float x : wide) b.push_back(narrow(x));
        const llama::factor<float> fa{a.data(), static_cast<std::size_t>(a_stride), left};
        const llama::factor<T> fb{b.data(), static_cast<std::size_t>(b_stride), right};
        const std::vector<float> c = whole(rows, cols, depth, fa, fb, 1, isa::scalar);
        double worst = 0;
        for (int r = 0; r < rows; ++r)
          for (int col = 0; col < cols; ++col) {
            double sum = 0, size_of_terms = 0;
            for (int k = 0; k < depth; ++k) {
              const auto at = static_cast<std::size_t>(left ? k * a_stride + r : r * a_stride + k);
              const auto bt =
                  static_cast<std::size_t>(right ? col * b_stride + k : k * b_stride + col);
              const double term =
                  static_cast<double>(a[at]) * static_cast<double>(bitladder::to_float(b[bt]));
              sum += term;
              size_of_terms += std::abs(term);
            }
            const double found = static_cast<double>(c[static_cast<std::size_t>(r * cols + col)]);
            worst = std::max(worst, std::abs(found - sum) / size_of_terms);
          }
        // A term meets at most 256 roundings of its chain and one for every block after it.
        CHECK(worst <= (std::min(depth, 256) + depth / 256 + 1) * 0x1p-24);
        for (isa which : sets())
          for (int threads : {1, 3}) CHECK((whole(rows, cols, depth, fa, fb, threads, which) == c));
      }
}

/// The gradient of sum d[i] f(x)[i] by x, by differences.
std::vector<double> differences(const std::vector<float>& x, const std::vector<float>& d,
                                const std::function<std::vector<double>(std::vector<double>)>& f) {
  std::vector<double> gradient;
  const auto value = [&](const std::vector<double>& at) {
    const std::vector<double> y = f(at);
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += static_cast<double>(d[i]) * y[i];
    return sum;
  };
  for (std::size_t i = 0; i < x.size(); ++i) {
    std::vector<double> at(x.begin(), x.end());
    const double step = 1e-5 * (1 + std::abs(at[i]));
    at[i] += step;
    const double above = value(at);
    at[i] -= 2 * step;
    gradient.push_back((above - value(at)) / (2 * step));
  }
  return gradient;
}

void check_near(const std::vector<float>& found, const std::vector<double>& expected,
                double tolerance) {
  REQUIRE(found.size() == expected.size());
  double largest = 0;
  for (double e : expected) largest = std::max(largest, std::abs(e));
  for (std::size_t i = 0; i < found.size(); ++i)
    CHECK(std::abs(static_cast<double>(found[i]) - expected[i]) <=
          tolerance * (largest + std::abs(expected[i])));
}

std::vector<double> softmax(const std::vector<double>& x) {
  double sum = 0;
  std::vector<double> p;
  for (double v : x) p.push_back(std::exp(v));
  for (double v : p) sum += v;
  for (double& v : p) v /= sum;
  return p;
}

}  // namespace

TEST_CASE("a product is the sum of its terms, of every type, shape, and way to lie in memory") {
  check_products<float>([](float x) { return x; });
  check_products<bitladder::fp16_t>([](float x) { return bitladder::to_fp16(x); });
  check_products<bitladder::bf16_t>([](float x) { return bitladder::to_bf16(x); });
}

TEST_CASE("norms pass on the gradient that differences of them have") {
  support::random random(102);
  for (std::size_t count : {1, 2, 7, 8, 33, 100}) {
    CAPTURE(count);
    auto x = random.normals(count);
    for (float& v : x) v = v * 2 + 3;
    const auto weight = random.normals(count), d = random.normals(count);
    const double epsilon = 1e-3, n = static_cast<double>(count);
    const auto rms = [&](std::vector<double> v) {
      double squares = 0;
      for (double e : v) squares += e * e;
      for (std::size_t i = 0; i < count; ++i)
        v[i] *= static_cast<double>(weight[i]) / std::sqrt(squares / n + epsilon);
      return v;
    };
    const auto layer = [&](std::vector<double> v) {
      double mean = 0, squares = 0;
      for (double e : v) mean += e / n;
      for (double& e : v) e -= mean;
      for (double e : v) squares += e * e;
      for (std::size_t i = 0; i < count; ++i)
        v[i] *= static_cast<double>(weight[i]) / std::sqrt(squares / n + epsilon);
      return v;
    };
    auto found = d;
    llama::rms_norm_gradient_row::run(x.data(), weight.data(), found.data(), count, 1e-3f);
    check_near(found, differences(x, d, rms), 1e-6);
    found = d;
    llama::layer_norm_gradient_row::run(x.data(), weight.data(), found.data(), count, 1e-3f);
    if (count > 1) check_near(found, differences(x, d, layer), 1e-6);
    if (count == 1) CHECK(found[0] == 0.f);  // one number is its own mean
  }
}

TEST_CASE("activations pass on the gradient that differences of them have, far out too") {
  support::random random(103);
  std::vector<float> x = {0.f,  -0.f,  1e-8f, -1e-8f, 5.f,   -5.f,
                          20.f, -20.f, 60.f,  -60.f,  200.f, -200.f};
  for (int i = 0; i < 50; ++i) x.push_back(static_cast<float>(4 * random.normal()));
  const std::vector<float> d = random.normals(x.size()), up = random.normals(x.size());
  const auto each = [](const std::function<double(double)>& f) {
    return [f](std::vector<double> v) {
      for (double& e : v) e = f(e);
      return v;
    };
  };
  const auto silu = [](double v) { return v / (1 + std::exp(-v)); };
  const auto gelu = [](double v) {
    return v / 2 * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
  };
  for (isa which : sets()) {
    CAPTURE(bitladder::cpu::to_string(which));
    auto found = d;
    llama::run<llama::silu_gradient_row>(which, x.data(), found.data(), x.size());
    check_near(found, differences(x, d, each(silu)), 1e-6);
    found = d;
    llama::run<llama::gelu_tanh_gradient_row>(which, x.data(), found.data(), x.size());
    check_near(found, differences(x, d, each(gelu)), 1e-6);
    found = d;
    llama::run<llama::relu_gradient_row>(which, x.data(), found.data(), x.size());
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(found[i] == (x[i] > 0 ? d[i] : 0.f));

    auto gate = x, other = up;
    llama::run<llama::silu_product_gradient>(which, d.data(), gate.data(), other.data(), x.size());
    const auto by_gate = differences(x, d, [&](std::vector<double> v) {
      for (std::size_t i = 0; i < v.size(); ++i) v[i] = silu(v[i]) * static_cast<double>(up[i]);
      return v;
    });
    check_near(gate, by_gate, 1e-6);
    for (std::size_t i = 0; i < x.size(); ++i)
      CHECK(static_cast<double>(other[i]) ==
            doctest::Approx(static_cast<double>(d[i]) * silu(static_cast<double>(x[i])))
                .epsilon(1e-6));
  }
}

TEST_CASE("rope passes a gradient on by turning it back") {
  support::random random(104);
  const std::size_t pairs = 9;
  std::vector<float> cosines, sines;
  for (std::size_t i = 0; i < pairs; ++i) {
    cosines.push_back(std::cos(static_cast<float>(i) * 0.7f));
    sines.push_back(std::sin(static_cast<float>(i) * 0.7f));
  }
  const auto x = random.normals(2 * pairs);
  for (isa which : sets()) {
    auto turned = x;
    llama::run<llama::rope_head>(which, turned.data(), cosines.data(), sines.data(), pairs);
    llama::run<llama::rope_gradient_head>(which, turned.data(), cosines.data(), sines.data(),
                                          pairs);
    for (std::size_t i = 0; i < x.size(); ++i)
      CHECK(static_cast<double>(turned[i]) ==
            doctest::Approx(static_cast<double>(x[i])).epsilon(1e-6));
  }
}

TEST_CASE("the loss of a row and its gradient are those of the softmax in doubles") {
  support::random random(105);
  for (std::size_t count : {1, 2, 9, 1000})
    for (double spread : {0.1, 3.0, 20.0}) {
      CAPTURE(count);
      CAPTURE(spread);
      auto x = random.normals(count);
      for (float& v : x) v = static_cast<float>(static_cast<double>(v) * spread + 100);
      const std::vector<double> wide(x.begin(), x.end());
      const std::vector<double> p = softmax(wide);
      for (std::size_t target : {std::size_t{0}, count / 2, count - 1})
        for (isa which : sets()) {
          auto found = x;
          const double loss = llama::run<llama::loss_row>(which, found.data(), count, target, 0.25);
          CHECK(std::abs(loss + std::log(p[target])) < 1e-6 * (1 + loss));
          for (std::size_t i = 0; i < count; ++i) {
            double expected = p[i];
            if (i == target) {
              expected = 0;
              for (std::size_t j = 0; j < count; ++j) expected -= j == target ? 0 : p[j];
            }
            CHECK(std::abs(static_cast<double>(found[i]) - expected / 4) <=
                  2e-6 * std::abs(expected) + 1e-16);
          }
        }
    }
}

TEST_CASE("attention passes on the gradients that differences of it have") {
  const struct {
    int tokens, heads, kv_heads, dim, window;
  } cases[] = {{1, 1, 1, 3, 0},   {7, 2, 2, 5, 0},    {9, 4, 2, 4, 4},
               {100, 2, 1, 6, 0}, {110, 3, 1, 5, 20}, {97, 2, 2, 8, 1}};
  for (const auto& c : cases) {
    CAPTURE(c.tokens);
    CAPTURE(c.window);
    support::random random(106);
    const int width = c.heads * c.dim, kv_width = c.kv_heads * c.dim;
    const auto sized = [&](int cols) {
      return random.normals(static_cast<std::size_t>(c.tokens * cols));
    };
    const auto q = sized(width), k = sized(kv_width), v = sized(kv_width), d = sized(width);
    // Queries, keys and values one after another.
    const auto attend = [&](const std::vector<double>& x) {
      std::vector<double> out(q.size());
      const double* qs = x.data();
      const double* ks = qs + q.size();
      const double* vs = ks + k.size();
      for (int t = 0; t < c.tokens; ++t)
        for (int h = 0; h < c.heads; ++h) {
          const int kv = h / (c.heads / c.kv_heads) * c.dim;
          const int first = c.window > 0 ? std::max(0, t + 1 - c.window) : 0;
          std::vector<double> scores;
          for (int s = first; s <= t; ++s) {
            double score = 0;
            for (int i = 0; i < c.dim; ++i)
              score += qs[t * width + h * c.dim + i] * ks[s * kv_width + kv + i];
            scores.push_back(score / std::sqrt(static_cast<double>(c.dim)));
          }
          const std::vector<double> p = softmax(scores);
          for (int s = first; s <= t; ++s)
            for (int i = 0; i < c.dim; ++i)
              out[static_cast<std::size_t>(t * width + h * c.dim + i)] +=
                  p[static_cast<std::size_t>(s - first)] * vs[s * kv_width + kv + i];
        }
      return out;
    };
    std::vector<float> all = q;
    all.insert(all.end(), k.begin(), k.end());
    all.insert(all.end(), v.begin(), v.end());
    const std::vector<double> wide(all.begin(), all.end());
    const std::vector<double> out = attend(wide);
    const std::vector<float> narrow(out.begin(), out.end());
    const auto in = [&](const std::vector<float>& m, int cols) {
      return bitladder::matrix_view<const float>(m.data(), c.tokens, cols);
    };
    const llama::attention_record record{in(q, width),      in(k, kv_width), in(v, kv_width),
                                         in(narrow, width), c.dim,           c.window};
    std::vector<float> first;
    for (isa which : sets())
      for (int threads : {1, 2, 5}) {
        bitladder::thread_pool pool(threads);
        llama::attention_backward_room room;
        std::vector<float> found(all.size(), -1.f);
        float* at = found.data();
        const bitladder::matrix_view<float> dq(at, c.tokens, width),
            dk(at + q.size(), c.tokens, kv_width), dv(at + q.size() + k.size(), c.tokens, kv_width);
        llama::attention_backward(record, in(d, width), dq, dk, dv, room, &pool, which);
        if (first.empty()) first = found;
        CHECK((found == first));
      }
    if (c.tokens < 20) {
      check_near(first, differences(all, d, attend), 2e-6);
      continue;
    }
    // Long ones at a few places.
    for (int trial = 0; trial < 30; ++trial) {
      const auto at = static_cast<std::size_t>(random.below(static_cast<int>(all.size())));
      std::vector<double> moved = wide;
      const auto value = [&](double step) {
        moved[at] = wide[at] + step;
        const std::vector<double> y = attend(moved);
        double sum = 0;
        for (std::size_t i = 0; i < y.size(); ++i) sum += static_cast<double>(d[i]) * y[i];
        return sum;
      };
      const double expected = (value(1e-5) - value(-1e-5)) / 2e-5;
      CHECK(std::abs(static_cast<double>(first[at]) - expected) < 1e-5 * (1 + std::abs(expected)));
    }
  }
}
