// SPDX-License-Identifier: MIT
// Reads the JSON header of a safetensors file straight into tensor_info, without a document tree:
// whatever is not `{name: {dtype, shape, data_offsets}, "__metadata__": {text: text}}` is an error
// at the place where it stands, so a hostile header cannot make the parser build anything large.
// Tested by tests/io/safetensors_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/json.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace detail {

struct safetensors_header {
  std::vector<tensor_info> tensors;  ///< in the order of the file's bytes
  std::map<std::string, std::string> metadata;
};

/// The parser's listener: nlohmann::json calls one member for every value, key and bracket.
class safetensors_header_reader : public nlohmann::json_sax<nlohmann::json> {
 public:
  safetensors_header_reader(const std::string& path, safetensors_header& out)
      : path_(path), out_(out) {}

  bool start_object(std::size_t) override {
    switch (place_) {
      case place::outside: place_ = place::file; return true;
      case place::file_value: place_ = in_metadata_ ? place::metadata : place::tensor; return true;
      default: fail("an object");
    }
  }

  bool key(string_t& name) override {
    switch (place_) {
      case place::file:
        current_ = name;
        if (!names_.insert(name).second)
          throw error(status::bad_file, path_ + ": \"" + name + "\" is in the header twice");
        in_metadata_ = name == "__metadata__";
        if (!in_metadata_) {
          tensor_ = tensor_info{};
          tensor_.name = name;
          offsets_.clear();
          has_dtype_ = has_shape_ = has_offsets_ = false;
        }
        place_ = place::file_value;
        return true;
      case place::metadata:
        field_ = name;
        place_ = place::metadata_value;
        if (!out_.metadata.emplace(name, "").second)
          throw error(status::bad_file, path_ + ": metadata key \"" + name + "\" is there twice");
        return true;
      default:  // the parser calls key inside objects only, so this one is a tensor's
        field_ = name;
        if (name == "dtype") {
          once(has_dtype_);
          place_ = place::dtype_value;
        } else if (name == "shape") {
          once(has_shape_);
          place_ = place::shape_value;
        } else if (name == "data_offsets") {
          once(has_offsets_);
          place_ = place::offsets_value;
        } else {
          throw_tensor("expected the fields dtype, shape and data_offsets, found \"" + name + "\"");
        }
        return true;
    }
  }

  bool end_object() override {
    if (place_ == place::tensor) {
      if (!has_dtype_) throw_tensor("has no dtype");
      if (!has_shape_) throw_tensor("has no shape");
      if (!has_offsets_) throw_tensor("has no data_offsets");
      out_.tensors.push_back(std::move(tensor_));
    }
    place_ = place_ == place::file ? place::outside : place::file;
    return true;
  }

  bool start_array(std::size_t) override {
    switch (place_) {
      case place::shape_value: place_ = place::shape; return true;
      case place::offsets_value: place_ = place::offsets; return true;
      default: fail("an array");
    }
  }

  bool end_array() override {
    if (place_ == place::offsets) {
      if (offsets_.size() != 2)
        throw_tensor("expected 2 data_offsets, found " + std::to_string(offsets_.size()));
      if (offsets_[1] < offsets_[0])
        throw_tensor("data_offsets end at " + std::to_string(offsets_[1]) +
                     ", before their begin " + std::to_string(offsets_[0]));
      tensor_.begin = offsets_[0];
      tensor_.end = offsets_[1];
    }
    place_ = place::tensor;
    return true;
  }

  bool string(string_t& value) override {
    switch (place_) {
      case place::dtype_value: {
        const std::optional<dtype> t = parse_dtype(value);
        if (!t)
          throw_tensor("dtype \"" + value +
                       "\" is not known (F64, F32, F16, BF16, I64, I32, I16, I8, U8 and BOOL are)");
        tensor_.type = *t;
        place_ = place::tensor;
        return true;
      }
      case place::metadata_value:
        out_.metadata[field_] = value;
        place_ = place::metadata;
        return true;
      default: fail("text");
    }
  }

  bool number_unsigned(number_unsigned_t value) override {
    switch (place_) {
      case place::shape:
        if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
          throw_tensor("dimension " + std::to_string(value) + " is too large");
        if (tensor_.shape.size() == max_dimensions)
          throw_tensor("has more than " + std::to_string(max_dimensions) + " dimensions");
        tensor_.shape.push_back(static_cast<std::int64_t>(value));
        return true;
      case place::offsets:
        if (offsets_.size() == 2) throw_tensor("expected 2 data_offsets, found more");
        offsets_.push_back(value);
        return true;
      default: fail("a number");
    }
  }

  bool number_integer(number_integer_t value) override {
    if (value >= 0) return number_unsigned(static_cast<number_unsigned_t>(value));
    fail("the negative number " + std::to_string(value));
  }
  bool number_float(number_float_t, const string_t& text) override { fail("the number " + text); }
  bool boolean(bool) override { fail("true or false"); }
  bool null() override { fail("null"); }
  bool binary(binary_t&) override { fail("bytes"); }

  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& e) override {
    throw error(status::bad_file, path_ + ": header: not valid JSON: " + shortened(e.what()));
  }

 private:
  static constexpr std::size_t max_dimensions = 64;

  enum class place {
    outside,
    file,
    file_value,
    metadata,
    metadata_value,
    tensor,
    dtype_value,
    shape_value,
    shape,
    offsets_value,
    offsets,
  };

  [[noreturn]] void throw_tensor(const std::string& what) const {
    throw error(status::bad_file, path_ + ": tensor \"" + current_ + "\": " + what);
  }

  void once(bool& seen) const {
    if (std::exchange(seen, true)) throw_tensor("field \"" + field_ + "\" is there twice");
  }

  [[noreturn]] void fail(const std::string& found) const {
    switch (place_) {
      case place::file_value:
        throw error(status::bad_file, path_ + ": header entry \"" + current_ +
                                          "\": expected an object, found " + found);
      case place::metadata_value:
        throw error(status::bad_file,
                    path_ + ": metadata \"" + field_ + "\": expected text, found " + found);
      case place::dtype_value: throw_tensor("dtype: expected text, found " + found);
      case place::shape_value: throw_tensor("shape: expected an array, found " + found);
      case place::shape: throw_tensor("shape: expected whole numbers from 0 on, found " + found);
      case place::offsets_value: throw_tensor("data_offsets: expected an array, found " + found);
      case place::offsets:
        throw_tensor("data_offsets: expected whole numbers from 0 on, found " + found);
      default:
        throw error(status::bad_file, path_ + ": header: expected an object, found " + found);
    }
  }

  const std::string path_;
  safetensors_header& out_;
  place place_ = place::outside;
  bool in_metadata_ = false;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  std::string current_, field_;  // the tensor, and the field or metadata key, being read
  tensor_info tensor_;
  std::vector<std::uint64_t> offsets_;
  std::unordered_set<std::string> names_;
};

/// @param json the header's bytes without the length
/// @param data_size bytes of the file behind the header
/// @throws error(bad_file) unless the tensors cover the data exactly, in any order of names
inline safetensors_header parse_safetensors_header(std::string_view json, std::uint64_t data_size,
                                                   const std::string& path) {
  safetensors_header header;
  safetensors_header_reader reader(path, header);
  require_no_zero_byte(json, path + ": header");
  nlohmann::json::sax_parse(json.begin(), json.end(), &reader);

  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const tensor_info& a, const tensor_info& b) {
              if (a.begin != b.begin) return a.begin < b.begin;
              if (a.end != b.end) return a.end < b.end;
              return a.name < b.name;
            });
  std::uint64_t covered = 0;
  for (const tensor_info& t : header.tensors) {
    const auto fail = [&](const std::string& what) {
      throw error(status::bad_file, path + ": tensor \"" + t.name + "\": " + what);
    };
    const std::optional<std::uint64_t> size = byte_size(t.type, t.shape);
    if (!size) fail("shape " + to_string(t.shape) + " is too large");
    const std::string offsets =
        "data_offsets " + std::to_string(t.begin) + " to " + std::to_string(t.end);
    if (t.end - t.begin != *size)
      fail("expected " + std::to_string(*size) + " bytes for " + to_string(t.type) + " " +
           to_string(t.shape) + ", found " + offsets);
    if (t.end > data_size)
      fail(offsets + " pass the end of the file's " + std::to_string(data_size) + " data bytes");
    if (t.begin < covered)
      fail(offsets + " overlap the tensor before, which ends at " + std::to_string(covered));
    if (t.begin > covered) fail(offsets + " leave a hole behind byte " + std::to_string(covered));
    covered = t.end;
  }
  if (covered != data_size)
    throw error(status::bad_file, path + ": tensors end at data byte " + std::to_string(covered) +
                                      ", but the file has " + std::to_string(data_size));
  return header;
}

}  // namespace detail
}  // namespace v0_1
}  // namespace bitladder
