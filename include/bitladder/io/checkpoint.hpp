// SPDX-License-Identifier: MIT
// Reads a bitladder checkpoint in place: planes and tables are views into the mapped file, so a
// reader of b bits touches the b top planes and the b-bit tables of what it runs, and the rest of
// the file never leaves the disk. The format is described in checkpoint_format.hpp.
// Tested by tests/io/checkpoint_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/checkpoint_format.hpp>
#include <bitladder/io/json.hpp>
#include <bitladder/io/mmap.hpp>
#include <bitladder/io/safetensors_set.hpp>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// One opened checkpoint. Move-only; views stay valid while it lives, moved or not.
class checkpoint {
 public:
  /// @param path a checkpoint's folder, or its model.safetensors
  /// @throws error naming file, tensor, what was expected and what was found; a file of an unknown
  /// version or layout is refused
  explicit checkpoint(const std::filesystem::path& path) : checkpoint(safetensors_set(path)) {}
  /// The same for tensors that are open already.
  explicit checkpoint(safetensors_set tensors) : tensors_(std::move(tensors)) {
    read_metadata();
    const std::string suffix = detail::qweight_name("");
    for (const tensor_info& t : tensors_.tensors()) {
      if (t.name.size() <= suffix.size() ||
          t.name.compare(t.name.size() - suffix.size(), suffix.size(), suffix) != 0)
        continue;
      const std::string name = t.name.substr(0, t.name.size() - suffix.size());
      index_.emplace(name, linears_.size());
      linears_.push_back(read_linear(name, t));
    }
    for (const auto& [name, cols] : cols_)
      if (index_.count(name) == 0)
        fail("metadata bitladder.cols names \"" + name + "\" (" + std::to_string(cols) +
             " columns), but there is no tensor \"" + detail::qweight_name(name) + "\"");
  }

  /// Whether these are a checkpoint's tensors, of whatever version, and not a plain model's.
  static bool is_checkpoint(const safetensors_set& tensors) {
    const auto it = tensors.metadata().find("format");
    return it != tensors.metadata().end() && it->second == "bitladder";
  }

  /// As given to the constructor.
  const std::string& path() const { return tensors_.path(); }
  /// In the order of the file.
  const std::vector<linear_info>& linears() const { return linears_; }
  int seed_bits() const { return seed_bits_; }
  int min_bits() const { return min_bits_; }
  int max_bits() const { return max_bits_; }
  int groups() const { return groups_; }
  /// Ascending.
  std::vector<int> precisions() const {
    std::vector<int> bits;
    for (int b = min_bits_; b <= max_bits_; ++b) bits.push_back(b);
    return bits;
  }
  /// @throws error(not_found) naming the file and the precisions it has
  void require_precision(int bits) const {
    if (bits < min_bits_ || bits > max_bits_)
      throw error(status::not_found,
                  path() + ": " + std::to_string(bits) + " bits asked for, the checkpoint holds " +
                      std::to_string(min_bits_) + " to " + std::to_string(max_bits_));
  }

  /// @param name of the layer: "model.layers.0.mlp.up_proj"
  bool is_quantized(const std::string& name) const { return index_.count(name) != 0; }
  /// @throws error(not_found)
  const linear_info& linear(const std::string& name) const {
    const auto it = index_.find(name);
    if (it == index_.end())
      throw error(status::not_found,
                  path() + ": no quantized linear \"" + name + "\"; as a tensor: " +
                      detail::closest_names(detail::qweight_name(name), tensors_.tensors()));
    return linears_[it->second];
  }

  /// All planes of a linear, in the mapping; `top(bits)` narrows. Touches nothing.
  bitplane_view planes(const std::string& name) const {
    const linear_info& l = linear(name);
    return {data<std::uint32_t>(detail::qweight_name(name)), l.layout()};
  }
  /// The tables of one precision, in the mapping. Touches nothing.
  codebook_view codebook(const std::string& name, int bits) const {
    const linear_info& l = linear(name);
    require_precision(bits);
    return {data<fp16_t>(detail::lut_name(name, bits)), l.rows, l.groups, bits};
  }

  /// The outliers of a linear, in the mapping; empty if it has none. Reads and checks them all,
  /// since kernels trust their columns: 6 bytes for each.
  /// @throws error(bad_file) at the first fault
  sparse_view outliers(const std::string& name) const {
    const linear_info& l = linear(name);
    if (l.outliers == 0) return {};
    const detail::outlier_names names(name);
    const sparse_view view(data<std::int32_t>(names.offsets), data<std::int32_t>(names.columns),
                           data<fp16_t>(names.values), l.rows, l.cols);
    detail::require_sound_outliers(view, l.outliers, path() + ": outliers of \"" + name + "\"");
    return view;
  }

  /// Every tensor of the file, planes, tables and outliers included.
  const safetensors_set& tensors() const { return tensors_; }
  /// The tensors that are stored as they were: all but planes, tables and outliers.
  std::vector<tensor_info> plain_tensors() const {
    std::vector<tensor_info> plain;
    std::set<std::string> of_outliers;
    for (const linear_info& l : linears_)
      if (l.outliers > 0) {
        const detail::outlier_names names(l.name);
        of_outliers.insert({names.offsets, names.columns, names.values});
      }
    for (const tensor_info& t : tensors_.tensors()) {
      if (of_outliers.count(t.name) != 0) continue;
      const std::size_t dot = t.name.rfind('.');
      const std::string layer = t.name.substr(0, dot == std::string::npos ? 0 : dot);
      bool ours = is_quantized(layer) && t.name == detail::qweight_name(layer);
      for (int b = min_bits_; b <= max_bits_ && is_quantized(layer); ++b)
        ours = ours || t.name == detail::lut_name(layer, b);
      if (!ours) plain.push_back(t);
    }
    return plain;
  }

  /// Starts reading from disk all that a run at one precision touches of the quantized linears.
  void prefetch(int bits) const {
    require_precision(bits);
    for (const linear_info& l : linears_) {
      advise(detail::qweight_name(l.name), static_cast<std::size_t>(bits) * l.plane_bytes());
      advise(detail::lut_name(l.name, bits), l.table_bytes(bits));
      if (l.outliers == 0) continue;
      const detail::outlier_names names(l.name);
      const std::size_t count = static_cast<std::size_t>(l.outliers);
      advise(names.offsets, (static_cast<std::size_t>(l.rows) + 1) * sizeof(std::int32_t));
      advise(names.columns, count * sizeof(std::int32_t));
      advise(names.values, count * sizeof(fp16_t));
    }
  }

  /// Reads a linear whole and checks what opening does not: padding bits are zero, tables finite
  /// and ascending, outliers sound, of one code in every row and column group.
  /// @throws error(bad_file) at the first fault
  void validate(const std::string& name) const {
    const auto where = [this](const std::string& tensor) {
      return path() + ": tensor \"" + tensor + "\"";
    };
    detail::require_clear_padding(planes(name), where(detail::qweight_name(name)));
    for (int b = min_bits_; b <= max_bits_; ++b)
      detail::require_sound_tables(codebook(name, b), where(detail::lut_name(name, b)));
    detail::require_shared_codes(outliers(name), planes(name), groups_,
                                 path() + ": outliers of \"" + name + "\"");
  }
  void validate() const {
    for (const linear_info& l : linears_) validate(l.name);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw error(status::bad_file, path() + ": " + what);
  }

  const std::string& metadata(const std::string& key) const {
    const auto it = tensors_.metadata().find(key);
    if (it == tensors_.metadata().end()) fail("metadata has no \"" + key + "\"");
    return it->second;
  }

  int metadata_number(const std::string& key, int low, int high) const {
    const std::string& text = metadata(key);
    int value = 0;
    const char* end = text.data() + text.size();
    const std::from_chars_result r = std::from_chars(text.data(), end, value);
    if (r.ec != std::errc() || r.ptr != end || value < low || value > high)
      fail("metadata \"" + key + "\": expected a number from " + std::to_string(low) + " to " +
           std::to_string(high) + ", found \"" + text + "\"");
    return value;
  }

  void read_metadata() {
    if (!is_checkpoint(tensors_))
      fail(
          "not a bitladder checkpoint: the safetensors metadata has no \"format\": \"bitladder\". "
          "Planes of other formats order their bits differently and must be converted");
    if (tensors_.files().size() != 1)
      fail("expected a checkpoint of one safetensors file, found " +
           std::to_string(tensors_.files().size()));
    const std::string& version = metadata("bitladder.version");
    may_have_outliers_ = version == std::to_string(checkpoint_version_with_outliers);
    if (!may_have_outliers_ && version != std::to_string(checkpoint_version))
      fail("checkpoint version \"" + version + "\" is not known; this library reads versions " +
           std::to_string(checkpoint_version) + " to " +
           std::to_string(checkpoint_version_with_outliers));
    const std::string& layout = metadata("bitladder.layout");
    if (layout != checkpoint_layout)
      fail("checkpoint layout \"" + layout + "\" is not known; this library reads \"" +
           checkpoint_layout + "\"");
    max_bits_ = metadata_number("bitladder.max_bits", 1, bitplane_layout::max_planes);
    min_bits_ = metadata_number("bitladder.min_bits", 1, max_bits_);
    seed_bits_ = metadata_number("bitladder.seed_bits", min_bits_, max_bits_);
    groups_ = metadata_number("bitladder.groups", 1, std::numeric_limits<int>::max());
    const nlohmann::json cols =
        parse_json(metadata("bitladder.cols"), path() + ": metadata bitladder.cols");
    if (!cols.is_object()) fail("metadata bitladder.cols: expected {linear: columns}");
    for (const auto& [name, value] : cols.items()) {
      if (!value.is_number_unsigned() ||
          value.template get<std::uint64_t>() > std::numeric_limits<int>::max())
        fail("metadata bitladder.cols: \"" + name +
             "\": expected a whole number that fits 31 bits, found " + to_json_text(value));
      cols_[name] = value.template get<int>();
    }
  }

  void require(const tensor_info& t, dtype type, const std::vector<std::int64_t>& shape) const {
    if (t.type != type || t.shape != shape)
      fail("tensor \"" + t.name + "\": expected " + to_string(type) + " " + to_string(shape) +
           ", found " + to_string(t.type) + " " + to_string(t.shape));
    if (!tensors_.aligned(t))
      fail("tensor \"" + t.name + "\": byte " + std::to_string(t.begin) +
           " of the data is not a multiple of its element size");
  }

  linear_info read_linear(const std::string& name, const tensor_info& qweight) const {
    const auto it = cols_.find(name);
    if (it == cols_.end()) fail("metadata bitladder.cols does not name \"" + name + "\"");
    if (qweight.shape.size() != 3 || qweight.shape[1] > std::numeric_limits<int>::max())
      fail("tensor \"" + qweight.name + "\": expected [planes, rows, words], found " +
           to_string(qweight.shape));
    linear_info l;
    l.name = name;
    l.rows = static_cast<int>(qweight.shape[1]);
    l.cols = it->second;
    l.planes = max_bits_;
    l.groups = groups_;
    l.min_bits = min_bits_;
    l.max_bits = max_bits_;
    if (l.cols % groups_ != 0)
      fail("linear \"" + name + "\": " + std::to_string(l.cols) + " columns do not make " +
           std::to_string(groups_) + " equal groups");
    require(qweight, dtype::i32, {l.planes, l.rows, l.layout().words()});
    for (int b = min_bits_; b <= max_bits_; ++b)
      require(tensors_.at(detail::lut_name(name, b)), dtype::f16,
              detail::lut_shape(l.rows, l.groups, b));
    if (tensors_.find(name + ".weight") != nullptr)
      fail("linear \"" + name + "\" is there twice: as planes and as \"" + name + ".weight\"");
    if (may_have_outliers_) l.outliers = count_outliers(l);
    return l;
  }

  int count_outliers(const linear_info& l) const {
    const detail::outlier_names names(l.name);
    const tensor_info* const columns = tensors_.find(names.columns);
    if (columns == nullptr) {
      for (const std::string& other : {names.offsets, names.values})
        if (tensors_.find(other) != nullptr)
          fail("tensor \"" + other + "\" has no \"" + names.columns + "\" beside it");
      return 0;
    }
    if (columns->shape.size() != 1 || columns->shape[0] < 1 ||
        columns->shape[0] > std::numeric_limits<std::int32_t>::max())
      fail("tensor \"" + names.columns + "\": expected I32 [1 to 2^31 - 1], found " +
           to_string(columns->type) + " " + to_string(columns->shape));
    require(*columns, dtype::i32, columns->shape);
    require(tensors_.at(names.values), dtype::f16, columns->shape);
    require(tensors_.at(names.offsets), dtype::i32, {std::int64_t{l.rows} + 1});
    return static_cast<int>(columns->shape[0]);
  }

  template <class T>
  const T* data(const std::string& tensor) const {
    return reinterpret_cast<const T*>(tensors_.bytes(tensor).data());
  }

  void advise(const std::string& tensor, std::size_t size) const {
    const safetensors_file& file = tensors_.files()[0];
    file.mapping().advise(access::will_need, file.data_offset() + file.at(tensor).begin, size);
  }

  safetensors_set tensors_;
  int seed_bits_ = 0, min_bits_ = 0, max_bits_ = 0, groups_ = 1;
  bool may_have_outliers_ = false;
  std::map<std::string, int> cols_;
  std::vector<linear_info> linears_;
  std::unordered_map<std::string, std::size_t> index_;
};

}  // namespace v0_1
}  // namespace bitladder
