// SPDX-License-Identifier: MIT
// The tokenizer against golden values of the reference implementation (made by
// make_tokenizer_golden.py), against a plain quadratic merge loop, and against damaged files.
// Seed: 7.
#include <llama/tokenizer.hpp>
#include <support/random.hpp>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using nlohmann::json;

const std::filesystem::path data = std::filesystem::path(BL_TEST_DATA) / "tokenizer";

json read(const std::string& name) { return json::parse(std::ifstream(data / (name + ".json"))); }

std::string unhex(const std::string& digits) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2)
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  return bytes;
}

std::vector<std::string> texts() {
  std::vector<std::string> lines;
  for (const std::string hex : read("texts")) lines.push_back(unhex(hex));
  return lines;
}

/// tokenizer.json of a golden case.
json document(const json& golden) {
  json file = read(golden.at("base"));
  file.merge_patch(golden.at("patch"));
  return file;
}

llama::tokenizer make(const json& file) { return llama::tokenizer::parse(file.dump(), "t.json"); }
llama::tokenizer make_style(const std::string& name) { return make(document(read(name))); }

std::string stream(const llama::tokenizer& t, const std::vector<int>& ids, bool skip_special) {
  llama::stream_decoder decoder(t, skip_special);
  std::string all;
  for (const int id : ids) {
    const std::string part = decoder.push(id);
    CHECK(llama::tokenization::is_utf8(part));
    all += part;
  }
  return all + decoder.flush();
}

/// What parsing this file says, "" when it succeeds.
std::string complaint(const json& file) {
  try {
    make(file);
  } catch (const bitladder::error& e) {
    CHECK(e.code() == bitladder::status::bad_file);
    return e.what();
  }
  return "";
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

const std::vector<std::string> styles = {"gpt2",
                                         "gpt2_prefix_space",
                                         "digits",
                                         "digit_runs",
                                         "split_merged",
                                         "split_script",
                                         "llama3",
                                         "qwen2",
                                         "llama2",
                                         "llama2_metaspace",
                                         "metaspace_always",
                                         "metaspace_never",
                                         "llama2_added",
                                         "llama2_crossing",
                                         "llama2_unknown",
                                         "llama2_no_unknown",
                                         "llama2_fused_unknown"};

/// A byte-level tokenizer over the letters a to d whose merges are all pairs of what came before.
json letters(int merges) {
  json vocab = json::object(), list = json::array();
  std::vector<std::string> tokens = {"a", "b", "c", "d"};
  support::random pick(7);
  while (static_cast<int>(list.size()) < merges) {
    const std::string left = tokens[pick.next() % tokens.size()];
    const std::string right = tokens[pick.next() % tokens.size()];
    const json pair = {left, right};
    if (left.size() + right.size() > 12 || std::find(list.begin(), list.end(), pair) != list.end())
      continue;
    list.push_back(pair);
    if (std::find(tokens.begin(), tokens.end(), left + right) == tokens.end())
      tokens.push_back(left + right);
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) vocab[tokens[i]] = i;
  return {{"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", list}}},
          {"decoder", {{"type", "Fuse"}}}};
}

}  // namespace

TEST_CASE("every style gives the ids and texts of the reference implementation") {
  const std::vector<std::string> lines = texts();
  for (const std::string& style : styles) {
    CAPTURE(style);
    const json golden = read(style);
    const llama::tokenizer t = make(document(golden));
    REQUIRE(golden.at("ids").size() == lines.size());
    for (std::size_t i = 0; i < lines.size(); ++i) {
      CAPTURE(i);
      CAPTURE(lines[i]);
      const std::vector<int> expected = golden.at("ids")[i];
      const std::vector<int> ids = t.encode(lines[i]);
      CHECK(ids == expected);
      std::vector<int> bare = t.prefix_ids();
      const std::vector<int> inner = t.encode(lines[i], false);
      bare.insert(bare.end(), inner.begin(), inner.end());
      bare.insert(bare.end(), t.suffix_ids().begin(), t.suffix_ids().end());
      CHECK(ids == bare);
      const std::string decoded = golden.at("decoded")[i];
      CHECK(t.decode(expected) == decoded);
      CHECK(stream(t, expected, true) == decoded);
    }
    for (const json& sample : golden.at("random")) {
      const std::vector<int> ids = sample[0];
      CAPTURE(ids);
      CHECK(t.decode(ids) == sample[1].get<std::string>());
      CHECK(t.decode(ids, false) == sample[2].get<std::string>());
      CHECK(stream(t, ids, true) == sample[1].get<std::string>());
      CHECK(stream(t, ids, false) == sample[2].get<std::string>());
    }
  }
}

TEST_CASE("the canonical forms are those of the reference implementation") {
  // Made by make_tokenizer_golden.py: strings of marks, composed letters, hangul and characters
  // that are excluded from composition, and both forms of each.
  const auto& forms = llama::tokenization::canonical_forms::get();
  const json golden = read("canonical_forms");
  REQUIRE(golden.size() > 100);
  for (const json& line : golden) {
    CAPTURE(line.dump(-1, ' ', true));
    CHECK(forms.composed(line[0].get<std::string>()) == line[1].get<std::string>());
    CHECK(forms.decomposed(line[0].get<std::string>()) == line[2].get<std::string>());
  }
}

TEST_CASE("both canonical forms keep what is in them, and lead to each other") {
  const auto& forms = llama::tokenization::canonical_forms::get();
  for (char32_t c = 0; c < 0x30000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text = "a";
    llama::tokenization::append_code_point(text, c);
    text += "\u0323\u0301";
    const std::string composed = forms.composed(text), decomposed = forms.decomposed(text);
    if (forms.composed(composed) != composed || forms.decomposed(decomposed) != decomposed ||
        forms.composed(decomposed) != composed || forms.decomposed(composed) != decomposed)
      FAIL_CHECK("U+" << std::hex << static_cast<unsigned>(c));
  }
}

TEST_CASE("compatibility forms pass ASCII and refuse other text, never passing it on as it is") {
  for (const char* form : {"NFKC", "NFKD"}) {
    CAPTURE(form);
    json file = read("gpt2_base");
    file["normalizer"] = {{"type", form}};
    const llama::tokenizer t = make(file);
    CHECK(t.encode("plain") == make(read("gpt2_base")).encode("plain"));
    CHECK_THROWS_WITH_AS(t.encode("a\u00e9b"), doctest::Contains("\"\u00e9\""), bitladder::error);
  }
}

TEST_CASE("damaged UTF-8 counts as one U+FFFD for each maximal subpart") {
  using llama::tokenization::repair_utf8;
  const std::string r = "\uFFFD";
  CHECK(repair_utf8("a\xffz") == "a" + r + "z");
  CHECK(repair_utf8("\xe2\x82") == r);
  CHECK(repair_utf8("\xe2\x82(") == r + "(");
  CHECK(repair_utf8("\xed\xa0\x80") == r + r + r);
  CHECK(repair_utf8("\xf4\x90\x80\x80") == r + r + r + r);
  CHECK(repair_utf8("\xf0\x9f\x98\xf0\x9f\x98\x80") == r + "😀");
  support::random pick(7);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes;
    for (int n = pick.below(12); n > 0; --n) {
      const int lead[] = {0x41, 0x80, 0xbf, 0xc3, 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0xed, 0xff};
      bytes += static_cast<char>(lead[pick.below(12)]);
    }
    const std::string whole = repair_utf8(bytes);
    CHECK(llama::tokenization::is_utf8(whole));
    CHECK(llama::tokenization::is_utf8(bytes) == (whole == bytes));
  }
}

TEST_CASE("merges come out as a plain quadratic loop makes them") {
  const json file = letters(60);
  const llama::tokenizer t = make(file);
  const json& merges = file["model"]["merges"];
  support::random pick(7);
  for (int round = 0; round < 300; ++round) {
    std::string word;
    for (int n = 1 + pick.below(40); n > 0; --n) word += static_cast<char>('a' + pick.below(4));
    std::vector<std::string> symbols;
    for (const char c : word) symbols.emplace_back(1, c);
    while (true) {
      std::size_t best = merges.size(), where = 0;
      for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
        const json pair = {symbols[i], symbols[i + 1]};
        const auto rank = static_cast<std::size_t>(std::find(merges.begin(), merges.end(), pair) -
                                                   merges.begin());
        if (rank < best) best = rank, where = i;
      }
      if (best == merges.size()) break;
      symbols[where] += symbols[where + 1];
      symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(where) + 1);
    }
    std::vector<int> expected;
    for (const std::string& s : symbols) expected.push_back(file["model"]["vocab"][s]);
    CHECK(t.encode(word) == expected);
  }
}

TEST_CASE("long texts and long words take time in proportion") {
  const auto seconds = [](const llama::tokenizer& t, const std::string& text) {
    const auto start = std::chrono::steady_clock::now();
    const std::vector<int> ids = t.encode(text, false);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    CHECK(t.decode(ids) == text);
    return time.count();
  };
  support::random pick(7);
  std::string letters_only;
  while (letters_only.size() < 1000000) letters_only += static_cast<char>('a' + pick.below(26));
  std::string lines;
  while (lines.size() < 1000000) {
    lines += letters_only.substr(static_cast<std::size_t>(pick.below(900000)), 7);
    lines += pick.below(9) == 0 ? '\n' : ' ';
  }
  for (const char* style : {"gpt2", "llama3", "llama2"}) {
    CAPTURE(style);
    const llama::tokenizer t = make_style(style);
    for (const std::string& text : {letters_only, lines, std::string(300000, ' ') + "x",
                                    std::string(300000, '\n'), std::string(300000, 'e')}) {
      // Each takes about 0.3 s at most when optimized; a quadratic loop would take hours.
      CHECK(seconds(t, text) < 60);
    }
  }
}

TEST_CASE("one tokenizer serves several threads, and copies outlive it") {
  const std::vector<std::string> lines = texts();
  auto original = std::make_unique<llama::tokenizer>(make_style("llama3"));
  const llama::tokenizer copy = *original;
  llama::stream_decoder decoder(*original);
  std::vector<std::vector<int>> expected;
  for (const std::string& line : lines) expected.push_back(original->encode(line));
  original.reset();
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (int& count : wrong)
    threads.emplace_back([&] {
      for (std::size_t i = 0; i < lines.size(); ++i)
        if (copy.encode(lines[i]) != expected[i]) ++count;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4, 0));
  std::string text;
  for (const int id : copy.encode("Hi there")) text += decoder.push(id);
  CHECK(text + decoder.flush() == "Hi there");
}

TEST_CASE("tokens, ids and special ids can be asked for") {
  const json golden = read("llama3");
  const llama::tokenizer t = make(document(golden));
  const int begin = *t.token_to_id("<|begin_of_text|>");
  CHECK(t.prefix_ids() == std::vector<int>{begin});
  CHECK(t.suffix_ids().empty());
  CHECK(t.is_special(begin));
  CHECK_FALSE(t.is_special(*t.token_to_id("a")));
  CHECK_FALSE(t.is_special(-1));
  CHECK_FALSE(t.is_special(t.vocabulary_size()));
  CHECK(t.special_ids().size() == document(golden)["added_tokens"].size());
  CHECK(t.special_ids().front() == 0);
  CHECK(*t.id_to_token(begin) == "<|begin_of_text|>");
  CHECK_FALSE(t.token_to_id("no such token"));
  for (int id = 0; id < t.vocabulary_size(); ++id) CHECK(*t.token_to_id(*t.id_to_token(id)) == id);
  for (const int id : {-1, t.vocabulary_size(), std::numeric_limits<int>::max(),
                       std::numeric_limits<int>::min()}) {
    CHECK_FALSE(t.id_to_token(id));
    CHECK(t.decode(std::vector<int>{id}).empty());
  }
  CHECK(make_style("metaspace_always").suffix_ids() == std::vector<int>{2});
}

TEST_CASE("a stream keeps the bytes of an unfinished character and starts anew after flush") {
  const llama::tokenizer t = make_style("gpt2");
  const std::vector<int> euro = {*t.token_to_id("â"), *t.token_to_id("Ĥ"), *t.token_to_id("¬")};
  llama::stream_decoder decoder(t);
  CHECK(decoder.push(euro[0]).empty());
  CHECK(decoder.push(euro[1]).empty());
  CHECK(decoder.push(euro[2]) == "€");
  CHECK(decoder.flush().empty());
  CHECK(decoder.push(euro[0]).empty());
  CHECK(decoder.push(*t.token_to_id("a")) == "\uFFFDa");
  CHECK(decoder.push(euro[0]).empty());
  CHECK(decoder.flush() == "\uFFFD");

  const llama::tokenizer s = make_style("llama2");
  llama::stream_decoder words(s);
  CHECK(words.push(*s.token_to_id("▁the")) == "the");
  CHECK(words.push(*s.token_to_id("▁the")) == " the");
  CHECK(words.flush().empty());
  CHECK(words.push(*s.token_to_id("▁the")) == "the");
}

TEST_CASE("ids may have holes") {
  json file = letters(5);
  file["model"]["vocab"]["far"] = 5000;
  file["added_tokens"] = {{{"id", 7000}, {"content", "<x>"}, {"special", true}}};
  const llama::tokenizer t = make(file);
  CHECK(t.vocabulary_size() == 7001);
  CHECK_FALSE(t.id_to_token(4000));
  CHECK(t.encode("a<x>") == std::vector<int>{0, 7000});
  CHECK(t.decode(std::vector<int>{0, 4000, 7000, 5000}) == "afar");
}

TEST_CASE("a component that is not known is named") {
  const json file = document(read("llama2"));
  for (const char* part : {"normalizer", "pre_tokenizer", "post_processor", "decoder", "model"}) {
    CAPTURE(part);
    json changed = file;
    changed[part] = {{"type", "Fancy"}, {"vocab", json::object()}};
    const std::string text = complaint(changed);
    CHECK(contains(text, "t.json: " + std::string(part) + ": "));
    CHECK(contains(text, "\"Fancy\" is not supported"));
    changed[part] = {{"nothing", 1}};
    CHECK(contains(complaint(changed), "is missing"));
    changed[part] = 5;
    CHECK(contains(complaint(changed), "expected, found 5"));
  }
  json nested = file;
  nested["normalizer"]["normalizers"][1] = {{"type", "Lowercase"}};
  CHECK(contains(complaint(nested), "t.json: normalizer: normalizers[1]: "));
  nested = file;
  nested["decoder"]["decoders"].push_back({{"type", "ByteFallback"}});
  CHECK(contains(complaint(nested), "after Fuse"));
  const json refused = {{"dropout", 0.1},
                        {"continuing_subword_prefix", "##"},
                        {"end_of_word_suffix", "</w>"},
                        {"unk_token", "<nowhere>"},
                        {"ignore_merges", "yes"}};
  for (const auto& [key, value] : refused.items()) {
    CAPTURE(key);
    json changed = file;
    changed["model"][key] = value;
    CHECK(contains(complaint(changed), "t.json: model: " + key));
  }
}

TEST_CASE("merges and ids that make no sense are named") {
  const json file = letters(5);
  const auto with_merge = [&](const json& merge) {
    json changed = file;
    changed["model"]["merges"].push_back(merge);
    return complaint(changed);
  };
  CHECK(contains(with_merge({"a", "zz"}), "model: merges[5]: "));
  CHECK(contains(with_merge({"a", "zz"}), "needs \"zz\", which is not in the vocabulary"));
  CHECK(contains(with_merge("d d"), "needs \"dd\"") != file["model"]["vocab"].contains("dd"));
  for (const json& bad : {json("ab"), json("a b c"), json(1), json::array({"a"}),
                          json::array({"a", 1}), json(nullptr), json("")})
    CHECK(contains(with_merge(bad), "expected"));

  const auto with_id = [&](const json& id) {
    json changed = file;
    changed["model"]["vocab"]["new"] = id;
    return complaint(changed);
  };
  CHECK(contains(with_id(0), "model: vocab: \"new\": "));
  CHECK(contains(with_id(0), "cannot have the id 0"));
  for (const json& bad : {json(-1), json(1e30), json(1.5), json("1"), json(1u << 31),
                          json(std::numeric_limits<std::uint64_t>::max()), json(4194304)})
    CHECK(contains(with_id(bad), "a whole number from 0 to 4194303 expected"));
  CHECK(with_id(4000000).empty());

  const auto with_added = [&](const json& token) {
    json changed = file;
    changed["added_tokens"] = {token};
    return complaint(changed);
  };
  CHECK(contains(with_added({{"id", 0}, {"content", "<x>"}}), "added_tokens[0]: \"<x>\" cannot"));
  CHECK(contains(with_added({{"id", 99}, {"content", "a"}}), "cannot have the id 99"));
  CHECK(contains(with_added({{"id", -4}, {"content", "<x>"}}), "added_tokens[0]: id: "));
  CHECK(contains(with_added({{"content", "<x>"}}), "\"id\" is missing"));
  CHECK(with_added({{"id", 0}, {"content", "a"}}).empty());

  json changed = document(read("llama2"));
  changed["post_processor"]["special_tokens"]["<s>"]["ids"] = {9999};
  CHECK(contains(complaint(changed), "no token has the id 9999"));
  changed["post_processor"]["special_tokens"] = json::object();
  CHECK(contains(complaint(changed), "\"<s>\" is missing"));
}

TEST_CASE("patterns that PCRE2 would read differently are refused") {
  json file = letters(5);
  const auto with_pattern = [&](const char* pattern) {
    file["pre_tokenizer"] = {
        {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}};
    return complaint(file);
  };
  for (const char* bad : {"a{1,3}+", "[a[bc]]", "[a&&b]", "(?m:.)", "a(?i)b", R"([\S])", "[[:x"}) {
    CAPTURE(bad);
    CHECK(contains(with_pattern(bad), "not supported in the pattern"));
  }
  for (const char* bad : {"(", "[a", "\\p{Nowhere}", "\\", "*"}) {
    CAPTURE(bad);
    CHECK(contains(with_pattern(bad), "t.json: pre_tokenizer: pattern: cannot compile"));
  }
  for (const char* good : {R"(\p{L}+|\P{L}++)", "(?i:a)|(?=b)|(?!c)|(?<=d)|(?<!e)|(?>f)|(?<n>g)",
                           "[]a]|[^]a]", "[[:alpha:]]", "a{,2}", R"([\]\\\s\w\h])", "(?i)a"}) {
    CAPTURE(good);
    CHECK(with_pattern(good).empty());
  }
}

TEST_CASE("classes of a pattern hold what Oniguruma's hold") {
  const auto matches = [](const char* pattern, const std::string& text) {
    std::size_t count = 0;
    llama::tokenization::regex::from_pattern(pattern, "p")
        .for_each_match(text, [&](std::size_t, std::size_t) { ++count; });
    return count;
  };
  const std::string spaces =
      "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000";
  for (const char* pattern : {R"(\s)", R"([\s])"}) {
    CHECK(matches(pattern, spaces) == 16);
    CHECK(matches(pattern, "x\u180e\u200b\ufeff\u2060") == 0);
  }
  CHECK(matches(R"(\S)", spaces + "\u180e") == 1);
  for (const char* pattern : {R"(\w)", R"([\w])"}) {
    CHECK(matches(pattern, "a\u0301_\u203f\u0661\u2160\u24b6\u4e16") == 8);
    CHECK(matches(pattern, "\u00b2\u00bd") == 2);
    CHECK(matches(pattern, "\u2074 -\u200d\u20ac\u200b\U0001f600") == 0);
  }
  CHECK(matches(R"(\W)", "a\u0301-") == 1);
  CHECK(matches(R"(\h)", "0aFg \t") == 3);
  CHECK(matches(R"([\h ])", "0aFg \t") == 4);
  CHECK(matches(R"(\H)", "0aFg") == 1);
  // U+30FC serves both kana scripts, and is in neither.
  CHECK(matches(R"(\p{Katakana})", "\u30a2\u30fc") == 1);
  CHECK(matches(R"(\P{Katakana})", "\u30a2\u30fc") == 1);
  // Characters that came with Unicode 15 and 16, which an older PCRE2 does not know.
  for (const char* pattern : {R"(\p{L})", R"([\p{L}])", R"(\p{Lu})", R"([\p{M}\p{Lu}])"}) {
    CAPTURE(pattern);
    CHECK(matches(pattern, "\u1c89") == 1);
    CHECK(matches(pattern, "\U0001fac6") == 0);
  }
  for (const char* pattern : {R"(\P{L})", R"([^\p{L}])", R"(\p{S})", R"([\p{S}\p{N}])"}) {
    CAPTURE(pattern);
    CHECK(matches(pattern, "\u1c89") == 0);
    CHECK(matches(pattern, "\U0001fac6") == 1);
  }
  CHECK(matches("^a|a$", "a\na\r\na") == 3);
  CHECK(matches("(?i:'s)", "'s'S'\u017f") == 3);
}

TEST_CASE("a damaged file is an error that names it") {
  const auto parse = [](const std::string& text) {
    try {
      llama::tokenizer::parse(text, "t.json");
    } catch (const bitladder::error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const std::string whole = document(read("llama2")).dump();
  for (std::size_t size = 0; size < whole.size(); size += 97)
    CHECK(contains(parse(whole.substr(0, size)), "t.json: not valid JSON"));
  CHECK(contains(parse(std::string(3000000, '[')), "nested"));
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += R"({"type":"Sequence","normalizers":[)";
  CHECK(contains(parse(R"({"normalizer":)" + deep), "nested"));
  for (const char* text : {"[]", "1", "\"x\"", "null", "{}", R"({"model":[]})", R"({"model":{}})",
                           R"({"model":{"type":"BPE","vocab":[],"merges":[]}})",
                           R"({"model":{"type":"BPE","vocab":{}}})",
                           R"({"model":{"type":"BPE","vocab":{},"merges":{}}})"}) {
    CAPTURE(text);
    CHECK(contains(parse(text), "t.json"));
  }
  // Any single damaged byte gives an error or a tokenizer that works.
  support::random pick(7);
  for (int i = 0; i < 400; ++i) {
    std::string damaged = whole;
    damaged[static_cast<std::size_t>(pick.below(static_cast<int>(whole.size())))] =
        static_cast<char>(pick.below(128));
    try {
      const llama::tokenizer t = llama::tokenizer::parse(damaged, "t.json");
      t.decode(t.encode("Some text, <s>世界"));
    } catch (const bitladder::error& e) {
      CHECK(contains(e.what(), "t.json: "));
    }
  }
}

TEST_CASE("a file that cannot be read is named") {
  const auto load = [](const std::filesystem::path& file) -> std::string {
    try {
      llama::tokenizer::load(file);
    } catch (const bitladder::error& e) {
      CHECK(e.code() == bitladder::status::io_failed);
      return e.what();
    }
    return "";
  };
  CHECK(contains(load(data / "no_such.json"), "no_such.json"));
  CHECK(contains(load(data), "tokenizer: cannot be read"));
  CHECK_NOTHROW(llama::tokenizer::load(data / "gpt2_base.json"));
}

TEST_CASE("an empty vocabulary encodes nothing and does not fail") {
  const llama::tokenizer t =
      llama::tokenizer::parse(R"({"model":{"type":"BPE","vocab":{},"merges":[]}})", "t.json");
  CHECK(t.vocabulary_size() == 0);
  CHECK(t.encode("text").empty());
  CHECK(t.decode(std::vector<int>{0, 1}).empty());
}

TEST_CASE("the bundled model's ids are the ones that the tokenizers package gives") {
  const llama::tokenizer t =
      llama::tokenizer::load(BL_SOURCE_DIR "/examples/models/small/tokenizer.json");
  const std::string wolves = "Mowgli's  wolves—“We be of one blood”\n";
  const std::vector<int> wolves_ids = {45,  305, 71,  959,  376, 221, 262, 466,
                                       648, 159, 223, 243,  159, 223, 251, 1326,
                                       302, 279, 436, 1859, 159, 223, 252, 199};
  CHECK(t.encode("Once upon a time") == std::vector<int>{47, 1315, 594, 259, 582});
  CHECK(t.encode(wolves) == wolves_ids);
  CHECK(t.decode(wolves_ids) == wolves);
  CHECK(t.encode("<|endoftext|>café 1894") ==
        std::vector<int>{0, 67, 3339, 128, 103, 2613, 25, 20});
}
