// SPDX-License-Identifier: MIT
// A checkpoint of a few odd shapes with random codes and tables, for the tests of reader and
// writer.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/pack.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/io/checkpoint_writer.hpp>

#include "support/random.hpp"
#include <support/files.hpp>

#include <algorithm>
#include <string>
#include <vector>

namespace support {

struct small_linear {
  std::string name;
  std::vector<std::uint8_t> codes;  // [rows, cols]
  bitladder::bitplane_tensor planes;
  bitladder::codebook_ladder tables;
  bitladder::sparse_matrix outliers;
};

/// Random ones, whose codes become one in every row and column group.
inline bitladder::sparse_matrix some_outliers(random& r, int rows, int cols, int groups,
                                              double share, std::vector<std::uint8_t>& codes) {
  if (share == 0) return {rows, cols};  // no random number is drawn
  std::vector<std::int32_t> offsets = {0}, columns;
  std::vector<bitladder::fp16_t> values;
  for (int row = 0; row < rows; ++row) {
    int first = -1;
    for (int col = 0; col < cols; ++col) {
      if (groups > 1 && col % (cols / groups) == 0) first = -1;
      if (r.uniform() >= share) continue;
      columns.push_back(col);
      values.push_back(bitladder::to_fp16(static_cast<float>(r.normal())));
      const std::size_t at = static_cast<std::size_t>(row) * static_cast<std::size_t>(cols);
      if (first < 0) first = codes[at + static_cast<std::size_t>(col)];
      codes[at + static_cast<std::size_t>(col)] = static_cast<std::uint8_t>(first);
    }
    offsets.push_back(static_cast<std::int32_t>(columns.size()));
  }
  return {rows, cols, std::move(offsets), std::move(columns), std::move(values)};
}

struct small_checkpoint {
  bitladder::checkpoint_plan plan;
  std::vector<small_linear> linears;
  std::vector<std::string> tensors;  // bytes, in the order of plan.tensors

  /// @param shapes rows and columns of each linear; columns a multiple of groups
  /// @param outliers the share of outliers
  small_checkpoint(std::uint64_t seed, const std::vector<std::pair<int, int>>& shapes, int min_bits,
                   int max_bits, int groups = 1, double outliers = 0) {
    random r(seed);
    plan.min_bits = min_bits;
    plan.max_bits = max_bits;
    plan.seed_bits = std::min(max_bits, std::max(min_bits, 3));
    plan.groups = groups;
    for (const auto& [rows, cols] : shapes) {
      small_linear l;
      l.name = "model.layers." + std::to_string(linears.size()) + ".proj";
      for (int i = 0; i < rows * cols; ++i)
        l.codes.push_back(static_cast<std::uint8_t>(r.below(1 << max_bits)));
      l.outliers = some_outliers(r, rows, cols, groups, outliers, l.codes);
      l.planes = bitladder::pack(
          bitladder::matrix_view<const std::uint8_t>(l.codes.data(), rows, cols), max_bits);
      l.tables = bitladder::codebook_ladder(rows, groups, min_bits, max_bits);
      for (int b = min_bits; b <= max_bits; ++b) {
        for (int table = 0; table < rows * groups; ++table) {
          std::vector<float> values = r.normals(std::size_t{1} << b);
          std::sort(values.begin(), values.end());
          for (std::size_t i = 0; i < values.size(); ++i)
            l.tables.data(b)[(static_cast<std::size_t>(table) << b) + i] =
                bitladder::to_fp16(values[i]);
        }
      }
      plan.linears.push_back({l.name, rows, cols, l.outliers.count()});
      linears.push_back(std::move(l));
    }
    plan.tensors = {{"model.embed_tokens.weight", bitladder::dtype::f16, {7, 9}},
                    {"model.layers.0.proj.bias", bitladder::dtype::f32, {3}},
                    {"model.nothing", bitladder::dtype::bf16, {0}}};
    for (const auto& t : plan.tensors) {
      std::string bytes(*bitladder::byte_size(t.type, t.shape), '\0');
      for (char& c : bytes) c = static_cast<char>(r.next());
      tensors.push_back(bytes);
    }
  }

  std::size_t parts() const { return linears.size() + tensors.size(); }
  std::string name(std::size_t part) const {
    return part < linears.size() ? linears[part].name : plan.tensors[part - linears.size()].name;
  }
  void write_part(bitladder::checkpoint_writer& w, std::size_t part) const {
    if (part < linears.size())
      w.write_linear(linears[part].name, linears[part].planes.view(), linears[part].tables,
                     linears[part].outliers.view());
    else
      w.write_tensor(name(part), tensors[part - linears.size()].data(),
                     tensors[part - linears.size()].size());
  }
  void write_rest(bitladder::checkpoint_writer& w) const {
    for (std::size_t i = 0; i < parts(); ++i)
      if (!w.done(name(i))) write_part(w, i);
  }
  void write(const std::filesystem::path& folder) const {
    bitladder::checkpoint_writer w(folder, plan, "test");
    write_rest(w);
    w.finish(config());
  }
  static std::string config() { return R"({"model_type": "llama", "hidden_size": 9})"; }
};

}  // namespace support
