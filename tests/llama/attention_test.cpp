// SPDX-License-Identifier: MIT
// Against a plain double loop. Seed: 21 and on.
#include <llama/attention.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace {

using bitladder::cpu::isa;

struct problem {
  int heads, kv_heads, head_dim, positions;
  int window = 0;
  std::vector<float> q, k, v;

  problem(int h, int kvh, int d, int n, std::uint64_t seed)
      : heads(h), kv_heads(kvh), head_dim(d), positions(n) {
    support::random random(seed);
    q = random.normals(static_cast<std::size_t>(n * h * d));
    k = random.normals(static_cast<std::size_t>(n * kvh * d));
    v = random.normals(static_cast<std::size_t>(n * kvh * d));
  }
  int width() const { return heads * head_dim; }

  llama::kv_cache cache() const {
    llama::config c;
    c.layers = 1;
    c.kv_heads = kv_heads;
    c.head_dim = head_dim;
    c.context = positions;
    return llama::kv_cache(c);
  }

  /// All positions, `chunk` at a time.
  std::vector<float> run(int chunk, bitladder::thread_pool* pool, isa which) const {
    llama::kv_cache kv = cache();
    std::vector<float> out(q.size());
    for (int begin = 0; begin < positions; begin += chunk) {
      const int count = std::min(chunk, positions - begin);
      kv.reserve(count);
      for (int p = begin; p < begin + count; ++p)
        kv.store(0, p, k.data() + p * kv_heads * head_dim, v.data() + p * kv_heads * head_dim);
      llama::causal_attention(kv, 0, {q.data() + begin * width(), count, width()},
                              {out.data() + begin * width(), count, width()}, pool, which, window);
      kv.advance(count);
    }
    return out;
  }

  double expected(int position, int head, int column) const {
    const int shared = head / (heads / kv_heads);
    const int first = window > 0 ? std::max(0, position + 1 - window) : 0;
    double total = 0, sum = 0, highest = -1e300;
    std::vector<double> score;
    for (int t = first; t <= position; ++t) {
      double s = 0;
      for (int d = 0; d < head_dim; ++d)
        s += static_cast<double>(q[at(position, heads, head, d)]) *
             static_cast<double>(k[at(t, kv_heads, shared, d)]);
      score.push_back(s / std::sqrt(static_cast<double>(head_dim)));
      highest = std::max(highest, score.back());
    }
    for (int t = first; t <= position; ++t) {
      const double p = std::exp(score[static_cast<std::size_t>(t - first)] - highest);
      total += p;
      sum += p * static_cast<double>(v[at(t, kv_heads, shared, column)]);
    }
    return sum / total;
  }
  std::size_t at(int position, int per_position, int head, int column) const {
    return static_cast<std::size_t>((position * per_position + head) * head_dim + column);
  }
};

}  // namespace

TEST_CASE("attention is the softmax-weighted mean of the values seen") {
  const struct {
    int heads, kv_heads, head_dim, positions;
  } shapes[] = {{1, 1, 2, 1},   {2, 1, 6, 5},   {4, 2, 8, 33},   {3, 1, 20, 70},
                {4, 4, 32, 64}, {8, 2, 36, 97}, {2, 2, 64, 130}, {5, 1, 128, 40}};
  for (const auto& s : shapes) {
    CAPTURE(s.heads);
    CAPTURE(s.head_dim);
    CAPTURE(s.positions);
    const problem p(s.heads, s.kv_heads, s.head_dim, s.positions, 21);
    const std::vector<float> got = p.run(s.positions, nullptr, bitladder::cpu::best_isa());
    for (int t = 0; t < s.positions; ++t)
      for (int h = 0; h < s.heads; ++h)
        for (int d = 0; d < s.head_dim; d += 5)
          CHECK(static_cast<double>(got[p.at(t, s.heads, h, d)]) ==
                doctest::Approx(p.expected(t, h, d)).epsilon(1e-5));
  }
}

TEST_CASE("chunks, threads and instruction sets do not change a bit") {
  for (const problem& p :
       {problem(4, 2, 20, 75, 22), problem(3, 3, 32, 67, 23), problem(6, 2, 40, 50, 24)}) {
    const std::vector<float> alone = p.run(1, nullptr, isa::scalar);
    for (isa which : bitladder::cpu::all_isas) {
      if (!bitladder::cpu::supported(which)) continue;
      for (int threads : {1, 2, 3, 5}) {
        bitladder::thread_pool pool(threads);
        for (int chunk : {1, 2, 7, 32, 40, 75}) {
          CAPTURE(threads);
          CAPTURE(chunk);
          CHECK((p.run(chunk, &pool, which) == alone));
        }
      }
    }
  }
}

TEST_CASE("a window hides all but the last positions, to the bit as if they were not there") {
  for (int window : {1, 2, 31, 32, 33, 50, 64, 69, 70, 1000}) {
    CAPTURE(window);
    problem p(6, 2, 20, 70, 26);
    p.window = window;
    const std::vector<float> alone = p.run(1, nullptr, isa::scalar);
    for (int t = 0; t < p.positions; ++t)
      for (int h = 0; h < p.heads; ++h)
        for (int d = 0; d < p.head_dim; d += 7)
          CHECK(static_cast<double>(alone[p.at(t, p.heads, h, d)]) ==
                doctest::Approx(p.expected(t, h, d)).epsilon(1e-5));
    for (isa which : bitladder::cpu::all_isas) {
      if (!bitladder::cpu::supported(which)) continue;
      bitladder::thread_pool pool(2);
      for (int chunk : {1, 5, 33, 70}) {
        CAPTURE(chunk);
        CHECK((p.run(chunk, &pool, which) == alone));
      }
    }
    // Whatever is hidden may be anything.
    problem other = p;
    const int last = p.positions - 1, hidden = std::max(0, last + 1 - window);
    for (int i = 0; i < hidden * p.kv_heads * p.head_dim; ++i)
      other.k[static_cast<std::size_t>(i)] = other.v[static_cast<std::size_t>(i)] = 1e30f;
    const std::vector<float> changed = other.run(70, nullptr, bitladder::cpu::best_isa());
    CHECK(std::equal(alone.end() - p.width(), alone.end(), changed.end() - p.width()));
    p.window = 0;
    CHECK((p.run(70, nullptr, isa::scalar) == alone) == (window >= 70));
  }
}

TEST_CASE("scores far apart do not overflow") {
  problem p(1, 1, 8, 40, 25);
  for (float& x : p.q) x *= 1e4f;
  for (float x : p.run(40, nullptr, bitladder::cpu::best_isa())) CHECK(std::isfinite(x));
}
