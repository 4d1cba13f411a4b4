// SPDX-License-Identifier: MIT
// Reads a published Any-Precision checkpoint: a folder with config.json, whose "anyprec" object
// says the precisions, and the tensors in pytorch_model.bin or model.safetensors. Linear X has
// X.qweight, I32 [planes, rows, cols/32] in the order of anyprec_layout.hpp, and X.lut{b},
// F16 [rows, 2^b], for each precision. Opening checks names, types, shapes and the config against
// each other. Tested by tests/io/anyprec_checkpoint_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/anyprec_layout.hpp>
#include <bitladder/io/checkpoint_format.hpp>
#include <bitladder/io/json.hpp>
#include <bitladder/io/safetensors_set.hpp>
#include <bitladder/io/torch_file.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

namespace detail {

/// The tensors of a folder, whichever of the two kinds of file holds them.
class anyprec_tensors {
 public:
  explicit anyprec_tensors(const std::filesystem::path& folder) : files_(open(folder)) {
    if (const auto* set = std::get_if<safetensors_set>(&files_)) {
      infos_ = set->tensors();
    } else {
      const torch_file& file = std::get<torch_file>(files_);
      infos_.assign(file.tensors().begin(), file.tensors().end());
    }
    for (std::size_t i = 0; i < infos_.size(); ++i) index_.emplace(infos_[i].name, i);
  }

  /// For errors: the file, or the folder of shards.
  std::string path() const {
    if (const auto* set = std::get_if<safetensors_set>(&files_)) return set->path();
    return std::get<torch_file>(files_).path();
  }
  const std::vector<tensor_info>& infos() const { return infos_; }
  const tensor_info* find(const std::string& name) const {
    const auto it = index_.find(name);
    return it == index_.end() ? nullptr : &infos_[it->second];
  }
  vector_view<const std::byte> bytes(const std::string& name) const {
    if (const auto* set = std::get_if<safetensors_set>(&files_)) return set->bytes(name);
    return std::get<torch_file>(files_).bytes(name);
  }

 private:
  using files = std::variant<safetensors_set, torch_file>;

  static files open(const std::filesystem::path& folder) {
    const auto there = [&folder](const char* name) {
      std::error_code ignored;
      return std::filesystem::exists(folder / name, ignored);
    };
    if (there("model.safetensors")) return safetensors_set(folder / "model.safetensors");
    if (there("model.safetensors.index.json"))
      return safetensors_set(folder / "model.safetensors.index.json");
    if (there("pytorch_model.bin")) return torch_file(folder / "pytorch_model.bin");
    throw error(status::not_found, folder.string() +
                                       ": expected model.safetensors or pytorch_model.bin in this "
                                       "folder");
  }

  files files_;
  std::vector<tensor_info> infos_;
  std::unordered_map<std::string, std::size_t> index_;
};

}  // namespace detail

/// One opened Any-Precision checkpoint. Move-only; views stay valid while it lives, moved or not.
class anyprec_checkpoint {
 public:
  /// @param folder with config.json
  /// @throws error naming file, tensor, what was expected and what was found
  explicit anyprec_checkpoint(const std::filesystem::path& folder)
      : folder_(folder.string()), config_(read_config(folder)), tensors_(folder) {
    read_precisions();
    const std::string suffix = detail::qweight_name("");
    for (const tensor_info& t : tensors_.infos()) {
      if (t.name.size() <= suffix.size() ||
          t.name.compare(t.name.size() - suffix.size(), suffix.size(), suffix) != 0)
        continue;
      const std::string name = t.name.substr(0, t.name.size() - suffix.size());
      index_.emplace(name, linears_.size());
      linears_.push_back(read_linear(name, t));
    }
    require_whole_layers();
  }

  /// Whether the folder's config.json has the object by which such a checkpoint is recognised.
  /// @throws error(bad_file) if there is a config.json that is not JSON
  static bool is_anyprec(const std::filesystem::path& folder) {
    std::error_code ignored;
    if (!std::filesystem::exists(folder / "config.json", ignored)) return false;
    const nlohmann::json config = read_json(folder / "config.json");
    return config.is_object() && config.contains("anyprec");
  }

  /// The folder, as given.
  const std::string& path() const { return folder_; }
  /// config.json as text on one line.
  std::string config() const { return to_json_text(config_); }
  int min_bits() const { return min_bits_; }  ///< what the config calls seed_precision
  int max_bits() const { return max_bits_; }  ///< what the config calls parent_precision
  /// In the order of the file.
  const std::vector<linear_info>& linears() const { return linears_; }
  bool is_quantized(const std::string& name) const { return index_.count(name) != 0; }
  /// @throws error(not_found)
  const linear_info& linear(const std::string& name) const {
    const auto it = index_.find(name);
    if (it == index_.end())
      throw error(status::not_found,
                  tensors_.path() + ": no quantized linear \"" + name + "\"; as a tensor: " +
                      detail::closest_names(detail::qweight_name(name), tensors_.infos()));
    return linears_[it->second];
  }

  /// The `bits` top planes of a linear in this library's order, copied; only they are read.
  bitplane_tensor planes(const std::string& name, int bits) const {
    require_precision(bits);
    const linear_info& l = linear(name);
    return planes_from_anyprec(tensors_.bytes(detail::qweight_name(name)).data(),
                               {l.rows, l.cols, bits});
  }
  bitplane_tensor planes(const std::string& name) const { return planes(name, max_bits_); }

  /// The tables of all precisions, copied; byte for byte those of the file, whatever their values.
  codebook_ladder tables(const std::string& name) const {
    const linear_info& l = linear(name);
    codebook_ladder out(l.rows, 1, min_bits_, max_bits_);
    for (int b = min_bits_; b <= max_bits_; ++b) {
      const vector_view<const std::byte> bytes = tensors_.bytes(detail::lut_name(name, b));
      if (bytes.size() > 0) std::memcpy(out.data(b), bytes.data(), bytes.size());
    }
    return out;
  }

  /// Every tensor but planes and tables, biases included, in the order of the file.
  std::vector<tensor_info> plain_tensors() const {
    std::vector<tensor_info> plain;
    for (const tensor_info& t : tensors_.infos())
      if (!is_part_of_linear(t.name)) plain.push_back(t);
    return plain;
  }
  /// The bytes of a tensor in the mapping, at any address.
  /// @throws error(not_found), or error(bad_file) if it is not contiguous
  vector_view<const std::byte> bytes(const std::string& name) const { return tensors_.bytes(name); }

  /// Checks what reading does not: tables are finite and ascending.
  /// @throws error(bad_file) at the first fault
  void validate(const std::string& name) const {
    const codebook_ladder t = tables(name);
    for (int b = min_bits_; b <= max_bits_; ++b)
      detail::require_sound_tables(
          t[b], tensors_.path() + ": tensor \"" + detail::lut_name(name, b) + "\"");
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw error(status::bad_file, tensors_.path() + ": " + what);
  }
  [[noreturn]] void fail_config(const std::string& what) const {
    throw error(status::bad_file,
                (std::filesystem::path(folder_) / "config.json").string() + ": " + what);
  }

  static nlohmann::ordered_json read_config(const std::filesystem::path& folder) {
    const std::filesystem::path path = folder / "config.json";
    nlohmann::ordered_json config = read_json<nlohmann::ordered_json>(path);
    if (!config.is_object() || !config.contains("anyprec") || !config["anyprec"].is_object())
      throw error(status::bad_file,
                  path.string() +
                      ": expected an object \"anyprec\", by which an Any-Precision checkpoint is "
                      "recognised");
    return config;
  }

  int config_number(const char* key, int low, int high) const {
    const nlohmann::ordered_json& anyprec = config_["anyprec"];
    if (!anyprec.contains(key)) fail_config(std::string("anyprec has no \"") + key + "\"");
    const nlohmann::ordered_json& v = anyprec[key];
    if (!v.is_number_unsigned() || v.get<std::uint64_t>() < static_cast<std::uint64_t>(low) ||
        v.get<std::uint64_t>() > static_cast<std::uint64_t>(high))
      fail_config(std::string("anyprec \"") + key + "\": expected a whole number from " +
                  std::to_string(low) + " to " + std::to_string(high) + ", found " +
                  detail::shortened(to_json_text(v)));
    return v.get<int>();
  }

  void read_precisions() {
    max_bits_ = config_number("parent_precision", 1, bitplane_layout::max_planes);
    min_bits_ = config_number("seed_precision", 1, max_bits_);
    if (config_["anyprec"].contains("group_count")) config_number("group_count", 1, 1);
    const nlohmann::ordered_json& anyprec = config_["anyprec"];
    if (!anyprec.contains("arch_config") || !anyprec["arch_config"].is_object())
      fail_config("anyprec has no object \"arch_config\"");
    const nlohmann::ordered_json& arch = anyprec["arch_config"];
    for (const char* key : {"model_name", "layers_name"}) {
      if (!arch.contains(key) || !arch[key].is_string())
        fail_config(std::string("arch_config \"") + key + "\": expected text");
      prefix_ += arch[key].get<std::string>() + ".";
    }
    if (!arch.contains("module_names") || !arch["module_names"].is_array())
      fail_config("arch_config \"module_names\": expected an array of text");
    for (const nlohmann::ordered_json& m : arch["module_names"]) {
      if (!m.is_string()) fail_config("arch_config \"module_names\": expected an array of text");
      modules_.insert(m.get<std::string>());
    }
  }

  void require(const std::string& name, dtype type, const std::vector<std::int64_t>& shape) const {
    const tensor_info* t = tensors_.find(name);
    if (t == nullptr)
      throw error(status::not_found, tensors_.path() + ": no tensor \"" + name + "\"; " +
                                         detail::closest_names(name, tensors_.infos()));
    if (t->type != type || t->shape != shape)
      fail("tensor \"" + name + "\": expected " + to_string(type) + " " + to_string(shape) +
           ", found " + to_string(t->type) + " " + to_string(t->shape));
    static_cast<void>(tensors_.bytes(name));  // contiguous, or an error that says it
  }

  /// "model.layers.3.mlp.up_proj" is layer 3 and module "mlp.up_proj".
  void add_to_layers(const std::string& name) {
    const std::size_t dot = name.find('.', prefix_.size());
    const std::string layer =
        name.compare(0, prefix_.size(), prefix_) != 0 || dot == std::string::npos
            ? ""
            : name.substr(prefix_.size(), dot - prefix_.size());
    if (layer.empty() || layer.size() > 6 ||
        !std::all_of(layer.begin(), layer.end(), [](char c) { return c >= '0' && c <= '9'; }) ||
        modules_.count(name.substr(dot + 1)) == 0)
      fail("quantized linear \"" + name + "\" is not \"" + prefix_ +
           "LAYER.MODULE\" with a module of config.json");
    layers_[std::stoi(layer)].insert(name.substr(dot + 1));
  }

  linear_info read_linear(const std::string& name, const tensor_info& qweight) {
    add_to_layers(name);
    // 32 columns a word must leave the number of columns an int.
    constexpr std::int64_t most = std::numeric_limits<int>::max();
    if (qweight.shape.size() != 3 || qweight.shape[1] > most || qweight.shape[2] > most / 32)
      fail("tensor \"" + qweight.name + "\": expected [planes, rows, words], found " +
           to_string(qweight.shape));
    linear_info l;
    l.name = name;
    l.rows = static_cast<int>(qweight.shape[1]);
    l.cols = static_cast<int>(qweight.shape[2]) * 32;
    l.planes = max_bits_;
    l.min_bits = min_bits_;
    l.max_bits = max_bits_;
    require(qweight.name, dtype::i32, {l.planes, l.rows, l.layout().words()});
    for (int b = min_bits_; b <= max_bits_; ++b)
      require(detail::lut_name(name, b), dtype::f16, detail::lut_shape(l.rows, 1, b));
    if (tensors_.find(name + ".weight") != nullptr)
      fail("linear \"" + name + "\" is there twice: as planes and as \"" + name + ".weight\"");
    return l;
  }

  void require_whole_layers() const {
    for (const auto& [layer, modules] : layers_)
      for (const std::string& m : modules_)
        if (modules.count(m) == 0)
          fail("no tensor \"" + detail::qweight_name(prefix_ + std::to_string(layer) + "." + m) +
               "\", although config.json names the module and other parts of the layer are there");
    if (!config_.contains("num_hidden_layers")) return;
    const nlohmann::ordered_json& n = config_["num_hidden_layers"];
    if (!n.is_number_unsigned() || n.get<std::uint64_t>() != layers_.size())
      fail("expected " + detail::shortened(to_json_text(n)) +
           " quantized layers (num_hidden_layers of config.json), found " +
           std::to_string(layers_.size()));
  }

  void require_precision(int bits) const {
    if (bits < 1 || bits > max_bits_)
      throw error(status::not_found, tensors_.path() + ": " + std::to_string(bits) +
                                         " planes asked for, the checkpoint holds " +
                                         std::to_string(max_bits_));
  }

  bool is_part_of_linear(const std::string& name) const {
    const std::size_t dot = name.rfind('.');
    if (dot == std::string::npos || !is_quantized(name.substr(0, dot))) return false;
    const std::string layer = name.substr(0, dot);
    if (name == detail::qweight_name(layer)) return true;
    for (int b = min_bits_; b <= max_bits_; ++b)
      if (name == detail::lut_name(layer, b)) return true;
    return false;
  }

  std::string folder_;
  nlohmann::ordered_json config_;
  detail::anyprec_tensors tensors_;
  int min_bits_ = 0, max_bits_ = 0;
  std::string prefix_;             // "model.layers."
  std::set<std::string> modules_;  // "self_attn.q_proj", ...
  std::map<int, std::set<std::string>> layers_;
  std::vector<linear_info> linears_;
  std::unordered_map<std::string, std::size_t> index_;
};

}  // namespace v0_1
}  // namespace bitladder
