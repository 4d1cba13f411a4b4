#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes the fixtures of the SqueezeLLM tests with PyTorch; with --check PROGRAM, has that test
program read wide checkpoints made here.

data/squeezellm{3,4}/model.pt     one layer in the published layout, codes of 3 and 4 bits
data/squeezellm{3,4}/quant_config.json
data/squeezellm_threshold.pt      a dense linear and the number that only sparse checkpoints have
data/squeezellm_sparse4/          linears of 4 bits with sparse parts, made as SqueezeLLM makes
                                  them: torch's CSR of weights less the entry next to zero
The codes of a row are put together as one big number, k-th code at bit (bits k), and cut into
words, which is what the layout says and nothing that the library does. Codes are
(k k + 3 k + 17 n) mod 251 mod 2^bits for row n and column k. Entry i of a table stands at place
m = (5 i + 3 n + 1) mod 2^bits of the ascending ones, whose values come in equal pairs:
(123 (m // 2 - 2^(bits-2)) + 5000 n) / 10000. A bias is n / 2.
"""
import argparse
import collections
import json
import os
import pathlib
import subprocess
import tempfile

import numpy
import torch

DATA = pathlib.Path(__file__).parent / "data"


def codes(rows, cols, bits):
    return [[(k * k + 3 * k + 17 * n) % 251 % 2**bits for k in range(cols)] for n in range(rows)]


def qweight(code, bits):
    """int32 [cols/32 * bits, rows]."""
    columns = []
    for row in code:
        stream = sum(c << (bits * k) for k, c in enumerate(row))
        words = len(row) // 32 * bits
        columns.append([stream >> (32 * i) & 0xffffffff for i in range(words)])
    return torch.from_numpy(numpy.array(columns, numpy.uint32).T.copy().view(numpy.int32))


def table(rows, bits):
    half = 2**bits // 4

    def entry(n, i):
        m = (5 * i + 3 * n + 1) % 2**bits
        return (123 * (m // 2 - half) + 5000 * n) / 10000

    return torch.tensor([[entry(n, i) for i in range(2**bits)] for n in range(rows)],
                        dtype=torch.float32)


def write_checkpoint(folder, bits, shapes):
    folder.mkdir(exist_ok=True, parents=True)
    state = collections.OrderedDict()
    state["model.embed_tokens.weight"] = torch.arange(20, dtype=torch.float16).reshape(5, 4) / 4
    for module, (rows, cols) in shapes.items():
        name = "model.layers.0." + module
        state[name + ".bias"] = torch.arange(rows, dtype=torch.float16) / 2
        state[name + ".qweight"] = qweight(codes(rows, cols, bits), bits)
        state[name + ".lookup_table"] = table(rows, bits)
    state["model.norm.weight"] = torch.ones(4, dtype=torch.float16)
    torch.save(state, folder / "model.pt")
    (folder / "quant_config.json").write_text(json.dumps({"wbits": bits}) + "\n")


def outlier(n, k):
    """The weight at some places of a matrix, 0 at others."""
    return (n - k + 0.5) / 8 if (5 * n + 3 * k + k * k) % 23 == 0 else 0.0


def write_sparse_checkpoint(folder, bits, shapes):
    write_checkpoint(folder, bits, shapes)
    state = torch.load(folder / "model.pt")
    for module, (rows, cols) in shapes.items():
        name = "model.layers.0." + module
        tables = state[name + ".lookup_table"]
        code = codes(rows, cols, bits)
        sparse = torch.zeros(rows, cols, dtype=torch.float32)
        for n in range(rows):
            # Zeroed weights are in the cluster next to zero; the sparse part makes up for it.
            zero = int(tables[n].abs().argmin())
            for k in range(cols):
                if outlier(n, k) != 0:
                    code[n][k] = zero
                    sparse[n, k] = outlier(n, k) - tables[n, zero]
        state[name + ".qweight"] = qweight(code, bits)
        csr = sparse.to_sparse_csr()
        state[name + ".rows"] = csr.crow_indices().to(torch.int32)
        state[name + ".cols"] = csr.col_indices().to(torch.int32)
        state[name + ".vals"] = csr.values()
        state[name + ".startrows"] = torch.zeros(4, dtype=torch.int32)
        state["sparse_threshold." + name] = int(csr.values().numel())
    torch.save(state, folder / "model.pt")


def require_published_places():
    """4 bits: word k/8, nibble k%8; 3 bits: 32 codes in 3 words, the 11th from bit 30 to bit 32."""
    four = qweight([[k % 16 for k in range(32)]], 4)[:, 0].tolist()
    assert [w & 0xffffffff for w in four] == [0x76543210, 0xfedcba98] * 2
    three = qweight([[0] * 10 + [6] + [0] * 21], 3)[:, 0].tolist()
    assert [w & 0xffffffff for w in three] == [0x80000000, 0x1, 0]


def check(program):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        count = 0
        for bits in (2, 3, 4, 5, 8):
            for rows, cols in ((3, 32), (33, 96), (2, 1056), (65, 4096), (3, 11008)):
                write_checkpoint(folder / ("k%d-b%d" % (cols, bits)), bits, {"up": (rows, cols)})
                count += 1
        subprocess.run([program, "-tc=SqueezeLLM checkpoints in the folder*"], check=True,
                       env={**os.environ, "BL_SQUEEZELLM_FOLDER": str(folder)})
        print("%d checkpoints agree" % count)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", metavar="PROGRAM")
    arguments = parser.parse_args()
    require_published_places()
    if arguments.check:
        return check(arguments.check)
    for bits in (3, 4):
        write_checkpoint(DATA / ("squeezellm%d" % bits), bits,
                         {"self_attn.q_proj": (5, 32), "mlp.up": (3, 96), "mlp.down": (2, 160)})
    write_sparse_checkpoint(DATA / "squeezellm_sparse4", 4,
                            {"self_attn.q_proj": (5, 32), "mlp.up": (3, 96)})
    torch.save({"a.qweight": qweight(codes(1, 32, 3), 3), "a.lookup_table": table(1, 3),
                "sparse_threshold.a": 7}, DATA / "squeezellm_threshold.pt")


if __name__ == "__main__":
    main()
