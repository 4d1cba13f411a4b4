// SPDX-License-Identifier: MIT
// Rows with named values: printed as an aligned table, and written as a JSON list of the same rows.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <cstdio>
#include <functional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

namespace cli {

using row = nlohmann::ordered_json;

/// One printed column: the row's key, the heading, and how a value is shown.
struct column {
  std::string key, heading;
  std::function<std::string(const row&)> show;
};

/// "%.2f" and the like for a number; a dash where there is none.
inline std::function<std::string(const row&)> as_number(const char* format) {
  return [format](const row& value) -> std::string {
    if (!value.is_number()) return "-";
    char text[64];
    std::snprintf(text, sizeof text, format, value.get<double>());
    return text;
  };
}

/// 1234567 as "1.23 MB" (decimal units).
inline std::string bytes_text(double bytes) {
  const char* const units[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  while (bytes >= 999.5 && unit < 4) bytes /= 1000, ++unit;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.3g %s", bytes, units[unit]);
  return text;
}

inline std::function<std::string(const row&)> as_bytes() {
  return [](const row& value) {
    return value.is_number() ? bytes_text(value.get<double>()) : std::string("-");
  };
}

inline std::function<std::string(const row&)> as_text() {
  return
      [](const row& value) { return value.is_string() ? value.get<std::string>() : value.dump(); };
}

/// 0 is the unquantized model.
inline std::function<std::string(const row&)> as_bits() {
  return
      [](const row& value) { return value.get<int>() == 0 ? std::string("none") : value.dump(); };
}

/// Prints `rows` under headings; text on the left, numbers on the right.
inline void print_table(std::ostream& out, const std::vector<column>& columns,
                        const std::vector<row>& rows) {
  std::vector<std::vector<std::string>> cells;
  std::vector<std::size_t> width;
  std::vector<bool> left;
  for (const column& c : columns) {
    width.push_back(c.heading.size());
    left.push_back(false);
  }
  for (const row& r : rows) {
    cells.emplace_back();
    for (std::size_t i = 0; i < columns.size(); ++i) {
      const auto at = r.find(columns[i].key);
      cells.back().push_back(at == r.end() ? "-" : columns[i].show(*at));
      if (at != r.end() && at->is_string()) left[i] = true;
      width[i] = std::max(width[i], cells.back().back().size());
    }
  }
  const auto line = [&](const std::vector<std::string>& texts) {
    std::string text;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const std::string gap(width[i] - texts[i].size(), ' ');
      text += (i == 0 ? "" : "  ") + (left[i] ? texts[i] + gap : gap + texts[i]);
    }
    out << text.substr(0, text.find_last_not_of(' ') + 1) << '\n';
  };
  std::vector<std::string> headings;
  for (const column& c : columns) headings.push_back(c.heading);
  line(headings);
  for (const auto& c : cells) line(c);
}

}  // namespace cli
