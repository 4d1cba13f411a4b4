// SPDX-License-Identifier: MIT
#include <bitladder/io/atomic_file.hpp>

#include <cli/commands.hpp>
#include <cli/measure.hpp>
#include <cli/runner.hpp>
#include <cli/svg.hpp>
#include <cli/table.hpp>

#include <iostream>
#include <memory>
#include <string>
#include <vector>

namespace cli {
namespace {

struct perplexity_arguments {
  std::string model, original, text, json, svg, device = "cpu";
  std::vector<int> bits;
  measure_options measure;
  int threads = 0;
  bool join = false;
};

void run(perplexity_arguments& a) {
  bitladder::thread_pool pool(a.threads);
  ladder models(a.model, a.original, pool, a.measure.window, a.device);
  const std::vector<run_at> runs = models.runs(a.bits);
  const std::vector<int> tokens = read_tokens(models.main().tokenizer(), a.text, a.join);
  std::vector<row> rows;
  for (const run_at& r : runs) rows.push_back(measure_perplexity(r, tokens, a.measure));
  std::cout << a.text << ": " << tokens.size() << " tokens, " << rows.front()["windows"]
            << " windows of " << a.measure.window << "\n";
  print_table(std::cout,
              {{"bits", "bits", as_bits()},
               {"perplexity", "perplexity", as_number("%.3f")},
               {"tokens_per_second", "tokens/s", as_number("%.0f")},
               {"bytes_per_token", "weights read per token", as_bytes()}},
              rows);
  write_rows(a.json, rows);
  if (!a.svg.empty()) bitladder::write_file_atomically(a.svg, chart(rows));
}

}  // namespace

void add_perplexity(CLI::App& app) {
  auto a = std::make_shared<perplexity_arguments>();
  CLI::App* c = app.add_subcommand("perplexity", "How well each precision predicts a text");
  c->footer(
      "The text is tokenized once and cut into windows that do not overlap (a shorter tail is "
      "dropped); each is\n"
      "run alone, and the result is exp(mean over windows of the mean loss). tokens/s counts whole "
      "windows.\n\n"
      "  bitladder perplexity small-2to8 --text held-out.txt --join-paragraphs --window 512 \\\n"
      "      --unquantized examples/models/small --json ppl.json --svg ppl.svg");
  c->add_option("model", a->model, "Folder of a model or checkpoint, or a GGUF file")
      ->required()
      ->check(CLI::ExistingPath);
  c->add_option("--text", a->text, "Text file")->required()->check(CLI::ExistingFile);
  c->add_option("-b,--bits", a->bits,
                "Precisions, as in 2,3,4,8; 0 is unquantized. Default: all there are")
      ->delimiter(',')
      ->check(CLI::Range(0, 16));
  c->add_option("--unquantized", a->original, "The unquantized original, for 0 bits")
      ->check(CLI::ExistingPath);
  c->add_option("--window", a->measure.window, "Tokens of a window")->capture_default_str();
  c->add_option("--max-windows", a->measure.max_windows, "Stop after this many; 0: the whole text")
      ->capture_default_str();
  c->add_flag("--join-paragraphs", a->join, "Join lines that were wrapped by hand");
  add_device(*c, a->device);
  c->add_option("--threads", a->threads, "Threads; 0 takes all. Perplexities do not depend on it")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_option("--json", a->json, "Also write the table as a JSON list");
  c->add_option("--svg", a->svg, "Draw bits against perplexity");
  c->add_flag("-q,--quiet", a->measure.quiet, "No progress bar");
  c->callback([a] { run(*a); });
}

}  // namespace cli
