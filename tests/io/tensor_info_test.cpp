// SPDX-License-Identifier: MIT
// No random data.
#include <bitladder/io/tensor_info.hpp>

#include <doctest/doctest.h>

#include <limits>

namespace bl = bitladder;

TEST_CASE("every dtype has a name that leads back to it") {
  for (int i = 0; i <= static_cast<int>(bl::dtype::boolean); ++i) {
    const bl::dtype t = static_cast<bl::dtype>(i);
    REQUIRE(bl::parse_dtype(bl::to_string(t)).has_value());
    CHECK(*bl::parse_dtype(bl::to_string(t)) == t);
  }
  for (const char* name : {"", "f32", "F3", "F328", "F8_E4M3"}) CHECK_FALSE(bl::parse_dtype(name));
}

TEST_CASE("sizes are products, and nothing where they would overflow or a dimension is negative") {
  constexpr std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  CHECK(bl::byte_size(bl::dtype::f32, {}) == 4u);
  CHECK(bl::byte_size(bl::dtype::f16, {3, 5}) == 30u);
  CHECK(bl::byte_size(bl::dtype::u8, {huge}) == static_cast<std::uint64_t>(huge));
  CHECK(bl::byte_size(bl::dtype::u8, {huge, 2}) == std::nullopt);
  CHECK(bl::byte_size(bl::dtype::f16, {huge}) == std::nullopt);
  CHECK(bl::byte_size(bl::dtype::f64, {std::int64_t{1} << 31, std::int64_t{1} << 31}) ==
        std::nullopt);
  CHECK(bl::byte_size(bl::dtype::f32, {huge, huge, 0}) == 0u);
  CHECK(bl::byte_size(bl::dtype::f32, {0, -1}) == std::nullopt);
}

TEST_CASE("a wrong name is answered with the closest") {
  std::vector<bl::tensor_info> tensors;
  for (const char* name : {"model.norm.weight", "model.layers.0.mlp.up_proj.weight",
                           "model.layers.1.mlp.up_proj.weight", "lm_head.weight", "x"})
    tensors.push_back({name, bl::dtype::f32, {}, 0, 4});
  CHECK(bl::detail::closest_names("model.layers.0.mlp.up_proj", tensors) ==
        "it holds 5 tensors; closest: model.layers.0.mlp.up_proj.weight, "
        "model.layers.1.mlp.up_proj.weight, model.norm.weight");
  CHECK(bl::detail::closest_names("a", {}) == "it holds no tensors");
  CHECK(bl::detail::edit_distance("kitten", "sitting") == 3);
  CHECK(bl::detail::edit_distance("", "abc") == 3);
}
