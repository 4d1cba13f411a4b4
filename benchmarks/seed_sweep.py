#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Perplexity at every precision for each seed precision and method, one checkpoint each.

    seed_sweep.py TOOL --json FILE [--model DIR] [--text FILE] [--sensitivities FILE] [--seeds 2,3,4]

TOOL is the bitladder program. One row per seed and method, with the keys perplexity_2 ... perplexity_8 and
relative_error_2 ... relative_error_8; the first row is the unquantized model.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

MODELS = pathlib.Path(__file__).resolve().parent.parent / "examples" / "models"


def rows_of(command, folder):
    out = folder / "rows.json"
    subprocess.run(command + ["-q", "--json", str(out)], check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--json", required=True)
    parser.add_argument("--model", default=str(MODELS / "small"))
    parser.add_argument("--text", default=str(MODELS / "held-out.txt"))
    parser.add_argument("--sensitivities")
    parser.add_argument("--seeds", default="2,3,4")
    a = parser.parse_args()
    measure = ["--text", a.text, "--join-paragraphs", "--window", "512"]
    result = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for row in rows_of([a.tool, "perplexity", a.model, *measure], folder):
            result.append({"seed": "unquantized", "method": "-", "weights": "-", "perplexity": row["perplexity"]})
        for sensitivities in [None] + ([a.sensitivities] if a.sensitivities else []):
            for seed in a.seeds.split(","):
                for method in ("exact", "published"):
                    row = {"seed": seed, "method": method,
                           "weights": "sensitivities" if sensitivities else "uniform"}
                    out = str(folder / "checkpoint")
                    command = [a.tool, "quantize", a.model, "-o", out, "--overwrite", "--seed-bits", seed,
                               "--method", method]
                    if sensitivities:
                        command += ["--sensitivities", sensitivities]
                    for r in rows_of(command, folder):
                        row[f"relative_error_{r['bits']}"] = r["relative_error"]
                    for r in rows_of([a.tool, "perplexity", out, *measure], folder):
                        row[f"perplexity_{r['bits']}"] = r["perplexity"]
                    result.append(row)
                    print(json.dumps(row), flush=True)
    pathlib.Path(a.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
