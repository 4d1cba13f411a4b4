// SPDX-License-Identifier: MIT
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/checksum.hpp>
#include <bitladder/io/mmap.hpp>
#include <bitladder/io/safetensors_set.hpp>

#include <llama/calibration.hpp>
#include <llama/config.hpp>
#include <llama/family.hpp>
#include <llama/float_tensors.hpp>
#include <llama/model.hpp>
#include <llama/model_sensitivities.hpp>
#include <llama/module_list.hpp>
#include <llama/sensitivity_file.hpp>
#include <llama/sensitivity_run.hpp>
#include <llama/squared_gradients.hpp>
#include <llama/tokenizer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

namespace llama {
namespace {

/// Depends on every byte of a model's numbers and tensors, not on where or when they were written.
std::uint64_t checksum_of_model(const std::filesystem::path& model, bitladder::thread_pool* pool) {
  std::vector<std::filesystem::path> files;
  if (is_gguf_path(model)) {
    files = {model};
  } else {
    files = {model / "config.json"};
    const bitladder::safetensors_set tensors(model);
    for (const bitladder::safetensors_file& file : tensors.files()) files.push_back(file.path());
  }
  constexpr std::size_t block = std::size_t{1} << 24;
  std::uint64_t sum = 0;
  for (const std::filesystem::path& path : files) {
    const bitladder::mapped_file file(path);
    std::vector<std::uint64_t> sums((file.size() + block - 1) / block);
    bitladder::parallel_for(
        pool, static_cast<std::int64_t>(sums.size()), 1, [&](std::int64_t begin, std::int64_t end) {
          for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
            sums[i] = bitladder::checksum(file.data() + i * block,
                                          std::min(block, file.size() - i * block));
        });
    sum = bitladder::checksum(sums.data(), sums.size() * sizeof sums[0], sum);
  }
  return sum;
}

/// The weights of the chosen linears of every layer, in the order of the forward pass.
std::vector<sensitivity_shape> measured_weights(const std::filesystem::path& model, const config& c,
                                                const module_list& modules) {
  const float_tensors tensors(model);
  const std::vector<std::string> parts = chosen_linears(*c.family, modules);
  std::vector<sensitivity_shape> weights;
  for (int i = 0; i < c.layers; ++i)
    for (const std::string& part : parts) {
      const std::string name = layer_prefix(*c.family, i) + part + ".weight";
      const auto& shape = tensors.at(name).shape;  // of a model that is open: two numbers
      weights.push_back({name, static_cast<int>(shape[0]), static_cast<int>(shape[1])});
    }
  return weights;
}

/// Null if the model has none.
std::unique_ptr<tokenizer> tokenizer_if_any(const std::filesystem::path& model) {
  std::error_code ignored;
  if (!is_gguf_path(model) && !std::filesystem::exists(model / "tokenizer.json", ignored))
    return nullptr;
  return std::make_unique<tokenizer>(tokenizer::of_model(model));
}

}  // namespace

model_sensitivities_result model_sensitivities(const std::filesystem::path& source,
                                               const std::filesystem::path& out,
                                               const model_sensitivities_options& options,
                                               bitladder::thread_pool* pool) {
  const model m(source);
  if (m.quantized())
    throw bitladder::error(
        bitladder::status::invalid_argument,
        source.string() + ": is quantized already; expected a model with float weights");
  const config& c = m.config();
  if (options.calibration.seq_len > c.context)
    throw bitladder::error(bitladder::status::invalid_argument,
                           source.string() + ": expected samples of at most " +
                               std::to_string(c.context) + " tokens, found " +
                               std::to_string(options.calibration.seq_len));
  const std::vector<sensitivity_shape> shapes = measured_weights(source, c, options.modules);
  std::vector<std::string> names;
  for (const sensitivity_shape& weight : shapes) {
    if (options.check) options.check(weight);
    names.push_back(weight.name);
  }
  // A file of tokens needs no tokenizer.
  const auto words = std::any_of(options.texts.begin(), options.texts.end(), is_token_file)
                         ? nullptr
                         : tokenizer_if_any(source);
  const calibration samples =
      read_calibration(options.texts, words.get(), c.vocabulary, options.calibration);
  sensitivity_origin origin;
  origin.samples = samples.samples;
  origin.seq_len = samples.seq_len;
  origin.random_state = samples.drawn == "tokens" ? 0 : options.calibration.random_state;
  origin.drawn = samples.drawn;
  origin.tokens = samples.checksum();
  origin.model = checksum_of_model(source, pool);
  model_sensitivities_result result;
  if (options.at_once) {
    std::vector<bitladder::vector_view<const int>> views;
    for (int i = 0; i < samples.samples; ++i) views.push_back(samples.sample(i));
    static_cast<sensitivity_result&>(result) = run_sensitivities_at_once(
        out, origin, shapes,
        [&](const auto& losses, const auto& sums, const auto& progress) {
          options.at_once(m, names, views, losses, sums, progress);
        },
        options.run);
  } else {
    static_cast<sensitivity_result&>(result) = run_sensitivities(
        out, origin, shapes, samples,
        [&] { return std::make_unique<squared_gradients>(m, names, pool); }, options.run);
  }
  result.linears = shapes.size();
  result.drawn = samples.drawn;
  return result;
}

}  // namespace llama
