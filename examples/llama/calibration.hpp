// SPDX-License-Identifier: MIT
// Samples of a fixed number of tokens to run a model on before it is quantized: drawn from texts,
// or as a file of tokens has them. The same options give the same samples on every machine.
// Tested by tests/llama/calibration_test.cpp.
#pragma once

#include <bitladder/core/dtype.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/status.hpp>
#include <bitladder/io/checksum.hpp>
#include <bitladder/io/mmap.hpp>
#include <bitladder/io/safetensors.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <llama/calibration_text.hpp>
#include <llama/tokenizer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace llama {

/// How samples come out of texts.
enum class draw {
  automatic,  ///< documents if there are enough of them, else windows
  documents,  ///< the first tokens of random documents; those that are too short are passed over
  windows,    ///< random windows, which do not overlap, of all documents put one after another
};

/// What to draw.
struct calibration_options {
  int samples = 100;
  int seq_len = 512;  ///< tokens of a sample, at least 2
  std::uint64_t random_state = 0;
  draw how = draw::automatic;
  std::string field = "text";  ///< key of the text in the objects of a *.jsonl file
  /// What is done to a document's text before it is tokenized; nothing if empty.
  std::function<std::string(const std::string&)> prepare;
};

/// Samples of equal length, one after another.
struct calibration {
  int samples = 0, seq_len = 0;
  std::vector<int> tokens;  // [samples, seq_len]
  std::string drawn;        ///< "documents", "windows" or "tokens" (of a file that holds them)

  bitladder::vector_view<const int> sample(int i) const {
    const auto size = static_cast<std::size_t>(seq_len);
    return {tokens.data() + static_cast<std::size_t>(i) * size, size};
  }
  /// Differs, as good as certainly, between different samples.
  std::uint64_t checksum() const {
    return bitladder::checksum(tokens.data(), tokens.size() * sizeof(int),
                               static_cast<std::uint64_t>(seq_len));
  }
};

/// The numbers from 0 to count - 1 in random order, one at a time: a shuffle after Fisher and
/// Yates, with numbers from splitmix64 (Steele, Lea and Flood, 2014), each equally likely.
class random_order {
 public:
  random_order(std::size_t count, std::uint64_t random_state) : left_(count), state_(random_state) {
    for (std::size_t i = 0; i < count; ++i) left_[i] = i;
  }

  bool empty() const { return left_.empty(); }
  std::size_t next() {
    std::swap(left_[static_cast<std::size_t>(below(left_.size()))], left_.back());
    const std::size_t taken = left_.back();
    left_.pop_back();
    return taken;
  }

 private:
  std::uint64_t below(std::uint64_t bound) {
    // 2^64 mod bound: the numbers below it would make some remainders likelier than others.
    const std::uint64_t unfair = (0 - bound) % bound;
    for (;;) {
      std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
      z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
      z = (z ^ z >> 27) * 0x94d049bb133111ebu;
      z ^= z >> 31;
      if (z >= unfair) return z % bound;
    }
  }

  std::vector<std::size_t> left_;
  std::uint64_t state_;
};

/// Whether a path is taken for a file of tokens rather than of text: *.safetensors with one tensor
/// of I32 or I64 [samples, tokens], or *.bin or *.i32 with nothing but little-endian 32-bit
/// integers, sample after sample.
inline bool is_token_file(const std::filesystem::path& path) {
  const std::filesystem::path end = path.extension();
  return end == ".safetensors" || end == ".bin" || end == ".i32";
}

namespace detail {

[[noreturn]] inline void throw_too_few(const std::string& where, const calibration_options& o,
                                       std::uint64_t found, const std::string& what) {
  throw bitladder::error(bitladder::status::invalid_argument,
                         where + ": expected enough for " + std::to_string(o.samples) +
                             " samples of " + std::to_string(o.seq_len) + " tokens, found " +
                             std::to_string(found) + " (" + what +
                             "); ask for fewer or shorter samples");
}

inline std::vector<int> encode(const calibration_text& text, std::size_t document,
                               const tokenizer& words, const calibration_options& o) {
  const std::string as_stored = text[document];
  return words.encode(o.prepare ? o.prepare(as_stored) : as_stored);
}

/// Any-Precision LLM's way: random documents, each at most once, and of each that is long enough
/// the first tokens.
/// @return false if there were too few; `out` then has what there was
inline bool draw_documents(const calibration_text& text, const tokenizer& words,
                           const calibration_options& o, calibration& out) {
  out = {0, o.seq_len, {}, "documents"};
  for (random_order order(text.size(), o.random_state);
       out.samples < o.samples && !order.empty();) {
    const std::vector<int> ids = encode(text, order.next(), words, o);
    if (ids.size() < static_cast<std::size_t>(o.seq_len)) continue;
    out.tokens.insert(out.tokens.end(), ids.begin(), ids.begin() + o.seq_len);
    ++out.samples;
  }
  return out.samples == o.samples;
}

/// Cuts all documents, one after another, into windows and takes some of them.
inline calibration draw_windows(const calibration_text& text, const tokenizer& words,
                                const calibration_options& o) {
  const auto size = static_cast<std::size_t>(o.seq_len);
  std::vector<int> all;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::vector<int> ids = encode(text, i, words, o);
    all.insert(all.end(), ids.begin(), ids.end());
  }
  const std::size_t windows = all.size() / size;
  if (windows < static_cast<std::size_t>(o.samples))
    throw_too_few(text.name(), o, windows,
                  "windows of " + std::to_string(all.size()) + " tokens in " +
                      std::to_string(text.size()) + " documents");
  calibration out{o.samples, o.seq_len, {}, "windows"};
  random_order order(windows, o.random_state);
  for (int i = 0; i < o.samples; ++i) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(order.next() * size);
    out.tokens.insert(out.tokens.end(), begin, begin + o.seq_len);
  }
  return out;
}

/// Rows of integers in a file: where they are, how many, and how wide each integer is.
struct token_rows {
  const std::byte* data = nullptr;
  std::uint64_t rows = 0;
  bool wide = false;  ///< 64 bits, not 32
};

inline token_rows find_token_rows(const bitladder::safetensors_file& file,
                                  const calibration_options& o) {
  const auto expected =
      "expected one tensor of I32 or I64 [samples, " + std::to_string(o.seq_len) + "], found ";
  if (file.tensors().size() != 1)
    throw bitladder::error(
        bitladder::status::bad_file,
        file.path() + ": " + expected + std::to_string(file.tensors().size()) + " tensors");
  const bitladder::tensor_info& t = file.tensors()[0];
  const bool wide = t.type == bitladder::dtype::i64;
  if ((!wide && t.type != bitladder::dtype::i32) || t.shape.size() != 2 || t.shape[1] != o.seq_len)
    throw bitladder::error(bitladder::status::bad_file,
                           file.path() + ": tensor \"" + t.name + "\": " + expected +
                               bitladder::to_string(t.type) + " " + bitladder::to_string(t.shape));
  return {file.bytes(t).data(), static_cast<std::uint64_t>(t.shape[0]), wide};
}

inline token_rows find_token_rows(const bitladder::mapped_file& file,
                                  const std::filesystem::path& path, const calibration_options& o) {
  const std::uint64_t row = static_cast<std::uint64_t>(o.seq_len) * sizeof(std::int32_t);
  if (file.size() == 0 || file.size() % row != 0)
    throw bitladder::error(bitladder::status::bad_file,
                           path.string() + ": expected 32-bit tokens in samples of " +
                               std::to_string(o.seq_len) + ", " + std::to_string(row) +
                               " bytes each, found " + std::to_string(file.size()) + " bytes");
  return {file.data(), file.size() / row, false};
}

/// The first samples, as they are.
inline calibration take_rows(const token_rows& from, const std::filesystem::path& path,
                             const calibration_options& o) {
  if (from.rows < static_cast<std::uint64_t>(o.samples))
    throw_too_few(path.string(), o, from.rows, "the file has no more");
  calibration out{o.samples, o.seq_len, {}, "tokens"};
  out.tokens.resize(static_cast<std::size_t>(o.samples) * static_cast<std::size_t>(o.seq_len));
  for (std::size_t i = 0; i < out.tokens.size(); ++i) {
    std::int64_t id = 0;
    if (from.wide) {
      std::memcpy(&id, from.data + i * sizeof id, sizeof id);
    } else {
      std::int32_t narrow;
      std::memcpy(&narrow, from.data + i * sizeof narrow, sizeof narrow);
      id = narrow;
    }
    // Ids that are no int become one that no vocabulary has.
    out.tokens[i] = id < 0 || id > std::numeric_limits<int>::max() ? -1 : static_cast<int>(id);
  }
  return out;
}

}  // namespace detail

/// Samples from texts, for which `words` is needed, or from one file of tokens (see
/// is_token_file), of which the first samples are taken as they are.
/// @param paths files and folders of text (see calibration_text), or one file of tokens
/// @param words null if there is no tokenizer
/// @param vocabulary how many ids the model has
/// @throws bitladder::error naming the file, what was expected and what was found; of too little
/// text, how many samples it makes
inline calibration read_calibration(const std::vector<std::filesystem::path>& paths,
                                    const tokenizer* words, int vocabulary,
                                    const calibration_options& o) {
  const auto require = [](bool good, const char* what, const char* expected, std::int64_t found) {
    if (!good)
      throw bitladder::error(bitladder::status::invalid_argument,
                             std::string("calibration: ") + what + ": expected " + expected +
                                 ", found " + std::to_string(found));
  };
  require(o.samples >= 1, "samples", "1 or more", o.samples);
  require(o.seq_len >= 2, "tokens of a sample", "2 or more", o.seq_len);
  require(!paths.empty(), "paths", "1 or more", 0);

  calibration out;
  std::string name = paths[0].string();
  const auto tokens = std::find_if(paths.begin(), paths.end(), is_token_file);
  if (tokens != paths.end()) {
    if (paths.size() != 1)
      throw bitladder::error(bitladder::status::invalid_argument,
                             tokens->string() + ": expected a file of tokens alone, found " +
                                 std::to_string(paths.size()) + " files");
    if (tokens->extension() == ".safetensors") {
      const bitladder::safetensors_file file(*tokens);
      out = detail::take_rows(detail::find_token_rows(file, o), *tokens, o);
    } else {
      const bitladder::mapped_file file(*tokens);
      out = detail::take_rows(detail::find_token_rows(file, *tokens, o), *tokens, o);
    }
  } else {
    const calibration_text text(paths, o.field);
    name = text.name();
    if (words == nullptr)
      throw bitladder::error(bitladder::status::invalid_argument,
                             name + ": expected a file of tokens, for there is no tokenizer");
    const bool enough = text.size() >= static_cast<std::size_t>(o.samples);
    if (o.how == draw::windows || (o.how == draw::automatic && !enough)) {
      out = detail::draw_windows(text, *words, o);
    } else if (!detail::draw_documents(text, *words, o, out)) {
      if (o.how == draw::documents)
        detail::throw_too_few(name, o, static_cast<std::uint64_t>(out.samples),
                              "documents that are long enough, of " + std::to_string(text.size()));
      out = detail::draw_windows(text, *words, o);
    }
  }
  for (std::size_t i = 0; i < out.tokens.size(); ++i)
    if (out.tokens[i] < 0 || out.tokens[i] >= vocabulary) {
      const auto size = static_cast<std::size_t>(o.seq_len);
      throw bitladder::error(bitladder::status::bad_file,
                             name + ": sample " + std::to_string(i / size) + ", token " +
                                 std::to_string(i % size) + ": expected an id from 0 to " +
                                 std::to_string(vocabulary - 1) + ", found " +
                                 (out.tokens[i] < 0 ? std::string("one outside 0 to 2147483647")
                                                    : std::to_string(out.tokens[i])));
    }
  return out;
}

}  // namespace llama
