// SPDX-License-Identifier: MIT
// The keys and values at the front of a GGUF file. Values are checked when the file is opened and
// then stay where they are: a gguf_value is a view into the mapping, so a vocabulary costs nothing
// until it is asked for. Tested by tests/io/gguf_test.cpp.
#pragma once

#include <bitladder/core/status.hpp>
#include <bitladder/io/detail/gguf_cursor.hpp>
#include <bitladder/io/gguf_tensor.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {

/// Type of a metadata value, by the number that stands in the file.
enum class gguf_value_type : std::uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

/// The name that the format uses.
constexpr const char* to_string(gguf_value_type t) noexcept {
  switch (t) {
    case gguf_value_type::u8: return "UINT8";
    case gguf_value_type::i8: return "INT8";
    case gguf_value_type::u16: return "UINT16";
    case gguf_value_type::i16: return "INT16";
    case gguf_value_type::u32: return "UINT32";
    case gguf_value_type::i32: return "INT32";
    case gguf_value_type::f32: return "FLOAT32";
    case gguf_value_type::boolean: return "BOOL";
    case gguf_value_type::string: return "STRING";
    case gguf_value_type::array: return "ARRAY";
    case gguf_value_type::u64: return "UINT64";
    case gguf_value_type::i64: return "INT64";
    case gguf_value_type::f64: return "FLOAT64";
  }
  return "?";
}

namespace detail {

/// Bytes of a number or truth value; 0 for texts and arrays.
constexpr std::size_t gguf_size_of(gguf_value_type t) noexcept {
  switch (t) {
    case gguf_value_type::u8:
    case gguf_value_type::i8:
    case gguf_value_type::boolean: return 1;
    case gguf_value_type::u16:
    case gguf_value_type::i16: return 2;
    case gguf_value_type::u32:
    case gguf_value_type::i32:
    case gguf_value_type::f32: return 4;
    case gguf_value_type::u64:
    case gguf_value_type::i64:
    case gguf_value_type::f64: return 8;
    case gguf_value_type::string:
    case gguf_value_type::array: break;
  }
  return 0;
}

inline gguf_value_type read_gguf_value_type(gguf_cursor& c, const char* what) {
  const auto number = c.number<std::uint32_t>(what);
  if (number > 12)
    c.fail(std::string(what) + ": expected a number of 0 to 12, found " + std::to_string(number));
  return static_cast<gguf_value_type>(number);
}

}  // namespace detail

/// One value, valid as long as the file it came from is open. The functions that convert return
/// nothing when the value is not of that kind.
class gguf_value {
 public:
  /// Arrays inside arrays deeper than this are refused: no file in use has any at all.
  static constexpr int max_depth = 8;

  /// Steps over one value, checking all of it.
  /// @throws error(bad_file) beginning with the cursor's place
  static gguf_value read(detail::gguf_cursor& c, gguf_value_type type, int depth = 0) {
    gguf_value v;
    v.type_ = type;
    if (type == gguf_value_type::string) {
      const std::string_view s = c.text("text");
      v.begin_ = reinterpret_cast<const std::byte*>(s.data());
      v.bytes_ = s.size();
      return v;
    }
    if (type == gguf_value_type::array) {
      if (depth == max_depth)
        c.fail("expected arrays at most " + std::to_string(max_depth) + " deep, found more");
      v.element_ = detail::read_gguf_value_type(c, "type of an array's elements");
      v.count_ = c.number<std::uint64_t>("length of an array");
    }
    v.begin_ = c.here();
    const std::size_t start = c.position();
    if (const std::size_t size = detail::gguf_size_of(v.element_type()); size != 0) {
      c.skip(v.count_, size, to_string(v.element_type()));
      if (v.element_type() == gguf_value_type::boolean)
        for (std::uint64_t i = 0; i < v.count_; ++i)
          if (v.begin_[i] > std::byte{1})
            c.fail("BOOL at byte " + std::to_string(start + i) + ": expected 0 or 1, found " +
                   std::to_string(static_cast<int>(v.begin_[i])));
    } else {
      // The smallest text is its length, the smallest array its head.
      const bool texts = v.element_type() == gguf_value_type::string;
      c.require(v.count_, texts ? 8 : 12, "elements of an array");
      for (std::uint64_t i = 0; i < v.count_; ++i)
        static_cast<void>(read(c, v.element_type(), depth + 1));
    }
    v.bytes_ = c.position() - start;
    return v;
  }

  gguf_value_type type() const { return type_; }
  bool is_array() const { return type_ == gguf_value_type::array; }
  /// Type of an array's elements; of any other value, its own.
  gguf_value_type element_type() const { return is_array() ? element_ : type_; }
  /// Elements of an array; 1 for any other value.
  std::uint64_t size() const { return count_; }

  std::optional<bool> boolean() const {
    if (type_ != gguf_value_type::boolean) return std::nullopt;
    return begin_[0] != std::byte{0};
  }
  /// Any integer type; nothing for an UINT64 above 2^63 - 1.
  std::optional<std::int64_t> integer() const {
    switch (type_) {
      case gguf_value_type::u8: return load<std::uint8_t>();
      case gguf_value_type::i8: return load<std::int8_t>();
      case gguf_value_type::u16: return load<std::uint16_t>();
      case gguf_value_type::i16: return load<std::int16_t>();
      case gguf_value_type::u32: return load<std::uint32_t>();
      case gguf_value_type::i32: return load<std::int32_t>();
      case gguf_value_type::i64: return load<std::int64_t>();
      case gguf_value_type::u64: {
        const auto x = load<std::uint64_t>();
        if (x > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
          return std::nullopt;
        return static_cast<std::int64_t>(x);
      }
      default: return std::nullopt;
    }
  }
  /// Floats exactly, integers rounded to 53 bits.
  std::optional<double> number() const {
    if (type_ == gguf_value_type::f32) return static_cast<double>(load<float>());
    if (type_ == gguf_value_type::f64) return load<double>();
    if (type_ == gguf_value_type::u64) return static_cast<double>(load<std::uint64_t>());
    if (const auto x = integer()) return static_cast<double>(*x);
    return std::nullopt;
  }
  /// The bytes of a text, which need not be UTF-8.
  std::optional<std::string_view> text() const {
    if (type_ != gguf_value_type::string) return std::nullopt;
    return std::string_view(reinterpret_cast<const char*>(begin_), bytes_);
  }

  /// Calls `f(gguf_value)` with each element of an array, in order; nothing for other values.
  template <class F>
  void for_each(F&& f) const {
    if (!is_array()) return;
    // Checked again: the file may have been written to since it was opened.
    detail::gguf_cursor c(begin_, bytes_, "metadata");
    for (std::uint64_t i = 0; i < count_; ++i) f(read(c, element_, 1));
  }
  /// The elements of an array, which may be arrays themselves.
  std::vector<gguf_value> elements() const {
    std::vector<gguf_value> all;
    for_each([&](const gguf_value& v) { all.push_back(v); });
    return all;
  }

  /// For errors: `UINT32 5`, `STRING "llama"`, `ARRAY of 3 STRING`.
  std::string describe() const {
    std::string s = to_string(type_);
    if (is_array()) return s + " of " + std::to_string(count_) + " " + to_string(element_);
    if (const auto t = text()) return s + " " + detail::quoted(*t);
    if (const auto b = boolean()) return s + (*b ? " true" : " false");
    if (type_ == gguf_value_type::u64) return s + " " + std::to_string(load<std::uint64_t>());
    if (const auto i = integer()) return s + " " + std::to_string(*i);
    return s + " " + std::to_string(number().value_or(0));
  }

 private:
  template <class T>
  T load() const {
    T x;
    std::memcpy(&x, begin_, sizeof x);
    return x;
  }

  gguf_value_type type_ = gguf_value_type::u8;
  gguf_value_type element_ = gguf_value_type::u8;
  std::uint64_t count_ = 1;
  const std::byte* begin_ = nullptr;
  std::size_t bytes_ = 0;
};

/// All keys and values of a file. Each function that takes a key and returns a plain type throws
/// error(not_found) without that key and error(bad_file) for a value of another type, naming file,
/// key, the type expected and the one found; those ending in `_or` return their second argument
/// without that key, and throw all the same for another type.
class gguf_metadata {
 public:
  struct entry {
    std::string key;
    gguf_value value;
  };

  gguf_metadata() = default;
  /// @param path what errors call the file
  explicit gguf_metadata(std::string path) : path_(std::move(path)) {}

  /// @return false, and nothing added, if the key is there
  bool add(std::string_view key, const gguf_value& value) {
    if (!index_.emplace(std::string(key), entries_.size()).second) return false;
    entries_.push_back({std::string(key), value});
    return true;
  }

  /// In the order of the file.
  const std::vector<entry>& entries() const { return entries_; }
  bool has(const std::string& key) const { return find(key) != nullptr; }
  /// Null if there is none of that name.
  const gguf_value* find(const std::string& key) const {
    const auto it = index_.find(key);
    return it == index_.end() ? nullptr : &entries_[it->second].value;
  }
  const gguf_value& at(const std::string& key) const { return at(key, "a value"); }

  bool boolean(const std::string& key) const {
    const gguf_value& v = at(key, "BOOL");
    return converted(key, v, v.boolean(), "BOOL");
  }
  bool boolean_or(const std::string& key, bool other) const {
    return has(key) ? boolean(key) : other;
  }
  /// Of any integer type.
  std::int64_t integer(const std::string& key) const {
    const gguf_value& v = at(key, integer_text);
    return converted(key, v, v.integer(), integer_text);
  }
  std::int64_t integer_or(const std::string& key, std::int64_t other) const {
    return has(key) ? integer(key) : other;
  }
  /// Of any float or integer type.
  double number(const std::string& key) const {
    const gguf_value& v = at(key, number_text);
    return converted(key, v, v.number(), number_text);
  }
  double number_or(const std::string& key, double other) const {
    return has(key) ? number(key) : other;
  }
  /// Valid as long as the file is open.
  std::string_view text(const std::string& key) const {
    const gguf_value& v = at(key, "STRING");
    return converted(key, v, v.text(), "STRING");
  }
  std::string_view text_or(const std::string& key, std::string_view other) const {
    return has(key) ? text(key) : other;
  }

  /// An array of texts, or an empty one of any type.
  std::vector<std::string_view> texts(const std::string& key) const {
    return array<std::string_view>(key, "an ARRAY of STRING",
                                   [](const gguf_value& v) { return v.text(); });
  }
  /// An array of any integer type.
  std::vector<std::int64_t> integers(const std::string& key) const {
    return array<std::int64_t>(key, "an ARRAY of an integer type with values below 2^63",
                               [](const gguf_value& v) { return v.integer(); });
  }
  /// An array of any float or integer type.
  std::vector<double> numbers(const std::string& key) const {
    return array<double>(key, "an ARRAY of a float or integer type",
                         [](const gguf_value& v) { return v.number(); });
  }

  /// Says that a value is of the right type but wrong.
  /// @throws error(bad_file), always
  [[noreturn]] void fail(const std::string& key, const std::string& expected) const {
    const gguf_value* v = find(key);
    throw error(status::bad_file, path_ + ": metadata " + detail::quoted(key) + ": expected " +
                                      expected + ", found " +
                                      (v == nullptr ? "nothing" : v->describe()));
  }

 private:
  static constexpr const char* integer_text = "an integer type with a value below 2^63";
  static constexpr const char* number_text = "a float or integer type";

  const gguf_value& at(const std::string& key, const char* expected) const {
    if (const gguf_value* v = find(key)) return *v;
    throw error(status::not_found, path_ + ": metadata " + detail::quoted(key) + ": expected " +
                                       expected + ", found no such key among the " +
                                       std::to_string(entries_.size()));
  }

  template <class T>
  T converted(const std::string& key, const gguf_value& v, const std::optional<T>& x,
              const char* expected) const {
    if (!x)
      throw error(status::bad_file, path_ + ": metadata " + detail::quoted(key) + ": expected " +
                                        expected + ", found " + v.describe());
    return *x;
  }

  template <class T, class Convert>
  std::vector<T> array(const std::string& key, const char* expected, Convert&& convert) const {
    const gguf_value& v = at(key, expected);
    if (!v.is_array()) fail(key, expected);
    std::vector<T> all;
    // An element takes at least one byte of the file, so the count has been proved.
    all.reserve(static_cast<std::size_t>(v.size()));
    v.for_each([&](const gguf_value& element) {
      const std::optional<T> x = convert(element);
      if (!x)
        throw error(status::bad_file, path_ + ": metadata " + detail::quoted(key) + ": expected " +
                                          expected + ", found " + v.describe() + ", element " +
                                          std::to_string(all.size()) + ": " + element.describe());
      all.push_back(*x);
    });
    return all;
  }

  std::string path_;
  std::vector<entry> entries_;
  std::unordered_map<std::string, std::size_t> index_;
};

}  // namespace v0_1
}  // namespace bitladder
