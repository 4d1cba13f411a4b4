#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes the fixtures of the safetensors tests, with the Python package `safetensors` as the judge.

data/foreign.safetensors  as that package writes it: all element types, a scalar, empty tensors
data/ours.safetensors     the same tensors in the order and padding that our writer promises, laid
                          out here a second time and read back by the package
Byte k of tensor `name` is (37 k + 11 len(name) + 5) mod 251; of a BOOL tensor, that mod 2.
"""
import json
import pathlib
import struct

import safetensors.torch
import torch

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
         "BOOL": 1}
TENSORS = [("scalar", "F32", []), ("empty", "F16", [0, 7]), ("b.f64", "F64", [2, 3]),
           ("matrix", "F16", [5, 64]), ("bf16", "BF16", [3, 5]), ("long", "I64", [1]),
           ("int", "I32", [2, 2, 2, 2]), ("short", "I16", [7]), ("signed", "I8", [3]),
           ("bytes", "U8", [64]), ("flags", "BOOL", [11]), ("weiß \"x\"\n", "U8", [1, 1, 1])]
METADATA = {"format": "pt", "note": "a \"quoted\" text\n"}


def tensor_bytes(name, dtype, shape):
    count = SIZES[dtype]
    for d in shape:
        count *= d
    values = [(37 * k + 11 * len(name.encode()) + 5) % 251 for k in range(count)]
    return bytes(v % 2 for v in values) if dtype == "BOOL" else bytes(values)


def ours():
    def power(t):
        n = len(tensor_bytes(*t))
        return 64 if n == 0 else min(64, n & -n)

    def text(value):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)

    placed = sorted(TENSORS, key=power, reverse=True)  # stable
    entries, data = ['"__metadata__":' + text(METADATA)], b""
    for t in placed:
        raw = tensor_bytes(*t)
        entries.append('%s:{"dtype":"%s","shape":%s,"data_offsets":[%d,%d]}' % (
            text(t[0]), t[1], text(t[2]), len(data), len(data) + len(raw)))
        data += raw
    header = ("{" + ",".join(entries) + "}").encode()
    header += b" " * (-(8 + len(header)) % 64)
    return struct.pack("<Q", len(header)) + header + data


TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
         "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
         "U8": torch.uint8, "BOOL": torch.bool}


def tensor(name, dtype, shape):
    raw = bytearray(tensor_bytes(name, dtype, shape))
    if not raw:
        return torch.empty(shape, dtype=TYPES[dtype])
    return torch.frombuffer(raw, dtype=TYPES[dtype]).reshape(shape)


def main():
    folder = pathlib.Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    (folder / "foreign.safetensors").write_bytes(
        safetensors.torch.save({t[0]: tensor(*t) for t in TENSORS}, METADATA))
    (folder / "ours.safetensors").write_bytes(ours())
    for file in ("foreign", "ours"):
        read = safetensors.torch.load((folder / (file + ".safetensors")).read_bytes())
        assert sorted(read) == sorted(t[0] for t in TENSORS)
        for name, dtype, shape in TENSORS:
            t = read[name]
            assert (t.dtype, list(t.shape)) == (TYPES[dtype], shape), name
            raw = t.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert raw == tensor_bytes(name, dtype, shape), name


if __name__ == "__main__":
    main()
