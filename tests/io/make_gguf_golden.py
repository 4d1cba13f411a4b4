#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes the fixtures of the GGUF tests, with the Python package `gguf` as writer and as judge.

data/metadata.gguf    every type of value, arrays, arrays in arrays; four small tensors on 64 bytes
data/big_endian.gguf  one key and one tensor, big-endian
data/quantized.gguf   for each type T a tensor "T" of 3 rows by 64 columns, or 2 by 3 by 32 for
                      Q4_0, and beside it "T.float": what the package makes of it. The bytes are
                      random but for the scales, which are finite and include zeros and subnormals.
                      "Q4_K" and "I32" are there to be refused.
"""
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

FOLDER = pathlib.Path(__file__).parent / "data"


def write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def metadata():
    w = gguf.GGUFWriter(FOLDER / "metadata.gguf", "test")
    w.add_uint8("u8", 255)
    w.add_int8("i8", -128)
    w.add_uint16("u16", 65535)
    w.add_int16("i16", -32768)
    w.add_uint32("u32", 4294967295)
    w.add_int32("i32", -2147483648)
    w.add_uint64("u64", 2**64 - 1)
    w.add_int64("i64", -2**63)
    w.add_float32("f32", 0.1)
    w.add_float64("f64", 0.1)
    w.add_bool("yes", True)
    w.add_bool("no", False)
    w.add_string("text", "weiß \"x\"\n")
    w.add_key_value("empty text", b"", gguf.GGUFValueType.STRING)  # add_string leaves it out
    w.add_array("texts", ["a", "", "Ġthe"])
    w.add_array("integers", [-1, 0, 7])
    w.add_array("numbers", [0.5, -2.0])
    w.add_array("truths", [True, False, True])
    w.add_array("bytes", b"\x00\x80\xff")
    w.add_array("nested", [[1, 2], [3]])
    w.add_array("deep", [[["x"], ["y", "z"]]])
    w.add_custom_alignment(64)
    w.add_tensor("matrix", np.arange(6, dtype=np.float32).reshape(2, 3))
    w.add_tensor("half", np.arange(5, dtype=np.float16))
    w.add_tensor("cube", np.arange(24, dtype=np.int8).reshape(2, 3, 4))
    w.add_tensor("long", np.array([2**40], dtype=np.int64))
    write(w)

    w = gguf.GGUFWriter(FOLDER / "big_endian.gguf", "test", endianess=gguf.GGUFEndian.BIG)
    w.add_tensor("matrix", np.arange(6, dtype=np.float32).reshape(2, 3))
    write(w)


def quantized():
    rng = np.random.default_rng(5)
    w = gguf.GGUFWriter(FOLDER / "quantized.gguf", "test")
    # Where the fp16 numbers of a block stand.
    halves = {T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2]}
    for t in (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1):
        block, size = gguf.GGML_QUANT_SIZES[t]
        shape = (2, 3, 32) if t == T.Q4_0 else (3, 64)
        raw = rng.integers(0, 256, (int(np.prod(shape)) // block, size), dtype=np.uint8)
        if t in halves:
            for at in halves[t]:
                bits = rng.integers(0, 0x7C00, len(raw)) | rng.integers(0, 2, len(raw)) << 15
                bits[:4] = 0, 0x8000, 1, 0x83FF
                raw[:, at:at + 2] = bits.astype("<u2").view(np.uint8).reshape(-1, 2)
        elif t == T.F16:  # all but infinities and NaN
            raw = (raw.view("<u2") & 0xBFFF).view(np.uint8)
        raw = raw.reshape(*shape[:-1], -1)
        as_stored = raw.view({T.F32: "<f4", T.F16: "<f2"}.get(t, np.uint8))
        w.add_tensor(t.name, as_stored, raw_dtype=t)
        floats = gguf.quants.dequantize(as_stored, t).astype(np.float32).reshape(shape)
        w.add_tensor(t.name + ".float", floats)
    w.add_tensor("Q4_K", rng.integers(0, 256, (1, 144), dtype=np.uint8), raw_dtype=T.Q4_K)
    w.add_tensor("I32", np.arange(3, dtype=np.int32))
    write(w)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    metadata()
    quantized()
