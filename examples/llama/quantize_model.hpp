// SPDX-License-Identifier: MIT
// A whole model into one checkpoint that serves every precision: linear by linear, so that memory
// holds a few of them and never the model, and resumable, so that an interrupted run ends with the
// same bytes. On the CPU, or where linear_quantizer.hpp's workers are. What is not a linear of a
// layer (embeddings, norms, biases, head) stays as it was, as do linears that are not asked for.
// Tested by tests/llama/quantize_model_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/pack.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/checkpoint_writer.hpp>
#include <bitladder/io/checksum.hpp>
#include <bitladder/io/safetensors_set.hpp>
#include <bitladder/quantize/quantize.hpp>
#include <bitladder/version.hpp>

#include <llama/companions.hpp>
#include <llama/error_log.hpp>
#include <llama/family.hpp>
#include <llama/float_tensors.hpp>
#include <llama/linear_quantizer.hpp>
#include <llama/model.hpp>
#include <llama/module_list.hpp>
#include <llama/rest_type.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace llama {

struct quantize_model_options {
  bitladder::kmeans_options kmeans;
  /// safetensors file or folder with a sensitivity for every weight that is quantized, under the
  /// weight's name and in its shape; empty for uniform ones
  std::filesystem::path sensitivities;
  module_list modules;               ///< which linears of every layer; all unless told
  rest_type rest = rest_type::keep;  ///< the type of matrices that are not quantized
  bool overwrite =
      false;  ///< replace a checkpoint that is there, or unfinished work of other options
  linear_quantizers on;  ///< what quantizes; the CPU unless told
};

/// Told after each linear, in the thread of the caller. `resumed` counts the weights that an
/// earlier run had done.
using quantize_progress = std::function<void(const std::string& linear, std::int64_t weights_done,
                                             std::int64_t resumed, std::int64_t weights_in_all)>;

namespace detail {

/// A linear of the source, ready to be read.
struct source_linear {
  std::string name;
  const bitladder::tensor_info* weight = nullptr;
  const bitladder::tensor_info* sensitivity = nullptr;  ///< null for uniform
  int rows = 0, cols = 0;

  std::int64_t weights() const { return static_cast<std::int64_t>(rows) * cols; }
};

/// The linears of every layer that are to be quantized, in the order of the forward pass.
inline std::vector<std::string> quantized_names(const config& c, const module_list& modules) {
  const std::vector<std::string> parts = chosen_linears(*c.family, modules);
  std::vector<std::string> names;
  for (int i = 0; i < c.layers; ++i)
    for (const std::string& part : parts) names.push_back(layer_prefix(*c.family, i) + part);
  return names;
}

inline bool is_float(bitladder::dtype t) {
  return t == bitladder::dtype::f32 || t == bitladder::dtype::f16 || t == bitladder::dtype::bf16;
}

/// The sensitivity tensor of a weight, checked.
inline const bitladder::tensor_info& matching_sensitivity(const float_tensors& sensitivities,
                                                          const bitladder::tensor_info& weight) {
  const bitladder::tensor_info& s = sensitivities.at(weight.name);
  if (!is_float(s.type) || s.shape != weight.shape)
    throw bitladder::error(bitladder::status::shape_mismatch,
                           sensitivities.path() + ": tensor \"" + s.name +
                               "\": expected F32, F16 or BF16 " +
                               bitladder::to_string(weight.shape) + ", found " +
                               bitladder::to_string(s.type) + " " + bitladder::to_string(s.shape));
  return s;
}

/// Names everything that the checkpoint's bytes depend on.
inline std::string fingerprint(const float_tensors& source, const float_tensors* sensitivities,
                               const bitladder::kmeans_options& o, const std::string& device) {
  const std::string outliers =
      o.outliers.any()
          ? ", outliers " + std::to_string(o.outliers.sensitive) + " + " +
                std::to_string(o.outliers.large) + "% by " +
                (o.outliers.rule == bitladder::outlier_rule::saliency ? "saliency" : "sensitivity")
          : "";
  std::string text = source.stamp();
  if (sensitivities != nullptr) text += "sensitivities\n" + sensitivities->stamp();
  return "version " + std::to_string(BL_VERSION) + ", bits " + std::to_string(o.min_bits) + " to " +
         std::to_string(o.max_bits) + ", seed " + std::to_string(o.seed_bits) + ", groups " +
         std::to_string(o.groups) + ", method " + bitladder::to_string(o.method) + ", lookahead " +
         std::to_string(o.lookahead) + ", random state " + std::to_string(o.random_state) +
         outliers + (device.empty() ? "" : ", on " + device) + ", source " +
         std::to_string(bitladder::checksum(text.data(), text.size()));
}

/// A linear's numbers, in place where the file has them as they are wanted, else copied.
class loaded_linear {
 public:
  loaded_linear(const float_tensors& source, const float_tensors* sensitivities,
                const source_linear& l)
      : data_{l.weight->type, source.bytes(*l.weight, weights_), l.rows, l.cols,
              bitladder::sensitivity::uniform(l.rows, l.cols)} {
    if (l.sensitivity == nullptr) return;
    const float* values = nullptr;
    if (l.sensitivity->type == bitladder::dtype::f32) {
      values = reinterpret_cast<const float*>(sensitivities->bytes(*l.sensitivity, copy_));
    } else {
      values_.resize(static_cast<std::size_t>(l.weights()));
      sensitivities->read_as_float(*l.sensitivity, values_.data());
      values = values_.data();
    }
    data_.sensitivity = bitladder::sensitivity::from_values({values, l.rows, l.cols});
  }
  loaded_linear(const loaded_linear&) = delete;
  loaded_linear& operator=(const loaded_linear&) = delete;

  const linear_data& data() const { return data_; }

 private:
  std::vector<std::byte> weights_, copy_;
  std::vector<float> values_;
  linear_data data_;
};

template <class T>
bitladder::quantized_matrix quantize_as(const linear_data& l,
                                        const bitladder::kmeans_options& options,
                                        bitladder::thread_pool* pool) {
  const bitladder::matrix_view<const T> w(reinterpret_cast<const T*>(l.elements), l.rows, l.cols);
  return bitladder::quantize(w, l.sensitivity, options, pool);
}

/// A model's linears on their way to the checkpoint.
struct quantize_run {
  const float_tensors& source;
  const float_tensors* sensitivities;  ///< null for uniform
  const quantize_model_options& options;
  bitladder::thread_pool* pool;
  bitladder::checkpoint_writer& writer;
  error_log& log;
  std::vector<const source_linear*> pending;
  std::function<void(const source_linear&)> told;  ///< of each that is done

  /// Calls `use(linear_data)`, puts files and the tensor's name before errors, and lets its pages
  /// go.
  template <class Use>
  void load(const source_linear& l, const Use& use) const {
    try {
      use(loaded_linear(source, sensitivities, l).data());
    } catch (const bitladder::error& e) {
      std::string where = source.path() + ": tensor \"" + l.weight->name + "\"";
      if (l.sensitivity != nullptr) where += ", sensitivities of " + sensitivities->path();
      throw bitladder::error(e.code(), where + ": " + e.what());
    }
    source.release(*l.weight);
    if (l.sensitivity != nullptr) sensitivities->release(*l.sensitivity);
  }
};

inline linear_errors errors_of(const source_linear& l, const bitladder::quantize_report& report) {
  linear_errors e{l.name, l.rows, l.cols, {}};
  for (int b = report.min_bits; b <= report.max_bits; ++b)
    e.relative_error[b] = report.relative_error(b);
  return e;
}

/// One linear is packed and written while the next is clustered.
inline void quantize_on_cpu(const quantize_run& run) {
  std::future<void> writing;
  for (const source_linear* l : run.pending) {
    auto q = std::make_shared<bitladder::quantized_matrix>();
    run.load(*l, [&](const linear_data& data) {
      const bitladder::kmeans_options& options = run.options.kmeans;
      switch (data.type) {
        case bitladder::dtype::f16:
          *q = quantize_as<bitladder::fp16_t>(data, options, run.pool);
          break;
        case bitladder::dtype::bf16:
          *q = quantize_as<bitladder::bf16_t>(data, options, run.pool);
          break;
        default: *q = quantize_as<float>(data, options, run.pool);
      }
    });
    if (writing.valid()) writing.get();
    writing = std::async(std::launch::async, [&run, l, q] {
      run.log.add(errors_of(*l, q->report()));
      run.writer.write_linear(l->name, bitladder::pack(q->codes(), q->max_bits()).view(),
                              q->codebooks(), q->outliers().view());
    });
    run.told(*l);
  }
  if (writing.valid()) writing.get();
}

/// Workers quantize and pack while this thread writes.
inline void quantize_elsewhere(const quantize_run& run) {
  linear_pipeline::run(
      run.options.on, run.pending.size(),
      [&run](linear_quantizer& by, std::size_t i, packed_linear& to) {
        run.load(*run.pending[i],
                 [&](const linear_data& data) { by.quantize(data, run.options.kmeans, to); });
      },
      [&run](std::size_t i, const packed_linear& made) {
        const source_linear& l = *run.pending[i];
        run.log.add(errors_of(l, made.report));
        run.writer.write_linear(l.name, made.planes(), made.codebooks, made.outliers.view());
        run.told(l);
      });
}

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw bitladder::error(bitladder::status::io_failed, path.string() + ": cannot be read");
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// Checks that every tensor of a folder is there, in its shape and in a dtype that is read.
inline config checked_folder(const std::filesystem::path& source) {
  const model checked(source);
  if (checked.quantized())
    throw bitladder::error(
        bitladder::status::invalid_argument,
        source.string() + ": is quantized already; expected a model with float weights");
  return checked.config();
}

}  // namespace detail

/// Quantizes the model in `source`, a folder or a GGUF file, to the checkpoint folder `out`. If an
/// earlier run with the same source and options was interrupted, goes on where it stopped.
/// @return the errors of every linear, which `out`/quantization.json holds too
/// @throws bitladder::error naming file and tensor, what was expected and what was found; `out` is
/// then
///   as it was before, and what was done so far is kept for the next run
inline std::vector<linear_errors> quantize_model(const std::filesystem::path& source,
                                                 const std::filesystem::path& out,
                                                 const quantize_model_options& options,
                                                 bitladder::thread_pool* pool,
                                                 const quantize_progress& progress = {}) {
  if (options.on.count > 0 && options.kmeans.method != bitladder::quantize_method::exact)
    throw bitladder::error(bitladder::status::invalid_argument,
                           "quantize on " + options.on.device + ": expected method exact, found " +
                               bitladder::to_string(options.kmeans.method));
  const float_tensors tensors(source);
  const config shape = tensors.gguf() != nullptr ? tensors.gguf_config()  // checked already
                                                 : detail::checked_folder(source);
  std::unique_ptr<gguf_companions> companions;
  if (tensors.gguf() != nullptr) companions = std::make_unique<gguf_companions>(*tensors.gguf());
  const std::vector<std::string> names = detail::quantized_names(shape, options.modules);
  std::unique_ptr<float_tensors> sensitivities;
  if (!options.sensitivities.empty())
    sensitivities = std::make_unique<float_tensors>(
        bitladder::safetensors_set(options.sensitivities));  // a file of it is safetensors too

  std::vector<detail::source_linear> linears;
  bitladder::checkpoint_plan plan;
  plan.seed_bits = options.kmeans.seed_bits;
  plan.min_bits = options.kmeans.min_bits;
  plan.max_bits = options.kmeans.max_bits;
  plan.groups = options.kmeans.groups;
  std::set<std::string> replaced;
  std::int64_t weights_in_all = 0;
  for (const std::string& name : names) {
    const bitladder::tensor_info& w = tensors.at(name + ".weight");
    detail::source_linear l;
    l.name = name;
    l.weight = &w;
    l.rows = static_cast<int>(w.shape[0]);
    l.cols = static_cast<int>(w.shape[1]);
    if (sensitivities) l.sensitivity = &detail::matching_sensitivity(*sensitivities, w);
    try {
      bitladder::validate(options.kmeans, l.cols);
    } catch (const bitladder::error& e) {
      throw bitladder::error(e.code(), tensors.path() + ": tensor \"" + w.name + "\": " + e.what());
    }
    const std::int64_t outliers =
        bitladder::count_outliers(options.kmeans.outliers, l.rows, l.cols, l.sensitivity == nullptr)
            .all();
    plan.linears.push_back({name, l.rows, l.cols, outliers});
    replaced.insert(w.name);
    weights_in_all += l.weights();
    linears.push_back(l);
  }
  for (const bitladder::tensor_info& t : tensors.tensors())
    if (replaced.count(t.name) == 0)
      plan.tensors.push_back({t.name, rest_dtype(tensors, t, options.rest), t.shape});

  bitladder::checkpoint_writer writer(
      out, plan,
      detail::fingerprint(tensors, sensitivities.get(), options.kmeans, options.on.device),
      {options.overwrite});
  error_log log(out, writer.parts_done() > 0);

  for (const auto& t : plan.tensors) {
    if (writer.done(t.name)) continue;
    const bitladder::tensor_info& from = tensors.at(t.name);
    std::vector<std::byte> copy;
    const std::byte* bytes = rest_bytes(tensors, from, t.type, copy);
    writer.write_tensor(t.name, bytes,
                        static_cast<std::size_t>(from.elements()) * bitladder::size_of(t.type));
    tensors.release(from);
  }

  std::int64_t done = 0, resumed = 0;
  detail::quantize_run run{tensors, sensitivities.get(), options, pool, writer, log, {}, {}};
  run.told = [&](const detail::source_linear& l) {
    done += l.weights();
    if (progress) progress(l.name, done, resumed, weights_in_all);
  };
  for (const detail::source_linear& l : linears) {
    if (writer.done(l.name) && log.has(l.name))
      done += l.weights();
    else
      run.pending.push_back(&l);
  }
  resumed = done;
  if (progress) progress("", done, resumed, weights_in_all);
  if (options.on.count > 0)
    detail::quantize_elsewhere(run);
  else
    detail::quantize_on_cpu(run);

  const std::vector<linear_errors> errors = log.ordered(names);
  std::vector<std::filesystem::path> files;
  if (companions != nullptr)
    files = {log.write_beside("tokenizer.json", companions->tokenizer),
             log.write_beside("tokenizer_config.json", companions->tokenizer_config)};
  else
    files = companion_files(source);
  files.push_back(log.write_report(errors));
  writer.finish(
      companions != nullptr ? companions->config : detail::read_text(source / "config.json"),
      files);
  log.remove();
  return errors;
}

}  // namespace llama
