// SPDX-License-Identifier: MIT
// Seeds 41 to 43; the moments of the timed kills vary by nature, what they must lead to does not.
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/checkpoint_writer.hpp>

#include "io/small_checkpoint.hpp"
#include "support/random.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

#include <csignal>
#include <sys/resource.h>

namespace bl = bitladder;
namespace fs = std::filesystem;
using support::error_of;
using support::small_checkpoint;
using support::temporary_folder;
using support::thrown;

namespace {

const small_checkpoint& small() {
  static const small_checkpoint made(41, {{5, 70}, {64, 64}, {3, 33}, {16, 128}}, 2, 5);
  return made;
}

/// A tokenizer to be copied, and the folder as it is after a run without interruption.
struct workplace {
  temporary_folder folder;
  fs::path out = folder / "out";
  fs::path partial = folder / "out.partial";
  fs::path journal = folder / "out.partial.journal";
  std::vector<fs::path> files = {folder / "tokenizer.json"};

  workplace() { support::write_all(files[0], "{\"a\": 1}\n"); }

  bl::checkpoint_writer writer(const std::string& fingerprint = "test", bool overwrite = false) {
    bl::checkpoint_writer_options options;
    options.overwrite = overwrite;
    return bl::checkpoint_writer(out, small().plan, fingerprint, options);
  }
  void complete() {
    bl::checkpoint_writer w = writer();
    small().write_rest(w);
    w.finish(small().config(), files);
  }
  void check_complete() {
    static const std::map<std::string, std::string> expected = [] {
      workplace fresh;
      fresh.complete();
      return support::read_folder(fresh.out);
    }();
    CHECK(expected.size() == 3);
    CHECK(support::read_folder(out) == expected);
    CHECK_FALSE(fs::exists(partial));
    CHECK_FALSE(fs::exists(journal));
  }
};

}  // namespace

TEST_CASE("a checkpoint appears under its name only when it is finished") {
  workplace place;
  {
    bl::checkpoint_writer w = place.writer();
    CHECK(w.parts() == small().parts());
    small().write_rest(w);
    CHECK(w.parts_done() == w.parts());
    CHECK_FALSE(fs::exists(place.out));
    w.finish(small().config(), place.files);
  }
  place.check_complete();
  bl::checkpoint(place.out).validate();
  CHECK(support::read_all(place.out / "tokenizer.json") == "{\"a\": 1}\n");
}

TEST_CASE("killed after any part, the work goes on behind it and ends with the same bytes") {
  for (std::size_t stop = 0; stop <= small().parts(); ++stop) {
    workplace place;
    const int result = support::in_child([&] {
      bl::checkpoint_writer w = place.writer();
      for (std::size_t i = 0; i < stop; ++i) small().write_part(w, i);
      ::kill(::getpid(), SIGKILL);
    });
    CHECK(WIFSIGNALED(result));
    {
      bl::checkpoint_writer w = place.writer();
      CHECK(w.parts_done() == stop);
      for (std::size_t i = 0; i < small().parts(); ++i)
        CHECK(w.done(small().name(i)) == (i < stop));
      small().write_rest(w);
      w.finish(small().config(), place.files);
    }
    place.check_complete();
  }
}

TEST_CASE("killed at random moments again and again, the work ends with the same bytes") {
  support::random random(42);
  for (int round = 0; round < 5; ++round) {
    workplace place;
    int kills = 0;
    for (; !fs::exists(place.out); ++kills) {
      const pid_t child = ::fork();
      REQUIRE(child >= 0);
      if (child == 0) {
        place.complete();
        ::_exit(0);
      }
      ::usleep(static_cast<useconds_t>(500 + random.below(4000) * (1 + kills)));
      ::kill(child, SIGKILL);
      int ignored = 0;
      REQUIRE(::waitpid(child, &ignored, 0) == child);
      REQUIRE(kills < 1000);
    }
    fs::remove(place.journal);  // stays if the kill fell between the last rename and its removal
    place.check_complete();
  }
}

TEST_CASE("a part whose bytes on disk were damaged is done again") {
  workplace place;
  {
    bl::checkpoint_writer w = place.writer();
    small().write_rest(w);
  }
  const fs::path model = place.partial / "model.safetensors.partial";
  std::string bytes = support::read_all(model);
  bytes[bytes.size() - 1] = static_cast<char>(bytes[bytes.size() - 1] ^ 4);
  support::write_all(model, bytes);
  {
    bl::checkpoint_writer w = place.writer();
    CHECK(w.parts_done() == small().parts() - 1);
    small().write_rest(w);
    w.finish(small().config(), place.files);
  }
  place.check_complete();
}

TEST_CASE("unfinished work without its file, or with a file of another size, begins anew") {
  for (const bool cut : {false, true}) {
    workplace place;
    {
      bl::checkpoint_writer w = place.writer();
      small().write_rest(w);
    }
    if (cut)
      fs::resize_file(place.partial / "model.safetensors.partial", 999);
    else
      fs::remove_all(place.partial);
    {
      bl::checkpoint_writer w = place.writer();
      CHECK(w.parts_done() == 0);
      small().write_rest(w);
      w.finish(small().config(), place.files);
    }
    place.check_complete();
  }
}

TEST_CASE("a finish that failed half way is done again, and leaves nothing of its first try") {
  workplace place;
  {
    bl::checkpoint_writer w = place.writer();
    small().write_rest(w);
    CHECK(error_of([&] { w.finish(small().config(), {place.folder / "absent"}); }).names("absent"));
  }
  CHECK(fs::exists(place.partial / "model.safetensors"));
  support::write_all(place.partial / "vocab.json.tmp1.0", "half a fi");
  {
    bl::checkpoint_writer w = place.writer();
    CHECK(w.parts_done() == small().parts());
    w.finish(small().config(), place.files);
  }
  place.check_complete();
}

TEST_CASE("work begun with other options is refused until overwriting is allowed") {
  workplace place;
  {
    bl::checkpoint_writer w = place.writer("other");
    small().write_part(w, 0);
  }
  const thrown e = error_of([&] { place.writer(); });
  CHECK(e.code == bl::status::io_failed);
  CHECK(e.names("out.partial: holds unfinished work from another model or with other options"));
  {
    const bl::checkpoint_writer w = place.writer("other");  // still there
    CHECK(w.parts_done() == 1);
  }
  {
    bl::checkpoint_writer w = place.writer("test", true);
    CHECK(w.parts_done() == 0);
    small().write_rest(w);
    w.finish(small().config(), place.files);
  }
  place.check_complete();
}

TEST_CASE("another plan under the same fingerprint counts as other options") {
  workplace place;
  { bl::checkpoint_writer w = place.writer(); }
  bl::checkpoint_plan plan = small().plan;
  plan.max_bits = 6;
  CHECK(error_of([&] { bl::checkpoint_writer w(place.out, plan, "test"); }).names("other options"));
}

TEST_CASE("overwriting goes on with unfinished work of the same options") {
  workplace place;
  {
    bl::checkpoint_writer w = place.writer();
    small().write_part(w, 0);
  }
  CHECK(place.writer("test", true).parts_done() == 1);
}

TEST_CASE("a folder OUT.partial that nobody began is left alone") {
  workplace place;
  fs::create_directory(place.partial);
  support::write_all(place.partial / "thesis.txt", "all of it");
  CHECK(error_of([&] { place.writer(); }).names("without a journal"));
  CHECK(support::read_all(place.partial / "thesis.txt") == "all of it");
  CHECK_FALSE(fs::exists(place.journal));
}

TEST_CASE("what is there under the final name is replaced only if allowed, and only a model") {
  workplace place;
  fs::create_directory(place.out);
  support::write_all(place.out / "model.safetensors", "old");
  support::write_all(place.out / "old.txt", "old");
  CHECK(error_of([&] { place.writer(); }).names("is there already"));
  {
    bl::checkpoint_writer w = place.writer("test", true);
    small().write_rest(w);
    CHECK(support::read_folder(place.out).size() == 2);  // the old one is whole until the end
    w.finish(small().config(), place.files);
  }
  place.check_complete();

  workplace other;
  fs::create_directory(other.out);
  support::write_all(other.out / "thesis.txt", "all of it");
  CHECK(error_of([&] { other.writer("test", true); }).names("holds no model"));
  CHECK(support::read_folder(other.out).size() == 1);
}

TEST_CASE("two writers of one checkpoint: the second gets an error, the first goes on") {
  workplace place;
  {
    bl::checkpoint_writer w = place.writer();
    small().write_part(w, 0);
    for (const bool overwrite : {false, true}) {
      CHECK(error_of([&] { place.writer("test", overwrite); }).names("another process"));
      const int result = support::in_child([&] {
        ::_exit(error_of([&] { place.writer("test", overwrite); }).text.empty() ? 8 : 7);
      });
      CHECK(WEXITSTATUS(result) == 7);
    }
    small().write_rest(w);
    w.finish(small().config(), place.files);
  }
  place.check_complete();
}

TEST_CASE("a disk without room is an error at once, with nothing left behind") {
  workplace place;
  const int result = support::in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{8192, 8192};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const thrown e = error_of([&] { place.writer(); });
    ::_exit(e.code == bl::status::io_failed && e.names("could not reserve") ? 7 : 8);
  });
  CHECK(WEXITSTATUS(result) == 7);
  CHECK_FALSE(fs::exists(place.partial));
  CHECK_FALSE(fs::exists(place.journal));
  place.complete();
  place.check_complete();
}

TEST_CASE("a disk that fills while finishing leaves the work to be resumed") {
  workplace place;
  const std::string big_config = "{\"text\": \"" + std::string(200000, 'x') + "\"}";
  const int result = support::in_child([&] {
    bl::checkpoint_writer w = place.writer();
    small().write_rest(w);
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100000, 100000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const thrown e = error_of([&] { w.finish(big_config, place.files); });
    ::_exit(e.code == bl::status::io_failed && !fs::exists(place.out) ? 7 : 8);
  });
  CHECK(WEXITSTATUS(result) == 7);
  CHECK_FALSE(fs::exists(place.out));
  place.complete();
  place.check_complete();
}

TEST_CASE("parts that contradict the plan are refused, and so is an early finish") {
  workplace place;
  bl::checkpoint_writer w = place.writer();
  const support::small_linear& first = small().linears[0];
  const support::small_linear& second = small().linears[1];
  CHECK(error_of([&] {
          w.write_linear(first.name, second.planes.view(), second.tables);
        }).names("expected 5 x 70 in 5 planes"));
  CHECK(error_of([&] { w.write_linear(first.name, first.planes.view(), second.tables); }).code ==
        bl::status::shape_mismatch);
  CHECK(error_of([&] {
          w.write_linear(first.name, first.planes.view().top(4), first.tables);
        }).code == bl::status::shape_mismatch);
  CHECK(error_of([&] { w.write_linear("y", first.planes.view(), first.tables); }).code ==
        bl::status::not_found);
  CHECK(error_of([&] {
          w.write_tensor("model.embed_tokens.weight", "x", 1);
        }).names("expected 126 bytes for F16 [7, 9], found 1"));
  CHECK(error_of([&] { w.write_tensor(first.name + ".lut2", "x", 1); }).names("part of a linear"));
  CHECK(error_of([&] { w.write_tensor("y", "x", 1); }).code == bl::status::not_found);
  bl::codebook_ladder bad = first.tables;
  bad.data(3)[9] = bl::fp16_t{0x7e00};
  CHECK(error_of([&] {
          w.write_linear(first.name, first.planes.view(), bad);
        }).names("3 bits: row 1, group 0, entry 1: expected finite"));
  bl::bitplane_tensor set = first.planes;
  set.data()[2] |= 1u << 31;
  CHECK(error_of([&] {
          w.write_linear(first.name, set.view(), first.tables);
        }).names("bits past column 70"));
  CHECK(w.parts_done() == 0);
  CHECK(error_of([&] { w.finish("{}"); }).names("7 of 7 parts are not written yet"));
  small().write_rest(w);
  CHECK(error_of([&] { w.finish("[]"); }).names("config.json: expected an object"));
  CHECK(error_of([&] { w.finish("{}", {place.files[0], place.files[0]}); }).names("already"));
  CHECK(error_of([&] { w.finish("{}", {place.folder / "config.json"}); }).names("already"));
  w.finish(small().config(), place.files);
  place.check_complete();
}

TEST_CASE("a plan that makes no checkpoint is refused") {
  workplace place;
  const auto plan_error = [&](auto&& change) {
    bl::checkpoint_plan plan = small().plan;
    change(plan);
    const thrown e = error_of([&] { bl::checkpoint_writer w(place.out, plan, "x"); });
    CHECK(e.code == bl::status::invalid_argument);
    CHECK_FALSE(fs::exists(place.journal));
    return e;
  };
  using plan_type = bl::checkpoint_plan;
  CHECK(plan_error([](plan_type& p) { p.min_bits = 0; }).names("found 0, 3, 5"));
  CHECK(plan_error([](plan_type& p) { p.max_bits = 9; }).names("9"));
  CHECK(plan_error([](plan_type& p) { p.seed_bits = 6; }).names("6"));
  CHECK(plan_error([](plan_type& p) { p.groups = 0; }).names("group"));
  CHECK(plan_error([](plan_type& p) { p.groups = 2; }).names("found 3 x 33"));
  CHECK(plan_error([](plan_type& p) { p.linears[0].rows = -1; }).names("-1 x 70"));
  CHECK(plan_error([](plan_type& p) { p.linears[1].name = p.linears[0].name; }).names("twice"));
  CHECK(plan_error([](plan_type& p) {
          p.tensors[0].name = p.linears[0].name + ".weight";
        }).names("belongs to a quantized linear"));
  CHECK(plan_error([](plan_type& p) {
          p.tensors[0].name = p.linears[0].name;
        }).names("a linear and"));
  for (const char* name : {"", "/", ".", "..", "a/.."})
    CHECK(error_of([&] { bl::checkpoint_writer w(name, small().plan, "x"); }).code ==
          bl::status::invalid_argument);
}

TEST_CASE("a destination with a trailing slash and missing folders above it works") {
  temporary_folder folder;
  small().write(folder / "a/b/out/");
  CHECK(bl::checkpoint(folder / "a/b/out").linears().size() == 4);
}
