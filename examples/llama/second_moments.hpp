// SPDX-License-Identifier: MIT
// How the inputs of a linear go together, as far as the loss minds: over the tokens of samples, the
// sum of g x x^T, x the input and g the mean of the squared gradients of the loss by the outputs of
// a group of neighbouring rows (GuidedQuant, Kim et al. 2025, arXiv 2505.07004, section 3). This is
// what tables and codes are refit to. Tested by tests/llama/second_moments_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cpu/isa.hpp>

#include <llama/backward.hpp>
#include <llama/backward_cpu.hpp>
#include <llama/backward_products.hpp>
#include <llama/model.hpp>
#include <llama/squared_gradients.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llama {

/// Adds second moments where the backward pass would have squares of gradients added.
class second_moments_backend : public cpu_backward_backend {
 public:
  explicit second_moments_backend(const llama::model& m, bitladder::thread_pool* pool = nullptr)
      : cpu_backward_backend(m, pool), pool_(pool) {}

  /// Says of sums that they are [groups * cols, cols] for a linear of `rows` rows, which `groups`
  /// divide.
  void expect(const buffer& sums, int rows, int groups) { shape_[&sums] = {rows, groups}; }

  /// Of rows [first, first + d.cols()) of a linear that was given x, d being the gradient of what
  /// it gave.
  void add_squares(const buffer& d, const buffer& x, buffer& sums, int first) {
    const shape s = shape_.at(&sums);
    const int group_rows = s.rows / s.groups, cols = x.cols();
    for (int g = first / group_rows; g * group_rows < first + d.cols(); ++g) {
      const int begin = std::max(g * group_rows - first, 0);
      const int end = std::min((g + 1) * group_rows - first, d.cols());
      scale(d, x, begin, end, group_rows);
      const auto to = sums.view();
      const factor<float> right{scaled_.view().data(), scaled_.view().stride()};
      const factor<float> left{right.data, right.stride, true};
      product(cols, cols, x.rows(), left, right, room_, pool_, isa_,
              [=](int row, int col, const float* values, int count) {
                float* at = to.row(g * cols + row) + col;
                for (int i = 0; i < count; ++i) at[i] += values[i];
              });
    }
  }

 private:
  struct shape {
    int rows = 0, groups = 0;
  };

  /// scaled_ = x, each row by the root of its token's mean squared gradient, so that the product of
  /// scaled_ with itself is symmetric to the last bit.
  void scale(const buffer& d, const buffer& x, int begin, int end, int group_rows) {
    scaled_.resize(x.rows(), x.cols());
    const auto to = scaled_.view();
    bitladder::parallel_for(pool_, x.rows(), 32, [&](std::int64_t from, std::int64_t until) {
      for (int t = static_cast<int>(from); t < static_cast<int>(until); ++t) {
        double square = 0;
        for (int r = begin; r < end; ++r) {
          const double v = static_cast<double>(d.view().row(t)[r]);
          square += v * v;
        }
        const auto root = static_cast<float>(std::sqrt(square / group_rows));
        const float* const row = x.view().row(t);
        for (int c = 0; c < x.cols(); ++c) to.row(t)[c] = root * row[c];
      }
    });
  }

  bitladder::thread_pool* pool_;
  std::unordered_map<const buffer*, shape> shape_;
  buffer scaled_;
  product_room room_;
  bitladder::cpu::isa isa_ = bitladder::cpu::best_isa();
};

/// Second moments of some linears, summed over samples in fp32. Bytes held: 4 * groups * cols^2 for
/// each, and what squared_gradients holds of a sample. The sums do not depend on the number of
/// threads.
class second_moments {
 public:
  /// @param m unquantized; must outlive this, as must `pool`
  /// @param names of weights of linears of layers, each once
  /// @param most_groups of rows: as many as divide a linear's rows, at most these
  /// @throws bitladder::error naming the model and the weight that it does not have
  second_moments(const model& m, const std::vector<std::string>& names, int most_groups,
                 bitladder::thread_pool* pool = nullptr)
      : backend_(m, pool), pass_(backend_), sums_(names.size()) {
    const auto known = detail::named_linears(*m.config().family, m.weights());
    for (std::size_t i = 0; i < names.size(); ++i) {
      const auto found = std::find_if(known.begin(), known.end(),
                                      [&](const auto& k) { return k.first == names[i]; });
      if (found == known.end() || found->second->quantized())
        throw bitladder::error(bitladder::status::not_found,
                               m.folder().string() + ": tensor \"" + names[i] +
                                   "\": expected the float weight of a linear of a layer");
      const linear_weight& w = *found->second;
      const int groups = groups_of(w.rows, most_groups);
      groups_.push_back(groups);
      sums_[i].resize(groups * w.cols, w.cols);
      for (int r = 0; r < sums_[i].rows(); ++r) std::fill_n(sums_[i].view().row(r), w.cols, 0.f);
      backend_.expect(sums_[i], w.rows, groups);
      to_.emplace(&w, &sums_[i]);
    }
  }

  /// The most groups of equally many rows, up to `most_groups`.
  static int groups_of(int rows, int most_groups) {
    int groups = std::max(1, std::min(rows, most_groups));
    while (rows % groups != 0) --groups;
    return groups;
  }

  /// Adds one sample.
  /// @param tokens at least two, all in the vocabulary
  /// @return its mean loss in nats
  /// @throws bitladder::error if the loss is not finite
  double add(bitladder::vector_view<const int> tokens) {
    const double loss = pass_.run(tokens, to_);
    if (!std::isfinite(loss))
      throw bitladder::error(bitladder::status::bad_file,
                             backend_.model().folder().string() +
                                 ": expected a finite loss, found " + std::to_string(loss) +
                                 ": weights or activations are beyond what floats hold");
    return loss;
  }

  /// Of names[i], by groups of rows: [cols, cols] each, valid as long as this lives.
  std::vector<bitladder::matrix_view<const float>> moments(std::size_t i) const {
    std::vector<bitladder::matrix_view<const float>> all;
    const cpu_buffer& sums = sums_[i];
    const int cols = sums.cols();
    for (int g = 0; g < groups_[i]; ++g)
      all.emplace_back(sums.view().row(g * cols), cols, cols, sums.view().stride());
    return all;
  }

 private:
  using pass = backward_pass<second_moments_backend>;

  second_moments_backend backend_;
  pass pass_;
  std::vector<cpu_buffer> sums_;  // never resized after the constructor: to_ points into it
  std::vector<int> groups_;
  pass::squares to_;
};

}  // namespace llama
