#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes the fixtures of the tests of zip archives, torch.save files and Any-Precision checkpoints.

make_torch_golden.py                    writes data/
make_torch_golden.py --check PROGRAM    writes wide Any-Precision checkpoints to a temporary folder,
                                        has the test program read them and write them again, and
                                        reads that back with PyTorch; keeps nothing

data/torch{2,4,5}.bin    the tensors of make_safetensors_golden.py, as torch.save writes them with
                         that pickle protocol, and what else a state dict may hold
data/anyprec{3,4,8}/     checkpoints of that many planes, 32, 96 and 1056 columns wide
data/zip64.zip, data/streamed.zip, data/compressed.zip    from Python's zipfile
Codes are (k k + 3 k + 17 n) mod 251 mod 2^planes for row n and column k; entry i of the table of b
bits is (i - 2^(b-1)) (b + 1) / 64 + n; a bias is n / 2.
"""
import argparse
import collections
import io
import json
import os
import pathlib
import subprocess
import tempfile
import zipfile

import numpy
import torch

import make_safetensors_golden as plain

DATA = pathlib.Path(__file__).parent / "data"


def codes(rows, cols, planes):
    n, k = numpy.arange(rows)[:, None], numpy.arange(cols)[None, :]
    return ((k * k + 3 * k + 17 * n) % 251 % 2**planes).astype(numpy.uint8)


def words(code, planes):
    """int32 [planes, rows, cols/32] in the published order, by moving bytes as its packer does."""
    rows, cols = code.shape
    out = numpy.empty((planes, rows, cols // 32), numpy.int32)
    for p in range(planes):
        packed = numpy.packbits(code >> (planes - 1 - p) & 1, axis=1)  # first column in the top bit
        moved = numpy.empty_like(packed)
        for begin in range(0, cols // 8, 128):
            size = min(128, cols // 8 - begin) // 4
            for j in range(4 * size):
                moved[:, begin + 4 * (j % size) + (j // size ^ 3)] = packed[:, begin + j]
        out[p] = moved.view("<i4")
    return torch.from_numpy(out)


def table(rows, bits):
    n, i = numpy.arange(rows)[:, None], numpy.arange(2**bits)[None, :]
    return torch.from_numpy(((i - 2**(bits - 1)) * (bits + 1) / 64 + n).astype(numpy.float16))


def checkpoint(planes, shapes):
    """State dict and config of one layer with those linears, {module: (rows, cols)}."""
    state = collections.OrderedDict()
    embedding = torch.arange(20, dtype=torch.float16).reshape(5, 4) / 4
    state["model.embed_tokens.weight"] = embedding
    for module, (rows, cols) in shapes.items():
        name = "model.layers.0." + module
        state[name + ".qweight"] = words(codes(rows, cols, planes), planes)
        for b in range(3, planes + 1):
            state[name + ".lut%d" % b] = table(rows, b)
        state[name + ".bias"] = torch.arange(rows, dtype=torch.float16) / 2
    state["model.norm.weight"] = torch.ones(4, dtype=torch.float16)
    state["lm_head.weight"] = embedding
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1,
              "anyprec": {"seed_precision": 3, "parent_precision": planes, "group_count": 1,
                          "arch_config": {"module_names": list(shapes), "model_name": "model",
                                          "layers_name": "layers"}}}
    return state, config


def write_checkpoint(folder, planes, shapes):
    folder.mkdir(exist_ok=True, parents=True)
    state, config = checkpoint(planes, shapes)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return state


def write_torch():
    tensors = {t[0]: plain.tensor(*t) for t in plain.TENSORS}
    matrix = tensors["matrix"]
    state = collections.OrderedDict(tensors)
    state["tied"] = matrix
    state["part"] = matrix[1:3]
    state["turned"] = matrix.t()
    state["parameter"] = torch.nn.Parameter(torch.arange(3, dtype=torch.float32))
    state["epoch"] = 3
    state["history"] = {"loss": [2.5, -1e300], "best": None, "sizes": torch.Size([2, 3]),
                        "done": (True, False), "steps": -1 << 40}
    state._metadata = {"": {"version": 1}}
    for protocol in (2, 4, 5):
        torch.save(state, DATA / ("torch%d.bin" % protocol), pickle_protocol=protocol)


class Unseekable(io.RawIOBase):
    """Makes zipfile write sizes behind the data."""
    def __init__(self):
        self.bytes = b""

    def writable(self):
        return True

    def write(self, b):
        self.bytes += bytes(b)
        return len(b)


def write_zips():
    def fill(archive, **how):
        for name in ("a/one", "a/none", "two"):
            info = zipfile.ZipInfo(name)
            with archive.open(info, "w", **how) as entry:
                entry.write({"a/one": b"first " * 9, "a/none": b"", "two": b"\0second"}[name])
        archive.comment = b"PK\5\6 is not an end record"

    with zipfile.ZipFile(DATA / "zip64.zip", "w") as archive:
        fill(archive, force_zip64=True)
    stream = Unseekable()
    with zipfile.ZipFile(stream, "w") as archive:
        fill(archive)
    (DATA / "streamed.zip").write_bytes(stream.bytes)
    with zipfile.ZipFile(DATA / "compressed.zip", "w") as archive:
        info = zipfile.ZipInfo("a/squeezed")
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, b"0" * 100)


def require_golden_row():
    golden = """0007f80c 3ec36363 60001fe1 8c64db6b 01381934 c6cda5a5 6007e366 94a94931
                06c92a59 4a56cc8f 601925ab 31fc64ad 1a5377f5 9dbdaa4c 636a4ede a99ca9f9
                2c9a4930 d24c800b 65b36926 016505da 4b692a58 4a56c123 092da5ab 0468bfaf
                3366cc9a 3366d366 06cc9933 4cd30c34 000007fc 013fe01f 6000001f 83e3c718"""
    found = words(codes(1, 1056, 8), 8)[:, 0, [0, 1, 31, 32]].numpy().view(numpy.uint32)
    assert ["%08x" % w for w in found.ravel()] == golden.split()


def same(a, b):
    assert sorted(a) == sorted(b), (sorted(a), sorted(b))
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def check(program):
    import safetensors.torch
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        states = {}
        for planes in (3, 4, 8):
            for cols in (32, 96, 1056, 4096, 11008):
                name = "k%d-p%d" % (cols, planes)
                states[name] = write_checkpoint(folder / name, planes, {"mlp.up": (3, cols)})
        subprocess.run([program, "-tc=checkpoints in the folder*"], check=True,
                       env={**os.environ, "BL_ANYPREC_FOLDER": str(folder)})
        for name, state in states.items():
            again = torch.load(folder / (name + ".torch") / "pytorch_model.bin", weights_only=True)
            same(state, again)
            assert (again["lm_head.weight"].data_ptr() ==
                    again["model.embed_tokens.weight"].data_ptr())
            same(state, safetensors.torch.load_file(
                folder / (name + ".safetensors") / "model.safetensors"))
            config = json.loads((folder / name / "config.json").read_text())
            for kind in (".torch", ".safetensors"):
                assert json.loads((folder / (name + kind) / "config.json").read_text()) == config
        print("%d checkpoints agree both ways" % len(states))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", metavar="PROGRAM")
    arguments = parser.parse_args()
    require_golden_row()
    if arguments.check:
        return check(arguments.check)
    DATA.mkdir(exist_ok=True)
    write_torch()
    write_zips()
    for planes in (3, 4, 8):
        write_checkpoint(DATA / ("anyprec%d" % planes), planes,
                         {"self_attn.q_proj": (3, 32), "mlp.up": (2, 96), "mlp.down": (1, 1056)})


if __name__ == "__main__":
    main()
