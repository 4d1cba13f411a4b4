// SPDX-License-Identifier: MIT
// What a bitladder checkpoint is: a folder with config.json and one safetensors file, where a
// quantized linear X has X.qweight, I32 [planes, rows, ceil(cols/32)] in the library's bitplane
// layout, and X.lut{b}, F16 [rows, 2^b] (or [rows, groups, 2^b]), for each precision b; X.weight is
// gone and all other tensors are as they were. Since version 2, X may have outliers as
// core/sparse_matrix.hpp describes them: X.outliers.offsets, I32 [rows + 1], X.outliers.columns,
// I32 [n], and X.outliers.values, F16 [n]; a file without any is version 1. Reader and writer share
// this page.
// Tested by tests/io/checkpoint_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/json.hpp>
#include <bitladder/io/safetensors_plan.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// Of a file without outliers, and the newest. Readers refuse any version that is not between them.
inline constexpr int checkpoint_version = 1;
inline constexpr int checkpoint_version_with_outliers = 2;
/// Readers refuse any other layout: files with the same tensor names exist whose bits are permuted
/// inside words.
inline constexpr const char* checkpoint_layout = "planes-msb-first.columns-lsb-first";

/// One quantized linear of a checkpoint.
struct linear_info {
  std::string name;  ///< of the layer, without ".qweight"
  int rows = 0;      ///< out features
  int cols = 0;      ///< in features, any number
  int planes = 0;    ///< equal to max_bits
  int groups = 1;    ///< column groups with tables of their own
  int min_bits = 0;
  int max_bits = 0;
  int outliers = 0;  ///< weights that are kept beside the codes

  bitplane_layout layout() const { return {rows, cols, planes}; }
  /// Of one plane.
  std::size_t plane_bytes() const { return layout().plane_words() * sizeof(std::uint32_t); }
  /// Of the tables of one precision.
  std::size_t table_bytes(int bits) const {
    return codebook_view(nullptr, rows, groups, bits).size() * sizeof(fp16_t);
  }
  /// Of all outliers, which every precision reads.
  std::size_t outlier_bytes() const { return sparse_view::bytes(rows, outliers); }
  /// All that reading the linear at one precision touches.
  std::size_t bytes(int bits) const {
    return static_cast<std::size_t>(bits) * plane_bytes() + table_bytes(bits) + outlier_bytes();
  }
};

/// Everything about a checkpoint but its values.
struct checkpoint_plan {
  struct linear {
    std::string name;  ///< "model.layers.0.self_attn.q_proj"
    int rows = 0;
    int cols = 0;
    std::int64_t outliers = 0;  ///< exactly; at most 2^31 - 1
  };
  struct tensor {
    std::string name;  ///< "model.norm.weight"
    dtype type = dtype::f16;
    std::vector<std::int64_t> shape;
  };

  int seed_bits = 3;  ///< the precision that was clustered first, min_bits..max_bits
  int min_bits = 2;   ///< 1..max_bits
  int max_bits = 8;   ///< at most 8
  int groups = 1;     ///< must divide the columns of every linear
  std::vector<linear> linears;
  std::vector<tensor> tensors;  ///< what is stored as it was, biases of linears included

  /// Of the file: the lowest that has what it holds.
  int version() const {
    for (const linear& l : linears)
      if (l.outliers > 0) return checkpoint_version_with_outliers;
    return checkpoint_version;
  }
};

namespace detail {

inline std::string qweight_name(const std::string& linear) { return linear + ".qweight"; }
inline std::string lut_name(const std::string& linear, int bits) {
  return linear + ".lut" + std::to_string(bits);
}

/// The tensors of a linear's outliers, where there are any.
struct outlier_names {
  std::string offsets, columns, values;
  explicit outlier_names(const std::string& linear)
      : offsets(linear + ".outliers.offsets"),
        columns(linear + ".outliers.columns"),
        values(linear + ".outliers.values") {}
};

/// [rows, 2^bits], or [rows, groups, 2^bits] where there is more than one group.
inline std::vector<std::int64_t> lut_shape(int rows, int groups, int bits) {
  if (groups == 1) return {rows, std::int64_t{1} << bits};
  return {rows, groups, std::int64_t{1} << bits};
}

/// @throws error(invalid_argument) naming what contradicts the format
inline safetensors_plan file_plan(const checkpoint_plan& plan) {
  const auto fail = [](const std::string& what) { throw error(status::invalid_argument, what); };
  if (plan.min_bits < 1 || plan.max_bits > bitplane_layout::max_planes ||
      plan.seed_bits < plan.min_bits || plan.seed_bits > plan.max_bits)
    fail("checkpoint: expected 1 <= min_bits <= seed_bits <= max_bits <= 8, found " +
         std::to_string(plan.min_bits) + ", " + std::to_string(plan.seed_bits) + ", " +
         std::to_string(plan.max_bits));
  if (plan.groups < 1)
    fail("checkpoint: expected at least 1 group, found " + std::to_string(plan.groups));
  safetensors_plan file;
  nlohmann::json cols = nlohmann::json::object();
  for (const checkpoint_plan::linear& l : plan.linears) {
    if (l.rows < 0 || l.cols < 0 || l.cols % plan.groups != 0)
      fail("checkpoint: linear \"" + l.name + "\": expected sizes from 0 on and columns in " +
           std::to_string(plan.groups) + " equal groups, found " + std::to_string(l.rows) + " x " +
           std::to_string(l.cols));
    const bitplane_layout layout{l.rows, l.cols, plan.max_bits};
    file.add(qweight_name(l.name), dtype::i32, {layout.planes, layout.rows, layout.words()});
    for (int b = plan.min_bits; b <= plan.max_bits; ++b)
      file.add(lut_name(l.name, b), dtype::f16, lut_shape(l.rows, plan.groups, b));
    const std::int64_t most = std::min<std::int64_t>(static_cast<std::int64_t>(l.rows) * l.cols,
                                                     std::numeric_limits<std::int32_t>::max());
    if (l.outliers < 0 || l.outliers > most)
      fail("checkpoint: linear \"" + l.name + "\": expected 0 to " + std::to_string(most) +
           " outliers, found " + std::to_string(l.outliers));
    if (l.outliers > 0) {
      const outlier_names names(l.name);
      file.add(names.offsets, dtype::i32, {std::int64_t{l.rows} + 1});
      file.add(names.columns, dtype::i32, {l.outliers});
      file.add(names.values, dtype::f16, {l.outliers});
    }
    cols[l.name] = l.cols;
  }
  for (const checkpoint_plan::tensor& t : plan.tensors) {
    const std::string suffix = ".weight";
    if (t.name.size() > suffix.size() &&
        t.name.compare(t.name.size() - suffix.size(), suffix.size(), suffix) == 0 &&
        cols.contains(t.name.substr(0, t.name.size() - suffix.size())))
      fail("checkpoint: \"" + t.name + "\" belongs to a quantized linear and cannot be kept too");
    file.add(t.name, t.type, t.shape);
  }
  file.set_metadata("format", "bitladder");
  file.set_metadata("bitladder.version", std::to_string(plan.version()));
  file.set_metadata("bitladder.layout", checkpoint_layout);
  file.set_metadata("bitladder.seed_bits", std::to_string(plan.seed_bits));
  file.set_metadata("bitladder.min_bits", std::to_string(plan.min_bits));
  file.set_metadata("bitladder.max_bits", std::to_string(plan.max_bits));
  file.set_metadata("bitladder.groups", std::to_string(plan.groups));
  file.set_metadata("bitladder.cols", to_json_text(cols));
  return file;
}

/// The "bitladder" object of config.json, for people and for tools that read no safetensors.
inline nlohmann::ordered_json config_entry(const checkpoint_plan& plan) {
  nlohmann::ordered_json modules = nlohmann::ordered_json::array();
  for (const checkpoint_plan::linear& l : plan.linears) modules.push_back(l.name);
  nlohmann::ordered_json entry = {{"format_version", plan.version()}, {"layout", checkpoint_layout},
                                  {"seed_bits", plan.seed_bits},      {"min_bits", plan.min_bits},
                                  {"max_bits", plan.max_bits},        {"groups", plan.groups}};
  std::int64_t outliers = 0;
  for (const checkpoint_plan::linear& l : plan.linears) outliers += l.outliers;
  if (outliers > 0) entry["outliers"] = outliers;
  entry["modules"] = modules;
  return entry;
}

/// Kernels sum over whole words, so the bits past the last column must be zero.
/// @throws error(bad_file) naming the place of the first that is not
inline void require_clear_padding(bitplane_view planes, const std::string& where) {
  const int used = planes.cols() % 32;
  if (used == 0) return;
  const int last = planes.layout().words() - 1;
  for (int p = 0; p < planes.planes(); ++p)
    for (int r = 0; r < planes.rows(); ++r)
      if (planes.row(p, r)[last] >> used != 0)
        throw error(status::bad_file, where + ": plane " + std::to_string(p) + ", row " +
                                          std::to_string(r) + ": bits past column " +
                                          std::to_string(planes.cols()) +
                                          " are set, expected zeros");
}

/// @param count entries that there is memory for
/// @throws error(bad_file) naming the place of the first fault
inline void require_sound_outliers(const sparse_view& outliers, std::int64_t count,
                                   const std::string& where) {
  const sparse_fault fault = find_fault(outliers, count);
  if (fault.code != status::ok) throw error(fault.code, where + ": " + fault.text);
}

/// @throws error(bad_file) naming the first outlier of another code than those before it in its row
/// and column group
inline void require_shared_codes(const sparse_view& outliers, bitplane_view planes, int groups,
                                 const std::string& where) {
  const sparse_fault fault = find_code_fault(outliers, planes, groups);
  if (fault.code != status::ok) throw error(fault.code, where + ": " + fault.text);
}

/// @throws error(bad_file) naming the first entry that is not finite or falls below the one before
inline void require_sound_tables(codebook_view tables, const std::string& where) {
  for (int r = 0; r < tables.rows(); ++r) {
    for (int g = 0; g < tables.groups(); ++g) {
      const fp16_t* table = tables.table(r, g);
      float before = -fp16_max;
      for (int i = 0; i < tables.entries(); ++i) {
        const float value = to_float(table[i]);
        if (!(value >= before && value <= fp16_max))
          throw error(status::bad_file, where + ": row " + std::to_string(r) + ", group " +
                                            std::to_string(g) + ", entry " + std::to_string(i) +
                                            ": expected finite values that never fall, found " +
                                            std::to_string(value) +
                                            (i == 0 ? "" : " after " + std::to_string(before)));
        before = value;
      }
    }
  }
}

}  // namespace detail
}  // namespace v0_1
}  // namespace bitladder
