// SPDX-License-Identifier: MIT
// Seed 45. data/anyprec*/ were written by PyTorch in the published layout (make_torch_golden.py);
// run with --check, that script also has this program read and write wide checkpoints.
#include <bitladder/core/pack.hpp>
#include <bitladder/io/anyprec_checkpoint.hpp>
#include <bitladder/io/anyprec_writer.hpp>

#include "io/damage.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

#include <cstdlib>
#include <functional>

namespace bl = bitladder;
namespace fs = std::filesystem;
using bl::anyprec_checkpoint;
using bl::anyprec_container;
using support::error_of;
using support::temporary_folder;
using support::thrown;

namespace {

fs::path golden(int planes) {
  return std::string(BL_TEST_DATA) + "/anyprec" + std::to_string(planes);
}

/// The rules of make_torch_golden.py.
int golden_code(int row, int col, int planes) {
  const std::int64_t k = col;
  return static_cast<int>((k * k + 3 * k + 17 * row) % 251 % (1 << planes));
}
float golden_entry(int row, int bits, int i) {
  return static_cast<float>((i - (1 << (bits - 1))) * (bits + 1)) / 64.f + static_cast<float>(row);
}

/// Every code, table and bias of every linear by those rules.
void require_golden(const anyprec_checkpoint& c) {
  const int planes = c.max_bits();
  for (const bl::linear_info& l : c.linears()) {
    CAPTURE(l.name);
    const bl::bitplane_tensor read = c.planes(l.name);
    REQUIRE(read.layout() == bl::bitplane_layout{l.rows, l.cols, planes});
    int wrong = 0;
    for (int r = 0; r < l.rows; ++r)
      for (int k = 0; k < l.cols; ++k)
        wrong += read.view().code(r, k, planes) != golden_code(r, k, planes);
    CHECK(wrong == 0);
    const bl::codebook_ladder tables = c.tables(l.name);
    REQUIRE(tables.min_bits() == 3);
    REQUIRE(tables.max_bits() == planes);
    for (int b = 3; b <= planes; ++b)
      for (int r = 0; r < l.rows; ++r)
        for (int i = 0; i < 1 << b; ++i)
          wrong += bl::to_float(tables[b].table(r)[i]) != golden_entry(r, b, i);
    CHECK(wrong == 0);
    c.validate(l.name);
    bl::bitplane_tensor top = c.planes(l.name, 2);
    CHECK(std::memcmp(top.data(), read.data(), 4 * top.layout().total_words()) == 0);
  }
}

/// Linears, tensors and config of two checkpoints are the same, byte for byte.
void require_same(const anyprec_checkpoint& a, const anyprec_checkpoint& b) {
  CHECK(bl::parse_json(a.config(), "a") == bl::parse_json(b.config(), "b"));
  REQUIRE(a.linears().size() == b.linears().size());
  for (const bl::linear_info& l : a.linears()) {
    CAPTURE(l.name);
    std::vector<std::string> names = {l.name + ".qweight"};
    for (int p = l.min_bits; p <= l.max_bits; ++p)
      names.push_back(l.name + ".lut" + std::to_string(p));
    for (const std::string& name : names) {
      const auto x = a.bytes(name), y = b.bytes(name);
      REQUIRE(x.size() == y.size());
      CHECK(std::memcmp(x.data(), y.data(), x.size()) == 0);
    }
  }
  REQUIRE(a.plain_tensors().size() == b.plain_tensors().size());
  for (const bl::tensor_info& t : a.plain_tensors()) {
    const auto x = a.bytes(t.name), y = b.bytes(t.name);
    REQUIRE(x.size() == y.size());
    CHECK(std::memcmp(x.data(), y.data(), x.size()) == 0);
  }
}

/// A folder with config.json and pytorch_model.bin of the 3-bit golden, one of them changed.
struct changed_golden {
  temporary_folder folder;
  nlohmann::ordered_json config = bl::read_json<nlohmann::ordered_json>(golden(3) / "config.json");

  /// The error of opening it as it is now.
  thrown error() {
    support::write_all(folder / "config.json", config.dump());
    if (!fs::exists(folder / "pytorch_model.bin"))
      fs::copy(golden(3) / "pytorch_model.bin", folder / "pytorch_model.bin");
    const thrown e = error_of([&] { anyprec_checkpoint c(folder.path()); });
    if (!e.text.empty()) CHECK(e.names(folder.path().string()));
    return e;
  }
  /// Writes tensors of those names, types and shapes, all zero.
  void write(const std::vector<bl::anyprec_plan::tensor>& tensors) {
    bl::torch_plan p;
    for (const auto& t : tensors) p.add(t.name, t.type, t.shape);
    bl::torch_writer w(folder / "pytorch_model.bin", p);
    for (const auto& t : tensors) {
      const std::string zeros(*bl::byte_size(t.type, t.shape), '\0');
      w.write(t.name, zeros.data(), zeros.size());
    }
    w.commit();
  }
};

using tensors = std::vector<bl::anyprec_plan::tensor>;
const std::string up = "model.layers.0.mlp.up";

tensors one_linear() {
  return {{up + ".qweight", bl::dtype::i32, {3, 5, 2}, ""},
          {up + ".lut3", bl::dtype::f16, {5, 8}, ""}};
}

}  // namespace

TEST_CASE("checkpoints of PyTorch in the published layout read back to exactly their codes") {
  for (int planes : {3, 4, 8}) {
    CAPTURE(planes);
    CHECK(anyprec_checkpoint::is_anyprec(golden(planes)));
    const anyprec_checkpoint c(golden(planes));
    CHECK(c.min_bits() == 3);
    CHECK(c.max_bits() == planes);
    REQUIRE(c.linears().size() == 3);
    CHECK(c.linear("model.layers.0.self_attn.q_proj").cols == 32);
    CHECK(c.linear("model.layers.0.mlp.up").cols == 96);
    CHECK(c.linear("model.layers.0.mlp.down").cols == 1056);
    require_golden(c);
    std::vector<std::string> plain;
    for (const bl::tensor_info& t : c.plain_tensors()) plain.push_back(t.name);
    CHECK(plain == std::vector<std::string>{
                       "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.bias",
                       "model.layers.0.mlp.up.bias", "model.layers.0.mlp.down.bias",
                       "model.norm.weight", "lm_head.weight"});
    CHECK(c.bytes("lm_head.weight").data() == c.bytes("model.embed_tokens.weight").data());
    CHECK(error_of([&] { c.planes("model.layers.0.mlp.gate"); }).code == bl::status::not_found);
    CHECK(error_of([&] { c.planes(up, planes + 1); }).code == bl::status::not_found);
  }
  CHECK_FALSE(anyprec_checkpoint::is_anyprec(BL_TEST_DATA));
}

TEST_CASE("both containers are written and read back bit for bit, ties kept where they can be") {
  for (int planes : {3, 4, 8}) {
    CAPTURE(planes);
    temporary_folder folder;
    const anyprec_checkpoint source(golden(planes));
    bl::copy_anyprec(source, folder / "torch", anyprec_container::torch);
    bl::copy_anyprec(source, folder / "safe", anyprec_container::safetensors);
    const anyprec_checkpoint torch(folder / "torch"), safe(folder / "safe");
    require_same(source, torch);
    require_same(source, safe);
    require_golden(torch);
    require_golden(safe);
    CHECK(torch.bytes("lm_head.weight").data() == torch.bytes("model.embed_tokens.weight").data());
    CHECK(support::read_folder(folder / "torch").size() == 2);
    CHECK(support::read_folder(folder / "safe").size() == 2);
    // Once more from each: nothing is lost or moved on the way.
    bl::copy_anyprec(safe, folder / "torch2", anyprec_container::torch);
    bl::copy_anyprec(torch, folder / "safe2", anyprec_container::safetensors);
    require_same(source, anyprec_checkpoint(folder / "torch2"));
    CHECK(support::read_folder(folder / "safe2") == support::read_folder(folder / "safe"));
  }
}

TEST_CASE("words made by moving bytes, as the published packer does, are read and written") {
  for (int cols : {32, 96, 1056, 4096, 11008}) {
    for (int planes : {3, 4, 8}) {
      CAPTURE(cols);
      CAPTURE(planes);
      constexpr int rows = 3;
      const std::size_t row_bytes = static_cast<std::size_t>(cols) / 8;
      // First column of eight in the top bit; byte j of a block of 4T bytes to slot
      // 4 (j mod T) + ((j div T) xor 3).
      std::string words;
      for (int p = 0; p < planes; ++p)
        for (int r = 0; r < rows; ++r) {
          std::string row(row_bytes, '\0');
          for (std::size_t begin = 0; begin < row_bytes; begin += 128) {
            const std::size_t size = std::min<std::size_t>(128, row_bytes - begin) / 4;
            for (std::size_t j = 0; j < 4 * size; ++j) {
              int byte = 0;
              for (int i = 0; i < 8; ++i)
                byte = 2 * byte + (golden_code(r, static_cast<int>(8 * (begin + j)) + i, planes) >>
                                       (planes - 1 - p) &
                                   1);
              row[begin + 4 * (j % size) + (j / size ^ 3u)] = static_cast<char>(byte);
            }
          }
          words += row;
        }
      temporary_folder folder;
      fs::create_directories(folder / "made");
      nlohmann::ordered_json config =
          bl::read_json<nlohmann::ordered_json>(golden(planes) / "config.json");
      config["anyprec"]["arch_config"]["module_names"] = {"mlp.up"};
      support::write_all(folder / "made" / "config.json", config.dump());
      bl::torch_plan plan;
      plan.add(up + ".qweight", bl::dtype::i32, {planes, rows, cols / 32});
      for (int b = 3; b <= planes; ++b)
        plan.add(up + ".lut" + std::to_string(b), bl::dtype::f16, {rows, 1 << b});
      bl::torch_writer writer(folder / "made" / "pytorch_model.bin", plan);
      writer.write(up + ".qweight", words.data(), words.size());
      for (int b = 3; b <= planes; ++b) {
        std::vector<bl::fp16_t> table;
        for (int r = 0; r < rows; ++r)
          for (int i = 0; i < 1 << b; ++i) table.push_back(bl::to_fp16(golden_entry(r, b, i)));
        writer.write(up + ".lut" + std::to_string(b), table.data(), 2 * table.size());
      }
      writer.commit();
      const anyprec_checkpoint made(folder / "made");
      require_golden(made);
      for (anyprec_container kind : {anyprec_container::torch, anyprec_container::safetensors}) {
        const fs::path copy = folder / ("copy" + std::to_string(static_cast<int>(kind)));
        bl::copy_anyprec(made, copy, kind);
        const anyprec_checkpoint again(copy);
        const auto bytes = again.bytes(up + ".qweight");
        REQUIRE(bytes.size() == words.size());
        CHECK(std::memcmp(bytes.data(), words.data(), words.size()) == 0);
        require_same(made, again);
      }
    }
  }
}

TEST_CASE("a quantized matrix of ours becomes such a checkpoint") {
  support::random random(45);
  const int rows = 7, cols = 1152, planes = 5;
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * cols));
  for (std::uint8_t& c : codes) c = static_cast<std::uint8_t>(random.below(1 << planes));
  const bl::bitplane_tensor packed =
      bl::pack(bl::matrix_view<const std::uint8_t>(codes.data(), rows, cols), planes);
  bl::codebook_ladder tables(rows, 1, 2, planes);
  for (int b = 2; b <= planes; ++b)
    for (std::size_t i = 0; i < tables[b].size(); ++i)
      tables.data(b)[i] = {static_cast<std::uint16_t>(random.next())};
  bl::anyprec_plan plan;
  plan.min_bits = 2;
  plan.max_bits = planes;
  plan.linears = {{"model.decoder.layers.11.fc1", rows, cols}};
  for (anyprec_container kind : {anyprec_container::torch, anyprec_container::safetensors}) {
    temporary_folder folder;
    bl::anyprec_writer writer(folder / "out", plan, kind);
    CHECK(error_of([&] {
            writer.write_linear("x", packed.view(), tables);
          }).names("no linear \"x\" is planned"));
    CHECK(error_of([&] {
            writer.write_linear(plan.linears[0].name, packed.view().top(4), tables);
          }).names("expected 7 x 1152 in 5 planes"));
    writer.write_linear(plan.linears[0].name, packed.view(), tables);
    CHECK(error_of([&] { writer.finish("[]"); }).names("expected an object"));
    writer.finish(R"({"model_type": "opt"})");
    const anyprec_checkpoint c(folder / "out");
    const bl::bitplane_tensor again = c.planes(plan.linears[0].name);
    CHECK(std::memcmp(again.data(), packed.data(), 4 * packed.layout().total_words()) == 0);
    for (int b = 2; b <= planes; ++b)
      CHECK(std::memcmp(c.tables(plan.linears[0].name)[b].data(), tables[b].data(),
                        2 * tables[b].size()) == 0);
    const nlohmann::json config = bl::parse_json(c.config(), "config");
    CHECK(config["model_type"] == "opt");
    CHECK(config["anyprec"]["arch_config"]["model_name"] == "model.decoder");
    CHECK(config["anyprec"]["arch_config"]["layers_name"] == "layers");
    CHECK(config["anyprec"]["arch_config"]["module_names"][0] == "fc1");
  }
}

TEST_CASE("plans that make no such checkpoint are refused, and leave nothing behind") {
  temporary_folder folder;
  const auto error = [&](bl::anyprec_plan plan) {
    const thrown e =
        error_of([&] { bl::anyprec_writer w(folder / "out", plan, anyprec_container::torch); });
    CHECK(e.code == bl::status::invalid_argument);
    return e;
  };
  bl::anyprec_plan plan;
  plan.linears = {{up, 2, 33}};
  CHECK(error(plan).names("columns in multiples of 32, found 2 x 33"));
  for (const char* name : {"up", "model.layers.up", "layers.0.up", "model.layers.0", "0.up"}) {
    plan.linears = {{name, 2, 32}};
    CHECK(error(plan).names("linear \"" + std::string(name) + "\": expected"));
  }
  plan.linears = {{up, 2, 32}, {"model.blocks.0.up", 2, 32}};
  CHECK(error(plan).names("expected the layers of all linears in \"model.layers\""));
  plan.linears = {{up, 2, 32}, {up, 2, 32}};
  CHECK(error(plan).names("added twice"));
  plan.linears = {{up, 2, 32}};
  plan.max_bits = 9;
  CHECK(error(plan).names("1 <= min_bits <= max_bits <= 8"));
  CHECK(support::read_folder(folder.path()).empty());

  plan.max_bits = 3;
  for (anyprec_container kind : {anyprec_container::torch, anyprec_container::safetensors}) {
    bl::anyprec_writer writer(folder / "out", plan, kind);
    CHECK(error_of([&] { writer.finish("{}"); }).names("bytes written before the commit"));
  }
  CHECK(support::read_folder(folder / "out").empty());
  CHECK(error_of([&] {
          bl::anyprec_writer w(golden(3), plan, anyprec_container::torch);
        }).names("config.json: is there already"));
}

TEST_CASE("configs that say no Any-Precision or nonsense are refused") {
  const auto error = [](const std::function<void(nlohmann::ordered_json&)>& change) {
    changed_golden g;
    change(g.config);
    const thrown e = g.error();
    CHECK(e.code == bl::status::bad_file);
    return e;
  };
  using json = nlohmann::ordered_json;
  CHECK(error([](json& c) { c.erase("anyprec"); }).names("expected an object \"anyprec\""));
  CHECK(error([](json& c) { c["anyprec"] = 3; }).names("expected an object \"anyprec\""));
  CHECK(error([](json& c) { c = {1}; }).names("expected an object \"anyprec\""));
  CHECK(
      error([](json& c) { c["anyprec"].erase("seed_precision"); }).names("no \"seed_precision\""));
  for (const json& v : {json(0), json(9), json(-3), json("3"), json(3.5)})
    CHECK(error([&](json& c) {
            c["anyprec"]["parent_precision"] = v;
          }).names("\"parent_precision\": expected a whole number from 1 to 8"));
  CHECK(error([](json& c) { c["anyprec"]["seed_precision"] = 4; }).names("from 1 to 3, found 4"));
  CHECK(error([](json& c) { c["anyprec"]["group_count"] = 2; }).names("from 1 to 1, found 2"));
  CHECK(error([](json& c) { c["anyprec"].erase("arch_config"); }).names("arch_config"));
  CHECK(error([](json& c) { c["anyprec"]["arch_config"]["model_name"] = 1; }).names("model_name"));
  CHECK(error([](json& c) {
          c["anyprec"]["arch_config"]["module_names"] = "x";
        }).names("module_names"));
  CHECK(error([](json& c) {
          c["anyprec"]["arch_config"]["module_names"] = {"mlp.up"};
        }).names("is not \"model.layers.LAYER.MODULE\""));
  CHECK(error([](json& c) {
          c["anyprec"]["arch_config"]["layers_name"] = "h";
        }).names("is not \"model.h.LAYER.MODULE\""));
  CHECK(error([](json& c) {
          c["anyprec"]["arch_config"]["module_names"].push_back("mlp.gate");
        }).names("no tensor \"model.layers.0.mlp.gate.qweight\""));
  CHECK(error([](json& c) { c["num_hidden_layers"] = 2; }).names("expected 2 quantized layers"));
  CHECK(error([](json& c) {
          c["anyprec"]["parent_precision"] = 4;
        }).names("expected I32 [4, 3, 1], found I32 [3, 3, 1]"));
}

TEST_CASE("folders without the files are refused") {
  temporary_folder folder;
  CHECK(error_of([&] { anyprec_checkpoint c(folder.path()); }).code == bl::status::not_found);
  fs::copy(golden(3) / "config.json", folder / "config.json");
  CHECK(error_of([&] {
          anyprec_checkpoint c(folder.path());
        }).names("expected model.safetensors or pytorch_model.bin"));
}

TEST_CASE("lies about a linear are found and name the tensor") {
  using bl::dtype;
  const auto error = [](const std::function<void(tensors&)>& change) {
    tensors t = one_linear();
    change(t);
    changed_golden g;
    g.config["anyprec"]["arch_config"]["module_names"] = {"mlp.up"};
    g.write(t);
    return g.error();
  };
  CHECK(error([](tensors&) {}).text.empty());
  CHECK(error([](tensors& t) { t[0].shape = {3, 10}; }).names("expected [planes, rows, words]"));
  CHECK(error([](tensors& t) {
          t[0].shape = {2, 5, 2};
        }).names("tensor \"" + up + ".qweight\": expected I32 [3, 5, 2], found I32 [2, 5, 2]"));
  CHECK(error([](tensors& t) { t[0].type = dtype::f32; }).names("found F32 [3, 5, 2]"));
  CHECK(error([](tensors& t) {
          t[0].shape = {3, 0, std::int64_t{1} << 40};
        }).names("expected [planes, rows, words]"));
  CHECK(error([](tensors& t) {
          t[1].shape = {4, 8};
        }).names("tensor \"" + up + ".lut3\": expected F16 [5, 8], found F16 [4, 8]"));
  CHECK(error([](tensors& t) { t[1].type = dtype::bf16; }).names("found BF16 [5, 8]"));
  const thrown missing = error([](tensors& t) { t.pop_back(); });
  CHECK(missing.code == bl::status::not_found);
  CHECK(missing.names("no tensor \"" + up + ".lut3\""));
  CHECK(error([](tensors& t) {
          t.push_back({up + ".weight", dtype::f16, {5, 64}, ""});
        }).names("linear \"" + up + "\" is there twice"));
  CHECK(error([](tensors& t) {
          t.push_back({"a.qweight", dtype::i32, {3, 5, 2}, ""});
        }).names("quantized linear \"a\" is not \"model.layers.LAYER.MODULE\""));
  CHECK(error([](tensors& t) {
          t.push_back({"model.layers.9999999.mlp.up.qweight", dtype::i32, {3, 5, 2}, ""});
        }).names("is not \"model.layers.LAYER.MODULE\""));
  CHECK(error([](tensors& t) { t.clear(); }).names("expected 1 quantized layers"));
}

TEST_CASE("tables that are not finite and ascending are read as they are, and fail validation") {
  changed_golden g;
  g.config["anyprec"]["arch_config"]["module_names"] = {"mlp.up"};
  g.write(one_linear());
  CHECK(g.error().text.empty());
  std::string bytes = support::read_all(g.folder / "pytorch_model.bin");
  const bl::torch_file file(g.folder / "pytorch_model.bin");
  bytes[static_cast<std::size_t>(file.at(up + ".lut3").begin) + 5] = '\x7c';
  support::write_all(g.folder / "pytorch_model.bin", bytes);
  const anyprec_checkpoint c(g.folder.path());
  CHECK(c.tables(up)[3].table(0)[2].bits == 0x7c00);
  CHECK(error_of([&] { c.validate(up); }).names(up + ".lut3\": row 0, group 0, entry 2"));
}

TEST_CASE("checkpoints in the folder that BL_ANYPREC_FOLDER names read, and are written again") {
  const char* folder = std::getenv("BL_ANYPREC_FOLDER");
  if (folder == nullptr) return;
  int read = 0;
  std::vector<fs::path> sources;
  for (const auto& entry : fs::directory_iterator(folder)) sources.push_back(entry.path());
  for (const fs::path& path : sources) {
    CAPTURE(path.string());
    const anyprec_checkpoint c(path);
    require_golden(c);
    bl::copy_anyprec(c, path.string() + ".torch", anyprec_container::torch);
    bl::copy_anyprec(c, path.string() + ".safetensors", anyprec_container::safetensors);
    require_same(c, anyprec_checkpoint(path.string() + ".torch"));
    require_same(c, anyprec_checkpoint(path.string() + ".safetensors"));
    ++read;
  }
  CHECK(read > 0);
}

TEST_CASE("checkpoints damaged anywhere never crash the reader") {
  support::random random(45);
  temporary_folder folder;
  bl::copy_anyprec(anyprec_checkpoint(golden(3)), folder / "safe", anyprec_container::safetensors);
  int opened = 0, refused = 0;
  const auto try_open = [&](const fs::path& path) {
    try {
      const anyprec_checkpoint c(path);
      for (const bl::linear_info& l : c.linears()) {
        REQUIRE(c.planes(l.name).layout() == l.layout());
        REQUIRE(c.tables(l.name).rows() == l.rows);
      }
      for (const bl::tensor_info& t : c.plain_tensors())
        if (!error_of([&] { static_cast<void>(c.bytes(t.name)); }).names("without gaps"))
          REQUIRE(c.bytes(t.name).size() == t.bytes());
      ++opened;
    } catch (const bl::error& e) {
      REQUIRE(std::string(e.what()).find(path.string()) == 0);
      ++refused;
    }
  };
  for (const auto& [source, file] :
       {std::pair<fs::path, std::string>{golden(3), "pytorch_model.bin"},
        {golden(3), "config.json"},
        {folder / "safe", "model.safetensors"}}) {
    const fs::path copy = folder / "copy";
    fs::remove_all(copy);
    fs::copy(source, copy);
    try_open(copy);
    REQUIRE(opened > 0);
    const std::string good = support::read_all(source / file);
    for (int i = 0; i < 1500; ++i) {
      std::string bytes = good;
      support::damage(bytes, random, std::string("\0\1\2\xff(t{}\",0123456789", 20));
      support::write_all(copy / file, bytes);
      try_open(copy);
    }
  }
  CHECK(opened > 100);
  CHECK(refused > 1500);
}
