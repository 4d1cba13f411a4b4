// SPDX-License-Identifier: MIT
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/schedule/observation.hpp>

#include <llama/cuda/decode_graph.cuh>
#include <llama/cuda/device_model.cuh>
#include <llama/cuda/engine_plan.cuh>
#include <llama/cuda/layer_steps.cuh>
#include <llama/cuda/resident_layers.cuh>
#include <llama/cuda/workspace.cuh>
#include <llama/cuda_engine.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cublas_v2.h>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace llama {

using bitladder::status;
using card::check_cuda;
using card::refuse;

class card_engine::state {
 public:
  using tokens_view = bitladder::vector_view<const int>;

  state(const llama::model& m, const card_options& o)
      : model_(&m),
        plan_((card::require_device(), card::engine_plan(m, o))),
        memory_(plan_.memory(m, plan_.bits)) {
    plan_.check_fits(m, memory_, o.memory_limit);
    const cudaStream_t stream = queue_.stream();
    const auto sizes = card::workspace::plan(m, plan_.bits, plan_.batch, plan_.capacity);
    room_.allocate(m.config(), sizes, stream);
    weights_.upload(m, plan_.bits, plan_.capacity, stream, o.progress);
    if (sizes.blas > 0) queue_.start_blas(room_.blas.data(), sizes.blas);
    steps_ = std::make_unique<card::layer_steps>(m.config(), weights_, room_, o.exact_batches,
                                                 queue_.blas(), stream);
    if (!plan_.exact) {
      resident_.prepare(m.config(), weights_, room_, plan_.bits, stream);
      steps_->stay(resident_);
    }
    lengths_.resize(static_cast<std::size_t>(plan_.batch));
  }

  const llama::model& model() const { return *model_; }
  const card::engine_plan& planned() const { return plan_; }
  const card_memory& memory() const { return memory_; }

  int checked_precision(int bits) const {
    const int b = bits == 16 ? unquantized : bits;
    std::string present;
    for (int p : plan_.precisions) {
      if (p == b) return b;
      present += (present.empty() ? "" : ", ") +
                 (p == unquantized ? std::string("unquantized") : std::to_string(p) + " bits");
    }
    refuse(status::not_found,
           model_->folder().string() + ": precision " +
               (b == unquantized ? std::string("unquantized") : std::to_string(b) + " bits") +
               " asked for, on the card: " + present);
  }

  int& length(int sequence) {
    if (sequence < 0 || sequence >= plan_.batch)
      refuse(status::invalid_argument, "card: expected a sequence of 0 to " +
                                           std::to_string(plan_.batch - 1) + ", found " +
                                           std::to_string(sequence));
    return lengths_[static_cast<std::size_t>(sequence)];
  }

  void truncate(int sequence, int to) {
    int& l = length(sequence);
    if (to < 0 || to > l)
      refuse(status::invalid_argument, "card: expected a length of 0 to " + std::to_string(l) +
                                           ", found " + std::to_string(to));
    l = to;
  }

  void warm_up(int sequences) {
    check_count(sequences);
    for (int b : plan_.precisions) graph(sequences, b);
    rows_ = 0;
  }

  void forward(int sequence, tokens_view tokens, int bits) {
    const int precision = checked_precision(bits), count = static_cast<int>(tokens.size());
    int& seen = length(sequence);
    if (tokens.size() == 0)
      refuse(status::invalid_argument, "forward: expected at least one token, found none");
    check_room(sequence, tokens.size());
    check_tokens(tokens);
    if (count == 1) return step({&sequence, 1}, tokens, bits);
    const int chunk = room_.planned().rows, kept = room_.planned().kept;
    // Chunks before `first` only fill the cache.
    const int first = count <= kept ? 0 : (count - kept + chunk - 1) / chunk * chunk;
    rows_ = 0;
    std::vector<int> staged(static_cast<std::size_t>(chunk) * 2);
    for (int begin = 0; begin < count; begin += chunk) {
      const int n = std::min(chunk, count - begin);
      for (int i = 0; i < n; ++i) {
        staged[static_cast<std::size_t>(i)] = tokens.data()[begin + i];
        staged[static_cast<std::size_t>(chunk + i)] = seen + begin + i;
      }
      bitladder::check(room_.prompt.upload(staged.data(), staged.size(), queue_.stream()),
                       "the card: a prompt");
      steps_->prompt(n, sequence, seen + begin, precision, std::max(0, begin - first));
    }
    seen += count;
    rows_ = count;
    first_row_ = first;
    from_step_ = false;
  }

  void step(tokens_view sequences, tokens_view tokens, int bits) {
    const int precision = checked_precision(bits);
    set(sequences, tokens, 1);
    const int m = static_cast<int>(sequences.size());
    cudaGraphExec_t g = graph(m, precision);
    upload_parameters(sequences, tokens);
    check_cuda(cudaGraphLaunch(g, queue_.stream()), "a step");
    finish_steps(sequences, 1);
  }

  std::vector<int> decode(tokens_view sequences, tokens_view tokens, const precision_plan& bits,
                          int count) {
    if (count < 0)
      refuse(status::invalid_argument,
             "decode: expected 0 or more steps, found " + std::to_string(count));
    set(sequences, tokens, count);
    const int m = static_cast<int>(sequences.size());
    std::vector<cudaGraphExec_t> graphs;
    precision_plan own = bits;
    bitladder::schedule::observation seen;
    for (int i = 0; i < count; ++i) {
      seen.step = i;
      seen.bits = checked_precision(own(seen));
      graphs.push_back(graph(m, seen.bits));
    }
    std::vector<int> out, log, last(tokens.data(), tokens.data() + tokens.size());
    for (int begin = 0; begin < count; begin += card::log_steps) {
      const int n = std::min(card::log_steps, count - begin);
      upload_parameters(sequences, last);
      for (int i = 0; i < n; ++i)
        check_cuda(cudaGraphLaunch(graphs[static_cast<std::size_t>(begin + i)], queue_.stream()),
                   "a step");
      finish_steps(sequences, n);
      log.resize(static_cast<std::size_t>(m) * card::log_steps);
      bitladder::check(room_.log.download(log.data(), log.size(), queue_.stream()),
                       "the card: the tokens of steps");
      synchronize();
      for (int i = 0; i < n; ++i)
        for (int r = 0; r < m; ++r)
          out.push_back(
              log[static_cast<std::size_t>(r) * card::log_steps + static_cast<std::size_t>(i)]);
      last.assign(out.end() - m, out.end());
    }
    return out;
  }

  bitladder::matrix_view<const float> logits(int first, int count) {
    const int vocabulary = model_->config().vocabulary;
    if (first < first_row_ || count < 0 || first > rows_ - count)
      refuse(status::invalid_argument,
             "logits: expected tokens of the last forward, of which " + std::to_string(first_row_) +
                 " to " + std::to_string(rows_) + " are kept, found " + std::to_string(first) +
                 " to " + std::to_string(first + count));
    const auto width = static_cast<std::size_t>(vocabulary);
    host_logits_.resize(static_cast<std::size_t>(count) * width);
    const cudaStream_t stream = queue_.stream();
    const auto fetch = [&](int device_row, int host_row, int n) {
      check_cuda(cudaMemcpyAsync(host_logits_.data() + static_cast<std::size_t>(host_row) * width,
                                 room_.logits.data() + static_cast<std::size_t>(device_row) * width,
                                 static_cast<std::size_t>(n) * width * sizeof(float),
                                 cudaMemcpyDeviceToHost, stream),
                 "logits");
    };
    if (from_step_) {
      fetch(first, 0, count);
    } else {
      const auto hidden = static_cast<std::size_t>(model_->config().hidden);
      for (int i = 0; i < count; i += max_batch) {
        const int n = std::min(max_batch, count - i);
        check_cuda(cudaMemcpyAsync(room_.part.data(),
                                   room_.hidden.data() +
                                       static_cast<std::size_t>(first - first_row_ + i) * hidden,
                                   static_cast<std::size_t>(n) * hidden * sizeof(__half),
                                   cudaMemcpyDeviceToDevice, stream),
                   "hidden states");
        steps_->head(room_.part.data(), n);
        fetch(0, i, n);
      }
    }
    synchronize();
    return {host_logits_.data(), count, vocabulary};
  }

  int rows() const { return rows_; }
  int kept_rows() const {
    const int kept = room_.planned().kept, chunk = room_.planned().rows;
    return plan_.capacity <= kept ? plan_.capacity : kept - chunk + 1;
  }

  void read_cache(int sequence, int layer, int head, int first, int count, float* keys,
                  float* values) {
    const config& c = model_->config();
    const int seen = length(sequence);
    if (layer < 0 || layer >= c.layers || head < 0 || head >= c.kv_heads || first < 0 ||
        count < 0 || first > seen - count)
      refuse(status::invalid_argument,
             "card: keys and values: expected positions of 0 to " + std::to_string(seen) +
                 " of a layer and a head that are there, found " + std::to_string(first) + " to " +
                 std::to_string(first + count) + " of layer " + std::to_string(layer) + ", head " +
                 std::to_string(head));
    const auto width = static_cast<std::size_t>(c.head_dim) * sizeof(__half);
    const auto stride = static_cast<std::size_t>(room_.cache.row());
    std::vector<bitladder::fp16_t> rows(static_cast<std::size_t>(count) *
                                        static_cast<std::size_t>(c.head_dim));
    const auto fetch = [&](const __half* from, float* to) {
      if (rows.empty()) return;
      check_cuda(
          cudaMemcpy2DAsync(rows.data(), width, from + static_cast<std::size_t>(first) * stride,
                            stride * sizeof(__half), width, static_cast<std::size_t>(count),
                            cudaMemcpyDeviceToHost, queue_.stream()),
          "keys and values");
      synchronize();
      std::transform(rows.begin(), rows.end(), to,
                     [](bitladder::fp16_t x) { return bitladder::to_float(x); });
    };
    fetch(room_.cache.keys(layer, sequence, head), keys);
    fetch(room_.cache.values(layer, sequence, head), values);
  }

  void synchronize() { check_cuda(cudaStreamSynchronize(queue_.stream()), "waiting"); }

  std::vector<launch_time> profile(tokens_view sequences, int bits, int replays) {
    const int precision = checked_precision(bits), m = static_cast<int>(sequences.size());
    const std::vector<int> tokens(sequences.size(), 0);
    set(sequences, tokens, 1);
    static_cast<void>(graph(m, precision));
    rows_ = 0;
    std::map<std::string, int> counts;
    std::vector<std::string> order;
    steps_->watch([&](const char* name) {
      if (counts[name]++ == 0) order.emplace_back(name);
    });
    card::decode_graph(*steps_, m, precision, queue_.stream());
    steps_->watch({});
    std::vector<launch_time> times;
    for (const std::string& name : order) {
      steps_->only(name);
      const card::decode_graph part(*steps_, m, precision, queue_.stream());
      steps_->only("");
      times.push_back({name, counts[name],
                       part.microseconds(replays, queue_.stream(),
                                         [&] { upload_parameters(sequences, tokens); }),
                       read_by(name, sequences, precision)});
    }
    if (counts.count("layers") != 0) {
      upload_parameters(sequences, tokens);
      for (const auto& t : resident_.stages(precision, queue_.stream()))
        for (const auto& [name, us] :
             {std::pair<const char*, double>{"least", t.least}, {"mean", t.mean}, {"most", t.most}})
          times.push_back({std::string("- ") + t.step + " " + t.stage + " " + name, 0, us, 0});
    }
    const double all = graphs_.at({m, precision})->microseconds(replays, queue_.stream(), [&] {
      upload_parameters(sequences, tokens);
    });
    std::size_t bytes = 0;
    int launches = 0;
    for (const launch_time& t : times) {
      bytes += t.bytes;
      launches += t.launches;
    }
    times.push_back({"step", launches, all, bytes});
    return times;
  }

 private:
  void check_count(int sequences) const {
    if (sequences < 1 || sequences > plan_.batch)
      refuse(status::invalid_argument, "card: expected 1 to " + std::to_string(plan_.batch) +
                                           " sequences, found " + std::to_string(sequences));
  }

  void check_room(int sequence, std::size_t count) {
    const int seen = length(sequence);
    if (count > static_cast<std::size_t>(plan_.capacity - seen))
      refuse(status::invalid_argument, "card: sequence " + std::to_string(sequence) + ": " +
                                           std::to_string(seen) + " + " + std::to_string(count) +
                                           " tokens asked for, expected at most " +
                                           std::to_string(plan_.capacity));
  }

  void check_tokens(tokens_view tokens) const {
    const int vocabulary = model_->config().vocabulary;
    for (int t : tokens)
      if (t < 0 || t >= vocabulary)
        refuse(status::invalid_argument, "forward: expected tokens of 0 to " +
                                             std::to_string(vocabulary - 1) + ", found " +
                                             std::to_string(t));
  }

  /// Checks a call of `count` steps.
  void set(tokens_view sequences, tokens_view tokens, int count) {
    check_count(static_cast<int>(std::min<std::size_t>(sequences.size(), max_batch + 1)));
    if (tokens.size() != sequences.size())
      refuse(status::shape_mismatch, "card: expected a token for each of " +
                                         std::to_string(sequences.size()) + " sequences, found " +
                                         std::to_string(tokens.size()));
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      check_room(sequences.data()[i], static_cast<std::size_t>(count));
      for (std::size_t j = 0; j < i; ++j)
        if (sequences.data()[i] == sequences.data()[j])
          refuse(status::invalid_argument, "card: expected different sequences, found " +
                                               std::to_string(sequences.data()[i]) + " twice");
    }
    check_tokens(tokens);
  }

  void upload_parameters(tokens_view sequences, tokens_view tokens) {
    card::step_state::parameters p{};
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      p.tokens[i] = tokens.data()[i];
      p.slots[i] = sequences.data()[i];
      p.positions[i] = lengths_[static_cast<std::size_t>(sequences.data()[i])];
    }
    bitladder::check(room_.state.upload(&p, 1, queue_.stream()), "the card: a step");
  }

  void finish_steps(tokens_view sequences, int count) {
    for (int s : sequences) lengths_[static_cast<std::size_t>(s)] += count;
    rows_ = static_cast<int>(sequences.size());
    first_row_ = 0;
    from_step_ = true;
  }

  /// The step as a graph, captured if it is not there yet.
  cudaGraphExec_t graph(int m, int bits) {
    std::unique_ptr<card::decode_graph>& g = graphs_[{m, bits}];
    if (g == nullptr) {
      // Once without a graph, with idle rows, so that no code is loaded during the capture.
      card::step_state::parameters idle{};
      std::fill(std::begin(idle.positions), std::end(idle.positions), -1);
      for (int i = 0; i < plan_.batch; ++i) idle.slots[i] = i;
      bitladder::check(room_.state.upload(&idle, 1, queue_.stream()), "the card: a step");
      steps_->step(m, bits);
      synchronize();
      g = std::make_unique<card::decode_graph>(*steps_, m, bits, queue_.stream());
    }
    return g->executable();
  }

  /// Bytes that launches of a name read in a step.
  std::size_t read_by(const std::string& name, tokens_view sequences, int bits) const {
    const config& c = model_->config();
    std::size_t bytes = 0;
    const auto of = [&](const card::device_linear& w) {
      if (w.empty()) return;
      bytes += w.packed() ? w.view(bits).touched_bytes() : w.dense(bits).bytes();
    };
    if (name == "head") of(weights_.head);
    for (int i = 0; i < c.layers; ++i) {
      const card::device_layer& l = weights_.layers[static_cast<std::size_t>(i)];
      const bool layers = name == "layers";
      if (layers || name == "qkv") {
        of(l.query);
        of(l.key);
        of(l.value);
      }
      if (layers || name == "o") of(l.output);
      if (layers || name == "gate up" || name == "up") {
        of(l.gate);
        of(l.up);
      }
      if (layers || name == "down") of(l.down);
      if (!layers && name != "attention") continue;
      for (int s : sequences) {
        int seen = lengths_[static_cast<std::size_t>(s)] + 1;
        if (c.window_of(i) > 0) seen = std::min(seen, c.window_of(i));
        bytes += static_cast<std::size_t>(seen) * static_cast<std::size_t>(c.kv_width()) * 2 *
                 sizeof(__half);
      }
    }
    return bytes;
  }

  const llama::model* model_;
  card::engine_plan plan_;
  card_memory memory_;
  card::workspace room_;
  card::device_model weights_;
  card::resident_layers resident_;
  card::engine_queue queue_;  // goes first, so that nothing is queued when the memory goes
  std::unique_ptr<card::layer_steps> steps_;
  std::map<std::pair<int, int>, std::unique_ptr<card::decode_graph>> graphs_;  // by rows, bits
  std::vector<int> lengths_;
  std::vector<float> host_logits_;
  int rows_ = 0, first_row_ = 0;
  bool from_step_ = false;
};

card_memory predict_card_memory(const model& m, const card_options& options) {
  const card::engine_plan p(m, options);
  return p.memory(m, p.bits);
}

card_engine::card_engine(const llama::model& m, const card_options& options)
    : state_(std::make_unique<state>(m, options)) {}
card_engine::card_engine(card_engine&&) noexcept = default;
card_engine& card_engine::operator=(card_engine&&) noexcept = default;
card_engine::~card_engine() = default;

const llama::model& card_engine::model() const { return state_->model(); }
const std::vector<int>& card_engine::precisions() const { return state_->planned().precisions; }
int card_engine::checked_precision(int bits) const { return state_->checked_precision(bits); }
int card_engine::batch() const { return state_->planned().batch; }
int card_engine::capacity() const { return state_->planned().capacity; }
const card_memory& card_engine::memory() const { return state_->memory(); }
int card_engine::length(int sequence) const { return state_->length(sequence); }
void card_engine::truncate(int sequence, int length) { state_->truncate(sequence, length); }
void card_engine::warm_up(int sequences) { state_->warm_up(sequences); }
void card_engine::forward(int sequence, bitladder::vector_view<const int> tokens, int bits) {
  state_->forward(sequence, tokens, bits);
}
void card_engine::step(bitladder::vector_view<const int> sequences,
                       bitladder::vector_view<const int> tokens, int bits) {
  state_->step(sequences, tokens, bits);
}
bitladder::matrix_view<const float> card_engine::logits(int first, int count) {
  return state_->logits(first, count);
}
int card_engine::rows() const { return state_->rows(); }
int card_engine::kept_rows() const { return state_->kept_rows(); }
std::vector<int> card_engine::decode(bitladder::vector_view<const int> sequences,
                                     bitladder::vector_view<const int> tokens,
                                     const precision_plan& plan, int count) {
  return state_->decode(sequences, tokens, plan, count);
}
void card_engine::read_cache(int sequence, int layer, int head, int first, int count, float* keys,
                             float* values) const {
  state_->read_cache(sequence, layer, head, first, count, keys, values);
}
void card_engine::synchronize() { state_->synchronize(); }
std::vector<card_engine::launch_time> card_engine::profile(
    bitladder::vector_view<const int> sequences, int bits, int replays) {
  return state_->profile(sequences, bits, replays);
}

}  // namespace llama
