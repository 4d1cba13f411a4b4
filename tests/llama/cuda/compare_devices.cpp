// SPDX-License-Identifier: MIT
// How far a card's logits are from the CPU's on a model that the tests do not hold, by hand.
//
// usage: compare_devices MODEL TEXT [TOKENS]
//
// MODEL is anything that the tool runs, TEXT a file. Reads all but the last 16 tokens at once and
// those one by one, at every precision. Prints a line for each: the largest difference relative to
// its row's largest logit, that of all rows in the Euclidean norm, and how many rows have the same
// likeliest token. Exits with 1 if a largest difference is above 2e-3.
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/status.hpp>

#include <llama/backend_cpu.hpp>
#include <llama/cuda_engine.hpp>
#include <llama/forward.hpp>
#include <llama/model.hpp>
#include <llama/tokenizer.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int steps = 16;

template <class Session>
std::vector<std::vector<float>> all_rows(Session& s, const std::vector<int>& tokens, int bits) {
  std::vector<std::vector<float>> rows;
  const int prompt = static_cast<int>(tokens.size()) - steps;
  s.truncate(0);
  const auto take = [&](int count) {
    const auto l = s.logits(0, count);
    for (int r = 0; r < count; ++r) rows.emplace_back(l.row(r), l.row(r) + l.cols());
  };
  s.forward({tokens.data(), static_cast<std::size_t>(prompt)}, bits);
  take(prompt);
  for (std::size_t i = static_cast<std::size_t>(prompt); i < tokens.size(); ++i) {
    s.forward({&tokens[i], 1}, bits);
    take(1);
  }
  return rows;
}

int run(const std::string& path, const std::string& text_path, int count) {
  std::ifstream file(text_path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const llama::model m(path);
  std::vector<int> tokens = llama::tokenizer::of_model(path).encode(text);
  if (count <= steps || tokens.size() < static_cast<std::size_t>(count))
    throw std::runtime_error(text_path + ": expected " +
                             std::to_string(std::max(count, steps + 1)) + " tokens, found " +
                             std::to_string(tokens.size()));
  tokens.resize(static_cast<std::size_t>(count));
  bitladder::thread_pool pool;
  llama::cpu_backend cpu(m, &pool);
  llama::session<llama::cpu_backend> expected(cpu, count);
  llama::card_options options;
  options.context = count;
  llama::card_engine engine(m, options);
  llama::session<llama::card_engine> found(engine);
  bool near_enough = true;
  for (int bits : engine.precisions()) {
    const auto want = all_rows(expected, tokens, bits), have = all_rows(found, tokens, bits);
    double worst = 0, squares = 0, of = 0;
    int same = 0;
    for (std::size_t r = 0; r < want.size(); ++r) {
      double largest = 0, most = 0;
      for (std::size_t i = 0; i < want[r].size(); ++i) {
        const double x = static_cast<double>(have[r][i]), y = static_cast<double>(want[r][i]);
        largest = std::max(largest, std::fabs(y));
        if (!(std::fabs(x - y) <= most)) most = std::fabs(x - y);  // a NaN has to show
        squares += (x - y) * (x - y);
        of += y * y;
      }
      if (!(most / largest <= worst)) worst = most / largest;
      same += std::max_element(want[r].begin(), want[r].end()) - want[r].begin() ==
              std::max_element(have[r].begin(), have[r].end()) - have[r].begin();
    }
    std::printf("%s%s: %.2e of a row's largest logit, %.2e of all; likeliest token of %d of %d\n",
                bits == llama::unquantized ? "unquantized" : std::to_string(bits).c_str(),
                bits == llama::unquantized ? "" : " bits", worst, std::sqrt(squares / of), same,
                count);
    near_enough = near_enough && worst <= 2e-3;
  }
  return near_enough ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL TEXT [TOKENS]\n", argv[0]);
    return 2;
  }
  try {
    return run(argv[1], argv[2], argc > 3 ? std::atoi(argv[3]) : 128);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 2;
  }
}
