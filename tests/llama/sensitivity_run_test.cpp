// SPDX-License-Identifier: MIT
// With gradients that are made up: cheap, and rounded differently in every order of samples.
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>

#include <llama/calibration.hpp>
#include <llama/sensitivity_file.hpp>
#include <llama/sensitivity_run.hpp>
#include <support/files.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <sys/resource.h>
#include <vector>

namespace fs = std::filesystem;

namespace {

using support::contains;
using support::error_of;
using support::read_all;
using support::write_all;

const std::vector<llama::sensitivity_shape> shapes = {{"a.weight", 3, 5}, {"b.weight", 40, 1000}};

/// Sums of numbers that follow from a sample's tokens.
class made_up_gradients {
 public:
  made_up_gradients() {
    for (const auto& s : shapes)
      sums_.emplace_back(static_cast<std::size_t>(s.rows * (s.cols + 1)));
  }
  double add(bitladder::vector_view<const int> tokens) {
    support::random random(static_cast<std::uint64_t>(tokens[0]));
    for (std::vector<float>& s : sums_)
      for (float& x : s) x += static_cast<float>(random.uniform());
    ++added;
    return tokens[0] == 666 ? std::nan("") : random.uniform() * 3;
  }
  void restore(int samples, const std::vector<bitladder::matrix_view<const float>>& sums) {
    restored = samples;
    for (std::size_t i = 0; i < sums_.size(); ++i)
      for (int r = 0; r < shapes[i].rows; ++r)
        for (int c = 0; c < shapes[i].cols; ++c)
          sums_[i][static_cast<std::size_t>(r * (shapes[i].cols + 1) + c)] = sums[i](r, c);
  }
  /// With a gap behind every row.
  bitladder::matrix_view<const float> sums(std::size_t i) const {
    return {sums_[i].data(), shapes[i].rows, shapes[i].cols,
            static_cast<std::size_t>(shapes[i].cols + 1)};
  }

  int added = 0, restored = 0;

 private:
  std::vector<std::vector<float>> sums_;
};

llama::calibration samples(int count = 8) {
  llama::calibration c{count, 4, {}, "windows"};
  for (int i = 0; i < count * 4; ++i) c.tokens.push_back(i * 7 % 50);
  return c;
}

llama::sensitivity_origin origin_of(const llama::calibration& c) {
  llama::sensitivity_origin o;
  o.samples = c.samples;
  o.seq_len = c.seq_len;
  o.drawn = c.drawn;
  o.tokens = c.checksum();
  o.model = 0x123456789abcdef0u;
  return o;
}

struct stop {};

/// A run and what it did.
struct outcome {
  llama::sensitivity_result result;
  int made = 0, added = 0, restored = 0;
  std::vector<std::string> notes;
};

outcome run(const fs::path& path, const llama::sensitivity_origin& origin,
            const llama::calibration& c, llama::sensitivity_run_options options = {}) {
  outcome o;
  made_up_gradients* gradients = nullptr;
  options.save_seconds = 0;
  options.note = [&](const std::string& text) { o.notes.push_back(text); };
  const auto progress = options.progress;
  options.progress = [&](int done, int resumed, int all, double loss) {
    o.added = gradients->added;  // the gradients are gone when the run returns
    o.restored = gradients->restored;
    if (progress) progress(done, resumed, all, loss);
  };
  o.result = llama::run_sensitivities(
      path, origin, shapes, c,
      [&] {
        auto made = std::make_unique<made_up_gradients>();
        gradients = made.get();
        ++o.made;
        return made;
      },
      options);
  return o;
}

outcome run(const fs::path& path, llama::sensitivity_run_options options = {}) {
  return run(path, origin_of(samples()), samples(), options);
}

/// Stops after `done` samples, all of them saved.
void interrupt(const fs::path& path, int done) {
  llama::sensitivity_run_options options;
  options.progress = [done](int now, int, int, double) {
    if (now == done) throw stop();
  };
  CHECK_THROWS_AS(run(path, options), stop);
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& [name, bytes] : support::read_folder(folder)) names.push_back(name);
  return names;
}

/// All samples at once, the last weight's sums first; `losses` may be made up.
llama::sensitivity_result run_at_once(const fs::path& path, std::vector<double> losses = {},
                                      const llama::sensitivity_run_options& options = {}) {
  const llama::calibration c = samples();
  return llama::run_sensitivities_at_once(
      path, origin_of(c), shapes,
      [&](const auto& tell_losses, const auto& tell_sums, const auto& progress) {
        made_up_gradients gradients;
        const bool given = !losses.empty();
        for (int i = 0; i < c.samples; ++i) {
          const double loss = gradients.add(c.sample(i));
          if (!given) losses.push_back(loss);
        }
        tell_losses(losses);
        for (std::size_t i = shapes.size(); i-- > 0;) {
          std::vector<float> whole;  // without gaps
          const auto sums = gradients.sums(i);
          for (int r = 0; r < sums.rows(); ++r)
            whole.insert(whole.end(), sums.row(r), sums.row(r) + sums.cols());
          tell_sums(i, {whole.data(), sums.rows(), sums.cols()});
          progress(static_cast<std::int64_t>(shapes.size() - i),
                   static_cast<std::int64_t>(shapes.size()));
        }
      },
      options);
}

llama::sensitivity_run_options overwriting() {
  llama::sensitivity_run_options o;
  o.overwrite = true;
  return o;
}

}  // namespace

TEST_CASE("the file holds the sums of all samples in their order, and says how it came to be") {
  const support::temporary_folder folder;
  const fs::path path = folder / "sub" / "s.safetensors";
  const outcome o = run(path);
  CHECK(o.added == 8);
  CHECK(!o.result.reused);
  CHECK(o.result.resumed == 0);
  made_up_gradients expected;
  const llama::calibration c = samples();
  double loss = 0;
  for (int i = 0; i < 8; ++i) loss += expected.add(c.sample(i));
  CHECK(o.result.mean_loss == loss / 8);
  const llama::sensitivity_file file(path);
  const auto sums = file.sums(shapes);
  for (std::size_t i = 0; i < shapes.size(); ++i)
    for (int r = 0; r < shapes[i].rows; ++r)
      for (int col = 0; col < shapes[i].cols; ++col)
        REQUIRE(sums[i](r, col) == expected.sums(i)(r, col));
  CHECK(file.metadata().at("samples") == "8");
  CHECK(file.metadata().at("seq_len") == "4");
  CHECK(file.metadata().at("random_state") == "0");
  CHECK(file.metadata().at("drawn") == "windows");
  CHECK(file.metadata().at("model") == "123456789abcdef0");
  CHECK(file.metadata().at("format_version") == "1");
  CHECK(file.state().samples_done == 8);
  CHECK(names_in(folder / "sub") == std::vector<std::string>{"s.safetensors"});
}

TEST_CASE("a file that is there and fits is used: nothing is computed, nothing is written") {
  const support::temporary_folder folder;
  const fs::path path = folder / "s";
  const outcome first = run(path);
  const auto written = fs::last_write_time(path);
  for (bool overwrite : {false, true}) {
    llama::sensitivity_run_options options;
    options.overwrite = overwrite;
    const outcome o = run(path, options);
    CHECK(o.made == 0);
    CHECK(o.result.reused);
    CHECK(o.result.mean_loss == first.result.mean_loss);
  }
  CHECK(fs::last_write_time(path) == written);
}

TEST_CASE("killed after any sample and started again, it ends with the same bytes") {
  const support::temporary_folder folder;
  run(folder / "whole");
  const std::string whole = read_all(folder / "whole");
  for (int kill_after = 0; kill_after <= 8; ++kill_after) {
    CAPTURE(kill_after);
    const fs::path path = folder / ("killed" + std::to_string(kill_after));
    const int status = support::in_child([&] {
      llama::sensitivity_run_options options;
      options.progress = [&](int done, int, int, double) {
        if (done == kill_after) ::raise(SIGKILL);
      };
      run(path, options);
    });
    REQUIRE(WIFSIGNALED(status));
    REQUIRE(WTERMSIG(status) == SIGKILL);
    CHECK(!fs::exists(path));
    const outcome o = run(path);
    // The last sample is not saved, as it would be followed by the file itself.
    const int saved = kill_after == 8 ? 7 : kill_after;
    CHECK(o.result.resumed == saved);
    CHECK(o.restored == saved);
    CHECK(o.added == 8 - saved);
    CHECK(o.notes.empty());
    CHECK(read_all(path) == whole);
    CHECK(!fs::exists(path.string() + ".progress"));
    CHECK(!fs::exists(path.string() + ".partial"));
  }
}

TEST_CASE("with time between saves, what a run loses is what came after the last one") {
  const support::temporary_folder folder;
  const fs::path path = folder / "s";
  llama::sensitivity_run_options options;
  options.save_seconds = 1000;
  options.progress = [](int done, int, int, double) {
    if (done == 5) throw stop();
  };
  CHECK_THROWS_AS(llama::run_sensitivities(
                      path, origin_of(samples()), shapes, samples(),
                      [] { return std::make_unique<made_up_gradients>(); }, options),
                  stop);
  CHECK(names_in(folder.path()).empty());
}

TEST_CASE("a file of another origin is refused with what differs, or replaced if that is allowed") {
  const support::temporary_folder folder;
  const fs::path path = folder / "s";
  run(path);
  const std::string before = read_all(path);
  const auto differs = [&](const llama::sensitivity_origin& origin, const std::string& part) {
    const auto thrown = error_of([&] { run(path, origin, samples()); });
    CAPTURE(thrown.text);
    CHECK(thrown.names(path.string()));
    CHECK(thrown.names(part));
    CHECK(thrown.names("--overwrite"));
    CHECK(read_all(path) == before);
  };
  const llama::sensitivity_origin same = origin_of(samples());
  llama::sensitivity_origin other = same;
  other.tokens ^= 1;
  differs(other, "other calibration tokens");
  other = same;
  other.model ^= 1;
  differs(other, "another model: \"model\": expected 123456789abcdef1, found 123456789abcdef0");
  other = same;
  other.random_state = 1;
  differs(other, "other options: \"random_state\": expected 1, found 0");
  other = same;
  other.seq_len = 3;
  differs(other, "\"seq_len\": expected 3, found 4");

  const outcome o = run(path, origin_of(samples(9)), samples(9), overwriting());
  CHECK(o.made == 1);
  CHECK(llama::sensitivity_file(path).state().samples_done == 9);
}

TEST_CASE("files for other linears or shapes differ") {
  const support::temporary_folder folder;
  const fs::path path = folder / "s";
  run(path);
  const llama::sensitivity_file file(path);
  const auto origin = origin_of(samples());
  CHECK(file.difference(origin, shapes).empty());
  auto other = shapes;
  other[1].rows = 41;
  CHECK(contains(file.difference(origin, other), "expected F32 [41, 1000], found F32 [40, 1000]"));
  other = shapes;
  other[0].name = "c.weight";
  CHECK(contains(file.difference(origin, other), "no tensor \"c.weight\""));
  other = shapes;
  other.pop_back();
  CHECK(contains(file.difference(origin, other), "expected 1, found 2"));
}

TEST_CASE("a damaged file is refused, and replaced if that is allowed") {
  const support::temporary_folder folder;
  const fs::path path = folder / "s";
  run(path);
  const std::string good = read_all(path);
  std::string flipped = good;
  flipped[flipped.size() - 5] = static_cast<char>(flipped[flipped.size() - 5] ^ 1);
  for (const std::string& bad :
       {flipped, good.substr(0, good.size() - 1), good.substr(0, 5), std::string(),
        support::safetensors_bytes("{}", ""), std::string("no safetensors at all")}) {
    write_all(path, bad);
    const auto thrown = error_of([&] { run(path); });
    CAPTURE(thrown.text);
    CHECK(thrown.code == bitladder::status::bad_file);
    CHECK(thrown.names(path.string()));
    CHECK(thrown.names("--overwrite"));
    CHECK(read_all(path) == bad);
  }
  run(path, overwriting());
  CHECK(read_all(path) == good);
}

TEST_CASE("unfinished work under the name of a finished file is not taken for one") {
  const support::temporary_folder folder;
  interrupt(folder / "s", 5);
  fs::rename(folder / "s.progress", folder / "s");
  CHECK(contains(error_of([&] { run(folder / "s"); }).text, "fewer samples: expected 8, found 5"));
}

TEST_CASE("damaged unfinished work is not used, and the user is told") {
  const support::temporary_folder folder;
  const fs::path path = folder / "s", saved = folder / "s.progress";
  run(folder / "whole");
  interrupt(path, 5);
  const std::string good = read_all(saved);
  std::string flipped = good;
  flipped[flipped.size() - 5] = static_cast<char>(flipped[flipped.size() - 5] ^ 1);
  for (const std::string& bad : {flipped, good.substr(0, good.size() - 4), good.substr(0, 100),
                                 std::string(), support::safetensors_bytes("{}", "")}) {
    write_all(saved, bad);
    const outcome o = run(path);
    REQUIRE(o.notes.size() == 1);
    CHECK(contains(o.notes[0], saved.string()));
    CHECK(contains(o.notes[0], "starting anew"));
    CHECK(o.result.resumed == 0);
    CHECK(o.added == 8);
    CHECK(read_all(path) == read_all(folder / "whole"));
    CHECK(!fs::exists(saved));
    fs::remove(path);
  }
  write_all(saved, good);
  CHECK(run(path).result.resumed == 5);
}

TEST_CASE("unfinished work of another origin is neither mixed in nor thrown away unasked") {
  const support::temporary_folder folder;
  const fs::path path = folder / "s", saved = folder / "s.progress";
  interrupt(path, 5);
  const std::string before = read_all(saved);
  llama::sensitivity_origin other = origin_of(samples());
  other.model = 1;
  const auto thrown = error_of([&] { run(path, other, samples()); });
  CHECK(thrown.names(saved.string()));
  CHECK(thrown.names("unfinished work"));
  CHECK(thrown.names("another model"));
  CHECK(thrown.names("--overwrite"));
  CHECK(read_all(saved) == before);
  const outcome o = run(path, other, samples(), overwriting());
  CHECK(o.result.resumed == 0);
  CHECK(o.added == 8);
  CHECK(names_in(folder.path()) == std::vector<std::string>{"s"});
}

TEST_CASE("a disk that is full is an error before any work, and keeps what was saved") {
  const support::temporary_folder folder;
  const fs::path path = folder / "s";
  interrupt(path, 5);
  const std::string before = read_all(folder / "s.progress");
  const int status = support::in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    outcome o;
    const auto thrown = error_of([&] { o = run(path); });
    const bool right = thrown.code == bitladder::status::io_failed && thrown.names(path.string()) &&
                       thrown.names("could not reserve") && o.made == 0;
    ::_exit(right ? 0 : 1);
  });
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(names_in(folder.path()) == std::vector<std::string>{"s.progress"});
  CHECK(read_all(folder / "s.progress") == before);
  CHECK(run(path).result.resumed == 5);
}

TEST_CASE("a disk that fills up while it works ends the run, and keeps what was saved") {
  const support::temporary_folder folder;
  const fs::path path = folder / "s";
  const int status = support::in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    llama::sensitivity_run_options options;
    options.progress = [](int done, int, int, double) {
      const rlimit limit = {1000, RLIM_INFINITY};
      if (done == 5) ::setrlimit(RLIMIT_FSIZE, &limit);
    };
    const auto thrown = error_of([&] { run(path, options); });
    ::_exit(thrown.names("s.progress.partial") && thrown.names("could not reserve") ? 0 : 1);
  });
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(names_in(folder.path()) == std::vector<std::string>{"s.progress"});
  CHECK(run(path).result.resumed == 5);
}

TEST_CASE("two runs do not write the same file at once") {
  const support::temporary_folder folder;
  llama::sensitivity_run_options options;
  std::string second;
  options.progress = [&](int done, int, int, double) {
    if (done == 3) second = error_of([&] { run(folder / "s"); }).text;
  };
  run(folder / "s", options);
  CHECK(contains(second, "another process is writing it"));
}

TEST_CASE("a loss that is no number ends the run with the sample's number") {
  const support::temporary_folder folder;
  llama::calibration c = samples();
  c.tokens[2 * 4] = 666;
  const auto thrown = error_of([&] { run(folder / "s", origin_of(c), c); });
  CHECK(thrown.names((folder / "s").string()));
  CHECK(thrown.names("sample 2: expected a finite loss, found nan"));
  CHECK(names_in(folder.path()) == std::vector<std::string>{"s.progress"});
}

TEST_CASE("all samples at once give the file of one after another, byte for byte") {
  const support::temporary_folder folder;
  const double loss = run(folder / "one").result.mean_loss;
  interrupt(folder / "s", 3);  // whose unfinished work is of no use any more
  const llama::sensitivity_result result = run_at_once(folder / "s");
  CHECK(!result.reused);
  CHECK(result.mean_loss == loss);
  CHECK(read_all(folder / "s") == read_all(folder / "one"));
  CHECK(names_in(folder.path()) == std::vector<std::string>{"one", "s"});
  CHECK(run_at_once(folder / "s").reused);
}

TEST_CASE("all samples at once leave nothing when they end early") {
  const support::temporary_folder folder;
  const auto thrown = error_of([&] {
    run_at_once(folder / "s", {1, std::numeric_limits<double>::infinity()});
  });
  CHECK(thrown.names((folder / "s").string()));
  CHECK(thrown.names("sample 1: expected a finite loss, found inf"));
  llama::sensitivity_run_options options;
  options.progress = [](int, int, int, double) { throw stop(); };
  CHECK_THROWS_AS(run_at_once(folder / "s", {}, options), stop);
  CHECK(names_in(folder.path()).empty());
}
