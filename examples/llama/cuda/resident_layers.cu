// SPDX-License-Identifier: MIT
#include <bitladder/core/dispatch.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>
#include <bitladder/kernels/cuda/resident_products.cuh>

#include <llama/config.hpp>
#include <llama/cuda/card_launch.cuh>
#include <llama/cuda/device_model.cuh>
#include <llama/cuda/resident_attention.cuh>
#include <llama/cuda/resident_layers.cuh>
#include <llama/cuda/resident_step_kernel.cuh>
#include <llama/cuda/workspace.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <vector>

namespace llama {
namespace card {

using bitladder::cuda::resident_step;

namespace {

constexpr std::size_t state_words = 4;
using precisions = bitladder::bits_list<2, 3>;

/// Who has a card.
std::atomic<bool>* holder(int device) {
  static std::array<std::atomic<bool>, 64> taken{};
  return device < 0 || device >= static_cast<int>(taken.size())
             ? nullptr
             : &taken[static_cast<std::size_t>(device)];
}

bool runs_resident(const config& c) {
  return c.residual == residual_form::pre_norm && c.family->rotary() && c.family->gated() &&
         c.family->norms == norm_kind::rms && c.activation == activation_kind::silu &&
         c.head_dim >= 8 && c.head_dim <= 256 && (c.head_dim & (c.head_dim - 1)) == 0 &&
         c.rotary_width() % 4 == 0 && c.kv_heads > 0 && c.heads % c.kv_heads == 0 &&
         c.heads / c.kv_heads <= resident_heads;
}

/// What steps hand to each other, two columns a word.
struct handovers {
  bitladder::cuda::tagged_pair *x_in, *x_between, *query, *key, *value, *attended, *gate;

  static std::size_t count(const config& c) {
    return (2 * width(c.hidden) + 2 * width(c.query_width()) + 2 * width(c.kv_width()) +
            width(c.intermediate)) /
           2;
  }
  handovers(const config& c, bitladder::cuda::tagged_pair* room) {
    const auto take = [&](int columns) {
      bitladder::cuda::tagged_pair* const begin = room;
      room += width(columns) / 2;
      return begin;
    };
    x_in = take(c.hidden);
    x_between = take(c.hidden);
    query = take(c.query_width());
    key = take(c.kv_width());
    value = take(c.kv_width());
    attended = take(c.query_width());
    gate = take(c.intermediate);
  }

 private:
  static std::size_t width(int n) { return static_cast<std::size_t>(n); }
};

struct target {
  const device_linear* w;
  bitladder::cuda::tagged_pair* y;
};

/// @return whether the matrices are of a kind that the kernel reads
bool describe(std::initializer_list<target> targets, int bits, resident_step& s) {
  const device_linear& first = *targets.begin()->w;
  int units = 0;
  for (const target& t : targets) {
    if (!t.w->packed()) return false;
    const bitladder::cuda::packed_view v = t.w->view(bits);
    if (v.bits != bits || v.groups != 1 || v.outliers.runs != 0 || t.w->cols() != first.cols() ||
        (s.residual != 0 && t.w->bias() != nullptr) ||
        (s.paired != 0 && t.w->rows() != first.rows()) || v.layout.rows % 8 != 0)
      return false;
    resident_step::matrix& m = s.matrices[s.count++];
    m.planes = v.planes;
    m.tables = v.tables;
    m.bias = static_cast<const __half*>(t.w->bias());
    m.y = t.y;
    m.row_tile_stride = static_cast<std::uint32_t>(v.layout.row_tile_stride());
    m.first_unit = units;
    m.rows = v.layout.rows;
    units += v.layout.row_tiles();
    s.plane_stride = static_cast<std::uint32_t>(v.layout.plane_stride());
    s.col_tiles = v.layout.col_tiles();
  }
  s.items = s.paired != 0 ? units / 2 : units;
  s.cols = first.cols();
  s.mean_by = 1.f / static_cast<float>(s.cols);
  return true;
}

/// @return whether every layer runs this way
bool describe(const config& c, const device_model& weights, const handovers& h, float* x, int bits,
              std::vector<resident_step>& steps) {
  for (int i = 0; i < c.layers; ++i) {
    const device_layer& l = weights.layers[static_cast<std::size_t>(i)];
    if (l.attention_norm.bias.data() != nullptr || l.mlp_norm.bias.data() != nullptr) return false;
    resident_step s[resident_layer_steps] = {};
    for (resident_step& one : s) one.x_age = one.y_age = i + 1;
    s[0].x = h.x_in;
    s[0].x_age = i;
    s[0].norm = l.attention_norm.weight.data();
    s[1].own = i;
    s[1].more = c.window_of(i);
    s[2].x = h.attended;
    s[2].residual = 1;
    s[3].x = h.x_between;
    s[3].norm = l.mlp_norm.weight.data();
    s[3].paired = 1;
    s[4].x = h.gate;
    s[4].residual = 1;
    if (i + 1 == c.layers) s[4].last = x;
    s[0].epsilon = s[3].epsilon = c.norm_epsilon;
    if (!describe({{&l.query, h.query}, {&l.key, h.key}, {&l.value, h.value}}, bits, s[0]) ||
        !describe({{&l.output, h.x_between}}, bits, s[2]) ||
        !describe({{&l.gate, h.gate}, {&l.up, h.gate}}, bits, s[3]) ||
        !describe({{&l.down, h.x_in}}, bits, s[4]))
      return false;
    steps.insert(steps.end(), std::begin(s), std::end(s));
  }
  return true;
}

}  // namespace

resident_layers::~resident_layers() {
  if (device_ >= 0) holder(device_)->store(false);
}

std::size_t resident_layers::predict(const config& c, const bits_range& bits) {
  if (!bits.quantized() || !runs_resident(c)) return 0;
  const int most = std::min(bits.most, resident_most_bits);
  const int least = std::max(bits.least, resident_least_bits);
  if (most < least) return 0;
  return static_cast<std::size_t>(most - least + 1) * static_cast<std::size_t>(c.layers) *
             resident_layer_steps * sizeof(resident_step) +
         resident_scratch_floats(c.heads, c.head_dim) * sizeof(float) +
         handovers::count(c) * sizeof(bitladder::cuda::tagged_pair) +
         (state_words + static_cast<std::size_t>(c.kv_heads)) * sizeof(unsigned);
}

void resident_layers::prepare(const config& c, const device_model& weights, workspace& room,
                              const bits_range& bits, cudaStream_t stream) {
  bitladder::cuda::device_properties card;
  bitladder::check(bitladder::cuda::properties(card));
  if (predict(c, bits) == 0) return;
  // Allocated whether or not the weights turn out to be of the right kind, which a prediction does
  // not know.
  reserve(scratch_, resident_scratch_floats(c.heads, c.head_dim));
  reserve(counters_, state_words + static_cast<std::size_t>(c.kv_heads));
  reserve(pairs_, handovers::count(c));
  bitladder::check(counters_.clear(stream));
  bitladder::check(pairs_.clear(stream));
  const handovers h(c, pairs_.data());
  state_ = counters_.data();
  x_ = room.x.data();
  first_ = h.x_in;
  blocks_ = card.multiprocessors;
  count_ = c.layers * resident_layer_steps;
  resident_attention_params& a = attention_;
  a.q = h.query;
  a.k = h.key;
  a.v = h.value;
  a.out = h.attended;
  a.positions = room.state.data()->positions;
  a.slots = room.state.data()->slots;
  a.rope = weights.rope();
  a.cache = room.cache;
  a.heads = c.heads;
  while (8 << a.log_lanes < c.head_dim) ++a.log_lanes;
  a.scale = 1.f / std::sqrt(static_cast<float>(c.head_dim));
  a.scratch = scratch_.data();
  a.meetings = counters_.data() + state_words;
  if (card.compute_capability < 90 || c.kv_heads > blocks_) return;
  if (device_ < 0) {
    int device = 0;
    bitladder::check(bitladder::cuda::call_status(cudaGetDevice(&device)));
    std::atomic<bool>* const taken = holder(device);
    if (taken == nullptr || taken->exchange(true)) return;
    device_ = device;
  }
  for (int b = std::max(bits.least, resident_least_bits);
       b <= std::min(bits.most, resident_most_bits); ++b) {
    plan& p = plans_[index(b)];
    reserve(p.steps, static_cast<std::size_t>(count_));
    std::vector<resident_step> steps;
    if (!describe(c, weights, h, room.x.data(), b, steps)) continue;
    bitladder::cuda::resident_needs needs;
    bitladder::check(bitladder::dispatch_bits(b, precisions{}, [&](auto bits_now) {
      using shape = bitladder::cuda::resident_shape<decltype(bits_now)::value>;
      for (const resident_step& s : steps) {
        if (s.count == 0) continue;
        needs.add(s, blocks_);
      }
      p.memory = shape::plan(
          needs, resident_attention_bytes(c.heads / c.kv_heads, c.head_dim, shape::warps));
      return bitladder::status::ok;
    }));
    if (p.memory.total > card.shared_bytes_per_block) continue;
    bitladder::check(p.steps.upload(steps.data(), steps.size(), stream));
    bitladder::check(bitladder::cuda::call_status(cudaStreamSynchronize(stream)));
    p.ready = true;
  }
  if (std::any_of(plans_.begin(), plans_.end(), [](const plan& p) { return p.ready; })) return;
  holder(device_)->store(false);  // another's weights may be of the right kind
  device_ = -1;
}

bitladder::status resident_layers::launch(int bits, bool pdl, cudaStream_t stream,
                                          unsigned long long* trace) const {
  return bitladder::dispatch_bits(bits, precisions{}, [&](auto b) {
    constexpr int at = decltype(b)::value;
    const plan& of = plans_[index(at)];
    resident_params p{};
    p.steps = of.steps.data();
    p.count = count_;
    p.memory = of.memory;
    p.attention = attention_;
    p.x = x_;
    p.first = first_;
    p.state = state_;
    p.trace = trace;
    detail::launch_shape shape{};
    shape.grid = dim3(static_cast<unsigned>(blocks_));
    shape.threads = bitladder::cuda::resident_shape<at>::threads;
    shape.shared_bytes = of.memory.total;
    shape.pdl = pdl;
    return attention_.heads == attention_.cache.kv_heads
               ? detail::launch(detail::resident_step_kernel<at, 1>, shape, stream, p)
               : detail::launch(detail::resident_step_kernel<at, resident_heads>, shape, stream, p);
  });
}

std::vector<resident_layers::stage_time> resident_layers::stages(int bits,
                                                                 cudaStream_t stream) const {
  static constexpr const char* steps[resident_layer_steps] = {"qkv", "attention", "o", "gate up",
                                                              "down"};
  static constexpr const char* names[] = {"wait", "prepare", "multiply", "write"};
  constexpr std::size_t marks = resident_marks;
  const auto count = static_cast<std::size_t>(count_), blocks = static_cast<std::size_t>(blocks_);
  bitladder::cuda::buffer<unsigned long long> trace;
  reserve(trace, blocks * count * marks);
  bitladder::check(trace.clear(stream));
  int clock = 0, device = 0;
  bitladder::check(bitladder::cuda::call_status(cudaGetDevice(&device)));
  bitladder::check(
      bitladder::cuda::call_status(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, device)));
  std::vector<unsigned long long> at(blocks * count * marks);
  for (int run = 0; run < 2; ++run) {  // the first loads code
    bitladder::check(launch(bits, false, stream, trace.data()));
    bitladder::check(trace.download(at.data(), at.size(), stream));
    bitladder::check(bitladder::cuda::call_status(cudaStreamSynchronize(stream)));
  }
  std::vector<stage_time> times;
  for (int k = 0; k < resident_layer_steps; ++k)
    for (std::size_t n = 0; n + 1 < marks; ++n) {
      stage_time t{steps[k], names[n], 0, 0, 0};
      double sum = 0;
      int counted = 0;
      for (std::size_t b = 0; b < blocks; ++b) {
        double clocks = 0;
        for (std::size_t i = static_cast<std::size_t>(k); i < count; i += resident_layer_steps) {
          const unsigned long long* from = &at[(b * count + i) * marks + n];
          if (from[0] != 0 && from[1] > from[0]) clocks += static_cast<double>(from[1] - from[0]);
        }
        if (clocks == 0) continue;  // blocks without a part in this
        const double us = clocks * 1e3 / clock;
        t.least = counted == 0 ? us : std::min(t.least, us);
        t.most = std::max(t.most, us);
        sum += us;
        ++counted;
      }
      if (counted > 0) t.mean = sum / counted;
      times.push_back(t);
    }
  return times;
}

}  // namespace card
}  // namespace llama
