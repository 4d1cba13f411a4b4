// SPDX-License-Identifier: MIT
// Runs the opcodes of a pickle on a stack of value numbers. Values are made once and shared by
// number, so copies through the memo cost four bytes; a container that stands in another one is
// closed, hence there are no cycles and depths are exact. Tested by tests/io/pickle_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/pickle_value.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace detail {

/// Everything that a pickle may name.
enum class pickle_name : std::int64_t {
  ordered_dict,
  rebuild_tensor,
  rebuild_parameter,
  size,
  storage,  ///< storage + t is the storage class of dtype t
};

class pickle_machine {
 public:
  pickle_machine(std::string_view bytes, const std::string& where, const pickle_limits& limits)
      : bytes_(bytes), where_(where), limits_(limits) {}

  pickle_document run() {
    while (!stopped_) step();
    if (at_ != bytes_.size())
      fail(std::to_string(bytes_.size() - at_) + " bytes follow the end of the pickle");
    if (stack_.size() != 1 || !marks_.empty())
      fail("expected one value at the end, found " + std::to_string(stack_.size()));
    return {where_, std::move(nodes_), std::move(storages_), std::move(tensors_), stack_[0]};
  }

 private:
  using index = std::uint32_t;
  static constexpr std::size_t max_rank = 64;

  [[noreturn]] void fail(const std::string& what) const {
    throw error(status::bad_file, where_ + ": byte " + std::to_string(op_at_) + ": " + what);
  }

  // ---- the bytes

  std::string_view take(std::uint64_t count) {
    if (count > bytes_.size() - at_)
      fail("needs " + std::to_string(count) + " more bytes, " +
           std::to_string(bytes_.size() - at_) + " are left");
    const std::string_view part = bytes_.substr(at_, static_cast<std::size_t>(count));
    at_ += part.size();
    return part;
  }
  /// Little-endian, whatever the sign.
  template <class T>
  T take_number() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view take_line() {
    const std::size_t end = bytes_.substr(0, std::min(bytes_.size(), at_ + 256)).find('\n', at_);
    if (end == std::string_view::npos) fail("a name without an end within 256 bytes");
    const std::string_view line = bytes_.substr(at_, end - at_);
    at_ = end + 1;
    return line;
  }

  // ---- values

  pickle_node& node(index i) { return nodes_[i]; }

  index make(pickle_kind kind) {
    if (nodes_.size() >= limits_.values)
      fail("more than " + std::to_string(limits_.values) + " values");
    pickle_node n;
    n.kind = kind;
    n.at = op_at_;
    nodes_.push_back(std::move(n));
    return static_cast<index>(nodes_.size() - 1);
  }
  void push(index i) { stack_.push_back(i); }
  pickle_node& push_new(pickle_kind kind) {
    push(make(kind));
    return node(stack_.back());
  }
  void push_int(std::int64_t value) { push_new(pickle_kind::integer).number = value; }
  void push_text(std::string_view text) { push_new(pickle_kind::text).text = text; }

  /// Values above the last mark: what an opcode may take.
  std::size_t available() const { return stack_.size() - (marks_.empty() ? 0 : marks_.back()); }
  void require(std::size_t count) const {
    if (available() < count)
      fail("takes " + std::to_string(count) + " values, the stack holds " +
           std::to_string(available()));
  }
  index pop() {
    require(1);
    const index i = stack_.back();
    stack_.pop_back();
    return i;
  }
  index top() const {
    require(1);
    return stack_.back();
  }
  std::size_t pop_mark() {
    if (marks_.empty()) fail("no mark on the stack");
    const std::size_t at = marks_.back();
    marks_.pop_back();
    return at;
  }

  /// Puts the values from `first` on into a container and off the stack.
  void place(index container, std::size_t first) {
    if (node(container).placed) fail("changes a container that already stands in another");
    for (std::size_t s = first; s < stack_.size(); ++s) {
      const index child = stack_[s];
      if (child == container) fail("puts a container into itself");
      const int depth = node(child).depth + 1;
      if (depth > limits_.depth || depth > std::numeric_limits<std::uint8_t>::max())
        fail("containers nested deeper than " + std::to_string(limits_.depth) + " levels");
      node(container).depth = std::max(node(container).depth, static_cast<std::uint8_t>(depth));
      node(child).placed = true;
    }
    std::vector<index>& items = node(container).items;
    items.insert(items.end(), stack_.begin() + static_cast<std::ptrdiff_t>(first), stack_.end());
    stack_.resize(first);
  }
  void push_tuple(std::size_t first) {
    const index t = make(pickle_kind::tuple);
    place(t, first);
    push(t);
  }
  /// @param first where the values begin; the container stands right below
  void extend(pickle_kind kind, std::size_t first) {
    require(stack_.size() - first + 1);
    const index container = stack_[first - 1];
    if (node(container).kind != kind)
      fail(std::string("expected ") + to_string(kind) + " to add to, found " +
           to_string(node(container).kind));
    if (kind == pickle_kind::dict && (stack_.size() - first) % 2 != 0)
      fail("a key without a value");
    place(container, first);
  }

  void remember(std::uint32_t key) {
    const index value = top();
    if (memo_.size() >= limits_.memo && memo_.count(key) == 0)
      fail("remembers more than " + std::to_string(limits_.memo) + " values");
    memo_[key] = value;
  }
  void recall(std::uint32_t key) {
    const auto it = memo_.find(key);
    if (it == memo_.end()) fail("recalls value " + std::to_string(key) + ", which is not there");
    push(it->second);
  }

  // ---- names and what they stand for

  void push_name(std::string_view module, std::string_view name) {
    struct known {
      std::string_view module, name;
      std::int64_t id;
    };
    const auto id = [](pickle_name n) { return static_cast<std::int64_t>(n); };
    const auto storage = [&id](dtype t) {
      return id(pickle_name::storage) + static_cast<std::int64_t>(t);
    };
    const known list[] = {
        {"collections", "OrderedDict", id(pickle_name::ordered_dict)},
        {"torch._utils", "_rebuild_tensor_v2", id(pickle_name::rebuild_tensor)},
        {"torch._utils", "_rebuild_parameter", id(pickle_name::rebuild_parameter)},
        {"torch", "Size", id(pickle_name::size)},
        {"torch", "DoubleStorage", storage(dtype::f64)},
        {"torch", "FloatStorage", storage(dtype::f32)},
        {"torch", "HalfStorage", storage(dtype::f16)},
        {"torch", "BFloat16Storage", storage(dtype::bf16)},
        {"torch", "LongStorage", storage(dtype::i64)},
        {"torch", "IntStorage", storage(dtype::i32)},
        {"torch", "ShortStorage", storage(dtype::i16)},
        {"torch", "CharStorage", storage(dtype::i8)},
        {"torch", "ByteStorage", storage(dtype::u8)},
        {"torch", "BoolStorage", storage(dtype::boolean)},
    };
    for (const known& k : list) {
      if (k.module != module || k.name != name) continue;
      pickle_node& n = push_new(pickle_kind::name);
      n.number = k.id;
      n.text = name;
      return;
    }
    fail("names " + printable(module) + "." + printable(name) +
         ", which is not among what tensors need; it is not run, and the file is refused");
  }

  static std::string printable(std::string_view text) {
    std::string out;
    for (char c : text.substr(0, 128)) out += c >= ' ' && c < 127 ? c : '?';
    return text.size() > 128 ? out + "..." : out;
  }

  const pickle_node& argument(index tuple, std::size_t i, pickle_kind kind,
                              const char* what) const {
    const pickle_node& n = nodes_[nodes_[tuple].items[i]];
    if (n.kind != kind)
      fail(std::string(what) + ": expected " + to_string(kind) + ", found " + to_string(n.kind));
    return n;
  }
  std::int64_t count(const pickle_node& n, const char* what) const {
    if (n.kind != pickle_kind::integer || n.number < 0)
      fail(std::string(what) + ": expected an int from 0 on, found " +
           (n.kind == pickle_kind::integer ? std::to_string(n.number) : to_string(n.kind)));
    return n.number;
  }
  std::vector<std::int64_t> counts(const pickle_node& tuple, const char* what) const {
    if (tuple.items.size() > max_rank)
      fail(std::string(what) + ": more than " + std::to_string(max_rank) + " dimensions");
    std::vector<std::int64_t> out;
    for (index i : tuple.items) out.push_back(count(nodes_[i], what));
    return out;
  }

  /// ("storage", class, key, device, elements)
  void load_persistent() {
    const index t = pop();
    if (node(t).kind != pickle_kind::tuple || node(t).items.size() != 5 ||
        argument(t, 0, pickle_kind::text, "persistent id").text != "storage")
      fail("persistent id: expected (\"storage\", class, key, device, elements)");
    const std::int64_t type = argument(t, 1, pickle_kind::name, "storage class").number -
                              static_cast<std::int64_t>(pickle_name::storage);
    if (type < 0) fail("storage class: expected a storage, found another name");
    pickle_storage s;
    s.type = static_cast<dtype>(type);
    s.key = argument(t, 2, pickle_kind::text, "storage key").text;
    static_cast<void>(argument(t, 3, pickle_kind::text, "storage device"));
    s.elements = count(nodes_[node(t).items[4]], "storage elements");
    pickle_node& n = push_new(pickle_kind::storage);
    n.number = static_cast<std::int64_t>(storages_.size());
    storages_.push_back(s);
  }

  void reduce() {
    const index args = pop();
    const index callee = pop();
    if (node(callee).kind != pickle_kind::name)
      fail(std::string("calls ") + to_string(node(callee).kind));
    if (node(args).kind != pickle_kind::tuple)
      fail(std::string("arguments: expected a tuple, found ") + to_string(node(args).kind));
    const std::size_t n = node(args).items.size();
    switch (static_cast<pickle_name>(node(callee).number)) {
      case pickle_name::ordered_dict:
        if (n != 0) fail("OrderedDict: expected no arguments, found " + std::to_string(n));
        push_new(pickle_kind::dict).ordered = true;
        return;
      case pickle_name::size:
        if (n != 1) fail("torch.Size: expected 1 argument, found " + std::to_string(n));
        static_cast<void>(counts(argument(args, 0, pickle_kind::tuple, "torch.Size"), "size"));
        push(node(args).items[0]);
        return;
      case pickle_name::rebuild_tensor: rebuild_tensor(args); return;
      case pickle_name::rebuild_parameter:
        if (n != 3) fail("_rebuild_parameter: expected 3 arguments, found " + std::to_string(n));
        static_cast<void>(argument(args, 0, pickle_kind::tensor, "parameter"));
        static_cast<void>(argument(args, 1, pickle_kind::boolean, "requires_grad"));
        require_no_hooks(args, 2);
        push(node(args).items[0]);
        return;
      default: fail("calls a storage class");
    }
  }

  void require_no_hooks(index args, std::size_t i) const {
    if (!argument(args, i, pickle_kind::dict, "backward hooks").items.empty())
      fail("backward hooks: expected none");
  }

  /// (storage, offset, shape, stride, requires_grad, hooks[, metadata])
  void rebuild_tensor(index args) {
    const std::size_t n = node(args).items.size();
    if (n != 6 && n != 7)
      fail("_rebuild_tensor_v2: expected 6 or 7 arguments, found " + std::to_string(n));
    const pickle_node& storage = argument(args, 0, pickle_kind::storage, "tensor storage");
    pickle_tensor t;
    t.storage = storages_[static_cast<std::size_t>(storage.number)];
    t.offset = count(nodes_[node(args).items[1]], "storage offset");
    t.shape = counts(argument(args, 2, pickle_kind::tuple, "shape"), "shape");
    t.stride = counts(argument(args, 3, pickle_kind::tuple, "stride"), "stride");
    static_cast<void>(argument(args, 4, pickle_kind::boolean, "requires_grad"));
    require_no_hooks(args, 5);
    if (n == 7) {
      const pickle_node& metadata = nodes_[node(args).items[6]];
      if (metadata.kind != pickle_kind::none &&
          (metadata.kind != pickle_kind::dict || !metadata.items.empty()))
        fail("tensor metadata (conjugation or negation of its values) is not supported");
    }
    if (t.shape.size() != t.stride.size())
      fail("tensor of " + std::to_string(t.shape.size()) + " dimensions with " +
           std::to_string(t.stride.size()) + " strides");
    push_new(pickle_kind::tensor).number = static_cast<std::int64_t>(tensors_.size());
    tensors_.push_back(std::move(t));
  }

  /// A module's state dict carries attributes (`_metadata`): checked like all else, then dropped.
  void build() {
    const index state = pop();
    const pickle_node& n = nodes_[top()];
    if (n.kind != pickle_kind::dict || !n.ordered || node(state).kind != pickle_kind::dict)
      fail(std::string("sets the state of ") + to_string(n.kind) + " from " +
           to_string(node(state).kind) + "; expected attributes of an OrderedDict");
  }

  // ---- opcodes

  void step() {
    op_at_ = at_;
    if (at_ == bytes_.size()) fail("the pickle ends without its end mark");
    const unsigned char op = static_cast<unsigned char>(take(1)[0]);
    if (op_at_ == 0 && op != 0x80) fail("expected a pickle of protocol 2 to 5");
    switch (op) {
      case 0x80: {  // protocol
        const int protocol = take_number<std::uint8_t>();
        if (op_at_ != 0) fail("protocol given again");
        if (protocol < 2 || protocol > 5)
          fail("protocol " + std::to_string(protocol) + "; 2 to 5 are read");
        return;
      }
      case 0x95: {  // frame: a hint for readers of streams
        const std::uint64_t size = take_number<std::uint64_t>();
        if (size > bytes_.size() - at_)
          fail("a frame of " + std::to_string(size) + " bytes passes the end of the pickle");
        return;
      }
      case '.': stopped_ = true; return;
      case '(': marks_.push_back(stack_.size()); return;
      case 'N': push_new(pickle_kind::none); return;
      case 0x88: push_new(pickle_kind::boolean).number = 1; return;
      case 0x89: push_new(pickle_kind::boolean).number = 0; return;
      case 'J': push_int(take_number<std::int32_t>()); return;
      case 'K': push_int(take_number<std::uint8_t>()); return;
      case 'M': push_int(take_number<std::uint16_t>()); return;
      case 0x8a: push_long(take(take_number<std::uint8_t>())); return;
      case 'G': push_real(take_number<std::uint64_t>()); return;
      case 'X': push_text(take(take_number<std::uint32_t>())); return;
      case 0x8c: push_text(take(take_number<std::uint8_t>())); return;
      case 0x8d: push_text(take(take_number<std::uint64_t>())); return;
      case ')': push_new(pickle_kind::tuple); return;
      case 0x85:
      case 0x86:
      case 0x87: {
        const std::size_t n = op - 0x84u;
        require(n);
        push_tuple(stack_.size() - n);
        return;
      }
      case 't': push_tuple(pop_mark()); return;
      case ']': push_new(pickle_kind::list); return;
      case '}': push_new(pickle_kind::dict); return;
      case 'a':
        require(2);
        extend(pickle_kind::list, stack_.size() - 1);
        return;
      case 's':
        require(3);
        extend(pickle_kind::dict, stack_.size() - 2);
        return;
      case 'e': extend(pickle_kind::list, pop_mark()); return;
      case 'u': extend(pickle_kind::dict, pop_mark()); return;
      case 'q': remember(take_number<std::uint8_t>()); return;
      case 'r': remember(take_number<std::uint32_t>()); return;
      case 0x94: remember(static_cast<std::uint32_t>(memo_.size())); return;
      case 'h': recall(take_number<std::uint8_t>()); return;
      case 'j': recall(take_number<std::uint32_t>()); return;
      case 'c': {
        const std::string_view module = take_line();
        push_name(module, take_line());
        return;
      }
      case 0x93: {
        const index name = pop(), module = pop();
        if (node(name).kind != pickle_kind::text || node(module).kind != pickle_kind::text)
          fail("names something by other than text");
        push_name(node(module).text, node(name).text);
        return;
      }
      case 'Q': load_persistent(); return;
      case 'R': reduce(); return;
      case 'b': build(); return;
      default: {
        const char* hex = "0123456789abcdef";
        fail(std::string("opcode 0x") + hex[op >> 4] + hex[op & 15u] +
             (op > ' ' && op < 127 ? std::string(" ('") + static_cast<char>(op) + "')" : "") +
             " is not among those that tensors need");
      }
    }
  }

  void push_long(std::string_view bytes) {
    if (bytes.size() > 8) fail("an int of " + std::to_string(bytes.size()) + " bytes; 8 are read");
    std::uint64_t value = !bytes.empty() && (bytes.back() & 0x80) != 0 ? ~std::uint64_t{0} : 0;
    for (std::size_t i = bytes.size(); i-- > 0;)
      value = value << 8 | static_cast<unsigned char>(bytes[i]);
    push_int(static_cast<std::int64_t>(value));
  }
  void push_real(std::uint64_t big_endian) {
    std::uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits = bits << 8 | (big_endian >> (8 * i) & 0xffu);
    std::memcpy(&push_new(pickle_kind::real).real, &bits, sizeof bits);
  }

  std::string_view bytes_;
  std::string where_;
  pickle_limits limits_;
  std::size_t at_ = 0, op_at_ = 0;
  bool stopped_ = false;
  std::vector<pickle_node> nodes_;
  std::vector<pickle_storage> storages_;
  std::vector<pickle_tensor> tensors_;
  std::vector<index> stack_;
  std::vector<std::size_t> marks_;  // stack sizes
  std::unordered_map<std::uint32_t, index> memo_;
};

}  // namespace detail
}  // namespace v0_1
}  // namespace bitladder
