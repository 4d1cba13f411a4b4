#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Perplexity of models at 2 to 8 bits by how their checkpoint is made: one row per text, method and precision.

    quality.py TOOL --json FILE --books FOLDER [--keep FOLDER] [--threads N]
               {--model NAME DIR|GGUF [--text NAME FILE ...] [--methods A,B] [--samples N] [--max-windows N]} ...

TOOL is the bitladder program. What follows a --model is that model's; without any it is the bundled one. Methods, each
one checkpoint that serves 2 to 8 bits:

    uniform         every weight counts alike
    sensitivities   weights count by their squared gradients on the calibration text
    sparse          the same, with 0.45% of the weights kept beside the codes
    refit           sensitivities, then tables and codes refit to the inputs of the layers
    refit-tables    sensitivities, then tables alone refit
    sparse-refit    sparse, then tables and codes refit

Calibration: --samples (100) windows of 512 tokens of the books in FOLDER, less the one that is measured on,
the-jungle-book.txt. A text defaults to that book; windows of 512 tokens from its start, all or --max-windows,
paragraphs joined in texts whose name begins with "book". The first row of a text, with bits 16, is the unquantized
model. What is in the folder of --keep is not made again: checkpoints, and rows that are newer than theirs.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

MODELS = pathlib.Path(__file__).resolve().parent.parent / "examples" / "models"
HELD_OUT = "the-jungle-book.txt"
METHODS = {"uniform": None, "sensitivities": None, "sparse": None, "refit": "sensitivities",
           "refit-tables": "sensitivities", "sparse-refit": "sparse"}  # name: what is refit


class maker:
    """Makes the checkpoints of a model and measures them, each once."""

    def __init__(self, common, m):
        self.tool, (self.name, self.model), self.max_windows = common.tool, m.model, str(m.max_windows)
        self.threads = ["--threads", str(common.threads), "-q"]
        self.folder = pathlib.Path(common.keep) / self.name
        books = pathlib.Path(common.keep) / "books"
        books.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        for book in sorted(pathlib.Path(common.books).glob("*.txt")):
            if book.name != HELD_OUT:
                shutil.copy(book, books / book.name)
        self.calibration = ["--text", str(books), "--join-paragraphs", "--num-examples", str(m.samples), "--seq-len",
                            "512"]

    def run(self, *words):
        subprocess.run([self.tool, *words, *self.threads], check=True, stdout=subprocess.DEVNULL)

    def checkpoint(self, method):
        out = self.folder / method
        if out.exists():
            return out
        if METHODS[method]:
            words = ["--keep-planes"] if method == "refit-tables" else []
            self.run("refit", str(self.checkpoint(METHODS[method])), "--model", self.model, *self.calibration,
                     "--memory", "4", "-o", str(out), *words)
            return out
        words = ["--outliers", "0.45"] if method == "sparse" else []
        if method != "uniform":
            grads = self.folder / "sensitivities.safetensors"
            self.run("sensitivity", self.model, *self.calibration, "-o", str(grads))
            words += ["--sensitivities", str(grads)]
        self.run("quantize", self.model, "-o", str(out), *words)
        return out

    def rows(self, method, text, path):
        source = pathlib.Path(self.model) if method == "unquantized" else self.checkpoint(method)
        out = self.folder / f"{method}.{text}.{self.max_windows}.json"
        made = (source / "config.json" if source.is_dir() else source).stat().st_mtime
        if not out.exists() or out.stat().st_mtime < made:
            part = out.with_suffix(".part")
            join = ["--join-paragraphs"] if text.startswith("book") else []
            self.run("perplexity", str(source), "--text", path, *join, "--window", "512", "--max-windows",
                     self.max_windows, "--json", str(part))
            part.replace(out)
        for r in json.loads(out.read_text()):
            yield {"model": self.name, "text": text, "method": method,
                   "bits": 16 if method == "unquantized" else r["bits"], "perplexity": round(r["perplexity"], 4)}


def arguments(words):
    """The common arguments, and each model's."""
    cuts = [i for i, word in enumerate(words) if word == "--model"] + [len(words)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--json", required=True)
    parser.add_argument("--books", required=True)
    parser.add_argument("--keep")
    parser.add_argument("--threads", type=int, default=0)
    common = parser.parse_args(words[:cuts[0]])
    of_model = argparse.ArgumentParser(add_help=False)
    of_model.add_argument("--model", nargs=2, default=["small", str(MODELS / "small")])
    of_model.add_argument("--text", nargs=2, action="append")
    of_model.add_argument("--methods", default="uniform,sensitivities,sparse,refit,sparse-refit")
    of_model.add_argument("--samples", type=int, default=100)
    of_model.add_argument("--max-windows", type=int, default=0)
    models = [of_model.parse_args(words[a:b]) for a, b in zip(cuts, cuts[1:])] or [of_model.parse_args([])]
    for m in models:
        m.text = m.text or [["book", str(pathlib.Path(common.books) / HELD_OUT)]]
        m.methods = m.methods.split(",")
        unknown = set(m.methods) - set(METHODS)
        if unknown:
            raise SystemExit(f"methods: expected {', '.join(METHODS)}, found {', '.join(sorted(unknown))}")
    return common, models


def main():
    common, models = arguments(sys.argv[1:])
    result = []
    with tempfile.TemporaryDirectory() as temporary:
        common.keep = common.keep or temporary
        for m in models:
            make = maker(common, m)
            for method in ["unquantized", *m.methods]:
                for text, path in m.text:
                    for row in make.rows(method, text, path):
                        result.append(row)
                        print(json.dumps(row), flush=True)
    pathlib.Path(common.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
