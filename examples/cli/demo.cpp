// SPDX-License-Identifier: MIT
#include <bitladder/io/atomic_file.hpp>

#include <llama/generate.hpp>

#include <cli/commands.hpp>
#include <cli/measure.hpp>
#include <cli/runner.hpp>
#include <cli/table.hpp>

#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace cli {
namespace {

struct demo_arguments {
  std::string model, original, text, prompt = "Once upon a time there was", json, svg,
                                     device = "cpu";
  std::vector<int> bits;
  measure_options measure;
  int tokens = 48, threads = 0;
  bool join = true;
};

/// Writes the prompt on at one precision, streaming, and adds speed and text to the row.
void continue_prompt(const run_at& r, const demo_arguments& a, row& to) {
  std::cout << (r.bits == 0 ? "unquantized: " : std::to_string(r.bits) + " bits: ") << a.prompt
            << std::flush;
  llama::generate_options options;
  options.max_new_tokens = a.tokens;
  options.stop_at_end_token = false;
  const llama::generation g = r.where->with_session([&](auto& session) {
    session.truncate(0);
    return llama::generate(session, r.where->tokenizer(), a.prompt, r.bits, options,
                           [](std::string_view text) { std::cout << text << std::flush; });
  });
  std::cout << "\n\n";
  to["tokens_per_second"] = g.tokens_per_second();
  to["text"] = a.prompt + g.text;
}

void run(demo_arguments& a) {
  bitladder::thread_pool pool(a.threads);
  ladder models(a.model, a.original, pool, 0, a.device);
  const std::vector<run_at> runs = models.runs(a.bits);
  const std::vector<int> tokens =
      a.text.empty() ? std::vector<int>() : read_tokens(models.main().tokenizer(), a.text, a.join);
  std::vector<row> rows;
  for (const run_at& r : runs) {
    rows.push_back({{"bits", r.bits},
                    {"perplexity", nullptr},
                    {"tokens_per_second", nullptr},
                    {"bytes_per_token", r.where->model().bytes_per_token(r.bits)}});
    continue_prompt(r, a, rows.back());
  }
  if (!tokens.empty()) {
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const row measured = measure_perplexity(runs[i], tokens, a.measure);
      rows[i]["perplexity"] = measured["perplexity"];
      rows[i]["windows"] = measured["windows"];
    }
    std::cout << "perplexity: " << rows.front()["windows"] << " windows of " << a.measure.window
              << " tokens of " << a.text << "\n";
  }
  print_table(std::cout,
              {{"bits", "bits", as_bits()},
               {"perplexity", "perplexity", as_number("%.2f")},
               {"tokens_per_second", "tokens/s", as_number("%.0f")},
               {"bytes_per_token", "weights read per token", as_bytes()}},
              rows);
  write_rows(a.json, rows);
  if (!a.svg.empty() && !tokens.empty()) bitladder::write_file_atomically(a.svg, chart(rows));
}

}  // namespace

void add_demo(CLI::App& app) {
  auto a = std::make_shared<demo_arguments>();
  CLI::App* c =
      app.add_subcommand("demo", "One prompt at every precision of one checkpoint, side by side");
  c->footer(
      "  bitladder demo small-2to8 --unquantized examples/models/small --text "
      "examples/models/held-out.txt\n"
      "Each precision writes greedily; tokens/s is the speed of writing, without the prompt.");
  c->add_option("checkpoint", a->model, "Folder of a checkpoint")
      ->required()
      ->check(CLI::ExistingDirectory);
  c->add_option("--unquantized", a->original, "The unquantized original, for a row to compare with")
      ->check(CLI::ExistingPath);
  c->add_option("-p,--prompt", a->prompt, "Text to continue")->capture_default_str();
  c->add_option("-n,--max-tokens", a->tokens, "New tokens at each precision")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("-b,--bits", a->bits,
                "Precisions, as in 2,3,4,8; 0 is unquantized. Default: all there are")
      ->delimiter(',')
      ->check(CLI::Range(0, 16));
  c->add_option("--text", a->text, "Text file to measure perplexity on")->check(CLI::ExistingFile);
  c->add_option("--window", a->measure.window, "Tokens of a window")->capture_default_str();
  c->add_option("--max-windows", a->measure.max_windows, "Stop after this many; 0: the whole text")
      ->capture_default_str();
  c->add_flag("!--keep-lines", a->join, "Do not join lines that were wrapped by hand");
  add_device(*c, a->device);
  c->add_option("--threads", a->threads,
                "Threads; 0 takes all. Text and perplexity do not depend on it")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_option("--json", a->json, "Also write the table, with the texts, as a JSON list");
  c->add_option("--svg", a->svg, "Draw bits against perplexity");
  c->add_flag("-q,--quiet", a->measure.quiet, "No progress bar");
  c->callback([a] { run(*a); });
}

}  // namespace cli
