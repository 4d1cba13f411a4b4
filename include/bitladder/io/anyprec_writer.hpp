// SPDX-License-Identifier: MIT
// Writes a checkpoint in the published Any-Precision layout (anyprec_checkpoint.hpp) as
// pytorch_model.bin, which is what the original loads, or as model.safetensors with the same names,
// types and bytes. The tensors' file takes its name when it is whole, then config.json is written.
// Tested by tests/io/anyprec_checkpoint_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/anyprec_checkpoint.hpp>
#include <bitladder/io/anyprec_layout.hpp>
#include <bitladder/io/atomic_file.hpp>
#include <bitladder/io/checkpoint_format.hpp>
#include <bitladder/io/json.hpp>
#include <bitladder/io/safetensors_writer.hpp>
#include <bitladder/io/torch_writer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// The file that holds the tensors.
enum class anyprec_container {
  torch,        ///< pytorch_model.bin
  safetensors,  ///< model.safetensors
};

/// Everything about an Any-Precision checkpoint but its values.
struct anyprec_plan {
  struct tensor {
    std::string name;
    dtype type = dtype::f16;
    std::vector<std::int64_t> shape;
    std::string tied_to;  ///< a tensor before it whose bytes these are; "" if it has its own
  };

  int min_bits = 3;  ///< lowest table; readers of the format take it for the seed precision
  int max_bits = 8;  ///< planes; at most 8
  /// Named PREFIX.LAYER.MODULE, PREFIX the same for all; columns in multiples of 32.
  std::vector<checkpoint_plan::linear> linears;
  std::vector<tensor> tensors;  ///< what is stored as it was, biases of linears included
};

namespace detail {

/// The "anyprec" object of config.json.
/// @throws error(invalid_argument) if a linear's name does not fit the pattern
inline nlohmann::ordered_json anyprec_entry(const anyprec_plan& plan) {
  std::string model, layers;
  nlohmann::ordered_json modules = nlohmann::ordered_json::array();
  for (const checkpoint_plan::linear& l : plan.linears) {
    const auto fail = [&l](const std::string& what) {
      throw error(status::invalid_argument,
                  "Any-Precision checkpoint: linear \"" + l.name + "\": " + what);
    };
    // The layer's number is the first part that is one, between two dots.
    std::size_t begin = 0, end = std::string::npos;
    for (std::size_t dot = l.name.find('.'); dot != std::string::npos;
         dot = l.name.find('.', begin)) {
      begin = dot + 1;
      end = l.name.find_first_not_of("0123456789", begin);
      if (end != std::string::npos && end > begin && l.name[end] == '.') break;
      end = std::string::npos;
    }
    if (end == std::string::npos) fail("expected a name such as model.layers.0.mlp.up_proj");
    const std::string prefix = l.name.substr(0, begin - 1);
    const std::size_t dot = prefix.rfind('.');
    if (dot == std::string::npos) fail("expected two names before the layer's number");
    if (model.empty()) {
      model = prefix.substr(0, dot);
      layers = prefix.substr(dot + 1);
    }
    if (prefix != model + "." + layers)
      fail("expected the layers of all linears in \"" + model + "." + layers + "\"");
    const std::string module = l.name.substr(end + 1);
    if (std::find(modules.begin(), modules.end(), module) == modules.end())
      modules.push_back(module);
  }
  return {
      {"seed_precision", plan.min_bits},
      {"parent_precision", plan.max_bits},
      {"group_count", 1},
      {"arch_config", {{"module_names", modules}, {"model_name", model}, {"layers_name", layers}}}};
}

/// The same entry, its modules in the order that `config` has them in if it names the same ones:
/// a model's own order says more than that of the tensors in a file.
inline nlohmann::ordered_json with_order_of(const nlohmann::ordered_json& config,
                                            nlohmann::ordered_json entry) {
  const nlohmann::ordered_json::json_pointer place("/anyprec/arch_config/module_names");
  if (!config.contains(place)) return entry;
  const nlohmann::ordered_json& old = config[place];
  nlohmann::ordered_json& modules = entry["arch_config"]["module_names"];
  if (old.is_array() && std::is_permutation(old.begin(), old.end(), modules.begin(), modules.end()))
    modules = old;
  return entry;
}

}  // namespace detail

/// One checkpoint being written. Without `finish` nothing of it stays.
class anyprec_writer {
 public:
  /// @param folder is made if need be; may not hold a model already
  /// @throws error(invalid_argument) for a plan that makes no such checkpoint; error(io_failed) if
  /// the folder holds a model, another process writes it, or the disk has no room
  anyprec_writer(const std::filesystem::path& folder, anyprec_plan plan,
                 anyprec_container container)
      : folder_(folder), plan_(std::move(plan)), entry_(detail::anyprec_entry(plan_)) {
    if (plan_.min_bits < 1 || plan_.max_bits > bitplane_layout::max_planes ||
        plan_.min_bits > plan_.max_bits)
      throw error(status::invalid_argument,
                  "Any-Precision checkpoint: expected 1 <= min_bits <= max_bits <= 8, found " +
                      std::to_string(plan_.min_bits) + ", " + std::to_string(plan_.max_bits));
    safetensors_plan safe;
    torch_plan torch;
    const auto add = [&](const std::string& name, dtype type,
                         const std::vector<std::int64_t>& shape) {
      safe.add(name, type, shape);
      torch.add(name, type, shape);
    };
    for (const checkpoint_plan::linear& l : plan_.linears) {
      if (l.rows < 0 || l.cols < 0 || l.cols % 32 != 0)
        throw error(status::invalid_argument,
                    "Any-Precision checkpoint: linear \"" + l.name +
                        "\": expected columns in multiples of 32, found " + std::to_string(l.rows) +
                        " x " + std::to_string(l.cols));
      add(detail::qweight_name(l.name), dtype::i32, {plan_.max_bits, l.rows, l.cols / 32});
      for (int b = plan_.min_bits; b <= plan_.max_bits; ++b)
        add(detail::lut_name(l.name, b), dtype::f16, detail::lut_shape(l.rows, 1, b));
    }
    for (const anyprec_plan::tensor& t : plan_.tensors) {
      safe.add(t.name, t.type, t.shape);  // that format has no ties: both names get the bytes
      if (t.tied_to.empty())
        torch.add(t.name, t.type, t.shape);
      else
        torch.add_tied(t.name, t.tied_to);
    }
    safe.set_metadata("format", "pt");
    require_no_model();
    std::error_code e;
    std::filesystem::create_directories(folder_, e);
    if (e) detail::throw_io(folder_, "make the folder", e.value());
    if (container == anyprec_container::torch)
      torch_.emplace(folder_ / "pytorch_model.bin", torch);
    else
      safe_.emplace(safetensors_writer::create(folder_ / "model.safetensors", safe));
  }

  /// Planes and all tables of a planned linear.
  /// @throws error(not_found), or error(shape_mismatch) unless sizes and precisions are the plan's
  void write_linear(const std::string& name, bitplane_view planes, const codebook_ladder& tables) {
    const auto it = std::find_if(plan_.linears.begin(), plan_.linears.end(),
                                 [&](const auto& l) { return l.name == name; });
    if (it == plan_.linears.end())
      throw error(status::not_found, folder_.string() + ": no linear \"" + name + "\" is planned");
    const bitplane_layout expected{it->rows, it->cols, plan_.max_bits};
    if (!(planes.layout() == expected) || tables.rows() != expected.rows || tables.groups() != 1 ||
        tables.min_bits() > plan_.min_bits || tables.max_bits() < plan_.max_bits)
      throw error(
          status::shape_mismatch,
          "linear \"" + name + "\": expected " + std::to_string(expected.rows) + " x " +
              std::to_string(expected.cols) + " in " + std::to_string(expected.planes) +
              " planes and tables of " + std::to_string(plan_.min_bits) + " to " +
              std::to_string(plan_.max_bits) + " bits, found " + std::to_string(planes.rows()) +
              " x " + std::to_string(planes.cols()) + " in " + std::to_string(planes.planes()) +
              " planes and tables of " + std::to_string(tables.min_bits()) + " to " +
              std::to_string(tables.max_bits()) + " bits for " + std::to_string(tables.rows()) +
              " rows in " + std::to_string(tables.groups()) + " groups");
    const std::size_t row = 4 * static_cast<std::size_t>(expected.words());
    // A few megabytes at a time: a whole plane would double what a large linear needs.
    const int rows_at_once =
        static_cast<int>(std::max<std::size_t>(1, (std::size_t{4} << 20) / (row + 1)));
    std::vector<std::byte> piece;
    for (int p = 0; p < expected.planes; ++p) {
      for (int first = 0; first < expected.rows; first += rows_at_once) {
        const int last = std::min(expected.rows - first, rows_at_once) + first;
        piece.resize(row * static_cast<std::size_t>(last - first));
        planes_to_anyprec(planes, p, first, last, piece.data());
        put(detail::qweight_name(name), piece.data(), piece.size());
      }
    }
    for (int b = plan_.min_bits; b <= plan_.max_bits; ++b)
      put(detail::lut_name(name, b), tables[b].data(), tables[b].size() * sizeof(fp16_t));
  }

  /// The next bytes of a planned tensor that is no linear's; nothing need be written for a tied
  /// one.
  void write_tensor(const std::string& name, const void* data, std::uint64_t size) {
    put(name, data, size);
    for (const anyprec_plan::tensor& t : plan_.tensors)
      if (safe_ && t.tied_to == name) put(t.name, data, size);
  }

  /// Gives the checkpoint its names.
  /// @param config the original config.json; gains or changes its "anyprec" object
  /// @throws error(bad_file) if it is no object, error(invalid_argument) if something planned has
  /// not been written
  void finish(std::string_view config) {
    nlohmann::ordered_json merged = parse_json<nlohmann::ordered_json>(config, "config.json");
    if (!merged.is_object()) throw error(status::bad_file, "config.json: expected an object");
    merged["anyprec"] = detail::with_order_of(merged, entry_);
    const std::string text = to_json_text(merged, 2) + "\n";
    if (torch_) torch_->commit();
    if (safe_) safe_->commit();
    write_file_atomically(folder_ / "config.json", text);
  }

 private:
  void require_no_model() const {
    for (const char* name : {"config.json", "model.safetensors", "model.safetensors.index.json",
                             "pytorch_model.bin"}) {
      std::error_code ignored;
      if (std::filesystem::exists(folder_ / name, ignored))
        throw error(status::io_failed,
                    (folder_ / name).string() + ": is there already; name another folder");
    }
  }

  void put(const std::string& name, const void* data, std::uint64_t size) {
    if (torch_) {
      torch_->write(name, data, size);
    } else {
      std::uint64_t& written = written_[name];
      safe_->write(name, data, size, written);
      written += size;
    }
  }

  std::filesystem::path folder_;
  anyprec_plan plan_;
  nlohmann::ordered_json entry_;
  std::optional<torch_writer> torch_;
  std::optional<safetensors_writer> safe_;
  std::map<std::string, std::uint64_t> written_;
};

/// The plan that writes a checkpoint again. Tensors that stand on the same bytes are tied.
inline anyprec_plan plan_of(const anyprec_checkpoint& source) {
  anyprec_plan plan;
  plan.min_bits = source.min_bits();
  plan.max_bits = source.max_bits();
  for (const linear_info& l : source.linears()) plan.linears.push_back({l.name, l.rows, l.cols});
  std::map<std::tuple<const std::byte*, dtype, std::vector<std::int64_t>>, std::string> owners;
  for (const tensor_info& t : source.plain_tensors()) {
    std::string tied_to;
    if (t.bytes() > 0) {
      const auto [it, first] =
          owners.emplace(std::make_tuple(source.bytes(t.name).data(), t.type, t.shape), t.name);
      if (!first) tied_to = it->second;
    }
    plan.tensors.push_back({t.name, t.type, t.shape, tied_to});
  }
  return plan;
}

/// Writes a checkpoint again, in either container: the same codes, tables, tensors and config.
/// @throws what reading and writing throw
inline void copy_anyprec(const anyprec_checkpoint& source, const std::filesystem::path& folder,
                         anyprec_container container) {
  const anyprec_plan plan = plan_of(source);
  anyprec_writer writer(folder, plan, container);
  for (const linear_info& l : source.linears())
    writer.write_linear(l.name, source.planes(l.name).view(), source.tables(l.name));
  for (const anyprec_plan::tensor& t : plan.tensors) {
    const vector_view<const std::byte> bytes = source.bytes(t.name);
    if (t.tied_to.empty()) writer.write_tensor(t.name, bytes.data(), bytes.size());
  }
  writer.finish(source.config());
}

}  // namespace v0_1
}  // namespace bitladder
