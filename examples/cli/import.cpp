// SPDX-License-Identifier: MIT
#include <bitladder/core/parallel.hpp>

#include <llama/import_model.hpp>

#include <cli/commands.hpp>
#include <cli/progress.hpp>
#include <cli/table.hpp>

#include <cstdint>
#include <iostream>
#include <memory>
#include <string>

namespace cli {
namespace {

struct import_arguments {
  std::string source, out, companions, json;
  llama::import_options options;
  int threads = 0;
  bool quiet = false;
};

void run(import_arguments& a) {
  a.options.companions = a.companions;
  bitladder::thread_pool pool(a.threads);
  std::unique_ptr<progress> bar;
  const llama::import_report r = llama::import_model(
      a.source, a.out, a.options, &pool,
      [&](const std::string& linear, std::int64_t done, std::int64_t resumed, std::int64_t all) {
        if (bar == nullptr) {
          if (resumed > 0 && !a.quiet)
            std::cerr << "going on with unfinished work: " << resumed * 100 / all << "% was done\n";
          bar = std::make_unique<progress>("import", all, a.quiet);
        }
        bar->update(done, linear, resumed);
      });
  bar.reset();
  std::cout << a.out << ": " << r.linears << " linears, "
            << as_number("%.4g")(static_cast<double>(r.weights) / 1e6) << " M weights, at "
            << r.min_bits;
  if (r.max_bits != r.min_bits) std::cout << " to " << r.max_bits;
  std::cout << " bits, from " << r.format << "\n";
  if (r.rounding.largest > 0)
    std::cout << "tables rounded to fp16: off by at most " << as_number("%.3g")(r.rounding.largest)
              << ", of " << as_number("%.9g")(r.rounding.stored) << " in row " << r.rounding.row
              << " of " << r.rounding.linear << "\n";
  else
    std::cout << "tables unchanged\n";
  if (r.outliers > 0)
    std::cout << r.outliers << " outliers ("
              << as_number("%.3g")(100.0 * static_cast<double>(r.outliers) /
                                   static_cast<double>(r.weights))
              << "% of the weights)\n";
  write_rows(a.json, {{{"format", r.format},
                       {"min_bits", r.min_bits},
                       {"max_bits", r.max_bits},
                       {"linears", r.linears},
                       {"weights", r.weights},
                       {"outliers", r.outliers},
                       {"largest_rounding", r.rounding.largest},
                       {"rounded", r.rounding.stored},
                       {"rounded_linear", r.rounding.linear},
                       {"rounded_row", r.rounding.row}}});
}

}  // namespace

void add_import(CLI::App& app) {
  auto a = std::make_shared<import_arguments>();
  CLI::App* c = app.add_subcommand(
      "import", "Make a checkpoint of one that Any-Precision LLM or SqueezeLLM wrote");
  c->footer(
      "SOURCE is a folder of Any-Precision LLM (config.json with \"anyprec\", pytorch_model.bin or "
      "safetensors),\n"
      "or a folder or .pt file of SqueezeLLM, dense or with sparse parts; OUT a checkpoint as "
      "quantize makes it, with\n"
      "the same codes and tables. SqueezeLLM's tables are sorted and rounded to fp16, its sparse "
      "parts become outliers\n"
      "in fp16. If the run is interrupted, the same command goes on where it stopped.\n\n"
      "  bitladder import anyprec-Llama-2-7b-w8_orig3 llama-3to8\n"
      "  bitladder import sq-llama-2-7b-w4-s0.pt llama-4 --companions Llama-2-7b-hf");
  c->add_option("source", a->source, "Folder or file to import")
      ->required()
      ->check(CLI::ExistingPath);
  c->add_option("-o,--output,output", a->out,
                "Folder of the checkpoint, made by one rename at the end")
      ->required();
  c->add_option("--companions", a->companions,
                "Folder with config.json and tokenizer, if they are not beside the tensors")
      ->check(CLI::ExistingDirectory);
  c->add_option("--threads", a->threads, "Threads; 0 takes all. The result does not depend on it")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_flag("--overwrite", a->options.overwrite,
              "Replace a checkpoint of that name, or other unfinished work");
  c->add_option("--json", a->json, "Also write what was imported as a JSON list of one row");
  c->add_flag("-q,--quiet", a->quiet, "No progress bar");
  c->callback([a] { run(*a); });
}

}  // namespace cli
