// SPDX-License-Identifier: MIT
// Seed: 41.
#include "model_folder.hpp"
#include <llama/model.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <string>
#include <vector>

TEST_CASE("a dense model runs unquantized, and 16 bits mean the same") {
  const llama::model m = llama::load(support::golden_folder("mha_untied_f16"));
  CHECK(m.precisions() == std::vector<int>{0});
  CHECK(m.checked_precision(0) == 0);
  CHECK(m.checked_precision(16) == 0);
  CHECK_THROWS_WITH_AS(
      m.checked_precision(4),
      (m.folder().string() + ": precision 4 bits asked for, present: unquantized").c_str(),
      bitladder::error);
}

TEST_CASE("a quantized model runs at what the file holds, and names it") {
  const support::temporary_folder folder;
  const auto path = folder.path() / "q";
  support::write_quantized(support::stored_model::read(support::golden_folder("mha_untied_f16")),
                           path, 3, 5, 1, 41);
  const llama::model m = llama::load(path);
  CHECK(m.quantized());
  CHECK(m.precisions() == std::vector<int>{3, 4, 5});
  CHECK(m.checked_precision(5) == 5);
  for (int bits : {0, 16, 2, 6, -1, 99})
    CHECK_THROWS_AS(m.checked_precision(bits), bitladder::error);
  CHECK_THROWS_WITH_AS(
      m.checked_precision(0),
      (path.string() + ": precision unquantized asked for, present: 3 bits, 4 bits, 5 bits")
          .c_str(),
      bitladder::error);
}

TEST_CASE("a token's bytes are top planes, one table, the head, norms and an embedding row") {
  const support::temporary_folder folder;
  const auto path = folder.path() / "q";
  support::write_quantized(support::stored_model::read(support::golden_folder("mha_untied_f16")),
                           path, 2, 8, 2, 42);
  const llama::model m = llama::load(path);
  // hidden 40, intermediate 60, 4 heads of 10, vocabulary 72, fp16, 2 layers, 2 column groups.
  for (int b = 2; b <= 8; ++b) {
    const std::size_t bits = static_cast<std::size_t>(b), table = std::size_t{2} << b;
    std::size_t layer = 0;
    for (std::size_t rows : {40, 40, 40, 40, 60, 60})
      layer += rows * (bits * 2 * 4 + 2 * table);  // 40 columns: 2 words
    layer += 40 * (bits * 2 * 4 + 2 * table);      // down: 60 columns, 2 words
    CHECK(m.bytes_per_token(b) == 2 * (layer + 2 * 40 * 4) + 40 * 4 + 72 * 40 * 2 + 40 * 2);
  }
  const llama::model dense = llama::load(support::golden_folder("mha_untied_f16"));
  const std::size_t linears = 4 * 40 * 40 + 3 * 60 * 40;
  CHECK(dense.bytes_per_token(0) == 2 * (linears * 2 + 2 * 40 * 4) + 40 * 4 + 72 * 40 * 2 + 40 * 2);
}

TEST_CASE("a folder without a model is refused with its path") {
  const support::temporary_folder folder;
  CHECK_THROWS_AS(llama::load(folder.path()), bitladder::error);
  CHECK_THROWS_AS(llama::load(folder.path() / "nowhere"), bitladder::error);
}
