// SPDX-License-Identifier: MIT
// A progress bar on standard error: redrawn in place on a terminal, a line every ten seconds and at
// the end elsewhere, so that logs stay short and standard output stays clean.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

namespace cli {

/// Shows how much of `total` is done, what is being worked on, and the time left at the rate so
/// far.
class progress {
 public:
  /// @param quiet show nothing
  progress(std::string title, std::int64_t total, bool quiet = false)
      : title_(std::move(title)),
        total_(total < 1 ? 1 : total),
        quiet_(quiet),
        terminal_(isatty(STDERR_FILENO) != 0),
        start_(clock::now()),
        shown_(start_) {}
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;
  ~progress() {
    if (terminal_ && drawn_) std::fputc('\n', stderr);
  }

  /// @param done of `total`
  /// @param skipped how much of `done` was there before the start (a resumed run): not counted in
  /// the rate
  void update(std::int64_t done, const std::string& what = {}, std::int64_t skipped = 0) {
    if (quiet_) return;
    const auto now = clock::now();
    const bool last = done >= total_;
    if (terminal_) {
      if (!last && drawn_ && now - shown_ < std::chrono::milliseconds(100)) return;
    } else if (!last && now - shown_ < std::chrono::seconds(10)) {
      return;
    }
    shown_ = now;
    const double elapsed = std::chrono::duration<double>(now - start_).count();
    const double rate = elapsed > 0 ? static_cast<double>(done - skipped) / elapsed : 0;
    const double left = rate > 0 ? static_cast<double>(total_ - done) / rate : 0;
    constexpr int width = 24;
    const int filled = static_cast<int>(done * width / total_);
    std::string bar(static_cast<std::size_t>(filled), '#');
    bar.resize(width, '.');
    std::fprintf(stderr, "%s%s [%s] %3d%%  %s%s  %s%s", terminal_ ? "\r" : "", title_.c_str(),
                 bar.c_str(), static_cast<int>(done * 100 / total_),
                 clock_time(last ? elapsed : left).c_str(), last ? "" : " left", what.c_str(),
                 terminal_ ? "\033[K" : "\n");
    std::fflush(stderr);
    drawn_ = true;
  }

 private:
  using clock = std::chrono::steady_clock;

  static std::string clock_time(double seconds) {
    char text[32];
    if (seconds < 60)
      std::snprintf(text, sizeof text, "%.1f s", seconds);
    else
      std::snprintf(text, sizeof text, "%d:%02d min", static_cast<int>(seconds) / 60,
                    static_cast<int>(seconds) % 60);
    return text;
  }

  std::string title_;
  std::int64_t total_;
  bool quiet_, terminal_;
  bool drawn_ = false;
  clock::time_point start_, shown_;
};

}  // namespace cli
