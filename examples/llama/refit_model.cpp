// SPDX-License-Identifier: MIT
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/pack.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/checkpoint_writer.hpp>
#include <bitladder/io/checksum.hpp>
#include <bitladder/io/json.hpp>
#include <bitladder/version.hpp>

#include <llama/companions.hpp>
#include <llama/config.hpp>
#include <llama/float_tensors.hpp>
#include <llama/model.hpp>
#include <llama/refit_model.hpp>
#include <llama/second_moments.hpp>
#include <llama/tokenizer.hpp>

#include <algorithm>
#include <memory>
#include <system_error>
#include <utility>

namespace llama {
namespace {

namespace fs = std::filesystem;

std::string fingerprint(const fs::path& source, const float_tensors& original,
                        const calibration& samples, const refit_model_options& o) {
  const std::string text = float_tensors(source).stamp() + "original\n" + original.stamp();
  const bitladder::refit_options& r = o.refit;
  return "version " + std::to_string(BL_VERSION) + ", refit to " + std::to_string(r.top_bits) +
         " bits, codes " + (r.move_codes ? "move" : "stay") + ", narrow weight " +
         std::to_string(r.narrow_weight) + ", rounds " + std::to_string(r.rounds) + ", sweeps " +
         std::to_string(r.sweeps) + ", ridge " + std::to_string(r.ridge * 1e9) + ", damping " +
         std::to_string(r.damping * 1e9) + ", row groups " + std::to_string(o.row_groups) +
         ", tokens " + std::to_string(samples.checksum()) + ", source " +
         std::to_string(bitladder::checksum(text.data(), text.size()));
}

/// Null if the model has none.
std::unique_ptr<tokenizer> tokenizer_if_any(const fs::path& model) {
  std::error_code ignored;
  if (!is_gguf_path(model) && !fs::exists(model / "tokenizer.json", ignored)) return nullptr;
  return std::make_unique<tokenizer>(tokenizer::of_model(model));
}

/// Throws unless the model has the weights that the checkpoint's linears were made from.
void check_linears(const bitladder::checkpoint& source, const float_tensors& original) {
  if (source.groups() != 1)
    throw bitladder::error(bitladder::status::invalid_argument,
                           source.path() + ": expected one column group a row, found " +
                               std::to_string(source.groups()) +
                               ": tables of several cannot be refit");
  for (const bitladder::linear_info& l : source.linears()) {
    const bitladder::tensor_info& w = original.at(l.name + ".weight");
    if (w.shape != std::vector<std::int64_t>{l.rows, l.cols})
      throw bitladder::error(bitladder::status::shape_mismatch,
                             original.path() + ": tensor \"" + w.name + "\": expected " +
                                 bitladder::to_string({l.rows, l.cols}) + " as in " +
                                 source.path() + ", found " + bitladder::to_string(w.shape));
  }
}

bitladder::codebook_ladder copy_of_tables(const bitladder::checkpoint& source,
                                          const bitladder::linear_info& l) {
  bitladder::codebook_ladder tables(l.rows, 1, l.min_bits, l.max_bits);
  for (int b = l.min_bits; b <= l.max_bits; ++b) {
    const bitladder::codebook_view from = source.codebook(l.name, b);
    std::copy_n(from.data(), from.size(), tables.data(b));
  }
  return tables;
}

bitladder::checkpoint_plan plan_of(const bitladder::checkpoint& source) {
  bitladder::checkpoint_plan plan;
  plan.seed_bits = source.seed_bits();
  plan.min_bits = source.min_bits();
  plan.max_bits = source.max_bits();
  for (const bitladder::linear_info& l : source.linears())
    plan.linears.push_back({l.name, l.rows, l.cols, l.outliers});
  for (const bitladder::tensor_info& t : source.plain_tensors())
    plan.tensors.push_back({t.name, t.type, t.shape});
  return plan;
}

/// Refits linears of one checkpoint.
class job {
 public:
  job(const bitladder::checkpoint& source, const float_tensors& original,
      const refit_model_options& options, bitladder::checkpoint_writer& writer,
      bitladder::thread_pool* pool)
      : source_(source), original_(original), options_(options), writer_(writer), pool_(pool) {}

  void run(const bitladder::linear_info& l,
           const std::vector<bitladder::matrix_view<const float>>& moments,
           refit_model_result& result) {
    const bitladder::tensor_info& info = original_.at(l.name + ".weight");
    const std::size_t count = static_cast<std::size_t>(l.rows) * static_cast<std::size_t>(l.cols);
    weights_.resize(count);
    original_.read_as_float(info, weights_.data());
    original_.release(info);
    codes_.resize(count);
    const bitladder::matrix_view<std::uint8_t> codes(codes_.data(), l.rows, l.cols);
    bitladder::unpack(source_.planes(l.name), l.max_bits, codes);
    bitladder::codebook_ladder tables = copy_of_tables(source_, l);
    bitladder::refit_report report;
    try {
      report = bitladder::refit_ladder(
          bitladder::matrix_view<const float>(weights_.data(), l.rows, l.cols), moments,
          source_.outliers(l.name), codes, tables, options_.refit, pool_);
    } catch (const bitladder::error& e) {
      throw bitladder::error(e.code(),
                             original_.path() + ": linear \"" + l.name + "\": " + e.what());
    }
    writer_.write_linear(l.name, bitladder::pack(codes, l.max_bits).view(), tables,
                         source_.outliers(l.name));
    ++result.refit;
    result.weights += static_cast<std::int64_t>(count);
    result.moved += report.moved;
    for (int b = report.min_bits; b <= report.top_bits; ++b) {
      const auto i = static_cast<std::size_t>(b);
      result.error_ratio[i] += report.before[i] > 0 ? report.after[i] / report.before[i] : 1;
    }
  }

 private:
  const bitladder::checkpoint& source_;
  const float_tensors& original_;
  const refit_model_options& options_;
  bitladder::checkpoint_writer& writer_;
  bitladder::thread_pool* pool_;
  std::vector<float> weights_;
  std::vector<std::uint8_t> codes_;
};

/// The linears from `begin` on whose second moments fit together.
std::size_t end_of_batch(const std::vector<const bitladder::linear_info*>& linears,
                         std::size_t begin, const refit_model_options& o) {
  std::uint64_t bytes = 0;
  std::size_t end = begin;
  while (end < linears.size()) {
    const bitladder::linear_info& l = *linears[end];
    bytes += std::uint64_t{sizeof(float)} * static_cast<std::uint64_t>(l.cols) *
             static_cast<std::uint64_t>(l.cols) *
             static_cast<std::uint64_t>(second_moments::groups_of(l.rows, o.row_groups));
    if (bytes > o.moment_bytes && end > begin) break;
    ++end;
  }
  return end;
}

}  // namespace

refit_model_result refit_model(const fs::path& path, const fs::path& original_path,
                               const fs::path& out, const refit_model_options& options,
                               bitladder::thread_pool* pool, const refit_progress& progress) {
  const bitladder::checkpoint source(path);
  const fs::path folder = fs::is_directory(path) ? path : path.parent_path();
  const float_tensors original(original_path);
  check_linears(source, original);
  bitladder::validate(options.refit, source.min_bits(), source.max_bits());
  const model m(original_path);
  const config& c = m.config();
  if (options.row_groups < 1)
    throw bitladder::error(
        bitladder::status::invalid_argument,
        "refit: expected 1 or more groups of rows, found " + std::to_string(options.row_groups));
  if (options.calibration.seq_len > c.context)
    throw bitladder::error(bitladder::status::invalid_argument,
                           original_path.string() + ": expected samples of at most " +
                               std::to_string(c.context) + " tokens, found " +
                               std::to_string(options.calibration.seq_len));
  const auto words = std::any_of(options.texts.begin(), options.texts.end(), is_token_file)
                         ? nullptr
                         : tokenizer_if_any(original_path);
  const calibration samples =
      read_calibration(options.texts, words.get(), c.vocabulary, options.calibration);

  const bitladder::checkpoint_plan plan = plan_of(source);
  bitladder::checkpoint_writer writer(out, plan, fingerprint(path, original, samples, options),
                                      {options.overwrite});
  for (const auto& t : plan.tensors) {
    if (writer.done(t.name)) continue;
    const auto bytes = source.tensors().bytes(source.tensors().at(t.name));
    writer.write_tensor(t.name, bytes.data(), bytes.size());
  }
  refit_model_result result;
  result.linears = source.linears().size();
  std::vector<const bitladder::linear_info*> pending;
  for (const bitladder::linear_info& l : source.linears())
    if (!writer.done(l.name)) pending.push_back(&l);
  const auto all = static_cast<std::int64_t>(result.linears);
  const std::int64_t resumed = all - static_cast<std::int64_t>(pending.size());
  job work(source, original, options, writer, pool);
  for (std::size_t begin = 0; begin < pending.size();) {
    const std::size_t end = end_of_batch(pending, begin, options);
    std::vector<std::string> names;
    for (std::size_t i = begin; i < end; ++i) names.push_back(pending[i]->name + ".weight");
    second_moments moments(m, names, options.row_groups, pool);
    const auto size = static_cast<std::size_t>(samples.seq_len);
    for (int s = 0; s < samples.samples; ++s) {
      moments.add({samples.tokens.data() + static_cast<std::size_t>(s) * size, size});
      if (progress) progress("moments", s + 1, 0, samples.samples);
    }
    for (std::size_t i = begin; i < end; ++i) {
      work.run(*pending[i], moments.moments(i - begin), result);
      if (progress) progress("refit", resumed + static_cast<std::int64_t>(i) + 1, resumed, all);
    }
    begin = end;
  }
  for (double& ratio : result.error_ratio)
    if (result.refit > 0) ratio /= static_cast<double>(result.refit);
  auto config = bitladder::read_json<nlohmann::ordered_json>(folder / "config.json");
  config.erase("bitladder");
  writer.finish(bitladder::to_json_text(config), companion_files(folder));
  return result;
}

}  // namespace llama
