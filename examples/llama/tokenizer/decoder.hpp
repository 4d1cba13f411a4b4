// SPDX-License-Identifier: MIT
// From tokens back to text, one token at a time: each step of the decoder keeps what it cannot tell
// yet and passes on the rest, so that a stream and a whole sequence give the same text by
// construction. Tested by tests/llama/tokenizer_test.cpp.
#pragma once

#include <llama/tokenizer/byte_alphabet.hpp>
#include <llama/tokenizer/json_node.hpp>
#include <llama/tokenizer/normalizer.hpp>
#include <llama/tokenizer/pre_tokenizer.hpp>
#include <llama/tokenizer/utf8.hpp>

#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace llama::tokenization {

/// Text between two steps: a token, or a part of one.
struct fragment {
  std::string text;
  bool starts = true;  ///< whether a token begins here
};

/// Tokens of the byte-level alphabet into one text. Keeps the bytes of an unfinished character.
class byte_level_decode {
 public:
  template <class Emit>
  void push(const fragment& in, Emit&& emit) {
    byte_level_alphabet.append_decoded(bytes_, in.text);
    std::size_t cut = 0;
    fragment out{repair_utf8(bytes_, &cut), !started_};
    bytes_.erase(0, cut);
    if (out.text.empty()) return;
    started_ = true;
    emit(std::move(out));
  }
  template <class Emit>
  void finish(Emit&& emit) {
    if (!bytes_.empty()) emit(fragment{repair_utf8(bytes_), !started_});
    bytes_.clear();
  }

 private:
  std::string bytes_;
  bool started_ = false;
};

/// <0x41> into bytes. A run of such tokens is a text when all of it is UTF-8, and otherwise as many
/// U+FFFD as tokens: that is known at its end only, and the whole run is kept until then.
class byte_fallback_decode {
 public:
  template <class Emit>
  void push(fragment&& in, Emit&& emit) {
    const int byte = byte_of(in.text);
    if (byte >= 0) {
      run_ += static_cast<char>(byte);
      return;
    }
    finish(emit);
    emit(std::move(in));
  }
  template <class Emit>
  void finish(Emit&& emit) {
    if (run_.empty()) return;
    const std::string run = std::exchange(run_, {});
    if (is_utf8(run)) {
      emit(fragment{run});
    } else {
      for (std::size_t i = 0; i < run.size(); ++i)
        emit(fragment{std::string(replacement_character)});
    }
  }

 private:
  static int byte_of(std::string_view token) {
    if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
    const auto digit = [](char c) {
      return c >= '0' && c <= '9'   ? c - '0'
             : c >= 'A' && c <= 'F' ? c - 'A' + 10
             : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                    : -1;
    };
    const int high = digit(token[3]), low = digit(token[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
  }

  std::string run_;
};

/// All tokens as one.
class fuse_decode {
 public:
  template <class Emit>
  void push(fragment&& in, Emit&& emit) {
    in.starts = !std::exchange(started_, true);
    emit(std::move(in));
  }
  template <class Emit>
  void finish(Emit&&) {}

 private:
  bool started_ = false;
};

/// Takes up to `count` characters `content` off the start of each token.
class strip_decode {
 public:
  strip_decode(std::string content, int count) : content_(std::move(content)), count_(count) {}

  template <class Emit>
  void push(fragment&& in, Emit&& emit) {
    if (in.starts) left_ = count_;
    std::string_view text = in.text;
    while (left_ > 0 && !text.empty()) {
      if (text.substr(0, content_.size()) == content_) {
        text.remove_prefix(content_.size());
        --left_;
      } else {
        left_ = 0;
      }
    }
    emit(fragment{std::string(text), in.starts});
  }
  template <class Emit>
  void finish(Emit&&) {}

 private:
  std::string content_;
  int count_;
  int left_ = 0;
};

/// Replaces inside each token.
class replace_decode {
 public:
  explicit replace_decode(replace what) : what_(std::move(what)) {}

  template <class Emit>
  void push(fragment&& in, Emit&& emit) {
    what_(in.text);
    emit(std::move(in));
  }
  template <class Emit>
  void finish(Emit&&) {}

 private:
  replace what_;
};

/// SentencePiece's marks into spaces; the first token's are the ones that were put in front.
class metaspace_decode {
 public:
  explicit metaspace_decode(const json_node& node)
      : mark_(metaspace::read(node).mark),
        drop_(metaspace::read(node).scheme != prepend_scheme::never),
        pattern_(regex::from_text(mark_, node.place())) {}

  template <class Emit>
  void push(const fragment& in, Emit&& emit) {
    emit(fragment{replace_all(pattern_, in.text, drop_ ? "" : " "), in.starts});
    drop_ = false;
  }
  template <class Emit>
  void finish(Emit&&) {}

 private:
  std::string mark_;
  bool drop_;
  regex pattern_;
};

/// What is done without a decoder: spaces between the tokens.
class join_decode {
 public:
  template <class Emit>
  void push(fragment&& in, Emit&& emit) {
    if (std::exchange(started_, true)) in.text.insert(0, 1, ' ');
    emit(std::move(in));
  }
  template <class Emit>
  void finish(Emit&&) {}

 private:
  bool started_ = false;
};

/// The "decoder" component, and the state of one text. A copy of the fresh one serves each text.
class decoder {
 public:
  /// No component.
  decoder() { steps_.emplace_back(join_decode{}); }
  explicit decoder(const json_node& node) { add(node); }

  /// Appends what is certain after one more token.
  void push(const std::string& token, std::string& out) { feed(0, fragment{token}, out); }
  /// Appends what was kept.
  void finish(std::string& out) {
    for (std::size_t i = 0; i < steps_.size(); ++i)
      std::visit(
          [&](auto& one) { one.finish([&](fragment f) { feed(i + 1, std::move(f), out); }); },
          steps_[i]);
  }

 private:
  using step = std::variant<byte_level_decode, byte_fallback_decode, fuse_decode, strip_decode,
                            replace_decode, metaspace_decode, join_decode>;

  void feed(std::size_t i, fragment f, std::string& out) {
    if (i == steps_.size()) {
      out += f.text;
      return;
    }
    std::visit(
        [&](auto& one) {
          one.push(std::move(f), [&](fragment g) { feed(i + 1, std::move(g), out); });
        },
        steps_[i]);
  }

  void add(const json_node& node) {
    const std::string type = node.type();
    if (type == "Sequence") {
      for (const json_node& part : node.at("decoders").elements()) add(part);
      return;
    }
    // After Fuse and ByteLevel a token arrives in parts; these steps need whole ones.
    if (fused_ && type != "Fuse" && type != "Strip")
      node.fail("a decoder of type \"" + type + "\" after Fuse or ByteLevel is not supported");
    if (type == "ByteLevel") {
      steps_.emplace_back(byte_level_decode{});
      fused_ = true;
    } else if (type == "ByteFallback") {
      steps_.emplace_back(byte_fallback_decode{});
    } else if (type == "Fuse") {
      steps_.emplace_back(fuse_decode{});
      fused_ = true;
    } else if (type == "Strip") {
      if (node.at("stop").integer(1 << 30) != 0)
        node.at("stop").fail("stripping the end of tokens is not supported, 0 expected");
      steps_.emplace_back(
          strip_decode(node.at("content").text(), node.at("start").integer(1 << 30)));
    } else if (type == "Replace") {
      steps_.emplace_back(replace_decode(replace::read(node)));
    } else if (type == "Metaspace") {
      steps_.emplace_back(metaspace_decode(node));
    } else {
      node.fail("a decoder of type \"" + type +
                "\" is not supported (Sequence, ByteLevel, ByteFallback, Fuse, Strip, Replace, "
                "Metaspace are)");
    }
  }

  std::vector<step> steps_;
  bool fused_ = false;
};

}  // namespace llama::tokenization
