// SPDX-License-Identifier: MIT
// The tokenizer over a file of lines, for compare_tokenizers.py: encode_lines TOKENIZER IN OUT.
// TOKENIZER is a tokenizer.json, a GGUF file or a folder with one. IN holds lines, each as its
// length (u32, little-endian) and its bytes; OUT gets for each the number of ids, the ids, the
// length of the decoded text and the text. Prints the seconds that encoding took: the best of five
// runs for all lines in turn, and for all of them as one text.
#include <bitladder/core/status.hpp>

#include <llama/tokenizer.hpp>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

namespace {

/// Seconds of the fastest of five calls.
template <class F>
double seconds(F&& call) {
  using clock = std::chrono::steady_clock;
  double best = 1e9;
  for (int run = 0; run < 5; ++run) {
    const clock::time_point start = clock::now();
    call();
    best = std::min(best, std::chrono::duration<double>(clock::now() - start).count());
  }
  return best;
}

void put(std::ofstream& out, std::size_t number) {
  const std::uint32_t n = static_cast<std::uint32_t>(number);
  out.write(reinterpret_cast<const char*>(&n), sizeof n);
}

int run(const char* model, const char* in_path, const char* out_path) {
  const std::filesystem::path path = model;
  const llama::tokenizer t =
      path.extension() == ".json" ? llama::tokenizer::load(path) : llama::tokenizer::of_model(path);
  std::ifstream in(in_path, std::ios::binary);
  const std::string all{std::istreambuf_iterator<char>(in), {}};
  std::vector<std::string_view> lines;
  std::string text;
  for (std::size_t at = 0; at + 4 <= all.size();) {
    std::uint32_t length = 0;
    std::memcpy(&length, all.data() + at, 4);
    lines.push_back(std::string_view(all).substr(at + 4, length));
    text.append(lines.back()).append("\n");
    at += 4 + length;
  }
  std::ofstream out(out_path, std::ios::binary);
  for (const std::string_view line : lines) {
    std::vector<int> ids;
    try {
      ids = t.encode(line);
    } catch (const bitladder::error& e) {
      std::cerr << "line " << &line - lines.data() << ": " << e.what() << "\n";
      ids = {-1};
    }
    put(out, ids.size());
    for (const int id : ids) put(out, static_cast<std::size_t>(id));
    const std::string decoded = t.decode({ids.data(), ids.size()}, false);
    put(out, decoded.size());
    out << decoded;
  }
  std::size_t ids = 0;  // used, so that nothing is left out
  const double by_line = seconds([&] {
    for (const std::string_view line : lines) ids += t.encode(line).size();
  });
  const double at_once = seconds([&] { ids += t.encode(text).size(); });
  std::cout << by_line << " " << at_once << " " << ids << "\n";
  return out.flush() ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::cerr << "usage: encode_lines TOKENIZER IN OUT\n";
    return 2;
  }
  try {
    return run(arguments[1], arguments[2], arguments[3]);
  } catch (const bitladder::error& e) {
    std::cerr << e.what() << "\n";
    return 1;
  }
}
