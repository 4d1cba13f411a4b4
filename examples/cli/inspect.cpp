// SPDX-License-Identifier: MIT
#include <bitladder/core/dtype.hpp>
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/safetensors_set.hpp>

#include <llama/model.hpp>

#include <cli/commands.hpp>
#include <cli/table.hpp>

#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

namespace cli {
namespace {

struct inspect_arguments {
  std::string path, json;
  bool tensors = false, check = false;
};

void print_tensors(const bitladder::safetensors_set& set) {
  std::vector<row> rows;
  for (const auto& t : set.tensors())
    rows.push_back({{"tensor", t.name},
                    {"type", bitladder::to_string(t.type)},
                    {"shape", bitladder::to_string(t.shape)},
                    {"bytes", t.bytes()}});
  print_table(std::cout,
              {{"tensor", "tensor", as_text()},
               {"type", "type", as_text()},
               {"shape", "shape", as_text()},
               {"bytes", "bytes", as_bytes()}},
              rows);
}

/// A row per precision: what one token reads, and bits per weight of the linears, tables counted.
std::vector<row> precision_rows(const bitladder::checkpoint& c, const llama::model& model) {
  std::vector<row> rows;
  for (int bits : c.precisions()) {
    double weights = 0, planes = 0, tables = 0;
    for (const bitladder::linear_info& l : c.linears()) {
      weights += static_cast<double>(l.rows) * l.cols;
      planes += static_cast<double>(l.plane_bytes()) * bits;
      tables += static_cast<double>(l.table_bytes(bits));
    }
    rows.push_back({{"bits", bits},
                    {"plane_bytes", planes},
                    {"table_bytes", tables},
                    {"bits_per_weight", (planes + tables) * 8 / weights},
                    {"bytes_per_token", model.bytes_per_token(bits)}});
  }
  return rows;
}

void inspect_checkpoint(const inspect_arguments& a) {
  const bitladder::checkpoint c(a.path);
  const llama::model model(a.path);
  double weights = 0, stored = 0, plain = 0;
  for (const bitladder::linear_info& l : c.linears()) {
    weights += static_cast<double>(l.rows) * l.cols;
    stored += static_cast<double>(l.plane_bytes()) * l.planes;
    for (int b = l.min_bits; b <= l.max_bits; ++b) stored += static_cast<double>(l.table_bytes(b));
  }
  for (const auto& t : c.plain_tensors()) plain += static_cast<double>(t.bytes());
  std::cout << a.path << ": bitladder checkpoint, " << c.min_bits() << " to " << c.max_bits()
            << " bits, seed " << c.seed_bits() << ", " << c.groups()
            << (c.groups() == 1 ? " group" : " groups") << " a row\n"
            << c.linears().size() << " quantized linears, " << as_number("%.4g")(weights / 1e6)
            << " M weights: " << bytes_text(stored) << " for all precisions together ("
            << as_number("%.2f")(stored * 8 / weights) << " bits per weight, every table counted)\n"
            << "everything else: " << bytes_text(plain) << "\n\n";
  const std::vector<row> rows = precision_rows(c, model);
  print_table(std::cout,
              {{"bits", "bits", as_bits()},
               {"plane_bytes", "planes", as_bytes()},
               {"table_bytes", "tables", as_bytes()},
               {"bits_per_weight", "bits per weight", as_number("%.3f")},
               {"bytes_per_token", "read per token", as_bytes()}},
              rows);
  write_rows(a.json, rows);
  if (a.tensors) {
    std::cout << '\n';
    print_tensors(c.tensors());
  }
  if (a.check) {
    c.validate();
    std::cout << "\nevery table is finite and ascending, every padding bit zero\n";
  }
}

void inspect_model(const inspect_arguments& a, const bitladder::safetensors_set& set) {
  const llama::model model(a.path);
  double bytes = 0;
  for (const auto& t : set.tensors()) bytes += static_cast<double>(t.bytes());
  std::cout << a.path << ": unquantized model, " << set.tensors().size() << " tensors, "
            << bytes_text(bytes) << ", "
            << bytes_text(static_cast<double>(model.bytes_per_token(llama::unquantized)))
            << " read per token\n";
  write_rows(a.json,
             {{{"bits", 0}, {"bytes_per_token", model.bytes_per_token(llama::unquantized)}}});
  if (a.tensors) {
    std::cout << '\n';
    print_tensors(set);
  }
}

void run(const inspect_arguments& a) {
  const bitladder::safetensors_set set(a.path);
  if (bitladder::checkpoint::is_checkpoint(set))
    inspect_checkpoint(a);
  else
    inspect_model(a, set);
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto a = std::make_shared<inspect_arguments>();
  CLI::App* c = app.add_subcommand(
      "inspect", "What a model or checkpoint holds, and what each precision costs");
  c->add_option("model", a->path, "Folder of a model or checkpoint")
      ->required()
      ->check(CLI::ExistingDirectory);
  c->add_flag("--tensors", a->tensors, "List every tensor");
  c->add_flag("--check", a->check, "Read every plane and table of a checkpoint and check them");
  c->add_option("--json", a->json, "Also write the table as a JSON list");
  c->callback([a] { run(*a); });
}

}  // namespace cli
