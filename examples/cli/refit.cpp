// SPDX-License-Identifier: MIT
#include <bitladder/core/parallel.hpp>

#include <llama/refit_model.hpp>

#include <cli/calibration_arguments.hpp>
#include <cli/commands.hpp>
#include <cli/progress.hpp>
#include <cli/table.hpp>

#include <chrono>
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

namespace cli {
namespace {

struct refit_arguments {
  std::string source, original, out, json;
  calibration_arguments calibration;
  llama::refit_model_options options;
  double memory_gib = 2;
  std::uint64_t random_state = 0;
  int threads = 0;
  bool keep_planes = false, quiet = false;
};

void run(refit_arguments& a) {
  std::unique_ptr<progress> bar;
  const llama::model_sensitivities_options text =
      a.calibration.options({}, a.random_state, a.options.overwrite, a.quiet, bar);
  a.options.texts = text.texts;
  a.options.calibration = text.calibration;
  a.options.refit.move_codes = !a.keep_planes;
  a.options.moment_bytes = static_cast<std::uint64_t>(a.memory_gib * 0x1p30);
  bitladder::thread_pool pool(a.threads);
  const auto start = std::chrono::steady_clock::now();
  std::string shown;
  const llama::refit_model_result r = llama::refit_model(
      a.source, a.original, a.out, a.options, &pool,
      [&](const std::string& what, std::int64_t done, std::int64_t resumed, std::int64_t all) {
        if (what != shown) {
          bar.reset();
          bar = std::make_unique<progress>(what, all, a.quiet);
          shown = what;
        }
        bar->update(done, "", resumed);
      });
  bar.reset();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::cout << a.out << ": " << r.linears << " linears, " << a.options.calibration.samples
            << " samples of " << a.options.calibration.seq_len << " tokens, "
            << as_number("%.1f")(seconds) << " s\n";
  if (r.refit < r.linears)
    std::cout << r.linears - r.refit << " linears were done by an earlier run\n";
  std::vector<row> rows;
  for (int b = 1; b < 9; ++b)
    if (r.error_ratio[b] > 0)
      rows.push_back(
          {{"bits", b},
           {"error_ratio", r.error_ratio[b]},
           {"moved",
            r.weights > 0 ? static_cast<double>(r.moved) / static_cast<double>(r.weights) : 0}});
  print_table(std::cout,
              {{"bits", "bits", as_bits()},
               {"error_ratio", "error of outputs, after / before", as_number("%.3f")}},
              rows);
  if (r.weights > 0)
    std::cout << as_number("%.1f")(100 * static_cast<double>(r.moved) /
                                   static_cast<double>(r.weights))
              << "% of weights have another code\n";
  write_rows(a.json, rows);
}

}  // namespace

void add_refit(CLI::App& app) {
  auto a = std::make_shared<refit_arguments>();
  CLI::App* c = app.add_subcommand(
      "refit", "Better tables and codes for a checkpoint, by what its layers are given");
  c->footer(
      "CHECKPOINT is one that quantize made, MODEL what it was made from. Over the calibration "
      "text "
      "it is measured\n"
      "how the inputs of every linear go together, weighted by the squared gradients of its "
      "outputs; "
      "then tables\n"
      "and codes change so that errors of the narrow precisions cancel. Files stay as large and "
      "products as fast.\n"
      "With --keep-planes only tables change. If the run is interrupted, the same command goes on "
      "where it stopped.\n\n"
      "  bitladder refit small-2to8 --model examples/models/small --text books/ -o small-refit");
  c->add_option("checkpoint", a->source, "Folder of the checkpoint")
      ->required()
      ->check(CLI::ExistingPath);
  c->add_option("--model", a->original, "Folder or GGUF file of the model before quantization")
      ->required()
      ->check(CLI::ExistingPath);
  c->add_option("-o,--output", a->out,
                "Folder of the new checkpoint, made by one rename at the end")
      ->required();
  a->calibration.add_to(*c)->required();
  c->remove_option(c->get_option("--save-every"));
  bitladder::refit_options& r = a->options.refit;
  c->add_flag("--keep-planes", a->keep_planes, "Change tables only");
  c->add_option("--top-bits", r.top_bits,
                "Widest precision that is refit; wider ones are split anew below its codes")
      ->default_str("5, or the nearest there is");
  c->add_option("--narrow-weight", r.narrow_weight,
                "How much the narrowest precision counts beside --top-bits; those between 2 more "
                "for each bit below it")
      ->capture_default_str();
  c->add_option("--rounds", r.rounds, "Rounds of refitting tables, then codes")
      ->capture_default_str();
  c->add_option("--row-groups", a->options.row_groups,
                "Groups of a linear's rows with moments of their own")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("--memory", a->memory_gib,
                "GiB of moments held at a time; with less than all, samples are run several times")
      ->check(CLI::Range(0., 1e6))
      ->capture_default_str();
  c->add_option("--random-state", a->random_state, "Seed of the draws")->capture_default_str();
  c->add_option("--threads", a->threads, "Threads; 0 takes all. The result does not depend on it")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_flag("--overwrite", a->options.overwrite,
              "Replace a checkpoint of that name, or other unfinished work");
  c->add_option("--json", a->json, "Also write the table as a JSON list");
  c->add_flag("-q,--quiet", a->quiet, "No progress bar");
  c->callback([a] { run(*a); });
}

}  // namespace cli
