// SPDX-License-Identifier: MIT
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/atomic_file.hpp>
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/json.hpp>

#include <llama/companions.hpp>
#include <llama/config.hpp>
#include <llama/export_model.hpp>

#include <cstring>
#include <utility>
#include <vector>

namespace llama {
namespace {

namespace fs = std::filesystem;

bitladder::anyprec_plan plan_of(const bitladder::checkpoint& source, const config& c,
                                int min_bits) {
  const auto fail = [&](const std::string& what) {
    throw bitladder::error(bitladder::status::invalid_argument, source.path() + ": " + what);
  };
  if (source.groups() != 1)
    fail(
        "expected 1 column group a row, the only number that the Any-Precision layout has, found " +
        std::to_string(source.groups()));
  bitladder::anyprec_plan plan;
  plan.min_bits = min_bits == 0 ? source.min_bits() : min_bits;
  plan.max_bits = source.max_bits();
  source.require_precision(plan.min_bits);
  for (const bitladder::linear_info& l : source.linears()) {
    if (l.outliers > 0)
      fail("linear \"" + l.name +
           "\": expected no outliers, for which the Any-Precision layout has no place, found " +
           std::to_string(l.outliers));
    if (l.cols % 32 != 0)
      fail("linear \"" + l.name +
           "\": expected columns in multiples of 32 for the Any-Precision layout, found " +
           std::to_string(l.cols));
    plan.linears.push_back({l.name, l.rows, l.cols});
  }
  const std::string embedding = std::string(c.family->embedding) + ".weight",
                    head = std::string(c.family->head) + ".weight";
  for (const bitladder::tensor_info& t : source.plain_tensors())
    plan.tensors.push_back({t.name, t.type, t.shape, ""});
  if (c.tied_embeddings && source.tensors().find(head) == nullptr) {
    const bitladder::tensor_info& t = source.tensors().at(embedding);
    plan.tensors.push_back({head, t.type, t.shape, embedding});
  }
  return plan;
}

bitladder::codebook_ladder tables_of(const bitladder::checkpoint& source,
                                     const bitladder::linear_info& l, int min_bits) {
  bitladder::codebook_ladder tables(l.rows, 1, min_bits, l.max_bits);
  for (int b = min_bits; b <= l.max_bits; ++b) {
    const bitladder::codebook_view from = source.codebook(l.name, b);
    if (from.size() > 0)
      std::memcpy(tables.data(b), from.data(), from.size() * sizeof(bitladder::fp16_t));
  }
  return tables;
}

}  // namespace

export_report export_model(const fs::path& path, const fs::path& out, const export_options& options,
                           const export_progress& progress) {
  const bitladder::checkpoint source(path);
  const bitladder::anyprec_plan plan = plan_of(source, load_config(path), options.min_bits);
  nlohmann::ordered_json config =
      bitladder::read_json<nlohmann::ordered_json>(path / "config.json");
  config.erase("bitladder");
  export_report report{plan.min_bits, plan.max_bits, plan.linears.size(), 0};
  for (const auto& l : plan.linears) report.weights += static_cast<std::int64_t>(l.rows) * l.cols;

  bitladder::anyprec_writer writer(out, plan, options.container);
  if (progress) progress("", 0, report.weights);
  std::int64_t done = 0;
  for (const bitladder::linear_info& l : source.linears()) {
    source.validate(l.name);
    writer.write_linear(l.name, source.planes(l.name), tables_of(source, l, plan.min_bits));
    done += static_cast<std::int64_t>(l.rows) * l.cols;
    if (progress) progress(l.name, done, report.weights);
  }
  for (const bitladder::anyprec_plan::tensor& t : plan.tensors) {
    if (!t.tied_to.empty()) continue;
    const auto bytes = source.tensors().bytes(t.name);
    writer.write_tensor(t.name, bytes.data(), bytes.size());
  }
  for (const fs::path& file : companion_files(path))
    bitladder::copy_file_atomically(file, out / file.filename());
  writer.finish(bitladder::to_json_text(config));
  return report;
}

}  // namespace llama
