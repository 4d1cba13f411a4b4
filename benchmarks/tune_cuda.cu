// SPDX-License-Identifier: MIT
// Finds, for the card it runs on, up to how many tokens each way to multiply is the fastest, and
// writes that as a header which policy.cuh takes in when it is on the include path.
//
// Every way is timed for every precision and number of tokens on the matrices of a Llama layer (as
// gemm_cuda_bench times it); the two limits, from the kernel for few tokens to the one that
// dequantizes inside, and from there to slabs of dequantized rows for cuBLAS, are those that make
// the sum of the logarithms of all times least. What is printed is the time that the choice built
// into this program takes over the time with those limits.
//
// Run: tune_cuda [--out=bitladder_tuning.hpp] [--min_ms=6] [--bits=2345678]
#include <bitladder/core/status.hpp>
#include <bitladder/cuda/runtime.cuh>

#include "support/cuda_check.cuh"
#include "support/graph_timer.cuh"
#include "support/product.cuh"
#include "support/product_chain.cuh"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using bench::engine;

struct options {
  std::string out = "bitladder_tuning.hpp";
  std::string bits = "2345678";
  double min_ms = 6;
};

struct shape {
  int rows, cols;
};
constexpr shape shapes[] = {{4096, 4096}, {22016, 4096}, {4096, 11008}, {8192, 8192}};
constexpr std::array<int, 13> tokens = {16,  24,  32,  48,  64,   96,  128,
                                        192, 256, 512, 768, 1024, 2048};

constexpr engine ways[] = {engine::small, engine::large, engine::slabs};
constexpr int no_limit = std::numeric_limits<int>::max();

/// Sum of log2(us) over the shapes, at one precision; infinite where a way does not work.
struct row {
  double chosen = 0;
  double way[3] = {0, 0, 0};
};
using measurements = std::array<row, tokens.size()>;

struct limits {
  int small_max_m;   ///< the most tokens for the kernel of small batches
  int cublas_min_m;  ///< the fewest for dequantized slabs and cuBLAS
};

int way_of(const limits& l, int m) { return m <= l.small_max_m ? 0 : m >= l.cublas_min_m ? 2 : 1; }

double cost(const measurements& all, const limits& l) {
  double sum = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) sum += all[i].way[way_of(l, tokens[i])];
  return sum;
}

limits best_limits(const measurements& all) {
  limits best{tokens.back(), no_limit};
  for (std::size_t i = 0; i < tokens.size(); ++i)
    for (std::size_t j = i + 1; j <= tokens.size(); ++j) {
      const limits l{tokens[i], j == tokens.size() ? no_limit : tokens[j]};
      if (cost(all, l) < cost(all, best)) best = l;
    }
  return best;
}

measurements measure(bench::product_chain& products, int bits, const options& o) {
  measurements all{};
  std::printf(
      "%d bits, us by way, sum over %zu shapes\n     m    chosen     small     large     slabs\n",
      bits, std::size(shapes));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    double us[4] = {0, 0, 0, 0};
    for (const shape& s : shapes) {
      const auto time = [&](engine e) {
        try {
          return products.measure(e, {s.rows, s.cols, tokens[i], bits}, {o.min_ms, 3, 20}).us;
        } catch (const bitladder::error&) {  // not for this card or number of tokens
          return std::numeric_limits<double>::infinity();
        }
      };
      const double chosen = time(engine::chosen);
      us[0] += chosen;
      all[i].chosen += std::log2(chosen);
      for (int w = 0; w < 3; ++w) {
        // Many launches of the small kernel cannot win; they would take most of the time here.
        const bool hopeless = ways[w] == engine::small && tokens[i] > 256;
        const double t = hopeless ? std::numeric_limits<double>::infinity() : time(ways[w]);
        us[w + 1] += t;
        all[i].way[w] += std::log2(t);
      }
    }
    std::printf("%6d %9.1f %9.1f %9.1f %9.1f\n", tokens[i], us[0], us[1], us[2], us[3]);
  }
  return all;
}

void write_header(const options& o, const std::array<limits, 9>& found, const std::string& card) {
  std::ofstream out(o.out);
  out << "// Made by tune_cuda on " << card << ". Put it on the include path of every file that\n"
      << "// includes bitladder's CUDA headers; policy.cuh says what the numbers mean.\n"
      << "#pragma once\n\n"
      << "namespace bitladder_tuning {\n\n";
  const auto table = [&](const char* name, auto&& value) {
    out << "constexpr int " << name << "[9] = {0";
    for (int bits = 1; bits <= 8; ++bits)
      out << ", " << value(found[static_cast<std::size_t>(bits)]);
    out << "};  // at [bits]\n";
  };
  table("small_max_m", [](const limits& l) { return l.small_max_m; });
  table("cublas_min_m", [](const limits& l) { return l.cublas_min_m; });
  out << "\n}  // namespace bitladder_tuning\n";
  if (!out.flush()) throw std::runtime_error("cannot write " + o.out);
}

options parse(int argc, char** argv) {
  options o;
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    if (a.rfind("--out=", 0) == 0)
      o.out = a.substr(6);
    else if (a.rfind("--min_ms=", 0) == 0)
      o.min_ms = std::atof(a.c_str() + 9);
    else if (a.rfind("--bits=", 0) == 0 && a.find_first_not_of("2345678", 7) == std::string::npos)
      o.bits = a.substr(7);
    else
      throw std::runtime_error("tune_cuda [--out=FILE] [--min_ms=6] [--bits=2345678], not " + a);
  }
  return o;
}

int run(const options& o) {
  bitladder::cuda::device_properties device;
  bench::check(bitladder::cuda::properties(device), "device properties");
  int current = 0;
  cudaDeviceProp names{};
  bench::check(cudaGetDevice(&current), "device");
  bench::check(cudaGetDeviceProperties(&names, current), "device name");

  bench::graph_timer timer;
  bench::product_chain products(timer);
  std::array<limits, 9> found;
  found.fill({16, no_limit});
  double gain = 0;
  int cells = 0;
  for (const char digit : o.bits) {
    const int bits = digit - '0';
    const measurements all = measure(products, bits, o);
    const limits best = best_limits(all);
    found[static_cast<std::size_t>(bits)] = best;
    double chosen = 0;
    for (const row& r : all) chosen += r.chosen;
    const double saved = chosen - cost(all, best);
    const int count = static_cast<int>(tokens.size() * std::size(shapes));
    std::printf("%d bits: small to %d tokens, slabs from %d: %.3f times as fast as built in\n\n",
                bits, best.small_max_m, best.cublas_min_m, std::exp2(saved / count));
    gain += saved;
    cells += count;
  }
  found[1] = found[2];  // one bit is not measured: it reads least and behaves like two
  char card[300];
  std::snprintf(card, sizeof card, "%s (%d multiprocessors)", names.name, device.multiprocessors);
  write_header(o, found, card);
  std::printf("%s: %.3f times as fast as built in, geometric mean of %d products\n", o.out.c_str(),
              std::exp2(gain / std::max(cells, 1)), cells);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
