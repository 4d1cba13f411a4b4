// SPDX-License-Identifier: MIT
// The long job that ends in a file of sensitivities: sample after sample, with what is done saved
// now and then, so that an interrupted run goes on and ends with the same bytes; and nothing is
// done at all if the file is there. Blind to how gradients are computed.
// Tested by tests/llama/sensitivity_run_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/safetensors_plan.hpp>
#include <bitladder/io/safetensors_writer.hpp>

#include <llama/calibration.hpp>
#include <llama/sensitivity_file.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

namespace llama {

/// How to go about it.
struct sensitivity_run_options {
  /// Replace a file or unfinished work of another origin, or a damaged file. What fits is kept.
  bool overwrite = false;
  /// Least time between two saves; 0: after every sample. Saving takes a twentieth of the time at
  /// most, unless it is 0.
  double save_seconds = 10;
  /// Told after each sample. `resumed` counts the samples that an earlier run had done, with which
  /// it is called first.
  std::function<void(int samples_done, int resumed, int samples, double mean_loss)> progress;
  /// Told what a user may want to know: that unfinished work is damaged and starts anew.
  std::function<void(const std::string&)> note;
};

/// How it went.
struct sensitivity_result {
  bool reused = false;  ///< the file was there
  int resumed = 0;      ///< samples that an earlier run had done
  double mean_loss = 0;
};

namespace detail {

inline std::filesystem::path with_ending(std::filesystem::path path, const char* ending) {
  return path += ending;
}

[[noreturn]] inline void throw_other(const std::string& path, const std::string& difference) {
  throw bitladder::error(bitladder::status::io_failed,
                         path + ": was made with " + difference +
                             "; choose another name or allow overwriting (--overwrite)");
}

/// The file if it is there and fits. One that does not, or is damaged, is an error, or nothing if
/// it may be overwritten.
inline std::unique_ptr<sensitivity_file> finished_sensitivities(
    const std::filesystem::path& path, const sensitivity_origin& origin,
    const std::vector<sensitivity_shape>& shapes, bool overwrite) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return nullptr;
  try {
    auto file = std::make_unique<sensitivity_file>(path);
    const std::string difference = file->difference(origin, shapes);
    if (!difference.empty()) throw_other(path.string(), difference);
    if (file->state().samples_done != origin.samples)
      throw_other(path.string(), "fewer samples: expected " + std::to_string(origin.samples) +
                                     ", found " + std::to_string(file->state().samples_done));
    static_cast<void>(file->sums(shapes));
    return file;
  } catch (const bitladder::error& e) {
    if (overwrite) return nullptr;
    if (e.code() != bitladder::status::bad_file) throw;
    throw bitladder::error(
        e.code(), std::string(e.what()) + "; remove it or allow overwriting (--overwrite)");
  }
}

/// Work that an earlier run left, if there is some and it fits.
inline std::unique_ptr<sensitivity_file> unfinished_sensitivities(
    const std::filesystem::path& path, const sensitivity_origin& origin,
    const std::vector<sensitivity_shape>& shapes, const sensitivity_run_options& options) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return nullptr;
  std::unique_ptr<sensitivity_file> file;
  try {
    file = std::make_unique<sensitivity_file>(path);
  } catch (const bitladder::error& e) {
    if (e.code() != bitladder::status::bad_file) throw;
    if (options.note) options.note(std::string(e.what()) + "; starting anew");
    return nullptr;
  }
  const std::string difference = file->difference(origin, shapes);
  if (!difference.empty()) {
    if (options.overwrite) return nullptr;
    throw_other(path.string() + ": unfinished work", difference);
  }
  try {
    static_cast<void>(file->sums(shapes));
    if (file->state().samples_done <= origin.samples) return file;
  } catch (const bitladder::error& e) {
    if (options.note) options.note(std::string(e.what()) + "; starting anew");
  }
  return nullptr;
}

/// Takes the place of the file and keeps other processes out until there is something to put there.
inline bitladder::safetensors_writer take_place(const std::filesystem::path& path,
                                                const sensitivity_origin& origin,
                                                const std::vector<sensitivity_shape>& shapes) {
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path());
  bitladder::safetensors_plan plan;
  for (const sensitivity_shape& s : shapes)
    plan.add(s.name, bitladder::dtype::f32, {s.rows, s.cols});
  for (const auto& [key, value] : origin_metadata(origin)) plan.set_metadata(key, value);
  return bitladder::safetensors_writer::create(path, plan);
}

}  // namespace detail

/// Makes the file `path` unless it is there. While it works the place for it is taken up in
/// `path`.partial, and what is done is in `path`.progress.
/// @tparam Gradients has `double add(vector_view<const int>)`, which adds the squared gradients of
///   one sample and returns its mean loss, `matrix_view<const float> sums(std::size_t)`, and
///   `void restore(int samples, const std::vector<matrix_view<const float>>&)`, after which it is
///   as if it had been given that many samples and come to those sums
/// @param shapes of the sums, in the order of Gradients
/// @param make gives a std::unique_ptr<Gradients>; called only if there is something to compute
/// @throws bitladder::error naming the file if it, or unfinished work, is of another origin, or the
///   disk has no room; what was saved stays
template <class Make>
sensitivity_result run_sensitivities(const std::filesystem::path& path,
                                     const sensitivity_origin& origin,
                                     const std::vector<sensitivity_shape>& shapes,
                                     const calibration& samples, Make&& make,
                                     const sensitivity_run_options& options = {}) {
  using clock = std::chrono::steady_clock;
  const auto report = [&](int done, int resumed, double loss_sum) {
    if (options.progress)
      options.progress(done, resumed, samples.samples, done == 0 ? 0 : loss_sum / done);
  };
  sensitivity_result result;
  if (const auto file = detail::finished_sensitivities(path, origin, shapes, options.overwrite)) {
    result.reused = true;
    result.mean_loss = file->state().loss_sum / file->state().samples_done;
    return result;
  }

  std::optional<bitladder::safetensors_writer> place(detail::take_place(path, origin, shapes));

  const std::filesystem::path saved = detail::with_ending(path, ".progress");
  sensitivity_state state;
  auto earlier = detail::unfinished_sensitivities(saved, origin, shapes, options);
  auto gradients = make();
  if (earlier != nullptr) {
    state = earlier->state();
    gradients->restore(state.samples_done, earlier->sums(shapes));
    earlier.reset();
  }
  result.resumed = state.samples_done;
  report(state.samples_done, result.resumed, state.loss_sum);

  const auto views = [&] {
    std::vector<bitladder::matrix_view<const float>> all;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      all.push_back(gradients->sums(i));
      if (all[i].rows() != shapes[i].rows || all[i].cols() != shapes[i].cols)
        throw bitladder::error(
            bitladder::status::shape_mismatch,
            "sensitivities of \"" + shapes[i].name + "\": expected " +
                std::to_string(shapes[i].rows) + " x " + std::to_string(shapes[i].cols) +
                ", found " + std::to_string(all[i].rows()) + " x " + std::to_string(all[i].cols()));
    }
    return all;
  };
  auto last_save = clock::now();
  double pause = options.save_seconds;
  while (state.samples_done < samples.samples) {
    const double loss = gradients->add(samples.sample(state.samples_done));
    if (!std::isfinite(loss))
      throw bitladder::error(bitladder::status::invalid_argument,
                             path.string() + ": sample " + std::to_string(state.samples_done) +
                                 ": expected a finite loss, found " + std::to_string(loss));
    ++state.samples_done;
    state.loss_sum += loss;
    const auto now = clock::now();
    if (state.samples_done < samples.samples &&
        std::chrono::duration<double>(now - last_save).count() >= pause) {
      write_sensitivities(saved, origin, shapes, views(), state);
      last_save = clock::now();
      if (options.save_seconds > 0)
        pause = std::max(options.save_seconds,
                         20 * std::chrono::duration<double>(last_save - now).count());
    }
    report(state.samples_done, result.resumed, state.loss_sum);
  }
  place.reset();
  write_sensitivities(path, origin, shapes, views(), state);
  std::error_code ignored;
  std::filesystem::remove(saved, ignored);
  result.mean_loss = state.loss_sum / state.samples_done;
  return result;
}

/// Likewise, of sums that are made of all samples at once, in less time than would be worth saving
/// parts of. Sums go to the disk as they come; memory holds none.
/// @param measure `void measure(const std::function<void(const std::vector<double>&)>& losses,
///   const std::function<void(std::size_t, matrix_view<const float>)>& sums,
///   const std::function<void(std::int64_t, std::int64_t)>& progress)` tells the mean loss of every
///   sample, and after it, in any order, the sums of each weight
template <class Measure>
sensitivity_result run_sensitivities_at_once(const std::filesystem::path& path,
                                             const sensitivity_origin& origin,
                                             const std::vector<sensitivity_shape>& shapes,
                                             Measure&& measure,
                                             const sensitivity_run_options& options = {}) {
  sensitivity_result result;
  if (const auto file = detail::finished_sensitivities(path, origin, shapes, options.overwrite)) {
    result.reused = true;
    result.mean_loss = file->state().loss_sum / file->state().samples_done;
    return result;
  }
  std::optional<bitladder::safetensors_writer> place(detail::take_place(path, origin, shapes));
  std::optional<sensitivity_writer> out;
  measure(
      [&](const std::vector<double>& losses) {
        sensitivity_state state;
        for (double loss : losses) {
          if (!std::isfinite(loss))
            throw bitladder::error(bitladder::status::invalid_argument,
                                   path.string() + ": sample " +
                                       std::to_string(state.samples_done) +
                                       ": expected a finite loss, found " + std::to_string(loss));
          ++state.samples_done;
          state.loss_sum += loss;
        }
        result.mean_loss = state.loss_sum / state.samples_done;
        place.reset();
        out.emplace(path, origin, shapes, state);
      },
      [&](std::size_t i, bitladder::matrix_view<const float> values) { out->write(i, values); },
      [&](std::int64_t done, std::int64_t all) {
        if (options.progress)
          options.progress(static_cast<int>(done * origin.samples / all), 0, origin.samples,
                           result.mean_loss);
      });
  out->commit();
  std::error_code ignored;  // what a run sample by sample may have left
  std::filesystem::remove(detail::with_ending(path, ".progress"), ignored);
  return result;
}

}  // namespace llama
