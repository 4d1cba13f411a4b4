#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Perplexity of a model at 2 to 8 bits by how its checkpoint is made: one row per text, method and precision.

    quality.py TOOL --json FILE --books FOLDER [--model DIR|GGUF] [--text NAME=FILE ...] [--methods A,B] [--samples N]
               [--max-windows N] [--keep FOLDER]

TOOL is the bitladder program. Methods, each one checkpoint that serves 2 to 8 bits: uniform (every weight counts
alike), sensitivities (squared gradients on the calibration text), refit (those, then tables and codes refit to the
inputs of the layers), refit-tables (those, then tables alone). Calibration: --samples (100) windows of 512 tokens of
the books in FOLDER, less the one that is measured on, the-jungle-book.txt. Texts default to that book; windows of 512
tokens, paragraphs joined in texts whose name begins with "book". The first row of a text, with bits 16, is the
unquantized model. A folder given with --keep is used again by a second call.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import tempfile

MODELS = pathlib.Path(__file__).resolve().parent.parent / "examples" / "models"
METHODS = ("uniform", "sensitivities", "refit", "refit-tables")


def rows_of(command, folder):
    out = folder / "rows.json"
    subprocess.run(command + ["-q", "--json", str(out)], check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())


class maker:
    """Makes checkpoints, each once, and what they need."""

    def __init__(self, a, folder):
        self.tool, self.model, self.folder = a.tool, a.model, folder
        books = folder / "books"
        books.mkdir(exist_ok=True)
        for book in sorted(pathlib.Path(a.books).glob("*.txt")):
            if book.name != "the-jungle-book.txt":
                shutil.copy(book, books / book.name)
        self.calibration = ["--text", str(books), "--join-paragraphs", "--num-examples", str(a.samples),
                            "--seq-len", "512"]

    def run(self, *words):
        subprocess.run([self.tool, *words, "-q"], check=True, stdout=subprocess.DEVNULL)

    def checkpoint(self, method):
        out = self.folder / method
        if out.exists():
            return str(out)
        if method == "uniform":
            self.run("quantize", self.model, "-o", str(out))
        elif method == "sensitivities":
            grads = str(self.folder / "sensitivities.safetensors")
            self.run("sensitivity", self.model, *self.calibration, "-o", grads)
            self.run("quantize", self.model, "-o", str(out), "--sensitivities", grads)
        else:
            words = ["--keep-planes"] if method == "refit-tables" else []
            self.run("refit", self.checkpoint("sensitivities"), "--model", self.model, *self.calibration, "-o", str(out),
                     *words)
        return str(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--json", required=True)
    parser.add_argument("--books", required=True)
    parser.add_argument("--model", default=str(MODELS / "small"))
    parser.add_argument("--name")
    parser.add_argument("--text", action="append")
    parser.add_argument("--methods", default="uniform,sensitivities,refit")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--max-windows", default="0")
    parser.add_argument("--keep", help="folder for checkpoints; those that are there are used as they are")
    a = parser.parse_args()
    methods = a.methods.split(",")
    unknown = set(methods) - set(METHODS)
    if unknown:
        raise SystemExit(f"methods: expected {', '.join(METHODS)}, found {', '.join(sorted(unknown))}")
    texts = [t.split("=", 1) for t in a.text or ["book=" + str(pathlib.Path(a.books) / "the-jungle-book.txt")]]
    name = a.name or pathlib.Path(a.model).name
    result = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(a.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make = maker(a, folder)
        for method in ["unquantized", *methods]:
            model = a.model if method == "unquantized" else make.checkpoint(method)
            for text, path in texts:
                join = ["--join-paragraphs"] if text.startswith("book") else []
                command = [a.tool, "perplexity", model, "--text", path, *join, "--window", "512",
                           "--max-windows", a.max_windows]
                for r in rows_of(command, folder):
                    row = {"model": name, "text": text, "method": method,
                           "bits": 16 if method == "unquantized" else r["bits"], "perplexity": round(r["perplexity"], 4)}
                    result.append(row)
                    print(json.dumps(row), flush=True)
    pathlib.Path(a.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
