// SPDX-License-Identifier: MIT
// Keys and values of one sequence, fp32 so that nothing is rounded between steps: what a token sees
// is the same whether it came in a prompt's chunk or alone. Pages of 32 positions are added as the
// sequence grows and never move. A page holds, per kv head, the keys as [head_dim, 32] (a score
// loop runs along positions) and the values as [32, head_dim]. Tested by
// tests/llama/kv_cache_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/schedule/observation.hpp>

#include <llama/config.hpp>

#include <cstddef>
#include <string>
#include <vector>

namespace llama {

/// Grows up to `capacity` positions.
class kv_cache {
 public:
  static constexpr int page_positions = 32;  ///< four AVX2 registers of scores

  /// @param capacity most positions; 0 takes the model's context
  explicit kv_cache(const config& c, int capacity = 0)
      : capacity_(capacity > 0 ? capacity : c.context),
        kv_heads_(c.kv_heads),
        head_dim_(c.head_dim),
        layers_(static_cast<std::size_t>(c.layers)) {}

  int capacity() const { return capacity_; }
  int head_dim() const { return head_dim_; }
  int kv_heads() const { return kv_heads_; }
  /// Positions held.
  int length() const { return length_; }
  /// Bytes of all pages.
  std::size_t bytes() const {
    return layers_.empty() ? 0 : layers_.size() * layers_[0].size() * page_floats() * sizeof(float);
  }

  /// Forgets the positions from `length` on.
  /// @throws bitladder::error unless 0 <= length <= length()
  void truncate(int length) {
    if (length < 0 || length > length_)
      throw bitladder::error(bitladder::status::invalid_argument,
                             "kv cache: expected a length of 0 to " + std::to_string(length_) +
                                 ", found " + std::to_string(length));
    length_ = length;
  }

  /// Makes room for `count` more positions.
  /// @throws bitladder::error if that is past the capacity
  void reserve(int count) {
    if (count > capacity_ - length_)
      throw bitladder::error(bitladder::status::invalid_argument,
                             "kv cache: " + std::to_string(length_) + " + " +
                                 std::to_string(count) + " positions asked for, expected at most " +
                                 std::to_string(capacity_));
    const std::size_t pages =
        static_cast<std::size_t>((length_ + count + page_positions - 1) / page_positions);
    for (std::vector<std::vector<float>>& layer : layers_)
      while (layer.size() < pages) layer.emplace_back(page_floats());
  }
  /// Counts `count` positions, stored in every layer, as held.
  void advance(int count) { length_ += count; }

  /// [head_dim, 32]
  float* keys(int layer, int page, int head) { return at(layer, page, head); }
  const float* keys(int layer, int page, int head) const {
    return const_cast<kv_cache*>(this)->at(layer, page, head);
  }
  /// [32, head_dim]
  float* values(int layer, int page, int head) { return at(layer, page, head) + half(); }
  const float* values(int layer, int page, int head) const {
    return const_cast<kv_cache*>(this)->at(layer, page, head) + half();
  }

  /// Stores one position of one layer; `k` and `v` are [kv_heads, head_dim].
  void store(int layer, int position, const float* k, const float* v) {
    const int page = position / page_positions, slot = position % page_positions;
    for (int h = 0; h < kv_heads_; ++h) {
      float* keys_at = keys(layer, page, h) + slot;
      float* values_at = values(layer, page, h) +
                         static_cast<std::size_t>(slot) * static_cast<std::size_t>(head_dim_);
      for (int d = 0; d < head_dim_; ++d) {
        keys_at[d * page_positions] = *k++;
        values_at[d] = *v++;
      }
    }
  }

 private:
  std::size_t half() const {
    return static_cast<std::size_t>(head_dim_) * static_cast<std::size_t>(page_positions);
  }
  std::size_t page_floats() const { return half() * 2 * static_cast<std::size_t>(kv_heads_); }
  float* at(int layer, int page, int head) {
    return layers_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(page)].data() +
           half() * 2 * static_cast<std::size_t>(head);
  }

  int capacity_;
  int kv_heads_;
  int head_dim_;
  int length_ = 0;
  std::vector<std::vector<std::vector<float>>> layers_;
};

/// A layer of a cache, as schedules see it. Refers to the cache.
class kv_layer final : public bitladder::schedule::kv_reader {
 public:
  kv_layer(const kv_cache& cache, int layer) : cache_(&cache), layer_(layer) {}

  int tokens() const override { return cache_->length(); }
  int kv_heads() const override { return cache_->kv_heads(); }
  int head_dim() const override { return cache_->head_dim(); }
  /// @throws bitladder::error for a head or tokens that are not there
  void read(int head, int first, int count, float* keys, float* values) const override {
    if (head < 0 || head >= kv_heads() || first < 0 || count < 0 || first > tokens() - count)
      throw bitladder::error(
          bitladder::status::invalid_argument,
          "kv cache: expected one of " + std::to_string(kv_heads()) + " heads and tokens of " +
              std::to_string(tokens()) + ", found head " + std::to_string(head) + " and " +
              std::to_string(count) + " tokens from " + std::to_string(first) + " on");
    const int dim = head_dim();
    for (int t = first; t < first + count; ++t) {
      const int page = t / kv_cache::page_positions, slot = t % kv_cache::page_positions;
      const float* k = cache_->keys(layer_, page, head) + slot;
      const float* v = cache_->values(layer_, page, head) +
                       static_cast<std::size_t>(slot) * static_cast<std::size_t>(dim);
      for (int d = 0; d < dim; ++d) {
        *keys++ = k[d * kv_cache::page_positions];
        *values++ = v[d];
      }
    }
  }

 private:
  const kv_cache* cache_;
  int layer_;
};

}  // namespace llama
