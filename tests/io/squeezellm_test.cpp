// SPDX-License-Identifier: MIT
// Seed 61. data/squeezellm*/ were written by PyTorch (make_squeezellm_golden.py); run with --check,
// that script also has this program read wide checkpoints.
#include <bitladder/io/squeezellm_checkpoint.hpp>
#include <bitladder/io/torch_writer.hpp>

#include "io/damage.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

#include <cstdlib>
#include <functional>

namespace bl = bitladder;
namespace fs = std::filesystem;
using bl::dtype;
using bl::squeezellm_checkpoint;
using support::error_of;
using support::temporary_folder;
using support::thrown;

namespace {

fs::path golden(int bits) {
  return std::string(BL_TEST_DATA) + "/squeezellm" + std::to_string(bits);
}

/// The rules of make_squeezellm_golden.py.
int golden_code(int row, int col, int bits) {
  const std::int64_t k = col;
  return static_cast<int>((k * k + 3 * k + 17 * row) % 251 % (1 << bits));
}
float golden_entry(int row, int i, int bits) {
  const int m = (5 * i + 3 * row + 1) % (1 << bits);
  return static_cast<float>((123 * (m / 2 - (1 << bits) / 4) + 5000 * row) / 10000.0);
}

/// The place of entry i among the row's, equal ones in their order: counted, not sorted.
int golden_label(int row, int i, int bits) {
  int before = 0;
  for (int j = 0; j < 1 << bits; ++j) {
    const float a = golden_entry(row, j, bits), b = golden_entry(row, i, bits);
    before += a < b || (a == b && j < i);
  }
  return before;
}

/// Every code and table of every linear by those rules.
void require_golden(const squeezellm_checkpoint& c, bl::thread_pool* pool = nullptr) {
  const int bits = c.bits();
  for (const bl::linear_info& l : c.linears()) {
    CAPTURE(l.name);
    const bl::squeezellm_matrix m = c.read(l.name, pool);
    REQUIRE(m.planes.layout() == bl::bitplane_layout{l.rows, l.cols, bits});
    REQUIRE(m.tables.min_bits() == bits);
    REQUIRE(m.tables.max_bits() == bits);
    REQUIRE(m.tables.rows() == l.rows);
    int wrong = 0;
    double largest = 0;
    for (int r = 0; r < l.rows; ++r) {
      std::vector<int> label;
      for (int i = 0; i < 1 << bits; ++i) {
        label.push_back(golden_label(r, i, bits));
        const float stored = golden_entry(r, i, bits);
        const bl::fp16_t kept = m.tables[bits].table(r)[label.back()];
        wrong += kept != bl::to_fp16(stored);
        largest = std::max(largest, std::fabs(bl::to_float(kept) - static_cast<double>(stored)));
      }
      for (int k = 0; k < l.cols; ++k)
        wrong += m.planes.view().code(r, k, bits) !=
                 label[static_cast<std::size_t>(golden_code(r, k, bits))];
    }
    CHECK(wrong == 0);
    CHECK(m.rounding.largest == largest);
    CHECK(c.rounding(l.name).largest == largest);
    CHECK(largest == std::fabs(bl::to_float(bl::to_fp16(m.rounding.stored)) -
                               static_cast<double>(m.rounding.stored)));
    bl::detail::require_sound_tables(m.tables[bits], l.name);
  }
}

/// The 3-bit golden's folder with its file, which may be changed.
struct changed_golden {
  temporary_folder folder;
  struct tensor {
    std::string name;
    dtype type;
    std::vector<std::int64_t> shape;
  };
  std::vector<tensor> tensors = {{"a.qweight", dtype::i32, {6, 5}},
                                 {"a.lookup_table", dtype::f32, {5, 8}},
                                 {"a.bias", dtype::f16, {5}}};
  std::string config = R"({"wbits": 3})";
  float first_entry = 0;

  /// The error of opening a file of those tensors, all zero but for the first table's entry 9, and
  /// reading its linears.
  thrown error() {
    if (!config.empty()) support::write_all(folder / "quant_config.json", config);
    bl::torch_plan p;
    for (const tensor& t : tensors) p.add(t.name, t.type, t.shape);
    fs::remove(folder / "m.pt");
    bl::torch_writer w(folder / "m.pt", p);
    for (const tensor& t : tensors) {
      std::string bytes(*bl::byte_size(t.type, t.shape), '\0');
      if (t.name == "a.lookup_table" && bytes.size() >= 40)
        std::memcpy(bytes.data() + 36, &first_entry, 4);
      w.write(t.name, bytes.data(), bytes.size());
    }
    w.commit();
    const thrown e = error_of([&] {
      const squeezellm_checkpoint c(folder.path());
      for (const bl::linear_info& l : c.linears()) c.read(l.name);
    });
    if (!e.text.empty()) CHECK(e.names(folder.path().string()));
    return e;
  }
};

}  // namespace

TEST_CASE("SqueezeLLM checkpoints of PyTorch read as ascending tables with codes relabelled") {
  bl::thread_pool pool(3);
  for (int bits : {3, 4}) {
    CAPTURE(bits);
    CHECK(squeezellm_checkpoint::is_squeezellm(golden(bits)));
    const squeezellm_checkpoint c(golden(bits)), same(golden(bits) / "model.pt");
    CHECK(c.path() == same.path());
    CHECK(c.bits() == bits);
    REQUIRE(c.linears().size() == 3);
    CHECK(c.linear("model.layers.0.self_attn.q_proj").rows == 5);
    CHECK(c.linear("model.layers.0.self_attn.q_proj").cols == 32);
    CHECK(c.linear("model.layers.0.mlp.down").cols == 160);
    require_golden(c);
    require_golden(c, &pool);
    std::vector<std::string> plain;
    for (const bl::tensor_info& t : c.plain_tensors()) plain.push_back(t.name);
    CHECK(plain == std::vector<std::string>{"model.embed_tokens.weight",
                                            "model.layers.0.self_attn.q_proj.bias",
                                            "model.layers.0.mlp.up.bias",
                                            "model.layers.0.mlp.down.bias", "model.norm.weight"});
    CHECK(c.bytes("model.norm.weight").size() == 8);
    CHECK(error_of([&] { c.read("model.layers.0.mlp.gate"); }).code == bl::status::not_found);
    CHECK(error_of([&] { c.read("model.norm"); }).code == bl::status::not_found);
  }
  CHECK_FALSE(squeezellm_checkpoint::is_squeezellm(BL_TEST_DATA));
}

TEST_CASE("streams of every precision become planes, whatever the rows, threads and address") {
  support::random random(61);
  bl::thread_pool pool(3);
  for (int bits = 1; bits <= 8; ++bits) {
    for (int rows : {1, 31, 33, 70}) {
      for (int cols : {32, 96, 1056}) {
        CAPTURE(bits);
        CAPTURE(rows);
        CAPTURE(cols);
        // One bit at a time: bit t of a row's stream is bit t % 32 of word t / 32 of its column.
        const std::size_t row_words = static_cast<std::size_t>(cols / 32 * bits);
        std::vector<std::uint32_t> words(row_words * static_cast<std::size_t>(rows));
        std::vector<std::uint8_t> labels(static_cast<std::size_t>(rows) << bits);
        for (std::uint8_t& l : labels) l = static_cast<std::uint8_t>(random.below(1 << bits));
        bl::bitplane_tensor expected(bl::bitplane_layout{rows, cols, bits});
        for (int r = 0; r < rows; ++r)
          for (int k = 0; k < cols; ++k) {
            const int code = random.below(1 << bits);
            for (int b = 0; b < bits; ++b) {
              const int t = k * bits + b;
              words[static_cast<std::size_t>(t / 32 * rows + r)] |=
                  static_cast<std::uint32_t>(code >> b & 1) << (t % 32);
            }
            const int label = labels[static_cast<std::size_t>((r << bits) + code)];
            for (int p = 0; p < bits; ++p)
              expected.data()[expected.layout().word(p, r, k / 32)] |=
                  static_cast<std::uint32_t>(label >> (bits - 1 - p) & 1) << (k % 32);
          }
        const std::size_t shift = static_cast<std::size_t>(random.below(4));
        std::vector<std::byte> bytes(4 * words.size() + shift);
        std::memcpy(bytes.data() + shift, words.data(), 4 * words.size());
        for (bl::thread_pool* threads : {static_cast<bl::thread_pool*>(nullptr), &pool}) {
          const bl::bitplane_tensor read = bl::planes_from_squeezellm(
              bytes.data() + shift, {rows, cols, bits}, labels.data(), threads);
          REQUIRE(std::memcmp(read.data(), expected.data(), 4 * expected.layout().total_words()) ==
                  0);
        }
      }
    }
  }
  const std::byte none{};
  const std::uint8_t label[5 << 3] = {};
  CHECK(error_of([&] {
          bl::planes_from_squeezellm(&none, {0, 33, 3}, label);
        }).names("multiples of 32, found 33"));
  CHECK(bl::planes_from_squeezellm(&none, {5, 0, 3}, label).layout().rows == 5);
}

TEST_CASE("the precision is that of the tables where quant_config.json is missing") {
  temporary_folder folder;
  fs::copy(golden(4) / "model.pt", folder / "some.pt");
  CHECK_FALSE(squeezellm_checkpoint::is_squeezellm(folder.path()));
  const squeezellm_checkpoint c(folder / "some.pt");
  CHECK(c.bits() == 4);
  require_golden(c);
}

TEST_CASE("sparse parts of PyTorch become outliers: the weights that were taken out") {
  const squeezellm_checkpoint c(fs::path(BL_TEST_DATA "/squeezellm_sparse4"));
  REQUIRE(c.linears().size() == 2);
  CHECK(c.plain_tensors().size() == 4);  // embedding, norm and two biases
  for (const bl::linear_info& l : c.linears()) {
    CAPTURE(l.name);
    const bl::squeezellm_matrix m = c.read(l.name);
    const bl::sparse_view o = m.outliers.view();
    CHECK(o.count() == l.outliers);
    REQUIRE(o.rows() == l.rows);
    REQUIRE(o.cols() == l.cols);
    CHECK(bl::find_code_fault(o, m.planes.view(), 1).code == bl::status::ok);
    int wrong = 0, found = 0;
    for (int r = 0; r < l.rows; ++r) {
      int next = o.begin(r);
      for (int k = 0; k < l.cols; ++k) {
        if ((5 * r + 3 * k + k * k) % 23 != 0) {
          wrong += m.planes.view().code(r, k, 4) != golden_label(r, golden_code(r, k, 4), 4);
          continue;
        }
        const bool there = next < o.end(r) && o.columns()[next] == k;
        wrong +=
            !there || bl::to_float(o.values()[next]) != static_cast<float>(r - k) / 8 + 0.0625f;
        next += there;
        ++found;
      }
    }
    CHECK(wrong == 0);
    CHECK(found == o.count());
    CHECK(found > 5);
  }
}

TEST_CASE("sparse values are told from wherever the file says, in any order of columns") {
  // Two rows of 32 columns at 1 bit; tables {2, -1} and {-3, 0.5}; all codes 0.
  const std::vector<float> tables = {-1, 2, -3, 0.5};  // ascending, as codes count them
  const auto read = [&](std::vector<std::int32_t> rows, std::vector<std::int32_t> cols,
                        std::vector<float> values, bl::bitplane_tensor& planes) {
    return bl::outliers_from_squeezellm(
        {reinterpret_cast<const std::byte*>(rows.data()),
         reinterpret_cast<const std::byte*>(cols.data()),
         reinterpret_cast<const std::byte*>(values.data()), static_cast<std::int64_t>(cols.size())},
        tables, planes, "here");
  };
  bl::bitplane_tensor planes(bl::bitplane_layout{2, 32, 1});
  planes.data()[0] = 0x00000002;  // code 1 at row 0, column 1
  const bl::sparse_matrix m = read({0, 2, 3}, {9, 1, 31}, {5, 7, 2}, planes);
  const bl::sparse_view v = m.view();
  CHECK(v.columns()[0] == 1);
  CHECK(v.columns()[1] == 9);
  CHECK(bl::to_float(v.values()[0]) == 9.f);   // 7 + the entry of code 1
  CHECK(bl::to_float(v.values()[1]) == 4.f);   // 5 + that of code 0
  CHECK(bl::to_float(v.values()[2]) == -1.f);  // 2 - 3
  CHECK(planes.data()[0] == 0);                // -1 is next to zero in row 0
  CHECK(planes.data()[1] == 0x80000000u);      // 0.5 is in row 1

  const auto error = [&](std::vector<std::int32_t> rows, std::vector<std::int32_t> cols,
                         std::vector<float> values) {
    return error_of([&] { read(std::move(rows), std::move(cols), std::move(values), planes); });
  };
  CHECK(error({0, 1, 1}, {5}, {1}).text.empty());
  CHECK(error({1, 1, 1}, {5}, {1}).text == "here: row 0: expected offset 0, found 1");
  CHECK(error({0, 2, 1}, {5}, {1}).names("here: row 0: expected an end from 0 to 1, found 2"));
  CHECK(error({0, 1, 0}, {5}, {1}).names("row 1: expected an end from 1 to 1, found 0"));
  CHECK(error({0, 0, 0}, {5}, {1}).names("expected an end at 1, found 0"));
  CHECK(error({0, 1, 1}, {32}, {1}).names("row 0: expected columns from 0 to 31, found 32"));
  CHECK(error({0, 1, 1}, {-1}, {1}).names("found -1"));
  CHECK(error({0, 2, 2}, {4, 4}, {1, 1}).names("row 0: column 4 is there twice"));
  CHECK(error({0, 0, 1}, {4}, {1e5f}).names("row 1: column 4: expected a weight from -65504"));
  CHECK(error({0, 0, 1}, {4}, {std::nanf("")}).code == bl::status::bad_file);
}

TEST_CASE("lies about sparse parts are found and name the tensor") {
  const auto error = [](const std::vector<changed_golden::tensor>& parts) {
    changed_golden g;
    g.tensors.insert(g.tensors.end(), parts.begin(), parts.end());
    return g.error();
  };
  const changed_golden::tensor rows{"a.rows", dtype::i32, {6}}, cols{"a.cols", dtype::i32, {0}},
      values{"a.vals", dtype::f32, {0}};
  CHECK(error({rows, cols, values}).text.empty());
  CHECK(error({rows, cols, values, {"a.startrows", dtype::i32, {7}}}).text.empty());
  CHECK(error({rows, cols}).names("\"a.vals\""));
  CHECK(error({rows, values}).names("tensor \"a.rows\" has no \"a.cols\" beside it"));
  CHECK(error({cols, values}).names("no tensor \"a.rows\""));
  CHECK(error({{"b.rows", dtype::i32, {6}}}).names("has no \"b.qweight\" beside it"));
  CHECK(error({{"a.startrows", dtype::i32, {6}}}).names("has no \"a.rows\" beside it"));
  CHECK(
      error({{"a.rows", dtype::i32, {5}}, cols, values}).names("expected I32 [6], found I32 [5]"));
  CHECK(error({{"a.rows", dtype::f32, {6}}, cols, values}).names("found F32 [6]"));
  CHECK(error({rows, {"a.cols", dtype::i32, {0, 1}}, values}).names("tensor \"a.cols\""));
  CHECK(error({rows, cols, {"a.vals", dtype::f32, {1}}}).names("expected F32 [0], found F32 [1]"));
  CHECK(error({rows, cols, {"a.vals", dtype::f16, {0}}}).names("found F16 [0]"));
  // All zero: an end of 0 where there is an entry.
  CHECK(error({rows, {"a.cols", dtype::i32, {1}}, {"a.vals", dtype::f32, {1}}})
            .names("sparse part of \"a\": row 4: expected an end at 1, found 0"));
  for (const char* part : {"a.full_rows", "a.full_row_indices"}) {
    const thrown e = error({rows, cols, values, {part, dtype::f32, {6}}});
    CHECK(e.code == bl::status::bad_file);
    CHECK(e.names("tensor \"" + std::string(part) + "\": rows in full precision"));
  }
  CHECK(
      error_of([&] {
        squeezellm_checkpoint c(fs::path(BL_TEST_DATA "/squeezellm_threshold.pt"));
      }).names("squeezellm_threshold.pt: \"sparse_threshold.a\" says that there is a sparse part"));
}

TEST_CASE("a table entry outside the range of fp16 is refused with tensor, row and entry") {
  const auto error = [](float entry) {
    changed_golden g;
    g.first_entry = entry;
    return g.error();
  };
  CHECK(error(65504.f).text.empty());
  CHECK(error(-65504.f).text.empty());
  for (float entry : {65505.f, -1e6f, std::numeric_limits<float>::infinity(),
                      std::numeric_limits<float>::quiet_NaN()}) {
    CAPTURE(entry);
    const thrown e = error(entry);
    CHECK(e.code == bl::status::bad_file);
    CHECK(e.names("tensor \"a.lookup_table\": row 1, entry 1: expected a value from -65504"));
  }
}

TEST_CASE("lies about a SqueezeLLM linear are found and name the tensor") {
  const auto error = [](const std::function<void(changed_golden&)>& change) {
    changed_golden g;
    change(g);
    return g.error();
  };
  CHECK(error([](changed_golden&) {}).text.empty());
  CHECK(error([](changed_golden& g) {
          g.tensors[0].shape = {6, 5, 1};
        }).names("tensor \"a.qweight\": expected I32 [words, rows], found I32 [6, 5, 1]"));
  CHECK(error([](changed_golden& g) { g.tensors[0].type = dtype::f32; }).names("found F32 [6, 5]"));
  CHECK(error([](changed_golden& g) {
          g.tensors[0].shape = {7, 5};
        }).names("tensor \"a.qweight\": expected 3 words for every 32 columns, found [7, 5]"));
  CHECK(error([](changed_golden& g) {
          g.tensors[0].shape = {std::int64_t{1} << 40, 0};
          g.tensors[1].shape = {0, 8};
        }).names("expected 3 words for every 32 columns"));
  CHECK(error([](changed_golden& g) {
          g.tensors[0].shape = {0, std::int64_t{1} << 40};
        }).names("expected I32 [words, rows]"));
  CHECK(error([](changed_golden& g) {
          g.tensors[1].shape = {4, 8};
        }).names("tensor \"a.lookup_table\": expected F32 [5, 8], found F32 [4, 8]"));
  CHECK(error([](changed_golden& g) { g.tensors[1].shape = {5, 16}; }).names("found F32 [5, 16]"));
  CHECK(error([](changed_golden& g) { g.tensors[1].shape = {5, 9}; }).names("found F32 [5, 9]"));
  CHECK(error([](changed_golden& g) { g.tensors[1].shape = {40}; }).names("found F32 [40]"));
  CHECK(error([](changed_golden& g) { g.tensors[1].type = dtype::f16; }).names("found F16 [5, 8]"));
  const thrown missing = error([](changed_golden& g) { g.tensors.erase(g.tensors.begin() + 1); });
  CHECK(missing.code == bl::status::not_found);
  CHECK(missing.names("no tensor \"a.lookup_table\""));
  CHECK(error([](changed_golden& g) {
          g.tensors[0].name = "b";
        }).names("expected quantized linears X with X.qweight"));
  CHECK(error([](changed_golden& g) {
          g.tensors.push_back({"b.lookup_table", dtype::f32, {5, 8}});
        }).names("tensor \"b.lookup_table\" has no \"b.qweight\""));
  CHECK(error([](changed_golden& g) {
          g.tensors.push_back({"a.weight", dtype::f16, {5, 64}});
        }).names("linear \"a\" is there twice"));
  CHECK(error([](changed_golden& g) {
          g.tensors.push_back({"b.qweight", dtype::i32, {4, 2}});
          g.tensors.push_back({"b.lookup_table", dtype::f32, {2, 16}});
        }).names("tensor \"b.lookup_table\": expected F32 [2, 8], found F32 [2, 16]"));
}

TEST_CASE("lies of quant_config.json are found") {
  const auto error = [](const char* text) {
    changed_golden g;
    g.config = text;
    const thrown e = g.error();
    CHECK(e.code == bl::status::bad_file);
    return e;
  };
  CHECK(error("[3]").names("quant_config.json: expected an object with \"wbits\""));
  CHECK(error("{\"bits\": 3}").names("expected an object with \"wbits\""));
  CHECK(error("{").names("quant_config.json: not valid JSON"));
  for (const char* v : {"0", "9", "-3", "\"3\"", "3.5", "null"})
    CHECK(error((std::string("{\"wbits\": ") + v + "}").c_str())
              .names("\"wbits\": expected a whole number from 1 to 8, found " + std::string(v)));
  CHECK(error("{\"wbits\": 4}").names("expected F32 [5, 16], found F32 [5, 8]"));
}

TEST_CASE("folders without one file of tensors are refused") {
  temporary_folder folder;
  CHECK(error_of([&] {
          squeezellm_checkpoint c(folder.path());
        }).names(folder.path().string() + ": expected a file NAME.pt"));
  CHECK(error_of([&] { squeezellm_checkpoint c(folder / "x.pt"); }).names("x.pt"));
  fs::copy(golden(4) / "model.pt", folder / "a.pt");
  fs::copy(golden(4) / "model.pt", folder / "b.pt");
  CHECK(error_of([&] {
          squeezellm_checkpoint c(folder.path());
        }).names("expected one file NAME.pt, found a.pt and b.pt"));
  CHECK(squeezellm_checkpoint(folder / "b.pt").bits() == 4);
  CHECK(error_of([&] {
          squeezellm_checkpoint c(fs::path(BL_TEST_DATA "/ours.safetensors"));
        }).names("expected a zip archive"));
}

TEST_CASE("SqueezeLLM checkpoints in the folder that BL_SQUEEZELLM_FOLDER names read") {
  const char* folder = std::getenv("BL_SQUEEZELLM_FOLDER");
  if (folder == nullptr) return;
  bl::thread_pool pool(2);
  int read = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    CAPTURE(entry.path().string());
    require_golden(squeezellm_checkpoint(entry.path()), &pool);
    ++read;
  }
  CHECK(read > 0);
}

TEST_CASE("SqueezeLLM checkpoints damaged anywhere never crash the reader") {
  support::random random(61);
  temporary_folder folder;
  fs::copy(golden(3), folder / "copy");
  int opened = 0, refused = 0;
  const auto try_open = [&] {
    try {
      const squeezellm_checkpoint c(folder / "copy");
      for (const bl::linear_info& l : c.linears())
        REQUIRE(c.read(l.name).planes.layout() == l.layout());
      for (const bl::tensor_info& t : c.plain_tensors())
        if (!error_of([&] { static_cast<void>(c.bytes(t.name)); }).names("without gaps"))
          REQUIRE(c.bytes(t.name).size() == t.bytes());
      ++opened;
    } catch (const bl::error& e) {
      REQUIRE(std::string(e.what()).find((folder / "copy").string()) == 0);
      ++refused;
    }
  };
  try_open();
  REQUIRE(opened == 1);
  for (const char* file : {"model.pt", "quant_config.json"}) {
    const std::string good = support::read_all(golden(3) / file);
    for (int i = 0; i < 2000; ++i) {
      std::string bytes = good;
      support::damage(bytes, random, std::string("\0\1\2\xff(t{}\",0123456789", 20));
      support::write_all(folder / "copy" / file, bytes);
      try_open();
    }
    support::write_all(folder / "copy" / file, good);
  }
  CHECK(opened > 100);
  CHECK(refused > 1000);
}
