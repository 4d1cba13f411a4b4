// SPDX-License-Identifier: MIT
#include <llama/generate.hpp>

#include <cli/commands.hpp>
#include <cli/runner.hpp>
#include <cli/table.hpp>

#include <cstddef>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>

namespace cli {
namespace {

struct generate_arguments {
  std::string model, prompt, prompt_file, json;
  int bits = -1, threads = 0;
  llama::generate_options options;
  bool ignore_end = false, quiet = false;
};

void run(generate_arguments& a) {
  bitladder::thread_pool pool(a.threads);
  runner r(a.model, pool);
  // The widest precision of the file if none was named.
  const int bits = a.bits < 0 ? r.model().precisions().back() : r.model().checked_precision(a.bits);
  const std::string prompt = a.prompt_file.empty() ? a.prompt : read_file(a.prompt_file);
  a.options.stop_at_end_token = !a.ignore_end;
  std::cout << prompt << std::flush;
  const llama::generation g =
      llama::generate(r.session(), r.tokenizer(), prompt, bits, a.options,
                      [](std::string_view text) { std::cout << text << std::flush; });
  std::cout << std::endl;
  if (!a.quiet)
    std::cerr << "\n"
              << (bits == 0 ? std::string("unquantized") : std::to_string(bits) + " bits") << ": "
              << g.tokens.size() << " tokens, " << as_number("%.1f")(g.tokens_per_second())
              << " tokens/s, prompt in " << as_number("%.2f")(g.prompt_seconds) << " s, "
              << bytes_text(static_cast<double>(r.model().bytes_per_token(bits)))
              << " read per token; ended by " << llama::to_string(g.reason) << "\n";
  write_rows(a.json, {{{"bits", bits},
                       {"tokens_per_second", g.tokens_per_second()},
                       {"bytes_per_token", r.model().bytes_per_token(bits)},
                       {"text", g.text}}});
}

}  // namespace

void add_generate(CLI::App& app) {
  auto a = std::make_shared<generate_arguments>();
  CLI::App* c = app.add_subcommand("generate", "Continue a prompt at one precision");
  c->footer(
      "  bitladder generate small-2to8 --bits 3 --prompt \"It was a dark night\" --temperature 0.8 "
      "--top-k 40\n"
      "With temperature 0 the likeliest token is taken each time; a seed gives the same text "
      "again.");
  c->add_option("model", a->model, "Folder of a model or checkpoint, or a GGUF file")
      ->required()
      ->check(CLI::ExistingPath);
  auto* prompt = c->add_option("-p,--prompt", a->prompt, "Text to continue");
  c->add_option("--prompt-file", a->prompt_file, "File with the text to continue")
      ->check(CLI::ExistingFile)
      ->excludes(prompt);
  c->add_option("-b,--bits", a->bits,
                "Precision; 0 runs an unquantized model. Default: the widest there is")
      ->check(CLI::Range(0, 16));
  c->add_option("-n,--max-tokens", a->options.max_new_tokens, "Most new tokens")
      ->capture_default_str();
  c->add_option("--temperature", a->options.sampling.temperature, "0 takes the likeliest token")
      ->capture_default_str();
  c->add_option("--top-k", a->options.sampling.top_k, "Draw from the k likeliest; 0: from all")
      ->capture_default_str();
  c->add_option("--top-p", a->options.sampling.top_p,
                "Then from the fewest that reach this probability")
      ->capture_default_str();
  c->add_option("--seed", a->options.sampling.seed, "Seed of the draws")->capture_default_str();
  c->add_flag("--ignore-end", a->ignore_end, "Write on after an end token");
  c->add_option("--threads", a->threads, "Threads; 0 takes all. The text does not depend on it")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_option("--json", a->json,
                "Also write what was measured, and the text, as a JSON list of one row");
  c->add_flag("-q,--quiet", a->quiet, "Only the text");
  c->callback([a] { run(*a); });
}

}  // namespace cli
