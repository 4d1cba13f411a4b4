// SPDX-License-Identifier: MIT
// The options that say which texts a model's sensitivities are measured on, as the sensitivity and
// quantize commands have them, and the progress of that work.
#pragma once

#include <evaluate/text.hpp>
#include <llama/calibration.hpp>
#include <llama/model_sensitivities.hpp>

#include <CLI/CLI.hpp>
#include <cli/progress.hpp>

#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

namespace cli {

/// What the user said, and after options() what it means.
class calibration_arguments {
 public:
  /// @return the option --text
  CLI::Option* add_to(CLI::App& c) {
    CLI::Option* text =
        c.add_option("--text", texts_,
                     "Calibration text: a text file, a *.jsonl file, a folder of *.txt and "
                     "*.jsonl files, or tokens: a *.safetensors file with one I32 or I64 tensor "
                     "[samples, tokens], or a *.bin or *.i32 file of 32-bit integers. Texts may be "
                     "given several times")
            ->type_name("PATH")
            ->check(CLI::ExistingPath)
            ->allow_extra_args(false);
    llama::calibration_options& o = options_.calibration;
    const auto add = [&](CLI::Option* option) { option->needs(text)->capture_default_str(); };
    add(c.add_option("--num-examples", o.samples, "Samples; of a file of tokens the first ones")
            ->check(CLI::PositiveNumber));
    add(c.add_option("--seq-len", o.seq_len, "Tokens of a sample")->check(CLI::Range(2, 1 << 30)));
    add(c.add_option("--draw", draw_,
                     "documents: the first tokens of random documents that are long enough; "
                     "windows: random windows, which do not overlap, of all documents put one "
                     "after another; auto: documents if there are enough, else windows")
            ->check(CLI::IsMember({"auto", "documents", "windows"})));
    add(c.add_option("--text-field", o.field, "Key of the text in the objects of *.jsonl files"));
    add(c.add_flag("--join-paragraphs", join_, "Join lines that were wrapped by hand"));
    add(c.add_option("--save-every", options_.run.save_seconds,
                     "Seconds between two saves of unfinished work; 0: after every sample")
            ->check(CLI::NonNegativeNumber));
    return text;
  }

  bool given() const { return !texts_.empty(); }
  /// "a.txt, b.txt"
  std::string names() const {
    std::string all;
    for (const std::string& text : texts_) all += (all.empty() ? "" : ", ") + text;
    return all;
  }

  /// @param bar where the progress bar is kept; to be reset when the work is done
  llama::model_sensitivities_options options(const llama::module_list& modules,
                                             std::uint64_t random_state, bool overwrite, bool quiet,
                                             std::unique_ptr<progress>& bar) const {
    llama::model_sensitivities_options o = options_;
    o.texts.assign(texts_.begin(), texts_.end());
    o.modules = modules;
    o.calibration.random_state = random_state;
    o.calibration.how = draw_ == "documents" ? llama::draw::documents
                        : draw_ == "windows" ? llama::draw::windows
                                             : llama::draw::automatic;
    if (join_)
      o.calibration.prepare = [](const std::string& text) {
        return evaluate::join_paragraphs(text);
      };
    o.run.overwrite = overwrite;
    o.run.note = [](const std::string& text) { std::cerr << text << "\n"; };
    o.run.progress = [&bar, quiet](int done, int resumed, int samples, double mean_loss) {
      if (bar == nullptr) {
        if (resumed > 0 && !quiet)
          std::cerr << "going on with unfinished work: " << resumed << " of " << samples
                    << " samples were done\n";
        bar = std::make_unique<progress>("sensitivity", samples, quiet);
      }
      char text[48] = "";
      if (done > 0) std::snprintf(text, sizeof text, "loss %.3f", mean_loss);
      bar->update(done, text, resumed);
    };
    return o;
  }

 private:
  std::vector<std::string> texts_;
  std::string draw_ = "auto";
  bool join_ = false;
  llama::model_sensitivities_options options_;
};

}  // namespace cli
