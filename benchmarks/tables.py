#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Make the tables of benchmarks/README.md and README.md from benchmarks/results/*.json.

    tables.py           rewrite them
    tables.py --check   exit 1 if one is not what the results say

A table stands between two comments. The first names the file and the columns, one "key | heading | format" a
line; "where key = value" (or "!=") keeps only the matching rows, "source" ends the table with machine, date and commit:

    <!-- table results/x.json
    where method = exact
    bits | bits | d
    seconds | seconds | .2f
    source
    -->
    ...
    <!-- end -->
"""
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- table (\S+)\n(.*?)-->\n)(.*?)(<!-- end -->)", re.S)


def shown(value, form):
    if value is None or value == "":
        return "-"
    if form == "bits":
        return "unquantized" if value == 0 else str(int(value))
    if form == "bytes":
        for unit in ("B", "kB", "MB", "GB"):
            if value < 999.5 or unit == "GB":
                return f"{value:.3g} {unit}"
            value /= 1000
    if form == "s":
        return str(value).replace("<", "&lt;")
    return format(int(value) if form == "d" else value, form)


def table(name, spec):
    data = json.loads((ROOT / "benchmarks" / name).read_text())
    rows, columns, source = data["rows"], [], False
    for line in spec.strip().splitlines():
        if line.startswith("where "):
            key, sign, wanted = re.match(r"where (\S+) (!?=) (.*)", line).groups()
            rows = [r for r in rows if (str(r.get(key)) == wanted) == (sign == "=")]
        elif line.strip() == "source":
            source = True
        else:
            columns.append([part.strip() for part in line.split("|")])
    if not rows:
        raise SystemExit(f"{name}: no row left by\n{spec}")
    lines = ["| " + " | ".join(c[1] for c in columns) + " |", "|" + "---|" * len(columns)]
    for r in rows:
        lines.append("| " + " | ".join(shown(r.get(c[0]), c[2]) for c in columns) + " |")
    if source:
        machine = data["machine"]
        where = f"{machine['cores']} cores of {machine['cpu']}" + (f", {machine['gpu']}" if machine.get("gpu") else "")
        lines += ["", f"`{data['command']}` on {where}; {data['date']}, commit {data['commit']}."]
    return "\n".join(lines) + "\n"


def main():
    stale = []
    for file in (ROOT / "README.md", ROOT / "benchmarks" / "README.md"):
        text = file.read_text()
        made = BLOCK.sub(lambda m: m[1] + table(m[2], m[3]) + m[5], text)
        if made != text:
            stale.append(str(file.relative_to(ROOT)))
            if "--check" not in sys.argv:
                file.write_text(made)
    if "--check" in sys.argv and stale:
        raise SystemExit("not what benchmarks/results says, run benchmarks/tables.py: " + ", ".join(stale))
    print("tables: " + (", ".join(stale) + " rewritten" if stale else "up to date"))


if __name__ == "__main__":
    main()
