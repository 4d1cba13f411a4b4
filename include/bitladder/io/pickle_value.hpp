// SPDX-License-Identifier: MIT
// What a pickle holds once it is read: plain values, and tensors over storages that are named, not
// read. Text lies in the pickle's own bytes. Tested by tests/io/pickle_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// What a pickled value is.
enum class pickle_kind : std::uint8_t {
  none,
  boolean,
  integer,  ///< within 64 bits
  real,
  text,
  tuple,  ///< torch.Size too
  list,
  dict,  ///< OrderedDict too
  storage,
  tensor,  ///< torch.nn.Parameter too
  name,    ///< of something that may be named, such as torch.FloatStorage; inert
};

/// "a dict".
constexpr const char* to_string(pickle_kind k) noexcept {
  switch (k) {
    case pickle_kind::none: return "None";
    case pickle_kind::boolean: return "a bool";
    case pickle_kind::integer: return "an int";
    case pickle_kind::real: return "a float";
    case pickle_kind::text: return "a str";
    case pickle_kind::tuple: return "a tuple";
    case pickle_kind::list: return "a list";
    case pickle_kind::dict: return "a dict";
    case pickle_kind::storage: return "a storage";
    case pickle_kind::tensor: return "a tensor";
    case pickle_kind::name: return "a name";
  }
  return "?";
}

/// Bytes that lie outside the pickle.
struct pickle_storage {
  dtype type = dtype::f32;
  std::string_view key;       ///< "0": the archive entry data/0
  std::int64_t elements = 0;  ///< as claimed, from 0 on
};

/// A tensor as pickled: ranks agree and nothing is negative, all else is unchecked.
struct pickle_tensor {
  pickle_storage storage;
  std::int64_t offset = 0;  ///< of the first element in the storage, in elements
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> stride;  ///< in elements
};

/// Bounds on what is read; reading past one is an error that says so.
struct pickle_limits {
  std::size_t values = std::size_t{1} << 22;  ///< values made; a tensor of a checkpoint takes 10
  std::size_t memo = std::size_t{1} << 22;    ///< values remembered
  int depth = 32;                             ///< containers within containers
};

namespace detail {

struct pickle_node {
  pickle_kind kind = pickle_kind::none;
  bool placed =
      false;  ///< in a container: from then on it may not change, so no value holds itself
  bool ordered = false;     ///< a dict that is an OrderedDict
  std::uint8_t depth = 0;   ///< of the deepest value within
  std::uint64_t at = 0;     ///< the opcode that made it
  std::int64_t number = 0;  ///< bool, int; the place of a storage or tensor; which name
  double real = 0;
  std::string_view text;
  std::vector<std::uint32_t> items;  ///< of a dict, key and value by turns
};

}  // namespace detail

class pickle_document;

/// A value within a document, which must outlive it.
class pickle_value {
 public:
  pickle_kind kind() const { return node().kind; }
  bool is(pickle_kind k) const { return kind() == k; }
  /// The byte of the pickle whose opcode made it.
  std::uint64_t offset() const { return node().at; }

  /// Each throws error(bad_file), naming the pickle and the byte, for a value of another kind.
  bool as_bool() const { return need(pickle_kind::boolean).number != 0; }
  std::int64_t as_int() const { return need(pickle_kind::integer).number; }
  double as_float() const { return need(pickle_kind::real).real; }
  std::string_view as_text() const { return need(pickle_kind::text).text; }
  const pickle_storage& as_storage() const;
  const pickle_tensor& as_tensor() const;

  /// Items of a list or tuple, entries of a dict, 0 for anything else.
  std::size_t size() const {
    const std::size_t n = node().items.size();
    return is(pickle_kind::dict) ? n / 2 : n;
  }
  /// Item i < size() of a list or tuple, or the value of entry i of a dict.
  pickle_value operator[](std::size_t i) const {
    return item(is(pickle_kind::dict) ? 2 * i + 1 : i);
  }
  /// The key of entry i < size() of a dict. A hostile dict may hold a key twice.
  pickle_value key(std::size_t i) const {
    static_cast<void>(need(pickle_kind::dict));
    return item(2 * i);
  }

 private:
  friend class pickle_document;
  pickle_value(const pickle_document* document, std::uint32_t index)
      : document_(document), index_(index) {}
  const detail::pickle_node& node() const;
  const detail::pickle_node& need(pickle_kind k) const;
  pickle_value item(std::size_t i) const;

  const pickle_document* document_;
  std::uint32_t index_;
};

/// What one pickle holds. Values may occur in several places of it; none holds itself.
class pickle_document {
 public:
  /// Made by read_pickle.
  pickle_document(std::string where, std::vector<detail::pickle_node> nodes,
                  std::vector<pickle_storage> storages, std::vector<pickle_tensor> tensors,
                  std::uint32_t root)
      : where_(std::move(where)),
        nodes_(std::move(nodes)),
        storages_(std::move(storages)),
        tensors_(std::move(tensors)),
        root_(root) {}

  pickle_value root() const { return {this, root_}; }
  const std::string& where() const { return where_; }

 private:
  friend class pickle_value;
  std::string where_;
  std::vector<detail::pickle_node> nodes_;
  std::vector<pickle_storage> storages_;
  std::vector<pickle_tensor> tensors_;
  std::uint32_t root_;
};

inline const detail::pickle_node& pickle_value::node() const { return document_->nodes_[index_]; }
inline const detail::pickle_node& pickle_value::need(pickle_kind k) const {
  const detail::pickle_node& n = node();
  if (n.kind != k)
    throw error(status::bad_file, document_->where_ + ": byte " + std::to_string(n.at) +
                                      ": expected " + to_string(k) + ", found " +
                                      to_string(n.kind));
  return n;
}
inline pickle_value pickle_value::item(std::size_t i) const {
  if (i >= node().items.size())
    throw error(status::invalid_argument, document_->where_ + ": item " + std::to_string(i) +
                                              " asked for, " + std::to_string(node().items.size()) +
                                              " present");
  return {document_, node().items[i]};
}
inline const pickle_storage& pickle_value::as_storage() const {
  return document_->storages_[static_cast<std::size_t>(need(pickle_kind::storage).number)];
}
inline const pickle_tensor& pickle_value::as_tensor() const {
  return document_->tensors_[static_cast<std::size_t>(need(pickle_kind::tensor).number)];
}

}  // namespace v0_1
}  // namespace bitladder
