// SPDX-License-Identifier: MIT
// The precisions above one whose codes were moved: each code's columns are cut in two again and
// again, by value, where that lowers the weighted squared error most. Columns that share a code
// need not be neighbours by value, so their means may be out of order; tables are then the
// ascending ones that are nearest to the means. Tested by tests/quantize/refit_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/quantize/interval_search.hpp>
#include <bitladder/quantize/refit.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace refit {

/// Makes values ascend with the least sum of weight * change^2: neighbours out of order get their
/// mean (pool adjacent violators; Ayer et al. 1955).
/// @param weights > 0
inline void make_ascending(std::vector<double>& values, const std::vector<double>& weights) {
  struct pool {
    double mean, weight;
    std::size_t count;
  };
  std::vector<pool> pools;
  for (std::size_t i = 0; i < values.size(); ++i) {
    pools.push_back({values[i], weights[i], 1});
    while (pools.size() > 1 && pools[pools.size() - 2].mean > pools.back().mean) {
      const pool b = pools.back();
      pools.pop_back();
      pool& a = pools.back();
      const double weight = a.weight + b.weight;
      a = {a.mean + (b.mean - a.mean) * (b.weight / weight), weight, a.count + b.count};
    }
  }
  std::size_t i = 0;
  for (const pool& p : pools)
    for (std::size_t k = 0; k < p.count; ++k) values[i++] = p.mean;
}

/// Splits one row after another, keeping its memory.
class resplitter {
 public:
  explicit resplitter(kmeans::interval_search search = kmeans::interval_search::fastest())
      : search_(search) {}

  /// @param importance [cols], > 0
  /// @param bits of the codes that stay
  /// @param codes [cols], of `bits` bits; they become those of `max_bits`. Fixed ones are not
  /// touched.
  /// @param table the entries of `bits`
  /// @param tables receive the entries of bits + 1 ... max_bits; [2^b] each
  void run(const row_target& row, const std::vector<double>& importance, int bits, int max_bits,
           std::uint8_t* codes, const fp16_t* table, const std::vector<fp16_t*>& tables) {
    sort(row, importance, bits, codes);
    parents_.assign(static_cast<std::size_t>(1) << bits, 0);
    for (std::size_t k = 0; k < parents_.size(); ++k)
      parents_[k] = static_cast<double>(to_float(table[k]));
    for (int b = bits; b < max_bits; ++b) {
      split();
      fill(tables[static_cast<std::size_t>(b - bits)]);
    }
    for (std::size_t k = 0; k + 1 < borders_.size(); ++k)
      for (int i = borders_[k]; i < borders_[k + 1]; ++i)
        codes[order_[static_cast<std::size_t>(i)]] = static_cast<std::uint8_t>(k);
  }

 private:
  /// Columns by code, then value, with the weights and sums before each.
  void sort(const row_target& row, const std::vector<double>& importance, int bits,
            const std::uint8_t* codes) {
    order_.clear();
    for (int c = 0; c < row.cols; ++c)
      if (!row.is_fixed(c)) order_.push_back(c);
    std::stable_sort(order_.begin(), order_.end(), [&](int a, int b) {
      return codes[a] != codes[b] ? codes[a] < codes[b] : row.weight[a] < row.weight[b];
    });
    weight_.assign(1, 0);
    sum_.assign(1, 0);
    borders_.assign((static_cast<std::size_t>(1) << bits) + 1, 0);
    for (const int c : order_) {
      const double w = importance[static_cast<std::size_t>(c)];
      weight_.push_back(weight_.back() + w);
      sum_.push_back(sum_.back() + w * static_cast<double>(row.weight[c]));
      ++borders_[static_cast<std::size_t>(codes[c]) + 1];
    }
    for (std::size_t k = 1; k < borders_.size(); ++k) borders_[k] += borders_[k - 1];
  }

  void split() {
    const std::size_t clusters = borders_.size() - 1;
    next_.resize(2 * clusters + 1);
    next_[2 * clusters] = borders_[clusters];
    for (std::size_t k = 0; k < clusters; ++k) {
      const int begin = borders_[k], end = borders_[k + 1];
      next_[2 * k] = begin;
      next_[2 * k + 1] =
          end - begin < 2
              ? end
              : begin + search_.best_cut(sum_.data() + begin, weight_.data() + begin, end - begin)
                            .index;
    }
    std::swap(borders_, next_);
  }

  void fill(fp16_t* table) {
    const std::size_t codes = borders_.size() - 1;
    values_.resize(codes);
    weights_.resize(codes);
    // Codes of no column take their parent's entry, and go where others push them.
    const double nothing = weight_.back() > 0 ? weight_.back() * 1e-30 : 1;
    for (std::size_t k = 0; k < codes; ++k) {
      const auto begin = static_cast<std::size_t>(borders_[k]);
      const auto end = static_cast<std::size_t>(borders_[k + 1]);
      weights_[k] = begin < end ? weight_[end] - weight_[begin] : nothing;
      values_[k] = begin < end ? (sum_[end] - sum_[begin]) / weights_[k] : parents_[k / 2];
    }
    parents_ = values_;
    make_ascending(values_, weights_);
    constexpr double most = 65504;
    for (std::size_t k = 0; k < codes; ++k)
      table[k] = to_fp16(static_cast<float>(std::min(std::max(values_[k], -most), most)));
  }

  kmeans::interval_search search_;
  std::vector<int> order_, borders_, next_;
  std::vector<double> weight_, sum_;  // before each of order_, and of all
  std::vector<double> parents_, values_, weights_;
};

}  // namespace refit
}  // namespace v0_1
}  // namespace bitladder
