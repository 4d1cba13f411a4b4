// SPDX-License-Identifier: MIT
#include <bitladder/core/status.hpp>
#include <bitladder/io/anyprec_checkpoint.hpp>
#include <bitladder/io/squeezellm_checkpoint.hpp>

#include <llama/foreign_checkpoint.hpp>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace llama {
namespace {

namespace fs = std::filesystem;

/// In a folder, whatever holds tensors.
std::vector<fs::path> tensor_files(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) return {path};
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(path, ignored))
    for (const char* extension : {".safetensors", ".bin", ".pt"})
      if (entry.path().extension() == extension) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

class anyprec final : public foreign_checkpoint {
 public:
  explicit anyprec(const fs::path& folder) : source_(folder) {}

  const char* format() const override { return "Any-Precision"; }
  const std::string& path() const override { return source_.path(); }
  std::vector<fs::path> files() const override { return tensor_files(source_.path()); }
  int min_bits() const override { return source_.min_bits(); }
  int max_bits() const override { return source_.max_bits(); }
  const std::vector<bitladder::linear_info>& linears() const override { return source_.linears(); }
  foreign_linear read(const std::string& linear, bitladder::thread_pool*) const override {
    source_.validate(linear);
    return {source_.planes(linear), source_.tables(linear), {}};
  }
  foreign_rounding rounding(const std::string&) const override { return {}; }  // they are fp16
  std::vector<bitladder::tensor_info> plain_tensors() const override {
    return source_.plain_tensors();
  }
  bitladder::vector_view<const std::byte> bytes(const std::string& tensor) const override {
    return source_.bytes(tensor);
  }

 private:
  bitladder::anyprec_checkpoint source_;
};

class squeezellm final : public foreign_checkpoint {
 public:
  explicit squeezellm(const fs::path& path) : source_(path) {}

  const char* format() const override { return "SqueezeLLM"; }
  const std::string& path() const override { return source_.path(); }
  std::vector<fs::path> files() const override { return {source_.path()}; }
  int min_bits() const override { return source_.bits(); }
  int max_bits() const override { return source_.bits(); }
  const std::vector<bitladder::linear_info>& linears() const override { return source_.linears(); }
  foreign_linear read(const std::string& linear, bitladder::thread_pool* pool) const override {
    bitladder::squeezellm_matrix m = source_.read(linear, pool);
    return {std::move(m.planes), std::move(m.tables), std::move(m.outliers)};
  }
  foreign_rounding rounding(const std::string& linear) const override {
    const bitladder::table_rounding r = source_.rounding(linear);
    return {r.largest, r.stored, linear, r.row};
  }
  std::vector<bitladder::tensor_info> plain_tensors() const override {
    return source_.plain_tensors();
  }
  bitladder::vector_view<const std::byte> bytes(const std::string& tensor) const override {
    return source_.bytes(tensor);
  }

 private:
  bitladder::squeezellm_checkpoint source_;
};

}  // namespace

bool is_foreign(const fs::path& folder) {
  return bitladder::anyprec_checkpoint::is_anyprec(folder) ||
         bitladder::squeezellm_checkpoint::is_squeezellm(folder);
}

std::unique_ptr<foreign_checkpoint> open_foreign(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) return std::make_unique<squeezellm>(path);
  if (bitladder::anyprec_checkpoint::is_anyprec(path)) return std::make_unique<anyprec>(path);
  const auto has_pt = [&] {
    for (const fs::path& file : tensor_files(path))
      if (file.extension() == ".pt") return true;
    return false;
  };
  if (bitladder::squeezellm_checkpoint::is_squeezellm(path) || has_pt())
    return std::make_unique<squeezellm>(path);
  throw bitladder::error(
      bitladder::status::bad_file,
      path.string() +
          ": expected an Any-Precision checkpoint (config.json with an object \"anyprec\") or a "
          "SqueezeLLM one (quant_config.json with \"wbits\", or a file NAME.pt), found neither");
}

}  // namespace llama
