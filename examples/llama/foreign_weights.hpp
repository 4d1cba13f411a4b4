// SPDX-License-Identifier: MIT
// A quantized checkpoint of another project, run in place of a model: its linears are converted on
// opening, by all threads of the machine, and kept in memory; other tensors stay views into the
// mapping. Tested by tests/llama/foreign_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/safetensors.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <llama/foreign_checkpoint.hpp>
#include <llama/weight_file.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llama {

/// Whether linears are there to be multiplied with, or only to be asked for their shapes.
enum class foreign_use { run, check };

class foreign_weight_file final : public weight_file {
 public:
  /// @param use `check` converts nothing: planes and tables then have shapes but no readable data
  explicit foreign_weight_file(std::unique_ptr<foreign_checkpoint> source,
                               foreign_use use = foreign_use::run)
      : source_(std::move(source)), use_(use), plain_(source_->plain_tensors()) {
    const std::vector<bitladder::linear_info>& linears = source_->linears();
    for (std::size_t i = 0; i < linears.size(); ++i) index_.emplace(linears[i].name, i);
    if (use == foreign_use::check) return;
    converted_.resize(linears.size());
    bitladder::thread_pool pool;
    // A linear for each thread: one loop in another would not run.
    pool.run(static_cast<std::int64_t>(linears.size()), 1, [&](std::int64_t i, std::int64_t) {
      const auto at = static_cast<std::size_t>(i);
      converted_[at] = source_->read(linears[at].name, nullptr);
    });
  }

  const std::string& path() const override { return source_->path(); }
  const bitladder::tensor_info* find(const std::string& name) const override {
    for (const bitladder::tensor_info& t : plain_)
      if (t.name == name) return &t;
    return nullptr;
  }
  const bitladder::tensor_info& at(const std::string& name) const override {
    if (const bitladder::tensor_info* t = find(name)) return *t;
    throw bitladder::error(bitladder::status::not_found,
                           path() + ": no tensor \"" + name + "\"; beside quantized linears " +
                               bitladder::detail::closest_names(name, plain_));
  }
  const std::byte* bytes(const bitladder::tensor_info& t,
                         std::vector<std::byte>& copy) const override {
    const auto there = source_->bytes(t.name);
    if (reinterpret_cast<std::uintptr_t>(there.data()) % bitladder::size_of(t.type) == 0)
      return there.data();
    copy.assign(there.begin(), there.end());
    return copy.data();
  }
  void read_as_float(const bitladder::tensor_info& t, float* out) const override {
    const std::byte* from = source_->bytes(t.name).data();
    switch (t.type) {
      case bitladder::dtype::f32: return bitladder::detail::widen<float>(from, t.elements(), out);
      case bitladder::dtype::f16:
        return bitladder::detail::widen<bitladder::fp16_t>(from, t.elements(), out);
      case bitladder::dtype::bf16:
        return bitladder::detail::widen<bitladder::bf16_t>(from, t.elements(), out);
      default:
        throw bitladder::error(bitladder::status::bad_file,
                               path() + ": tensor \"" + t.name +
                                   "\": expected F32, F16 or BF16, found " +
                                   bitladder::to_string(t.type));
    }
  }

  std::vector<int> precisions() const override {
    std::vector<int> bits;
    for (int b = source_->min_bits(); b <= source_->max_bits(); ++b) bits.push_back(b);
    return bits;
  }
  bool is_quantized(const std::string& linear) const override { return index_.count(linear) != 0; }
  bitladder::bitplane_view planes(const std::string& linear) const override {
    const std::size_t at = index_.at(linear);
    if (use_ == foreign_use::run) return converted_[at].planes.view();
    static const std::uint32_t none = 0;
    return {&none, source_->linears()[at].layout()};
  }
  bitladder::codebook_view codebook(const std::string& linear, int bits) const override {
    const std::size_t at = index_.at(linear);
    if (use_ == foreign_use::run) return converted_[at].tables[bits];
    static const bitladder::fp16_t none{};
    return {&none, source_->linears()[at].rows, 1, bits};
  }
  bitladder::sparse_view outliers(const std::string& linear) const override {
    const std::size_t at = index_.at(linear);
    return use_ == foreign_use::run ? converted_[at].outliers.view() : bitladder::sparse_view();
  }

 private:
  std::unique_ptr<foreign_checkpoint> source_;
  foreign_use use_;
  std::vector<bitladder::tensor_info> plain_;
  std::vector<foreign_linear> converted_;  // by the order of linears()
  std::unordered_map<std::string, std::size_t> index_;
};

}  // namespace llama
