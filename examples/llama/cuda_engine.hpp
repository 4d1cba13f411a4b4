// SPDX-License-Identifier: MIT
// A model on a card, weights resident once, run at any loaded precision, for one or several
// sequences. Without CUDA in the header: cuda_engine.cu is built where there is a CUDA compiler.
// A decode step is one CUDA graph for each precision and number of sequences, so a switch of
// precision costs nothing; a prompt goes through in chunks. Tested by
// tests/llama/cuda/engine_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/schedule/observation.hpp>

#include <llama/forward.hpp>
#include <llama/generate.hpp>
#include <llama/model.hpp>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace llama {

/// Bytes of a card that a model takes.
struct card_memory {
  std::size_t planes = 0;    ///< of the linears, as far as the widest loaded precision needs
  std::size_t tables = 0;    ///< of every loaded precision
  std::size_t outliers = 0;  ///< beside the planes
  std::size_t rest = 0;      ///< what is not quantized
  std::size_t cache = 0;     ///< keys and values of all sequences, fp16
  std::size_t scratch = 0;   ///< activations, logits, workspaces

  std::size_t total() const { return planes + tables + outliers + rest + cache + scratch; }
};

struct card_options {
  std::vector<int> precisions;  ///< to load; between the least and the most all are; empty: all
  int batch = 1;                ///< sequences at once, 1 to 16
  int context = 0;              ///< positions of each sequence; 0: the model's
  /// Whether a sequence has the same bits alone and in every batch. If not, one that is alone may
  /// take a faster kernel that rounds in other places, no more than fp16 does; the fastest, which
  /// keeps all multiprocessors for a whole step, in one engine of a card at a time.
  bool exact_batches = true;
  std::size_t memory_limit = 0;  ///< bytes that may be used; 0: what is free
  /// Told the bytes of weights that are on the card, and of all; may be empty.
  std::function<void(std::size_t done, std::size_t all)> progress;
};

/// What a model takes with these options. No card is asked.
/// @throws bitladder::error for options that no card could serve
card_memory predict_card_memory(const model& m, const card_options& options = {});

/// Runs a model on the current CUDA device. One call at a time. The model must outlive it.
class card_engine {
 public:
  static constexpr int max_batch = 16;

  /// What schedules see of a sequence: its last layer. Reading waits for the card.
  class kv_view final : public bitladder::schedule::kv_reader {
   public:
    kv_view(const card_engine& engine, int sequence) : engine_(&engine), sequence_(sequence) {}
    int tokens() const override { return engine_->length(sequence_); }
    int kv_heads() const override { return engine_->model().config().kv_heads; }
    int head_dim() const override { return engine_->model().config().head_dim; }
    void read(int head, int first, int count, float* keys, float* values) const override {
      engine_->read_cache(sequence_, engine_->model().config().layers - 1, head, first, count, keys,
                          values);
    }

   private:
    const card_engine* engine_;
    int sequence_;
  };

  /// @throws bitladder::error if there is no card, if the family does not run on one yet, if a
  /// precision is not there, or if memory is too little (how much is needed, and which precisions
  /// would fit)
  explicit card_engine(const llama::model& m, const card_options& options = {});
  card_engine(card_engine&&) noexcept;
  card_engine& operator=(card_engine&&) noexcept;
  ~card_engine();

  const llama::model& model() const;
  /// Those loaded, rising; {unquantized} for a dense model.
  const std::vector<int>& precisions() const;
  /// The precision that `bits` means here.
  /// @throws bitladder::error naming the precisions loaded
  int checked_precision(int bits) const;
  int batch() const;
  int capacity() const;
  const card_memory& memory() const;

  /// Tokens that a sequence has seen.
  int length(int sequence) const;
  /// Forgets the tokens from `length` on.
  /// @throws bitladder::error unless 0 <= length <= length(sequence)
  void truncate(int sequence, int length);

  /// Captures the graphs of every loaded precision for `sequences` of them, which else happens at
  /// the first step that needs one.
  void warm_up(int sequences = 1);

  /// Runs `tokens` of one sequence after those seen, all weights at `bits`: a prompt in chunks, a
  /// lone token as a step. `logits` then answers for them, and for prompts of more than
  /// `kept_rows()` tokens for the last ones. Does not wait for the card.
  /// @throws bitladder::error for no token, one outside the vocabulary, a precision not loaded, or
  /// more tokens than there is room for; the tokens seen are then as before
  void forward(int sequence, bitladder::vector_view<const int> tokens, int bits);

  /// One token each of different sequences. `logits` then has a row for each.
  void step(bitladder::vector_view<const int> sequences, bitladder::vector_view<const int> tokens,
            int bits);

  /// Logits of rows [first, first + count) of the last forward or step, [count, vocabulary], valid
  /// until the next call. Waits for the card.
  bitladder::matrix_view<const float> logits(int first, int count);
  /// Rows of the last forward or step.
  int rows() const;
  /// The most rows that logits can be asked for.
  int kept_rows() const;

  /// Writes on greedily: `count` steps, the first of which reads `tokens` (one of each sequence)
  /// and every other what the one before found likeliest. Waits for the card once at the end.
  /// @param plan precision of each step, 0 .. count - 1; of an observation it is shown the step
  /// and the bits before
  /// @return [step][sequence]: the likeliest token after each step, count * sequences.size() of
  /// them. The last ones have not been read: they are the next call's `tokens`
  std::vector<int> decode(bitladder::vector_view<const int> sequences,
                          bitladder::vector_view<const int> tokens, const precision_plan& plan,
                          int count);

  /// Keys and values of positions [first, first + count) of a sequence, each [count, head_dim].
  /// Waits for the card.
  /// @throws bitladder::error unless these are positions that it has seen, of a layer and head
  void read_cache(int sequence, int layer, int head, int first, int count, float* keys,
                  float* values) const;

  /// Waits for the card.
  /// @throws bitladder::error if something queued has failed
  void synchronize();

  /// What one kind of launch takes of a step.
  struct launch_time {
    std::string name;       ///< "qkv", "attention", ...
    int launches = 0;       ///< in a step
    double us = 0;          ///< all of them, one after the other without anything between
    std::size_t bytes = 0;  ///< of weights, or of keys and values, that they read
  };
  /// Times a step of `sequences` at `bits` by kinds of launches: a graph of each kind alone, then,
  /// as "step", of all. A launch of several steps, "layers", is followed by what its blocks take
  /// for each of them: at least, in the mean and at most, with names that begin with "-". Lengths
  /// stay as they are; logits are lost.
  /// @param replays of each graph
  std::vector<launch_time> profile(bitladder::vector_view<const int> sequences, int bits,
                                   int replays = 20);

 private:
  class state;
  std::unique_ptr<state> state_;
};

/// One sequence of an engine, as forward.hpp's session is one of a backend: what generate() and the
/// commands take.
template <>
class session<card_engine> {
 public:
  /// @param sequence of the engine; what it has seen is forgotten
  explicit session(card_engine& engine, int sequence = 0) : engine_(&engine), sequence_(sequence) {
    engine.truncate(sequence, 0);
  }

  card_engine& backend() { return *engine_; }
  int sequence() const { return sequence_; }
  const llama::model& model() const { return engine_->model(); }
  int length() const { return engine_->length(sequence_); }
  int capacity() const { return engine_->capacity(); }
  /// Keys and values of the last layer, of all tokens seen by the time that it is read.
  card_engine::kv_view last_layer() const { return {*engine_, sequence_}; }
  void truncate(int length) { engine_->truncate(sequence_, length); }
  void forward(bitladder::vector_view<const int> tokens, int bits) {
    engine_->forward(sequence_, tokens, bits);
  }
  bitladder::matrix_view<const float> logits(int first, int count) {
    return engine_->logits(first, count);
  }
  bitladder::vector_view<const float> last_logits() {
    const auto l = engine_->logits(engine_->rows() - 1, 1);
    return {l.data(), static_cast<std::size_t>(l.cols())};
  }

 private:
  card_engine* engine_;
  int sequence_;
};

/// What generate() takes in place of its template: greedy steps are queued several at once, without
/// a look at the logits of each, if the plan does not need probabilities. The tokens are the same.
/// The plan is then shown no keys and values, and is asked for steps that an end token may leave
/// unused.
generation generate(session<card_engine>& s, bitladder::vector_view<const int> prompt,
                    const precision_plan& plan, const generate_options& options = {},
                    const std::function<bool(int)>& on_token = {});

}  // namespace llama
