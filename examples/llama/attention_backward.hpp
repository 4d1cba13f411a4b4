// SPDX-License-Identifier: MIT
// The backward pass of causal attention over one whole sequence, on a CPU. For a head and a block
// of queries the softmax is computed again from queries and keys, so no more than a block of it is
// ever held. Every query head sums the gradients of its keys and values by itself; those of heads
// that share them are then added in order, so no sum depends on threads. Tested by
// tests/llama/backward_math_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>

#include <llama/backward_math.hpp>
#include <llama/backward_products.hpp>
#include <llama/vector_math.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace llama {

/// What attention was given and gave, for tokens at positions 0, 1, ...
struct attention_record {
  bitladder::matrix_view<const float> query;       ///< [tokens, heads * head_dim], turned by rope
  bitladder::matrix_view<const float> key, value;  ///< [tokens, kv heads * head_dim], likewise
  bitladder::matrix_view<const float> out;         ///< [tokens, heads * head_dim]
  int head_dim = 0;
  int window = 0;  ///< positions that a query sees, its own among them; 0: all
};

/// Memory to work in.
struct attention_backward_room {
  std::vector<float> key, value;  ///< [tokens, heads * head_dim]: not yet summed over heads
};

namespace detail {

/// One head at a time; its memory serves for the next.
class attention_backward_head {
 public:
  static constexpr int query_block = 96;  ///< rows of softmax that are held

  attention_backward_head(const attention_record& r, isa which)
      : r_(r),
        which_(which),
        tokens_(r.query.rows()),
        scale_(static_cast<float>(1 / std::sqrt(static_cast<double>(r.head_dim)))),
        softmax_(static_cast<std::size_t>(query_block) * static_cast<std::size_t>(tokens_)),
        scores_(softmax_.size()) {}

  /// @param key, value gradients of this head's own, zeros before
  void run(int head, bitladder::matrix_view<const float> d_out, bitladder::matrix_view<float> query,
           bitladder::matrix_view<float> key, bitladder::matrix_view<float> value) {
    const int dim = r_.head_dim;
    const int kv_head = head / (r_.query.cols() / r_.key.cols());
    const auto column = static_cast<std::size_t>(head) * static_cast<std::size_t>(dim);
    const auto kv_column = static_cast<std::size_t>(kv_head) * static_cast<std::size_t>(dim);
    const auto width = static_cast<std::size_t>(tokens_);
    for (int begin = 0; begin < tokens_; begin += query_block) {
      const int rows = std::min(query_block, tokens_ - begin);
      const int first = r_.window > 0 ? std::max(0, begin + 1 - r_.window) : 0;
      const int keys = begin + rows - first;
      const factor<float> q{r_.query.row(begin) + column, r_.query.stride()};
      const factor<float> d{d_out.row(begin) + column, d_out.stride()};
      const float* k = r_.key.row(first) + kv_column;
      const float* v = r_.value.row(first) + kv_column;

      multiply_to(rows, keys, dim, q, {k, r_.key.stride(), true}, softmax_.data(), width);
      multiply_to(rows, keys, dim, d, {v, r_.value.stride(), true}, scores_.data(), width);
      for (int i = 0; i < rows; ++i)
        row(begin + i, first, keys, d_out.row(begin + i) + column, r_.out.row(begin + i) + column,
            softmax_.data() + static_cast<std::size_t>(i) * width,
            scores_.data() + static_cast<std::size_t>(i) * width);
      add_product(keys, dim, rows, {softmax_.data(), width, true}, d, value.row(first) + column,
                  value.stride());
      add_product(keys, dim, rows, {scores_.data(), width, true}, q, key.row(first) + column,
                  key.stride());
      multiply_to(rows, dim, keys, {scores_.data(), width}, {k, r_.key.stride()},
                  query.row(begin) + column, query.stride());
    }
  }

 private:
  /// `p` holds q k of keys `first` and on and becomes the softmax; `s` holds the gradients of the
  /// softmax and becomes those of q k.
  void row(int position, int first, int keys, const float* d_out, const float* out, float* p,
           float* s) const {
    const int seen = r_.window > 0 ? std::max(0, position + 1 - r_.window) : 0;
    const auto begin = static_cast<std::size_t>(seen - first);
    const auto end = static_cast<std::size_t>(position + 1 - first);
    const float max = llama::run<row_max>(which_, p + begin, end - begin);
    const float inverse = 1.f / llama::run<exp_terms>(which_, p + begin, end - begin, max, scale_);
    // sum over keys of softmax * its gradient = attention's result * its gradient
    const auto level =
        static_cast<float>(long_sum(static_cast<std::size_t>(r_.head_dim), [=](std::size_t c) {
          return static_cast<double>(d_out[c]) * static_cast<double>(out[c]);
        }));
    for (std::size_t j = begin; j < end; ++j) {
      p[j] *= inverse;
      s[j] = p[j] * (s[j] - level) * scale_;
    }
    for (float* x : {p, s}) {
      std::fill(x, x + begin, 0.f);
      std::fill(x + end, x + keys, 0.f);
    }
  }

  void multiply_to(int rows, int cols, int depth, const factor<float>& a, const factor<float>& b,
                   float* to, std::size_t stride) {
    product(rows, cols, depth, a, b, room_, nullptr, which_,
            [=](int r, int c, const float* values, int count) {
              std::copy_n(values, count, to + static_cast<std::size_t>(r) * stride + c);
            });
  }
  void add_product(int rows, int cols, int depth, const factor<float>& a, const factor<float>& b,
                   float* to, std::size_t stride) {
    const isa which = which_;
    product(rows, cols, depth, a, b, room_, nullptr, which,
            [=](int r, int c, const float* values, int count) {
              llama::run<add_row>(which, values, to + static_cast<std::size_t>(r) * stride + c,
                                  static_cast<std::size_t>(count));
            });
  }

  const attention_record& r_;
  isa which_;
  int tokens_;
  float scale_;
  std::vector<float> softmax_, scores_;
  product_room room_;
};

}  // namespace detail

/// From the gradient of attention's result to those of queries, keys and values, which have the
/// shapes of the record's.
inline void attention_backward(const attention_record& r, bitladder::matrix_view<const float> d_out,
                               bitladder::matrix_view<float> query,
                               bitladder::matrix_view<float> key,
                               bitladder::matrix_view<float> value, attention_backward_room& room,
                               bitladder::thread_pool* pool,
                               isa which = bitladder::cpu::best_isa()) {
  const int tokens = r.query.rows(), width = r.query.cols();
  const int heads = width / r.head_dim, group = width / r.key.cols();
  const std::size_t size = static_cast<std::size_t>(tokens) * static_cast<std::size_t>(width);
  room.key.assign(size, 0.f);
  room.value.assign(size, 0.f);
  const bitladder::matrix_view<float> own_key(room.key.data(), tokens, width),
      own_value(room.value.data(), tokens, width);
  bitladder::parallel_for(pool, heads, 1, [&](std::int64_t begin, std::int64_t end) {
    detail::attention_backward_head work(r, which);
    for (std::int64_t h = begin; h < end; ++h)
      work.run(static_cast<int>(h), d_out, query, own_key, own_value);
  });
  bitladder::parallel_for(pool, tokens, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t)
      for (int c = 0; c < r.key.cols(); ++c) {
        const int row = static_cast<int>(t);
        const int from = c / r.head_dim * group * r.head_dim + c % r.head_dim;
        float k = own_key(row, from), v = own_value(row, from);
        for (int h = 1; h < group; ++h) {
          k += own_key(row, from + h * r.head_dim);
          v += own_value(row, from + h * r.head_dim);
        }
        key(row, c) = k;
        value(row, c) = v;
      }
  });
}

}  // namespace llama
