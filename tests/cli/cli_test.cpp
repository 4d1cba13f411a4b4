// SPDX-License-Identifier: MIT
// The tool as a user runs it, on the bundled model.
#include <bitladder/io/checkpoint.hpp>

#include "tool.hpp"

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

using namespace cli_test;

namespace {

/// A copy of the bundled model with one file replaced.
fs::path changed_model(const std::string& name, const std::string& file, const std::string& bytes) {
  const fs::path folder = work() / name;
  fs::create_directories(folder);
  for (const auto& entry : fs::directory_iterator(small))
    fs::copy(entry.path(), folder / entry.path().filename(), fs::copy_options::overwrite_existing);
  std::ofstream(folder / file, std::ios::binary) << bytes;
  return folder;
}

}  // namespace

TEST_CASE("every command explains itself") {
  CHECK(contains(tool("--help").text, "quantize"));
  CHECK(contains(tool("--version").text, "."));
  for (const char* command : {"quantize", "sensitivity", "refit", "import", "export", "inspect",
                              "generate", "perplexity", "demo"}) {
    const outcome o = tool(std::string(command) + " --help");
    CHECK(o.status == 0);
    CHECK(contains(o.text, "--json"));
  }
  CHECK(tool("").status != 0);
  CHECK(tool("multiply").status != 0);
}

TEST_CASE("inspect counts planes and every table, and its check finds a sound file sound") {
  const fs::path json = work() / "inspect.json";
  const outcome o = tool("inspect " + checkpoint() + " --tensors --check --json " + json.string());
  CHECK_MESSAGE(o.status == 0, o.text);
  CHECK(contains(o.text, "model.layers.5.mlp.down_proj.lut3"));
  // Linears of a layer: 512 rows of 256 (q, k, v of 256 + 128 + 128), 256 of 256, 1536 of 256, 256
  // of 768.
  const double rows = 6 * (512 + 256 + 1536 + 256.0),
               weights = 6 * (512 + 256 + 1536 + 3 * 256) * 256.0;
  for (const auto& r : rows_of(json)) {
    const int bits = r["bits"];
    CHECK(r["table_bytes"] == rows * (2 << bits));
    CHECK(r["plane_bytes"] == weights * bits / 8);
    CHECK(r["bits_per_weight"].get<double>() ==
          doctest::Approx(bits + rows * (16 << bits) / weights));
  }
  CHECK(tool("inspect " + small).status == 0);
}

TEST_CASE("perplexity falls from 2 to 8 bits and meets the unquantized model at 8") {
  const fs::path json = work() / "p.json", svg = work() / "p.svg";
  const outcome o = tool("perplexity " + checkpoint() + " --unquantized " + small + " --text " +
                         held_out + " --join-paragraphs --max-windows 4 -q --json " +
                         json.string() + " --svg " + svg.string());
  CHECK_MESSAGE(o.status == 0, o.text);
  const auto rows = rows_of(json);
  REQUIRE(rows.size() == 8);
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(rows[i]["bits"] == (i < 7 ? static_cast<int>(i) + 2 : 0));
    CHECK(rows[i]["tokens_per_second"] > 0);
    if (i > 0 && i < 7)
      CHECK(rows[i]["perplexity"].get<double>() <= rows[i - 1]["perplexity"].get<double>() * 1.005);
    if (i > 0 && i < 7)
      CHECK(rows[i]["bytes_per_token"].get<double>() >
            rows[i - 1]["bytes_per_token"].get<double>());
  }
  const double best = rows[6]["perplexity"], unquantized = rows[7]["perplexity"];
  CHECK(std::fabs(best / unquantized - 1) < 0.01);
  // Mean losses of these windows by transformers 5.23 (fp32 arithmetic on the same fp16 weights).
  const double loss = (3.8717 + 3.5797 + 3.5346 + 3.2353) / 4;
  CHECK(std::log(unquantized) == doctest::Approx(loss).epsilon(2e-5));
  CHECK(contains(read_all(svg), "</svg>"));

  const fs::path alone = work() / "alone.json";
  CHECK(tool("perplexity " + checkpoint() + " --text " + held_out +
             " --join-paragraphs --max-windows 4 -q --threads 1 -b 3 --json " + alone.string())
            .status == 0);
  CHECK(rows_of(alone)[0]["perplexity"] == rows[1]["perplexity"]);
}

TEST_CASE("the demo shows one checkpoint at every precision") {
  const fs::path json = work() / "demo.json";
  const outcome o = tool("demo " + checkpoint() + " --unquantized " + small + " --text " +
                         held_out + " --max-windows 1 -n 8 -q --json " + json.string());
  CHECK_MESSAGE(o.status == 0, o.text);
  const auto rows = rows_of(json);
  REQUIRE(rows.size() == 8);
  for (const auto& r : rows) {
    for (const char* key : {"bits", "perplexity", "tokens_per_second", "bytes_per_token"})
      CHECK(r[key].is_number());
    CHECK(contains(r["text"], "Once upon a time"));
  }
}

TEST_CASE("a seed gives the same text again, with any number of threads") {
  const std::string run =
      "generate " + checkpoint() + " -b 4 -n 24 -q --temperature 0.9 --top-k 40 --prompt 'It was' ";
  const outcome a = tool(run + "--seed 5"), b = tool(run + "--seed 5 --threads 1"),
                c = tool(run + "--seed 6");
  CHECK_MESSAGE(a.status == 0, a.text);
  CHECK(contains(a.text, "It was"));
  CHECK(a.text == b.text);
  CHECK(a.text != c.text);
  CHECK(tool("generate " + small + " -n 4 --prompt Once").status == 0);
}

TEST_CASE("a schedule changes the precision while a text grows") {
  const fs::path json = work() / "schedule.json";
  const std::string run = "generate " + checkpoint() + " -n 6 --ignore-end --prompt 'It was' ";
  const outcome o = tool(run + "--schedule 8/4,2@3 --json " + json.string());
  CHECK_MESSAGE(o.status == 0, o.text);
  CHECK(contains(o.text, "8 bits 1 times, 4 bits 2 times, 2 bits 3 times, 3.67 in the mean"));
  const auto rows = rows_of(json);
  REQUIRE(rows.size() == 1);
  CHECK(rows[0]["bits_of_steps"] == std::vector<int>{8, 4, 4, 2, 2, 2});
  CHECK(rows[0]["average_bits"].get<double>() == doctest::Approx(22.0 / 6));
  CHECK(tool(run + "-q --schedule 3").text == tool(run + "-q -b 3").text);
}

TEST_CASE("a GGUF file is run, measured and quantized as a folder is") {
  const fs::path text = work() / "ab.txt";
  {
    std::ofstream out(text);
    for (int i = 0; i < 20; ++i) out << "ab a b ab ab b a";
  }
  for (const char* name : {"biased", "tied"}) {
    CAPTURE(name);
    const std::string file = std::string(BL_SOURCE_DIR) + "/tests/llama/data/" + name + ".gguf";
    const std::string out = (work() / name).string(), json = (work() / "gguf.json").string();
    const outcome made = tool("quantize " + file + " -q --rest f32 -o " + out);
    REQUIRE_MESSAGE(made.status == 0, made.text);
    // Their rows have so few values that 8 bits hold each of them.
    const std::string options = " -n 12 -q --ignore-end --prompt 'ab a' ";
    const outcome a = tool("generate " + file + options), b = tool("generate " + out + options);
    CHECK_MESSAGE(a.status == 0, a.text);
    CHECK(contains(a.text, "ab a"));
    CHECK(a.text == b.text);
    const outcome p = tool("perplexity " + out + " --unquantized " + file + " --window 16 -b 8,0 " +
                           "-q --text " + text.string() + " --json " + json);
    CHECK_MESSAGE(p.status == 0, p.text);
    const auto rows = rows_of(json);
    REQUIRE(rows.size() == 2);
    CHECK(rows[0]["perplexity"] == rows[1]["perplexity"]);
    CHECK(tool("perplexity " + file + " --window 16 -q --text " + text.string()).status == 0);
  }
  const outcome o = tool("generate " + text.string() + " --prompt x");
  CHECK(o.status == 1);
  CHECK(contains(o.text, text.string()));
}

TEST_CASE("the embedding of a GGUF file's blocks becomes fp16 unless fp32 is asked for") {
  const std::string file = std::string(BL_SOURCE_DIR) + "/tests/llama/data/tied.gguf";
  for (const auto& [rest, type] :
       {std::pair<std::string, bitladder::dtype>{"", bitladder::dtype::f16},
        {" --rest f32", bitladder::dtype::f32},
        {" --rest bf16", bitladder::dtype::bf16}}) {
    const std::string out = (work() / ("rest" + std::to_string(static_cast<int>(type)))).string();
    const outcome o = tool("quantize " + file + " -q -o " + out + rest);
    CHECK_MESSAGE(o.status == 0, o.text);
    CHECK(bitladder::checkpoint(out).tensors().at("model.embed_tokens.weight").type == type);
  }
  CHECK(tool("quantize " + file + " --rest f8 -o " + (work() / "f8").string()).status != 0);
}

TEST_CASE("exported, run in place and imported again, a checkpoint writes the same text") {
  const std::string run = " -b 3 -n 24 -q --prompt 'It was' ";
  const outcome ours = tool("generate " + checkpoint() + run);
  CHECK_MESSAGE(ours.status == 0, ours.text);
  for (const std::string kind : {"torch", "safetensors"}) {
    CAPTURE(kind);
    const std::string theirs = (work() / ("export-" + kind)).string(),
                      back = (work() / ("import-" + kind)).string(),
                      json = (work() / "import.json").string();
    const outcome sent = tool("export " + checkpoint() + " " + theirs + " -q --container " + kind);
    REQUIRE_MESSAGE(sent.status == 0, sent.text);
    CHECK(tool("generate " + theirs + run).text == ours.text);
    const outcome made = tool("import " + theirs + " " + back + " -q --json " + json);
    REQUIRE_MESSAGE(made.status == 0, made.text);
    CHECK(rows_of(json)[0]["format"] == "Any-Precision");
    CHECK(rows_of(json)[0]["linears"] == 42);
    CHECK(rows_of(json)[0]["largest_rounding"] == 0);
    CHECK(tool("generate " + back + run).text == ours.text);
    const bitladder::checkpoint a(checkpoint()), b(back);
    REQUIRE(a.tensors().tensors().size() == b.tensors().tensors().size());
    for (const bitladder::tensor_info& t : a.tensors().tensors()) {
      const auto x = a.tensors().bytes(t), y = b.tensors().bytes(t.name);
      REQUIRE(x.size() == y.size());
      CHECK(std::memcmp(x.data(), y.data(), x.size()) == 0);
    }
    const outcome seen = tool("inspect " + theirs + " --check --tensors --json " + json);
    CHECK_MESSAGE(seen.status == 0, seen.text);
    CHECK(contains(seen.text, "Any-Precision checkpoint, 2 to 8 bits"));
    CHECK(contains(seen.text, "every table is finite"));
    CHECK(contains(seen.text, "model.layers.5.mlp.down_proj"));
    CHECK(rows_of(json).size() == 7);
    const outcome p = tool("perplexity " + theirs + " --text " + held_out +
                           " --max-windows 1 -q -b 3 --json " + json);
    CHECK_MESSAGE(p.status == 0, p.text);
    CHECK(rows_of(json)[0]["perplexity"].get<double>() > 1);
    CHECK(contains(tool("export " + checkpoint() + " " + theirs).text, "is there already"));
    CHECK(contains(tool("import " + theirs + " " + back).text, "is there already"));
  }
}

TEST_CASE("inspect tells a GGUF file and a SqueezeLLM checkpoint as what they are") {
  const std::string data = std::string(BL_SOURCE_DIR) + "/tests/";
  const fs::path json = work() / "gguf-inspect.json";
  const outcome g =
      tool("inspect " + data + "llama/data/tied.gguf --tensors --json " + json.string());
  CHECK_MESSAGE(g.status == 0, g.text);
  for (const char* part : {"GGUF file, version 3, 12 tensors", "architecture: llama", "gpt2",
                           "smollm", "runs here", "blk.0.attn_q.weight"})
    CHECK(contains(g.text, part));
  REQUIRE(rows_of(json).size() == 2);
  CHECK(rows_of(json)[0]["type"] == "Q8_0");
  CHECK(rows_of(json)[0]["tensors"] == 8);
  CHECK(rows_of(json)[0]["elements"] == 6400);
  CHECK(rows_of(json)[0]["bytes"] == 6800);
  const outcome other = tool("inspect " + data + "io/data/quantized.gguf");
  CHECK(other.status == 0);
  CHECK(contains(other.text, "does not run here"));
  for (const char* path : {"io/data/squeezellm4", "io/data/squeezellm4/model.pt"}) {
    const outcome s = tool("inspect " + data + path + " --check");
    CHECK_MESSAGE(s.status == 0, s.text);
    CHECK(contains(s.text, "SqueezeLLM checkpoint, 4 bits"));
    CHECK(contains(s.text, "3 quantized linears"));
  }
  const outcome sparse = tool("inspect " + data + "io/data/squeezellm_threshold.pt");
  CHECK(sparse.status == 1);
  CHECK(contains(sparse.text, "sparse part"));
  CHECK(tool("inspect " + held_out).status == 1);
}

TEST_CASE("import says which file is wrong, and leaves nothing") {
  const std::string data = std::string(BL_SOURCE_DIR) + "/tests/io/data/";
  const fs::path out = work() / "no-import";
  for (const auto& [source, part] : std::vector<std::pair<std::string, std::string>>{
           {small, "expected an Any-Precision checkpoint"},
           {checkpoint(), "expected an Any-Precision checkpoint"},
           {held_out, "expected a zip archive"},
           {data + "squeezellm4", "config.json"},
           {data + "squeezellm_threshold.pt", "sparse part"},
           {data + "anyprec3", "config.json: key \"model_type\""}}) {
    CAPTURE(source);
    const outcome o = tool("import " + source + " " + out.string());
    CHECK(o.status == 1);
    CHECK_MESSAGE(contains(o.text, part), o.text);
    CHECK(!fs::exists(out));
  }
}

TEST_CASE("what cannot be done is said with file, expected and found, and exit status 1") {
  const auto fails = [](const std::string& arguments, std::vector<std::string> parts) {
    const outcome o = tool(arguments);
    CAPTURE(o.text);
    CHECK(o.status == 1);
    for (const std::string& part : parts) CHECK(contains(o.text, part));
  };
  fails("generate " + checkpoint() + " -b 1 --prompt x",
        {checkpoint(), "1 bits", "2 bits", "8 bits"});
  fails("generate " + checkpoint() + " -b 0 --prompt x", {checkpoint(), "unquantized"});
  fails("generate " + checkpoint() + " --schedule 8/4,3 --prompt x",
        {"schedule \"8/4,3\"", "expected BITS@STEP"});
  fails("generate " + checkpoint() + " --schedule 16/4 --prompt x", {checkpoint(), "unquantized"});
  fails("perplexity " + checkpoint() + " --text " + held_out + " -b 0", {"--unquantized"});
  std::ofstream(work() / "short.txt") << "too short";
  fails("perplexity " + checkpoint() + " --text " + (work() / "short.txt").string(),
        {"window", "512"});

  const std::string config = read_all(small + "/config.json");
  std::string mamba = config;
  mamba.replace(mamba.find("\"llama\""), 7, "\"mamba\"");
  fails("quantize " + changed_model("mamba", "config.json", mamba).string() + " -o " +
            (work() / "o1").string(),
        {"config.json", "model_type", "mamba", "llama"});
  const std::string weights = read_all(small + "/model.safetensors");
  fails("quantize " +
            changed_model("cut", "model.safetensors", weights.substr(0, weights.size() - 1000))
                .string() +
            " -o " + (work() / "o2").string(),
        {"model.safetensors"});
  std::string renamed = weights;
  renamed.replace(renamed.find("layers.3.mlp.up_proj"), 20, "layers.3.mlp.UP_proj");
  fails("quantize " + changed_model("renamed", "model.safetensors", renamed).string() + " -o " +
            (work() / "o3").string(),
        {"model.layers.3.mlp.up_proj.weight"});
  for (const char* out : {"o1", "o2", "o3"}) CHECK(!fs::exists(work() / out));
  fails("quantize " + small + " -o " + checkpoint(), {checkpoint(), "is there already"});
  fails("quantize " + small + " -o " + (work() / "o4").string() + " --min-bits 4 --seed-bits 3",
        {"min_bits 4", "seed_bits 3"});
}

TEST_CASE("a full disk is reported and leaves no checkpoint under its name") {
  const fs::path out = work() / "full";
  // Files of at most 1000 KiB, as a disk that fills up would have it; the signal would end the
  // tool.
  const outcome o = shell("trap '' XFSZ; ulimit -f 1000; " + std::string(BL_TOOL) + " quantize " +
                          small + " -q -o " + out.string());
  CHECK(o.status == 1);
  CHECK(contains(o.text, out.string()));
  CHECK(!fs::exists(out));
  const outcome again = tool("quantize " + small + " -q -o " + out.string());
  CHECK_MESSAGE(again.status == 0, again.text);
}

TEST_CASE("killed at any moment and run again, quantize ends with the same bytes") {
  const fs::path out = work() / "killed";
  int killed = 0;
  for (const char* seconds : {"0.05", "0.15", "0.3", "0.6"}) {
    fs::remove_all(out);
    const std::string run =
        std::string(BL_TOOL) + " quantize " + small + " -q --threads 1 -o " + out.string();
    if (shell("timeout -s KILL " + std::string(seconds) + " " + run).status != 0) {
      ++killed;
      // If it was killed on its way out, after the last rename, what is there must be whole.
      if (!fs::exists(out)) {
        const outcome o = shell(run);
        CHECK_MESSAGE(o.status == 0, o.text);
      }
    }
    for (const auto& entry : fs::directory_iterator(checkpoint())) {
      CAPTURE(entry.path().string());
      CHECK(read_all(entry.path()) == read_all(out / entry.path().filename()));
    }
  }
  CHECK(killed > 0);
}
