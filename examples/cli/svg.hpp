// SPDX-License-Identifier: MIT
// A small line chart as SVG text: perplexity against bits, with the unquantized value as a dashed
// line.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace cli {

/// @param points (bits, perplexity), at least one, perplexities positive and finite; drawn on a
///   logarithmic scale because the first bits change it most
/// @param unquantized perplexity without quantization, or NaN to leave the line out
inline std::string perplexity_chart(std::vector<std::pair<int, double>> points,
                                    double unquantized) {
  std::sort(points.begin(), points.end());
  constexpr double width = 560, height = 340, left = 64, right = 36, top = 52, bottom = 48;
  double low = std::isnan(unquantized) ? std::numeric_limits<double>::max() : unquantized, high = 0;
  for (const auto& p : points) {
    low = std::min(low, p.second);
    high = std::max(high, p.second);
  }
  high = std::max(high, low * 1.05);
  const double log_low = std::log(low) - 0.08 * std::log(high / low), log_high = std::log(high);
  const int first = points.front().first, last = std::max(points.back().first, first + 1);
  const auto x = [&](double bits) {
    return left + (bits - first) / (last - first) * (width - left - right);
  };
  const auto y = [&](double value) {
    return top + (log_high - std::log(value)) / (log_high - log_low) * (height - top - bottom);
  };
  std::string svg;
  const auto add = [&](const char* format, auto... values) {
    char text[512];
    std::snprintf(text, sizeof text, format, values...);
    svg += text;
  };
  add("<svg xmlns='http://www.w3.org/2000/svg' width='%g' height='%g' viewBox='0 0 %g %g' "
      "font-family='sans-serif' font-size='12'>\n",
      width, height, width, height);
  add("<rect width='%g' height='%g' fill='white'/>\n", width, height);
  add("<text x='%g' y='18' text-anchor='middle'>Perplexity against bits per weight (log "
      "scale)</text>\n",
      width / 2);
  for (int tick = 0; tick <= 4; ++tick) {
    const double value = std::exp(log_low + (log_high - log_low) * tick / 4);
    add("<line x1='%g' y1='%.1f' x2='%g' y2='%.1f' stroke='#ddd'/>\n", left, y(value),
        width - right, y(value));
    add("<text x='%g' y='%.1f' text-anchor='end'>%.4g</text>\n", left - 6, y(value) + 4, value);
  }
  for (int bits = first; bits <= last; ++bits)
    add("<text x='%.1f' y='%g' text-anchor='middle'>%d</text>\n", x(bits), height - bottom + 18,
        bits);
  add("<text x='%g' y='%g' text-anchor='middle'>bits</text>\n", (left + width - right) / 2,
      height - 8);
  if (!std::isnan(unquantized)) {
    add("<line x1='%g' y1='%.1f' x2='%g' y2='%.1f' stroke='#888' stroke-dasharray='5 4'/>\n", left,
        y(unquantized), width - right, y(unquantized));
    add("<text x='%g' y='%.1f' text-anchor='end' fill='#666'>unquantized %.2f</text>\n",
        width - right, y(unquantized) + 16, unquantized);
  }
  svg += "<polyline fill='none' stroke='#1f6fb4' stroke-width='2' points='";
  for (const auto& p : points) add("%.1f,%.1f ", x(p.first), y(p.second));
  svg += "'/>\n";
  for (const auto& p : points) {
    add("<circle cx='%.1f' cy='%.1f' r='3.5' fill='#1f6fb4'/>", x(p.first), y(p.second));
    add("<text x='%.1f' y='%.1f' text-anchor='middle'>%.2f</text>\n", x(p.first), y(p.second) - 9,
        p.second);
  }
  return svg + "</svg>\n";
}

}  // namespace cli
