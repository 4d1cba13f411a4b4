// SPDX-License-Identifier: MIT
// Seed 42. Pickles are written out byte by byte here; torch_file_test.cpp reads those of PyTorch.
#include <bitladder/io/pickle.hpp>

#include "io/damage.hpp"
#include <support/files.hpp>

#include <doctest/doctest.h>

namespace bl = bitladder;
using bl::pickle_kind;
using support::error_of;
using support::thrown;
using namespace std::string_literals;

namespace {

bl::pickle_document read(const std::string& bytes) { return bl::read_pickle(bytes, "f: data.pkl"); }

/// The error of reading a pickle of protocol 2 with that body and an end mark.
thrown refused(const std::string& body, const bl::pickle_limits& limits = {}) {
  const std::string bytes = "\x80\x02"s + body + ".";
  const thrown e = error_of([&] { bl::read_pickle(bytes, "f: data.pkl", limits); });
  CHECK(e.code == bl::status::bad_file);
  CHECK(e.text.find("f: data.pkl: byte ") == 0);
  return e;
}

std::string text(const std::string& s) { return "\x8c"s + static_cast<char>(s.size()) + s; }
const std::string ordered_dict = "ccollections\nOrderedDict\n)R";
/// A persistent id of 12 floats.
const std::string storage =
    "(" + text("storage") + "ctorch\nFloatStorage\n" + text("7") + text("cpu") + "K\x0ctQ";
const std::string rebuild = "ctorch._utils\n_rebuild_tensor_v2\n";
/// Offset 2, shape [3, 2], strides [2, 1].
const std::string tensor =
    rebuild + "(" + storage + "K\2K\3K\2\x86K\2K\1\x86\x89" + ordered_dict + "tR";

}  // namespace

TEST_CASE("plain values of every kind and width are read") {
  const std::string bytes =
      "\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00"s + "(N\x88\x89" + "J\xff\xff\xff\xff" +
      "K\xffM\xff\xff\x8a\x00\x8a\x01\x80\x8a\x06\x00\x00\x00\x00\x00\x01"s +
      "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f" + "G\xc0\x04\x00\x00\x00\x00\x00\x00"s +
      "X\x03\x00\x00\x00"s + "abc" + text("") + "\x8d\x01\x00\x00\x00\x00\x00\x00\x00"s + "z" +
      ")K\1\x85K\1K\2\x86K\1K\2K\3\x87(K\4t](K\1K\2e]K\7a}K\1K\2s}(K\1K\2K\3K\4u" +
      "ctorch\nSize\nK\5\x85\x85R" + "\x8c\x05torch\x8c\x0bHalfStorage\x93" + "t.";
  const bl::pickle_document d = read(bytes);
  const bl::pickle_value v = d.root();
  REQUIRE(v.is(pickle_kind::tuple));
  REQUIRE(v.size() == 25);
  CHECK(v[0].is(pickle_kind::none));
  CHECK(v[1].as_bool());
  CHECK_FALSE(v[2].as_bool());
  const std::int64_t ints[] = {-1, 255, 65535, 0, -128, std::int64_t{1} << 40, INT64_MAX};
  for (std::size_t i = 0; i < 7; ++i) CHECK(v[3 + i].as_int() == ints[i]);
  CHECK(v[10].as_float() == -2.5);
  CHECK(v[11].as_text() == "abc");
  CHECK(v[12].as_text().empty());
  CHECK(v[13].as_text() == "z");
  for (std::size_t i = 0; i < 4; ++i) CHECK(v[14 + i].size() == i);
  CHECK(v[17][2].as_int() == 3);
  CHECK(v[18][0].as_int() == 4);
  CHECK(v[19].is(pickle_kind::list));
  CHECK(v[19][1].as_int() == 2);
  CHECK(v[20][0].as_int() == 7);
  CHECK(v[21].size() == 1);
  CHECK(v[22].is(pickle_kind::dict));
  CHECK(v[22].size() == 2);
  CHECK(v[22].key(1).as_int() == 3);
  CHECK(v[22][1].as_int() == 4);
  CHECK(v[23].is(pickle_kind::tuple));
  CHECK(v[23][0].as_int() == 5);
  CHECK(v[24].is(pickle_kind::name));
  CHECK(error_of([&] { v[0].as_int(); }).names("byte 12: expected an int, found None"));
  CHECK(error_of([&] { v.key(0); }).names("expected a dict, found a tuple"));
  CHECK(error_of([&] { static_cast<void>(v[25]); }).code == bl::status::invalid_argument);
}

TEST_CASE("the memo gives values back, however it was filled") {
  const std::string bytes = "\x80\x05("s + text("a") + "\x94" + text("b") + "q\x05" + text("c") +
                            "r\x00\x01\x00\x00"s + "h\x00h\x05j\x00\x01\x00\x00t."s;
  const bl::pickle_document d = read(bytes);
  for (std::size_t i = 0; i < 3; ++i) CHECK(d.root()[i].as_text() == d.root()[i + 3].as_text());
}

TEST_CASE("tensors, parameters and attributes of an OrderedDict are rebuilt without running code") {
  const std::string bytes = "\x80\x02"s + ordered_dict + "(" + text("t") + tensor + text("p") +
                            "ctorch._utils\n_rebuild_parameter\n" + tensor + "\x88" + ordered_dict +
                            "\x87R" + "u" + "}" + text("_metadata") + ordered_dict + "sb.";
  const bl::pickle_document d = read(bytes);
  REQUIRE(d.root().size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    const bl::pickle_tensor& t = d.root()[i].as_tensor();
    CHECK(t.storage.type == bl::dtype::f32);
    CHECK(t.storage.key == "7");
    CHECK(t.storage.elements == 12);
    CHECK(t.offset == 2);
    CHECK(t.shape == std::vector<std::int64_t>{3, 2});
    CHECK(t.stride == std::vector<std::int64_t>{2, 1});
  }
  const std::string alone = "\x80\x02"s + storage + ".";
  CHECK(read(alone).root().as_storage().elements == 12);
}

TEST_CASE("names that are not needed for tensors are refused and never run") {
  CHECK(refused("cposix\nsystem\n" + text("true") + "\x85R").names("byte 2: names posix.system"));
  CHECK(refused("cbuiltins\neval\n").names("names builtins.eval"));
  CHECK(refused("ctorch\nload\n").names("names torch.load"));
  CHECK(refused("ctorch.storage\nUntypedStorage\n").names("names torch.storage.UntypedStorage"));
  CHECK(refused("ctorch\nfloat Storage\n").names("names torch.float Storage"));
  CHECK(
      refused("ccollections\nOrderedDict.update\n").names("names collections.OrderedDict.update"));
  CHECK(refused("c\x1b[1m\nx\n").names("names ?[1m.x"));
  CHECK(refused(text("os") + text("system") + "\x93").names("byte 14: names os.system"));
  CHECK(refused("K\1K\2\x93").names("by other than text"));
  CHECK(refused("c" + std::string(300, 'x') + "\nx\n").names("without an end within 256 bytes"));
  CHECK(refused("cos").names("without an end"));
}

TEST_CASE("opcodes that are not needed for tensors are refused by name") {
  CHECK(refused("K\1\x81").names("byte 4: opcode 0x81 is not among"));
  for (char op : "iodpPIFLSTUVBC0122Dg\x82\x83\x84\x8b\x8e\x8f\x90\x91\x92\x96\x97\x98"s) {
    CAPTURE(op);
    CHECK(refused("K\1"s + op).names("byte 4: opcode 0x"));
  }
  CHECK(refused("i").names("opcode 0x69 ('i')"));
}

TEST_CASE("pickles that end early, late or not at all are refused") {
  const auto error = [](const std::string& bytes) { return error_of([&] { read(bytes); }); };
  CHECK(error("").names("byte 0: the pickle ends without its end mark"));
  CHECK(error("K\1.").names("expected a pickle of protocol 2 to 5"));
  CHECK(error("\x80\x02K\1").names("byte 4: the pickle ends without its end mark"));
  CHECK(error("\x80\x01K\1.").names("protocol 1; 2 to 5"));
  CHECK(error("\x80\x06K\1.").names("protocol 6; 2 to 5"));
  CHECK(error("\x80").names("needs 1 more bytes, 0 are left"));
  CHECK(error("\x80\x02K\1.x").names("1 bytes follow the end"));
  CHECK(refused("").names("expected one value at the end, found 0"));
  CHECK(refused("NN").names("expected one value at the end, found 2"));
  CHECK(refused("N(").names("expected one value"));
  CHECK(refused("\x80\x02N").names("protocol given again"));
  CHECK(refused("\x95\xff\xff\xff\xff\xff\xff\xff\xffN").names("passes the end of the pickle"));
  CHECK(refused("X\xff\xff\xff\xff").names("needs 4294967295 more bytes, 1 are left"));
  CHECK(refused("\x8d\xff\xff\xff\xff\xff\xff\xff\xff").names("needs 18446744073709551615 more"));
  CHECK(refused("\x8a\x09" + std::string(9, 'x')).names("an int of 9 bytes"));
}

TEST_CASE("stacks that do not fit are refused") {
  CHECK(refused("t").names("no mark"));
  CHECK(refused("\x87").names("takes 3 values, the stack holds 0"));
  CHECK(refused("N(N\x86").names("takes 2 values, the stack holds 1"));
  CHECK(refused("]a").names("takes 2 values"));
  CHECK(refused("](K\1a").names("takes 2 values, the stack holds 1"));
  CHECK(refused("(e").names("takes 1 values, the stack holds 0"));
  CHECK(refused("}K\1a").names("expected a list to add to, found a dict"));
  CHECK(refused("]K\1K\2s").names("expected a dict to add to, found a list"));
  CHECK(refused("}(K\1u").names("a key without a value"));
  CHECK(refused("h\1").names("recalls value 1"));
  CHECK(refused("q\1").names("takes 1 values"));
  CHECK(refused("(N(q\1").names("takes 1 values"));
  CHECK(refused("R").names("takes 1 values"));
  CHECK(refused("K\1)R").names("calls an int"));
  CHECK(refused("ctorch\nSize\nK\1R").names("arguments: expected a tuple"));
}

TEST_CASE("no value can hold itself, and depth is bounded") {
  CHECK(refused("]q\1h\1a").names("puts a container into itself"));
  CHECK(refused("]q\1]q\2h\1ah\1h\2a").names("already stands in another"));
  bl::pickle_limits limits;
  limits.depth = 3;
  const std::string three = "\x80\x02K\1\x85\x85\x85."s;
  CHECK_NOTHROW(bl::read_pickle(three, "f", limits));
  CHECK(refused("K\1\x85\x85\x85\x85", limits).names("nested deeper than 3 levels"));
  CHECK(refused("N" + std::string(100000, '\x85')).names("nested deeper than 32 levels"));
}

TEST_CASE("values and memo are bounded") {
  bl::pickle_limits limits;
  limits.values = 10;
  CHECK(refused("(" + std::string(11, 'N') + "t", limits).names("more than 10 values"));
  limits = {};
  limits.memo = 2;
  CHECK(refused("Nq\1q\2q\2q\3", limits).names("byte 9: remembers more than 2 values"));
}

TEST_CASE("lies about storages and tensors are found") {
  const auto persistent = [](const std::string& parts) { return refused("(" + parts + "tQ"); };
  const std::string kind = "ctorch\nFloatStorage\n";
  CHECK(refused("K\1Q").names("persistent id: expected (\"storage\""));
  CHECK(persistent(text("storage")).names("persistent id: expected"));
  CHECK(persistent(text("module") + kind + text("0") + text("cpu") + "K\1").names("persistent id"));
  CHECK(persistent(text("storage") + text("x") + text("0") + text("cpu") + "K\1")
            .names("storage class: expected a name, found a str"));
  CHECK(persistent(text("storage") + "ctorch\nSize\n" + text("0") + text("cpu") + "K\1")
            .names("expected a storage, found another name"));
  CHECK(persistent(text("storage") + kind + "K\1" + text("cpu") + "K\1").names("storage key"));
  CHECK(persistent(text("storage") + kind + text("0") + "NK\1").names("storage device"));
  CHECK(persistent(text("storage") + kind + text("0") + text("cpu") + "J\xff\xff\xff\xff")
            .names("storage elements: expected an int from 0 on, found -1"));

  const auto arguments = [](const std::string& parts) {
    return refused(rebuild + "(" + parts + "tR");
  };
  const std::string shape = "K\3K\2\x86", stride = "K\2K\1\x86", rest = "\x89" + ordered_dict;
  CHECK(arguments("").names("expected 6 or 7 arguments, found 0"));
  CHECK(arguments("NK\0"s + shape + stride + rest).names("tensor storage: expected a storage"));
  CHECK(arguments(storage + "N" + shape + stride + rest).names("storage offset"));
  CHECK(arguments(storage + "J\xfe\xff\xff\xff" + shape + stride + rest).names("found -2"));
  CHECK(arguments(storage + "K\1N" + stride + rest).names("shape: expected a tuple"));
  CHECK(arguments(storage + "K\1K\1\x85" + stride + rest).names("1 dimensions with 2 strides"));
  CHECK(arguments(storage + "K\1K\1N\x86" + stride + rest).names("shape: expected an int"));
  CHECK(arguments(storage + "K\1" + shape + "K\1J\xff\xff\xff\xff\x86" + rest).names("found -1"));
  CHECK(arguments(storage + "K\1(" + std::string(65, ')') + "t" + stride + rest)
            .names("more than 64 dimensions"));
  CHECK(arguments(storage + "K\1" + shape + stride + "N" + ordered_dict).names("requires_grad"));
  CHECK(arguments(storage + "K\1" + shape + stride + "\x89N").names("backward hooks"));
  CHECK(arguments(storage + "K\1" + shape + stride + "\x89}K\1K\1s").names("expected none"));
  CHECK(arguments(storage + "K\1" + shape + stride + rest + "}" + text("conj") + "\x88s")
            .names("tensor metadata"));
  CHECK(refused("ctorch._utils\n_rebuild_parameter\nN\x88" + ordered_dict + "\x87R")
            .names("parameter: expected a tensor"));
  CHECK(refused("ctorch._utils\n_rebuild_parameter\n)R").names("expected 3 arguments"));
  CHECK(refused("ctorch\nSize\nN\x85R").names("torch.Size: expected a tuple"));
  CHECK(refused("ccollections\nOrderedDict\n]\x85R").names("expected no arguments, found 1"));
  CHECK(refused("ctorch\nFloatStorage\n)R").names("calls a storage class"));
  CHECK(refused("}}b").names("sets the state of a dict"));
  CHECK(refused(ordered_dict + "Nb").names("from None"));
  CHECK(refused(tensor + "}b").names("sets the state of a tensor"));
}

TEST_CASE("pickles damaged anywhere never crash the reader") {
  const std::string good = "\x80\x02"s + ordered_dict + "q\1(" + text("t") + tensor + "q\2" +
                           text("u") + tensor + text("l") + "](K\1h\2NG\0\0\0\0\0\0\0\0e"s + "u}" +
                           text("x") + "h\2sb.";
  CHECK(read(good).root().size() == 3);
  support::random random(42);
  int opened = 0, rejected = 0;
  const auto try_read = [&](const std::string& bytes) {
    try {
      const bl::pickle_document d = read(bytes);
      if (d.root().is(pickle_kind::dict))
        for (std::size_t i = 0; i < d.root().size(); ++i)
          if (d.root()[i].is(pickle_kind::tensor))
            REQUIRE(d.root()[i].as_tensor().shape.size() == d.root()[i].as_tensor().stride.size());
      ++opened;
    } catch (const bl::error& e) {
      REQUIRE(std::string(e.what()).find("f: data.pkl: byte ") == 0);
      ++rejected;
    }
  };
  for (int i = 0; i < 30000; ++i) {
    std::string bytes = good;
    support::damage(bytes, random,
                    "(.NKJMqhrj)}]tuesabRQcXG\x80\x85\x86\x87\x88\x89\x8a\x93\x94\1\2"s);
    try_read(bytes);
  }
  for (std::size_t size = 0; size < good.size(); ++size) try_read(good.substr(0, size));
  CHECK(opened > 200);
  CHECK(rejected > 10000);
}
