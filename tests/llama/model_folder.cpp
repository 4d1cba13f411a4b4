// SPDX-License-Identifier: MIT
// Compiled once for all tests that use it: the writers are long to compile.
#include "model_folder.hpp"

#include <bitladder/core/codebook.hpp>
#include <bitladder/core/pack.hpp>
#include <bitladder/io/checkpoint_writer.hpp>
#include <bitladder/io/safetensors_plan.hpp>
#include <bitladder/io/safetensors_set.hpp>
#include <bitladder/io/safetensors_writer.hpp>

#include <support/random.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace support {

stored_model stored_model::read(const std::filesystem::path& folder) {
  stored_model m;
  m.config = support::read_json(folder / "config.json");
  const bitladder::safetensors_set set(folder);
  for (const bitladder::tensor_info& t : set.tensors()) {
    const auto bytes = set.bytes(t);
    m.tensors[t.name] = {t.type, t.shape, {bytes.begin(), bytes.end()}};
  }
  return m;
}

void stored_model::write(const std::filesystem::path& folder) const {
  std::ofstream(folder / "config.json") << config.dump(2);
  bitladder::safetensors_plan plan;
  for (const auto& [name, t] : tensors) plan.add(name, t.type, t.shape);
  auto file = bitladder::safetensors_writer::create(folder / "model.safetensors", plan);
  for (const auto& [name, t] : tensors) file.write(name, t.bytes.data(), t.bytes.size());
  file.commit();
}

std::map<int, stored_model> write_quantized(const stored_model& m,
                                            const std::filesystem::path& folder, int min_bits,
                                            int max_bits, int groups, std::uint64_t seed) {
  support::random random(seed);
  std::map<int, stored_model> dense;
  for (int b = min_bits; b <= max_bits; ++b) dense[b] = m;
  bitladder::checkpoint_plan plan;
  plan.seed_bits = plan.min_bits = min_bits;
  plan.max_bits = max_bits;
  plan.groups = groups;
  for (const auto& [name, t] : m.tensors) {
    if (linear_name(name).empty())
      plan.tensors.push_back({name, t.type, t.shape});
    else
      plan.linears.push_back(
          {linear_name(name), static_cast<int>(t.shape[0]), static_cast<int>(t.shape[1])});
  }
  bitladder::checkpoint_writer writer(folder, plan, "test");
  for (const auto& t : plan.tensors) {
    const stored_tensor& from = m.tensors.at(t.name);
    writer.write_tensor(t.name, from.bytes.data(), from.bytes.size());
  }
  for (const auto& l : plan.linears) {
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(l.rows * l.cols));
    for (std::uint8_t& c : codes) c = static_cast<std::uint8_t>(random.below(1 << max_bits));
    bitladder::codebook_ladder tables(l.rows, groups, min_bits, max_bits);
    for (int b = min_bits; b <= max_bits; ++b) {
      const std::size_t entries = std::size_t{1} << b;
      std::vector<float> table(entries), weights(codes.size());
      for (std::size_t i = 0; i < static_cast<std::size_t>(l.rows * groups); ++i) {
        for (float& v : table) v = static_cast<float>(0.2 * random.normal());
        std::sort(table.begin(), table.end());
        for (std::size_t e = 0; e < entries; ++e)
          tables.data(b)[i * entries + e] = bitladder::to_fp16(table[e]);
      }
      for (int r = 0; r < l.rows; ++r)
        for (int c = 0; c < l.cols; ++c) {
          const std::size_t i = static_cast<std::size_t>(r * l.cols + c);
          weights[i] = bitladder::to_float(
              tables[b].table(r, c / (l.cols / groups))[codes[i] >> (max_bits - b)]);
        }
      dense[b].tensors[l.name + ".weight"] = stored_tensor::floats({l.rows, l.cols}, weights);
    }
    writer.write_linear(l.name, bitladder::pack({codes.data(), l.rows, l.cols}, max_bits).view(),
                        tables);
  }
  writer.finish(m.config.dump());
  return dense;
}

}  // namespace support
