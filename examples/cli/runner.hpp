// SPDX-License-Identifier: MIT
// A model with what running it takes: threads, tokenizer, backend and one session, of the CPU or of
// a card. Commands that
// compare precisions also open the unquantized original, as "0 bits".
#pragma once

#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>

#include <llama/backend_cpu.hpp>
#include <llama/forward.hpp>
#include <llama/model.hpp>
#include <llama/tokenizer.hpp>
#ifdef BL_HAS_CARD
#include <llama/cuda_engine.hpp>
#endif

#include <cli/device.hpp>

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
  /// @param capacity most tokens of the session; 0 takes the model's context, on a card
  /// card_context of it at most
  /// @param device cpu or cuda
  runner(const std::filesystem::path& path, bitladder::thread_pool& pool, int capacity = 0,
         const std::string& device = "cpu")
      : model_(path),
        tokenizer_(llama::tokenizer::of_model(path)),
        backend_(model_, &pool),
        session_(backend_, capacity) {
    if (device == "cpu") return;
#ifdef BL_HAS_CARD
    llama::card_options options;
    options.context = capacity > 0 ? capacity : std::min(model_.config().context, card_context);
    options.exact_batches = false;  // there is one sequence
    engine_ = std::make_unique<llama::card_engine>(model_, options);
    card_session_ = std::make_unique<llama::session<llama::card_engine>>(*engine_);
#else
    throw_no_card();
#endif
  }

  const llama::model& model() const { return model_; }
  const llama::tokenizer& tokenizer() const { return tokenizer_; }
  /// f(the session), whose type depends on the device.
  template <class F>
  auto with_session(F&& f) {
#ifdef BL_HAS_CARD
    if (card_session_ != nullptr) return f(*card_session_);
#endif
    return f(session_);
  }

 private:
#ifdef BL_HAS_CARD
  /// Keys and values of a card take their memory at once.
  static constexpr int card_context = 8192;
#endif

  llama::model model_;
  llama::tokenizer tokenizer_;
  llama::cpu_backend backend_;
  llama::session<llama::cpu_backend> session_;
#ifdef BL_HAS_CARD
  std::unique_ptr<llama::card_engine> engine_;
  std::unique_ptr<llama::session<llama::card_engine>> card_session_;
#endif
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
  /// @param device cpu or cuda
  ladder(const std::string& folder, const std::string& original, bitladder::thread_pool& pool,
         int capacity = 0, const std::string& device = "cpu")
      : main_(folder, pool, capacity, device) {
    if (original.empty()) return;
    original_ = std::make_unique<runner>(original, pool, capacity, device);
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
