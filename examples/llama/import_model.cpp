// SPDX-License-Identifier: MIT
#include <bitladder/core/status.hpp>
#include <bitladder/io/checkpoint_writer.hpp>
#include <bitladder/io/checksum.hpp>
#include <bitladder/io/json.hpp>
#include <bitladder/version.hpp>

#include <llama/companions.hpp>
#include <llama/config.hpp>
#include <llama/foreign_weights.hpp>
#include <llama/import_model.hpp>
#include <llama/weights.hpp>

#include <cstring>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

namespace llama {
namespace {

namespace fs = std::filesystem;

/// Names what the checkpoint's bytes depend on.
std::string fingerprint(const foreign_checkpoint& source) {
  std::string text;
  for (const fs::path& file : source.files())
    text += file.filename().string() + ' ' + std::to_string(fs::file_size(file)) + ' ' +
            std::to_string(fs::last_write_time(file).time_since_epoch().count()) + '\n';
  return "version " + std::to_string(BL_VERSION) + ", import " + source.format() + ", source " +
         std::to_string(bitladder::checksum(text.data(), text.size()));
}

fs::path companion_folder(const fs::path& source, const import_options& options) {
  if (!options.companions.empty()) return options.companions;
  std::error_code ignored;
  if (fs::is_directory(source, ignored)) return source;
  return source.has_parent_path() ? source.parent_path() : fs::path(".");
}

/// Looks up every tensor of the model and its shape, so that hours of work do not end in an error.
config checked_config(const fs::path& source, const fs::path& companions) {
  std::error_code ignored;
  if (!fs::exists(companions / "config.json", ignored))
    throw bitladder::error(bitladder::status::not_found,
                           (companions / "config.json").string() +
                               ": is not there; name the folder of the model that was quantized, "
                               "which has its config and tokenizer");
  config c = load_config(companions);
  weight_source tensors(
      std::make_unique<foreign_weight_file>(open_foreign(source), foreign_use::check),
      source.string());
  static_cast<void>(load_weights(tensors, c));
  return c;
}

/// Whether the tensor is the embedding once more, under the head's name.
bool is_copied_head(const foreign_checkpoint& source,
                    const std::vector<bitladder::tensor_info>& all, const bitladder::tensor_info& t,
                    const config& c) {
  if (!c.tied_embeddings || t.name != std::string(c.family->head) + ".weight") return false;
  const std::string embedding = std::string(c.family->embedding) + ".weight";
  for (const bitladder::tensor_info& e : all) {
    if (e.name != embedding || e.type != t.type || e.shape != t.shape) continue;
    const auto a = source.bytes(t.name), b = source.bytes(e.name);
    return a.data() == b.data() || std::memcmp(a.data(), b.data(), a.size()) == 0;
  }
  return false;
}

}  // namespace

import_report import_model(const fs::path& path, const fs::path& out, const import_options& options,
                           bitladder::thread_pool* pool, const import_progress& progress) {
  const std::unique_ptr<foreign_checkpoint> source = open_foreign(path);
  const fs::path beside = companion_folder(path, options);
  const config shape = checked_config(path, beside);

  import_report report;
  report.format = source->format();
  report.min_bits = source->min_bits();
  report.max_bits = source->max_bits();
  report.linears = source->linears().size();

  bitladder::checkpoint_plan plan;
  plan.seed_bits = plan.min_bits = source->min_bits();
  plan.max_bits = source->max_bits();
  const auto weights_of = [](const bitladder::linear_info& l) {
    return static_cast<std::int64_t>(l.rows) * l.cols;
  };
  for (const bitladder::linear_info& l : source->linears()) {
    plan.linears.push_back({l.name, l.rows, l.cols, l.outliers});
    report.outliers += l.outliers;
    report.weights += weights_of(l);
    const foreign_rounding r = source->rounding(l.name);  // checks the tables on the way
    if (r.largest > report.rounding.largest) report.rounding = r;
  }
  const std::vector<bitladder::tensor_info> plain = source->plain_tensors();
  for (const bitladder::tensor_info& t : plain) {
    static_cast<void>(source->bytes(t.name));  // contiguous, or an error that says it
    if (!is_copied_head(*source, plain, t, shape))
      plan.tensors.push_back({t.name, t.type, t.shape});
  }
  nlohmann::ordered_json config =
      bitladder::read_json<nlohmann::ordered_json>(beside / "config.json");
  config.erase("anyprec");

  bitladder::checkpoint_writer writer(out, plan, fingerprint(*source), {options.overwrite});
  for (const auto& t : plan.tensors) {
    if (writer.done(t.name)) continue;
    const auto bytes = source->bytes(t.name);
    writer.write_tensor(t.name, bytes.data(), bytes.size());
  }
  std::int64_t done = 0;
  for (const bitladder::linear_info& l : source->linears())
    if (writer.done(l.name)) done += weights_of(l);
  const std::int64_t resumed = done;
  if (progress) progress("", done, resumed, report.weights);
  for (const bitladder::linear_info& l : source->linears()) {
    if (writer.done(l.name)) continue;
    const foreign_linear linear = source->read(l.name, pool);
    writer.write_linear(l.name, linear.planes.view(), linear.tables, linear.outliers.view());
    done += weights_of(l);
    if (progress) progress(l.name, done, resumed, report.weights);
  }
  writer.finish(bitladder::to_json_text(config), companion_files(beside));
  return report;
}

}  // namespace llama
