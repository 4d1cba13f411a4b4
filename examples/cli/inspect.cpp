// SPDX-License-Identifier: MIT
#include <bitladder/core/dtype.hpp>
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/gguf.hpp>
#include <bitladder/io/mmap.hpp>
#include <bitladder/io/safetensors_set.hpp>

#include <llama/foreign_checkpoint.hpp>
#include <llama/gguf_weights.hpp>
#include <llama/model.hpp>

#include <cli/commands.hpp>
#include <cli/table.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
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

/// @param tensors of any reader that gives name, type, shape and size
template <class Tensors>
void print_tensors(const Tensors& tensors) {
  using bitladder::to_string;
  std::vector<row> rows;
  for (const auto& t : tensors)
    rows.push_back({{"tensor", t.name},
                    {"type", to_string(t.type)},
                    {"shape", to_string(t.shape)},
                    {"bytes", t.bytes()}});
  print_table(std::cout,
              {{"tensor", "tensor", as_text()},
               {"type", "type", as_text()},
               {"shape", "shape", as_text()},
               {"bytes", "bytes", as_bytes()}},
              rows);
}

/// A row per precision: what one token reads (unknown without a model), and bits per weight of the
/// linears, tables and outliers counted.
std::vector<row> precision_rows(const std::vector<bitladder::linear_info>& linears, int min_bits,
                                int max_bits, const llama::model* model) {
  std::vector<row> rows;
  for (int bits = min_bits; bits <= max_bits; ++bits) {
    double weights = 0, planes = 0, tables = 0, outliers = 0;
    for (const bitladder::linear_info& l : linears) {
      weights += static_cast<double>(l.rows) * l.cols;
      planes += static_cast<double>(l.plane_bytes()) * bits;
      tables += static_cast<double>(l.table_bytes(bits));
      outliers += static_cast<double>(l.outlier_bytes());
    }
    rows.push_back({{"bits", bits},
                    {"plane_bytes", planes},
                    {"table_bytes", tables},
                    {"bits_per_weight", (planes + tables + outliers) * 8 / weights}});
    if (outliers > 0) rows.back()["outlier_bytes"] = outliers;
    if (model != nullptr) rows.back()["bytes_per_token"] = model->bytes_per_token(bits);
  }
  return rows;
}

void print_precisions(const std::vector<row>& rows) {
  std::vector<column> columns = {{"bits", "bits", as_bits()},
                                 {"plane_bytes", "planes", as_bytes()},
                                 {"table_bytes", "tables", as_bytes()}};
  if (!rows.empty() && rows[0].contains("outlier_bytes"))
    columns.push_back({"outlier_bytes", "outliers", as_bytes()});
  columns.push_back({"bits_per_weight", "bits per weight", as_number("%.3f")});
  if (!rows.empty() && rows[0].contains("bytes_per_token"))
    columns.push_back({"bytes_per_token", "read per token", as_bytes()});
  print_table(std::cout, columns, rows);
}

/// The line on the quantized linears, and on the rest.
void print_totals(const std::vector<bitladder::linear_info>& linears,
                  const std::vector<bitladder::tensor_info>& others) {
  double weights = 0, stored = 0, plain = 0, outliers = 0, outlier_bytes = 0;
  for (const bitladder::linear_info& l : linears) {
    weights += static_cast<double>(l.rows) * l.cols;
    stored += static_cast<double>(l.plane_bytes()) * l.planes;
    for (int b = l.min_bits; b <= l.max_bits; ++b) stored += static_cast<double>(l.table_bytes(b));
    outliers += l.outliers;
    outlier_bytes += static_cast<double>(l.outlier_bytes());
  }
  stored += outlier_bytes;
  for (const auto& t : others) plain += static_cast<double>(t.bytes());
  std::cout << linears.size() << " quantized linears, " << as_number("%.4g")(weights / 1e6)
            << " M weights: " << bytes_text(stored) << " for all precisions together ("
            << as_number("%.2f")(stored * 8 / weights)
            << " bits per weight, every table counted)\n";
  if (outliers > 0)
    std::cout << "among them " << as_number("%.0f")(outliers) << " outliers ("
              << as_number("%.3g")(100 * outliers / weights)
              << "% of the weights): " << bytes_text(outlier_bytes) << ", "
              << as_number("%.3f")(outlier_bytes * 8 / weights)
              << " bits per weight at every precision\n";
  std::cout << "everything else: " << bytes_text(plain) << "\n\n";
}

void inspect_checkpoint(const inspect_arguments& a) {
  const bitladder::checkpoint c(a.path);
  const llama::model model(a.path);
  std::cout << a.path << ": bitladder checkpoint, " << c.min_bits() << " to " << c.max_bits()
            << " bits, seed " << c.seed_bits() << ", " << c.groups()
            << (c.groups() == 1 ? " group" : " groups") << " a row\n";
  print_totals(c.linears(), c.plain_tensors());
  const std::vector<row> rows = precision_rows(c.linears(), c.min_bits(), c.max_bits(), &model);
  print_precisions(rows);
  write_rows(a.json, rows);
  if (a.tensors) {
    std::cout << '\n';
    print_tensors(c.tensors().tensors());
  }
  if (a.check) {
    c.validate();
    std::cout << "\nevery table is finite and ascending, every padding bit zero, every outlier "
                 "sound\n";
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
    print_tensors(set.tensors());
  }
}

void inspect_foreign(const inspect_arguments& a) {
  const std::unique_ptr<llama::foreign_checkpoint> c = llama::open_foreign(a.path);
  std::cout << a.path << ": " << c->format() << " checkpoint, " << c->min_bits();
  if (c->max_bits() != c->min_bits()) std::cout << " to " << c->max_bits();
  std::cout << " bits\n";
  const std::vector<bitladder::tensor_info> plain = c->plain_tensors();
  print_totals(c->linears(), plain);
  const std::vector<row> rows = precision_rows(c->linears(), c->min_bits(), c->max_bits(), nullptr);
  print_precisions(rows);
  write_rows(a.json, rows);
  if (a.tensors) {
    std::cout << '\n';
    std::vector<row> linears;
    for (const bitladder::linear_info& l : c->linears())
      linears.push_back({{"linear", l.name},
                         {"shape", bitladder::to_string({l.rows, l.cols})},
                         {"bytes", l.plane_bytes() * static_cast<std::size_t>(l.planes)}});
    print_table(std::cout,
                {{"linear", "linear", as_text()},
                 {"shape", "shape", as_text()},
                 {"bytes", "codes", as_bytes()}},
                linears);
    std::cout << '\n';
    print_tensors(plain);
  }
  if (a.check) {
    for (const bitladder::linear_info& l : c->linears())
      static_cast<void>(c->read(l.name, nullptr));
    std::cout << "\nevery table is finite and fits fp16\n";
  }
}

/// A row per type of tensors in the file, in the order in which they first occur.
std::vector<row> type_rows(const bitladder::gguf_file& file) {
  std::vector<row> rows;
  for (const bitladder::gguf_tensor& t : file.tensors()) {
    const std::string type = bitladder::to_string(t.type);
    auto at =
        std::find_if(rows.begin(), rows.end(), [&](const row& r) { return r["type"] == type; });
    if (at == rows.end())
      at = rows.insert(at, row({{"type", type}, {"tensors", 0}, {"elements", 0}, {"bytes", 0}}));
    (*at)["tensors"] = (*at)["tensors"].get<std::uint64_t>() + 1;
    (*at)["elements"] = (*at)["elements"].get<std::uint64_t>() + t.elements();
    (*at)["bytes"] = (*at)["bytes"].get<std::uint64_t>() + t.bytes();
  }
  return rows;
}

/// What the file says of itself, whatever kind of model it is, and whether that runs here.
void inspect_gguf(const inspect_arguments& a) {
  const bitladder::gguf_file file(a.path);
  const bitladder::gguf_metadata& m = file.metadata();
  const auto text = [&](const char* key) {
    const bitladder::gguf_value* v = m.find(key);
    return v == nullptr ? std::string("not said") : std::string(v->text().value_or("not a text"));
  };
  const auto count = [&](const char* key) {
    const bitladder::gguf_value* v = m.find(key);
    return v == nullptr || !v->is_array() ? std::uint64_t{0} : v->size();
  };
  std::cout << a.path << ": GGUF file, version " << file.version() << ", " << file.tensors().size()
            << " tensors, " << bytes_text(static_cast<double>(file.mapping().size())) << "\n"
            << "architecture: " << text("general.architecture")
            << "; name: " << text("general.name") << "\n"
            << "tokenizer: " << text("tokenizer.ggml.model")
            << ", split as: " << text("tokenizer.ggml.pre") << ", "
            << count("tokenizer.ggml.tokens") << " tokens, " << count("tokenizer.ggml.merges")
            << " merges\n";
  try {
    const llama::gguf_weights known(a.path);
    const int layers = known.shape().layers;
    std::cout << "runs here: all that " << layers << (layers == 1 ? " layer calls" : " layers call")
              << " for is there, in its shape\n\n";
  } catch (const bitladder::error& e) {
    std::cout << "does not run here: " << e.what() << "\n\n";
  }
  const std::vector<row> rows = type_rows(file);
  print_table(std::cout,
              {{"type", "type", as_text()},
               {"tensors", "tensors", as_number("%.0f")},
               {"elements", "elements", as_number("%.0f")},
               {"bytes", "bytes", as_bytes()}},
              rows);
  write_rows(a.json, rows);
  if (a.tensors) {
    std::cout << '\n';
    print_tensors(file.tensors());
  }
}

void run(const inspect_arguments& a) {
  if (std::filesystem::is_regular_file(a.path)) {
    const bitladder::mapped_file file(a.path);
    if (file.text().substr(0, 2) == "PK") return inspect_foreign(a);  // torch.save's archive
    return inspect_gguf(a);
  }
  if (llama::is_foreign(a.path)) return inspect_foreign(a);
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
  c->footer(
      "A GGUF file, and a checkpoint of Any-Precision LLM or SqueezeLLM, are told as what they "
      "are.");
  c->add_option("model", a->path, "Folder of a model or checkpoint, or a file of one")
      ->required()
      ->check(CLI::ExistingPath);
  c->add_flag("--tensors", a->tensors, "List every tensor");
  c->add_flag("--check", a->check, "Read every plane and table of a checkpoint and check them");
  c->add_option("--json", a->json, "Also write the table as a JSON list");
  c->callback([a] { run(*a); });
}

}  // namespace cli
