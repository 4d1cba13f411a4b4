// SPDX-License-Identifier: MIT
#include <bitladder/io/checkpoint.hpp>

#include "model_folder.hpp"
#include <llama/float_tensors.hpp>
#include <llama/quantize_model.hpp>
#include <llama/rest_type.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

using bitladder::dtype;
using llama::rest_type;

const fs::path data = fs::path(BL_SOURCE_DIR) / "tests/llama/data";

float rounded(float x, dtype type) {
  return type == dtype::f16    ? bitladder::to_float(bitladder::to_fp16(x))
         : type == dtype::bf16 ? bitladder::to_float(bitladder::to_bf16(x))
                               : x;
}

/// Quantizes and compares every tensor that is not quantized with the source's.
/// @param matrices the type that they should have; vectors keep theirs
void require_rest(const fs::path& source, rest_type rest, dtype matrices) {
  CAPTURE(source.string());
  const support::temporary_folder folder;
  llama::quantize_model_options options;
  options.rest = rest;
  options.kmeans.min_bits = options.kmeans.seed_bits = options.kmeans.max_bits = 3;
  llama::quantize_model(source, folder.path() / "out", options, nullptr);
  const bitladder::checkpoint made(folder.path() / "out");
  const llama::float_tensors original(source);
  int seen = 0;
  for (const bitladder::tensor_info& t : made.plain_tensors()) {
    CAPTURE(t.name);
    const bitladder::tensor_info& from = original.at(t.name);
    const dtype expected = t.shape.size() == 2 ? matrices : from.type;
    CHECK(t.type == expected);
    CHECK(t.shape == from.shape);
    std::vector<float> values(static_cast<std::size_t>(from.elements()));
    original.read_as_float(from, values.data());
    for (float& v : values) v = rounded(v, expected);
    CHECK(made.tensors().read_as_float(t.name) == values);
    seen += t.shape.size() == 2;
  }
  CHECK(seen >= 1);
  const llama::model runs(folder.path() / "out");
  CHECK(runs.weights().embedding.type == matrices);
}

}  // namespace

TEST_CASE("matrices that are not quantized keep their type, but blocks become fp16") {
  require_rest(data / "gqa_tied_f32", rest_type::keep, dtype::f32);
  require_rest(data / "mha_untied_f16", rest_type::keep, dtype::f16);
  require_rest(data / "linear_bias_bf16", rest_type::keep, dtype::bf16);
  require_rest(data / "tied.gguf", rest_type::keep, dtype::f16);
}

TEST_CASE("matrices that are not quantized take the type asked for, vectors do not") {
  for (const char* source : {"gqa_tied_f32", "mha_untied_f16", "linear_bias_bf16", "tied.gguf"}) {
    require_rest(data / source, rest_type::f32, dtype::f32);
    require_rest(data / source, rest_type::f16, dtype::f16);
    require_rest(data / source, rest_type::bf16, dtype::bf16);
  }
}

TEST_CASE("values past the range of fp16 are refused by tensor and element, and fit bf16") {
  support::stored_model m = support::stored_model::read(data / "gqa_tied_f32");
  support::stored_tensor& t = m.tensors.at("model.embed_tokens.weight");
  const float big = 70000.f;
  std::memcpy(t.bytes.data() + 4 * 37, &big, 4);
  const support::temporary_folder folder;
  m.write(folder.path());
  llama::quantize_model_options options;
  options.rest = rest_type::f16;
  std::string text;
  try {
    llama::quantize_model(folder.path(), folder.path() / "out", options, nullptr);
  } catch (const bitladder::error& e) {
    text = e.what();
  }
  CHECK(text.find(folder.path().string()) == 0);
  CHECK(text.find("tensor \"model.embed_tokens.weight\": element 37 is past the range of F16") !=
        std::string::npos);
  CHECK(!fs::exists(folder.path() / "out"));
  options.rest = rest_type::bf16;
  options.overwrite = true;  // of the unfinished work
  llama::quantize_model(folder.path(), folder.path() / "out", options, nullptr);
  CHECK(bitladder::checkpoint(folder.path() / "out")
            .tensors()
            .read_as_float("model.embed_tokens.weight")[37] == 70144.f);
}
