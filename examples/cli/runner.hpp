// SPDX-License-Identifier: MIT
// A model with what running it takes: threads, tokenizer, backend and one session. Commands that
// compare precisions also open the unquantized original, as "0 bits".
#pragma once

#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>

#include <llama/backend_cpu.hpp>
#include <llama/forward.hpp>
#include <llama/model.hpp>
#include <llama/tokenizer.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace cli {

/// One opened model, ready to run.
class runner {
 public:
  /// @param path folder or GGUF file of the model
  /// @param capacity most tokens of the session; 0 takes the model's context
  runner(const std::filesystem::path& path, bitladder::thread_pool& pool, int capacity = 0)
      : model_(path),
        tokenizer_(llama::tokenizer::of_model(path)),
        backend_(model_, &pool),
        session_(backend_, capacity) {}

  const llama::model& model() const { return model_; }
  const llama::tokenizer& tokenizer() const { return tokenizer_; }
  llama::session<llama::cpu_backend>& session() { return session_; }

 private:
  llama::model model_;
  llama::tokenizer tokenizer_;
  llama::cpu_backend backend_;
  llama::session<llama::cpu_backend> session_;
};

/// A precision and the model that runs it.
struct run_at {
  int bits;  ///< 0: unquantized
  runner* where;
};

/// The models behind a list of precisions: a checkpoint, and the original for 0 bits.
class ladder {
 public:
  /// @param original the unquantized model; empty if 0 bits are not wanted
  /// @param capacity most tokens of a session; 0 takes the model's context
  ladder(const std::string& folder, const std::string& original, bitladder::thread_pool& pool,
         int capacity = 0)
      : main_(folder, pool, capacity) {
    if (original.empty()) return;
    original_ = std::make_unique<runner>(original, pool, capacity);
    if (original_->model().quantized())
      throw bitladder::error(
          bitladder::status::invalid_argument,
          original + ": is a bitladder checkpoint; expected the unquantized model");
    if (original_->model().config().vocabulary != main_.model().config().vocabulary)
      throw bitladder::error(bitladder::status::shape_mismatch,
                             original + ": has " +
                                 std::to_string(original_->model().config().vocabulary) +
                                 " token ids, " + folder + " has " +
                                 std::to_string(main_.model().config().vocabulary));
  }

  runner& main() { return main_; }

  /// The runs for `bits`, or for every precision that is there if `bits` is empty.
  /// @throws error if a precision is not there
  std::vector<run_at> runs(std::vector<int> bits) {
    if (bits.empty()) {
      bits = main_.model().precisions();
      if (original_ != nullptr && main_.model().quantized()) bits.push_back(llama::unquantized);
    }
    std::vector<run_at> out;
    for (int b : bits) {
      if (b == 16) b = llama::unquantized;
      const bool use_original = b == llama::unquantized && original_ != nullptr;
      if (b == llama::unquantized && original_ == nullptr && main_.model().quantized())
        throw bitladder::error(
            bitladder::status::not_found,
            main_.model().folder().string() +
                ": holds no unquantized weights; name the original with --unquantized");
      runner* where = use_original ? original_.get() : &main_;
      out.push_back({where->model().checked_precision(b), where});
    }
    return out;
  }

 private:
  runner main_;
  std::unique_ptr<runner> original_;
};

}  // namespace cli
