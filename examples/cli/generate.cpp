// SPDX-License-Identifier: MIT
#include <bitladder/schedule/bit_log.hpp>
#include <bitladder/schedule/parse.hpp>

#include <llama/generate.hpp>

#include <cli/commands.hpp>
#include <cli/runner.hpp>
#include <cli/table.hpp>

#include <cmath>
#include <cstddef>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>

namespace cli {
namespace {

struct generate_arguments {
  std::string model, prompt, prompt_file, schedule, json, device = "cpu";
  int bits = -1, threads = 0;
  llama::generate_options options;
  bool ignore_end = false, quiet = false;
};

/// "4 bits", or how many passes were at which precision.
std::string precision_text(const llama::generation& g) {
  const auto counts = bitladder::schedule::count_bits(g.bits);
  const auto name = [](int bits) {
    return bits == 16 ? std::string("unquantized") : std::to_string(bits) + " bits";
  };
  if (counts.size() == 1) return name(counts.begin()->first);
  std::string text;
  for (auto i = counts.rbegin(); i != counts.rend(); ++i)
    text += name(i->first) + " " + std::to_string(i->second) + " times, ";
  return text + as_number("%.2f")(g.average_bits()) + " in the mean";
}

void run(generate_arguments& a) {
  bitladder::thread_pool pool(a.threads);
  runner r(a.model, pool, 0, a.device);
  // The widest precision of the file if none was named.
  const int bits = a.bits < 0 ? r.model().precisions().back() : r.model().checked_precision(a.bits);
  const llama::precision_plan plan =
      a.schedule.empty() ? llama::precision_plan(bits)
                         : bitladder::schedule::parse(a.schedule, a.options.max_new_tokens,
                                                      a.options.sampling.seed);
  const std::string prompt = a.prompt_file.empty() ? a.prompt : read_file(a.prompt_file);
  a.options.stop_at_end_token = !a.ignore_end;
  std::cout << prompt << std::flush;
  const llama::generation g = r.with_session([&](auto& session) {
    return llama::generate(session, r.tokenizer(), prompt, plan, a.options,
                           [](std::string_view text) { std::cout << text << std::flush; });
  });
  std::cout << std::endl;
  double bytes = 0;  // of a decode step, in the mean; of the prompt if that is all
  const std::size_t first = g.bits.size() > 1 ? 1 : 0;
  for (std::size_t i = first; i < g.bits.size(); ++i)
    bytes += static_cast<double>(r.model().bytes_per_token(g.bits[i])) /
             static_cast<double>(g.bits.size() - first);
  if (!a.quiet)
    std::cerr << "\n"
              << precision_text(g) << ": " << g.tokens.size() << " tokens, "
              << as_number("%.1f")(g.tokens_per_second()) << " tokens/s, prompt in "
              << as_number("%.2f")(g.prompt_seconds) << " s, " << bytes_text(bytes)
              << " read per token; ended by " << llama::to_string(g.reason) << "\n";
  row result = {{"tokens_per_second", g.tokens_per_second()},
                {"bytes_per_token", std::llround(bytes)},
                {"text", g.text}};
  if (a.schedule.empty())
    result["bits"] = bits;
  else
    result.update(
        {{"schedule", a.schedule}, {"average_bits", g.average_bits()}, {"bits_of_steps", g.bits}});
  write_rows(a.json, {result});
}

}  // namespace

void add_generate(CLI::App& app) {
  auto a = std::make_shared<generate_arguments>();
  CLI::App* c = app.add_subcommand("generate", "Continue a prompt at one precision, or at several");
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
  c->add_option(
       "--schedule", a->schedule,
       "Precisions that change: \"8/4,3@86,2@171\" reads the prompt at 8 bits and writes at "
       "4,\nat 3 from the 86th new token on, at 2 from the 171st; \"confidence:4,3,2\", "
       "\"random:4,2\"")
      ->excludes("--bits");
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
  add_device(*c, a->device);
  c->add_option("--threads", a->threads, "Threads; 0 takes all. The text does not depend on it")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_option("--json", a->json,
                "Also write what was measured, and the text, as a JSON list of one row");
  c->add_flag("-q,--quiet", a->quiet, "Only the text");
  c->callback([a] { run(*a); });
}

}  // namespace cli
