// SPDX-License-Identifier: MIT
#include <bitladder/core/parallel.hpp>

#include <llama/families.hpp>
#include <llama/model_sensitivities.hpp>
#include <llama/module_list.hpp>

#include <cli/calibration_arguments.hpp>
#include <cli/commands.hpp>
#include <cli/device.hpp>
#include <cli/progress.hpp>
#include <cli/table.hpp>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>

namespace cli {
namespace {

struct sensitivity_arguments {
  std::string source, out, modules, json, device = "cpu";
  calibration_arguments calibration;
  std::uint64_t random_state = 0;
  int threads = 0;
  bool overwrite = false, quiet = false;
};

/// MODEL.sensitivities.safetensors in the current folder, after the last part of the model's path.
std::string default_name(const std::filesystem::path& model) {
  std::filesystem::path absolute = std::filesystem::absolute(model).lexically_normal();
  if (!absolute.has_filename()) absolute = absolute.parent_path();  // a slash at the end
  const bool is_file = absolute.extension() == ".gguf";
  return (is_file ? absolute.stem() : absolute.filename()).string() + ".sensitivities.safetensors";
}

void run(sensitivity_arguments& a) {
  if (a.out.empty()) a.out = default_name(a.source);
  const llama::module_list modules =
      a.modules.empty() ? llama::module_list() : llama::read_module_list(a.modules);
  bitladder::thread_pool pool(a.threads);
  const auto start = std::chrono::steady_clock::now();
  std::unique_ptr<progress> bar;
  llama::model_sensitivities_options options =
      a.calibration.options(modules, a.random_state, a.overwrite, a.quiet, bar);
  options.at_once = measure_on(a.device);
  const auto made = llama::model_sensitivities(a.source, a.out, options, &pool);
  bar.reset();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const llama::calibration_options& c = options.calibration;
  std::cout << a.out << ": " << (made.reused ? "is there already, made from the same; " : "")
            << made.linears << " linears, " << c.samples << " samples of " << c.seq_len
            << " tokens (" << made.drawn << " of " << a.calibration.names() << "), mean loss "
            << as_number("%.4f")(made.mean_loss) << ", " << as_number("%.1f")(seconds) << " s\n";
  write_rows(a.json, {{{"file", a.out},
                       {"linears", made.linears},
                       {"samples", c.samples},
                       {"seq_len", c.seq_len},
                       {"random_state", c.random_state},
                       {"drawn", made.drawn},
                       {"mean_loss", made.mean_loss},
                       {"device", a.device},
                       {"reused", made.reused},
                       {"resumed", made.resumed},
                       {"seconds", seconds}}});
}

}  // namespace

void add_sensitivity(CLI::App& app) {
  auto a = std::make_shared<sensitivity_arguments>();
  CLI::App* c =
      app.add_subcommand("sensitivity", "Measure on text how much each weight of a model matters");
  c->footer(
      "MODEL is a Hugging Face folder with a model_type of " + llama::family_list() +
      ", or a GGUF file.\n"
      "For every weight the squared gradient of a sample's mean loss is summed over the samples, "
      "in fp32. The\n"
      "result is what quantize takes as --sensitivities. If the file is there and was made from "
      "the same model,\n"
      "text and options, nothing is computed; if a run is interrupted, the same command goes on "
      "where it was\n"
      "saved last and ends with the same bytes. On a card all samples are run together, layer by "
      "layer, in\n"
      "seconds, and nothing is saved before the end.\n\n"
      "  bitladder sensitivity examples/models/small --text books/\n"
      "  bitladder sensitivity MODEL --text c4.jsonl --num-examples 100 --seq-len 512 -o "
      "grads.safetensors");
  c->add_option("model", a->source, "Folder or GGUF file of the model")
      ->required()
      ->check(CLI::ExistingPath);
  a->calibration.add_to(*c)->required();
  c->add_option("--random-state", a->random_state, "Seed of the draws")->capture_default_str();
  c->add_option("--modules", a->modules,
                "Which linears of every layer: names with commas between "
                "(self_attn.q_proj,mlp.down_proj), or a JSON file "
                "{\"module_names\": [\"self_attn.q_proj\"]}. Default: all")
      ->type_name("NAMES|FILE");
  c->add_option("-o,--output", a->out,
                "File to write. Default: MODEL.sensitivities.safetensors in the current folder, "
                "after the last part of the model's path");
  add_device(*c, a->device);
  c->add_option("--threads", a->threads, "Threads; 0 takes all. The result does not depend on it")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_flag("--overwrite", a->overwrite,
              "Replace a file, or unfinished work, that was made from something else");
  c->add_option("--json", a->json, "Also write the summary as a JSON list of one row");
  c->add_flag("-q,--quiet", a->quiet, "No progress bar");
  c->callback([a] { run(*a); });
}

}  // namespace cli
