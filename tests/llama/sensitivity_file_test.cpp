// SPDX-License-Identifier: MIT
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/io/safetensors.hpp>

#include <llama/sensitivity_file.hpp>
#include <support/files.hpp>

#include <doctest/doctest.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

using support::contains;
using support::error_of;

const std::vector<llama::sensitivity_shape> shapes = {{"x.weight", 2, 3}, {"y.weight", 1, 4}};
const std::vector<float> values = {1.5f, 0.f, 1e-30f, 3e38f, 0.1f, 7.f, 2.f, 4.f, 8.f, 16.f};
const std::vector<bitladder::matrix_view<const float>> sums = {{values.data(), 2, 3},
                                                               {values.data() + 6, 1, 4}};

llama::sensitivity_origin origin() {
  llama::sensitivity_origin o;
  o.samples = 3;
  o.seq_len = 16;
  o.random_state = 18446744073709551615u;
  o.drawn = "documents";
  o.tokens = 1;
  o.model = 0xfedcba9876543210u;
  return o;
}

fs::path written(const support::temporary_folder& folder) {
  const fs::path path = folder / "s.safetensors";
  llama::write_sensitivities(path, origin(), shapes, sums, {3, 0.1 + 0.2});
  return path;
}

/// The file with the first `from` replaced by as many bytes.
void change(const fs::path& path, const std::string& from, const std::string& to) {
  REQUIRE(from.size() == to.size());
  std::string bytes = support::read_all(path);
  const std::size_t at = bytes.find(from);
  REQUIRE(at != std::string::npos);
  support::write_all(path, bytes.replace(at, from.size(), to));
}

}  // namespace

TEST_CASE("sensitivities are plain F32 tensors under the weights' names") {
  const support::temporary_folder folder;
  const bitladder::safetensors_file file(written(folder));
  REQUIRE(file.tensors().size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    const auto& t = file.at(shapes[i].name);
    CHECK(t.type == bitladder::dtype::f32);
    CHECK(t.shape == std::vector<std::int64_t>{shapes[i].rows, shapes[i].cols});
    const auto bytes = file.bytes(t);
    CHECK(std::memcmp(bytes.data(), sums[i].data(), bytes.size()) == 0);
  }
}

TEST_CASE("what a file says of itself is read back to the last bit") {
  const support::temporary_folder folder;
  const llama::sensitivity_file file(written(folder));
  CHECK(file.state().samples_done == 3);
  CHECK(file.state().loss_sum == 0.1 + 0.2);
  CHECK(file.difference(origin(), shapes).empty());
  CHECK(file.metadata().at("random_state") == "18446744073709551615");
  CHECK(file.metadata().at("model") == "fedcba9876543210");
  const auto read = file.sums(shapes);
  for (std::size_t i = 0; i < 2; ++i)
    for (int r = 0; r < shapes[i].rows; ++r)
      for (int c = 0; c < shapes[i].cols; ++c) CHECK(read[i](r, c) == sums[i](r, c));
}

TEST_CASE("metadata that make no sense are refused by key") {
  struct lie {
    const char *from, *to, *named;
  };
  for (const lie& l :
       {lie{"bitladder sensitivities", "bitladder sensitivitIes", "\"format\": expected"},
        lie{"\"format_version\":\"1\"", "\"format_version\":\"2\"",
            "\"format_version\": expected 1"},
        lie{"\"samples_done\":\"3\"", "\"samples_done\":\"x\"", "\"samples_done\""},
        lie{"\"samples_done\":\"3\"", "\"samples_done\":\"0\"", "\"samples_done\""},
        lie{"\"samples_done\":\"3\"", "\"samples_Done\":\"3\"", "found nothing"},
        lie{"\"loss_sum\":\"0.", "\"loss_sum\":\"x.", "\"loss_sum\": expected a number"}}) {
    CAPTURE(l.to);
    const support::temporary_folder folder;
    const fs::path path = written(folder);
    change(path, l.from, l.to);
    const auto thrown = error_of([&] { llama::sensitivity_file file(path); });
    CAPTURE(thrown.text);
    CHECK(thrown.code == bitladder::status::bad_file);
    CHECK(thrown.names(path.string()));
    CHECK(thrown.names(l.named));
  }
}

TEST_CASE("a changed value is found by the checksum") {
  const support::temporary_folder folder;
  const fs::path path = written(folder);
  std::string bytes = support::read_all(path);
  for (std::size_t at : {bytes.size() - 40, bytes.size() - 17, bytes.size() - 1}) {
    std::string bad = bytes;
    bad[at] = static_cast<char>(bad[at] ^ 4);
    support::write_all(path, bad);
    const llama::sensitivity_file file(path);
    const auto thrown = error_of([&] { static_cast<void>(file.sums(shapes)); });
    CHECK(thrown.code == bitladder::status::bad_file);
    CHECK(thrown.names(path.string() + ": is damaged"));
  }
}
