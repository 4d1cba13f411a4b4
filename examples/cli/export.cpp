// SPDX-License-Identifier: MIT
#include <llama/export_model.hpp>

#include <cli/commands.hpp>
#include <cli/progress.hpp>
#include <cli/table.hpp>

#include <cstdint>
#include <iostream>
#include <memory>
#include <string>

namespace cli {
namespace {

struct export_arguments {
  std::string source, out, container = "torch", json;
  llama::export_options options;
  bool quiet = false;
};

void run(export_arguments& a) {
  a.options.container = a.container == "torch" ? bitladder::anyprec_container::torch
                                               : bitladder::anyprec_container::safetensors;
  std::unique_ptr<progress> bar;
  const llama::export_report r =
      llama::export_model(a.source, a.out, a.options,
                          [&](const std::string& linear, std::int64_t done, std::int64_t all) {
                            if (bar == nullptr)
                              bar = std::make_unique<progress>("export", all, a.quiet);
                            bar->update(done, linear);
                          });
  bar.reset();
  std::cout << a.out << ": " << r.linears << " linears, "
            << as_number("%.4g")(static_cast<double>(r.weights) / 1e6) << " M weights, at "
            << r.min_bits << " to " << r.max_bits << " bits, for Any-Precision LLM\n";
  if (r.min_bits < 3 && !a.quiet)
    std::cerr << "that project runs 3 bits and more; --min-bits 3 leaves out the tables that it "
                 "does not use\n";
  write_rows(a.json, {{{"min_bits", r.min_bits},
                       {"max_bits", r.max_bits},
                       {"linears", r.linears},
                       {"weights", r.weights}}});
}

}  // namespace

void add_export(CLI::App& app) {
  auto a = std::make_shared<export_arguments>();
  CLI::App* c =
      app.add_subcommand("export", "Write a checkpoint in the layout of Any-Precision LLM");
  c->footer(
      "OUT gets config.json, the tokenizer, and pytorch_model.bin, which that project loads, or "
      "the "
      "same tensors as\n"
      "model.safetensors. Codes and tables stay bit for bit; import reads them back.\n\n"
      "  bitladder export small-2to8 small-anyprec --min-bits 3");
  c->add_option("checkpoint", a->source, "Folder of a checkpoint")
      ->required()
      ->check(CLI::ExistingDirectory);
  c->add_option("-o,--output,output", a->out, "Folder to write, which holds no model yet")
      ->required();
  c->add_option("--min-bits", a->options.min_bits,
                "Leave out tables of fewer bits. Default: all are kept")
      ->check(CLI::Range(1, 8));
  c->add_option("--container", a->container, "torch (pytorch_model.bin) or safetensors")
      ->check(CLI::IsMember({"torch", "safetensors"}))
      ->capture_default_str();
  c->add_option("--json", a->json, "Also write what was exported as a JSON list of one row");
  c->add_flag("-q,--quiet", a->quiet, "No progress bar");
  c->callback([a] { run(*a); });
}

}  // namespace cli
