#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run a benchmark and keep its rows as benchmarks/results/NAME.json, with machine, date, commit and command.

    record.py NAME [--note TEXT] [--keys KEY,...] -- COMMAND ...

COMMAND is a Google Benchmark program, or a bitladder command that takes --json. The word {json} in COMMAND
becomes the file that it writes its rows to; a Google Benchmark program gets the right flags by itself.
--keys keeps only these of a row. BL_COMMIT names the commit where the tree has no git history of its own.
"""
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def first_line(command):
    try:
        out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
        return out.splitlines()[0] if out else ""
    except OSError:
        return ""


def machine():
    cpu = ""
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    gpu = first_line(["nvidia-smi", "--query-gpu=name,clocks.max.sm", "--format=csv,noheader"])
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "gpu": gpu or None, "system": platform.system()}


def commit():
    if "BL_COMMIT" in os.environ:
        return os.environ["BL_COMMIT"]
    head = first_line(["git", "rev-parse", "--short=12", "HEAD"]) or "unknown"
    return head + ("+changes" if first_line(["git", "status", "--porcelain", "--untracked-files=no"]) else "")


def google_rows(data):
    """One row per benchmark, of its name's arguments (name:value) and its counters; and what failed."""
    ignored = {"name", "run_name", "run_type", "repetitions", "repetition_index", "threads", "family_index",
               "per_family_instance_index", "aggregate_name", "aggregate_unit", "iterations", "cpu_time", "time_unit"}
    rows, failed = [], []
    for b in data["benchmarks"]:
        if b.get("error_occurred"):
            failed.append(f"{b['name']}: {b.get('error_message')}")
            continue
        row = {"benchmark": b["name"].split("/")[0]}
        for part in b["name"].split("/")[1:]:
            key, colon, value = part.partition(":")
            if colon and key not in ("iterations", "repeats"):
                row[key] = int(value) if value.lstrip("-").isdigit() else value
        row["label"] = b.get("label", "")
        row["real_" + b["time_unit"]] = b["real_time"]
        row.update({k: v for k, v in b.items() if k not in ignored and k not in ("real_time", "label")})
        rows.append({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()})
    return rows, failed


def main():
    if "--" not in sys.argv:
        raise SystemExit(__doc__)
    split = sys.argv.index("--")
    own, command = sys.argv[1:split], sys.argv[split + 1:]
    name, note = own[0], own[own.index("--note") + 1] if "--note" in own else None
    with tempfile.TemporaryDirectory() as folder:
        out = str(pathlib.Path(folder) / "rows.json")
        real = [word.replace("{json}", out) for word in command]
        if real == command:
            real += [f"--benchmark_out={out}", "--benchmark_out_format=json"]
        subprocess.run(real, check=True)
        data = json.load(open(out))
    rows, failed = google_rows(data) if isinstance(data, dict) and "benchmarks" in data else (data, [])
    result = {"machine": machine(), "date": datetime.date.today().isoformat(), "commit": commit(),
              "command": " ".join(pathlib.Path(w).name if w.startswith("/") else w for w in command)}
    if note:
        result["note"] = note
    if "--keys" in own:
        keys = own[own.index("--keys") + 1].split(",")
        rows = [{k: row[k] for k in keys if k in row} for row in rows]
    target = ROOT / "benchmarks" / "results" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_suffix(".json.tmp")
    lines = ",\n".join("  " + json.dumps(row) for row in rows)  # a row a line: some tables have a thousand
    temporary.write_text(json.dumps(result, indent=1)[:-2] + ',\n "rows": [\n' + lines + "\n ]\n}\n")
    os.replace(temporary, target)
    print(f"{target.relative_to(ROOT)}: {len(rows)} rows")
    if failed:
        raise SystemExit("\n".join(["left out, because they failed:"] + failed))


if __name__ == "__main__":
    main()
