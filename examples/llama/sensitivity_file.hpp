// SPDX-License-Identifier: MIT
// Sums of squared gradients as a safetensors file under the names of their weights, with metadata
// that says what they were made from and a checksum of what they are. Its unfinished twin is the
// same file after fewer samples. Tested by tests/llama/sensitivity_file_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/checksum.hpp>
#include <bitladder/io/mmap.hpp>
#include <bitladder/io/safetensors.hpp>
#include <bitladder/io/safetensors_plan.hpp>
#include <bitladder/io/safetensors_writer.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace llama {

/// What sensitivities are made from: files of the same origin have the same bytes.
struct sensitivity_origin {
  int samples = 0, seq_len = 0;
  std::uint64_t random_state = 0;
  std::string drawn;         ///< how samples came out of the texts
  std::uint64_t tokens = 0;  ///< checksum of the samples
  std::uint64_t model = 0;   ///< checksum of the model's files
};

/// Name and shape of one weight's sensitivities.
struct sensitivity_shape {
  std::string name;
  int rows = 0, cols = 0;
};

/// How far the sums of a file have come.
struct sensitivity_state {
  int samples_done = 0;
  double loss_sum = 0;  ///< of the samples' mean losses, in nats
};

namespace detail {

inline std::string as_hex(std::uint64_t x) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(x));
  return text;
}

/// Every bit of it, so that a sum can be gone on with.
inline std::string as_text(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.17g", x);
  return text;
}

/// The metadata that follow from the origin alone.
inline std::map<std::string, std::string> origin_metadata(const sensitivity_origin& o) {
  return {{"format", "bitladder sensitivities"},
          {"format_version", "1"},
          {"samples", std::to_string(o.samples)},
          {"seq_len", std::to_string(o.seq_len)},
          {"random_state", std::to_string(o.random_state)},
          {"drawn", o.drawn},
          {"tokens", as_hex(o.tokens)},
          {"model", as_hex(o.model)}};
}

/// Rows of a view may have gaps between them, those of a file do not.
inline std::uint64_t checksum_of(bitladder::matrix_view<const float> m, std::uint64_t seed) {
  for (int r = 0; r < m.rows(); ++r)
    seed = bitladder::checksum(m.row(r), static_cast<std::size_t>(m.cols()) * sizeof(float), seed);
  return seed;
}

}  // namespace detail

/// The header of a file of sums.
/// @param checksum of all sums in the order of `shapes`
inline bitladder::safetensors_plan sensitivity_plan(const sensitivity_origin& origin,
                                                    const std::vector<sensitivity_shape>& shapes,
                                                    sensitivity_state state,
                                                    std::uint64_t checksum) {
  bitladder::safetensors_plan plan;
  for (const auto& [key, value] : detail::origin_metadata(origin)) plan.set_metadata(key, value);
  for (const sensitivity_shape& s : shapes)
    plan.add(s.name, bitladder::dtype::f32, {s.rows, s.cols});
  plan.set_metadata("samples_done", std::to_string(state.samples_done));
  plan.set_metadata("loss_sum", detail::as_text(state.loss_sum));
  plan.set_metadata("checksum", detail::as_hex(checksum));
  return plan;
}

/// Writes sums under a temporary name and renames.
/// @param sums one for each of `shapes`, in their order
/// @throws bitladder::error naming the file if the disk has no room; what was there before stays
inline void write_sensitivities(const std::filesystem::path& path, const sensitivity_origin& origin,
                                const std::vector<sensitivity_shape>& shapes,
                                const std::vector<bitladder::matrix_view<const float>>& sums,
                                sensitivity_state state) {
  std::uint64_t sum = 0;
  for (const auto& values : sums) sum = detail::checksum_of(values, sum);
  auto out =
      bitladder::safetensors_writer::create(path, sensitivity_plan(origin, shapes, state, sum));
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const std::size_t row = static_cast<std::size_t>(sums[i].cols()) * sizeof(float);
    if (sums[i].stride() == static_cast<std::size_t>(sums[i].cols()))
      out.write(shapes[i].name, sums[i].data(), static_cast<std::size_t>(sums[i].rows()) * row);
    else
      for (int r = 0; r < sums[i].rows(); ++r)
        out.write(shapes[i].name, sums[i].row(r), row, static_cast<std::size_t>(r) * row);
  }
  out.commit();
}

/// Writes sums one by one, in any order, under a temporary name, and renames at the end. Memory
/// holds none of them.
class sensitivity_writer {
 public:
  /// @throws bitladder::error naming the file if the disk has no room
  sensitivity_writer(const std::filesystem::path& path, const sensitivity_origin& origin,
                     const std::vector<sensitivity_shape>& shapes, sensitivity_state state)
      : path_(path),
        origin_(origin),
        shapes_(shapes),
        state_(state),
        out_(bitladder::safetensors_writer::create(path,
                                                   sensitivity_plan(origin, shapes, state, 0))) {}

  /// @param sums without gaps, those of `shapes[i]`
  void write(std::size_t i, bitladder::matrix_view<const float> sums) {
    const sensitivity_shape& s = shapes_.at(i);
    if (sums.rows() != s.rows || sums.cols() != s.cols)
      throw bitladder::error(bitladder::status::shape_mismatch,
                             path_.string() + ": tensor \"" + s.name + "\": expected " +
                                 std::to_string(s.rows) + " x " + std::to_string(s.cols) +
                                 ", found " + std::to_string(sums.rows()) + " x " +
                                 std::to_string(sums.cols()));
    out_.write(s.name, sums.data(),
               static_cast<std::size_t>(s.rows) * static_cast<std::size_t>(s.cols) * sizeof(float));
  }

  /// @throws bitladder::error if sums are missing
  void commit() {
    // The checksum is of tensors in order, so it is taken of the file, when that is whole.
    const bitladder::mapped_file file(bitladder::safetensors_writer::partial_path(path_));
    std::uint64_t sum = 0;
    for (const sensitivity_shape& s : shapes_) {
      const std::byte* first = file.data() + out_.data_offset() + out_.at(s.name).begin;
      sum = detail::checksum_of({reinterpret_cast<const float*>(first), s.rows, s.cols}, sum);
    }
    out_.rewrite_header(sensitivity_plan(origin_, shapes_, state_, sum));
    out_.commit();
  }

 private:
  std::filesystem::path path_;
  sensitivity_origin origin_;
  std::vector<sensitivity_shape> shapes_;
  sensitivity_state state_;
  bitladder::safetensors_writer out_;
};

/// A file of sensitivities, checked to be whole.
class sensitivity_file {
 public:
  /// @throws bitladder::error(bad_file) naming the file, what was expected and what was found: if
  /// it is none, or is damaged
  explicit sensitivity_file(const std::filesystem::path& path) : file_(path) {
    if (text("format") != "bitladder sensitivities")
      fail("format", "\"bitladder sensitivities\", as the sensitivity command writes it");
    if (text("format_version") != "1") fail("format_version", "1");
    const std::string samples = text("samples_done"), loss = text("loss_sum");
    const auto end = samples.data() + samples.size();
    const std::from_chars_result r = std::from_chars(samples.data(), end, state_.samples_done);
    if (r.ec != std::errc() || r.ptr != end || state_.samples_done < 1)
      fail("samples_done", "a number of samples");
    char* loss_end = nullptr;
    state_.loss_sum = std::strtod(loss.c_str(), &loss_end);
    if (loss.empty() || *loss_end != '\0' || !std::isfinite(state_.loss_sum))
      fail("loss_sum", "a number");
  }

  const std::string& path() const { return file_.path(); }
  sensitivity_state state() const { return state_; }
  const std::map<std::string, std::string>& metadata() const { return file_.metadata(); }

  /// How it differs from what an origin and shapes would give, in words; empty if it does not.
  std::string difference(const sensitivity_origin& origin,
                         const std::vector<sensitivity_shape>& shapes) const {
    for (const auto& [key, value] : detail::origin_metadata(origin))
      if (text(key) != value)
        return (key == "tokens"  ? "other calibration tokens"
                : key == "model" ? "another model"
                                 : "other options") +
               (": \"" + key + "\": expected " + value + ", found " + text(key));
    for (const sensitivity_shape& s : shapes) {
      const bitladder::tensor_info* t = file_.find(s.name);
      const std::vector<std::int64_t> shape = {s.rows, s.cols};
      if (t == nullptr) return "other linears: no tensor \"" + s.name + "\"";
      if (t->type != bitladder::dtype::f32 || t->shape != shape)
        return "another model: tensor \"" + s.name + "\": expected F32 " +
               bitladder::to_string(shape) + ", found " + bitladder::to_string(t->type) + " " +
               bitladder::to_string(t->shape);
    }
    if (file_.tensors().size() != shapes.size())
      return "other linears: expected " + std::to_string(shapes.size()) + ", found " +
             std::to_string(file_.tensors().size());
    return {};
  }

  /// The sums in the mapping, in the order of `shapes`, from which the file does not differ.
  /// @throws bitladder::error(bad_file) if they are not what was written
  std::vector<bitladder::matrix_view<const float>> sums(
      const std::vector<sensitivity_shape>& shapes) const {
    std::vector<bitladder::matrix_view<const float>> views;
    std::uint64_t sum = 0;
    for (const sensitivity_shape& s : shapes) {
      const bitladder::tensor_info& t = file_.at(s.name);
      if (!file_.aligned(t)) fail("tensor \"" + s.name + "\"", "a place that is aligned");
      views.emplace_back(reinterpret_cast<const float*>(file_.bytes(t).data()), s.rows, s.cols);
      sum = detail::checksum_of(views.back(), sum);
    }
    if (text("checksum") != detail::as_hex(sum))
      throw bitladder::error(bitladder::status::bad_file,
                             path() + ": is damaged: expected tensors with the checksum " +
                                 text("checksum") + ", found " + detail::as_hex(sum));
    return views;
  }

 private:
  std::string text(const std::string& key) const {
    const auto it = file_.metadata().find(key);
    return it == file_.metadata().end() ? std::string() : it->second;
  }

  [[noreturn]] void fail(const std::string& key, const std::string& expected) const {
    const std::string found = text(key);
    throw bitladder::error(bitladder::status::bad_file,
                           path() + ": metadata \"" + key + "\": expected " + expected +
                               ", found " + (found.empty() ? "nothing" : '"' + found + '"'));
  }

  bitladder::safetensors_file file_;
  sensitivity_state state_;
};

}  // namespace llama
