// SPDX-License-Identifier: MIT
// Reads a published SqueezeLLM checkpoint: a file of torch.save with, for linear X, X.qweight, I32
// [cols/32 * bits, rows] in the order of squeezellm_layout.hpp, and X.lookup_table, F32 [rows,
// 2^bits], in any order; where it is sparse too, X.rows, I32 [rows + 1], X.cols, I32 [n], and
// X.vals, F32 [n]; beside it quant_config.json, {"wbits": bits}. A linear is read as one precision
// of ours: tables ascending and rounded to fp16, codes relabelled to match, sparse values as
// outliers. Tested by tests/io/squeezellm_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/checkpoint_format.hpp>
#include <bitladder/io/json.hpp>
#include <bitladder/io/squeezellm_layout.hpp>
#include <bitladder/io/squeezellm_outliers.hpp>
#include <bitladder/io/torch_file.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// What rounding tables to fp16 changed most.
struct table_rounding {
  double largest = 0;  ///< |rounded - stored|; 0 if every entry fits
  float stored = 0;    ///< the entry that it happened to
  int row = 0;
};

/// One linear of a SqueezeLLM checkpoint in our form.
struct squeezellm_matrix {
  bitplane_tensor planes;
  codebook_ladder tables;  ///< of one precision
  table_rounding rounding;
  sparse_matrix outliers;
};

/// One opened SqueezeLLM checkpoint. Move-only; views stay valid while it lives, moved or not.
class squeezellm_checkpoint {
 public:
  /// @param path the file, or a folder with one file NAME.pt (or pytorch_model.bin)
  /// @throws error naming file, tensor, what was expected and what was found; one with rows that
  /// are dense and in full precision beside the sparse part is refused
  explicit squeezellm_checkpoint(const std::filesystem::path& path) : file_(file_in(path)) {
    read_config();
    for (const torch_tensor& t : file_.tensors()) {
      const std::string name = without_suffix(t.name, ".qweight");
      if (name.empty()) continue;
      index_.emplace(name, linears_.size());
      linears_.push_back(read_linear(name, t));
    }
    if (linears_.empty())
      fail("expected quantized linears X with X.qweight and X.lookup_table, found none");
    for (const torch_tensor& t : file_.tensors()) {
      const std::string name = without_suffix(t.name, ".lookup_table");
      if (!name.empty() && !is_quantized(name))
        fail("tensor \"" + t.name + "\" has no \"" + name + ".qweight\" beside it");
    }
    require_whole_sparse_parts();
  }

  /// Whether a folder's quant_config.json says that it holds such a checkpoint.
  /// @throws error(bad_file) if there is a quant_config.json that is not JSON
  static bool is_squeezellm(const std::filesystem::path& folder) {
    std::error_code ignored;
    const std::filesystem::path path = folder / "quant_config.json";
    if (!std::filesystem::exists(path, ignored)) return false;
    const nlohmann::json config = read_json(path);
    return config.is_object() && config.contains("wbits");
  }

  /// The file of tensors.
  const std::string& path() const { return file_.path(); }
  /// The only precision.
  int bits() const { return bits_; }
  /// In the order of the file.
  const std::vector<linear_info>& linears() const { return linears_; }
  bool is_quantized(const std::string& name) const { return index_.count(name) != 0; }
  /// @throws error(not_found)
  const linear_info& linear(const std::string& name) const {
    const auto it = index_.find(name);
    if (it != index_.end()) return linears_[it->second];
    static_cast<void>(file_.at(detail::qweight_name(name)));  // throws, naming the closest
    throw error(status::not_found, path() + ": no quantized linear \"" + name + "\"");
  }

  /// A linear as one precision of ours. Equal entries of a table keep their order; entries are
  /// rounded to the nearest fp16, ties to even, after they are sorted.
  /// @param pool may be null; the result does not depend on it
  /// @throws error(not_found); error(bad_file) naming tensor and row if an entry or an outlier is
  /// not within the range of fp16, or the sparse part contradicts itself
  squeezellm_matrix read(const std::string& name, thread_pool* pool = nullptr) const {
    const linear_info& l = linear(name);
    squeezellm_matrix out;
    std::vector<std::uint8_t> labels(static_cast<std::size_t>(l.rows) << bits_);
    out.tables = codebook_ladder(l.rows, 1, bits_, bits_);
    out.rounding = sort_tables(l, labels.data(), out.tables.data(bits_));
    out.planes = planes_from_squeezellm(file_.bytes(detail::qweight_name(name)).data(), l.layout(),
                                        labels.data(), pool);
    if (l.outliers > 0)
      out.outliers = outliers_from_squeezellm(
          {file_.bytes(name + ".rows").data(), file_.bytes(name + ".cols").data(),
           file_.bytes(name + ".vals").data(), l.outliers},
          sorted_tables(l), out.planes, path() + ": sparse part of \"" + name + "\"");
    else
      out.outliers = sparse_matrix(l.rows, l.cols);
    return out;
  }

  /// What `read` says of rounding, without reading codes.
  /// @throws what `read` throws
  table_rounding rounding(const std::string& name) const {
    const linear_info& l = linear(name);
    std::vector<std::uint8_t> labels(static_cast<std::size_t>(l.rows) << bits_);
    std::vector<fp16_t> tables(labels.size());
    return sort_tables(l, labels.data(), tables.data());
  }

  /// Every tensor but codes, tables and sparse parts, biases included, in the order of the file.
  std::vector<tensor_info> plain_tensors() const {
    std::vector<tensor_info> plain;
    for (const torch_tensor& t : file_.tensors())
      if (!is_quantized(without_suffix(t.name, ".qweight")) &&
          !is_quantized(without_suffix(t.name, ".lookup_table")) && sparse_part_of(t.name).empty())
        plain.push_back(t);
    return plain;
  }
  /// The bytes of a tensor in the mapping, at any address.
  /// @throws error(not_found), or error(bad_file) if it is not contiguous
  vector_view<const std::byte> bytes(const std::string& name) const { return file_.bytes(name); }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw error(status::bad_file, path() + ": " + what);
  }

  /// "X" for "X.suffix", "" for any other name.
  static std::string without_suffix(const std::string& name, std::string_view suffix) {
    if (name.size() <= suffix.size() ||
        name.compare(name.size() - suffix.size(), suffix.size(), suffix) != 0)
      return {};
    return name.substr(0, name.size() - suffix.size());
  }

  static std::filesystem::path file_in(const std::filesystem::path& path) {
    std::error_code ignored;
    if (!std::filesystem::is_directory(path, ignored)) return path;
    std::vector<std::filesystem::path> found;
    std::error_code e;
    for (auto it = std::filesystem::directory_iterator(path, e);
         !e && it != std::filesystem::directory_iterator(); it.increment(e))
      if (it->path().extension() == ".pt") found.push_back(it->path());
    if (e) throw error(status::io_failed, path.string() + ": cannot be listed: " + e.message());
    std::sort(found.begin(), found.end());
    if (found.empty() && std::filesystem::exists(path / "pytorch_model.bin", ignored))
      found.push_back(path / "pytorch_model.bin");
    if (found.empty())
      throw error(status::not_found,
                  path.string() + ": expected a file NAME.pt or pytorch_model.bin in this folder");
    if (found.size() > 1)
      throw error(status::bad_file, path.string() + ": expected one file NAME.pt, found " +
                                        found[0].filename().string() + " and " +
                                        found[1].filename().string() + "; name the one to read");
    return found[0];
  }

  /// The linear whose sparse part a tensor of that name is of, or "". `startrows` tells threads
  /// where to start, and nothing about values.
  static std::string sparse_part_of(const std::string& tensor) {
    for (const char* part : {".rows", ".cols", ".vals", ".startrows"}) {
      std::string name = without_suffix(tensor, part);
      if (!name.empty()) return name;
    }
    return {};
  }

  void require_whole_sparse_parts() const {
    for (const torch_tensor& t : file_.tensors()) {
      for (const char* part : {".full_rows", ".full_row_indices"})
        if (!without_suffix(t.name, part).empty())
          fail("tensor \"" + t.name +
               "\": rows in full precision beside the sparse part are not read; expected a sparse "
               "part of rows, cols and vals only");
      const std::string name = sparse_part_of(t.name);
      if (name.empty()) continue;
      for (const char* part : {".qweight", ".rows", ".cols", ".vals"})
        if (file_.find(name + part) == nullptr)
          fail("tensor \"" + t.name + "\" has no \"" + name + part + "\" beside it");
    }
    // The number of sparse values. What it says, the tensors say as well.
    const std::string key = "sparse_threshold.";
    for (const std::string& other : file_.others())
      if (other.compare(0, key.size(), key) == 0 &&
          file_.find(other.substr(key.size()) + ".rows") == nullptr)
        fail("\"" + other + "\" says that there is a sparse part, but there is no tensor \"" +
             other.substr(key.size()) + ".rows\"");
  }

  void read_config() {
    const std::filesystem::path config_path =
        std::filesystem::path(path()).parent_path() / "quant_config.json";
    std::error_code ignored;
    if (!std::filesystem::exists(config_path, ignored)) return;  // the tables say it too
    const nlohmann::json config = read_json(config_path);
    const auto wbits = config.is_object() ? config.find("wbits") : config.end();
    if (wbits == config.end())
      throw error(status::bad_file, config_path.string() + ": expected an object with \"wbits\"");
    if (!wbits->is_number_unsigned() || wbits->get<std::uint64_t>() < 1 ||
        wbits->get<std::uint64_t>() > bitplane_layout::max_planes)
      throw error(status::bad_file, config_path.string() +
                                        ": \"wbits\": expected a whole number from 1 to 8, found " +
                                        detail::shortened(to_json_text(*wbits)));
    bits_ = wbits->get<int>();
  }

  /// The precision that a table's shape means, or nothing.
  static std::optional<int> bits_of(const torch_tensor& table) {
    if (table.shape.size() == 2)
      for (int b = 1; b <= bitplane_layout::max_planes; ++b)
        if (table.shape[1] == std::int64_t{1} << b) return b;
    return std::nullopt;
  }

  linear_info read_linear(const std::string& name, const torch_tensor& qweight) {
    const torch_tensor& table = file_.at(name + ".lookup_table");
    const std::optional<int> bits = bits_of(table);
    if (bits_ == 0 && bits) bits_ = *bits;
    const std::string entries = bits_ == 0 ? "2^bits" : std::to_string(1 << bits_);
    constexpr std::int64_t most = std::numeric_limits<int>::max();
    if (qweight.type != dtype::i32 || qweight.shape.size() != 2 || qweight.shape[1] > most)
      fail("tensor \"" + qweight.name + "\": expected I32 [words, rows], found " +
           to_string(qweight.type) + " " + to_string(qweight.shape));
    const std::int64_t rows = qweight.shape[1];
    if (table.type != dtype::f32 || !bits || *bits != bits_ || table.shape[0] != rows)
      fail("tensor \"" + table.name + "\": expected F32 [" + std::to_string(rows) + ", " + entries +
           "], found " + to_string(table.type) + " " + to_string(table.shape));
    if (qweight.shape[0] % bits_ != 0 || qweight.shape[0] / bits_ > most / 32)
      fail("tensor \"" + qweight.name + "\": expected " + std::to_string(bits_) +
           " words for every 32 columns, found " + to_string(qweight.shape));
    static_cast<void>(file_.bytes(qweight));  // contiguous, or an error that says it
    static_cast<void>(file_.bytes(table));
    if (file_.find(name + ".weight") != nullptr)
      fail("linear \"" + name + "\" is there twice: as codes and as \"" + name + ".weight\"");
    linear_info l;
    l.name = name;
    l.rows = static_cast<int>(rows);
    l.cols = static_cast<int>(qweight.shape[0] / bits_) * 32;
    l.planes = l.min_bits = l.max_bits = bits_;
    l.outliers = count_outliers(l);
    return l;
  }

  int count_outliers(const linear_info& l) const {
    const torch_tensor* const cols = file_.find(l.name + ".cols");
    if (cols == nullptr) return 0;
    constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
    const bool fits = cols->shape.size() == 1 && cols->shape[0] <= most;
    const auto require = [&](const torch_tensor& t, dtype type, std::vector<std::int64_t> shape) {
      if (t.type != type || t.shape != shape)
        fail("tensor \"" + t.name + "\": expected " + to_string(type) + " " + to_string(shape) +
             ", found " + to_string(t.type) + " " + to_string(t.shape));
      static_cast<void>(file_.bytes(t));  // contiguous, or an error that says it
    };
    require(*cols, dtype::i32, {fits ? cols->shape[0] : most});
    require(file_.at(l.name + ".vals"), dtype::f32, cols->shape);
    require(file_.at(l.name + ".rows"), dtype::i32, {std::int64_t{l.rows} + 1});
    return static_cast<int>(cols->shape[0]);
  }

  /// The entries of each row, ascending, as they are stored: those that relabelled codes mean.
  std::vector<float> sorted_tables(const linear_info& l) const {
    std::vector<float> values(static_cast<std::size_t>(l.rows) << bits_);
    std::memcpy(values.data(), file_.bytes(l.name + ".lookup_table").data(), 4 * values.size());
    for (auto row = values.begin(); row != values.end(); row += std::ptrdiff_t{1} << bits_)
      std::sort(row, row + (std::ptrdiff_t{1} << bits_));
    return values;
  }

  /// @param labels of each entry of each row: its place among the sorted ones
  table_rounding sort_tables(const linear_info& l, std::uint8_t* labels, fp16_t* tables) const {
    table_rounding rounding;
    const std::string name = l.name + ".lookup_table";
    const torch_tensor& stored = file_.at(name);
    std::vector<float> values(std::size_t{1} << bits_);
    for (int r = 0; r < l.rows; ++r) {
      const std::size_t at = static_cast<std::size_t>(r) << bits_;
      std::memcpy(values.data(), file_.bytes(stored).data() + 4 * at, 4 * values.size());
      for (std::size_t i = 0; i < values.size(); ++i)
        if (!(std::fabs(values[i]) <= fp16_max))
          fail("tensor \"" + name + "\": row " + std::to_string(r) + ", entry " +
               std::to_string(i) +
               ": expected a value from -65504 to 65504, the range of the fp16 that tables are "
               "kept in, found " +
               std::to_string(values[i]));
      sort_table(values, r, labels + at, tables + at, rounding);
    }
    return rounding;
  }

  static void sort_table(const std::vector<float>& values, int row, std::uint8_t* label,
                         fp16_t* sorted, table_rounding& rounding) {
    std::array<std::uint8_t, 256> order;
    const auto end = order.begin() + static_cast<std::ptrdiff_t>(values.size());
    std::iota(order.begin(), end, std::uint8_t{0});
    std::stable_sort(order.begin(), end,
                     [&](std::uint8_t a, std::uint8_t b) { return values[a] < values[b]; });
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float value = values[order[i]];
      label[order[i]] = static_cast<std::uint8_t>(i);
      sorted[i] = to_fp16(value);
      const double error = std::fabs(static_cast<double>(to_float(sorted[i])) - value);
      if (error > rounding.largest) rounding = {error, value, row};
    }
  }

  torch_file file_;
  int bits_ = 0;
  std::vector<linear_info> linears_;
  std::unordered_map<std::string, std::size_t> index_;
};

}  // namespace v0_1
}  // namespace bitladder
