// SPDX-License-Identifier: MIT
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/quantize/options.hpp>

#include <llama/families.hpp>
#include <llama/model_sensitivities.hpp>
#include <llama/module_list.hpp>
#include <llama/quantize_model.hpp>

#include <cli/calibration_arguments.hpp>
#include <cli/commands.hpp>
#include <cli/device.hpp>
#include <cli/progress.hpp>
#include <cli/table.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

namespace cli {
namespace {

/// Of --outliers, in percent of all weights, as SqueezeLLM has it.
constexpr double sensitive_share = 0.05;

struct quantize_arguments {
  std::string source, out, sensitivities, modules, method = "exact", rest = "keep", json;
  std::string device = "cpu";
  llama::quantize_model_options options;
  calibration_arguments calibration;
  double outliers = 0;
  int seed_bits = 0, threads = 0;
  bool quiet = false;
};

/// A row per precision: the mean over linears, each counted by its weights.
std::vector<row> summarize(const std::vector<llama::linear_errors>& linears) {
  std::map<int, double> sum;
  double weights = 0;
  for (const llama::linear_errors& l : linears) {
    const double n = static_cast<double>(l.rows) * l.cols;
    weights += n;
    for (const auto& [bits, error] : l.relative_error) sum[bits] += error * n;
  }
  std::vector<row> rows;
  for (const auto& [bits, error] : sum)
    rows.push_back({{"bits", bits}, {"relative_error", error / weights}});
  return rows;
}

/// Beside the checkpoint, so that a rerun finds them: OUT.sensitivities.safetensors.
std::filesystem::path sensitivities_beside(std::filesystem::path out) {
  if (!out.has_filename()) out = out.parent_path();  // a slash at the end
  return out += ".sensitivities.safetensors";
}

/// Measures sensitivities on the texts, unless they were measured before.
void measure_sensitivities(quantize_arguments& a, bitladder::thread_pool& pool) {
  // What would stop the quantizer is better said now than after the measuring.
  std::error_code ignored;
  if (!a.options.overwrite && std::filesystem::exists(a.out, ignored))
    throw bitladder::error(bitladder::status::io_failed,
                           a.out + ": is there already; choose another name or allow overwriting");
  a.options.sensitivities = sensitivities_beside(a.out);
  std::unique_ptr<progress> bar;
  llama::model_sensitivities_options options = a.calibration.options(
      a.options.modules, a.options.kmeans.random_state, a.options.overwrite, a.quiet, bar);
  options.at_once = measure_on(a.device);
  options.check = [&a](const llama::sensitivity_shape& weight) {
    bitladder::validate(a.options.kmeans, weight.cols);
  };
  const auto made = llama::model_sensitivities(a.source, a.options.sensitivities, options, &pool);
  bar.reset();
  if (made.reused && !a.quiet)
    std::cerr << a.options.sensitivities.string() << ": made from the same; not measured again\n";
}

void run(quantize_arguments& a) {
  bitladder::kmeans_options& k = a.options.kmeans;
  k.seed_bits = a.seed_bits != 0 ? a.seed_bits : std::max(2, k.min_bits);
  if (a.outliers > 0) {
    k.outliers.sensitive = std::min(a.outliers, sensitive_share);
    k.outliers.large = a.outliers - k.outliers.sensitive;
  }
  a.options.kmeans.method = a.method == "exact" ? bitladder::quantize_method::exact
                                                : bitladder::quantize_method::published;
  a.options.sensitivities = a.sensitivities;
  a.options.rest = a.rest == "f32"    ? llama::rest_type::f32
                   : a.rest == "f16"  ? llama::rest_type::f16
                   : a.rest == "bf16" ? llama::rest_type::bf16
                                      : llama::rest_type::keep;
  if (!a.modules.empty()) a.options.modules = llama::read_module_list(a.modules);
  a.options.on = quantize_on(a.device, a.threads);
  bitladder::thread_pool pool(a.threads);
  const auto start = std::chrono::steady_clock::now();
  if (a.calibration.given()) measure_sensitivities(a, pool);
  std::unique_ptr<progress> bar;
  const auto errors = llama::quantize_model(
      a.source, a.out, a.options, &pool,
      [&](const std::string& linear, std::int64_t done, std::int64_t resumed, std::int64_t all) {
        if (bar == nullptr) {
          if (resumed > 0 && !a.quiet)
            std::cerr << "going on with unfinished work: " << resumed * 100 / all << "% was done\n";
          bar = std::make_unique<progress>("quantize", all, a.quiet);
        }
        bar->update(done, linear, resumed);
      });
  bar.reset();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const std::vector<row> rows = summarize(errors);
  std::cout << a.out << ": " << errors.size() << " linears at " << a.options.kmeans.min_bits
            << " to " << a.options.kmeans.max_bits << " bits, seed " << a.options.kmeans.seed_bits
            << ", " << as_number("%.1f")(seconds) << " s\n";
  print_table(std::cout,
              {{"bits", "bits", as_bits()},
               {"relative_error", "relative weighted error", as_number("%.3e")}},
              rows);
  write_rows(a.json, rows);
}

}  // namespace

void add_quantize(CLI::App& app) {
  auto a = std::make_shared<quantize_arguments>();
  CLI::App* c = app.add_subcommand("quantize", "Make one checkpoint that serves every precision");
  c->footer(
      "MODEL is a Hugging Face folder (config.json, *.safetensors, tokenizer.json) with a "
      "model_type of\n" +
      llama::family_list() +
      ",\n"
      "or a GGUF file of a Llama or Qwen 2 (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1).\n"
      "The checkpoint OUT holds planes and, for each precision, small tables; a reader of 4 bits "
      "reads 4 planes\n"
      "and the 4-bit tables. If the run is interrupted, the same command goes on where it "
      "stopped.\n\n"
      "  bitladder quantize examples/models/small -o small-2to8\n"
      "  bitladder quantize MODEL -o OUT --seed-bits 4 --min-bits 3 --sensitivities "
      "grads.safetensors\n"
      "  bitladder quantize MODEL -o OUT --outliers 0.45 --sensitivities grads.safetensors\n"
      "  bitladder quantize MODEL -o OUT --device cuda --sensitivities grads.safetensors\n"
      "  bitladder quantize MODEL -o OUT --text books/    measures sensitivities first and keeps "
      "them in\n"
      "      OUT.sensitivities.safetensors, where a rerun finds them");
  bitladder::kmeans_options& k = a->options.kmeans;
  c->add_option("model", a->source, "Folder or GGUF file of the model")
      ->required()
      ->check(CLI::ExistingPath);
  c->add_option("-o,--output", a->out, "Folder of the checkpoint, made by one rename at the end")
      ->required();
  c->add_option("--seed-bits", a->seed_bits,
                "Precision that is clustered to the optimum; those above come from it by best "
                "splits, those below "
                "by best merges. Default: the narrowest one, but at least 2");
  c->add_option("--min-bits", k.min_bits, "Narrowest precision")->capture_default_str();
  c->add_option("--max-bits,--parent-bits", k.max_bits,
                "Widest precision: how many planes are stored")
      ->capture_default_str();
  c->add_option("--groups", k.groups, "Column groups of a row with tables of their own")
      ->capture_default_str();
  c->add_option(
       "--lookahead", k.lookahead,
       "How much a split above the seed also weighs the error one bit further on; 0: not at all")
      ->capture_default_str();
  CLI::Option* outliers = c->add_option(
      "--outliers", a->outliers,
      "Percent of the weights of every linear to keep as they are, in fp16, beside the codes: up "
      "to "
      "0.05 those of the greatest sensitivity * weight^2, then those of the greatest magnitude. "
      "0.45 is usual");
  outliers->check(CLI::Range(0.0, 100.0))->capture_default_str();
  c->add_option("--sensitive-outliers", k.outliers.sensitive,
                "The same, but so many by sensitivity * weight^2 (by magnitude where every weight "
                "counts alike)")
      ->check(CLI::Range(0.0, 100.0))
      ->excludes(outliers);
  c->add_option("--large-outliers", k.outliers.large, "and so many by magnitude")
      ->check(CLI::Range(0.0, 100.0))
      ->excludes(outliers);
  CLI::Option* text = a->calibration.add_to(*c);
  c->add_option("--sensitivities", a->sensitivities,
                "safetensors with a sensitivity (squared gradient) for every weight, under the "
                "weights' names; "
                "without it, and without --text, every weight counts alike")
      ->check(CLI::ExistingPath)
      ->excludes(text);
  c->add_option("--modules", a->modules,
                "Which linears of every layer, others stay as they are: names with commas between "
                "(self_attn.q_proj,mlp.down_proj), or a JSON file "
                "{\"module_names\": [\"self_attn.q_proj\"]}. Default: all")
      ->type_name("NAMES|FILE");
  c->add_option("--rest", a->rest,
                "Type of the matrices that are not quantized (embedding, head): keep, f16, bf16 or "
                "f32. keep: as stored; blocks of a GGUF file (Q8_0 and the like) become f16")
      ->check(CLI::IsMember({"keep", "f16", "bf16", "f32"}))
      ->capture_default_str();
  c->add_option("--method", a->method,
                "exact, or published (Any-Precision LLM's own, for comparison)")
      ->check(CLI::IsMember({"exact", "published"}))
      ->capture_default_str();
  c->add_option("--random-state", k.random_state,
                "Seed of the draws of calibration text, and of the published method")
      ->capture_default_str();
  add_device(
      *c, a->device,
      "cpu, or cuda: every card that CUDA_VISIBLE_DEVICES leaves, for sensitivities of --text "
      "the first. An interrupted run goes on where it began, not on the other");
  c->add_option("--threads", a->threads, "Threads; 0 takes all. The result does not depend on it")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_flag("--overwrite", a->options.overwrite,
              "Replace a checkpoint of that name, its sensitivities if they were measured "
              "otherwise, or unfinished work of other options");
  c->add_option("--json", a->json, "Also write the table as a JSON list");
  c->add_flag("-q,--quiet", a->quiet, "No progress bar");
  c->callback([a] { run(*a); });
}

}  // namespace cli
