// SPDX-License-Identifier: MIT
// Squared gradients of many samples at once, layer by layer: a layer's weights are needed for all
// samples together and then no more, and no sums but its own are held, so a device holds neither
// the model nor the result. Between layers what each sample is given waits in memory; where that of
// every layer is too much, only that of some is kept, and the layers between are run again (Chen et
// al. 2016, Training Deep Nets with Sublinear Memory Cost, section 4). Written over the backends of
// backward.hpp, with its bits. Tested by tests/llama/layerwise_gradients_test.cpp.
#pragma once

#include <bitladder/core/matrix_view.hpp>

#include <llama/backward.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_set>
#include <vector>

namespace llama {

/// How many layers apart what samples are given is kept.
/// @param slots most that may be waiting together, of one layer's for all samples each
/// @return the least distance that needs no more, or, if none does, the one that needs least
inline int layer_distance(int layers, std::int64_t slots) {
  int best = 1;
  std::int64_t least = INT64_MAX;
  for (int distance = 1; distance <= layers; ++distance) {
    // The kept ones, and those between two of them; of which one is kept already.
    const std::int64_t need = (layers + distance - 1) / distance + distance - 1;
    if (need <= slots) return distance;
    if (need < least) {
      least = need;
      best = distance;
    }
  }
  return best;
}

/// Refers to the backend, which beside what backward.hpp needs has `begin_layer(index)`, told
/// before a layer is run, `begin_head()`, and `clear(buffer&)`.
template <class Backend>
class layerwise_gradients {
 public:
  using pass = backward_pass<Backend>;
  using buffer = typename Backend::buffer;
  using linear = typename pass::linear;
  using tokens = bitladder::vector_view<const int>;

  /// @param held_bytes for what waits between layers; the least that is needed is taken if that is
  /// more
  explicit layerwise_gradients(Backend& backend, std::size_t held_bytes = std::size_t{8} << 30)
      : backend_(&backend), pass_(backend), held_bytes_(held_bytes) {}

  /// Runs all samples, each as backward_pass::run() takes it.
  /// @param wanted linears of layers
  /// @param tell_losses is called as `tell_losses(losses)` with the mean loss of every sample,
  /// before any sums are made; there are none if one of them is not finite
  /// @param sums is called as `sums(const linear&, const buffer&)` when those of a linear are
  /// complete: the last layer's first
  /// @param progress is called as `progress(done, all)`, in samples of a layer
  template <class Losses, class Sums, class Progress>
  void run(const std::vector<tokens>& samples, const std::unordered_set<const linear*>& wanted,
           Losses&& tell_losses, Sums&& sums, Progress&& progress) {
    const int layers = static_cast<int>(backend_->weights().layers.size());
    const int distance = layer_distance(layers, slots(samples));
    typename pass::squares all;
    for (const linear* w : wanted) all.emplace(w, nullptr);
    const int lowest = pass_.lowest_wanted(all);
    done_ = 0;
    all_ = layers + layers - lowest;
    for (int base = 0; base < layers; base += distance) {
      const int top = std::min(base + distance, layers) - 1;
      if (top >= lowest) all_ += top - base;
    }
    all_ *= static_cast<std::int64_t>(samples.size());
    kept_.clear();  // not assign(): buffers need not be copyable
    kept_.resize(static_cast<std::size_t>(layers));
    // Forward: what every `distance`th layer is given stays.
    std::vector<buffer> x(samples.size());
    for (std::size_t s = 0; s < samples.size(); ++s) pass_.embed(samples[s], x[s]);
    for (int i = 0; i < layers; ++i) forward(i, x, i % distance == 0, progress);

    std::vector<double> losses;
    std::vector<buffer> d(samples.size());
    backend_->begin_head();
    for (std::size_t s = 0; s < samples.size(); ++s)
      losses.push_back(pass_.head(samples[s], x[s], d[s]));
    x.clear();
    tell_losses(static_cast<const std::vector<double>&>(losses));
    for (double loss : losses)
      if (loss - loss != 0) return;

    for (int i = layers - 1; i >= lowest; --i) {
      recompute(i, distance, progress);
      backward(i, i > lowest, wanted, d, sums, progress);
      kept_[static_cast<std::size_t>(i)].clear();
    }
  }

 private:
  std::int64_t slots(const std::vector<tokens>& samples) const {
    std::size_t bytes = 0;
    for (const tokens& t : samples)
      bytes += (t.size() - 1) * static_cast<std::size_t>(backend_->model().config().hidden) *
               sizeof(float);
    return static_cast<std::int64_t>(held_bytes_ / std::max<std::size_t>(bytes, 1));
  }

  /// x, what layer `index` is given, becomes what it gives.
  template <class Progress>
  void forward(int index, std::vector<buffer>& x, bool keep, Progress&& progress) {
    backend_->begin_layer(index);
    std::vector<buffer>& kept = kept_[static_cast<std::size_t>(index)];
    if (keep) kept.resize(x.size());
    for (std::size_t s = 0; s < x.size(); ++s) {
      pass_.layer_forward(index, x[s], next_);
      std::swap(x[s], next_);
      if (keep) std::swap(kept[s], next_);
      progress(++done_, all_);
    }
  }

  /// Makes sure that what layer `index` is given is there: runs those from the last kept one on.
  template <class Progress>
  void recompute(int index, int distance, Progress&& progress) {
    if (!kept_[static_cast<std::size_t>(index)].empty()) return;
    for (int i = index / distance * distance; i < index; ++i) {
      backend_->begin_layer(i);
      const std::vector<buffer>& given = kept_[static_cast<std::size_t>(i)];
      std::vector<buffer>& to = kept_[static_cast<std::size_t>(i) + 1];
      if (!to.empty()) continue;
      to.resize(given.size());
      for (std::size_t s = 0; s < given.size(); ++s) {
        pass_.layer_forward(i, given[s], to[s]);
        progress(++done_, all_);
      }
    }
  }

  template <class Sums, class Progress>
  void backward(int index, bool input, const std::unordered_set<const linear*>& wanted,
                std::vector<buffer>& d, Sums&& sums, Progress&& progress) {
    std::vector<const linear*> here;
    backend_->weights().layers[static_cast<std::size_t>(index)].for_each_linear(
        [&](const linear& w) {
          if (wanted.count(&w) != 0) here.push_back(&w);
        });
    if (sums_.size() < here.size()) sums_.resize(here.size());
    typename pass::squares to;
    for (std::size_t i = 0; i < here.size(); ++i) {
      sums_[i].resize(here[i]->rows, here[i]->cols);
      backend_->clear(sums_[i]);
      to.emplace(here[i], &sums_[i]);
    }
    backend_->begin_layer(index);
    const std::vector<buffer>& given = kept_[static_cast<std::size_t>(index)];
    for (std::size_t s = 0; s < d.size(); ++s) {
      pass_.layer_backward(index, given[s], d[s], to, input);
      progress(++done_, all_);
    }
    for (std::size_t i = 0; i < here.size(); ++i) sums(*here[i], sums_[i]);
  }

  Backend* backend_;
  pass pass_;
  std::size_t held_bytes_;
  std::vector<std::vector<buffer>> kept_;  // [layer][sample], what it is given; or nothing
  std::vector<buffer> sums_;
  buffer next_;
  std::int64_t done_ = 0, all_ = 0;
};

}  // namespace llama
