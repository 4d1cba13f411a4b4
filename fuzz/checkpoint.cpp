// SPDX-License-Identifier: MIT
// The header of a checkpoint of our own under libFuzzer. An input is the safetensors header as
// text, a zero byte, and the tensors' bytes, which are repeated or cut to what the header promises,
// so that the fuzzer need not keep sizes right. Start from fuzz/corpus/checkpoint.
#include <bitladder/io/checkpoint.hpp>
#include <bitladder/io/json.hpp>

#include "input.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace bl = bitladder;

namespace {

/// Where the last tensor ends, as far as the header says it in plain numbers; at most 64 KiB.
std::size_t promised(std::string_view header) {
  std::uint64_t end = 0;
  fuzz::attempt([&] {
    const nlohmann::json json = bl::parse_json(header, "header");
    if (!json.is_object()) return;
    for (const auto& [name, tensor] : json.items()) {
      if (!tensor.is_object() || !tensor.contains("data_offsets")) continue;
      const nlohmann::json& offsets = tensor["data_offsets"];
      if (offsets.is_array() && offsets.size() == 2 && offsets[1].is_number_unsigned())
        end = std::max(end, offsets[1].template get<std::uint64_t>());
    }
  });
  return static_cast<std::size_t>(std::min<std::uint64_t>(end, 1 << 16));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input = fuzz::text_of(data, size);
  const std::string_view header = input.substr(0, input.find('\0'));
  const std::string_view values = input.substr(std::min(input.size(), header.size() + 1));
  std::string file;
  for (int byte = 0; byte < 8; ++byte)
    file += static_cast<char>(static_cast<std::uint64_t>(header.size()) >> 8 * byte & 0xFF);
  file += header;
  const std::size_t all = file.size() + promised(header);
  if (values.empty()) file.resize(all);
  while (file.size() < all) file += values.substr(0, all - file.size());
  const fuzz::memory_file bytes(file);
  fuzz::attempt([&] {
    const bl::checkpoint c(bytes.path());
    for (const bl::linear_info& l : c.linears()) {
      unsigned sum = 0;
      const bl::bitplane_view planes = c.planes(l.name);
      for (int p = 0; p < planes.planes(); ++p)
        for (int r = 0; r < planes.rows(); ++r)
          for (int w = 0; w < planes.layout().words(); ++w) sum += planes.row(p, r)[w];
      for (const int bits : c.precisions()) {
        const bl::codebook_view tables = c.codebook(l.name, bits);
        for (int r = 0; r < tables.rows(); ++r)
          for (int g = 0; g < tables.groups(); ++g)
            sum += tables.table(r, g)[tables.entries() - 1].bits;
      }
      static_cast<void>(sum);
      fuzz::attempt([&] { static_cast<void>(c.outliers(l.name).count()); });
      fuzz::attempt([&] { c.validate(l.name); });
    }
    static_cast<void>(c.plain_tensors());
    for (const int bits : c.precisions()) c.prefetch(bits);
  });
  return 0;
}
