// SPDX-License-Identifier: MIT
#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/gguf.hpp>

#include <llama/config_json.hpp>
#include <llama/float_tensors.hpp>
#include <llama/gguf_names.hpp>
#include <llama/gguf_tokenizer.hpp>
#include <llama/gguf_tokenizer_json.hpp>
#include <llama/gguf_weights.hpp>
#include <llama/tokenizer.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace llama {
namespace {

/// The type of the elements that are handed out.
bitladder::dtype float_type(bitladder::gguf_type type) {
  return type == bitladder::gguf_type::f16    ? bitladder::dtype::f16
         : type == bitladder::gguf_type::bf16 ? bitladder::dtype::bf16
                                              : bitladder::dtype::f32;
}

/// Rows of 16-bit floats as they are, in Hugging Face's order.
void copy_rows(const gguf_weights& source, const std::string& name,
               const bitladder::gguf_tensor& stored, std::vector<std::byte>& to) {
  // Of a bias the elements are what rows are elsewhere.
  const auto rows = static_cast<std::uint64_t>(stored.shape[0]);
  const std::size_t size = to.size() / static_cast<std::size_t>(rows);
  const std::byte* from = source.file().bytes(stored).data();
  const bool reordered = source.is_reordered(name);
  const auto width = static_cast<std::uint64_t>(source.shape().head_dim);
  for (std::uint64_t r = 0; r < rows; ++r)
    std::memcpy(to.data() + r * size, from + (reordered ? gguf_rope_row(r, width) : r) * size,
                size);
}

}  // namespace

float_tensors::float_tensors(const std::filesystem::path& path) : path_(path.string()) {
  if (!is_gguf_path(path)) {
    set_.emplace(path);
    return;
  }
  gguf_ = std::make_shared<const gguf_weights>(path);
  for (const std::string& name : gguf_->names()) {
    const bitladder::gguf_tensor& stored = gguf_->at(name);
    bitladder::tensor_info t;
    t.name = name;
    t.type = float_type(stored.type);
    t.shape = stored.shape;
    t.end = stored.elements() * bitladder::size_of(t.type);
    listed_.push_back(std::move(t));
  }
}

const config& float_tensors::gguf_config() const { return gguf_->shape(); }

const bitladder::tensor_info& float_tensors::at(const std::string& name) const {
  if (gguf_ == nullptr) return set_->at(name);
  if (const bitladder::tensor_info* t = find(name)) return *t;
  gguf_->at(name);  // throws, naming both names
  throw bitladder::error(bitladder::status::not_found, path_ + ": no tensor \"" + name + "\"");
}

bool float_tensors::is_unpacked(const bitladder::tensor_info& t) const {
  return gguf_ != nullptr && t.type == bitladder::dtype::f32 &&
         gguf_->at(t.name).type != bitladder::gguf_type::f32;
}

const std::byte* float_tensors::bytes(const bitladder::tensor_info& t,
                                      std::vector<std::byte>& copy) const {
  if (gguf_ == nullptr) return tensor_bytes(*set_, t, copy);
  const bitladder::gguf_tensor& stored = gguf_->at(t.name);
  const std::byte* there = gguf_->file().bytes(stored).data();
  const bool is_float = t.type != bitladder::dtype::f32 || stored.type == bitladder::gguf_type::f32;
  if (is_float && !gguf_->is_reordered(t.name) &&
      reinterpret_cast<std::uintptr_t>(there) % bitladder::size_of(t.type) == 0)
    return there;
  copy.resize(static_cast<std::size_t>(t.bytes()));
  if (t.type == bitladder::dtype::f32)
    gguf_->read_rows(t.name, 0, stored.rows(), reinterpret_cast<float*>(copy.data()));
  else
    copy_rows(*gguf_, t.name, stored, copy);
  return copy.data();
}

void float_tensors::read_as_float(const bitladder::tensor_info& t, float* out) const {
  if (gguf_ == nullptr)
    set_->read_as_float(t, out);
  else
    gguf_->read_rows(t.name, 0, gguf_->at(t.name).rows(), out);
}

void float_tensors::release(const bitladder::tensor_info& t) const {
  if (gguf_ == nullptr) {
    const bitladder::safetensors_file& file = set_->file_of(t);
    file.mapping().advise(bitladder::access::dont_need, file.data_offset() + t.begin,
                          static_cast<std::size_t>(t.bytes()));
  } else {
    const bitladder::gguf_file& file = gguf_->file();
    const bitladder::gguf_tensor& stored = gguf_->at(t.name);
    file.mapping().advise(bitladder::access::dont_need, file.data_offset() + stored.begin,
                          static_cast<std::size_t>(stored.bytes()));
  }
}

std::string float_tensors::stamp() const {
  std::string text;
  const auto add = [&](const std::filesystem::path& file) {
    text +=
        file.filename().string() + ' ' + std::to_string(std::filesystem::file_size(file)) + ' ' +
        std::to_string(std::filesystem::last_write_time(file).time_since_epoch().count()) + '\n';
  };
  if (gguf_ != nullptr)
    add(path_);
  else
    for (const auto& file : set_->files()) add(file.path());
  for (const auto& t : tensors())
    text +=
        t.name + ' ' + bitladder::to_string(t.type) + ' ' + bitladder::to_string(t.shape) + '\n';
  return text;
}

gguf_companions::gguf_companions(const gguf_weights& source) : config(config_json(source.shape())) {
  const gguf_tokenizer t = load_gguf_tokenizer(source.file());
  const std::string& where = source.file().path();
  tokenizer = tokenizer_json(t, where);
  tokenizer_config = tokenizer_config_json(t);
  // Better now than after hours of work.
  static_cast<void>(tokenizer::parse(tokenizer, where + ": tokenizer"));
}

}  // namespace llama
