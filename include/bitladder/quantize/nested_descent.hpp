// SPDX-License-Identifier: MIT
// Better codes for the tables that a row has: column after column takes the code with the least
// weighted sum, over several precisions, of e H e^T (see refit.hpp), all others staying as they
// are. Codes stay nested, for one code names an entry of every precision. Cyclic coordinate descent
// as GuidedQuant has it for one precision (Kim et al. 2025, arXiv 2505.07004, section 4). Tested by
// tests/quantize/refit_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/quantize/refit.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace refit {

/// A precision that descent looks at.
struct descent_level {
  const fp16_t* table;  ///< [2^bits]
  int bits;
  double weight;  ///< of its e H e^T in the sum
};

/// Moves the codes of one row after another, keeping its memory.
class nested_descent {
 public:
  /// Goes over the columns until few codes change, at most `sweeps` times. For each level O(cols)
  /// and, for each code that changes, O(cols) again. Never raises the weighted sum of errors, up to
  /// rounding in fp32.
  /// @param h [cols, cols], symmetric, positive semidefinite, its diagonal > 0
  /// @param gathered a fit that last gathered these codes, with this h and row
  /// @param levels by rising bits, the last with those of the codes
  /// @param codes [cols]; where the row is fixed they are not looked at
  /// @return how many codes were changed; one that changed twice counts twice
  int run(matrix_view<const float> h, const row_target& row, const table_fit& gathered,
          const std::vector<descent_level>& levels, int sweeps, std::uint8_t* codes) {
    start(row, gathered, levels, codes);
    cost_.resize(static_cast<std::size_t>(1) << levels.back().bits);
    int changed = 0;
    for (int s = 0; s < sweeps; ++s) {
      int now = 0;
      for (int c = 0; c < row.cols; ++c) {
        if (row.is_fixed(c)) continue;
        const int code = best_code(h, c, codes[c]);
        if (code == codes[c]) continue;
        ++now;
        codes[c] = static_cast<std::uint8_t>(code);
        for (state& l : states_) move(h, c, code, l);
      }
      changed += now;
      if (now * 256 < row.cols) break;
    }
    return changed;
  }

 private:
  struct state {
    double weight = 0;
    std::vector<double> entry;  // of each code
    std::vector<float> value;   // of each column
    std::vector<float> pull;    // e H, of each column
  };

  void start(const row_target& row, const table_fit& gathered,
             const std::vector<descent_level>& levels, const std::uint8_t* codes) {
    states_.resize(levels.size());
    const auto cols = static_cast<std::size_t>(row.cols);
    for (std::size_t i = 0; i < levels.size(); ++i) {
      state& l = states_[i];
      const int shift = levels.back().bits - levels[i].bits;
      l.weight = levels[i].weight;
      l.entry.resize(static_cast<std::size_t>(1) << levels.back().bits);
      for (std::size_t k = 0; k < l.entry.size(); ++k)
        l.entry[k] = static_cast<double>(to_float(levels[i].table[k >> shift]));
      l.value.resize(cols);
      for (std::size_t c = 0; c < cols; ++c)
        l.value[c] =
            row.is_fixed(static_cast<int>(c)) ? 0.f : static_cast<float>(l.entry[codes[c]]);
      l.pull.resize(cols);
      gathered.residual_pull(levels[i].table, shift, l.pull.data());
    }
  }

  /// to += factor * line
  static void add_line(const float* line, float factor, std::vector<float>& to) {
    float* const out = to.data();
    const std::size_t count = to.size();
    for (std::size_t i = 0; i < count; ++i) out[i] += factor * line[i];
  }

  /// The code that column c best has; the present one unless another is better.
  int best_code(matrix_view<const float> h, int c, int present) {
    std::fill(cost_.begin(), cost_.end(), 0.);
    const double diagonal = static_cast<double>(h(c, c));
    const auto column = static_cast<std::size_t>(c);
    for (const state& l : states_) {
      // With all else as it is, the error is a parabola of the entry about this value.
      const double wanted =
          static_cast<double>(l.value[column]) + static_cast<double>(l.pull[column]) / diagonal;
      const double* const entry = l.entry.data();
      double* const cost = cost_.data();
      const std::size_t count = cost_.size();
      for (std::size_t k = 0; k < count; ++k) {
        const double off = entry[k] - wanted;
        cost[k] += l.weight * (off * off);
      }
    }
    std::size_t best = static_cast<std::size_t>(present);
    for (std::size_t k = 0; k < cost_.size(); ++k)
      if (cost_[k] < cost_[best]) best = k;
    return static_cast<int>(best);
  }

  void move(matrix_view<const float> h, int c, int code, state& l) {
    const auto column = static_cast<std::size_t>(c);
    const auto value = static_cast<float>(l.entry[static_cast<std::size_t>(code)]);
    if (value == l.value[column]) return;
    add_line(h.row(c), l.value[column] - value, l.pull);
    l.value[column] = value;
  }

  std::vector<state> states_;
  std::vector<double> cost_;
};

}  // namespace refit
}  // namespace v0_1
}  // namespace bitladder
