// SPDX-License-Identifier: MIT
// Rows of the perplexity and demo tables, and the chart made from them.
#pragma once

#include <evaluate/perplexity.hpp>
#include <evaluate/text.hpp>
#include <llama/tokenizer.hpp>

#include <cli/commands.hpp>
#include <cli/progress.hpp>
#include <cli/runner.hpp>
#include <cli/svg.hpp>
#include <cli/table.hpp>

#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace cli {

struct measure_options {
  int window = 512;
  int max_windows = 0;  ///< 0: the whole text
  bool quiet = false;
};

/// @param join join lines that were wrapped by hand
inline std::vector<int> read_tokens(const llama::tokenizer& words, const std::string& file,
                                    bool join) {
  const std::string text = read_file(file);
  return words.encode(join ? evaluate::join_paragraphs(text) : text);
}

/// bits, perplexity, tokens_per_second (whole windows), bytes_per_token, windows.
inline row measure_perplexity(const run_at& r, const std::vector<int>& tokens,
                              const measure_options& o) {
  evaluate::perplexity_options options;
  options.bits = r.bits;
  options.window = o.window;
  options.max_windows = o.max_windows;
  std::unique_ptr<progress> bar;
  options.progress = [&](int done, int total, double so_far) {
    if (bar == nullptr)
      bar = std::make_unique<progress>(
          r.bits == 0 ? "unquantized" : std::to_string(r.bits) + " bits     ", total, o.quiet);
    char text[48];
    std::snprintf(text, sizeof text, "perplexity %.2f", so_far);
    bar->update(done, text);
  };
  const evaluate::perplexity_result p = r.where->with_session(
      [&](auto& session) { return evaluate::perplexity(session, tokens, options); });
  return {{"bits", r.bits},
          {"perplexity", p.perplexity},
          {"tokens_per_second", p.tokens_per_second},
          {"bytes_per_token", r.where->model().bytes_per_token(r.bits)},
          {"windows", p.windows}};
}

/// Bits against perplexity as SVG.
inline std::string chart(const std::vector<row>& rows) {
  std::vector<std::pair<int, double>> points;
  double unquantized = std::numeric_limits<double>::quiet_NaN();
  for (const row& r : rows) {
    if (r["bits"] == 0)
      unquantized = r["perplexity"];
    else
      points.emplace_back(r["bits"], r["perplexity"]);
  }
  if (points.empty()) points.emplace_back(16, unquantized);
  return perplexity_chart(points, unquantized);
}

}  // namespace cli
