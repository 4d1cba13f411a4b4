// SPDX-License-Identifier: MIT
// Causal attention of some queries over the kv cache, on a CPU. For one query and head: scores in a
// chain of fma over the head's columns, softmax, then the values' sum in a chain of fma over
// positions. Queries that share a kv head go through a page three at a time so that its loads are
// shared; no sum depends on how many queries came together. Tested by
// tests/llama/attention_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/kernels/cpu/isa.hpp>

#include <llama/kv_cache.hpp>
#include <llama/vector_math.hpp>

#if BL_HAS_AVX2
#include <immintrin.h>
#endif
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace llama {
namespace detail {

inline constexpr int page = kv_cache::page_positions;

/// scores[r][t] = sum over d of query[r][d] * keys[d][t], for the 32 positions of a page.
template <int Rows>
void page_scores(const float* keys, int head_dim, const float* const (&query)[Rows],
                 float* const (&scores)[Rows]) {
  for (int r = 0; r < Rows; ++r) {
    float sum[page] = {};
    for (int d = 0; d < head_dim; ++d)
      for (int t = 0; t < page; ++t)
        sum[t] = __builtin_fmaf(query[r][d], keys[d * page + t], sum[t]);
    std::copy(sum, sum + page, scores[r]);
  }
}

/// sums[r][d] += weight[r][t] * values[t][d], t rising to `count`.
template <int Rows>
void page_values(const float* values, int head_dim, int count, const float* const (&weight)[Rows],
                 float* const (&sums)[Rows], int begin = 0) {
  for (int r = 0; r < Rows; ++r)
    for (int t = 0; t < count; ++t)
      for (int d = begin; d < head_dim; ++d)
        sums[r][d] = __builtin_fmaf(weight[r][t], values[t * head_dim + d], sums[r][d]);
}

#if BL_HAS_AVX2

/// @param next the page that will be read after this one: pages do not follow each other in memory,
/// so a processor does not see it coming. Over 1024 positions attention takes 28% less time with
/// that on a Zen 3 core, over 100 positions 20% less.
template <int Rows>
BL_AVX2 void page_scores_avx2(const float* keys, int head_dim, const float* const (&query)[Rows],
                              float* const (&scores)[Rows], const float* next) {
  __m256 sum[Rows][4];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < 4; ++v) sum[r][v] = _mm256_setzero_ps();
  for (int d = 0; d < head_dim; ++d) {
    __m256 key[4];
    for (int v = 0; v < 4; ++v) key[v] = _mm256_loadu_ps(keys + d * page + 8 * v);
    for (int line = 0; line < page; line += 16) __builtin_prefetch(next + d * page + line);
    for (int r = 0; r < Rows; ++r) {
      const __m256 q = _mm256_broadcast_ss(query[r] + d);
      for (int v = 0; v < 4; ++v) sum[r][v] = _mm256_fmadd_ps(q, key[v], sum[r][v]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < 4; ++v) _mm256_storeu_ps(scores[r] + 8 * v, sum[r][v]);
}

/// Columns [begin, begin + 8 * Vectors) of page_values.
template <int Rows, int Vectors>
BL_AVX2 void page_values_tile(const float* values, int head_dim, int count,
                              const float* const (&weight)[Rows], float* const (&sums)[Rows],
                              int begin, const float* next) {
  __m256 sum[Rows][Vectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) sum[r][v] = _mm256_loadu_ps(sums[r] + begin + 8 * v);
  for (int t = 0; t < count; ++t) {
    __m256 value[Vectors];
    for (int v = 0; v < Vectors; ++v)
      value[v] = _mm256_loadu_ps(values + t * head_dim + begin + 8 * v);
    for (int line = 0; line < 8 * Vectors; line += 16)
      __builtin_prefetch(next + t * head_dim + begin + line);
    for (int r = 0; r < Rows; ++r) {
      const __m256 w = _mm256_broadcast_ss(weight[r] + t);
      for (int v = 0; v < Vectors; ++v) sum[r][v] = _mm256_fmadd_ps(w, value[v], sum[r][v]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) _mm256_storeu_ps(sums[r] + begin + 8 * v, sum[r][v]);
}

#endif

template <int Rows>
void scores_of_page(isa which, const float* keys, int head_dim, const float* const (&query)[Rows],
                    float* const (&scores)[Rows], const float* next) {
#if BL_HAS_AVX2
  if (bitladder::cpu::includes(which, isa::avx2))
    return page_scores_avx2<Rows>(keys, head_dim, query, scores, next);
#endif
  static_cast<void>(which);
  static_cast<void>(next);
  page_scores<Rows>(keys, head_dim, query, scores);
}

template <int Rows>
void values_of_page(isa which, const float* values, int head_dim, int count,
                    const float* const (&weight)[Rows], float* const (&sums)[Rows],
                    const float* next) {
  int begin = 0;
#if BL_HAS_AVX2
  if (bitladder::cpu::includes(which, isa::avx2)) {
    for (; begin + 32 <= head_dim; begin += 32)
      page_values_tile<Rows, 4>(values, head_dim, count, weight, sums, begin, next);
    for (; begin + 8 <= head_dim; begin += 8)
      page_values_tile<Rows, 1>(values, head_dim, count, weight, sums, begin, next);
  }
#endif
  static_cast<void>(which);
  static_cast<void>(next);
  page_values<Rows>(values, head_dim, count, weight, sums, begin);
}

/// One query of one head.
struct attention_row {
  const float* query;  ///< [head_dim]
  float* out;          ///< [head_dim]
  int first;           ///< positions it sees: first ...
  int visible;         ///< ... to visible - 1
};

/// Rows that share a kv head, by rising `first` and `visible`. `scratch` holds Rows * pages * 32
/// floats, where pages are those from the first row's first position to the last row's last.
template <int Rows>
void attend(isa which, const kv_cache& cache, int layer, int head,
            const attention_row (&rows)[Rows], float scale, float* scratch) {
  const int head_dim = cache.head_dim();
  const int first_page = rows[0].first / page;
  const int end_page = (rows[Rows - 1].visible + page - 1) / page;
  const int pages = end_page - first_page;
  const float* query[Rows];
  float* scores[Rows];
  float* out[Rows];
  for (int r = 0; r < Rows; ++r) {
    query[r] = rows[r].query;
    out[r] = rows[r].out;
  }
  const auto score_of = [&](int r, int p) {
    return scratch + (static_cast<std::size_t>(r) * static_cast<std::size_t>(pages) +
                      static_cast<std::size_t>(p - first_page)) *
                         static_cast<std::size_t>(page);
  };
  for (int p = first_page; p < end_page; ++p) {
    for (int r = 0; r < Rows; ++r) scores[r] = score_of(r, p);
    const float* next =
        p + 1 < end_page ? cache.keys(layer, p + 1, head) : cache.values(layer, first_page, head);
    scores_of_page<Rows>(which, cache.keys(layer, p, head), head_dim, query, scores, next);
  }
  float inverse[Rows];
  for (int r = 0; r < Rows; ++r) {
    float* const seen = score_of(r, first_page) + (rows[r].first - first_page * page);
    const auto visible = static_cast<std::size_t>(rows[r].visible - rows[r].first);
    const float max = run<row_max>(which, seen, visible);
    inverse[r] = 1.f / run<exp_terms>(which, seen, visible, max, scale);
    std::fill(out[r], out[r] + head_dim, 0.f);
  }
  for (int p = first_page; p < end_page; ++p) {
    const float* values = cache.values(layer, p, head);
    const float* next = p + 1 < end_page ? cache.values(layer, p + 1, head) : values;
    const float* weight[Rows];
    for (int r = 0; r < Rows; ++r) weight[r] = score_of(r, p);
    const int common = std::min(rows[0].visible - p * page, page);
    if (rows[Rows - 1].first <= p * page &&
        (common == page || rows[0].visible == rows[Rows - 1].visible)) {
      values_of_page<Rows>(which, values, head_dim, common, weight, out, next);
      continue;
    }
    for (int r = 0; r < Rows; ++r) {  // the diagonals: every row begins or ends elsewhere
      const int begin = std::min(std::max(rows[r].first - p * page, 0), page);
      const int count = std::min(rows[r].visible - p * page, page) - begin;
      const float* const w[1] = {weight[r] + begin};
      float* const o[1] = {out[r]};
      if (count > 0)
        values_of_page<1>(which, values + begin * head_dim, head_dim, count, w, o,
                          next + begin * head_dim);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int d = 0; d < head_dim; ++d) out[r][d] *= inverse[r];
}

}  // namespace detail

/// out = softmax(q k^T / sqrt(head_dim)) v, query i at position cache.length() + i.
/// @param window the last positions that a query sees, its own among them; 0: all
/// @param q, out [m, heads * head_dim]; keys and values of the m positions are stored in the cache
/// already, which does not count them as held yet
inline void causal_attention(const kv_cache& cache, int layer,
                             bitladder::matrix_view<const float> q,
                             bitladder::matrix_view<float> out, bitladder::thread_pool* pool,
                             isa which = bitladder::cpu::best_isa(), int window = 0) {
  constexpr int queries_per_task = 16;  // small enough that two threads end together
  const int head_dim = cache.head_dim();
  const int kv_heads = cache.kv_heads();
  const int group = q.cols() / head_dim / kv_heads;  // query heads of a kv head
  const int m = q.rows(), past = cache.length();
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim)));
  const int tiles = (m + queries_per_task - 1) / queries_per_task;
  const int pages = (past + m + detail::page - 1) / detail::page;
  const auto body = [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> scratch(static_cast<std::size_t>(pages) * (3 * detail::page));
    for (std::int64_t task = begin; task < end; ++task) {
      // The last queries see most: they go first.
      const int tile = tiles - 1 - static_cast<int>(task / kv_heads);
      const int head = static_cast<int>(task % kv_heads);
      const auto row = [&](int i) {
        const int query = tile * queries_per_task + i / group;
        const std::size_t column =
            static_cast<std::size_t>(head * group + i % group) * static_cast<std::size_t>(head_dim);
        const int visible = past + query + 1;
        return detail::attention_row{q.row(query) + column, out.row(query) + column,
                                     window > 0 ? std::max(0, visible - window) : 0, visible};
      };
      const int rows = std::min(queries_per_task, m - tile * queries_per_task) * group;
      int i = 0;
      for (; i + 3 <= rows; i += 3)
        detail::attend<3>(which, cache, layer, head, {row(i), row(i + 1), row(i + 2)}, scale,
                          scratch.data());
      for (; i < rows; ++i)
        detail::attend<1>(which, cache, layer, head, {row(i)}, scale, scratch.data());
    }
  };
  bitladder::parallel_for(pool, static_cast<std::int64_t>(tiles) * kv_heads, 1, body);
}

}  // namespace llama
